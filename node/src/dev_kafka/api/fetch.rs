//! Fetch: whole batches from the one that holds the wanted offset on, waiting for new ones when there are too
//! few.
//!
//! The answer comes when `min_bytes` are there, when `max_wait_ms` is over, or at once when any partition
//! answers an error. An append wakes the wait immediately. Limits hold for the request and per partition, but
//! the first batch found is always returned whole (KIP-74).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{
    FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use kafka_protocol::messages::{FetchRequest, FetchResponse, TopicName};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Context, Targets, broker_id};
use crate::dev_kafka::log::ReadLimit;
use crate::dev_kafka::topics::{Partition, Topic};

/// First version that names the leader in its errors (KIP-951).
const ENDPOINTS_SINCE: i16 = 16;
/// Longest wait granted, whatever the request asks for.
const MAX_WAIT: Duration = Duration::from_mins(5);

/// One partition of a fetch.
#[derive(Debug, Clone)]
struct Wanted {
    topic: Result<Arc<Topic>, ResponseError>,
    name: TopicName,
    id: Uuid,
    partition: FetchPartition,
}

/// Takes a waiter off the lists of all partitions when the fetch ends, however it ends.
struct Watch {
    waiter: Arc<Notify>,
    partitions: Vec<Arc<Partition>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        for partition in &self.partitions {
            partition.unwatch(&self.waiter);
        }
    }
}

pub(super) fn targets(context: &Context, request: &FetchRequest) -> Targets {
    let mut targets = Targets::new();
    for wanted in &request.topics {
        let name = context
            .find_topic(&wanted.topic, wanted.topic_id)
            .map_or(wanted.topic.0.clone(), |topic| topic.name.clone());
        targets.extend(wanted.partitions.iter().map(|partition| (name.clone(), partition.partition)));
    }
    targets
}

pub(super) async fn fetch(context: &mut Context, request: FetchRequest) -> FetchResponse {
    if request.session_id != 0 && request.session_epoch > 0 {
        // Sessions are not kept: the client starts over with a full fetch.
        let code = ResponseError::FetchSessionIdNotFound.code();
        return FetchResponse::default().with_error_code(code);
    }
    let mut wanted = Vec::new();
    for topic in request.topics {
        let found = context.find_topic(&topic.topic, topic.topic_id);
        wanted.extend(topic.partitions.into_iter().map(|partition| Wanted {
            topic: found.clone(),
            name: topic.topic.clone(),
            id: topic.topic_id,
            partition,
        }));
    }
    let max_bytes = usize::try_from(request.max_bytes).unwrap_or(0);
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0).min(max_bytes);
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(MAX_WAIT);
    let deadline = Instant::now() + wait;
    let waiter = Arc::new(Notify::new());
    let found = |wanted: &Wanted| wanted.topic.as_ref().ok()?.partition(wanted.partition.partition);
    let watch = Watch { partitions: wanted.iter().filter_map(found).collect(), waiter: waiter.clone() };
    loop {
        // Watched before it is read: an append between the two is not missed.
        for partition in &watch.partitions {
            partition.watch(&waiter);
        }
        let read = read_all(context, &wanted, max_bytes, request.isolation_level == 1);
        let enough = read.failed || read.bytes >= min_bytes || wanted.is_empty();
        if enough || Instant::now() >= deadline {
            let mut response = read.response;
            response.throttle_time_ms = context.throttle(read.bytes);
            return response;
        }
        // At the deadline the next turn answers with what there is.
        let _ = tokio::time::timeout_at(deadline, waiter.notified()).await;
    }
}

#[derive(Default)]
struct Read {
    response: FetchResponse,
    bytes: usize,
    failed: bool,
}

fn read_all(context: &mut Context, wanted: &[Wanted], max_bytes: usize, read_committed: bool) -> Read {
    let mut read = Read::default();
    for one in wanted {
        let limit =
            ReadLimit { max_bytes: max_bytes.saturating_sub(read.bytes), at_least_one: read.bytes == 0 };
        let mut data = match read_one(context, one, limit) {
            Ok(data) => data,
            Err(error) => {
                read.failed = true;
                failed(context, &mut read.response, one, error)
            }
        };
        if read_committed {
            data.aborted_transactions = Some(Vec::new());
        }
        read.bytes += data.records.as_ref().map_or(0, Bytes::len);
        let last = read.response.responses.last_mut();
        if let Some(topic) = last.filter(|last| last.topic == one.name && last.topic_id == one.id) {
            topic.partitions.push(data);
        } else {
            let topic = FetchableTopicResponse::default().with_topic(one.name.clone()).with_topic_id(one.id);
            read.response.responses.push(topic.with_partitions(vec![data]));
        }
    }
    read
}

fn empty(index: i32) -> PartitionData {
    PartitionData::default()
        .with_partition_index(index)
        .with_aborted_transactions(None)
        .with_records(Some(Bytes::new()))
}

fn read_one(context: &mut Context, wanted: &Wanted, limit: ReadLimit) -> Result<PartitionData, i16> {
    let topic = wanted.topic.as_ref().map_err(ResponseError::code)?;
    let FetchPartition { partition: index, fetch_offset, current_leader_epoch, partition_max_bytes, .. } =
        wanted.partition;
    if let Some(code) = context.fault(&topic.name, index) {
        return Err(code);
    }
    let partition = topic.partition(index).ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    // A deleted topic may still be held here.
    context.find_topic(&wanted.name, wanted.id).map_err(|error| error.code())?;
    context.check_leader(&partition, current_leader_epoch).map_err(|error| error.code())?;
    let max_bytes = limit.max_bytes.min(usize::try_from(partition_max_bytes).unwrap_or(0));
    let (batches, start, next) = {
        let log = partition.log.lock();
        let batches = log.read(fetch_offset, ReadLimit { max_bytes, ..limit });
        let batches = batches.map_err(|_| ResponseError::OffsetOutOfRange.code())?;
        (batches, log.start_offset(), log.next_offset())
    };
    let records = match batches.as_slice() {
        [single] => single.clone(),
        several => {
            let mut joined = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
            for batch in several {
                joined.extend_from_slice(batch);
            }
            joined.freeze()
        }
    };
    Ok(empty(index)
        .with_records(Some(records))
        .with_high_watermark(next)
        .with_last_stable_offset(next)
        .with_log_start_offset(start))
}

fn failed(context: &Context, response: &mut FetchResponse, wanted: &Wanted, code: i16) -> PartitionData {
    let index = wanted.partition.partition;
    let mut data = empty(index)
        .with_error_code(code)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1);
    let moved =
        [ResponseError::NotLeaderOrFollower.code(), ResponseError::FencedLeaderEpoch.code()].contains(&code);
    let partition = wanted.topic.as_ref().ok().and_then(|topic| topic.partition(index));
    let Some(partition) = partition.filter(|_| moved && context.version >= ENDPOINTS_SINCE) else {
        return data;
    };
    let leader = partition.leader();
    data.current_leader =
        LeaderIdAndEpoch::default().with_leader_id(broker_id(leader.broker)).with_leader_epoch(leader.epoch);
    if let Some((host, port)) = context.endpoint(leader.broker)
        && !response.node_endpoints.iter().any(|node| node.node_id.0 == leader.broker)
    {
        let node =
            NodeEndpoint::default().with_node_id(broker_id(leader.broker)).with_host(host).with_port(port);
        response.node_endpoints.push(node);
    }
    data
}
