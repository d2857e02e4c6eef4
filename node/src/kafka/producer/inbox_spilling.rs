//! The part of an inbox that concerns files: which of its batches are written to one, and when they are read
//! back.
//!
//! Records waiting in memory stay within [`InboxLimits::spill`]'s bytes and a batch, whatever waits in all
//! (twice as much where publishers are faster than the disk for a while). Beyond them the newest batch that
//! is whole goes to a file: a copy of its encoded records is written by the bridge's thread, then the batch
//! gives its memory back. The batch keeps its place in the queue, so nothing about order changes. When the
//! line has taken what is before it, it is read back, some batches ahead of its turn. When nothing is in
//! files any more, it is as if there were none.
//!
//! Invariants:
//! * A batch is whole in memory until all of it is in a file, and in the file until all of it is in memory: a
//!   write or a read that fails changes nothing. What has become of a batch meanwhile (it was taken, dropped
//!   from, moved) is seen by its job number.
//! * Bytes in files count against [`InboxLimits::bytes`], and against no budget of memory.
//! * Publishers who come faster than the disk takes batches are treated as by a full queue: with a ticket
//!   they wait, without one the oldest in memory make room.
//! * A batch that its file no longer has (it was removed from outside) counts as failed, and its publishers
//!   are told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use causeway_protocol::kafka::batch::{BatchBuilder, HEADER_LEN};
use causeway_protocol::mqtt::ReasonCode;
use parking_lot::MutexGuard;

use super::{MovedBatch, PartitionInbox, Segment, SpillOptions, State, tell};
use crate::flow::Outcome;
use crate::flow::ledger::Ledger;
use crate::kafka::spill::{NextStep, Piece, ReadError, Spill, SpillClient, SpillThread};

/// Numbers of jobs; none is ever used twice, since batches move between inboxes.
static JOBS: AtomicU64 = AtomicU64::new(1);

/// A batch in a file.
#[derive(Debug)]
pub(super) struct Filed {
    /// Whose thread reads it.
    spill: Arc<Spill>,
    piece: Piece,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Filed {
    pub(super) fn records(&self) -> usize {
        self.piece.records()
    }

    /// The batch again, from what was read.
    fn builder(&self, buf: Vec<u8>) -> BatchBuilder {
        BatchBuilder::from_encoded(buf, self.records(), self.base_timestamp, self.max_timestamp)
    }
}

/// Spill state of an inbox.
#[derive(Debug)]
pub(super) struct Spilling {
    /// `None` where it has files of another inbox only, and writes none.
    spill: Option<Arc<Spill>>,
    /// Bytes that wait in memory before any are written.
    memory: usize,
    /// Bytes beyond them that are taken while files are written: as much again, so that a disk (or a thread)
    /// that is late for some tenths of a second costs nothing.
    spare: usize,
    /// Bytes that are read ahead.
    ahead: usize,
    /// It is in the queue of the thread.
    queued: bool,
    /// The thread will come for it when the disk may work again.
    blocked: bool,
    /// Batches are being taken: those behind the front are read ahead.
    looks_ahead: bool,
    /// Segments before this have nothing in memory that could be dropped.
    drop_from: usize,
    /// Files to be removed by the thread.
    garbage: Vec<Filed>,
}

impl Spilling {
    pub(super) fn new(way: &SpillOptions, batch_bytes: usize) -> Self {
        let four = batch_bytes.saturating_mul(4);
        Self {
            spill: Some(way.spill.clone()),
            memory: way.memory,
            spare: four.max(way.memory),
            ahead: (way.memory / 2).clamp(batch_bytes, four),
            queued: false,
            blocked: false,
            looks_ahead: false,
            drop_from: 0,
            garbage: Vec::new(),
        }
    }

    /// For an inbox that has been given batches in files, and writes none.
    fn reader(batch_bytes: usize) -> Self {
        Self {
            spill: None,
            memory: usize::MAX,
            spare: 0,
            ahead: batch_bytes.saturating_mul(4),
            queued: false,
            blocked: false,
            looks_ahead: false,
            drop_from: 0,
            garbage: Vec::new(),
        }
    }

    /// Whether a record may wait in memory. One that is larger than all there is to spare may do so where the
    /// queue has not begun to use it.
    pub(super) fn admits(&self, ledger: &Ledger, most: usize) -> bool {
        let waits = in_memory(ledger);
        waits.saturating_add(most.min(self.spare)) <= self.memory.saturating_add(self.spare)
    }
}

/// Bytes that wait in memory.
fn in_memory(ledger: &Ledger) -> usize {
    (ledger.queuing_bytes - ledger.queuing_in_files) as usize
}

/// Work of the spill thread for an inbox.
enum Job {
    Nothing,
    /// The disk does not work for the moment.
    Blocked,
    /// Write a batch of this many records, which have been copied.
    Write {
        job: u64,
        records: usize,
        base_timestamp: i64,
        max_timestamp: i64,
    },
    /// A batch in a file.
    Read {
        job: u64,
        piece: Piece,
    },
}

impl Segment {
    /// Puts what was in a file into memory, at once: this blocks the thread. False where it cannot be read;
    /// then there are no records.
    pub(super) fn put_back(&mut self, filed: &Filed) -> bool {
        match filed.piece.read(HEADER_LEN) {
            Ok(buf) => {
                self.builder = filed.builder(buf);
                self.compact();
                true
            }
            Err(error) => {
                self.forget_dropped();
                let records: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
                tracing::error!(%error, records, "records of a hybrid buffer cannot be read");
                false
            }
        }
    }

    /// Makes the runs those of the records that are left, where the records themselves are not needed any
    /// more.
    pub(super) fn forget_dropped(&mut self) {
        let mut left = std::mem::take(&mut self.dropped);
        self.dropped_bytes = 0;
        for run in self.runs.iter_mut().filter(|run| run.sink.is_none()) {
            let gone = left.min(run.count as usize);
            run.count -= gone as u32;
            left -= gone;
        }
        self.runs.retain(|run| run.count > 0);
    }

    /// In memory, whole, and not empty.
    fn may_be_filed(&self, is_last: bool) -> bool {
        self.filed.is_none() && (self.closed || !is_last) && self.live_records() > 0
    }

    /// It keeps more bytes on the disk than are needed: most of it has been dropped, or most of what is in
    /// the same file (`shared`: where that matters).
    fn wants_thinning(&self, shared: bool) -> bool {
        let Some(filed) = &self.filed else { return false };
        self.bytes > 0 && (self.dropped_bytes > self.bytes || (shared && filed.piece.is_among_waste()))
    }
}

impl MovedBatch {
    /// Reads what is in a file, which blocks the thread. False where it cannot be read.
    pub(in super::super) fn read_back(&mut self) -> bool {
        match self.0.filed.take() {
            Some(filed) => self.0.put_back(&filed),
            None => true,
        }
    }
}

impl State {
    /// Queues for the thread, where it is not queuing.
    pub(super) fn queue_for_files(&mut self, me: &Weak<PartitionInbox>) {
        let Some(spilling) = self.spilling.as_mut().filter(|spilling| !spilling.queued) else { return };
        let filed = || self.segments.iter().find_map(|segment| segment.filed.as_ref());
        let Some(spill) = spilling.spill.as_ref().or_else(|| filed().map(|filed| &filed.spill)) else {
            return;
        };
        let customer: Weak<dyn SpillClient> = me.clone();
        spill.submit(customer);
        spilling.queued = true;
    }

    /// Queues for the thread where there is more in memory than should be.
    pub(super) fn write_what_is_over(&mut self, me: &Weak<PartitionInbox>) {
        let Some(spilling) = &self.spilling else { return };
        if self.segments.len() > 1
            && spilling.spill.is_some()
            && !spilling.blocked
            && in_memory(&self.ledger) > self.memory_to_use(spilling)
        {
            self.queue_for_files(me);
        }
    }

    /// Bytes in a file that are not needed there any more.
    pub(super) fn release_filed(&mut self, bytes: usize) {
        self.held -= bytes;
        self.ledger.queuing_in_files -= bytes as u64;
    }

    /// Bytes that were in a file are in memory from here on.
    pub(super) fn count_as_memory(&mut self, bytes: usize) {
        self.ledger.queuing_in_files -= bytes as u64;
        self.add_to_budget(bytes);
    }

    /// Counts a segment that comes from another inbox.
    pub(super) fn count_in_whole(&mut self, segment: &Segment, me: &Weak<PartitionInbox>) {
        let (records, bytes) = (segment.live_records() as u64, segment.bytes);
        self.count_in(records, bytes);
        if segment.filed.is_none() {
            self.add_to_budget(bytes);
            self.write_what_is_over(me);
            return;
        }
        self.ledger.queuing_in_files += bytes as u64;
        if self.spilling.is_none() {
            self.spilling = Some(Box::new(Spilling::reader(self.limits.batch_bytes)));
        }
    }

    /// Whether the front batch is in memory; if not, it will be, and the sleeper is told.
    pub(super) fn front_is_in_memory(&mut self, me: &Weak<PartitionInbox>) -> bool {
        self.discard_empty();
        if self.segments.front().is_none_or(|front| front.filed.is_none()) {
            return true;
        }
        self.wanted = true;
        self.queue_for_files(me);
        false
    }

    /// A batch has been taken: others will be.
    pub(super) fn look_ahead(&mut self, me: &Weak<PartitionInbox>) {
        if self.ledger.queuing_in_files == 0 {
            return;
        }
        if let Some(spilling) = &mut self.spilling {
            spilling.looks_ahead = true;
        }
        self.queue_for_files(me);
    }

    /// The first segment in memory that has a record without ticket.
    pub(super) fn first_in_memory_to_drop_from(&mut self) -> Option<usize> {
        let spilling = self.spilling.as_mut()?;
        let fits = |segment: &Segment| segment.filed.is_none() && !segment.plain.is_empty();
        let last = self.segments.len().saturating_sub(1);
        while !fits(self.segments.get(spilling.drop_from)?) {
            if spilling.drop_from >= last {
                return None;
            }
            spilling.drop_from += 1;
        }
        Some(spilling.drop_from)
    }

    /// Something that may be dropped is at this place.
    pub(super) fn begin_drops_at(&mut self, index: usize) {
        if let Some(spilling) = &mut self.spilling {
            spilling.drop_from = spilling.drop_from.min(index);
        }
    }

    /// The segment at this place is gone.
    pub(super) fn removed(&mut self, index: usize) {
        if let Some(spilling) = &mut self.spilling {
            spilling.drop_from -= usize::from(index < spilling.drop_from);
        }
    }

    /// A record was dropped from a segment in a file; `all` of them have been.
    pub(super) fn dropped_from_file(&mut self, index: usize, all: bool) {
        let filed = all.then(|| self.remove(index)).flatten().and_then(|segment| segment.filed);
        if let Some(spilling) = &mut self.spilling {
            // No thread comes for what is dropped.
            spilling.looks_ahead = false;
            spilling.garbage.extend(filed.map(|filed| *filed));
        }
    }

    /// So much waits in memory before any is written. Less where the memory that it shares with others is
    /// nearly used up.
    fn memory_to_use(&self, spilling: &Spilling) -> usize {
        let is_scarce = |used: usize, limit: usize| used / 3 >= limit / 4;
        let is_short =
            self.limits.budget.as_ref().is_some_and(|budget| is_scarce(budget.used(), budget.limit()))
                || self.limits.node.as_ref().is_some_and(|node| is_scarce(node.used(), node.limit()));
        if is_short && spilling.spill.is_some() { 0 } else { spilling.memory }
    }

    /// The segment to read or to write now.
    fn next_job(&mut self, spill_thread: &mut SpillThread) -> Job {
        let Some(spilling) = &self.spilling else { return Job::Nothing };
        let memory = self.memory_to_use(spilling);
        let ahead = if memory == 0 { 0 } else { spilling.ahead };
        let hungry = self.wanted || spilling.looks_ahead;
        let is_over = in_memory(&self.ledger) > memory;
        // Segments near the front stay in memory, or comes there.
        let (mut near, mut far) = (0, self.segments.len());
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 && near >= ahead {
                far = index;
                break;
            }
            if segment.filed.is_some() && segment.live_records() > 0 && hungry {
                return self.read_job(index, spill_thread);
            }
            near += segment.bytes;
        }
        if is_over {
            let last = self.segments.len().saturating_sub(1);
            let newest = (far..self.segments.len())
                .rev()
                .find(|index| self.segments.get(*index).is_some_and(|it| it.may_be_filed(*index == last)));
            if let Some(index) = newest {
                return self.write_job(index, spill_thread);
            }
            return Job::Nothing;
        }
        // Taken segments go by themselves, file by file.
        let shared = !spilling.looks_ahead;
        match self.segments.iter().position(|segment| segment.wants_thinning(shared)) {
            Some(index) => self.read_job(index, spill_thread),
            None => Job::Nothing,
        }
    }

    fn read_job(&mut self, index: usize, spill_thread: &SpillThread) -> Job {
        if !spill_thread.may_read() {
            return Job::Blocked;
        }
        let Some(segment) = self.segments.get_mut(index) else { return Job::Nothing };
        let Some(filed) = &segment.filed else { return Job::Nothing };
        segment.job = JOBS.fetch_add(1, Ordering::Relaxed);
        Job::Read { job: segment.job, piece: filed.piece.clone() }
    }

    fn write_job(&mut self, index: usize, spill_thread: &mut SpillThread) -> Job {
        if !spill_thread.may_write() {
            return Job::Blocked;
        }
        let Some(segment) = self.segments.get_mut(index) else { return Job::Nothing };
        let builder = &segment.builder;
        let Some((base_timestamp, max_timestamp)) = builder.base_timestamp().zip(builder.max_timestamp())
        else {
            return Job::Nothing;
        };
        spill_thread.scratch.clear();
        spill_thread.scratch.extend_from_slice(builder.encoded_from(0));
        segment.job = JOBS.fetch_add(1, Ordering::Relaxed);
        Job::Write { job: segment.job, records: builder.count(), base_timestamp, max_timestamp }
    }

    /// The segment of a job, if nothing has happened to it meanwhile.
    fn segment_of(&self, job: u64) -> Option<usize> {
        self.segments.iter().position(|segment| segment.job == job)
    }
}

impl PartitionInbox {
    /// Bytes that wait in files.
    pub fn in_files(&self) -> u64 {
        self.state.lock().ledger.queuing_in_files
    }

    /// Resolves when the oldest batch is in memory, or there is none. False where it cannot be read and
    /// no publisher will wait for it: the inbox is closed.
    pub async fn front_in_memory(&self) -> bool {
        loop {
            let told = self.room.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.front_is_in_memory(&self.me) {
                    return true;
                }
                let filed = state.segments.front().and_then(|front| front.filed.as_ref());
                if state.closed.is_some() && filed.is_none_or(|filed| filed.spill.cannot_read()) {
                    return false;
                }
            }
            // Looks again now and then: there is no event for a failed read.
            let _ = tokio::time::timeout(Duration::from_millis(100), told).await;
        }
    }

    /// Whether what comes here must be in memory: a disk buffer takes it from there.
    pub(super) fn reads_at_once(&self) -> bool {
        self.state.lock().limits.store.is_some()
    }

    /// A batch that cannot be had any more: it was matched here, and failed.
    pub(in super::super) fn adopt_lost(&self, batch: MovedBatch) {
        let mut segment = batch.0;
        segment.forget_dropped();
        let records = segment.runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
        {
            let mut state = self.state.lock();
            state.ledger.matched += records;
            state.ledger.failed += records;
        }
        segment.runs.retain(|run| run.sink.is_some());
        tell(segment.runs, Outcome::Failed(ReasonCode::UnspecifiedError));
    }

    /// The segment is in a file as well: gives its memory back.
    fn written(&self, job: u64, filed: Filed) {
        let mut state = self.state.lock();
        let Some(index) = state.segment_of(job) else {
            drop(state);
            // It went another way meanwhile.
            return drop(filed);
        };
        let Some(segment) = state.segments.get_mut(index) else { return };
        segment.filed = Some(Box::new(filed));
        segment.closed = true;
        let (builder, bytes) = (std::mem::take(&mut segment.builder), segment.bytes);
        if state.ledger.queuing_in_files == 0 {
            tracing::info!("records wait in files from now on");
        }
        state.ledger.queuing_in_files += bytes as u64;
        if let Some(budget) = &state.limits.budget {
            budget.release(bytes);
        }
        self.announce_room(&mut state);
        drop(state);
        drop(builder);
    }

    /// The segment has been read.
    fn loaded(&self, job: u64, buf: Vec<u8>) {
        let mut state = self.state.lock();
        let Some(index) = state.segment_of(job) else { return };
        let Some(segment) = state.segments.get_mut(index) else { return };
        let Some(filed) = segment.filed.take() else { return };
        segment.builder = filed.builder(buf);
        if segment.dropped_bytes > segment.bytes {
            segment.compact();
        }
        let bytes = segment.bytes;
        state.count_as_memory(bytes);
        state.force_share();
        state.begin_drops_at(index);
        if state.ledger.queuing_in_files == 0 {
            tracing::info!("no records wait in files any more");
        }
        self.tell_of_front(state, index);
        drop(filed);
    }

    /// The file does not have the segment any more.
    fn lost(&self, job: u64, why: &str) {
        let mut state = self.state.lock();
        let Some(index) = state.segment_of(job) else { return };
        let Some(mut segment) = state.remove(index) else { return };
        let (records, bytes) = (segment.live_records() as u64, segment.bytes);
        tracing::error!(
            records,
            why,
            "records of a hybrid buffer are lost: they count as failed, their publishers are told"
        );
        state.ledger.queuing -= records;
        state.ledger.queuing_bytes -= bytes as u64;
        state.ledger.failed += records;
        state.release_filed(bytes);
        self.announce_room(&mut state);
        self.tell_of_front(state, index);
        segment.runs.retain(|run| run.sink.is_some());
        tell(segment.runs, Outcome::Failed(ReasonCode::UnspecifiedError));
    }

    /// Those who wait for the front look again, where it was that.
    fn tell_of_front(&self, mut state: MutexGuard<'_, State>, index: usize) {
        let wake = index == 0 && std::mem::take(&mut state.wanted);
        drop(state);
        self.room.notify_waiters();
        if wake {
            self.sleeper.wake();
        }
    }
}

impl SpillClient for PartitionInbox {
    fn turn(&self, spill_thread: &mut SpillThread) -> NextStep {
        let (job, garbage, spill) = {
            let mut state = self.state.lock();
            let job = state.next_job(spill_thread);
            let Some(spilling) = &mut state.spilling else { return NextStep::Done };
            spilling.queued = !matches!(job, Job::Nothing | Job::Blocked);
            spilling.blocked = matches!(job, Job::Blocked);
            (job, std::mem::take(&mut spilling.garbage), spilling.spill.clone())
        };
        drop(garbage);
        match job {
            Job::Nothing => return NextStep::Done,
            Job::Blocked => return NextStep::Blocked,
            Job::Write { job, records, base_timestamp, max_timestamp } => {
                // After an error the next turn finds the way blocked.
                if let Some((piece, spill)) = spill_thread.write(records as u32).ok().zip(spill) {
                    self.written(job, Filed { spill, piece, base_timestamp, max_timestamp });
                }
            }
            Job::Read { job, piece } => match spill_thread.read(&piece, HEADER_LEN) {
                Ok(buf) => self.loaded(job, buf),
                Err(ReadError::Lost(why)) => self.lost(job, &why),
                Err(ReadError::Failed(_)) => {}
            },
        }
        NextStep::More
    }
}

#[cfg(test)]
#[path = "inbox_spilling_tests.rs"]
mod tests;
