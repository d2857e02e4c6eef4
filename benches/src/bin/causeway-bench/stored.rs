//! How long a node with many stored sessions takes to start, and what it needs then.
//!
//! Sessions are made over MQTT, each with its own messages in its queue. Then the node is stopped and
//! started, and killed and started: what counts is the time from the start of the process to the first
//! CONNACK, which is the time that a fleet waits.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_benches::brokers::Kind;
use causeway_benches::load::endpoint::Endpoint;
use causeway_benches::load::link::Link;
use causeway_benches::procfs;
use clap::Args;
use mqttbytes::QoS;
use mqttbytes::v4::{Packet, Publish};
use tokio::task::JoinSet;

use crate::report::{Report, Watch};

/// How long the node may take for anything.
const PATIENCE: Duration = Duration::from_mins(5);

/// Publications on their way at one time.
const AHEAD: u64 = 500;

/// Sessions whose queue is looked at after a start.
const LOOKED_AT: u32 = 10;

#[derive(Args)]
pub(crate) struct StoredSessions {
    /// Sessions.
    #[arg(long, default_value_t = 100_000)]
    sessions: u32,
    /// Messages in the queue of each.
    #[arg(long, default_value_t = 10)]
    messages: u32,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// The node's program; not given: the one beside this one, or on the PATH.
    #[arg(long)]
    program: Option<PathBuf>,
}

struct Node {
    child: Child,
    /// From its start to the first CONNACK.
    seconds: f64,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Node {
    async fn start(program: &Path, configuration: &Path, endpoint: &Endpoint) -> Result<Self> {
        let start = Instant::now();
        let child = Command::new(program)
            .args([Path::new("start"), Path::new("--config"), configuration])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut node = Self { child, seconds: 0.0 };
        loop {
            if let Ok(link) = Link::connect(endpoint, "bench-first", true, Duration::from_secs(2)).await {
                node.seconds = start.elapsed().as_secs_f64();
                link.close().await?;
                return Ok(node);
            }
            ensure!(start.elapsed() < PATIENCE, "the node does not answer");
            if let Some(status) = node.child.try_wait()? {
                bail!("the node ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it as an operator would, which waits for the disk.
    async fn stop(mut self) -> Result<()> {
        let told = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(told.success(), "kill: {told}");
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "the node does not stop");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

pub(crate) async fn stored_sessions(scenario: &StoredSessions) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let found = scenario.program.clone().or_else(|| Kind::Causeway.find(&[]));
    let program = found.context("no causeway beside this program; cargo build --profile dist -p causeway -p causeway-benches makes both")?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let configuration = folder.path().join("causeway.conf");
    let text = format!(
        "node.data_dir = {:?}\nlisteners.tcp.default.bind = \"{address}\"\nadmin.enable = false\n",
        folder.path().join("data").display().to_string()
    );
    std::fs::write(&configuration, text)?;
    let endpoint = Arc::new(Endpoint::from(&*address.to_string()));

    let node = Node::start(&program, &configuration, &endpoint).await?;
    let empty = node.seconds;
    let start = Instant::now();
    fill(scenario, &endpoint).await?;
    let filled = start.elapsed().as_secs_f64();
    let full = procfs::usage(node.child.id())?;
    node.stop().await?;
    let file = std::fs::metadata(folder.path().join("data/sessions.redb"))?.len();

    let node = Node::start(&program, &configuration, &endpoint).await?;
    let count = u64::from(scenario.sessions) * u64::from(scenario.messages);
    let mut report = Watch::whole(node.child.id())?.report("stored-sessions", count, node.seconds)?;
    look_at_some(scenario, &endpoint).await?;
    // Killed while nothing is under way.
    drop(node);
    let killed = Node::start(&program, &configuration, &endpoint).await?;
    look_at_some(scenario, &endpoint).await?;
    for (name, value) in [
        ("sessions", f64::from(scenario.sessions)),
        ("messages_each", f64::from(scenario.messages)),
        ("payload_bytes", scenario.size as f64),
        ("file_mib", file as f64 / f64::from(1 << 20)),
        ("seconds_to_fill", filled),
        ("resident_mib_when_filled", full.resident as f64 / f64::from(1 << 20)),
        ("seconds_to_start_empty", empty),
        ("seconds_to_start", report.seconds),
        ("seconds_to_start_after_kill", killed.seconds),
    ] {
        report.settings.insert(name.into(), ((value * 100.0).round() / 100.0).into());
    }
    Ok(report)
}

fn name(number: u32) -> String {
    format!("s-{number}")
}

async fn fill(scenario: &StoredSessions, endpoint: &Arc<Endpoint>) -> Result<()> {
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for number in 0..scenario.sessions {
        if tasks.len() == 200
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let endpoint = Arc::clone(endpoint);
        tasks.spawn(async move {
            let mut link = Link::connect(&endpoint, &name(number), false, PATIENCE).await?;
            link.subscribe(&name(number), QoS::AtLeastOnce).await?;
            link.close().await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let mut link = Link::connect(endpoint, "bench-publisher", true, PATIENCE).await?;
    let payload = vec![b'x'; scenario.size];
    let all = u64::from(scenario.sessions) * u64::from(scenario.messages);
    let (mut sent, mut acknowledged) = (0u64, 0u64);
    while acknowledged < all {
        while sent < all && sent < acknowledged + AHEAD {
            let number = (sent % u64::from(scenario.sessions)) as u32;
            let mut publish = Publish::new(name(number), QoS::AtLeastOnce, payload.clone());
            publish.pkid = (sent % 60_000) as u16 + 1;
            publish.write(&mut link.out).map_err(|error| anyhow::anyhow!("{error:?}"))?;
            sent += 1;
        }
        link.turn(None).await?;
        while let Some(packet) = link.take()? {
            ensure!(matches!(packet, Packet::PubAck(_)), "{packet:?}");
            acknowledged += 1;
        }
    }
    link.close().await
}

/// Some sessions are whole: they are there, and their messages come in order.
async fn look_at_some(scenario: &StoredSessions, endpoint: &Endpoint) -> Result<()> {
    for place in 0..LOOKED_AT.min(scenario.sessions) {
        let number = place * (scenario.sessions / LOOKED_AT.min(scenario.sessions));
        let mut link = Link::connect(endpoint, &name(number), false, PATIENCE).await?;
        ensure!(link.session_present, "{} is gone", name(number));
        let mut messages = 0;
        loop {
            while let Some(packet) = link.take()? {
                ensure!(
                    matches!(&packet, Packet::Publish(publish) if publish.topic == name(number)),
                    "{packet:?}"
                );
                messages += 1;
            }
            if messages == scenario.messages {
                break;
            }
            link.turn(None).await?;
        }
        link.close().await?;
    }
    Ok(())
}
