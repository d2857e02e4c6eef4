//! librdkafka's producer without anything before it: what a machine and its Kafka can take, and at which
//! cost.
//!
//! Its own defaults (`linger.ms` 5), but acks from all replicas and the idempotent producer, as the other
//! systems have them. Keys are those that 50 clients would have. The CPU time is that of this whole process:
//! making the payloads is in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use causeway_benches::load::Meter;
use causeway_benches::stamp::{self, Stamp};
use causeway_benches::topic::Topic;
use clap::Args;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use super::systems::HEADER;
use crate::report::{Report, Watch};

/// Clients whose keys are used.
const CLIENTS: u32 = 50;

/// Records that librdkafka's queue holds, `queue.buffering.max.messages`.
const QUEUE: i32 = 100_000;

/// How long one who is ahead of the rate, or of the queue, sleeps; `poll` with a timeout would keep a core
/// busy.
const PAUSE: Duration = Duration::from_micros(500);

/// How long librdkafka may take to deliver what it holds.
const FLUSH: Duration = Duration::from_mins(1);

#[derive(Args)]
pub(crate) struct Produce {
    /// Kafka, HOST:PORT.
    #[arg(long)]
    kafka: String,
    /// Topic to write to.
    #[arg(long)]
    topic: String,
    /// Payload size in bytes.
    #[arg(long, default_value_t = 100)]
    payload: usize,
    /// Seconds of producing.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Messages a second; without it as many as it takes.
    #[arg(long)]
    rate: Option<f64>,
    /// Two headers in every record.
    #[arg(long)]
    headers: bool,
    /// Compress with lz4.
    #[arg(long)]
    lz4: bool,
}

/// The configuration that librdkafka has here and in the forwarder.
pub(super) fn configuration(kafka: &str, lz4: bool) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka).set("acks", "all").set("enable.idempotence", "true");
    config.set("compression.type", if lz4 { "lz4" } else { "none" });
    config
}

/// The two headers of a client.
pub(super) fn headers(client: &str) -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: HEADER.0, value: Some(HEADER.1) })
        .insert(Header { key: "client", value: Some(client) })
}

struct Reports {
    /// Latencies are read from the stamps only where there is a rate: they cost time.
    paced: bool,
    delivered: Arc<Meter>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Ok(message) = result {
            let stamp = self.paced.then(|| message.payload().and_then(Stamp::read)).flatten();
            self.delivered.record([stamp.map_or(0, |stamp| stamp::now().saturating_sub(stamp.sent))]);
        }
    }
}

/// Takes all delivery reports that there are: one call of `poll` takes those of one batch.
fn take_reports(producer: &BaseProducer<Reports>) {
    let mut before = i32::MAX;
    while before > producer.in_flight_count() {
        before = producer.in_flight_count();
        producer.poll(Duration::ZERO);
    }
}

pub(crate) async fn produce(scenario: &Produce) -> Result<Report> {
    let topic = Topic::open(&scenario.kafka, &scenario.topic).await?;
    let delivered = Arc::new(Meter::default());
    let reports = Reports { paced: scenario.rate.is_some(), delivered: Arc::clone(&delivered) };
    let producer: BaseProducer<Reports> =
        configuration(&scenario.kafka, scenario.lz4).create_with_context(reports)?;
    let keys: Vec<String> = (0..CLIENTS).map(|client| format!("bench-{client}")).collect();
    let mut payload = Vec::new();
    let mut send = |sequence: u64| -> Result<()> {
        let client = (sequence % u64::from(CLIENTS)) as u32;
        payload.clear();
        Stamp { client, sequence, sent: stamp::now() }.append(scenario.payload, &mut payload);
        let key = &keys[client as usize];
        let mut record = BaseRecord::to(&scenario.topic).key(key.as_str()).payload(&payload);
        if scenario.headers {
            record = record.headers(headers(key));
        }
        while let Err((error, again)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            // Room for one record comes at once, and asking again for each would spin.
            while producer.in_flight_count() > QUEUE / 2 {
                take_reports(&producer);
                std::thread::sleep(PAUSE);
            }
            record = again;
        }
        Ok(())
    };
    // The first messages bring connections, metadata and the producer id.
    let warm_up = 1_000;
    (0..warm_up).try_for_each(&mut send)?;
    producer.flush(FLUSH)?;
    delivered.forget_latency();
    let start = topic.ends().await?;

    let watch = Watch::start(&[std::process::id()])?;
    let mut sent = 0;
    while watch.start.elapsed().as_secs_f64() < scenario.seconds {
        let due = scenario.rate.map_or(u64::MAX, |rate| (watch.start.elapsed().as_secs_f64() * rate) as u64);
        // Time and delivery reports are looked at once for so many messages.
        for _ in 0..due.saturating_sub(sent).min(100) {
            send(warm_up + sent)?;
            sent += 1;
        }
        take_reports(&producer);
        if sent >= due {
            std::thread::sleep(PAUSE);
        }
    }
    producer.flush(FLUSH)?;
    let seconds = watch.start.elapsed().as_secs_f64();
    let mut report = watch.report("produce", sent, seconds)?;
    report.acknowledged = Some(delivered.latency());
    let arrived = topic.len_from(&start).await?;
    report.delivered(arrived, seconds);
    if arrived != sent || delivered.count() != warm_up + sent {
        bail!("{sent} were sent, {} reported, {arrived} are there", delivered.count() - warm_up);
    }
    Ok(report)
}
