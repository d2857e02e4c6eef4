//! Records for the way from Kafka to MQTT, produced by rskafka, and partitions that are added meanwhile.
//!
//! A record says which partition it is for, because a template of a consumer bridge cannot.
//!
//! What is in Kafka in the end counts, so a request whose answer is lost needs no care.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_benches::topic::{Topic, client};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::{CreatePartitionsRequest, TopicName};
use rskafka::client::partition::Compression;
use tokio::time::{Instant, sleep, timeout};

use super::signals::Signals;
use crate::block_on;
use crate::kafka_wire::{Wire, name};
use crate::oracle::record;

/// How long Kafka may take for anything, before it is tried again.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two rounds of records.
const PAUSE: Duration = Duration::from_millis(200);

/// How long partitions are believed to be all.
const BELIEVED: Duration = Duration::from_secs(1);

/// Records go into a topic.
#[derive(Debug, Clone)]
pub struct Source {
    /// Kafka topic.
    pub topic: String,
    /// So many records for each partition in a round.
    pub records: usize,
    /// Whether a record for each partition goes on coming when the devices have stopped.
    pub goes_on: bool,
}

/// Produces until subscribers are called home.
pub fn produce(bootstrap: &str, sources: &[Source], signals: &Signals) {
    let mut number = 0_u64;
    while !(signals.is_homecoming() || signals.is_over()) {
        // Whatever failed is tried again with a new client.
        let produced = block_on(async {
            timeout(PATIENCE * 2, produce_for_a_while(bootstrap, sources, signals, &mut number)).await
        });
        if !matches!(produced, Ok(Ok(()))) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

async fn produce_for_a_while(
    bootstrap: &str,
    sources: &[Source],
    signals: &Signals,
    number: &mut u64,
) -> Result<()> {
    let client = client(bootstrap, PATIENCE).await?;
    let mut topics = Vec::new();
    for source in sources {
        topics.push((source, Topic::open_with(&client, &source.topic).await?));
    }
    let until = Instant::now() + BELIEVED;
    while Instant::now() < until && !signals.is_homecoming() && !signals.is_over() {
        for (source, topic) in &topics {
            let count = match (signals.is_last_call(), source.goes_on) {
                (false, _) => source.records,
                (true, true) => 1,
                (true, false) => continue,
            };
            for partition in topic.partitions() {
                let records = (0..count).map(|_| {
                    *number += 1;
                    record(None, &format!("{partition} record {number}"), &[])
                });
                let produce =
                    topic.partition(partition)?.produce(records.collect(), Compression::NoCompression);
                timeout(PATIENCE, produce).await??;
            }
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Where each partition of a topic ends, as soon as Kafka says so.
pub fn ends(bootstrap: &str, topic: &str, patience: Duration) -> Result<BTreeMap<i32, i64>> {
    let ask = || async {
        let client = client(bootstrap, PATIENCE).await?;
        Topic::open_with(&client, topic).await?.ends().await
    };
    block_on(again_and_again(patience, ask)).with_context(|| format!("asking where topic {topic} ends"))
}

async fn again_and_again<T, F: Future<Output = Result<T>>>(
    patience: Duration,
    ask: impl Fn() -> F,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match timeout(PATIENCE, ask()).await.context("no answer").flatten() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Grows a topic to so many partitions, by whichever broker does it.
pub fn add_partitions(bootstrap: &str, topic: &str, count: usize) -> Result<()> {
    let wanted =
        CreatePartitionsTopic::default().with_name(TopicName(name(topic))).with_count(i32::try_from(count)?);
    let request = CreatePartitionsRequest::default().with_topics(vec![wanted]).with_timeout_ms(2000);
    let ask = |address: &str| {
        let mut wire = Wire::connect(address)?;
        wire.give_up_after(PATIENCE)?;
        let code = wire.call(3, &request)?.results.first().context("an answer per topic")?.error_code;
        ensure!(code == 0, "adding partitions to {topic}: error {code}");
        Ok(())
    };
    let mut outcome = Ok(());
    for address in bootstrap.split(',') {
        outcome = ask(address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}
