//! Reading from one broker: a long poll in a fetch session over all our partitions that it leads.
//!
//! A fetcher owns the partitions that [`super::placement`] gave it until it hands them back: after any
//! error that another leader, another offset or a moment's patience may mend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use causeway_protocol::kafka::batch::batches;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{FetchRequest, FetchResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::context::Context;
use super::fetch_session::{FetchSession, Plan, Want};
use super::partition::Partition;
use super::topics::TopicId;
use super::{OffsetReset, TopicPartition};
use crate::kafka::client::{BrokerConnection, Error, Purpose, ResponseError};

/// First version of Fetch that names topics by their ids (Kafka 3.1): what was asked of a topic that was
/// deleted is then not answered with the records of one that has its name.
const TOPIC_IDS_SINCE: i16 = 13;

/// Partitions of one fetcher.
#[derive(Default)]
pub(super) struct Roster {
    partitions: Mutex<BTreeMap<TopicPartition, Arc<Partition>>>,
    wake: Arc<Notify>,
}

impl Roster {
    /// Gives the fetcher one more partition.
    pub(super) fn add(&self, partition: Arc<Partition>, leader_epoch: i32) {
        partition.place(self.wake.clone(), leader_epoch);
        self.partitions.lock().insert(partition.name.clone(), partition);
        self.wake.notify_one();
    }

    fn take(&self, name: &TopicPartition) -> Option<Arc<Partition>> {
        self.partitions.lock().remove(name)
    }

    fn take_all(&self) -> Vec<Arc<Partition>> {
        std::mem::take(&mut *self.partitions.lock()).into_values().collect()
    }

    fn get(&self, name: &TopicPartition) -> Option<Arc<Partition>> {
        self.partitions.lock().get(name).cloned()
    }
}

/// Fetches for ever from broker `id`; ended by aborting its task.
pub(super) async fn fetch(context: Arc<Context>, id: i32, roster: Arc<Roster>) {
    let mut session = FetchSession::default();
    let mut used: Option<Arc<BrokerConnection>> = None;
    let mut failures = 0u32;
    loop {
        let wanted: BTreeMap<_, _> = {
            let mut partitions = roster.partitions.lock();
            partitions.retain(|_, partition| partition.is_placed_with(&roster.wake));
            partitions
                .iter()
                .filter_map(|(name, partition)| Some((name.clone(), partition.wants()?)))
                .collect()
        };
        if wanted.is_empty() {
            roster.wake.notified().await;
            continue;
        }
        let connection = match context.client.broker(id, Purpose::Fetch(context.lane)).await {
            Ok(connection) => connection,
            Err(error) => {
                hand_back_all(&context, &roster, &error.to_string());
                continue;
            }
        };
        if !used.as_ref().is_some_and(|used| Arc::ptr_eq(used, &connection)) {
            session.start_over();
            used = Some(connection.clone());
        }
        let plan = session.plan(&wanted);
        let answer = match ask(&context, &connection, plan, wanted.len()).await {
            Ok(answer) => answer,
            Err(error) => {
                // The broker may be gone for good: let the placement look where its partitions are now.
                used = None;
                hand_back_all(&context, &roster, &error.to_string());
                continue;
            }
        };
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            session.start_over();
            failures += 1;
            let forgotten = matches!(
                code,
                ResponseError::FetchSessionIdNotFound
                    | ResponseError::InvalidFetchSessionEpoch
                    | ResponseError::FetchSessionTopicIdError
            );
            if !forgotten {
                hand_back_all(&context, &roster, &format!("Kafka answered {code} to a fetch"));
            }
            // A broker that forgets sessions forgets them once; one that refuses every session is asked
            // with care.
            if failures > 1 {
                tokio::time::sleep(context.options.retry_backoff.jittered(failures)).await;
            }
            continue;
        }
        failures = 0;
        session.answered(answer.session_id);
        for topic in answer.responses {
            let name: Arc<str> = if topic.topic_id.is_nil() {
                Arc::from(topic.topic.as_str())
            } else {
                let id = topic.topic_id.into_bytes();
                let known = wanted.iter().find(|(_, want)| want.topic_id == id);
                let Some((known, _)) = known else { continue };
                known.topic.clone()
            };
            for data in topic.partitions {
                let name = TopicPartition::new(name.clone(), data.partition_index);
                if let (Some(partition), Some(want)) = (roster.get(&name), wanted.get(&name)) {
                    take_in(&context, &roster, &partition, want, data);
                }
            }
        }
    }
}

async fn ask(
    context: &Context,
    connection: &BrokerConnection,
    plan: Plan,
    partitions: usize,
) -> Result<FetchResponse, Error> {
    // A fetch names all its topics by their ids, or all by their names.
    let version = connection.version::<FetchRequest>()?;
    let version = if plan.by_id { version } else { version.min(TOPIC_IDS_SINCE - 1) };
    let by_id = version >= TOPIC_IDS_SINCE;
    let mut topics: BTreeMap<(Arc<str>, TopicId), Vec<FetchPartition>> = BTreeMap::new();
    for (name, want) in plan.wants {
        let mut partition = FetchPartition::default()
            .with_partition(name.partition)
            .with_fetch_offset(want.offset)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(want.max_bytes);
        if version >= 9 {
            partition.current_leader_epoch = want.leader_epoch;
        }
        topics.entry((name.topic, want.topic_id)).or_default().push(partition);
    }
    let mut forgotten: BTreeMap<(Arc<str>, TopicId), Vec<i32>> = BTreeMap::new();
    for (name, topic_id) in plan.forgotten {
        forgotten.entry((name.topic, topic_id)).or_default().push(name.partition);
    }
    let called = |(name, id): (Arc<str>, TopicId)| {
        if by_id {
            (TopicName::default(), uuid::Uuid::from_bytes(id))
        } else {
            (TopicName(StrBytes::from_string(name.to_string())), uuid::Uuid::nil())
        }
    };
    let topics = topics.into_iter().map(|(topic, partitions)| {
        let (name, id) = called(topic);
        FetchTopic::default().with_topic(name).with_topic_id(id).with_partitions(partitions)
    });
    let forgotten = forgotten.into_iter().map(|(topic, partitions)| {
        let (name, id) = called(topic);
        ForgottenTopic::default().with_topic(name).with_topic_id(id).with_partitions(partitions)
    });
    let options = &context.options;
    let request = FetchRequest::default()
        .with_replica_id((-1).into())
        .with_max_wait_ms(i32::try_from(options.max_wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(context.fetch_bytes(partitions))
        .with_isolation_level(1)
        .with_session_id(plan.session_id)
        .with_session_epoch(plan.session_epoch)
        .with_topics(topics.collect())
        .with_forgotten_topics_data(forgotten.collect());
    let timeout = options.max_wait + context.client.options().request_timeout;
    connection.call_in_version(&request, version, Some(timeout)).await
}

fn hand_back_all(context: &Context, roster: &Roster, reason: &str) {
    for partition in roster.take_all() {
        hand_back(context, partition, reason.to_owned());
    }
}

fn hand_back(context: &Context, partition: Arc<Partition>, reason: String) {
    context.status.fault(&partition.name.to_string(), reason);
    context.placement.seek(partition, true);
}

/// Takes in what the broker has to say about one partition.
fn take_in(context: &Context, roster: &Roster, partition: &Arc<Partition>, want: &Want, data: PartitionData) {
    if !partition.expects(want) {
        return;
    }
    let asked = want.offset;
    if let Some(code) = ResponseError::try_from_code(data.error_code) {
        let Some(partition) = roster.take(&partition.name) else { return };
        if code == ResponseError::OffsetOutOfRange {
            let policy = context.options.offset_reset;
            tracing::warn!(
                partition = %partition.name,
                offset = asked,
                log_start = data.log_start_offset,
                ?policy,
                "the offset is no longer in Kafka: records were deleted or lost; starting anew by the policy"
            );
            partition.forget_offset();
            context.placement.seek(partition, false);
            return;
        }
        return hand_back(context, partition, format!("Kafka answered {code} to a fetch"));
    }
    partition.high_watermark.store(data.high_watermark, Ordering::Release);
    let aborted = data.aborted_transactions.unwrap_or_default();
    let aborted = aborted.iter().map(|aborted| (aborted.first_offset, aborted.producer_id.0)).collect();
    match read_batches(data.records.unwrap_or_default(), asked) {
        Read::Nothing => context.status.well(&partition.name.to_string()),
        Read::Batches { batches, next } => {
            context.status.well(&partition.name.to_string());
            partition.put(want, batches, aborted, next);
        }
        Read::TooLarge { need } => {
            if !partition.grow(need, context.largest_fetch()) {
                let limit = context.largest_fetch();
                let reason = format!(
                    "a record batch at offset {asked} of {need} bytes is larger than the limit of {limit}"
                );
                if let Some(partition) = roster.take(&partition.name) {
                    hand_back(context, partition, reason);
                }
            }
        }
        Read::Damaged(reason) => {
            if let Some(partition) = roster.take(&partition.name) {
                hand_back(context, partition, format!("at offset {asked}: {reason}"));
            }
        }
    }
}

enum Read {
    Nothing,
    Batches { batches: Vec<causeway_protocol::kafka::batch::Batch>, next: i64 },
    TooLarge { need: usize },
    Damaged(String),
}

/// Takes record bytes apart into whole batches. Batches before a damaged one are good; the damaged one is
/// met again by the next fetch.
fn read_batches(bytes: Bytes, asked: i64) -> Read {
    if bytes.is_empty() {
        return Read::Nothing;
    }
    let mut all = batches(bytes);
    let mut good = Vec::new();
    let mut next = asked;
    for batch in all.by_ref() {
        match batch {
            Ok(batch) => {
                let end = batch.header().last_offset().saturating_add(1);
                // A batch that ends before what was asked for brings nothing, and would for ever.
                if end > next {
                    next = end;
                    good.push(batch);
                }
            }
            Err(error) if good.is_empty() => return Read::Damaged(error.to_string()),
            Err(_) => break,
        }
    }
    match all.truncated() {
        _ if !good.is_empty() => Read::Batches { batches: good, next },
        Some(truncated) => Read::TooLarge { need: truncated.need.unwrap_or(0) },
        None => Read::Damaged("Kafka sent only records from before".to_owned()),
    }
}

/// Where to start without a committed offset, as Kafka's question.
impl From<OffsetReset> for crate::kafka::client::OffsetAt {
    fn from(reset: OffsetReset) -> Self {
        match reset {
            OffsetReset::Earliest => Self::Earliest,
            OffsetReset::Latest => Self::Latest,
        }
    }
}
