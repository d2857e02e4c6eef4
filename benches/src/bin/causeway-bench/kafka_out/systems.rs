//! The systems of the comparison: what has to be there, how each is started for a case, and how it is loaded.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use causeway_benches::brokers::{Broker, Kind};
use clap::ValueEnum;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Case;

/// RMQTT's plugin, whose configuration is a file of this name.
const PLUGIN: &str = "rmqtt-bridge-egress-kafka";

/// The header that is the same for all messages, in cases with two of them.
pub(super) const HEADER: (&str, &str) = ("site", "north");

/// A way to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    /// This project, its buffer in memory: acknowledged when Kafka has acknowledged.
    Causeway,
    /// This project, its buffer on disk: acknowledged when it is synced.
    CausewayDisk,
    /// This project, its buffer in memory, and in files what does not fit there.
    CausewayHybrid,
    /// librdkafka's producer alone: the reference.
    Librdkafka,
    /// mosquitto and a forwarder on librdkafka.
    Mosquitto,
    /// RMQTT with its Kafka plugin.
    Rmqttd,
}

/// What has been started for a case; dropping it ends it.
pub(super) enum Running {
    /// librdkafka's producer is part of the generator.
    Nothing,
    Node(Broker),
    Forwarded(Broker, Child),
    Plugin(Broker),
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Causeway => "causeway",
            Self::CausewayDisk => "causeway, disk",
            Self::CausewayHybrid => "causeway, hybrid",
            Self::Librdkafka => "librdkafka",
            Self::Mosquitto => "mosquitto",
            Self::Rmqttd => "rmqttd",
        }
    }

    fn kind(self) -> Option<Kind> {
        match self {
            Self::Causeway | Self::CausewayDisk | Self::CausewayHybrid => Some(Kind::Causeway),
            Self::Librdkafka => None,
            Self::Mosquitto => Some(Kind::Mosquitto),
            Self::Rmqttd => Some(Kind::Rmqttd),
        }
    }

    /// Why it cannot take part.
    pub(super) fn missing(self, directories: &[PathBuf]) -> Option<&'static str> {
        let needs_librdkafka = matches!(self, Self::Librdkafka | Self::Mosquitto);
        if needs_librdkafka && !cfg!(feature = "rdkafka") {
            return Some("needs the feature rdkafka (cargo build --features rdkafka)");
        }
        self.kind().is_some_and(|kind| kind.find(directories).is_none()).then_some("not found")
    }

    pub(super) async fn start(
        self,
        directories: &[PathBuf],
        kafka: &str,
        topic: &str,
        case: Case,
    ) -> Result<Running> {
        let Some(kind) = self.kind() else { return Ok(Running::Nothing) };
        let program = kind.find(directories).with_context(|| format!("{} is gone", kind.name()))?;
        Ok(match self {
            Self::Librdkafka => Running::Nothing,
            Self::Causeway | Self::CausewayDisk | Self::CausewayHybrid => {
                let buffer = match self {
                    Self::CausewayDisk => "disk",
                    Self::CausewayHybrid => "hybrid",
                    _ => "memory",
                };
                Running::Node(Broker::start(kind, &program, &bridge(kafka, topic, case, buffer)).await?)
            }
            Self::Mosquitto => {
                // Unacknowledged deliveries are the forwarder's pipeline to Kafka: 65,535 at most.
                let broker = Broker::start(kind, &program, "max_inflight_messages 0\n").await?;
                let forwarder = forwarder(&broker, kafka, topic, case).await?;
                Running::Forwarded(broker, forwarder)
            }
            Self::Rmqttd => {
                let files = [(PLUGIN, plugin(kafka, topic, case))];
                Running::Plugin(Broker::start_with_plugins(kind, &program, "", &files).await?)
            }
        })
    }
}

/// The bridge of the node.
fn bridge(kafka: &str, topic: &str, case: Case, buffer: &str) -> String {
    let compression = if case.lz4 { "lz4" } else { "no_compression" };
    let (name, value) = HEADER;
    let headers = if case.headers {
        format!(
            "kafka_ext_headers = [ {{ kafka_ext_header_key = {name}, kafka_ext_header_value = {value} }}, \
             {{ kafka_ext_header_key = client, kafka_ext_header_value = \"${{.clientid}}\" }} ]"
        )
    } else {
        String::new()
    };
    format!(
        "bridges.kafka.bench {{\n  bootstrap_hosts = \"{kafka}\"\n  local_topic = \"bench/#\"\n  kafka {{\n    \
         topic = {topic}\n    message {{ key = \"${{.clientid}}\", value = \"${{.payload}}\" }}\n    \
         compression = {compression}\n    buffer.mode = {buffer}\n    {headers}\n  }}\n}}\n"
    )
}

/// The configuration of RMQTT's plugin. It writes no keys, and 12 headers of its own into every record.
fn plugin(kafka: &str, topic: &str, case: Case) -> String {
    let compression = if case.lz4 { "lz4" } else { "none" };
    format!(
        "[[bridges]]\nenable = true\nname = \"bench\"\nservers = \"{kafka}\"\nclient_id_prefix = \"bench\"\n\
         concurrent_client_limit = 1\n[bridges.properties]\n\"acks\" = \"all\"\n\"enable.idempotence\" = \"true\"\n\
         \"compression.type\" = \"{compression}\"\n[[bridges.entries]]\nlocal.topic_filter = \"bench/#\"\n\
         remote.topic = \"{topic}\"\nremote.queue_timeout = \"30s\"\n"
    )
}

async fn forwarder(broker: &Broker, kafka: &str, topic: &str, case: Case) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let address = broker.address().to_string();
    command.args(["forward", "--broker", &address, "--kafka", kafka, "--topic", topic]);
    command.args(["--qos", &case.qos.to_string()]);
    command.args(case.headers.then_some("--headers")).args(case.lz4.then_some("--lz4"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let out = child.stdout.take().context("the forwarder has no output")?;
    match BufReader::new(out).lines().next_line().await? {
        Some(line) if line == "ready" => Ok(child),
        other => bail!("the forwarder says {other:?}"),
    }
}

impl Running {
    /// How the generator is called.
    pub(super) fn arguments(&self, kafka: &str, topic: &str, case: Case, seconds: f64) -> Vec<String> {
        let (broker, other) = match self {
            Self::Nothing => (None, None),
            Self::Node(broker) | Self::Plugin(broker) => (Some(broker), None),
            Self::Forwarded(broker, child) => (Some(broker), child.id()),
        };
        let rate = case.rate.map_or_else(String::new, |rate| format!("--rate {rate}"));
        let load = match broker {
            None => {
                let headers = if case.headers { "--headers" } else { "" };
                let lz4 = if case.lz4 { "--lz4" } else { "" };
                format!("produce --seconds {seconds} {headers} {lz4}")
            }
            Some(broker) => {
                let how_long = match (case.qos, case.rate) {
                    (0, _) => format!("--messages {}", case.unacknowledged()),
                    (_, Some(rate)) => format!("--messages {}", (f64::from(rate) * seconds) as u64),
                    (_, None) => format!("--messages 1000000000 --seconds {seconds}"),
                };
                let (qos, pid, address) = (case.qos, broker.pid(), broker.address());
                let other = other.map_or_else(String::new, |pid| format!("--server-pid {pid}"));
                format!(
                    "mqtt-to-kafka --clients 50 --window 100 --qos {qos} --count {how_long} --broker {address} \
                     --server-pid {pid} {other}"
                )
            }
        };
        let text = format!("{load} {rate} --json --kafka {kafka} --topic {topic} --payload {}", case.payload);
        text.split_ascii_whitespace().map(String::from).collect()
    }
}
