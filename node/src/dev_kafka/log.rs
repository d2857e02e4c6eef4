//! One partition's log: whole batches in order of offset, each in its own reference-counted buffer.
//!
//! Invariants: batches are contiguous (`base_offset` of one is `last_offset + 1` of the one before), all of
//! them lie between `start_offset` and `next_offset`, offsets never come back. With one replica the high
//! watermark is `next_offset`. A read copies nothing but the answer and finds its place by binary search.

use std::collections::VecDeque;

use bytes::Bytes;
use causeway_protocol::kafka::batch::{Batch, BatchHeader};

use super::batch;
use super::producer_state::{self, Producer, Producers, Verdict};
use super::store::PartitionStore;

/// A batch as it is answered to a fetch.
#[derive(Debug, Clone)]
pub(super) struct StoredBatch {
    last_offset: i64,
    pub(super) max_timestamp: i64,
    /// Highest `max_timestamp` of this batch and all appended before it: rises with the offset, so a time can
    /// be searched for.
    max_timestamp_so_far: i64,
    pub(super) bytes: Bytes,
}

/// Where an append landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Appended {
    /// Offset of the first record; for a resend, that of the first time.
    pub(super) base_offset: i64,
    /// The broker's time in milliseconds for log-append-time topics, else -1.
    pub(super) append_time: i64,
    /// Bytes by which the log grew: 0 for a resend.
    pub(super) grown: usize,
}

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// Epoch or sequence of an idempotent producer.
    #[error(transparent)]
    Producer(#[from] producer_state::Error),
    /// The data directory could not be written.
    #[error("cannot write the partition file: {0}")]
    Storage(#[from] std::io::Error),
}

/// A fetch or lookup outside of `start_offset ..= next_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {0} is outside of the log")]
pub(super) struct OutOfRange(pub(super) i64);

/// How much a read may return.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadLimit {
    /// Bytes of whole batches at most.
    pub(super) max_bytes: usize,
    /// Whether the first batch is returned even when it is larger than that (KIP-74).
    pub(super) at_least_one: bool,
}

/// The log of one partition.
#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    batches: VecDeque<StoredBatch>,
    start_offset: i64,
    next_offset: i64,
    bytes: usize,
    producers: Producers,
    /// First offset of each leader epoch that wrote, rising in both (KIP-101).
    epochs: Vec<(i32, i64)>,
    store: Option<PartitionStore>,
}

impl PartitionLog {
    /// A log that continues what `store` holds, or an empty one in memory.
    pub(super) fn open(store: Option<(PartitionStore, Vec<Bytes>)>) -> Self {
        let mut log = Self::default();
        let Some((store, batches)) = store else { return log };
        for bytes in batches {
            let Ok(header) = BatchHeader::parse(&bytes) else { break };
            if log.batches.is_empty() {
                log.start_offset = header.base_offset;
                log.next_offset = header.base_offset;
            }
            if header.base_offset != log.next_offset {
                break;
            }
            log.producers.appended(
                &header,
                header.base_offset,
                batch::append_time(&header),
                header.max_timestamp,
            );
            log.push(&header, bytes);
        }
        log.store = Some(store);
        log
    }

    /// Offset of the oldest record that is kept.
    pub(super) fn start_offset(&self) -> i64 {
        self.start_offset
    }

    /// Offset that the next record gets; with one replica also the high watermark and the last stable offset.
    pub(super) fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Bytes of all batches that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a batch that was checked. `now` is the time in milliseconds; with `log_append_time` it
    /// replaces the batch's timestamps.
    pub(super) fn append(
        &mut self,
        batch: &Batch,
        leader_epoch: i32,
        now: i64,
        log_append_time: bool,
    ) -> Result<Appended, AppendError> {
        if let Verdict::Duplicate { base_offset, timestamp } = self.producers.check(batch.header())? {
            return Ok(Appended { base_offset, append_time: timestamp, grown: 0 });
        }
        let base_offset = self.next_offset;
        let (header, bytes) = batch::stored(batch, base_offset, leader_epoch, log_append_time.then_some(now));
        if let Some(store) = &mut self.store {
            store.append(base_offset, &bytes)?;
        }
        let append_time = batch::append_time(&header);
        self.producers.appended(&header, base_offset, append_time, now);
        let grown = bytes.len();
        self.push(&header, bytes);
        Ok(Appended { base_offset, append_time, grown })
    }

    fn push(&mut self, header: &BatchHeader, bytes: Bytes) {
        let so_far = self.batches.back().map_or(i64::MIN, |last| last.max_timestamp_so_far);
        let last_offset = header.last_offset();
        let leader_epoch = header.partition_leader_epoch;
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch < leader_epoch) {
            self.epochs.push((leader_epoch, header.base_offset));
        }
        self.bytes += bytes.len();
        self.next_offset = last_offset + 1;
        self.batches.push_back(StoredBatch {
            last_offset,
            max_timestamp: header.max_timestamp,
            max_timestamp_so_far: so_far.max(header.max_timestamp),
            bytes,
        });
    }

    fn index_of(&self, offset: i64) -> usize {
        self.batches.partition_point(|batch| batch.last_offset < offset)
    }

    /// Whole batches from the one that holds `offset` on, within `limit`.
    pub(super) fn read(&self, offset: i64, limit: ReadLimit) -> Result<Vec<Bytes>, OutOfRange> {
        if offset < self.start_offset || offset > self.next_offset {
            return Err(OutOfRange(offset));
        }
        let mut taken = Vec::new();
        let mut size = 0;
        for batch in self.batches.range(self.index_of(offset)..) {
            let fits =
                size + batch.bytes.len() <= limit.max_bytes || (limit.at_least_one && taken.is_empty());
            if !fits {
                break;
            }
            size += batch.bytes.len();
            taken.push(batch.bytes.clone());
        }
        Ok(taken)
    }

    /// The first batch that may hold a record with a timestamp of at least `timestamp`.
    pub(super) fn batch_at_time(&self, timestamp: i64) -> Option<&StoredBatch> {
        // The running maximum may stem from batches that retention dropped, so the first hits can still be
        // older.
        let from = self.batches.partition_point(|batch| batch.max_timestamp_so_far < timestamp);
        self.batches.range(from..).find(|batch| batch.max_timestamp >= timestamp)
    }

    /// The first batch with the highest timestamp of all.
    pub(super) fn newest_batch(&self) -> Option<&StoredBatch> {
        let newest = self.batches.iter().map(|batch| batch.max_timestamp).max()?;
        self.batches.iter().find(|batch| batch.max_timestamp == newest)
    }

    /// End of the highest leader epoch that is not above `epoch`, as `(that epoch, end offset)`; `None` when
    /// all are above.
    pub(super) fn end_of_epoch(&self, epoch: i32, current_epoch: i32) -> Option<(i32, i64)> {
        if epoch == current_epoch {
            return Some((epoch, self.next_offset));
        }
        let after = self.epochs.partition_point(|(e, _)| *e <= epoch);
        let (found, _) = *self.epochs.get(after.checked_sub(1)?)?;
        Some((found, self.epochs.get(after).map_or(self.next_offset, |(_, start)| *start)))
    }

    /// Drops the oldest batches until at most `keep` bytes are left, but never the last one. Returns the
    /// bytes dropped.
    pub(super) fn trim(&mut self, keep: usize) -> usize {
        let before = self.bytes;
        while self.bytes > keep && self.batches.len() > 1 {
            if let Some(oldest) = self.batches.pop_front() {
                self.bytes -= oldest.bytes.len();
                self.start_offset = oldest.last_offset + 1;
            }
        }
        if self.bytes < before {
            self.forget_before_start();
        }
        before - self.bytes
    }

    /// Moves the start of the log to `offset`, which need not be the border of a batch (DeleteRecords).
    /// Returns the bytes dropped.
    pub(super) fn delete_before(&mut self, offset: i64) -> Result<usize, OutOfRange> {
        if offset > self.next_offset {
            return Err(OutOfRange(offset));
        }
        let before = self.bytes;
        self.start_offset = self.start_offset.max(offset);
        while let Some(oldest) = self.batches.front().filter(|batch| batch.last_offset < self.start_offset) {
            self.bytes -= oldest.bytes.len();
            self.batches.pop_front();
        }
        self.forget_before_start();
        Ok(before - self.bytes)
    }

    fn forget_before_start(&mut self) {
        if let Some(store) = &mut self.store {
            store.trim(self.start_offset);
        }
    }

    /// The idempotent producers known here.
    pub(super) fn producers(&self) -> Vec<(i64, Producer)> {
        self.producers.snapshot()
    }

    /// The highest producer id known here.
    pub(super) fn highest_producer_id(&self) -> Option<i64> {
        self.producers.highest_id()
    }

    /// Forgets a producer id, as Kafka does when it was idle for `producer.id.expiration.ms`.
    pub(super) fn forget_producer(&mut self, producer_id: i64) -> bool {
        self.producers.forget(producer_id)
    }
}
