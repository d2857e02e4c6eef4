//! The same loads on several brokers, one after the other, in one run.
//!
//! Each measurement is a fresh broker process and a generator process of its own, so that none inherits
//! another's memory or sockets. With `--repeat` the brokers take turns, and the median counts.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use causeway_benches::brokers::{Broker, Kind};
use causeway_benches::setup::Materials;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::loads::{Load, Table};
use crate::report::Report;

#[derive(Args)]
pub(crate) struct Brokers {
    /// Directories with brokers, looked into before the one of this program and the PATH.
    #[arg(long = "brokers", value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Only these brokers; otherwise all that are found.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Which loads.
    #[arg(long, value_delimiter = ',', default_value = "plain")]
    tables: Vec<Table>,
    /// Only these loads, of whichever table.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Each measurement so many times; the one with the median figure is shown.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Seconds of each saturated load.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// What is not in a cell, for those who watch.
pub(crate) fn details(report: &Report) -> String {
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
    let of_tables =
        Load::value_variants().iter().copied().filter(|load| scenario.tables.contains(&load.table()));
    let loads = if scenario.loads.is_empty() { of_tables.collect() } else { scenario.loads.clone() };
    let causeway =
        Kind::Causeway.find(&scenario.directories).context("no causeway beside this program; build it")?;
    let materials = Materials::new(&causeway)?;
    let mut measured: Vec<Measured> = Vec::new();
    for &load in &loads {
        for _ in 0..scenario.repeat.max(1) {
            for (kind, program) in &programs {
                let Some(extra) = materials.configuration(*kind, load.setup()) else { continue };
                let broker = Broker::start(*kind, program, &extra).await?;
                let report = run(load.arguments(&broker, &materials, scenario.seconds)?)
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
    for &load in &loads {
        let cells = names.iter().map(|name| {
            let all = measured.iter().filter(|one| one.load == load && one.broker == *name);
            median(all.collect(), |one| one.figure).map_or_else(String::new, |one| load.cell(&one.report))
        });
        println!("| {} | {} |", load.title(), cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// The one with the median figure.
pub(crate) fn median<T>(mut all: Vec<T>, figure: impl Fn(&T) -> f64) -> Option<T> {
    all.sort_by(|one, other| figure(one).total_cmp(&figure(other)));
    let middle = all.len() / 2;
    all.into_iter().nth(middle)
}

/// Runs the generator in a process of its own.
pub(crate) async fn run(arguments: Vec<String>) -> Result<Report> {
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await?;
    // A loss ends it with a failure, after it was reported.
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the generator failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
