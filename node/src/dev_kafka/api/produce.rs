//! Produce, InitProducerId, DescribeProducers.

use std::sync::Arc;

use bytes::Bytes;
use causeway_protocol::kafka::batch::{Batch, BatchHeader, Compression, Error as BatchError, TimestampType};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::produce_response::{
    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, InitProducerIdRequest, InitProducerIdResponse,
    ProduceRequest, ProduceResponse, ProducerId,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::{Context, Reply, Targets, broker_id};
use crate::dev_kafka::batch;
use crate::dev_kafka::cluster::now_ms;
use crate::dev_kafka::log::{AppendError, Appended};
use crate::dev_kafka::producer_state;
use crate::dev_kafka::topics::{Partition, Topic};

/// First version that may carry zstd (KIP-110).
const ZSTD_SINCE: i16 = 7;
/// First version with the current leader in its errors (KIP-951).
const LEADER_SINCE: i16 = 10;

/// A refusal with the text that newer versions carry.
type Refusal = (i16, Option<String>);

fn refuse(error: ResponseError, reason: impl std::fmt::Display) -> Refusal {
    (error.code(), Some(format!("{reason}")))
}

pub(super) fn targets(context: &Context, request: &ProduceRequest) -> Targets {
    let mut targets = Targets::new();
    for data in &request.topic_data {
        let name = context
            .find_topic(&data.name, data.topic_id)
            .map_or(data.name.0.clone(), |topic| topic.name.clone());
        targets.extend(data.partition_data.iter().map(|partition| (name.clone(), partition.index)));
    }
    targets
}

pub(super) fn produce(context: &mut Context, request: ProduceRequest) -> Reply<ProduceResponse> {
    let mut response = ProduceResponse::default();
    let acks = request.acks;
    let (mut bytes, mut failed) = (0, false);
    for data in request.topic_data {
        let topic = context.find_topic(&data.name, data.topic_id);
        let mut answers = TopicProduceResponse::default().with_name(data.name).with_topic_id(data.topic_id);
        for wanted in data.partition_data {
            let index = wanted.index;
            bytes += wanted.records.as_ref().map_or(0, Bytes::len);
            let result = match &topic {
                Ok(topic) => produce_one(context, topic, index, acks, wanted.records),
                Err(error) => Err((error.code(), None)),
            };
            failed |= result.is_err();
            let answer = PartitionProduceResponse::default().with_index(index);
            answers.partition_responses.push(match result {
                Ok((appended, start)) => answer
                    .with_base_offset(appended.base_offset)
                    .with_log_append_time_ms(appended.append_time)
                    .with_log_start_offset(start),
                Err((code, reason)) => {
                    let answer = answer
                        .with_error_code(code)
                        .with_base_offset(-1)
                        .with_log_append_time_ms(-1)
                        .with_log_start_offset(-1)
                        .with_error_message(reason.map(StrBytes::from_string));
                    let partition = topic.as_ref().ok().and_then(|topic| topic.partition(index));
                    name_leader(context, &mut response, answer, partition)
                }
            });
        }
        response.responses.push(answers);
    }
    response.throttle_time_ms = context.throttle(bytes);
    match (acks, failed) {
        (0, false) => Ok(None),
        (0, true) => Err("a produce with acks=0 failed"),
        _ => Ok(Some(response)),
    }
}

/// Tells a client that came to the wrong broker which one is right.
fn name_leader(
    context: &Context,
    response: &mut ProduceResponse,
    answer: PartitionProduceResponse,
    partition: Option<Arc<Partition>>,
) -> PartitionProduceResponse {
    let wrong_broker = answer.error_code == ResponseError::NotLeaderOrFollower.code();
    let Some(partition) = partition.filter(|_| wrong_broker && context.version >= LEADER_SINCE) else {
        return answer;
    };
    let leader = partition.leader();
    if let Some((host, port)) = context.endpoint(leader.broker)
        && !response.node_endpoints.iter().any(|node| node.node_id.0 == leader.broker)
    {
        let node =
            NodeEndpoint::default().with_node_id(broker_id(leader.broker)).with_host(host).with_port(port);
        response.node_endpoints.push(node);
    }
    let named =
        LeaderIdAndEpoch::default().with_leader_id(broker_id(leader.broker)).with_leader_epoch(leader.epoch);
    answer.with_current_leader(named)
}

fn produce_one(
    context: &mut Context,
    topic: &Topic,
    index: i32,
    acks: i16,
    records: Option<Bytes>,
) -> Result<(Appended, i64), Refusal> {
    if let Some(code) = context.fault(&topic.name, index) {
        return Err((code, None));
    }
    if !matches!(acks, -1..=1) {
        return Err(refuse(
            ResponseError::InvalidRequiredAcks,
            format!("acks must be -1, 0 or 1, not {acks}"),
        ));
    }
    let partition = topic.partition(index).ok_or((ResponseError::UnknownTopicOrPartition.code(), None))?;
    context.check_leader(&partition, -1).map_err(|error| (error.code(), None))?;
    let records = records.unwrap_or_default();
    let length = records.len();
    let batch = check(records, context.version)?;
    let (max, log_append_time, range, retention_bytes) = {
        let config = topic.config.read();
        (config.max_message_bytes, config.log_append_time, config.timestamp_range, config.retention_bytes)
    };
    if length > max {
        let reason = format!("The batch has {length} bytes, more than max.message.bytes, {max}.");
        return Err(refuse(ResponseError::MessageTooLarge, reason));
    }
    if !log_append_time {
        check_timestamps(batch.header(), range)?;
    }
    let (appended, start, dropped) = {
        let mut log = partition.log.lock();
        let epoch = partition.leader().epoch;
        let appended = log.append(&batch, epoch, now_ms(), log_append_time).map_err(append_refusal)?;
        let dropped = retention_bytes.map_or(0, |keep| log.trim(keep));
        partition.note_size(&log);
        (appended, log.start_offset(), dropped)
    };
    context.cluster.resized(dropped, appended.grown);
    if appended.grown > 0 {
        partition.wake();
    }
    Ok((appended, start))
}

/// Refuses timestamps that are too far from the broker's time, as far as the header tells; none at all (-1)
/// is taken. In Kafka's words.
fn check_timestamps(header: &BatchHeader, (before, after): (i64, i64)) -> Result<(), Refusal> {
    let now = now_ms();
    let range = now.saturating_sub(before)..=now.saturating_add(after);
    let bad = [header.base_timestamp, header.max_timestamp]
        .into_iter()
        .find(|time| *time != -1 && !range.contains(time));
    bad.map_or(Ok(()), |time| {
        let reason = format!(
            "Timestamp {time} of message with offset 0 is out of range. The timestamp should be within [{}, {}]",
            range.start(),
            range.end()
        );
        Err(refuse(ResponseError::InvalidTimestamp, reason))
    })
}

/// The checks of a batch that need no partition.
fn check(records: Bytes, version: i16) -> Result<Batch, Refusal> {
    let batch = batch::from_client(records).map_err(|error| match error {
        batch::Error::NotOne
        | batch::Error::Inconsistent
        | batch::Error::Batch(BatchError::UnsupportedMagic { .. }) => {
            refuse(ResponseError::InvalidRecord, error)
        }
        batch::Error::Truncated | batch::Error::Batch(_) => refuse(ResponseError::CorruptMessage, error),
    })?;
    let header = batch.header();
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Err(refuse(ResponseError::InvalidTimestamp, "a producer must not send log-append time"));
    }
    if header.is_transactional() {
        return Err(refuse(ResponseError::InvalidTxnState, "this development Kafka has no transactions"));
    }
    match header.compression() {
        Ok(Compression::Zstd) if version < ZSTD_SINCE => Err(refuse(
            ResponseError::UnsupportedCompressionType,
            format!("zstd needs version {ZSTD_SINCE} of produce"),
        )),
        Ok(_) => Ok(batch),
        Err(error) => Err(refuse(ResponseError::UnsupportedCompressionType, error)),
    }
}

fn append_refusal(error: AppendError) -> Refusal {
    let code = match &error {
        AppendError::Producer(producer_state::Error::Fenced { .. }) => ResponseError::InvalidProducerEpoch,
        AppendError::Producer(producer_state::Error::OutOfOrder { .. }) => {
            ResponseError::OutOfOrderSequenceNumber
        }
        AppendError::Storage(_) => ResponseError::KafkaStorageError,
    };
    refuse(code, error)
}

pub(super) fn init_producer_id(
    context: &mut Context,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let response = InitProducerIdResponse::default();
    let failed = |code: i16| {
        InitProducerIdResponse::default()
            .with_error_code(code)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    match context.request_fault() {
        0 => {}
        code => return failed(code),
    }
    if request.transactional_id.is_some() {
        // No transactions here: a fatal answer, so that no client tries again for ever.
        return failed(ResponseError::TransactionalIdAuthorizationFailed.code());
    }
    match context.cluster.new_producer_id() {
        Ok(id) => response.with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err((error, _)) => failed(error.code()),
    }
}

pub(super) fn describe_producers(
    context: &mut Context,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let mut response = DescribeProducersResponse::default();
    for wanted in request.topics {
        let topic = context.find_topic(&wanted.name, Uuid::nil());
        let mut answers = TopicResponse::default().with_name(wanted.name.clone());
        for index in wanted.partition_indexes {
            let found = topic
                .clone()
                .and_then(|topic| topic.partition(index).ok_or(ResponseError::UnknownTopicOrPartition));
            let checked =
                found.and_then(|partition| context.check_leader(&partition, -1).map(|()| partition));
            let mut answer = PartitionResponse::default().with_partition_index(index);
            match (context.fault(&wanted.name, index), checked) {
                (Some(code), _) => answer.error_code = code,
                (None, Err(error)) => answer.error_code = error.code(),
                (None, Ok(partition)) => {
                    let producers = partition.log.lock().producers();
                    answer.active_producers = producers
                        .into_iter()
                        .map(|(id, producer)| {
                            ProducerState::default()
                                .with_producer_id(ProducerId(id))
                                .with_producer_epoch(i32::from(producer.epoch))
                                .with_last_sequence(producer.last_sequence())
                                .with_last_timestamp(producer.last_timestamp)
                                .with_coordinator_epoch(-1)
                                .with_current_txn_start_offset(-1)
                        })
                        .collect();
                }
            }
            answers.partitions.push(answer);
        }
        response.topics.push(answers);
    }
    response
}
