//! Apache Kafka for tests: one KRaft node per [`RealKafka`], and Kafka's own command-line tools.
//!
//! The jars come from `tests/kafka/fetch`. Which releases a test runs against is decided by
//! [`versions`]: those that are there, and with `CAUSEWAY_REQUIRE_KAFKA=1` a missing one is a failure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::process::{self, Finished, Process};

/// How long a node may take to start: a few seconds alone, more when tests share two cores.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// How long an orderly shutdown may take.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);

/// How long one of Kafka's command-line tools may take.
pub const TOOL_TIMEOUT: Duration = Duration::from_secs(90);

/// User and password of the SASL/PLAIN listener.
pub const SASL_USER: (&str, &str) = ("causeway", "secret");

const KNOWN_VERSIONS: &str = include_str!("../kafka/versions");
const SERVER_PROPERTIES: &str = include_str!("../kafka/server.properties");

/// A release of Apache Kafka whose jars are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    name: String,
    libs: PathBuf,
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

impl Version {
    /// The release called `name`, if its jars are there.
    pub fn find(name: &str) -> Result<Self> {
        let libs = cache()?.join(name).join("libs");
        let jar = libs.join(format!("kafka_2.13-{name}.jar"));
        ensure!(
            jar.exists(),
            "Apache Kafka {name} is not in {}: run tests/kafka/fetch {name}",
            libs.display()
        );
        Ok(Self { name: name.to_owned(), libs })
    }

    /// Its number, such as `3.9.2`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a release before `major.minor`.
    pub fn is_older_than(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.name.split('.').map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (major, minor)
    }

    fn java(&self, heap: &str) -> Command {
        let logging = Path::new(env!("CARGO_MANIFEST_DIR")).join("kafka");
        let mut command = Command::new("java");
        command
            .arg(format!("-Xmx{heap}"))
            .arg("-XX:+UseSerialGC")
            .arg(format!("-Dlog4j.configuration=file:{}", logging.join("log4j.properties").display()))
            .arg(format!("-Dlog4j2.configurationFile={}", logging.join("log4j2.properties").display()))
            .arg("-cp")
            .arg(self.libs.join("*"));
        command
    }

    /// One of Kafka's command-line tools in this release, without arguments.
    pub fn tool(&self, tool: Tool) -> Command {
        let mut command = self.java("256m");
        command.arg("-XX:TieredStopAtLevel=1").arg(tool.class(self));
        command
    }
}

/// The numbers of the releases that the tests are meant to run against, oldest first.
pub fn known_versions() -> impl Iterator<Item = &'static str> {
    KNOWN_VERSIONS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The releases that are there, oldest first.
///
/// With `CAUSEWAY_REQUIRE_KAFKA=1` a missing one is an error; without it, it is left out, which the
/// caller says on its output.
pub fn versions() -> Result<Vec<Version>> {
    let required = std::env::var_os("CAUSEWAY_REQUIRE_KAFKA").is_some_and(|value| value == "1");
    let mut found = Vec::new();
    for name in known_versions() {
        match Version::find(name) {
            Ok(version) => found.push(version),
            Err(error) if required => {
                return Err(error.context("CAUSEWAY_REQUIRE_KAFKA=1 and a release of Kafka is missing"));
            }
            Err(_) => {}
        }
    }
    Ok(found)
}

fn cache() -> Result<PathBuf> {
    let directory = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    directory("CAUSEWAY_KAFKA_CACHE")
        .or_else(|| directory("XDG_CACHE_HOME").map(|cache| cache.join("causeway/kafka")))
        .or_else(|| directory("HOME").map(|home| home.join(".cache/causeway/kafka")))
        .ok_or_else(|| anyhow!("none of CAUSEWAY_KAFKA_CACHE, XDG_CACHE_HOME and HOME is set"))
}

/// Kafka's command-line tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the tool of its name")]
pub enum Tool {
    Topics,
    ConsoleProducer,
    ConsoleConsumer,
    ConsumerGroups,
    GetOffsets,
    Storage,
}

impl Tool {
    /// Main class: the tools moved out of Kafka's core between 3.5 and 4.0.
    fn class(self, version: &Version) -> &'static str {
        match self {
            Self::Topics if version.is_older_than(3, 5) => "kafka.admin.TopicCommand",
            Self::Topics => "org.apache.kafka.tools.TopicCommand",
            Self::ConsoleProducer if version.is_older_than(4, 0) => "kafka.tools.ConsoleProducer",
            Self::ConsoleProducer => "org.apache.kafka.tools.ConsoleProducer",
            Self::ConsoleConsumer if version.is_older_than(3, 8) => "kafka.tools.ConsoleConsumer",
            Self::ConsoleConsumer => "org.apache.kafka.tools.consumer.ConsoleConsumer",
            Self::ConsumerGroups if version.is_older_than(3, 7) => "kafka.admin.ConsumerGroupCommand",
            Self::ConsumerGroups => "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
            Self::GetOffsets if version.is_older_than(3, 6) => "kafka.tools.GetOffsetShell",
            Self::GetOffsets => "org.apache.kafka.tools.GetOffsetShell",
            Self::Storage => "kafka.tools.StorageTool",
        }
    }
}

/// A listener beyond those of every node.
#[derive(Debug, Clone, Copy)]
pub struct Listener {
    /// Its name, upper case.
    pub name: &'static str,
    /// `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub protocol: &'static str,
}

/// What a node has beyond the ordinary one.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Further listeners, each on a free port.
    pub listeners: Vec<Listener>,
    /// Further lines of `server.properties`.
    pub properties: String,
    /// Users for SCRAM, as `kafka-storage format --add-scram` takes them (Kafka 3.5 and later).
    pub scram: Vec<String>,
    /// Further arguments of its Java machine.
    pub java: Vec<String>,
    /// Ports at which clients are told to find listeners, by their names, where it is not their own: that of
    /// a proxy in front.
    pub advertised: Vec<(&'static str, u16)>,
}

/// The place of a node in a cluster of several.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// `node.id`, from 1.
    pub id: usize,
    /// Cluster id, the same for all; see [`cluster_id`].
    pub cluster: String,
    /// Ports of its listeners PLAINTEXT, SASL_PLAINTEXT and CONTROLLER.
    pub ports: [u16; 3],
    /// `controller.quorum.voters`.
    pub voters: String,
    /// Whether it is one of them.
    pub is_controller: bool,
}

impl Member {
    /// What replaces the lines of a node that is alone.
    fn properties(&self) -> String {
        let roles = if self.is_controller { "broker,controller" } else { "broker" };
        format!("node.id={}\nprocess.roles={roles}\ncontroller.quorum.voters={}\n", self.id, self.voters)
    }
}

/// A fresh cluster id.
pub(crate) fn cluster_id(version: &Version) -> Result<String> {
    let id = process::run(version.tool(Tool::Storage).arg("random-uuid"), b"", TOOL_TIMEOUT)?;
    Ok(id.successful()?.stdout.trim().to_owned())
}

/// One node of Apache Kafka, broker and controller in one, with a data directory of its own.
///
/// Topics are not created on request; the offsets topic has one partition and one replica.
pub struct RealKafka {
    version: Version,
    directory: Option<TempDir>,
    port: u16,
    sasl_port: u16,
    listeners: Vec<(&'static str, u16)>,
    java: Vec<String>,
    process: Option<Process>,
}

impl RealKafka {
    /// Starts a fresh node and waits until it serves.
    pub fn start(version: &Version) -> Result<Self> {
        Self::start_with(version, &Extras::default())
    }

    /// Starts a fresh node with more than every node has, and waits until it serves.
    pub fn start_with(version: &Version, extras: &Extras) -> Result<Self> {
        // A port that was free a moment ago may have been taken by a test beside this one.
        let mut last = None;
        for _ in 0..3 {
            match Self::start_once(version, extras) {
                Ok(kafka) => return Ok(kafka),
                Err(error) if error.to_string().contains("Address already in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("no attempt was made")))
    }

    fn start_once(version: &Version, extras: &Extras) -> Result<Self> {
        let ports = free_ports()?;
        let voters = format!("1@127.0.0.1:{}", ports[2]);
        let cluster = cluster_id(version)?;
        let alone = Member { id: 1, cluster, ports, voters, is_controller: true };
        let mut kafka = Self::prepare(version, extras, &alone)?;
        kafka.restart()?;
        Ok(kafka)
    }

    /// A node with its files in place, not started.
    pub(crate) fn prepare(version: &Version, extras: &Extras, member: &Member) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("causeway-kafka-").tempdir()?;
        process::remove_at_exit(directory.path());
        let [port, sasl_port, controller_port] = member.ports;
        let mut listeners = Vec::new();
        for listener in &extras.listeners {
            let port = loop {
                let [free] = free_ports()?;
                let taken = [port, sasl_port, controller_port];
                if !taken.contains(&free) && !listeners.iter().any(|(_, known)| *known == free) {
                    break free;
                }
            };
            listeners.push((listener.name, port));
        }
        let own = [("PLAINTEXT", port), ("SASL_PLAINTEXT", sasl_port)];
        let all = || own.iter().chain(&listeners);
        let address = |(name, port): (&str, u16)| format!("{name}://127.0.0.1:{port}");
        let bound = all().copied().map(address).collect::<Vec<_>>().join(",");
        let advertised = |&(name, port): &(&'static str, u16)| {
            let proxy = extras.advertised.iter().find(|(known, _)| *known == name);
            address((name, proxy.map_or(port, |(_, port)| *port)))
        };
        let advertised = all().map(advertised).collect::<Vec<_>>().join(",");
        let controller = if member.is_controller { ",CONTROLLER://127.0.0.1:@CONTROLLER_PORT@" } else { "" };
        let protocols: Vec<String> = extras
            .listeners
            .iter()
            .map(|Listener { name, protocol }| format!(",{name}:{protocol}"))
            .collect();
        let protocols = protocols.concat();
        let add = |line: &str| match line.split_once('=') {
            Some(("listeners", _)) => format!("listeners={bound}{controller}"),
            Some(("advertised.listeners", _)) => format!("advertised.listeners={advertised}"),
            Some(("listener.security.protocol.map", _)) => format!("{line}{protocols}"),
            _ => line.to_owned(),
        };
        let properties: Vec<String> = SERVER_PROPERTIES.lines().map(add).collect();
        // Of two lines with one key the later one counts.
        let properties = format!("{}\n{}\n{}", properties.join("\n"), member.properties(), extras.properties)
            .replace("@PORT@", &port.to_string())
            .replace("@SASL_PORT@", &sasl_port.to_string())
            .replace("@CONTROLLER_PORT@", &controller_port.to_string())
            .replace("@DATA@", &directory.path().join("data").display().to_string());
        let file = directory.path().join("server.properties");
        std::fs::write(&file, properties)?;
        let kafka = Self {
            version: version.clone(),
            directory: Some(directory),
            port,
            sasl_port,
            listeners,
            java: extras.java.clone(),
            process: None,
        };
        let mut format = version.tool(Tool::Storage);
        // Java reads its arguments as the locale says.
        format.env("LC_ALL", "C.UTF-8").args(["format", "-t", &member.cluster, "-c"]).arg(&file);
        for user in &extras.scram {
            format.args(["--add-scram", user]);
        }
        process::run(&mut format, b"", TOOL_TIMEOUT)?
            .successful()
            .context("cannot format the storage of Kafka")?;
        Ok(kafka)
    }

    /// Which release it is.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// `127.0.0.1:PORT`, without security.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT` of the listener that wants SASL/PLAIN with [`SASL_USER`]. Brokers found through
    /// it are reached through it.
    pub fn sasl_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_port)
    }

    /// `127.0.0.1:PORT` of a listener of [`Extras`]; empty where there is no such one.
    pub fn listener(&self, name: &str) -> String {
        let port = self.listeners.iter().find(|(known, _)| *known == name);
        port.map_or_else(String::new, |(_, port)| format!("127.0.0.1:{port}"))
    }

    /// Ends it in order, as a rolling restart does.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("this Kafka does not run")?;
        process.terminate(STOP_TIMEOUT)?;
        Ok(())
    }

    /// Ends it at once: `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("this Kafka does not run")?.kill();
        Ok(())
    }

    /// Stops it where it stands: connections stay open and nothing is answered until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.process.as_ref().context("this Kafka does not run")?.pause()
    }

    /// Lets a paused node go on.
    pub fn resume(&self) -> Result<()> {
        self.process.as_ref().context("this Kafka does not run")?.resume()
    }

    /// Starts it again, on the same ports and data, and waits until it serves. Kills it first if it runs.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_until_it_serves()
    }

    /// Starts it again without waiting. Kills it first if it runs.
    pub(crate) fn launch(&mut self) -> Result<()> {
        self.process = None;
        let directory = self.directory.as_ref().context("the data directory is gone")?;
        let process = Process::spawn(
            &format!("Apache Kafka {}", self.version),
            self.version
                .java("512m")
                .args(&self.java)
                .arg("kafka.Kafka")
                .arg(directory.path().join("server.properties"))
                .stdin(std::process::Stdio::null()),
        )?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until it answers a client on every listener.
    pub(crate) fn wait_until_it_serves(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let bootstrap = self.bootstrap();
        loop {
            // It serves its first listener before it has opened the others, and ends if one of them is taken.
            let is_open = |(_, port): &(_, u16)| TcpStream::connect(("127.0.0.1", *port)).is_ok();
            if serves(&bootstrap) && self.listeners.iter().all(is_open) {
                return Ok(());
            }
            let process = self.process.as_mut().context("this Kafka does not run")?;
            if !process.is_running() {
                bail!("Apache Kafka {} ended at its start:\n{}", self.version, process.tail(40));
            }
            if Instant::now() >= deadline {
                bail!(
                    "Apache Kafka {} does not serve after {START_TIMEOUT:?}:\n{}",
                    self.version,
                    process.tail(40)
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether its process is there (paused or not).
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// What it logged last, for the text of a failure.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(|process| process.tail(40)).unwrap_or_default()
    }

    /// Runs one of Kafka's tools of this release against this node and returns what it printed.
    pub fn tool(&self, tool: Tool, arguments: &[&str], input: &[u8]) -> Result<Finished> {
        run_tool(&self.version, tool, &self.bootstrap(), arguments, input)
    }

    /// Creates a topic with Kafka's own tool.
    pub fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        let partitions = partitions.to_string();
        self.tool(Tool::Topics, &["--create", "--topic", topic, "--partitions", &partitions], b"")?
            .successful()
            .with_context(|| format!("cannot create topic {topic}"))?;
        Ok(())
    }
}

impl Drop for RealKafka {
    fn drop(&mut self) {
        self.process = None;
        if let Some(directory) = self.directory.take() {
            let path = directory.path().to_owned();
            if directory.close().is_ok() {
                process::removed(&path);
            }
        }
    }
}

/// Runs one of Kafka's tools against any broker.
pub fn run_tool(
    version: &Version,
    tool: Tool,
    bootstrap: &str,
    arguments: &[&str],
    input: &[u8],
) -> Result<Finished> {
    process::run(
        version.tool(tool).args(["--bootstrap-server", bootstrap]).args(arguments),
        input,
        TOOL_TIMEOUT,
    )
}

/// The first `count` values of a topic as Kafka's console consumer prints them, from the beginning.
pub fn console_consume(version: &Version, bootstrap: &str, topic: &str, count: usize) -> Result<Vec<String>> {
    let count = count.to_string();
    let arguments = ["--topic", topic, "--from-beginning", "--max-messages", &count, "--timeout-ms", "60000"];
    let finished = run_tool(version, Tool::ConsoleConsumer, bootstrap, &arguments, b"")?.successful()?;
    let lines: Vec<String> = finished.stdout.lines().map(str::to_owned).collect();
    // It ends well also when nothing more came.
    ensure!(
        lines.len().to_string() == count,
        "{} of {count} lines: {lines:?}\n{}",
        lines.len(),
        finished.stderr
    );
    Ok(lines)
}

/// Writes lines with Kafka's console producer; with `key_separator` a line is `KEY SEPARATOR VALUE`.
pub fn console_produce(
    version: &Version,
    bootstrap: &str,
    topic: &str,
    lines: &[&str],
    key_separator: Option<&str>,
) -> Result<()> {
    let mut arguments = vec!["--topic".to_owned(), topic.to_owned()];
    if let Some(separator) = key_separator {
        for property in ["parse.key=true".to_owned(), format!("key.separator={separator}")] {
            arguments.extend(["--property".to_owned(), property]);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut input = lines.join("\n");
    input.push('\n');
    run_tool(version, Tool::ConsoleProducer, bootstrap, &arguments, input.as_bytes())?.successful()?;
    Ok(())
}

/// Ports that were free a moment ago and that this process has given to nobody yet.
///
/// They lie below those that systems give to outgoing connections (from 32,768 on): what is restarted on its
/// port must not find it taken, by somebody's client or by another test's server.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = [0; N];
    for port in &mut ports {
        let is_free = |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let found = (0..1000).map(|_| rand::random_range(20_000..32_000)).find(is_free);
        *port = found.context("no free port between 20,000 and 32,000")?;
        given.insert(*port);
    }
    Ok(ports)
}

/// Whether the broker answers a metadata request with itself in it.
fn serves(bootstrap: &str) -> bool {
    fn ask(bootstrap: &str) -> Result<bool> {
        use std::io::{Read, Write};
        let limit = Some(Duration::from_secs(2));
        let mut stream = std::net::TcpStream::connect(bootstrap)?;
        stream.set_read_timeout(limit)?;
        stream.set_write_timeout(limit)?;
        // Metadata version 1: size, api key 3, version 1, correlation id 7, client id "t", no topics.
        stream.write_all(b"\0\0\0\x0f\0\x03\0\x01\0\0\0\x07\0\x01t\0\0\0\0")?;
        // Size, correlation id, number of brokers.
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        let [_, _, _, _, _, _, _, correlation, brokers @ ..] = answer;
        Ok(correlation == 7 && i32::from_be_bytes(brokers) > 0)
    }
    ask(bootstrap).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_its_port_and_records(version: &Version) {
        let started = Instant::now();
        let mut kafka = RealKafka::start(version).unwrap();
        eprintln!("Apache Kafka {version} serves after {:?}", started.elapsed());
        kafka.create_topic("greetings", 1).unwrap();
        console_produce(version, &kafka.bootstrap(), "greetings", &["k:hello", "k:world"], Some(":"))
            .unwrap();
        kafka.stop().unwrap();
        kafka.restart().unwrap();
        kafka.kill().unwrap();
        kafka.restart().unwrap();
        assert_eq!(console_consume(version, &kafka.bootstrap(), "greetings", 2).unwrap(), ["hello", "world"]);
        let offsets = kafka.tool(Tool::GetOffsets, &["--topic", "greetings"], b"").unwrap();
        assert_eq!(offsets.successful().unwrap().stdout.trim(), "greetings:0:2");
        let groups = kafka.tool(Tool::ConsumerGroups, &["--list"], b"").unwrap();
        assert!(groups.successful().unwrap().stdout.contains("console-consumer-"));
    }

    #[test]
    fn a_real_kafka_keeps_its_port_and_records_through_stop_kill_and_restart() {
        let versions = versions().unwrap();
        // Side by side: most of it is waiting for virtual machines to start.
        std::thread::scope(|scope| {
            for version in &versions {
                scope.spawn(|| keeps_its_port_and_records(version));
            }
        });
    }
}
