//! A partition that is ours for now: what was fetched of it, what is out, how far it is done.
//!
//! Three parties meet here. The fetcher puts fetched batches in while there is room, the delivery task
//! ([`deliver`]) offers their records to the sink in order, and holders of tickets report through
//! [`AckSink`] from any thread. A partition that was taken away is simply dropped: late tickets then
//! reach an object that is not committed from.
//!
//! Invariants:
//! * Records are offered in the order of their offsets, one at a time, each until it is taken.
//! * Fetched and unfinished bytes stay within [`Limits`] plus one fetch.
//! * The tracker's lock is never held while a sink runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use causeway_protocol::kafka::batch::Batch;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::TopicPartition;
use super::fetch_session::Want;
use super::offsets::OffsetTracker;
use super::record::{ConsumedRecord, Offer, PartitionSink};
use super::topics::{Position, Start, TopicId};
use super::transactions::CommittedOnly;
use crate::flow::{AckSink, Outcome, SequenceRange, Standstill, Ticket, WakeList};

/// Records offered before those who must be woken are woken and other tasks get their turn.
const RECORDS_PER_TURN: usize = 128;

/// A sink without room is asked again at least this often, whatever its [`crate::flow::Room`] says.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Fetches that may wait for delivery: one is delivered while the next comes in.
const CHUNKS_AHEAD: usize = 2;

/// Limits of one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes fetched and not delivered, or delivered and not finished.
    pub bytes: usize,
    /// Records delivered, from the lowest unfinished one on.
    pub records: usize,
    /// Bytes that one compressed batch may grow to.
    pub batch_bytes: usize,
}

/// Records of one fetch.
#[derive(Debug)]
struct Chunk {
    batches: Vec<Batch>,
    /// Aborted transactions of the range: (first offset, producer id).
    aborted: Vec<(i64, i64)>,
    bytes: usize,
    /// The [`State::era`] in which it was fetched.
    era: u64,
}

struct State {
    tracker: OffsetTracker,
    /// Rises when offsets went back: what was fetched before no longer counts.
    era: u64,
    chunks: VecDeque<Chunk>,
    /// Bytes of the chunks that are not delivered in full.
    chunk_bytes: usize,
    /// Where the next fetch begins; `None` while that must be looked up.
    next_fetch: Option<i64>,
    /// How it is looked up.
    start: Start,
    /// The incarnation of the topic that the offsets are about.
    topic_id: TopicId,
    /// The leader epoch of the last placement.
    leader_epoch: i32,
    /// Most bytes of one fetch; grows while a batch does not fit.
    fetch_bytes: i32,
    /// The fetcher was turned away for lack of room and wants to be woken.
    starved: bool,
    fetcher: Option<Arc<Notify>>,
}

impl State {
    /// Goes back to `offset`: what was fetched or is out no longer counts.
    fn void(&mut self, offset: i64) {
        self.era += 1;
        let void: usize = self.chunks.drain(..).map(|chunk| chunk.bytes).sum();
        self.chunk_bytes -= void;
        self.tracker.restart_at(offset);
    }
}

/// An assigned partition with its fetched records.
pub(super) struct Partition {
    pub name: TopicPartition,
    limits: Limits,
    usual_fetch_bytes: i32,
    state: Mutex<State>,
    chunk_ready: Notify,
    idle: Notify,
    /// Offset committed last; -1 for none.
    pub committed: AtomicI64,
    /// The partition's end as Kafka last told; -1 for unknown.
    pub high_watermark: AtomicI64,
    /// Batches that could not be read and were passed over.
    pub unreadable: AtomicU64,
}

enum Begin {
    Given(u64),
    Seen,
    Outdated,
}

impl Partition {
    /// A partition that starts at `position`.
    pub(super) fn new(
        name: TopicPartition,
        position: Position,
        limits: Limits,
        fetch_bytes: i32,
    ) -> Arc<Self> {
        let committed = match position.start {
            Start::At(offset) => Some(offset),
            Start::Beginning | Start::Policy => None,
        };
        Arc::new(Self {
            name,
            limits,
            usual_fetch_bytes: fetch_bytes,
            state: Mutex::new(State {
                tracker: OffsetTracker::starting_at(committed.unwrap_or(0)),
                era: 0,
                chunks: VecDeque::new(),
                chunk_bytes: 0,
                next_fetch: committed,
                start: position.start,
                topic_id: position.topic_id,
                leader_epoch: -1,
                fetch_bytes,
                starved: false,
                fetcher: None,
            }),
            chunk_ready: Notify::new(),
            idle: Notify::new(),
            committed: AtomicI64::new(committed.unwrap_or(-1)),
            high_watermark: AtomicI64::new(-1),
            unreadable: AtomicU64::new(0),
        })
    }

    // ---- for the fetcher and its placement ----

    /// How to find out where to begin, where that is not known.
    pub(super) fn needs_offset(&self) -> Option<Start> {
        let state = self.state.lock();
        state.next_fetch.is_none().then_some(state.start)
    }

    /// The offset is no longer known: the reset policy says where to go on.
    pub(super) fn forget_offset(&self) {
        let mut state = self.state.lock();
        state.next_fetch = None;
        state.start = Start::Policy;
    }

    /// Says to which incarnation of its topic the partition belongs. Where it belonged to a former one
    /// everything fetched or out is void (what is out may still be handed over, and moves no offset), and it
    /// begins at the beginning; then the answer is true.
    pub(super) fn belongs_to(&self, topic_id: TopicId) -> bool {
        let mut state = self.state.lock();
        if topic_id == TopicId::default() || state.topic_id == topic_id {
            return false;
        }
        let former = std::mem::replace(&mut state.topic_id, topic_id);
        if former == TopicId::default() {
            return false;
        }
        state.void(0);
        state.next_fetch = None;
        state.start = Start::Beginning;
        state.fetch_bytes = self.usual_fetch_bytes;
        self.committed.store(-1, Ordering::Release);
        self.high_watermark.store(-1, Ordering::Release);
        drop(state);
        self.idle.notify_waiters();
        true
    }

    /// Kafka took the commit of an offset of this incarnation of the topic.
    pub(super) fn note_committed(&self, offset: i64, topic_id: TopicId) {
        if self.state.lock().topic_id == topic_id {
            self.committed.store(offset, Ordering::Release);
        }
    }

    /// Begins at `offset`. Where that lies before what was read already (Kafka lost the end of the
    /// partition) everything fetched or out is void.
    pub(super) fn begin_at(&self, offset: i64) {
        let mut state = self.state.lock();
        if offset < state.tracker.seen_to() {
            state.void(offset);
        } else {
            state.tracker.skip_to(offset);
        }
        state.next_fetch = Some(offset);
    }

    /// From now on `fetcher` is woken when there is room again.
    pub(super) fn place(&self, fetcher: Arc<Notify>, leader_epoch: i32) {
        let mut state = self.state.lock();
        state.fetcher = Some(fetcher);
        state.leader_epoch = leader_epoch;
    }

    /// False where another fetcher reads the partition by now.
    pub(super) fn is_placed_with(&self, fetcher: &Arc<Notify>) -> bool {
        self.state.lock().fetcher.as_ref().is_some_and(|placed| Arc::ptr_eq(placed, fetcher))
    }

    /// False where the answer to `want` comes too late to count.
    pub(super) fn expects(&self, want: &Want) -> bool {
        let state = self.state.lock();
        state.era == want.era && state.next_fetch == Some(want.offset)
    }

    /// Next fetch; `None` where there is no room (the fetcher will be woken) or no offset.
    pub(super) fn wants(&self) -> Option<Want> {
        let mut state = self.state.lock();
        if !self.has_room(&state) {
            state.starved = true;
            return None;
        }
        state.starved = false;
        let (max_bytes, leader_epoch) = (state.fetch_bytes, state.leader_epoch);
        let (topic_id, era) = (state.topic_id, state.era);
        state.next_fetch.map(|offset| Want { offset, max_bytes, leader_epoch, topic_id, era })
    }

    fn has_room(&self, state: &State) -> bool {
        state.chunks.len() < CHUNKS_AHEAD
            && state.chunk_bytes + state.tracker.unfinished_bytes() < self.limits.bytes
            && state.tracker.window() < self.limits.records
    }

    /// Wakes the fetcher where it waits for room and there is some.
    fn feed(&self, state: &mut State) {
        if state.starved && self.has_room(state) {
            state.starved = false;
            if let Some(fetcher) = &state.fetcher {
                fetcher.notify_one();
            }
        }
    }

    /// Takes in what was fetched for `want`, unless it comes too late; the next fetch begins at `next`.
    pub(super) fn put(&self, want: &Want, batches: Vec<Batch>, aborted: Vec<(i64, i64)>, next: i64) {
        let mut state = self.state.lock();
        if state.era != want.era || state.next_fetch != Some(want.offset) {
            return;
        }
        let bytes = batches.iter().map(|batch| batch.bytes().len()).sum();
        state.chunk_bytes += bytes;
        state.next_fetch = Some(next);
        state.fetch_bytes = self.usual_fetch_bytes;
        let era = state.era;
        state.chunks.push_back(Chunk { batches, aborted, bytes, era });
        self.chunk_ready.notify_one();
    }

    /// A batch did not fit: the next fetch may bring `need` bytes, at most `limit`. False where it may
    /// bring no more than this one.
    pub(super) fn grow(&self, need: usize, limit: i32) -> bool {
        let mut state = self.state.lock();
        let before = state.fetch_bytes;
        state.fetch_bytes =
            i32::try_from(need).unwrap_or(i32::MAX).max(before.saturating_mul(2)).min(limit).max(before);
        state.fetch_bytes > before
    }

    // ---- for the group member ----

    /// The offset that may be committed now.
    pub(super) fn position(&self) -> i64 {
        self.state.lock().tracker.position()
    }

    /// Position to commit and the incarnation of the topic that it is about, where it is known and not
    /// committed yet; with `again` also where it is.
    pub(super) fn to_commit(&self, again: bool) -> Option<(i64, TopicId)> {
        let state = self.state.lock();
        // Without an offset nothing was read: there is nothing to say.
        if state.next_fetch.is_none() && state.tracker.seen_to() <= 0 {
            return None;
        }
        let position = state.tracker.position();
        (again || position != self.committed.load(Ordering::Acquire)).then_some((position, state.topic_id))
    }

    /// Records out.
    pub(super) fn outstanding(&self) -> usize {
        self.state.lock().tracker.unfinished()
    }

    /// Waits until nothing is out, at most until `deadline`. Delivery must have ended before.
    pub(super) async fn drained(&self, deadline: Instant) {
        loop {
            let idle = self.idle.notified();
            if self.outstanding() == 0 || tokio::time::timeout_at(deadline, idle).await.is_err() {
                return;
            }
        }
    }

    // ---- for the delivery task ----

    async fn next_chunk(&self) -> Chunk {
        loop {
            let ready = self.chunk_ready.notified();
            if let Some(chunk) = self.state.lock().chunks.pop_front() {
                return chunk;
            }
            ready.await;
        }
    }

    fn chunk_done(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.chunk_bytes = state.chunk_bytes.saturating_sub(bytes);
        self.feed(&mut state);
    }

    fn begin(&self, era: u64, offset: i64, bytes: usize) -> Begin {
        let mut state = self.state.lock();
        if state.era != era {
            return Begin::Outdated;
        }
        state.tracker.begin(offset, bytes).map_or(Begin::Seen, Begin::Given)
    }

    fn skip_to(&self, era: u64, offset: i64) {
        let mut state = self.state.lock();
        if state.era == era {
            state.tracker.skip_to(offset);
        }
    }
}

impl AckSink for Partition {
    fn waits_for(&self, _: &Arc<Standstill>) -> bool {
        let state = self.state.lock();
        state.chunk_bytes + state.tracker.unfinished_bytes() >= self.limits.bytes
            || state.tracker.window() >= self.limits.records
    }

    fn acknowledge(&self, ranges: &[SequenceRange], _outcome: Outcome) {
        let mut state = self.state.lock();
        for range in ranges {
            state.tracker.finish(*range);
        }
        self.feed(&mut state);
        if state.tracker.unfinished() == 0 {
            self.idle.notify_waiters();
        }
    }
}

/// Offers what comes in to `sink`, for ever: it is ended by aborting the task. It awaits only between
/// records or before a record is offered again, so an abort leaves nothing half done.
pub(super) async fn deliver(partition: Arc<Partition>, mut sink: Box<dyn PartitionSink>) {
    loop {
        let chunk = partition.next_chunk().await;
        let mut committed_only = CommittedOnly::new(chunk.aborted);
        for batch in &chunk.batches {
            let end = batch.header().last_offset().saturating_add(1);
            if committed_only.admits(batch) {
                deliver_batch(&partition, batch, chunk.era, &mut *sink).await;
            }
            partition.skip_to(chunk.era, end);
        }
        partition.chunk_done(chunk.bytes);
    }
}

async fn deliver_batch(partition: &Arc<Partition>, batch: &Batch, era: u64, sink: &mut dyn PartitionSink) {
    let pass_over = |error: &causeway_protocol::kafka::batch::Error| {
        let header = batch.header();
        tracing::error!(
            partition = %partition.name,
            first_offset = header.base_offset,
            last_offset = header.last_offset(),
            %error,
            "a record batch cannot be read and is passed over"
        );
        partition.unreadable.fetch_add(1, Ordering::Relaxed);
    };
    let records = match batch.records(partition.limits.batch_bytes) {
        Ok(records) => records,
        Err(error) => return pass_over(&error),
    };
    let clock = batch.header().timestamp_type();
    let mut ticket = Ticket::new(partition.clone(), 0);
    let mut wakes = WakeList::default();
    for (index, record) in records.iter().enumerate() {
        let record = match record {
            Ok(record) => record,
            Err(error) => return pass_over(&error),
        };
        match partition.begin(era, record.offset, record.encoded_len()) {
            Begin::Given(sequence) => ticket.sequence = sequence,
            Begin::Seen => continue,
            Begin::Outdated => return,
        }
        let record = ConsumedRecord::new(&partition.name.topic, partition.name.partition, &record, clock);
        while let Offer::Full(room) = sink.offer(&record, &ticket, &mut wakes) {
            wakes.wake_all();
            // Room that was made between the answer and here must not be missed: ask once more after
            // the wait has begun.
            let notified = room.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            match sink.offer(&record, &ticket, &mut wakes) {
                Offer::Taken => break,
                Offer::Full(again) => {
                    wakes.wake_all();
                    if Arc::ptr_eq(&room, &again) {
                        let _ = tokio::time::timeout(ASK_AGAIN, notified).await;
                    }
                    // A sink that always says there is room and never has any must not keep this task
                    // from being ended.
                    tokio::task::yield_now().await;
                }
            }
        }
        if index % RECORDS_PER_TURN == RECORDS_PER_TURN - 1 {
            wakes.wake_all();
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests;
