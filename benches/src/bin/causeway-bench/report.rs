//! What a scenario did and measured, for people or as JSON.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use causeway_benches::judge::Verdict;
use causeway_benches::load::Latency;
use causeway_benches::procfs::{self, Usage};
use serde::{Deserialize, Serialize};

/// What a scenario did and measured.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    pub(crate) settings: BTreeMap<String, serde_json::Value>,
    /// Messages (or connections) measured.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// To the PUBACK, PUBREC or CONNACK.
    pub(crate) acknowledged: Option<Latency>,
    /// From the moment it was due to the arrival at a subscriber.
    pub(crate) end_to_end: Option<Latency>,
    /// Messages delivered to subscribers, all together.
    pub(crate) delivered: Option<u64>,
    /// Messages delivered to subscribers per second.
    pub(crate) delivered_per_second: Option<f64>,
    pub(crate) server: Option<ServerCost>,
    pub(crate) generator_cpu_seconds: f64,
    /// One, or one a subscriber.
    pub(crate) verdicts: Vec<Verdict>,
    /// QoS 0 somewhere on the way: what is lost is shown, and is no failure.
    pub(crate) may_lose: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ServerCost {
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_seconds_per_million: f64,
    /// Per million deliveries, where there were any.
    pub(crate) cpu_seconds_per_million_delivered: Option<f64>,
    pub(crate) resident_bytes: u64,
    pub(crate) peak_resident_bytes: u64,
    /// Growth of the resident memory during the scenario.
    pub(crate) resident_growth_bytes: i64,
}

pub(crate) struct Watch {
    pids: Vec<u32>,
    server: Option<Usage>,
    own: Usage,
    pub(crate) start: Instant,
}

impl Watch {
    /// Begins to measure these processes, together, and this one.
    pub(crate) fn start(pids: &[u32]) -> Result<Self> {
        let server = procfs::usage_of_all(pids)?;
        let own = procfs::usage(std::process::id())?;
        Ok(Self { pids: pids.to_vec(), server, own, start: Instant::now() })
    }

    /// Measures a process from its own start on.
    pub(crate) fn whole(pid: u32) -> Result<Self> {
        let nothing = Usage { cpu_seconds: 0.0, resident: 0, peak_resident: 0 };
        Ok(Self { server: Some(nothing), ..Self::start(&[pid])? })
    }

    pub(crate) fn report(&self, scenario: &str, count: u64, seconds: f64) -> Result<Report> {
        let own = procfs::usage(std::process::id())?;
        let now = procfs::usage_of_all(&self.pids).context("the server has ended")?;
        let server = match (now, self.server) {
            (Some(now), Some(before)) => {
                let cpu_seconds = now.cpu_seconds - before.cpu_seconds;
                Some(ServerCost {
                    cpu_seconds,
                    cpu_seconds_per_million: cpu_seconds * 1e6 / count.max(1) as f64,
                    cpu_seconds_per_million_delivered: None,
                    resident_bytes: now.resident,
                    peak_resident_bytes: now.peak_resident,
                    resident_growth_bytes: now.resident.cast_signed() - before.resident.cast_signed(),
                })
            }
            _ => None,
        };
        Ok(Report {
            scenario: scenario.to_owned(),
            settings: BTreeMap::new(),
            count,
            seconds,
            per_second: count as f64 / seconds,
            acknowledged: None,
            end_to_end: None,
            delivered: None,
            delivered_per_second: None,
            server,
            generator_cpu_seconds: own.cpu_seconds - self.own.cpu_seconds,
            verdicts: Vec::new(),
            may_lose: false,
        })
    }
}

impl Report {
    /// `count` messages reached subscribers within `seconds`.
    pub(crate) fn delivered(&mut self, count: u64, seconds: f64) {
        self.delivered = Some(count);
        self.delivered_per_second = Some(count as f64 / seconds);
        if let Some(server) = &mut self.server {
            server.cpu_seconds_per_million_delivered = Some(server.cpu_seconds * 1e6 / count.max(1) as f64);
        }
    }

    /// Messages that were acknowledged (QoS 0: sent) and did not arrive.
    pub(crate) fn lost(&self) -> u64 {
        self.verdicts.iter().map(|verdict| verdict.lost).sum()
    }

    /// Every message came once, whole and in order; QoS 0 may be lost.
    pub(crate) fn is_good(&self) -> bool {
        self.verdicts.iter().all(|verdict| {
            let excused = if self.may_lose { verdict.lost } else { 0 };
            Verdict { lost: verdict.lost - excused, ..verdict.clone() }.is_perfect()
        })
    }
}

pub(crate) fn print(report: &Report) {
    println!(
        "{}: {} in {:.2} s: {:.0} a second",
        report.scenario, report.count, report.seconds, report.per_second
    );
    for (name, value) in &report.settings {
        println!("  {name} {value}");
    }
    if let Some(latency) = &report.acknowledged {
        println!("acknowledged: {latency}");
    }
    if let Some(latency) = &report.end_to_end {
        println!("end to end:   {latency}");
    }
    if let Some(rate) = report.delivered_per_second {
        println!("delivered:    {rate:.0} a second");
    }
    if let Some(server) = &report.server {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!(
            "server:       {:.2} CPU s, {:.2} CPU s per million, {:.1} MiB resident ({:+.1}), peak {:.1}",
            server.cpu_seconds,
            server.cpu_seconds_per_million,
            mib(server.resident_bytes as f64),
            mib(server.resident_growth_bytes as f64),
            mib(server.peak_resident_bytes as f64)
        );
    }
    if let Some(cost) = report.server.as_ref().and_then(|server| server.cpu_seconds_per_million_delivered) {
        println!("              {cost:.3} CPU s per million delivered");
    }
    println!("generator:    {:.2} CPU s", report.generator_cpu_seconds);
    // The perfect ones of many subscribers are all alike.
    let alike = report.verdicts.iter().filter(|verdict| verdict.is_perfect()).skip(3).count();
    if alike > 0 {
        println!("check:        {alike} more subscribers like these: everything once, whole and in order");
    }
    let mut perfect = 0;
    for verdict in &report.verdicts {
        perfect += usize::from(verdict.is_perfect());
        if !verdict.is_perfect() || perfect <= 3 {
            println!("check:        {verdict}");
        }
    }
}
