//! Messages: into Kafka, and to subscribers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_benches::judge::{Judge, Published, Verdict};
use causeway_benches::load::ahead::Ahead;
use causeway_benches::load::publisher::{Publishing, publish};
use causeway_benches::load::subscriber::{Subscribers, Subscribing};
use causeway_benches::load::{Latency, Meter};
use causeway_benches::topic::Topic;
use clap::Args;
use mqttbytes::QoS;

use crate::report::{Report, Watch};
use crate::server::Server;

/// Setting of a report: messages a second that were queued for absent subscribers.
pub(crate) const QUEUED_PER_SECOND: &str = "queued_per_second";

/// Setting of a report: CPU seconds of the server per million of them.
pub(crate) const QUEUED_COST: &str = "queued_cpu_seconds_per_million";

#[derive(Args, Clone)]
pub(crate) struct Load {
    #[command(flatten)]
    server: Server,
    /// Publishers.
    #[arg(long, default_value_t = 50)]
    clients: u32,
    /// Messages measured, all publishers together.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Messages before them that are checked but not measured.
    #[arg(long, default_value_t = 50_000)]
    warmup: u64,
    /// Payload size in bytes.
    #[arg(long, default_value_t = 100)]
    payload: usize,
    /// QoS of publications.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Unacknowledged messages per publisher.
    #[arg(long, default_value_t = 100)]
    window: u16,
    /// Messages per second of all publishers together (open loop); without it as fast as acknowledged.
    #[arg(long)]
    rate: Option<f64>,
    /// Topic: {client} is the publisher's number, {n} counts through --topics-per-client.
    #[arg(long, default_value = "bench/{client}/{n}")]
    mqtt_topic: String,
    /// Topics each publisher goes round.
    #[arg(long, default_value_t = 1)]
    topics_per_client: u32,
    /// Client ids are this and a number.
    #[arg(long, default_value = "bench-")]
    prefix: String,
    /// Stop publishing after this many seconds, whatever --messages says.
    #[arg(long)]
    seconds: Option<f64>,
    /// Latency counts from the write, not from the moment a message was due: what a broker adds, without
    /// what the generator's own timer (1 ms) was late.
    #[arg(long)]
    stamp_at_write: bool,
    /// Seconds after which unacknowledged messages are given up.
    #[arg(long, default_value_t = 300)]
    patience: u64,
}

#[derive(Args)]
pub(crate) struct MqttToKafka {
    #[command(flatten)]
    load: Load,
    /// Kafka, HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:9092")]
    kafka: String,
    /// Kafka topic that the bridge writes to; its value template is "${.payload}".
    #[arg(long)]
    topic: String,
    /// The bridge's key is not "${.clientid}": look neither at keys nor at order.
    #[arg(long)]
    unkeyed: bool,
    /// Only count what is in the topic at the end, instead of reading and checking every record.
    #[arg(long)]
    count: bool,
}

#[derive(Args)]
pub(crate) struct MqttToMqtt {
    #[command(flatten)]
    load: Load,
    /// Subscribers; each gets every message.
    #[arg(long, default_value_t = 1)]
    subscribers: u32,
    /// Their topic filter. With {client}, subscriber n is to get what publisher n sends and nothing else.
    #[arg(long, default_value = "bench/#")]
    filter: String,
    /// Let publishers be this many messages ahead of the subscribers, all publishers together; without it
    /// only acknowledgements and full sockets slow them down.
    #[arg(long)]
    ahead: Option<u64>,
    /// QoS of the subscriptions.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    subscription_qos: u8,
    /// Their sessions outlive their connections (clean session 0).
    #[arg(long)]
    lasting: bool,
    /// With --lasting: they are away while messages are published (no warm-up), come back, and get them.
    /// The server's costs are shown for both parts.
    #[arg(long, requires = "lasting", conflicts_with = "ahead")]
    absent: bool,
}

impl Load {
    fn publishing(
        &self,
        messages: u64,
        first_sequence: u64,
        ahead: Option<Arc<Ahead>>,
    ) -> Result<Arc<Publishing>> {
        Ok(Arc::new(Publishing {
            broker: self.server.endpoint()?,
            clients: self.clients,
            prefix: self.prefix.clone(),
            topic: self.mqtt_topic.clone(),
            topics_per_client: self.topics_per_client,
            qos: qos(self.qos)?,
            payload: self.payload,
            window: self.window,
            messages,
            first_sequence,
            rate: self.rate,
            stamp_at_write: self.stamp_at_write,
            ahead,
            resend: false,
            patience: Duration::from_secs(self.patience),
        }))
    }

    fn settings(&self) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("clients".into(), self.clients.into()),
            ("payload".into(), self.payload.into()),
            ("qos".into(), self.qos.into()),
            ("window".into(), self.window.into()),
            ("rate".into(), self.rate.into()),
            ("topics_per_client".into(), self.topics_per_client.into()),
        ])
    }
}

/// The two parts of a load, warm-up and measured, as one publication per client.
struct Ran {
    published: Vec<Published>,
    watch: Watch,
    seconds: f64,
    acknowledged: u64,
    latency: Latency,
}

async fn run_load(
    load: &Load,
    server_pid: &[u32],
    ahead: impl Fn() -> Option<Arc<Ahead>>,
    between: impl AsyncFnOnce(u64) -> Result<()>,
) -> Result<Ran> {
    if load.clients == 0 || load.messages < u64::from(load.clients) {
        bail!("at least one publisher, and one message each");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let clients = u64::from(load.clients);
    let warmup = load.warmup.div_ceil(clients);
    let mut published = Vec::new();
    if warmup > 0 {
        let meter = Arc::new(Meter::default());
        published = publish(&load.publishing(warmup, 0, ahead())?, &meter, &stop).await.context("warm-up")?;
        between(warmup * clients).await?;
    }
    let meter = Arc::new(Meter::default());
    let settings = load.publishing(load.messages / clients, warmup, ahead())?;
    let watch = Watch::start(server_pid)?;
    if let Some(seconds) = load.seconds {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            stop.store(true, Ordering::Relaxed);
        });
    }
    let measured = publish(&settings, &meter, &stop).await?;
    let seconds = watch.start.elapsed().as_secs_f64();
    let acknowledged = measured.iter().map(|client| client.acknowledged.len()).sum();
    for (client, more) in measured.into_iter().enumerate() {
        match published.get_mut(client) {
            Some(all) => {
                all.acknowledged.extend(more.acknowledged.iter());
                all.sent = all.sent.max(more.sent);
            }
            None => published.push(more),
        }
    }
    Ok(Ran { published, watch, seconds, acknowledged, latency: meter.latency() })
}

pub(crate) async fn mqtt_to_kafka(scenario: &MqttToKafka, server_pid: &[u32]) -> Result<Report> {
    let topic = Topic::open(&scenario.kafka, &scenario.topic).await?;
    let start = topic.ends().await?;
    let ran = run_load(
        &scenario.load,
        server_pid,
        || None,
        async |count| topic.wait_for(&start, count, Duration::from_mins(1)).await.map(drop),
    )
    .await?;
    let expected: u64 = ran.published.iter().map(|client| client.acknowledged.len()).sum();
    // Who acknowledges before Kafka has (or never, QoS 0) is through when it is there.
    let (arrived, waited) = settle(&topic, &start, expected).await?;
    let mut report = ran.watch.report("mqtt-to-kafka", ran.acknowledged, ran.seconds)?;
    let warm_up = expected - ran.acknowledged;
    report.delivered(arrived.saturating_sub(warm_up), ran.seconds + waited.as_secs_f64());
    report.settings = scenario.load.settings();
    report.may_lose = scenario.load.qos == 0;
    report.settings.insert("partitions".into(), topic.partitions().count().into());
    report.acknowledged = Some(ran.latency);
    if scenario.count {
        let sent: u64 = ran.published.iter().map(|client| client.sent).sum();
        report.verdicts.push(Verdict {
            arrived,
            lost: expected.saturating_sub(arrived),
            duplicates: arrived.saturating_sub(sent),
            ..Verdict::default()
        });
        return Ok(report);
    }

    let mut judge = if scenario.unkeyed { Judge::new() } else { Judge::with_keys(&scenario.load.prefix) };
    topic
        .read(&start, |partition, record| {
            let partition = if scenario.unkeyed { 0 } else { partition };
            judge.take(
                partition,
                record.record.key.as_deref(),
                record.record.value.as_deref().unwrap_or_default(),
            );
        })
        .await?;
    let mut verdict = judge.judge(&ran.published);
    if scenario.unkeyed {
        verdict.out_of_order = 0;
    }
    report.verdicts.push(verdict);
    Ok(report)
}

/// Without a new record for this long, what has not arrived will not.
const STALL: Duration = Duration::from_secs(10);

/// Waits until `expected` records are in the topic, or no new ones come; says how many are, and how long the
/// last of them took to come.
async fn settle(topic: &Topic, start: &BTreeMap<i32, i64>, expected: u64) -> Result<(u64, Duration)> {
    let began = Instant::now();
    let mut arrived = topic.len_from(start).await?;
    let mut last = Duration::ZERO;
    while arrived < expected && began.elapsed().saturating_sub(last) < STALL {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = topic.len_from(start).await?;
        if now != arrived {
            (arrived, last) = (now, began.elapsed());
        }
    }
    Ok((arrived, last))
}

pub(crate) async fn mqtt_to_mqtt(scenario: &MqttToMqtt, server_pid: &[u32]) -> Result<Report> {
    let subscribing = Subscribing {
        broker: scenario.load.server.endpoint()?,
        clients: scenario.subscribers,
        prefix: format!("{}subscriber-", scenario.load.prefix),
        filter: scenario.filter.clone(),
        qos: qos(scenario.subscription_qos)?,
        clean: !scenario.lasting,
        patience: Duration::from_secs(30),
    };
    let mut subscribers = Subscribers::start(&subscribing).await?;
    let pairs = scenario.filter.contains("{client}");
    let fan = if pairs { 1 } else { u64::from(scenario.subscribers) };
    let idle = Duration::from_secs(5);
    let mut warm_up = 0;
    let (ran, away) = if scenario.absent {
        subscribers.stop().await?;
        let load = Load { warmup: 0, ..scenario.load.clone() };
        let ran = run_load(&load, server_pid, || None, async |_| Ok(())).await?;
        let queued = ran.watch.report("queued", ran.acknowledged, ran.seconds)?;
        let back = Watch::start(server_pid)?;
        subscribers = Subscribers::start(&subscribing).await?;
        (ran, Some((queued, back)))
    } else {
        let meter = Arc::clone(&subscribers.meter);
        let ahead = || scenario.ahead.map(|limit| Arc::new(Ahead::new(limit, fan, Arc::clone(&meter))));
        let ran = run_load(&scenario.load, server_pid, ahead, async |count| {
            warm_up = subscribers.wait_for(count * fan, idle).await;
            subscribers.meter.forget_latency();
            Ok(())
        })
        .await?;
        (ran, None)
    };
    let expected: u64 = ran.published.iter().map(|client| client.acknowledged.len()).sum();
    let before = Instant::now();
    let arrived = subscribers.wait_for(expected * fan, idle).await;
    let waited = if arrived == expected * fan { before.elapsed().as_secs_f64() } else { 0.0 };
    let mut report;
    if let Some((queued, back)) = away {
        report = back.report("mqtt-to-mqtt, absent", arrived, back.start.elapsed().as_secs_f64())?;
        report.settings.insert(QUEUED_PER_SECOND.into(), queued.per_second.into());
        let cost = queued.server.map(|server| server.cpu_seconds_per_million);
        report.settings.insert(QUEUED_COST.into(), cost.into());
        report.delivered(arrived, report.seconds);
    } else {
        report = ran.watch.report("mqtt-to-mqtt", ran.acknowledged, ran.seconds)?;
        report.delivered(arrived - warm_up.min(arrived), ran.seconds + waited);
        report.end_to_end = Some(subscribers.meter.latency());
    }
    report.settings.append(&mut scenario.load.settings());
    report.may_lose = scenario.load.qos.min(scenario.subscription_qos) == 0;
    report.settings.insert("subscribers".into(), scenario.subscribers.into());
    report.settings.insert("subscription_qos".into(), scenario.subscription_qos.into());
    report.settings.insert("lasting".into(), scenario.lasting.into());
    report.acknowledged = Some(ran.latency);
    for (number, judge) in subscribers.stop().await? {
        let of_all = ran.published.as_slice();
        let of_one = of_all.iter().position(|client| client.client == number);
        report.verdicts.push(match of_one {
            Some(at) if pairs => judge.judge(&of_all[at..=at]),
            _ => judge.judge(of_all),
        });
    }
    Ok(report)
}

fn qos(number: u8) -> Result<QoS> {
    mqttbytes::qos(number).map_err(|_| anyhow::anyhow!("QoS is 0, 1 or 2, not {number}"))
}
