//! ListOffsets, OffsetForLeaderEpoch, DeleteRecords: questions about a partition's offsets.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, ListOffsetsRequest, ListOffsetsResponse,
    OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
};
use uuid::Uuid;

use super::{Context, Targets};
use crate::dev_kafka::batch;
use crate::dev_kafka::topics::Partition;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// Since version 7 (KIP-734).
const MAX_TIMESTAMP: i64 = -3;
/// Since version 8 (KIP-405): without tiered storage the same as the earliest.
const EARLIEST_LOCAL: i64 = -4;
/// First version with leader epochs in the answer.
const EPOCH_SINCE: i16 = 4;

pub(super) fn targets(_: &Context, request: &ListOffsetsRequest) -> Targets {
    let pairs = |topic: &kafka_protocol::messages::list_offsets_request::ListOffsetsTopic| {
        topic
            .partitions
            .iter()
            .map(|partition| (topic.name.0.clone(), partition.partition_index))
            .collect::<Vec<_>>()
    };
    request.topics.iter().flat_map(pairs).collect()
}

fn find(context: &mut Context, topic: &str, index: i32, epoch: i32) -> Result<Arc<Partition>, i16> {
    if let Some(code) = context.fault(topic, index) {
        return Err(code);
    }
    let found = context.find_topic(topic, Uuid::nil()).map_err(|error| error.code())?;
    let partition = found.partition(index).ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    context.check_leader(&partition, epoch).map_err(|error| error.code())?;
    Ok(partition)
}

pub(super) fn list_offsets(context: &mut Context, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let mut response = ListOffsetsResponse::default();
    for topic in request.topics {
        let mut answers = ListOffsetsTopicResponse::default().with_name(topic.name.clone());
        for wanted in topic.partitions {
            let answer = ListOffsetsPartitionResponse::default()
                .with_partition_index(wanted.partition_index)
                .with_timestamp(-1)
                .with_offset(-1);
            let found = find(context, &topic.name, wanted.partition_index, wanted.current_leader_epoch);
            let result = found.and_then(|partition| {
                let (timestamp, offset) =
                    lookup(&partition, wanted.timestamp).map_err(|error| error.code())?;
                Ok((timestamp, offset, partition.leader().epoch))
            });
            answers.partitions.push(match result {
                Ok((timestamp, offset, epoch)) => {
                    let epoch = if context.version >= EPOCH_SINCE && offset >= 0 { epoch } else { -1 };
                    answer.with_timestamp(timestamp).with_offset(offset).with_leader_epoch(epoch)
                }
                Err(code) => answer.with_error_code(code),
            });
        }
        response.topics.push(answers);
    }
    response
}

/// The answer `(timestamp, offset)`; `(-1, -1)` when no record is that new.
fn lookup(partition: &Partition, timestamp: i64) -> Result<(i64, i64), ResponseError> {
    let (batch, start) = {
        let log = partition.log.lock();
        let batch = match timestamp {
            LATEST => return Ok((-1, log.next_offset())),
            EARLIEST | EARLIEST_LOCAL => return Ok((-1, log.start_offset())),
            MAX_TIMESTAMP => log.newest_batch(),
            negative if negative < 0 => return Err(ResponseError::InvalidRequest),
            wanted => log.batch_at_time(wanted),
        };
        let Some(batch) = batch else { return Ok((-1, -1)) };
        (batch.clone(), log.start_offset())
    };
    // The records are looked at outside of the lock: a compressed batch takes a while.
    let wanted = if timestamp == MAX_TIMESTAMP { batch.max_timestamp } else { timestamp };
    let found = batch::first_at_time(&batch.bytes, wanted, start);
    let found = found.map_err(|_| ResponseError::CorruptMessage)?;
    Ok(found.unwrap_or((-1, -1)))
}

pub(super) fn offset_for_leader_epoch(
    context: &mut Context,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let mut response = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let mut answers = OffsetForLeaderTopicResult::default().with_topic(topic.topic.clone());
        for wanted in topic.partitions {
            let answer = EpochEndOffset::default()
                .with_partition(wanted.partition)
                .with_leader_epoch(-1)
                .with_end_offset(-1);
            answers.partitions.push(
                match find(context, &topic.topic, wanted.partition, wanted.current_leader_epoch) {
                    Ok(partition) => {
                        let end =
                            partition.log.lock().end_of_epoch(wanted.leader_epoch, partition.leader().epoch);
                        let (epoch, offset) = end.unwrap_or((-1, -1));
                        answer.with_leader_epoch(epoch).with_end_offset(offset)
                    }
                    Err(code) => answer.with_error_code(code),
                },
            );
        }
        response.topics.push(answers);
    }
    response
}

pub(super) fn delete_records(context: &mut Context, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut response = DeleteRecordsResponse::default();
    for topic in request.topics {
        let mut answers = DeleteRecordsTopicResult::default().with_name(topic.name.clone());
        for wanted in topic.partitions {
            let result = find(context, &topic.name, wanted.partition_index, -1).and_then(|partition| {
                let mut log = partition.log.lock();
                let offset = if wanted.offset == -1 { log.next_offset() } else { wanted.offset };
                if offset < 0 {
                    return Err(ResponseError::OffsetOutOfRange.code());
                }
                let dropped =
                    log.delete_before(offset).map_err(|_| ResponseError::OffsetOutOfRange.code())?;
                partition.note_size(&log);
                context.cluster.resized(dropped, 0);
                Ok(log.start_offset())
            });
            let answer = DeleteRecordsPartitionResult::default().with_partition_index(wanted.partition_index);
            answers.partitions.push(match result {
                Ok(start) => answer.with_low_watermark(start),
                Err(code) => answer.with_low_watermark(-1).with_error_code(code),
            });
        }
        response.topics.push(answers);
    }
    response
}
