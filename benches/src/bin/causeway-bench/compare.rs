//! The same loads on several brokers, one after the other, in one run.
//!
//! Each measurement is a fresh broker process and a generator process of its own, so that none inherits
//! another's memory or sockets. With `--repeat` the brokers take turns, and the median counts.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use causeway_benches::brokers::{Broker, Kind};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::connect::RESIDENT;
use crate::report::Report;

#[derive(Args)]
pub(crate) struct Brokers {
    /// Directories with brokers, looked into before the one of this program and the PATH.
    #[arg(long = "brokers", value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Only these brokers; otherwise all that are found.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only these loads.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Each measurement so many times; the one with the median figure is shown.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Seconds of each saturated load.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
enum Load {
    /// 100 publishers, 1 subscriber, QoS 0, saturated.
    FanInQos0,
    /// The same with QoS 1.
    FanInQos1,
    /// 1 publisher, 100 subscribers, QoS 0, saturated.
    FanOut,
    /// 100 pairs of publisher and subscriber, 20,000 messages a second together, QoS 0.
    OneByOne,
    /// Memory of 10,000 idle connections.
    Idle,
    /// Connections that come and go.
    Connects,
}

impl Load {
    fn title(self) -> &'static str {
        match self {
            Self::FanInQos0 => "fan-in 100 to 1, QoS 0: CPU s per million delivered",
            Self::FanInQos1 => "fan-in 100 to 1, QoS 1: CPU s per million delivered",
            Self::FanOut => "fan-out 1 to 100, QoS 0: CPU s per million delivered",
            Self::OneByOne => "one by one, 20,000/s, QoS 0: CPU s per million delivered (p50 / p99 ms)",
            Self::Idle => "idle connection: KiB resident",
            Self::Connects => "connects per second (CPU s per million)",
        }
    }

    fn arguments(self, broker: &Broker, seconds: f64) -> Vec<String> {
        // 20,000 ahead fill every queue on the way, and fit into every broker's.
        let saturated = "--ahead 20000 --messages 1000000000 --warmup 20000";
        let text = match self {
            Self::FanInQos0 => {
                format!(
                    "mqtt-to-mqtt --clients 100 --qos 0 --subscription-qos 0 {saturated} --seconds {seconds}"
                )
            }
            Self::FanInQos1 => {
                format!(
                    "mqtt-to-mqtt --clients 100 --qos 1 --subscription-qos 1 {saturated} --seconds {seconds}"
                )
            }
            Self::FanOut => format!(
                "mqtt-to-mqtt --clients 1 --subscribers 100 --qos 0 --subscription-qos 0 --ahead 2000 \
                 --messages 1000000000 --warmup 2000 --seconds {seconds}"
            ),
            Self::OneByOne => format!(
                "mqtt-to-mqtt --clients 100 --subscribers 100 --filter bench/{{client}}/+ --qos 0 \
                 --subscription-qos 0 --stamp-at-write --rate 20000 --warmup 20000 --messages {}",
                (20_000.0 * seconds) as u64
            ),
            Self::Idle => "connect --clients 10000 --hold 3".into(),
            Self::Connects => format!("churn --seconds {seconds}"),
        };
        let address = broker.address().to_string();
        let own =
            ["--json", "--server-pid", &broker.pid().to_string(), "--broker", &address].map(String::from);
        text.split_ascii_whitespace().map(String::from).chain(own).collect()
    }

    /// The figure that repetitions are ordered by.
    fn figure(self, report: &Report) -> f64 {
        match self {
            Self::FanInQos0 | Self::FanInQos1 | Self::FanOut | Self::OneByOne => report
                .server
                .as_ref()
                .and_then(|server| server.cpu_seconds_per_million_delivered)
                .unwrap_or(f64::NAN),
            Self::Idle => {
                report.settings.get(RESIDENT).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN)
            }
            Self::Connects => report.per_second,
        }
    }

    fn cell(self, report: &Report) -> String {
        let figure = self.figure(report);
        let cell = match self {
            Self::FanInQos0 | Self::FanInQos1 | Self::FanOut => format!("{figure:.2}"),
            Self::OneByOne => {
                let latency = report.end_to_end.unwrap_or_default();
                format!("{figure:.1} ({:.2} / {:.2})", latency.p50_us / 1e3, latency.p99_us / 1e3)
            }
            Self::Idle => format!("{:.2}", figure / 1024.0),
            Self::Connects => {
                let cost = report.server.as_ref().map_or(f64::NAN, |server| server.cpu_seconds_per_million);
                format!("{figure:.0} ({cost:.1})")
            }
        };
        let lost = report.lost();
        if lost == 0 {
            return cell;
        }
        let sent = lost + report.delivered.unwrap_or_default();
        format!("{cell}, loses {:.2} %", lost as f64 * 100.0 / sent as f64)
    }
}

fn details(report: &Report) -> String {
    let resident = report.server.as_ref().map_or(0, |server| server.peak_resident_bytes);
    let rate = report.delivered_per_second.unwrap_or(report.per_second);
    let latency = report.end_to_end.or(report.acknowledged).unwrap_or_default();
    format!(
        "{rate:.0}/s, p50 {:.2} ms, p99 {:.2} ms, peak {:.1} MiB, generator {:.2} of {:.2} s",
        latency.p50_us / 1e3,
        latency.p99_us / 1e3,
        resident as f64 / f64::from(1 << 20),
        report.generator_cpu_seconds,
        report.seconds,
    )
}

#[derive(Serialize)]
struct Measured {
    broker: &'static str,
    load: Load,
    figure: f64,
    report: Report,
}

pub(crate) async fn compare(scenario: &Brokers, json: bool) -> Result<()> {
    let wanted = if scenario.only.is_empty() { Kind::ALL.to_vec() } else { scenario.only.clone() };
    let mut programs = Vec::new();
    for kind in wanted {
        match kind.find(&scenario.directories) {
            Some(program) => programs.push((kind, program)),
            None if scenario.only.is_empty() => eprintln!("{}: not found, left out", kind.name()),
            None => bail!("{}: not found; name its directory with --brokers", kind.name()),
        }
    }
    let loads = if scenario.loads.is_empty() { Load::value_variants() } else { &scenario.loads };
    let mut measured: Vec<Measured> = Vec::new();
    for &load in loads {
        for _ in 0..scenario.repeat.max(1) {
            for (kind, program) in &programs {
                let broker = Broker::start(*kind, program, "").await?;
                let report = run(load, &broker, scenario.seconds)
                    .await
                    .with_context(|| format!("{} under {load:?}", kind.name()))?;
                let figure = load.figure(&report);
                eprintln!("{load:?} {}: {}; {}", kind.name(), load.cell(&report), details(&report));
                measured.push(Measured { broker: kind.name(), load, figure, report });
            }
        }
    }
    if json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let names: Vec<_> = programs.iter().map(|(kind, _)| kind.name()).collect();
    println!("| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for &load in loads {
        let cells = names.iter().map(|name| {
            median(measured.iter().filter(|one| one.load == load && one.broker == *name))
                .map_or_else(String::new, |one| load.cell(&one.report))
        });
        println!("| {} | {} |", load.title(), cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

fn median<'a>(of: impl Iterator<Item = &'a Measured>) -> Option<&'a Measured> {
    let mut all: Vec<_> = of.collect();
    all.sort_by(|one, other| one.figure.total_cmp(&other.figure));
    let middle = all.len() / 2;
    all.into_iter().nth(middle)
}

async fn run(load: Load, broker: &Broker, seconds: f64) -> Result<Report> {
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(load.arguments(broker, seconds))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await?;
    // A loss ends it with a failure, after it was reported.
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the generator failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
