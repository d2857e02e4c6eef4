//! Receivers that judge what they get.
//!
//! Each subscriber has its own [`Judge`]: every message must come to every subscriber, in the order of
//! its publisher. QoS 2 is taken exactly once: a PUBLISH whose packet identifier is not yet released is
//! the same message again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use mqttbytes::QoS;
use mqttbytes::v4::{self, Packet};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Meter;
use super::endpoint::Endpoint;
use super::link::Link;
use crate::judge::Judge;
use crate::stamp::{self, Stamp};

/// How often a subscriber looks whether it is to stop, when nothing comes.
const LOOK: Duration = Duration::from_millis(100);

/// What to subscribe to.
#[derive(Debug, Clone)]
pub struct Subscribing {
    /// The server.
    pub broker: Endpoint,
    /// Number of subscribers.
    pub clients: u32,
    /// Client ids are this and a number.
    pub prefix: String,
    /// Topic filter of each; `{client}` becomes the subscriber's number.
    pub filter: String,
    /// QoS asked for.
    pub qos: QoS,
    /// Whether their sessions end with their connections. A lasting session that the server has already is
    /// resumed as it is, without another SUBSCRIBE.
    pub clean: bool,
    /// How long connecting may take.
    pub patience: Duration,
}

/// Subscribers at work.
pub struct Subscribers {
    tasks: JoinSet<Result<(u32, Judge)>>,
    stop: watch::Sender<bool>,
    /// Latency from the stamp to the arrival, and how many arrived.
    pub meter: Arc<Meter>,
}

impl Subscribers {
    /// Connects and subscribes all of them.
    pub async fn start(settings: &Subscribing) -> Result<Self> {
        let (stop, _) = watch::channel(false);
        let meter = Arc::new(Meter::default());
        let mut tasks = JoinSet::new();
        for number in 0..settings.clients {
            let id = format!("{}{number}", settings.prefix);
            let mut link = Link::connect(&settings.broker, &id, settings.clean, settings.patience).await?;
            if !link.session_present {
                let filter = settings.filter.replace("{client}", &number.to_string());
                link.subscribe(&filter, settings.qos).await?;
            }
            let receiving = receive(link, stop.subscribe(), Arc::clone(&meter));
            tasks.spawn(async move { anyhow::Ok((number, receiving.await?)) });
        }
        Ok(Self { tasks, stop, meter })
    }

    /// Waits until `count` messages have arrived (all subscribers together), or until nothing new has
    /// arrived for `idle`; says how many did.
    pub async fn wait_for(&self, count: u64, idle: Duration) -> u64 {
        let mut seen = self.meter.count();
        let mut since = Instant::now();
        while seen < count && since.elapsed() < idle {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = self.meter.count();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        seen
    }

    /// Disconnects all and returns their judges, each with its subscriber's number.
    pub async fn stop(mut self) -> Result<Vec<(u32, Judge)>> {
        self.stop.send_replace(true);
        let mut judges = Vec::new();
        while let Some(judge) = self.tasks.join_next().await {
            judges.push(judge.map_err(|error| anyhow!("a subscriber failed: {error}"))??);
        }
        Ok(judges)
    }
}

async fn receive(mut link: Link, stop: watch::Receiver<bool>, meter: Arc<Meter>) -> Result<Judge> {
    let mut judge = Judge::new();
    let mut latencies = Vec::new();
    let mut unreleased = HashSet::new();
    while !*stop.borrow() {
        link.turn(Some(Instant::now() + LOOK)).await?;
        let now = stamp::now();
        while let Some(packet) = link.take()? {
            match packet {
                Packet::Publish(publish) => {
                    let new = publish.qos != QoS::ExactlyOnce || unreleased.insert(publish.pkid);
                    if new {
                        // What carries no stamp of ours is counted as damaged by the judge.
                        let sent = Stamp::read(&publish.payload).map_or(now, |stamp| stamp.sent);
                        latencies.push(now.saturating_sub(sent));
                        judge.take(0, None, &publish.payload);
                    }
                    let written = match publish.qos {
                        QoS::AtMostOnce => Ok(0),
                        QoS::AtLeastOnce => v4::PubAck::new(publish.pkid).write(&mut link.out),
                        QoS::ExactlyOnce => v4::PubRec::new(publish.pkid).write(&mut link.out),
                    };
                    written.map_err(|error| anyhow!("mqttbytes: {error:?}"))?;
                }
                Packet::PubRel(release) => {
                    unreleased.remove(&release.pkid);
                    let written = v4::PubComp::new(release.pkid).write(&mut link.out);
                    written.map_err(|error| anyhow!("mqttbytes: {error:?}"))?;
                }
                other => return Err(anyhow!("a subscriber got {other:?}")),
            }
        }
        meter.record(latencies.drain(..));
    }
    link.close().await?;
    Ok(judge)
}
