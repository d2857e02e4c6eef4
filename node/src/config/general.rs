//! The sections beside listeners, bridges and MQTT: the node itself, logging, the admin link.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::address::read_bind;
use super::kind::Kind;
use super::kind_values::{Parsed, boolean, choice, parsed};
use super::section::{choices, section};

section! {
    /// Who this node is and where it keeps its data.
    pub struct NodeConfig {
        /// Name of this node. It shows in `${node}` and in Kafka's own tools as part of the client id; two
        /// nodes of one cluster need different names.
        name: String => parsed("text", read_node_name, |name| name.as_str().into())
            .allowing("letters, digits, `.`, `_`, `-`; at most 128")
            .or_else(host_name, "name of the host");
        /// Folder for everything that this node keeps. Relative paths count from where the node is started.
        data_dir: PathBuf => path().or(PathBuf::from("data"));
    }
}

choices! {
    /// How much is logged.
    pub enum LogLevel {
        /// What stops something from working.
        Error = "error";
        /// What works less well than it should.
        Warn = "warn" | "warning";
        /// What happens rarely and matters.
        Info = "info" | "notice";
        /// What helps to find a fault.
        Debug = "debug";
        /// Everything.
        Trace = "trace";
    }
}

choices! {
    /// How a log line looks.
    pub enum LogFormat {
        /// For people.
        Text = "text";
        /// One JSON object a line.
        Json = "json";
    }
}

section! {
    /// Logging, to standard error.
    pub struct LogConfig {
        /// How much is logged. The environment variable `RUST_LOG` overrides it and can choose by module.
        level: LogLevel => choice().or(LogLevel::Info);
        /// How a line looks.
        format: LogFormat => choice().or(LogFormat::Text);
    }
}

section! {
    /// The link that `causeway ctl` uses.
    pub struct AdminConfig {
        /// Whether the link is opened.
        enable: bool => boolean().or(true);
        /// Address and port. The link trusts who can reach it, so only loopback addresses are allowed.
        bind: SocketAddr => bind().check(is_loopback).or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081));
    }
}

pub(super) fn bind() -> Parsed<SocketAddr> {
    parsed("address", read_bind, |address| address.to_string().into())
}

fn is_loopback(address: &SocketAddr) -> Result<(), String> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err("the admin link trusts who can reach it: only a loopback address is allowed, such as 127.0.0.1:8081"
        .into())
}

fn path() -> Parsed<PathBuf> {
    parsed(
        "path",
        |text| if text.is_empty() { Err("empty; write a folder".into()) } else { Ok(PathBuf::from(text)) },
        |path| path.display().to_string().into(),
    )
}

fn read_node_name(name: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 128 || !name.chars().all(legal) {
        return Err("not a node name; write letters, digits, `.`, `_` or `-`, at most 128 of them".into());
    }
    Ok(name.to_owned())
}

/// The name of the host as far as it is a legal node name, or `causeway`.
fn host_name() -> String {
    let raw = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"));
    raw.ok().and_then(|name| read_node_name(name.trim()).ok()).unwrap_or_else(|| "causeway".into())
}

/// How many files this process may hold open, where the system tells; every connection takes one.
pub fn open_files_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
