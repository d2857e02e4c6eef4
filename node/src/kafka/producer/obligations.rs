//! Obligations of a batch: the tickets of its records in order, and their end in the ledger.
//!
//! Invariants: obligations end exactly once, with [`Obligations::end`] or, where they are dropped (a task
//! that panicked), as failed. The ledger moves before the publishers are told. A publisher hears of a batch
//! in one call.

use std::sync::Arc;
use std::time::Instant;

use causeway_protocol::mqtt::ReasonCode;

use super::inbox::PartitionInbox;
use crate::flow::{AckSink, Outcome, SequenceRange, Ticket};
use crate::kafka::buffer::{Buffer, Numbers};

/// Consecutive records of one publisher, or without a ticket.
#[derive(Clone)]
pub struct Run {
    /// Whom to tell; `None` without a ticket.
    pub sink: Option<Arc<dyn AckSink>>,
    /// Sequence of the first.
    pub first: u64,
    /// How many, at least 1.
    pub count: u32,
    /// Packet identifier of the first, see [`Ticket::identifier`]; those of the others follow.
    pub identifier: u16,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}+{}", self.sink.as_ref().map_or("plain", |_| "ticket"), self.first, self.count)
    }
}

/// Identity of a sink. The address alone: one type may have several vtables.
fn address(sink: &Arc<dyn AckSink>) -> usize {
    Arc::as_ptr(sink).cast::<()>() as usize
}

impl Run {
    /// A run of one.
    pub fn of(ticket: Option<&Ticket>) -> Self {
        Self {
            sink: ticket.map(|ticket| ticket.sink.clone()),
            first: ticket.map_or(0, |ticket| ticket.sequence),
            count: 1,
            identifier: ticket.map_or(0, |ticket| ticket.identifier),
        }
    }

    /// The packet identifier of its `index`th record.
    pub fn identifier(&self, index: u32) -> u16 {
        if self.identifier == 0 { 0 } else { self.identifier.wrapping_add(index as u16) }
    }

    /// Its records from `from` to before `to`.
    pub fn part(&self, from: u32, to: u32) -> Self {
        Self {
            sink: self.sink.clone(),
            first: self.first + u64::from(from),
            count: to - from,
            identifier: self.identifier(from),
        }
    }

    /// Whether the next record's ticket belongs to this run.
    pub fn continues_with(&self, ticket: Option<&Ticket>) -> bool {
        self.count < u32::MAX
            && match (&self.sink, ticket) {
                (None, None) => true,
                (Some(sink), Some(ticket)) => {
                    self.first + u64::from(self.count) == ticket.sequence
                        && self.identifier_follows(ticket.identifier)
                        && address(sink) == address(&ticket.sink)
                }
                _ => false,
            }
    }

    fn identifier_follows(&self, identifier: u16) -> bool {
        match self.identifier {
            0 => identifier == 0,
            first => u32::from(identifier) == u32::from(first) + self.count,
        }
    }

    /// The ticket of its `index`th record.
    pub fn ticket(&self, index: u32) -> Option<Ticket> {
        let sink = self.sink.clone()?;
        Some(Ticket { sink, sequence: self.first + u64::from(index), identifier: self.identifier(index) })
    }
}

/// How a batch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In Kafka.
    Success,
    /// Given up; all its records count as failed.
    Failed(ReasonCode),
    /// Too old: all its records count as dropped.
    Expired(ReasonCode),
    /// The producer was stopped with it: records with a ticket count as failed, those without as dropped.
    /// Those in a disk buffer stay there, and here they were never matched.
    Stopped(ReasonCode),
}

impl End {
    fn outcome(self) -> Outcome {
        match self {
            Self::Success => Outcome::Success,
            Self::Failed(reason) | Self::Expired(reason) | Self::Stopped(reason) => Outcome::Failed(reason),
        }
    }
}

/// Tickets of a batch's records in order; the module documentation lists the invariants.
#[derive(Debug)]
pub struct Obligations {
    /// `None` once they have ended.
    inbox: Option<Arc<PartitionInbox>>,
    runs: Vec<Run>,
    bytes: usize,
    /// When the first record came, where that matters.
    since: Option<Instant>,
    /// Where the records are on the disk.
    stored: Option<OnDisk>,
}

/// Records in a disk buffer.
#[derive(Debug, Clone)]
pub(super) struct OnDisk {
    /// Which buffer.
    pub(super) buffer: Arc<Buffer>,
    /// Their numbers, in record order.
    pub(super) numbers: Vec<Numbers>,
}

/// Contents of ended [`Obligations`].
pub(super) struct Dissolved {
    /// Where they count.
    pub(super) inbox: Arc<PartitionInbox>,
    /// In record order.
    pub(super) runs: Vec<Run>,
    /// Bytes that they count there.
    pub(super) bytes: usize,
    /// When the first record came, where that matters.
    pub(super) since: Option<Instant>,
    /// Their numbers on the disk.
    pub(super) numbers: Vec<Numbers>,
}

impl Obligations {
    pub(super) fn new(
        inbox: Arc<PartitionInbox>,
        runs: Vec<Run>,
        bytes: usize,
        since: Option<Instant>,
        stored: Option<OnDisk>,
    ) -> Self {
        Self { inbox: Some(inbox), runs, bytes, since, stored }
    }

    /// The records' numbers on the disk.
    pub fn numbers(&self) -> &[Numbers] {
        self.stored.as_ref().map_or(&[], |stored| &stored.numbers)
    }

    /// When the first record came, as far as it is known.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Records.
    pub fn records(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The runs in record order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Takes the first `records` records off, which are `bytes` of what is left.
    pub fn split_off_first(&mut self, records: u64, bytes: usize) -> Self {
        let first = split_runs(&mut self.runs, records);
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let stored = self.stored.as_mut().map(|stored| {
            let numbers = split_numbers(&mut stored.numbers, records);
            OnDisk { buffer: stored.buffer.clone(), numbers }
        });
        Self { inbox: self.inbox.clone(), runs: first, bytes, since: self.since, stored }
    }

    /// The end: moves the ledger, then tells each publisher once.
    pub fn end(mut self, end: End) {
        self.finish(end, true);
    }

    /// Hands the duties over, unfinished.
    pub(super) fn dissolve(mut self) -> Option<Dissolved> {
        let inbox = self.inbox.take()?;
        let runs = std::mem::take(&mut self.runs);
        let numbers = self.stored.take().map(|stored| stored.numbers).unwrap_or_default();
        Some(Dissolved { inbox, runs, bytes: self.bytes, since: self.since, numbers })
    }

    /// `known`: the fate of the records is; otherwise they stay on the disk, where they are there.
    fn finish(&mut self, end: End, known: bool) {
        let Some(inbox) = self.inbox.take() else { return };
        let mut runs = std::mem::take(&mut self.runs);
        let all: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        runs.retain(|run| run.sink.is_some());
        let with_ticket: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        let stays = self.stored.is_some() && matches!(end, End::Stopped(_));
        if let Some(stored) = self.stored.take()
            && known
            && !stays
        {
            stored.buffer.done(&stored.numbers);
        }
        if stays {
            inbox.leave(all, self.bytes);
        } else {
            inbox.settle(with_ticket, all - with_ticket, self.bytes, self.since, end);
        }
        tell(runs, end.outcome());
    }
}

/// Tells each publisher once. All runs have a sink.
pub(super) fn tell(mut runs: Vec<Run>, outcome: Outcome) {
    // Stable: a publisher's ranges stay in record order.
    runs.sort_by_key(|run| run.sink.as_ref().map(address));
    let mut ranges: Vec<SequenceRange> = Vec::new();
    for group in runs.chunk_by(|a, b| a.sink.as_ref().map(address) == b.sink.as_ref().map(address)) {
        ranges.clear();
        for run in group {
            match ranges.last_mut() {
                Some(last)
                    if last.first + u64::from(last.count) == run.first
                        && last.count.checked_add(run.count).is_some() =>
                {
                    last.count += run.count;
                }
                _ => ranges.push(SequenceRange { first: run.first, count: run.count }),
            }
        }
        if let Some(sink) = group.first().and_then(|run| run.sink.as_ref()) {
            sink.acknowledge(&ranges, outcome);
        }
    }
}

/// Takes the first `records` records off.
pub(super) fn split_runs(runs: &mut Vec<Run>, records: u64) -> Vec<Run> {
    let mut left = records;
    let whole = runs.iter().take_while(|run| {
        let fits = u64::from(run.count) <= left;
        left -= if fits { u64::from(run.count) } else { 0 };
        fits
    });
    let whole = whole.count();
    let mut first: Vec<Run> = runs.drain(..whole).collect();
    if let Some(run) = runs.first_mut().filter(|_| left > 0) {
        first.push(run.part(0, left as u32));
        *run = run.part(left as u32, run.count);
    }
    first
}

/// Takes the first `count` numbers off.
pub(super) fn split_numbers(numbers: &mut Vec<Numbers>, count: u64) -> Vec<Numbers> {
    let (mut first, mut left) = (Vec::new(), count);
    let mut rest = std::mem::take(numbers).into_iter();
    for range in rest.by_ref() {
        let taken = left.min(u64::from(range.count)) as u32;
        if taken > 0 {
            first.push(Numbers { first: range.first, count: taken });
        }
        left -= u64::from(taken);
        if taken < range.count {
            let count = range.count - taken;
            numbers.push(Numbers { first: range.first + u64::from(taken), count });
            break;
        }
    }
    numbers.extend(rest);
    first
}

impl Drop for Obligations {
    fn drop(&mut self) {
        self.finish(End::Failed(ReasonCode::UnspecifiedError), false);
    }
}
