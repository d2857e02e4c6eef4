//! What was acknowledged against what is in Kafka.
//!
//! Each acknowledgement is an obligation. An [`Oracle`] remembers where a topic ended before a scenario,
//! and when its faults are over reads everything since then through rskafka and judges it: lost, twice,
//! out of order per key, astray, damaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use causeway_benches::judge::{Judge, Published, Verdict};
use causeway_benches::load::Meter;
use causeway_benches::load::publisher::{Publishing, publish};
use causeway_benches::topic::{Topic, client, client_as};
use mqttbytes::QoS;
use rskafka::chrono::DateTime;
use rskafka::client::Client;
use rskafka::record::{Record, RecordAndOffset};
use tokio::task::JoinHandle;

use crate::{block_on, runtime};

/// How long what was acknowledged may take to be readable.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches one topic.
pub struct Oracle {
    topic: Topic,
    start: BTreeMap<i32, i64>,
}

impl Oracle {
    /// From now on.
    pub fn watch(bootstrap: &str, topic: &str) -> Result<Self> {
        Self::watch_with(async { client(bootstrap, PATIENCE).await }, topic)
    }

    /// From now on, logged in with SASL/PLAIN as (user, password).
    pub fn watch_as(bootstrap: &str, login: (&str, &str), topic: &str) -> Result<Self> {
        Self::watch_with(async { client_as(bootstrap, login, PATIENCE).await }, topic)
    }

    fn watch_with(client: impl Future<Output = Result<Client>>, topic: &str) -> Result<Self> {
        block_on(async {
            let topic = Topic::open_with(&client.await?, topic).await?;
            let start = topic.ends().await?;
            Ok(Self { topic, start })
        })
    }

    /// Everything written since then, partition after partition.
    pub fn records(&self) -> Result<Vec<(i32, RecordAndOffset)>> {
        let mut records = Vec::new();
        block_on(self.topic.read(&self.start, |partition, record| records.push((partition, record))))?;
        Ok(records)
    }

    /// Waits until `count` records have been written since then, and returns all.
    pub fn wait_for(&self, count: u64, patience: Duration) -> Result<Vec<(i32, RecordAndOffset)>> {
        block_on(self.topic.wait_for(&self.start, count, patience))?;
        self.records()
    }

    /// Judges what a bridge wrote that was led from one topic to the next, `topics` in turn: as
    /// [`Self::judge`].
    pub fn judge_in_turn(topics: &[&Self], prefix: &str, published: &[Published]) -> Result<Verdict> {
        let mut judge = Judge::with_keys(prefix);
        for oracle in topics {
            let take = |partition, record: RecordAndOffset| {
                let record = record.record;
                judge.take(partition, record.key.as_deref(), record.value.as_deref().unwrap_or_default());
            };
            block_on(oracle.topic.read(&oracle.start, take))?;
        }
        Ok(judge.judge(published))
    }

    /// Judges what load publishers with this client-id prefix had acknowledged. The bridge's key is
    /// `${.clientid}`, its value `${.payload}`.
    pub fn judge(&self, prefix: &str, published: &[Published]) -> Result<Verdict> {
        let expected = published.iter().map(|client| client.acknowledged.len()).sum();
        // What is missing then is lost; the judge says what it is.
        drop(block_on(self.topic.wait_for(&self.start, expected, PATIENCE)));
        let mut judge = Judge::with_keys(prefix);
        let take = |partition, record: RecordAndOffset| {
            let record = record.record;
            judge.take(partition, record.key.as_deref(), record.value.as_deref().unwrap_or_default());
        };
        block_on(self.topic.read(&self.start, take))?;
        Ok(judge.judge(published))
    }
}

/// A record of now for rskafka to produce.
pub fn record(key: Option<&str>, value: &str, headers: &[(&str, &str)]) -> Record {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let header = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
    Record {
        key: key.map(|key| key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: headers.iter().map(header).collect(),
        timestamp: DateTime::from_timestamp_millis(now as i64).unwrap_or_default(),
    }
}

/// A load that tests begin with: QoS 1, closed loop.
pub fn load(broker: &str, prefix: &str, topic: &str, clients: u32, messages_each: u64) -> Publishing {
    Publishing {
        broker: broker.into(),
        clients,
        prefix: prefix.to_owned(),
        topic: topic.to_owned(),
        topics_per_client: 1,
        qos: QoS::AtLeastOnce,
        payload: 100,
        window: 100,
        messages: messages_each,
        first_sequence: 0,
        rate: None,
        stamp_at_write: false,
        ahead: None,
        resend: false,
        patience: Duration::from_mins(5),
    }
}

/// A load that runs while the test does other things.
pub struct Running {
    task: JoinHandle<Result<Vec<Published>>>,
    meter: Arc<Meter>,
    stop: Arc<AtomicBool>,
}

impl Running {
    /// Starts it.
    pub fn start(load: Publishing) -> Self {
        let (load, meter, stop) =
            (Arc::new(load), Arc::new(Meter::default()), Arc::new(AtomicBool::new(false)));
        let (its_meter, its_stop) = (Arc::clone(&meter), Arc::clone(&stop));
        let task = runtime().spawn(async move { publish(&load, &its_meter, &its_stop).await });
        Self { task, meter, stop }
    }

    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.meter.count()
    }

    /// Waits until so many are acknowledged. An error if the load ends before, or at `patience`.
    pub fn wait_for(&self, count: u64, patience: Duration) -> Result<()> {
        crate::eventually(patience, || {
            let now = self.acknowledged();
            crate::need(now >= count, || format!("{now} messages are acknowledged, not {count}"))
        })
    }

    /// Lets publishers begin nothing new; what is on its way is finished.
    pub fn stop(&self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Waits for the end (the load's own patience bounds it).
    pub fn join(self) -> Result<Vec<Published>> {
        block_on(self.task)?
    }
}
