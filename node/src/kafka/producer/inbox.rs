//! The mailbox of a partition, which *is* the open record batch: publishers append records in place.
//!
//! A [`PartitionInbox`] owns what waits for its partition (a queue of segments, each a batch under
//! construction with the tickets of its records) and the partition's [`Ledger`]. Publishers call
//! [`PartitionInbox::append`] from any thread; the partition producer takes segments from the front, and
//! reports their end through the [`Obligations`] that came with them.
//!
//! Invariants:
//! * Every movement changes the queue and the ledger in one critical section: append is matched + queuing,
//!   take is queuing to in flight, the end is in flight to success, failed or dropped.
//! * What is held (waiting and in flight) stays within [`InboxLimits::bytes`]. A record with a ticket that
//!   does not fit is refused and leaves no trace; one without makes room by dropping the oldest waiting
//!   records without a ticket, never one with a ticket and never one in flight.
//! * Where ages matter ([`InboxLimits::max_age`], [`InboxLimits::late_after`]) a segment takes records for an
//!   eighth of the shorter one only, so that the age of its first record stands for all of them. Where they
//!   do not, a clock is read once a batch.
//! * Dropping costs amortised constant time: the oldest records without ticket of a segment are marked by a
//!   count, and removed when it is taken, when nothing else is in it, or, where it holds others as well, when
//!   they are more than half of it, so that memory stays within twice the limit.
//! * With a disk buffer ([`InboxLimits::store`]) a batch is taken when all of its records are durable. The
//!   tickets of durable records are released then, where the bridge promises no more, and their place is held
//!   by a ticket whose outcome is ignored: they are never dropped.
//! * With files for room ([`InboxLimits::spill`]) segments may be in a file (see `inbox_spilling.rs`): whom
//!   to tell of their records stays here, what they hold counts against the limit and not as memory, and they
//!   are taken when they have been read back.
//! * A segment's records are durable, then given to the buffer, then neither, in this order. While the disk
//!   is full the durable ones go without the others.
//! * Obligations that are dropped unfinished (a task that panicked) count as failed: no ticket is forgotten.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use causeway_protocol::kafka::batch::{BatchBuilder, HEADER_LEN, Record, RecordRef};
use causeway_protocol::mqtt::ReasonCode;
use parking_lot::{Mutex, MutexGuard};

use self::spilling::{Filed, Spilling};
use super::budget::Budget;
use super::latency::LatencyHistogram;
use super::obligations::{Dissolved, End, Obligations, OnDisk, Run, split_numbers, split_runs, tell};
use super::share::{self, NodeMemory, Share};
use super::verdict::TOO_LARGE;
use crate::flow::ledger::Ledger;
use crate::flow::{Accepted, IgnoreAcks, Mark, Outcome, Room, Ticket, Wake, WakeList};
use crate::kafka::buffer::{Buffer, Numbers, Put, Source, TopicPartition};
use crate::kafka::spill::Spill;

/// A single record beyond this is refused whatever the limits say: the format ends at 2 GiB a batch.
const LARGEST_RECORD: usize = 1 << 30;

/// A record may come out smaller by this than [`BatchBuilder::encoded_len`] says before it is written.
const ESTIMATE: usize = 32;

/// Bounds of an inbox.
#[derive(Debug, Clone, Default)]
pub struct InboxLimits {
    /// Most bytes of encoded records held, waiting and in flight together.
    pub bytes: usize,
    /// A batch is closed before it grows beyond this, header included; a larger record travels alone.
    pub batch_bytes: usize,
    /// Records that have waited longer are to be given up, a batch at a time: see
    /// [`PartitionInbox::take_expired`].
    pub max_age: Option<Duration>,
    /// Successes that took longer count as late replies.
    pub late_after: Option<Duration>,
    /// Bytes that the inboxes of a bridge share.
    pub budget: Option<Arc<Budget>>,
    /// Memory that all inboxes of the node share.
    pub node: Option<Arc<NodeMemory>>,
    /// While the machine is short of memory, records come in place of older ones once more than this is held.
    /// `None`: as ever.
    pub when_short: Option<usize>,
    /// Takes down how long successes took.
    pub latency: Option<Arc<LatencyHistogram>>,
    /// Records go to the disk first.
    pub store: Option<Store>,
    /// Files for records that do not fit into memory.
    pub spill: Option<SpillOptions>,
}

/// Files for what does not fit into the memory.
#[derive(Debug, Clone)]
pub struct SpillOptions {
    /// Shared by all inboxes of a bridge.
    pub spill: Arc<Spill>,
    /// Bytes that wait in memory; what is beyond goes to files.
    pub memory: usize,
}

/// The disk buffer of an inbox.
#[derive(Debug, Clone)]
pub struct Store {
    /// Shared by all inboxes of a bridge.
    pub buffer: Arc<Buffer>,
    /// Topic and partition of the records.
    pub place: TopicPartition,
    /// Publishers are answered when their records are durable, and not only when they are in Kafka.
    pub answers: bool,
}

/// A ticket whose outcome is ignored: a record with one is never dropped.
pub(super) fn answered_ticket(sequence: u64) -> Ticket {
    static ANSWERED: std::sync::LazyLock<Arc<IgnoreAcks>> = std::sync::LazyLock::new(|| Arc::new(IgnoreAcks));
    Ticket::new(ANSWERED.clone(), sequence)
}

/// Where a record is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Nowhere.
    No,
    /// Given to the buffer with this number.
    Given(u64),
    /// There, with this number.
    Durable(u64),
}

impl InboxLimits {
    /// Bounds in bytes alone.
    pub fn new(bytes: usize, batch_bytes: usize) -> Self {
        Self { bytes, batch_bytes, ..Self::default() }
    }

    /// How long a segment takes records.
    fn slice(&self) -> Option<Duration> {
        Some([self.max_age, self.late_after].into_iter().flatten().min()? / 8)
    }
}

/// The route that led to the inbox is out of date: load it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirected;

/// A batch taken out, and what is owed for it.
#[derive(Debug)]
pub struct Taken {
    /// At least one record.
    pub builder: BatchBuilder,
    /// Same records, same order.
    pub obligations: Obligations,
    /// When all of them are too old.
    pub expires_at: Option<Instant>,
}

/// Where there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// In the inbox.
    Own,
    /// In its memory, or that of those it shares a budget with. What is in files does not count there.
    Memory,
    /// In the memory of the node; nor does it there.
    Node,
}

/// A batch on its way from one inbox to another.
pub struct MovedBatch(Segment);

impl MovedBatch {
    /// When its first record came.
    pub(super) fn since(&self) -> Option<Instant> {
        self.0.since
    }

    /// Takes back what is in flight: in its inbox it was never matched.
    pub(super) fn of_flight(builder: BatchBuilder, obligations: Obligations) -> Option<Self> {
        let Dissolved { inbox, runs, bytes: counted, since, numbers } = obligations.dissolve()?;
        let mut segment = Segment { bytes: builder.len().saturating_sub(HEADER_LEN), ..Segment::default() };
        let mut sizes = builder.record_lens();
        for run in &runs {
            let of_run = sizes.by_ref().take(run.count as usize).map(|size| size as u32);
            if run.sink.is_none() { segment.plain.extend(of_run) } else { of_run.for_each(drop) }
        }
        drop(sizes);
        segment.builder = builder;
        segment.runs = runs;
        segment.since = since;
        if !numbers.is_empty() {
            segment.numbers = numbers;
            segment.given = segment.builder.count();
            segment.durable = segment.given;
            segment.given_bytes = segment.builder.len() - HEADER_LEN;
        }
        let mut state = inbox.state.lock();
        let records = segment.live_records() as u64;
        state.ledger.inflight -= records;
        state.ledger.matched -= records;
        state.release(counted);
        inbox.announce_room(&mut state);
        drop(state);
        Some(Self(segment))
    }

    /// Its records with their tickets, in order.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&RecordRef<'_>, Option<&Ticket>, Stored)) {
        let mut records = self.0.builder.records().flatten();
        let mut numbers = self.0.numbers.iter().flat_map(|numbers| numbers.first..numbers.end());
        let mut at = 0;
        for run in &self.0.runs {
            for (index, record) in (0..run.count).zip(records.by_ref()) {
                let stored = match numbers.next() {
                    Some(number) if at < self.0.durable => Stored::Durable(number),
                    Some(number) => Stored::Given(number),
                    None => Stored::No,
                };
                at += 1;
                visit(&record, run.ticket(index).as_ref(), stored);
            }
        }
    }
}

#[derive(Default)]
struct Segment {
    builder: BatchBuilder,
    runs: Vec<Run>,
    /// Encoded sizes of the records without ticket.
    plain: VecDeque<u32>,
    /// What its records count, less those dropped: the sizes with which they were appended. (Re-encoding in
    /// [`Self::compact`] may save a byte here and there, which the books do not need to know.)
    bytes: usize,
    /// So many of the first records without ticket are dropped and still in `builder`.
    dropped: usize,
    dropped_bytes: usize,
    /// Takes no further records.
    closed: bool,
    /// When its first record came.
    since: Option<Instant>,
    /// The numbers of its first records on the disk: of `given` of them, which are `given_bytes` of the
    /// builder.
    numbers: Vec<Numbers>,
    given: usize,
    given_bytes: usize,
    /// So many of the first are durable.
    durable: usize,
    /// Where its records are, if not in `builder`.
    filed: Option<Box<Filed>>,
    /// Number of the spill job under way for it, see `inbox_spilling.rs`; 0: none.
    job: u64,
}

impl Segment {
    fn count(&self) -> usize {
        self.filed.as_ref().map_or(self.builder.count(), |filed| filed.records())
    }

    fn live_records(&self) -> usize {
        self.count() - self.dropped
    }

    /// Adds the ticket (or its absence) of the record just appended.
    fn note(&mut self, ticket: Option<&Ticket>, bytes: usize) {
        self.bytes += bytes;
        if ticket.is_none() {
            self.plain.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        match self.runs.last_mut() {
            Some(run) if run.continues_with(ticket) => run.count += 1,
            _ => self.runs.push(Run::of(ticket)),
        }
    }

    fn is_durable(&self) -> bool {
        self.durable == self.builder.count()
    }

    /// Takes the next record's place on the disk over; false where it must go into another segment.
    fn fits(&self, stored: Stored) -> bool {
        match stored {
            Stored::No => true,
            Stored::Given(_) => self.given == self.builder.count(),
            Stored::Durable(_) => self.is_durable(),
        }
    }

    /// Notes where the record just appended is on the disk.
    fn note_stored(&mut self, stored: Stored, bytes: usize) {
        let (Stored::Given(number) | Stored::Durable(number)) = stored else { return };
        self.given += 1;
        self.given_bytes += bytes;
        self.durable += usize::from(matches!(stored, Stored::Durable(_)));
        match self.numbers.last_mut() {
            Some(last) if last.end() == number => last.count += 1,
            _ => self.numbers.push(Numbers { first: number, count: 1 }),
        }
    }

    /// Gives the buffer what it does not have; false where it does not take it now.
    fn collect(&mut self, place: &TopicPartition, put: &mut Put<'_>) -> bool {
        let count = self.builder.count() - self.given;
        let Some(base_timestamp) = self.builder.base_timestamp().filter(|_| count > 0) else { return true };
        let bytes = self.builder.encoded_from(self.given_bytes);
        let marks = self.marks_of_last(count);
        let Some(numbers) = put(place, count as u32, base_timestamp, bytes, &marks) else { return false };
        self.numbers.push(numbers);
        self.given_bytes += bytes.len();
        self.given = self.builder.count();
        true
    }

    /// The marks of the last `count` records.
    fn marks_of_last(&self, count: usize) -> Vec<Mark> {
        let (mut marks, mut left) = (Vec::new(), count as u32);
        for run in self.runs.iter().rev() {
            let of_run = left.min(run.count);
            if run.identifier != 0
                && let Some(session) = run.sink.as_ref().and_then(|sink| sink.session())
            {
                let identifiers = (run.count - of_run..run.count).map(|index| run.identifier(index));
                marks.extend(identifiers.map(|identifier| Mark { session, identifier }));
            }
            left -= of_run;
            if left == 0 {
                break;
            }
        }
        marks
    }

    /// Records with numbers below this one are durable; their tickets go to `told`, where that is wanted.
    fn make_durable(&mut self, below: u64, mut told: Option<&mut Vec<Run>>) {
        let durable: u64 =
            self.numbers.iter().map(|numbers| numbers.end().min(below).saturating_sub(numbers.first)).sum();
        let (from, to) = (self.durable as u64, durable);
        self.durable = durable as usize;
        let Some(told) = told.as_mut() else { return };
        // The runs of what is newly durable, cut at its borders.
        let mut at = 0;
        let mut runs: Vec<Run> = Vec::with_capacity(self.runs.len() + 2);
        for run in self.runs.drain(..) {
            let (start, end) = (at, at + u64::from(run.count));
            at = end;
            let cuts = [(start, end.min(from)), (start.max(from), end.min(to)), (start.max(to), end)];
            for (index, (first, last)) in
                cuts.into_iter().enumerate().filter(|(_, (first, last))| first < last)
            {
                let part = run.part((first - start) as u32, (last - start) as u32);
                if index == 1 && part.sink.is_some() {
                    told.push(part.clone());
                    let sink = Some(answered_ticket(0).sink);
                    runs.push(Run { sink, identifier: 0, ..part });
                } else {
                    runs.push(part);
                }
            }
        }
        self.runs = runs;
    }

    /// No record has a ticket.
    fn is_plain(&self) -> bool {
        matches!(&self.runs[..], [run] if run.sink.is_none())
    }

    /// Takes the durable records off, which are some, but not all; none may be marked as dropped.
    fn split_off_durable(&mut self) -> Self {
        let count = self.durable;
        let runs = split_runs(&mut self.runs, count as u64);
        let old = std::mem::take(&mut self.builder);
        let mut records = old.records().flatten();
        let mut first =
            Self { closed: true, since: self.since, given: count, durable: count, ..Self::default() };
        for run in &runs {
            for record in records.by_ref().take(run.count as usize) {
                let added = first.builder.append_ref(&record);
                let plain = if run.sink.is_none() { self.plain.pop_front() } else { None };
                first.bytes += plain.map_or(added, |bytes| bytes as usize);
                first.plain.extend(plain);
            }
        }
        first.runs = runs;
        first.numbers = split_numbers(&mut self.numbers, count as u64);
        first.given_bytes = first.builder.len() - HEADER_LEN;
        self.bytes = self.bytes.saturating_sub(first.bytes);
        (self.given, self.durable, self.given_bytes) = (self.given - count, 0, 0);
        for (index, record) in records.enumerate() {
            let added = self.builder.append_ref(&record);
            self.given_bytes += if index < self.given { added } else { 0 };
        }
        first
    }

    /// Physically removes what is marked as dropped, and gives the numbers it had on the disk.
    fn compact(&mut self) -> Vec<Numbers> {
        let mut gone_numbers = Vec::new();
        if self.dropped == 0 || self.filed.is_some() {
            return gone_numbers;
        }
        let mut left = std::mem::take(&mut self.dropped);
        // What has been copied of it is not it any more.
        self.job = 0;
        self.dropped_bytes = 0;
        // A new builder, not `retain`: this is about giving memory back.
        let mut kept = BatchBuilder::new();
        let old = std::mem::take(&mut self.builder);
        let mut records = old.records();
        let mut numbers = std::mem::take(&mut self.numbers);
        let mut kept_numbers = Vec::new();
        let (given, durable) = (self.given as u64, self.durable as u64);
        let (mut at, mut given_bytes) = (0, 0);
        for run in &mut self.runs {
            let gone = if run.sink.is_none() { left.min(run.count as usize) } else { 0 };
            left -= gone;
            let keep = run.count as usize - gone;
            gone_numbers.append(&mut split_numbers(&mut numbers, gone as u64));
            kept_numbers.append(&mut split_numbers(&mut numbers, keep as u64));
            let within = |limit: u64, from: u64| limit.saturating_sub(from).min(gone as u64) as usize;
            self.given -= within(given, at);
            self.durable -= within(durable, at);
            at += gone as u64;
            for _ in 0..gone {
                records.next();
            }
            for record in records.by_ref().take(keep).flatten() {
                let added = kept.append_ref(&record);
                given_bytes += if at < given { added } else { 0 };
                at += 1;
            }
            run.count = keep as u32;
        }
        self.runs.retain(|run| run.count > 0);
        self.builder = kept;
        self.numbers = kept_numbers;
        self.given_bytes = given_bytes;
        gone_numbers
    }
}

struct State {
    /// The last one is open unless it says `closed`.
    segments: VecDeque<Segment>,
    limits: InboxLimits,
    /// See [`InboxLimits::slice`].
    slice: Option<Duration>,
    /// Encoded bytes waiting and in flight.
    held: usize,
    /// Of the memory of the node.
    share: Option<Share>,
    ledger: Ledger,
    /// Segments before this have no record without ticket left to drop.
    drop_from: usize,
    /// The sleeper is woken by the append that brings `queuing_bytes` here; `u64::MAX`: it is awake.
    wake_at: u64,
    /// A record was refused since space was last freed.
    refused: bool,
    closed: Option<ReasonCode>,
    /// The generation of routes that may append.
    generation: u64,
    /// Size of the batch taken last: what the next one will probably need.
    likely_size: usize,
    /// Something is there that the buffer was not given, and it has been told.
    dirty: bool,
    /// Something was given to the buffer and is not known to be durable.
    given: bool,
    /// The sleeper wants the front batch as soon as it is durable, or in memory.
    wanted: bool,
    /// State of the spill files; with [`InboxLimits::spill`], or once a segment came that is in one.
    spilling: Option<Box<Spilling>>,
}

/// Records that wait for a partition producer; the module documentation lists the invariants.
pub struct PartitionInbox {
    state: Mutex<State>,
    room: Room,
    sleeper: Arc<dyn Wake>,
    taken: AtomicU64,
    me: Weak<Self>,
}

impl std::fmt::Debug for PartitionInbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionInbox").field("ledger", &self.ledger()).finish_non_exhaustive()
    }
}

impl PartitionInbox {
    /// An empty inbox; `sleeper` is woken as [`Self::sleep_until`] says.
    pub fn new(limits: InboxLimits, sleeper: Arc<dyn Wake>) -> Arc<Self> {
        let room = limits.budget.as_ref().map_or_else(Room::default, |budget| budget.room().clone());
        let buffer = limits.store.as_ref().map(|store| store.buffer.clone());
        let spilling = limits.spill.as_ref().map(|way| Box::new(Spilling::new(way, limits.batch_bytes)));
        let inbox = Arc::new_cyclic(|me| Self {
            state: Mutex::new(State {
                segments: VecDeque::new(),
                slice: limits.slice(),
                share: limits.node.clone().map(Share::new),
                limits,
                held: 0,
                ledger: Ledger::default(),
                drop_from: 0,
                wake_at: u64::MAX,
                refused: false,
                closed: None,
                generation: 0,
                likely_size: 0,
                dirty: false,
                given: false,
                wanted: false,
                spilling,
            }),
            room,
            sleeper,
            taken: AtomicU64::new(0),
            me: me.clone(),
        });
        if let Some(buffer) = buffer {
            let weak: std::sync::Weak<Self> = Arc::downgrade(&inbox);
            buffer.add_source(weak);
        }
        inbox
    }

    /// Appends a record.
    ///
    /// [`Accepted::Full`] comes only with a ticket. Its [`Room`] is notified at each occasion on which space
    /// is freed; a caller that shares it with others registers (`notified()`, `enable()`) before it tries
    /// again, or it may miss the last one.
    pub fn append(&self, record: &Record<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        let most = BatchBuilder::encoded_len(record);
        self.append_locked(&mut self.state.lock(), most, record, ticket, wakes)
    }

    /// As [`Self::append`], for a caller with a route of this generation: refused where
    /// [`Self::admit_only`] has named another one since.
    pub fn append_routed(
        &self,
        generation: u64,
        record: &Record<'_>,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Result<Accepted, Redirected> {
        let most = BatchBuilder::encoded_len(record);
        let mut state = self.state.lock();
        if state.generation != generation && state.closed.is_none() {
            return Err(Redirected);
        }
        Ok(self.append_locked(&mut state, most, record, ticket, wakes))
    }

    /// From here on only routes of this generation may append.
    pub fn admit_only(&self, generation: u64) {
        self.state.lock().generation = generation;
    }

    fn append_locked(
        &self,
        state: &mut State,
        most: usize,
        record: &Record<'_>,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Accepted {
        if let Some(reason) = state.closed {
            return Accepted::Done(Outcome::Failed(reason));
        }
        let budget = state.limits.budget.as_ref().map_or(usize::MAX, |budget| budget.limit());
        if most > state.limits.bytes.min(LARGEST_RECORD).min(budget) {
            state.ledger.matched += 1;
            if ticket.is_some() {
                state.ledger.failed += 1;
            } else {
                state.ledger.dropped_queue_full += 1;
            }
            return Accepted::Done(Outcome::Failed(TOO_LARGE));
        }
        let refused_by = if state.is_short() { Err(Full::Node) } else { state.reserve(most) };
        if let Err(full) = refused_by {
            if full != Full::Own {
                state.write_what_is_over(&self.me);
            }
            if ticket.is_some() {
                return Accepted::Full(match full {
                    Full::Node => state.share.as_mut().map_or_else(|| self.room.clone(), Share::refuse),
                    Full::Own | Full::Memory => {
                        state.refuse();
                        self.room.clone()
                    }
                });
            }
            if !state.drop_oldest(most) {
                // All that is left is in flight or has a ticket: the newcomer is the oldest that may be
                // dropped.
                state.ledger.matched += 1;
                state.ledger.dropped_queue_full += 1;
                return Accepted::Done(Outcome::Failed(ReasonCode::QuotaExceeded));
            }
        }
        let segments = state.segments.len();
        let segment = state.open_segment(most, None);
        let added = segment.builder.append(record);
        segment.note(ticket, added);
        if let Some(budget) = &state.limits.budget {
            budget.release(most - added);
        }
        state.count_in(1, added);
        if state.spilling.is_some() && state.segments.len() > segments {
            // The one before is whole: it may go to a file.
            state.write_what_is_over(&self.me);
        }
        state.tell_buffer(|buffer| wakes.push(buffer));
        if state.ledger.queuing_bytes >= state.wake_at {
            state.wake_at = u64::MAX;
            wakes.push(self.sleeper.clone());
        }
        Accepted::Taken
    }

    /// Appends a record that another inbox gave up ([`Self::surrender`]), whatever the limit: it was accepted
    /// before.
    pub(super) fn append_moved(
        &self,
        record: &RecordRef<'_>,
        ticket: Option<&Ticket>,
        stored: Stored,
        since: Option<Instant>,
    ) {
        let mut state = self.state.lock();
        if let Some(open) = state.segments.back_mut()
            && !open.fits(stored)
        {
            open.closed = true;
        }
        let segment = state.open_segment(record.encoded_len() + 16, since);
        let before = segment.builder.len();
        let added = segment.builder.append_ref(record);
        segment.note(ticket, added);
        segment.note_stored(stored, segment.builder.len() - before.max(HEADER_LEN));
        state.given |= matches!(stored, Stored::Given(_));
        if stored == Stored::No {
            state.tell_buffer(|buffer| buffer.wake());
        }
        state.add_to_budget(added);
        state.count_in(1, added);
        if state.spilling.is_some() {
            state.write_what_is_over(&self.me);
        }
        state.force_share();
    }

    /// As [`Self::append_moved`], for a whole batch, without looking into it.
    pub fn adopt_batch(&self, mut batch: MovedBatch) {
        if self.reads_at_once() && !batch.read_back() {
            return self.adopt_lost(batch);
        }
        let mut state = self.state.lock();
        if let Some(open) = state.segments.back_mut() {
            open.closed = true;
        }
        let mut segment = batch.0;
        segment.closed = true;
        state.given |= segment.durable < segment.given;
        let new = segment.given < segment.count();
        state.count_in_whole(&segment, &self.me);
        state.segments.push_back(segment);
        if new {
            state.tell_buffer(|buffer| buffer.wake());
        }
        state.force_share();
    }

    /// As [`Self::adopt_batch`], for older batches in order: they go in front of all that waits here.
    pub(super) fn prepend(&self, mut batches: Vec<MovedBatch>) {
        if self.reads_at_once() {
            let read = |mut batch: MovedBatch| {
                let read = batch.read_back();
                if read {
                    Some(batch)
                } else {
                    self.adopt_lost(batch);
                    None
                }
            };
            batches = batches.into_iter().filter_map(read).collect();
        }
        let mut state = self.state.lock();
        state.drop_from = 0;
        state.begin_drops_at(0);
        for MovedBatch(mut segment) in batches.into_iter().rev() {
            segment.closed = true;
            state.given |= segment.durable < segment.given;
            if segment.given < segment.count() {
                state.tell_buffer(|buffer| buffer.wake());
            }
            state.count_in_whole(&segment, &self.me);
            state.segments.push_front(segment);
        }
        state.force_share();
    }

    /// True where at least `bytes` (and at least one record) wait. Otherwise the sleeper will be woken when
    /// they do; with `None` it will not be.
    pub fn sleep_until(&self, bytes: Option<u64>) -> bool {
        let mut state = self.state.lock();
        let Some(bytes) = bytes else {
            state.wake_at = u64::MAX;
            return false;
        };
        let enough = state.ledger.queuing > 0 && state.ledger.queuing_bytes >= bytes;
        if enough && !state.front_is_ready(&self.me) {
            // Told when it is durable, or in memory.
            state.wanted = true;
            state.wake_at = u64::MAX;
            return false;
        }
        state.wake_at = if enough { u64::MAX } else { bytes.max(1) };
        enough
    }

    /// Takes the oldest batch: its records are in flight from here on.
    pub fn take(self: &Arc<Self>) -> Option<Taken> {
        let mut state = self.state.lock();
        if !state.front_is_ready(&self.me) {
            return None;
        }
        let segment = state.pop()?;
        let records = segment.live_records();
        Some(self.taken_from(state, segment, records))
    }

    /// As [`Self::take`], durable or not: what is not counts as not stored. One that is in a file is read,
    /// which blocks the thread, if its `records` are wanted; where they are not, or cannot be read,
    /// [`Taken::builder`] is empty.
    pub fn take_in_any_case(self: &Arc<Self>, records: bool) -> Option<Taken> {
        let mut state = self.state.lock();
        state.part_front();
        let mut segment = state.pop()?;
        let count = segment.live_records();
        if let Some(filed) = segment.filed.take() {
            state.count_as_memory(segment.bytes);
            if records {
                segment.put_back(&filed);
            } else {
                segment.forget_dropped();
            }
        }
        Some(self.taken_from(state, segment, count))
    }

    /// Counts records that were under way before a restart.
    pub(super) fn resume(self: &Arc<Self>, builder: &BatchBuilder, numbers: Vec<Numbers>) -> Obligations {
        let mut state = self.state.lock();
        let (records, bytes) = (builder.count() as u64, builder.len() - HEADER_LEN);
        state.held += bytes;
        state.ledger.matched += records;
        state.ledger.inflight += records;
        state.add_to_budget(bytes);
        state.force_share();
        let runs = vec![Run { count: records as u32, ..Run::of(Some(&answered_ticket(0))) }];
        let stored = state.limits.store.as_ref();
        let stored = stored.map(|store| OnDisk { buffer: store.buffer.clone(), numbers });
        drop(state);
        Obligations::new(self.clone(), runs, bytes, None, stored)
    }

    fn taken_from(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        segment: Segment,
        records: usize,
    ) -> Taken {
        state.ledger.inflight += records as u64;
        let expires_at = state.expiry(&segment);
        self.taken.fetch_add(1, Ordering::Release);
        state.look_ahead(&self.me);
        let durable = segment.is_durable();
        let store = state.limits.store.as_ref().filter(|_| durable);
        let stored = store.map(|store| OnDisk { buffer: store.buffer.clone(), numbers: segment.numbers });
        drop(state);
        Taken {
            obligations: Obligations::new(self.clone(), segment.runs, segment.bytes, segment.since, stored),
            builder: segment.builder,
            expires_at,
        }
    }

    /// As [`Self::take`], if all of its records are older than [`InboxLimits::max_age`].
    pub fn take_expired(self: &Arc<Self>, now: Instant) -> Option<Taken> {
        let mut state = self.state.lock();
        state.discard_empty();
        let front = state.segments.front()?;
        if state.expiry(front).is_none_or(|at| at > now) || !state.front_is_ready(&self.me) {
            return None;
        }
        let segment = state.pop()?;
        let records = segment.live_records();
        Some(self.taken_from(state, segment, records))
    }

    /// When [`Self::take_expired`] has something to give.
    pub fn next_expiry(&self) -> Option<Instant> {
        let mut state = self.state.lock();
        state.discard_empty();
        // The sleeper will be told when one in a file can be taken.
        state.segments.front().filter(|front| front.filed.is_none()).and_then(|front| state.expiry(front))
    }

    /// Takes the oldest batch for another inbox: here it was never matched.
    pub fn surrender(&self) -> Option<MovedBatch> {
        let mut state = self.state.lock();
        let segment = state.pop()?;
        state.ledger.matched -= segment.live_records() as u64;
        if segment.filed.is_some() {
            state.release_filed(segment.bytes);
        } else {
            state.release(segment.bytes);
        }
        self.announce_room(&mut state);
        Some(MovedBatch(segment))
    }

    /// Batches taken so far; a change tells a sticky partitioner to move on.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// The books, law included, at one moment.
    pub fn ledger(&self) -> Ledger {
        self.state.lock().ledger
    }

    /// True while records wait or are in flight.
    pub fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.ledger.queuing + state.ledger.inflight > 0
    }

    /// Closes batches at this size from now on, if it is smaller than before.
    pub fn limit_batch_bytes(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.limits.batch_bytes = state.limits.batch_bytes.min(bytes.saturating_add(HEADER_LEN));
    }

    /// How long the oldest record has been waiting.
    pub fn oldest(&self) -> Option<Duration> {
        let state = self.state.lock();
        let front = state.segments.iter().find(|segment| segment.live_records() > 0)?;
        Some(front.since?.elapsed())
    }

    /// Records that were sent again.
    pub fn note_retried(&self, records: u64) {
        self.state.lock().ledger.retried += records;
    }

    /// Records that may be in the log twice because the broker forgot our producer id.
    pub fn note_possible_duplicates(&self, records: u64) {
        self.state.lock().ledger.possible_duplicates += records;
    }

    /// True once [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed.is_some()
    }

    /// Refuses whatever comes from now on with this reason, and wakes all who wait for room.
    pub fn close(&self, reason: ReasonCode) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(reason);
        state.refused = true;
        self.announce_room(&mut state);
    }

    /// Resolves when nothing waits and nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let freed = self.room.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if !self.is_busy() {
                return;
            }
            freed.await;
        }
    }

    /// The end of records in flight: `with_ticket` and `without` of them, `bytes` long.
    pub(super) fn settle(
        &self,
        with_ticket: u64,
        without: u64,
        bytes: usize,
        since: Option<Instant>,
        end: End,
    ) {
        let mut state = self.state.lock();
        let late = state.limits.late_after.zip(since).is_some_and(|(limit, since)| since.elapsed() > limit);
        let ledger = &mut state.ledger;
        ledger.inflight -= with_ticket + without;
        match end {
            End::Success => ledger.success += with_ticket + without,
            End::Failed(_) => ledger.failed += with_ticket + without,
            End::Expired(_) => ledger.dropped_expired += with_ticket + without,
            End::Stopped(_) => {
                ledger.failed += with_ticket;
                ledger.dropped_resource_stopped += without;
            }
        }
        if end == End::Success
            && let Some((latency, since)) = state.limits.latency.as_ref().zip(since)
        {
            latency.record(since.elapsed());
        }
        let ledger = &mut state.ledger;
        if late && end == End::Success {
            ledger.late_reply += with_ticket;
        }
        state.release(bytes);
        self.announce_room(&mut state);
    }

    /// Records in flight that stay on the disk: here they were never matched.
    pub(super) fn leave(&self, records: u64, bytes: usize) {
        let mut state = self.state.lock();
        state.ledger.inflight -= records;
        state.ledger.matched -= records;
        state.release(bytes);
        self.announce_room(&mut state);
    }

    fn announce_room(&self, state: &mut State) {
        let shared = state.limits.budget.as_ref().is_some_and(|budget| budget.take_refused());
        if std::mem::take(&mut state.refused) || shared {
            self.room.notify_one();
        }
        self.room.notify_waiters();
        let cost = state.cost();
        if let Some(share) = &mut state.share {
            share.shrink(cost);
        }
    }
}

impl Source for PartitionInbox {
    fn collect(&self, put: &mut Put<'_>) -> bool {
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.dirty {
            return false;
        }
        let Some(store) = &state.limits.store else { return false };
        // One that is not taken is followed by none: what was written first has the lower number.
        state.dirty = !state.segments.iter_mut().all(|segment| segment.collect(&store.place, put));
        state.given = true;
        state.dirty
    }

    fn durable(&self, below: u64) {
        let mut told = Vec::new();
        let wanted = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.given) {
                return;
            }
            let answers = state.limits.store.as_ref().is_some_and(|store| store.answers);
            for segment in state.segments.iter_mut().filter(|segment| segment.durable < segment.given) {
                segment.make_durable(below, answers.then_some(&mut told));
            }
            std::mem::take(&mut state.wanted)
        };
        tell(told, Outcome::Success);
        if wanted {
            self.sleeper.wake();
        }
    }

    fn held_up(&self) {
        let mut state = self.state.lock();
        let some = state.segments.front().is_some_and(|front| front.durable > 0);
        if some && std::mem::take(&mut state.wanted) {
            drop(state);
            self.sleeper.wake();
        }
    }
}

impl State {
    /// Tells the buffer that there is something new, once.
    fn tell_buffer(&mut self, tell: impl FnOnce(Arc<Buffer>)) {
        if let Some(store) = self.limits.store.as_ref().filter(|_| !self.dirty) {
            tell(store.buffer.clone());
            self.dirty = true;
        }
    }

    /// Whether the front batch may go. One that may not takes no more records, so that it soon may; while the
    /// disk is full its durable records go without the others.
    fn front_is_ready(&mut self, me: &Weak<PartitionInbox>) -> bool {
        if self.ledger.queuing_in_files > 0 && !self.front_is_in_memory(me) {
            return false;
        }
        let Some(store) = &self.limits.store else { return true };
        if store.buffer.is_full() {
            self.part_front();
        }
        self.discard_empty();
        let Some(front) = self.segments.front_mut() else { return true };
        front.closed |= !front.is_durable();
        front.is_durable()
    }

    /// Makes a batch of their own of the durable records of the front one, where it holds others too.
    fn part_front(&mut self) {
        self.discard_empty();
        let Some(front) = self.segments.front_mut() else { return };
        let is_mixed = |front: &Segment| front.durable > 0 && !front.is_durable();
        if !is_mixed(front) {
            return;
        }
        let gone = front.compact();
        // What was dropped may have been all that was durable, or all that was not.
        let first = is_mixed(front).then(|| front.split_off_durable());
        front.closed = true;
        if let Some(first) = first {
            self.segments.push_front(first);
        }
        self.drop_from = 0;
        self.end(&gone);
    }

    /// Bytes that count for this inbox against the memory of the node.
    fn cost(&self) -> usize {
        let in_files = self.ledger.queuing_in_files as usize;
        self.held - in_files + share::RECORD * (self.ledger.queuing + self.ledger.inflight) as usize
    }

    fn force_share(&mut self) {
        let cost = self.cost();
        if let Some(share) = &mut self.share {
            share.force(cost);
        }
    }

    /// Whether the machine is short of memory and this inbox has more than it may then have.
    fn is_short(&self) -> bool {
        self.limits.when_short.is_some_and(|most| self.held > most)
            && self.share.as_ref().is_some_and(|share| share.node().is_short())
    }

    /// Room for `most` bytes, which are reserved where others share it.
    fn reserve(&mut self, most: usize) -> Result<(), Full> {
        if self.held + most > self.limits.bytes {
            return Err(Full::Own);
        }
        if let Some(spilling) = &self.spilling
            && !spilling.admits(&self.ledger, most)
        {
            return Err(Full::Memory);
        }
        if self.limits.budget.as_ref().is_some_and(|budget| !budget.try_reserve(most)) {
            return Err(Full::Memory);
        }
        let cost = self.cost();
        if let Some(share) = &mut self.share
            && !share.admits(cost, cost + most + share::RECORD)
        {
            if let Some(budget) = &self.limits.budget {
                budget.release(most);
            }
            return Err(Full::Node);
        }
        Ok(())
    }

    fn refuse(&mut self) {
        self.refused = true;
        if let Some(budget) = &self.limits.budget {
            budget.refuse();
        }
    }

    fn release(&mut self, bytes: usize) {
        self.held -= bytes;
        if let Some(budget) = &self.limits.budget {
            budget.release(bytes);
        }
    }

    fn add_to_budget(&self, bytes: usize) {
        if let Some(budget) = &self.limits.budget {
            budget.add(bytes);
        }
    }

    /// When all records of the segment are too old: an eighth after its first one is.
    fn expiry(&self, segment: &Segment) -> Option<Instant> {
        let (max_age, slice) = self.limits.max_age.zip(self.slice)?;
        Some(segment.since? + max_age + slice)
    }

    fn count_in(&mut self, records: u64, bytes: usize) {
        self.held += bytes;
        self.ledger.matched += records;
        self.ledger.queuing += records;
        self.ledger.queuing_bytes += bytes as u64;
    }

    /// The segment for a record of up to `most` bytes that came at this time, or just now.
    fn open_segment(&mut self, most: usize, since: Option<Instant>) -> &mut Segment {
        let limit = self.limits.batch_bytes;
        let slice = self.slice;
        let came = since.or_else(|| slice.map(|_| Instant::now()));
        // Of a batch that comes from elsewhere the last record may have come an eighth after the first.
        let slice = if since.is_some() { slice.map(|_| Duration::ZERO) } else { slice };
        let is_old = |open: &Segment| {
            let age = came.zip(open.since).map(|(came, since)| came.saturating_duration_since(since));
            age.zip(slice).is_some_and(|(age, slice)| age > slice)
        };
        if let Some(open) = self.segments.back_mut()
            && !open.closed
            && !open.builder.is_empty()
            && (open.builder.len() + most > limit || is_old(open))
        {
            open.closed = true;
        }
        if self.segments.back().is_none_or(|open| open.closed) {
            // Behind a full one there will be another: all of its room at once, and none to grow into.
            let is_full = |full: &Segment| full.filed.is_some() || full.builder.len() + most > limit;
            let behind_full = self.segments.back().is_some_and(is_full);
            let capacity = if behind_full { limit } else { self.likely_size.min(limit) };
            self.segments
                .push_back(Segment { builder: BatchBuilder::with_capacity(capacity), ..Segment::default() });
        }
        let last = self.segments.len() - 1;
        let segment = &mut self.segments[last];
        if segment.builder.is_empty() {
            segment.since = came.or_else(|| Some(Instant::now()));
        }
        segment
    }

    /// Drops the oldest records without ticket until `most` bytes fit (where memory is what lacks, the oldest
    /// in memory; while the machine is short of it, at least that many bytes); false where they do not fit
    /// even then.
    fn drop_oldest(&mut self, most: usize) -> bool {
        let until = if self.is_short() {
            self.held.saturating_sub(most.saturating_sub(ESTIMATE))
        } else {
            usize::MAX
        };
        loop {
            let full = if self.held > until { Err(Full::Own) } else { self.reserve(most) };
            let index = match full {
                Ok(()) => return true,
                Err(Full::Memory | Full::Node) if self.ledger.queuing_in_files > 0 => {
                    self.first_in_memory_to_drop_from()
                }
                Err(_) => self.first_to_drop_from(),
            };
            let Some(index) = index else { return false };
            let last = self.segments.len().saturating_sub(1);
            let Some(segment) = self.segments.get_mut(index) else { return false };
            let Some(bytes) = segment.plain.pop_front() else { return false };
            let bytes = bytes as usize;
            segment.dropped += 1;
            segment.dropped_bytes += bytes;
            segment.bytes -= bytes;
            self.ledger.queuing -= 1;
            self.ledger.queuing_bytes -= bytes as u64;
            self.ledger.dropped_queue_full += 1;
            if segment.filed.is_some() {
                let gone = segment.bytes == 0;
                self.release_filed(bytes);
                self.dropped_from_file(index, gone);
                continue;
            }
            // A closed one goes as a whole where all of it may go: that is at most a batch too much, and no
            // copy.
            let at_once = index < last && self.limits.store.is_none() && segment.is_plain();
            if segment.bytes == 0 || (segment.dropped_bytes > segment.bytes && !at_once) {
                let gone = segment.compact();
                if let Some(store) = self.limits.store.as_ref().filter(|_| !gone.is_empty()) {
                    store.buffer.done(&gone);
                }
                if segment.builder.is_empty() && index < last {
                    self.remove(index);
                }
            }
            self.release(bytes);
        }
    }

    /// The first segment that has a record without ticket.
    fn first_to_drop_from(&mut self) -> Option<usize> {
        let last = self.segments.len().saturating_sub(1);
        while self.segments.get(self.drop_from)?.plain.is_empty() {
            if self.drop_from >= last {
                return None;
            }
            self.drop_from += 1;
        }
        Some(self.drop_from)
    }

    /// Takes a segment without records away.
    fn remove(&mut self, index: usize) -> Option<Segment> {
        let segment = self.segments.remove(index)?;
        self.drop_from -= usize::from(index < self.drop_from);
        self.removed(index);
        Some(segment)
    }

    /// The oldest segment with records, no longer waiting.
    fn pop(&mut self) -> Option<Segment> {
        self.discard_empty();
        let mut segment = self.remove(0)?;
        self.likely_size = if segment.filed.is_some() { self.likely_size } else { segment.builder.len() };
        let gone = segment.compact();
        self.end(&gone);
        self.ledger.queuing -= segment.live_records() as u64;
        self.ledger.queuing_bytes -= segment.bytes as u64;
        Some(segment)
    }

    /// These are no longer needed on the disk.
    fn end(&self, numbers: &[Numbers]) {
        if let Some(store) = self.limits.store.as_ref().filter(|_| !numbers.is_empty()) {
            store.buffer.done(numbers);
        }
    }

    /// Takes segments away from the front that have no records left.
    fn discard_empty(&mut self) {
        while self.segments.front().is_some_and(|segment| segment.live_records() == 0) {
            if let Some(segment) = self.remove(0) {
                self.end(&segment.numbers);
            }
        }
    }
}

#[path = "inbox_spilling.rs"]
mod spilling;

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
