//! Connections: many that stay, and many that come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use causeway_benches::load::Meter;
use causeway_benches::load::churn::{Churning, churn};
use causeway_benches::load::link::Link;
use clap::Args;
use tokio::task::JoinSet;

use crate::report::{Report, Watch};
use crate::server::Server;

/// Setting of a report: growth of the server's resident memory per connection, in bytes.
pub(crate) const RESIDENT: &str = "resident_bytes_per_connection";

/// Setting of a report: connections that resumed a TLS session.
pub(crate) const RESUMED: &str = "resumed";

/// Number of the first measured connection that comes and goes: those before it were the warm-up's.
const MEASURED_FROM: u64 = 1_000;

#[derive(Args)]
pub(crate) struct Connect {
    #[command(flatten)]
    server: Server,
    /// Connections.
    #[arg(long, default_value_t = 5_000)]
    clients: u32,
    /// Connections opened at the same time.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// Seconds to hold them idle before memory is read.
    #[arg(long, default_value_t = 3)]
    hold: u64,
    /// Keep-alive in seconds; 0 is none. Nobody sends a ping, so it must outlast --hold.
    #[arg(long, default_value_t = 600)]
    keep_alive: u16,
    /// Client ids are this and a number.
    #[arg(long, default_value = "bench-")]
    prefix: String,
}

pub(crate) async fn connect(scenario: &Connect, server_pid: &[u32]) -> Result<Report> {
    let endpoint = Arc::new(scenario.server.endpoint()?);
    let watch = Watch::start(server_pid)?;
    let meter = Arc::new(Meter::default());
    let mut links = Vec::new();
    let mut tasks: JoinSet<Result<Link>> = JoinSet::new();
    for number in 0..scenario.clients {
        if tasks.len() == scenario.concurrency.max(1)
            && let Some(link) = tasks.join_next().await
        {
            links.push(link??);
        }
        let keep_alive = scenario.keep_alive;
        let (endpoint, id, meter) =
            (Arc::clone(&endpoint), format!("{}{number}", scenario.prefix), Arc::clone(&meter));
        tasks.spawn(async move {
            let start = Instant::now();
            let link = Link::connect_with(&endpoint, &id, true, keep_alive, Duration::from_secs(30)).await?;
            meter.record([start.elapsed().as_nanos() as u64]);
            Ok(link)
        });
    }
    while let Some(link) = tasks.join_next().await {
        links.push(link??);
    }
    let seconds = watch.start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(scenario.hold)).await;
    let mut report = watch.report("connect", u64::from(scenario.clients), seconds)?;
    if let Some(server) = &report.server {
        let each = server.resident_growth_bytes / i64::from(scenario.clients.max(1));
        report.settings.insert(RESIDENT.into(), each.into());
    }
    report.acknowledged = Some(meter.latency());
    for link in links {
        link.close().await?;
    }
    Ok(report)
}

#[derive(Args)]
pub(crate) struct Churn {
    /// Its address must be a number; 127.0.0.1 stands for several addresses of the loopback network.
    #[command(flatten)]
    server: Server,
    /// Resume TLS sessions instead of shaking hands in full.
    #[arg(long)]
    resume: bool,
    /// Connections open at the same time.
    #[arg(long, default_value_t = 64)]
    concurrency: u32,
    /// For how many seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Client ids are this and a number.
    #[arg(long, default_value = "bench-")]
    prefix: String,
}

pub(crate) fn churn_connections(scenario: &Churn, server_pid: &[u32]) -> Result<Report> {
    let endpoint = scenario.server.endpoint()?;
    let settings = |seconds| Churning {
        server: endpoint.clone(),
        concurrency: scenario.concurrency,
        duration: Duration::from_secs_f64(seconds),
        prefix: scenario.prefix.clone(),
        resume: scenario.resume,
    };
    churn(&settings(0.3), 0, &Meter::default()).context("warm-up")?;
    let meter = Meter::default();
    let watch = Watch::start(server_pid)?;
    let resumed = churn(&settings(scenario.seconds), MEASURED_FROM, &meter)?;
    let seconds = watch.start.elapsed().as_secs_f64();
    let mut report = watch.report("churn", meter.count(), seconds)?;
    report.settings.insert("concurrency".into(), scenario.concurrency.into());
    report.settings.insert(RESUMED.into(), resumed.into());
    report.acknowledged = Some(meter.latency());
    Ok(report)
}
