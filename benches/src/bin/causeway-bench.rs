//! `causeway-bench`: the load generator.
//!
//! Each scenario prints what it did and measured for people, or with `--json` as one JSON object, and
//! ends with a non-zero status when a message was lost, doubled, damaged or out of order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_benches::judge::{Judge, Published, Verdict};
use causeway_benches::load::link::Link;
use causeway_benches::load::publisher::{Publishing, publish};
use causeway_benches::load::subscriber::{Subscribers, Subscribing};
use causeway_benches::load::{Latency, Meter};
use causeway_benches::procfs::{self, Usage};
use causeway_benches::topic::Topic;
use clap::{Args, Parser, Subcommand};
use mqttbytes::QoS;
use serde::Serialize;
use tokio::task::JoinSet;

/// Load generator for Causeway, and for any MQTT broker.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
    /// Threads of the generator.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
    /// Process id of the server: its CPU time and memory are measured.
    #[arg(long, global = true)]
    server_pid: Option<u32>,
}

#[derive(Subcommand)]
enum Scenario {
    /// Publish through a producer bridge and read the Kafka topic back.
    MqttToKafka(MqttToKafka),
    /// Publish to subscribers: fan-in (one subscriber), fan-out (one publisher) or between.
    MqttToMqtt(MqttToMqtt),
    /// Open connections, and hold them idle.
    Connect(Connect),
}

#[derive(Args)]
struct Load {
    /// The MQTT side, HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: String,
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
    /// Seconds after which unacknowledged messages are given up.
    #[arg(long, default_value_t = 300)]
    patience: u64,
}

#[derive(Args)]
struct MqttToKafka {
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
}

#[derive(Args)]
struct MqttToMqtt {
    #[command(flatten)]
    load: Load,
    /// Subscribers; each gets every message.
    #[arg(long, default_value_t = 1)]
    subscribers: u32,
    /// Their topic filter.
    #[arg(long, default_value = "bench/#")]
    filter: String,
    /// QoS of the subscriptions.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    subscription_qos: u8,
}

#[derive(Args)]
struct Connect {
    /// The MQTT side, HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: String,
    /// Connections.
    #[arg(long, default_value_t = 5_000)]
    clients: u32,
    /// Connections opened at the same time.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// Seconds to hold them idle before memory is read.
    #[arg(long, default_value_t = 3)]
    hold: u64,
    /// Client ids are this and a number.
    #[arg(long, default_value = "bench-")]
    prefix: String,
}

/// What a scenario did and measured.
#[derive(Serialize)]
struct Report {
    scenario: &'static str,
    settings: BTreeMap<&'static str, serde_json::Value>,
    /// Messages (or connections) measured.
    count: u64,
    seconds: f64,
    per_second: f64,
    /// To the PUBACK, PUBREC or CONNACK.
    acknowledged: Option<Latency>,
    /// From the moment it was due to the arrival at a subscriber.
    end_to_end: Option<Latency>,
    /// Messages delivered to subscribers per second.
    delivered_per_second: Option<f64>,
    server: Option<ServerCost>,
    generator_cpu_seconds: f64,
    /// One, or one a subscriber.
    verdicts: Vec<Verdict>,
    /// QoS 0 somewhere on the way: what is lost is shown, and is no failure.
    may_lose: bool,
}

#[derive(Serialize)]
struct ServerCost {
    cpu_seconds: f64,
    cpu_seconds_per_million: f64,
    resident_bytes: u64,
    peak_resident_bytes: u64,
    /// Growth of the resident memory during the scenario.
    resident_growth_bytes: i64,
}

struct Watch {
    pid: Option<u32>,
    server: Option<Usage>,
    own: Usage,
    start: Instant,
}

impl Watch {
    fn start(pid: Option<u32>) -> Result<Self> {
        let server = pid.map(procfs::usage).transpose()?;
        Ok(Self { pid, server, own: procfs::usage(std::process::id())?, start: Instant::now() })
    }

    fn report(&self, scenario: &'static str, count: u64, seconds: f64) -> Result<Report> {
        let own = procfs::usage(std::process::id())?;
        let server = match (self.pid, self.server) {
            (Some(pid), Some(before)) => {
                let now = procfs::usage(pid).context("the server has ended")?;
                let cpu_seconds = now.cpu_seconds - before.cpu_seconds;
                Some(ServerCost {
                    cpu_seconds,
                    cpu_seconds_per_million: cpu_seconds * 1e6 / count.max(1) as f64,
                    resident_bytes: now.resident,
                    peak_resident_bytes: now.peak_resident,
                    resident_growth_bytes: now.resident.cast_signed() - before.resident.cast_signed(),
                })
            }
            _ => None,
        };
        Ok(Report {
            scenario,
            settings: BTreeMap::new(),
            count,
            seconds,
            per_second: count as f64 / seconds,
            acknowledged: None,
            end_to_end: None,
            delivered_per_second: None,
            server,
            generator_cpu_seconds: own.cpu_seconds - self.own.cpu_seconds,
            verdicts: Vec::new(),
            may_lose: false,
        })
    }
}

impl Load {
    fn publishing(&self, messages: u64, first_sequence: u64) -> Result<Arc<Publishing>> {
        Ok(Arc::new(Publishing {
            broker: self.broker.clone(),
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
            resend: false,
            patience: Duration::from_secs(self.patience),
        }))
    }

    fn settings(&self) -> BTreeMap<&'static str, serde_json::Value> {
        BTreeMap::from([
            ("clients", self.clients.into()),
            ("payload", self.payload.into()),
            ("qos", self.qos.into()),
            ("window", self.window.into()),
            ("rate", self.rate.into()),
            ("topics_per_client", self.topics_per_client.into()),
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
    server_pid: Option<u32>,
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
        published = publish(&load.publishing(warmup, 0)?, &meter, &stop).await.context("warm-up")?;
        between(warmup * clients).await?;
    }
    let meter = Arc::new(Meter::default());
    let settings = load.publishing(load.messages / clients, warmup)?;
    let watch = Watch::start(server_pid)?;
    let measured = publish(&settings, &meter, &stop).await?;
    let seconds = watch.start.elapsed().as_secs_f64();
    let acknowledged = measured.iter().map(|client| client.acknowledged.len()).sum();
    for (client, more) in measured.into_iter().enumerate() {
        match published.get_mut(client) {
            Some(all) => all.acknowledged.extend(more.acknowledged.iter()),
            None => published.push(more),
        }
    }
    Ok(Ran { published, watch, seconds, acknowledged, latency: meter.latency() })
}

async fn mqtt_to_kafka(scenario: &MqttToKafka, server_pid: Option<u32>) -> Result<Report> {
    let topic = Topic::open(&scenario.kafka, &scenario.topic).await?;
    let start = topic.ends().await?;
    let ran = run_load(&scenario.load, server_pid, async |count| {
        topic.wait_for(&start, count, Duration::from_mins(1)).await.map(drop)
    })
    .await?;
    let expected = ran.published.iter().map(|client| client.acknowledged.len()).sum();
    if scenario.load.qos == 0 {
        // Nobody said when QoS 0 messages were through: they are as soon as they are there.
        drop(topic.wait_for(&start, expected, Duration::from_mins(1)).await);
    }
    let mut report = ran.watch.report("mqtt-to-kafka", ran.acknowledged, ran.seconds)?;

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
    report.settings = scenario.load.settings();
    report.may_lose = scenario.load.qos == 0;
    report.settings.insert("partitions", topic.partitions().count().into());
    report.acknowledged = Some(ran.latency);
    report.verdicts.push(verdict);
    Ok(report)
}

async fn mqtt_to_mqtt(scenario: &MqttToMqtt, server_pid: Option<u32>) -> Result<Report> {
    let subscribers = Subscribers::start(&Subscribing {
        broker: scenario.load.broker.clone(),
        clients: scenario.subscribers,
        prefix: format!("{}subscriber-", scenario.load.prefix),
        filter: scenario.filter.clone(),
        qos: qos(scenario.subscription_qos)?,
        patience: Duration::from_secs(30),
    })
    .await?;
    let fan = u64::from(scenario.subscribers);
    let idle = Duration::from_secs(5);
    let ran = run_load(&scenario.load, server_pid, async |count| {
        subscribers.wait_for(count * fan, idle).await;
        Ok(())
    })
    .await?;
    let expected: u64 = ran.published.iter().map(|client| client.acknowledged.len()).sum();
    let before = Instant::now();
    let arrived = subscribers.wait_for(expected * fan, idle).await;
    let waited = if arrived == expected * fan { before.elapsed().as_secs_f64() } else { 0.0 };
    let mut report = ran.watch.report("mqtt-to-mqtt", ran.acknowledged, ran.seconds)?;
    report.settings = scenario.load.settings();
    report.may_lose = scenario.load.qos.min(scenario.subscription_qos) == 0;
    report.settings.insert("subscribers", scenario.subscribers.into());
    report.settings.insert("subscription_qos", scenario.subscription_qos.into());
    report.acknowledged = Some(ran.latency);
    // The warm-up's arrivals are in it too: the same load, so the same distribution.
    report.end_to_end = Some(subscribers.meter.latency());
    report.delivered_per_second = Some(ran.acknowledged as f64 * fan as f64 / (ran.seconds + waited));
    for judge in subscribers.stop().await? {
        report.verdicts.push(judge.judge(&ran.published));
    }
    Ok(report)
}

async fn connect(scenario: &Connect, server_pid: Option<u32>) -> Result<Report> {
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
        let (broker, id, meter) =
            (scenario.broker.clone(), format!("{}{number}", scenario.prefix), Arc::clone(&meter));
        tasks.spawn(async move {
            let start = Instant::now();
            let link = Link::connect(&broker, &id, true, Duration::from_secs(30)).await?;
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
        report.settings.insert("resident_bytes_per_connection", each.into());
    }
    report.acknowledged = Some(meter.latency());
    for link in links {
        link.close().await?;
    }
    Ok(report)
}

fn qos(number: u8) -> Result<QoS> {
    mqttbytes::qos(number).map_err(|_| anyhow::anyhow!("QoS is 0, 1 or 2, not {number}"))
}

fn print(report: &Report) {
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
    println!("generator:    {:.2} CPU s", report.generator_cpu_seconds);
    for verdict in &report.verdicts {
        println!("check:        {verdict}");
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut builder = match cli.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = builder.enable_all().build()?;
    let report = runtime.block_on(async {
        match &cli.scenario {
            Scenario::MqttToKafka(scenario) => mqtt_to_kafka(scenario, cli.server_pid).await,
            Scenario::MqttToMqtt(scenario) => mqtt_to_mqtt(scenario, cli.server_pid).await,
            Scenario::Connect(scenario) => connect(scenario, cli.server_pid).await,
        }
    })?;
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    let good = |verdict: &&Verdict| {
        let excused = if report.may_lose { verdict.lost } else { 0 };
        Verdict { lost: verdict.lost - excused, ..(*verdict).clone() }.is_perfect()
    };
    if !report.verdicts.iter().all(|verdict| good(&verdict)) {
        bail!("not every message came once, whole and in order: see the check above");
    }
    Ok(())
}
