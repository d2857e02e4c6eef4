//! Brokers to compare: each started on the loopback network with a minimal configuration, and ended.
//!
//! Every one gets what a fair load test needs and no more: no persistence, anonymous clients, queues that
//! hold the load, `TCP_NODELAY`. The templates are in `benches/brokers/`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::load::link::Link;

/// How long a broker may take to answer its first CONNECT.
const START: Duration = Duration::from_secs(20);

/// A broker that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// This project.
    Causeway,
    /// Eclipse Mosquitto: `apt-get install mosquitto`.
    Mosquitto,
    /// rumqttd: `cargo install rumqttd`.
    Rumqttd,
    /// RMQTT: `cargo install rmqttd`, which needs `protoc`.
    Rmqttd,
}

impl Kind {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 4] = [Self::Causeway, Self::Mosquitto, Self::Rumqttd, Self::Rmqttd];

    /// Name of its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Causeway => "causeway",
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
            Self::Rmqttd => "rmqttd",
        }
    }

    fn template(self) -> (&'static str, &'static str) {
        match self {
            Self::Causeway => ("causeway.conf", include_str!("../brokers/causeway.conf")),
            Self::Mosquitto => ("mosquitto.conf", include_str!("../brokers/mosquitto.conf")),
            Self::Rumqttd => ("rumqttd.toml", include_str!("../brokers/rumqttd.toml")),
            Self::Rmqttd => ("rmqttd.toml", include_str!("../brokers/rmqttd.toml")),
        }
    }

    fn arguments(self, configuration: &Path) -> Vec<PathBuf> {
        let before: &[&str] = match self {
            Self::Causeway => &["start", "--config"],
            Self::Mosquitto => &["-c"],
            Self::Rumqttd => &["--quiet", "--config"],
            Self::Rmqttd => &["-f"],
        };
        before.iter().map(PathBuf::from).chain([configuration.to_owned()]).collect()
    }

    /// Its program: in one of `directories`, beside the running one, on the `PATH`, or in `/usr/sbin`.
    pub fn find(self, directories: &[PathBuf]) -> Option<PathBuf> {
        let own = std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
        let path = std::env::var_os("PATH").unwrap_or_default();
        directories
            .iter()
            .cloned()
            .chain(own)
            .chain(std::env::split_paths(&path))
            .chain([PathBuf::from("/usr/sbin")])
            .map(|directory| directory.join(self.name()))
            .find(|program| program.is_file())
    }
}

/// A running broker; dropping it ends it.
pub struct Broker {
    child: Child,
    address: SocketAddr,
    second: SocketAddr,
    _directory: TempDir,
}

impl Broker {
    /// Starts `program` and waits until it answers over TCP. `extra` is added to its configuration; places
    /// for `{directory}`, `{port}` and `{second_port}` are filled in there, too.
    pub async fn start(kind: Kind, program: &Path, extra: &str) -> Result<Self> {
        Self::start_with_plugins(kind, program, extra, &[]).await
    }

    /// The same for RMQTT with plugins, each by its name and with its configuration.
    pub async fn start_with_plugins(
        kind: Kind,
        program: &Path,
        extra: &str,
        plugins: &[(&str, String)],
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (file, template) = kind.template();
        let (port, second_port) = free_ports()?;
        let names: Vec<_> = plugins.iter().map(|(name, _)| format!("{name:?}")).collect();
        let text = format!("{template}{extra}")
            .replace("{directory}", &directory.path().to_string_lossy())
            .replace("{plugins}", &names.join(","))
            .replace("{port}", &port.to_string())
            .replace("{second_port}", &second_port.to_string());
        std::fs::create_dir(directory.path().join("plugins"))?;
        for (name, text) in plugins {
            std::fs::write(directory.path().join(format!("plugins/{name}.toml")), text)?;
        }
        let configuration = directory.path().join(file);
        std::fs::write(&configuration, text)?;
        let child = Command::new(program)
            .args(kind.arguments(&configuration))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let second = SocketAddr::from((Ipv4Addr::LOCALHOST, second_port));
        let mut broker = Self { child, address, second, _directory: directory };
        let start = Instant::now();
        loop {
            let answer =
                Link::connect(&address.to_string().into(), "bench-first", true, Duration::from_secs(2)).await;
            match answer {
                Ok(link) => {
                    link.close().await?;
                    return Ok(broker);
                }
                Err(error) if start.elapsed() > START => {
                    return Err(error.context(format!("{} does not answer", kind.name())));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            if let Some(status) = broker.child.try_wait()? {
                bail!("{} ended at once: {status}", kind.name());
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where a further listener of its configuration listens.
    pub fn second_address(&self) -> SocketAddr {
        self.second
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It has nothing that is worth a clean end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_ports() -> Result<(u16, u16)> {
    let listeners = (TcpListener::bind("0.0.0.0:0")?, TcpListener::bind("0.0.0.0:0")?);
    Ok((listeners.0.local_addr()?.port(), listeners.1.local_addr()?.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_has_a_place_for_the_port() {
        for kind in Kind::ALL {
            assert!(kind.template().1.contains("{port}"), "{kind:?}");
        }
    }

    #[test]
    fn a_program_is_found_in_the_directory_that_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("rumqttd");
        std::fs::write(&program, "").unwrap();
        assert_eq!(Kind::Rumqttd.find(&[directory.path().to_owned()]), Some(program));
    }
}
