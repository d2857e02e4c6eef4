//! A forwarder as one would write it: a lasting subscriber of a broker that hands every message to
//! librdkafka, and acknowledges it to the broker when its delivery report has come.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_benches::load::link::Link;
use clap::Args;
use mqttbytes::v4::{self, Packet};
use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

use super::produce::{configuration, headers};

#[derive(Args)]
pub(crate) struct Forward {
    /// The broker, HOST:PORT.
    #[arg(long)]
    broker: String,
    /// What to forward; the level behind the first is the number of the client.
    #[arg(long, default_value = "bench/#")]
    filter: String,
    /// QoS of the subscription.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    qos: u8,
    /// Kafka, HOST:PORT.
    #[arg(long)]
    kafka: String,
    /// Topic to write to.
    #[arg(long)]
    topic: String,
    /// Two headers in every record.
    #[arg(long)]
    headers: bool,
    /// Compress with lz4.
    #[arg(long)]
    lz4: bool,
}

/// What librdkafka reported since it was last looked at.
#[derive(Default)]
struct Reports {
    delivered: Mutex<Delivered>,
    news: Notify,
}

#[derive(Default)]
struct Delivered {
    /// Packet identifiers that can be acknowledged.
    identifiers: Vec<u16>,
    /// One that failed; nothing is acknowledged any more.
    failure: Option<String>,
}

struct Listener(Arc<Reports>);

impl ClientContext for Listener {}

impl ProducerContext for Listener {
    /// The packet identifier; 0 for QoS 0.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, identifier: usize) {
        let mut delivered = self.0.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) if identifier != 0 => delivered.identifiers.push(identifier as u16),
            Ok(_) => return,
            Err((error, _)) => delivered.failure = Some(error.to_string()),
        }
        drop(delivered);
        self.0.news.notify_one();
    }
}

/// Runs until it is ended. Says `ready` when the subscription stands.
pub(crate) async fn forward(scenario: &Forward) -> Result<()> {
    let reports = Arc::new(Reports::default());
    let producer: ThreadedProducer<Listener> =
        configuration(&scenario.kafka, scenario.lz4).create_with_context(Listener(Arc::clone(&reports)))?;
    let broker = scenario.broker.as_str().into();
    let mut link = Link::connect(&broker, "forwarder", false, Duration::from_secs(10)).await?;
    let qos = mqttbytes::qos(scenario.qos).map_err(|error| anyhow!("{error:?}"))?;
    link.subscribe(&scenario.filter, qos).await?;
    println!("ready");
    loop {
        tokio::select! {
            turned = link.turn(None) => turned?,
            () = reports.news.notified() => {}
        }
        while let Some(packet) = link.take()? {
            let Packet::Publish(publish) = packet else { bail!("the broker sends {packet:?}") };
            let client = publish.topic.split('/').nth(1).context("a topic without a second level")?;
            let key = format!("bench-{client}");
            let mut record = BaseRecord::with_opaque_to(&scenario.topic, usize::from(publish.pkid))
                .key(key.as_str())
                .payload(&publish.payload[..]);
            if scenario.headers {
                record = record.headers(headers(&key));
            }
            while let Err((error, again)) = producer.send(record) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                // Its thread empties it meanwhile.
                std::thread::sleep(Duration::from_millis(1));
                record = again;
            }
        }
        let delivered =
            std::mem::take(&mut *reports.delivered.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(failure) = delivered.failure {
            bail!("a message was not delivered: {failure}");
        }
        for identifier in delivered.identifiers {
            v4::PubAck::new(identifier).write(&mut link.out).map_err(|error| anyhow!("{error:?}"))?;
        }
    }
}
