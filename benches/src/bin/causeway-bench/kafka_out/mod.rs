//! The way out to Kafka, beside other ways there: the same messages, the same topics, one Apache Kafka, in
//! one run.
//!
//! | system | what it is |
//! |---|---|
//! | `causeway` | the node, with a producer bridge |
//! | `causeway-disk` | the same with `buffer.mode = disk` |
//! | `causeway-hybrid` | the same with `buffer.mode = hybrid` |
//! | `mosquitto` | mosquitto and [`forward`]: one subscriber that hands to librdkafka and acknowledges after the delivery report |
//! | `rmqttd` | RMQTT with its plugin `rmqtt-bridge-egress-kafka` |
//! | `librdkafka` | [`produce`]: librdkafka's producer alone, without MQTT: the reference |
//!
//! Each cell is fresh processes and a fresh topic. What counts is what is in Kafka at the end.

#[cfg(feature = "rdkafka")]
pub(crate) mod forward;
#[cfg(feature = "rdkafka")]
pub(crate) mod produce;
pub(crate) mod systems;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_benches::topic::{self, Topic};
use clap::{Args, ValueEnum};

use crate::compare::{details, median, run};
use crate::report::Report;
use systems::System;

/// How long Kafka may take to answer about a topic.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct KafkaOut {
    /// Kafka, HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:9092")]
    kafka: String,
    /// Directories with brokers, looked into before the one of this program and the PATH.
    #[arg(long = "brokers", value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Only these systems; otherwise all that are found.
    #[arg(long, value_delimiter = ',')]
    only: Vec<System>,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Each cell so many times; the one with the median throughput (of the paced row: latency) is shown.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// 100 bytes, QoS 1, 1 partition.
    SmallOnePartition,
    /// 100 bytes, QoS 1, 12 partitions.
    Small,
    /// 100 bytes, QoS 0, 1 partition.
    SmallQos0OnePartition,
    /// 100 bytes, QoS 0, 12 partitions.
    SmallQos0,
    /// 1 KiB, QoS 1, 1 partition.
    LargeOnePartition,
    /// 1 KiB, QoS 1, 12 partitions.
    Large,
    /// 1 KiB, QoS 0, 1 partition.
    LargeQos0OnePartition,
    /// 1 KiB, QoS 0, 12 partitions.
    LargeQos0,
    /// 100 bytes, QoS 1, 12 partitions, two headers.
    Headers,
    /// 100 bytes, QoS 1, 12 partitions, lz4.
    Lz4,
    /// 100 bytes, QoS 1, 12 partitions, 20,000 messages a second.
    Paced,
}

/// What is the same for every system in a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    title: &'static str,
    payload: usize,
    qos: u8,
    partitions: i32,
    headers: bool,
    lz4: bool,
    rate: Option<u32>,
}

impl Row {
    fn case(self) -> Case {
        let case =
            Case { title: "", payload: 100, qos: 1, partitions: 12, headers: false, lz4: false, rate: None };
        match self {
            Self::SmallOnePartition => Case { title: "100 B, QoS 1, 1 partition", partitions: 1, ..case },
            Self::Small => Case { title: "100 B, QoS 1, 12 partitions", ..case },
            Self::SmallQos0OnePartition => {
                Case { title: "100 B, QoS 0, 1 partition", qos: 0, partitions: 1, ..case }
            }
            Self::SmallQos0 => Case { title: "100 B, QoS 0, 12 partitions", qos: 0, ..case },
            Self::LargeOnePartition => {
                Case { title: "1 KiB, QoS 1, 1 partition", payload: 1024, partitions: 1, ..case }
            }
            Self::Large => Case { title: "1 KiB, QoS 1, 12 partitions", payload: 1024, ..case },
            Self::LargeQos0OnePartition => {
                Case { title: "1 KiB, QoS 0, 1 partition", payload: 1024, qos: 0, partitions: 1, ..case }
            }
            Self::LargeQos0 => Case { title: "1 KiB, QoS 0, 12 partitions", payload: 1024, qos: 0, ..case },
            Self::Headers => Case { title: "100 B, QoS 1, 12 partitions, 2 headers", headers: true, ..case },
            Self::Lz4 => Case { title: "100 B, QoS 1, 12 partitions, lz4", lz4: true, ..case },
            Self::Paced => {
                Case { title: "100 B, QoS 1, 12 partitions, 20,000/s", rate: Some(20_000), ..case }
            }
        }
    }
}

impl Case {
    /// Messages offered where nobody acknowledges, and so nobody says stop.
    fn unacknowledged(self) -> u64 {
        if self.payload > 500 { 300_000 } else { 1_000_000 }
    }

    fn figure(self, report: &Report) -> f64 {
        match self.rate {
            Some(_) => report.acknowledged.unwrap_or_default().p99_us,
            None => report.delivered_per_second.unwrap_or_default(),
        }
    }

    fn cell(self, report: &Report) -> String {
        let cost = report.server.as_ref().and_then(|server| server.cpu_seconds_per_million_delivered);
        let resident = report.server.as_ref().map_or(0, |server| server.peak_resident_bytes);
        let rate = report.delivered_per_second.unwrap_or_default();
        let latency = report.acknowledged.unwrap_or_default();
        let times = match self.rate {
            Some(_) => format!(", p50 {:.2} p99 {:.2} ms", latency.p50_us / 1e3, latency.p99_us / 1e3),
            None => String::new(),
        };
        let cell = format!(
            "{rate:.0}/s, {:.2} CPU s, {:.0} MiB{times}",
            cost.unwrap_or(f64::NAN),
            resident as f64 / f64::from(1 << 20)
        );
        match report.lost() {
            0 => cell,
            lost => format!("{cell}, loses {lost} of {}", lost + report.delivered.unwrap_or_default()),
        }
    }
}

pub(crate) async fn kafka_out(scenario: &KafkaOut) -> Result<()> {
    let wanted =
        if scenario.only.is_empty() { System::value_variants().to_vec() } else { scenario.only.clone() };
    let mut systems = Vec::new();
    for system in wanted {
        match system.missing(&scenario.directories) {
            None => systems.push(system),
            Some(why) if scenario.only.is_empty() => eprintln!("{}: {why}, left out", system.name()),
            Some(why) => bail!("{}: {why}", system.name()),
        }
    }
    let rows = if scenario.rows.is_empty() { Row::value_variants().to_vec() } else { scenario.rows.clone() };
    let client = topic::client(&scenario.kafka, PATIENCE).await?;
    let controller = client.controller_client()?;
    let mut lines = Vec::new();
    let mut count = 0;
    for row in rows {
        let case = row.case();
        let mut measured: Vec<Vec<(f64, Report)>> = systems.iter().map(|_| Vec::new()).collect();
        for _ in 0..scenario.repeat.max(1) {
            for (system, measured) in systems.iter().zip(&mut measured) {
                count += 1;
                let name = format!("bench-{}-{count}", std::process::id());
                controller.create_topic(&name, case.partitions, 1, 10_000).await?;
                wait_for_topic(&scenario.kafka, &name).await?;
                let running = system
                    .start(&scenario.directories, &scenario.kafka, &name, case)
                    .await
                    .with_context(|| format!("{} for {row:?}", system.name()))?;
                let arguments = running.arguments(&scenario.kafka, &name, case, scenario.seconds);
                let report =
                    run(arguments).await.with_context(|| format!("{} under {row:?}", system.name()))?;
                drop(running);
                controller.delete_topic(&name, 10_000).await?;
                eprintln!("{row:?} {}: {}; {}", system.name(), case.cell(&report), details(&report));
                measured.push((case.figure(&report), report));
            }
        }
        let cells = measured.into_iter().map(|all| {
            median(all, |(figure, _)| *figure).map_or_else(String::new, |(_, report)| case.cell(&report))
        });
        lines.push(format!("| {} | {} |", case.title, cells.collect::<Vec<_>>().join(" | ")));
    }
    let names: Vec<_> = systems.iter().map(|system| system.name()).collect();
    println!("| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    println!("{}", lines.join("\n"));
    Ok(())
}

/// A topic is created before every part of Kafka knows it.
async fn wait_for_topic(kafka: &str, name: &str) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = Topic::open(kafka, name).await {
        if start.elapsed() > PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
