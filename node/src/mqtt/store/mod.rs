//! Stored sessions: what outlives a connection outlives the process.
//!
//! ```text
//! publisher --flush--> inboxes (deliveries get positions) --+
//! session   --acks, subscriptions, PUBREC, PUBREL-----------+--> Pending --> writer --> sessions.redb
//! router    --retained messages-----------------------------+      ^            |
//!                                                            tickets, hand-overs, sleepers <-- commit
//! ```
//!
//! One writer, on a thread of its own, takes everything that waits, writes it in one transaction with one
//! sync, and then completes what waited for it: tickets of publishers, hand-overs of Kafka records, and
//! connections that may now send PUBREL, PUBCOMP, SUBACK or a QoS 2 PUBLISH. While it writes, the next
//! batch collects: the slower the disk, the larger the batches.
//!
//! Invariants:
//! * What one turn of a connection publishes is in one transaction, with the QoS 2 identifiers it came with
//!   ([`Store::gate`]): a repetition after a crash finds both or none.
//! * Nothing is completed before the transaction that holds it is on the disk; after a failed sync nothing
//!   is completed any more.
//! * A batch is numbered before anything is put in: who puts something in and then reads
//!   [`Store::stamp`] knows a batch that is not earlier than its own.
//! * Bounded: beyond its capacity in bytes publishers with QoS 1 and 2 wait for room
//!   ([`Store::has_room`]). Acknowledgements are always taken; windows bound them. Retained messages that
//!   were replaced before they were written are not written.

mod books;
#[cfg(test)]
pub(crate) mod double;
mod file;
mod ranges;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

pub(crate) use books::Op;
pub use file::OpenError;
pub(crate) use file::{Loaded, LoadedSession};
use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use smallvec::SmallVec;
pub(crate) use v2::{Entry, Presence, Record, StoredWill, message_bytes, read_message};

use super::{memory::Memory, publication::Publication, stats::Stats};
use crate::flow::{AckSink, HandOver, Lives, Room, SequenceRange, Wake};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "sessions.redb";

/// Bytes that may wait for the disk before publishers are held: a second of a fast publisher, and less than
/// what a batch costs in memory beside.
pub(crate) const CAPACITY: usize = 32 << 20;

/// A smaller file is not worth shortening.
const COMPACT_FROM: u64 = 64 << 20;

/// Limits that tests want smaller.
#[derive(Clone, Copy)]
struct Tuning {
    /// Bytes that may wait for the disk.
    capacity: usize,
    /// A file of this many bytes that is mostly empty is shortened at the start.
    compact_from: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { capacity: CAPACITY, compact_from: COMPACT_FROM }
    }
}

/// Charge of an op without a message of its own.
const SMALL: usize = 64;

/// Sequences of one publisher.
type Ticket = (Arc<dyn AckSink>, SmallVec<[SequenceRange; 2]>);

/// Operations that wait for the writer.
#[derive(Default)]
struct Pending {
    ops: Vec<Op>,
    /// Retained messages that are new, by number.
    retained: HashMap<u64, Arc<Publication>>,
    unretained: Vec<u64>,
    tickets: Vec<Ticket>,
    hand_overs: Vec<Arc<HandOver>>,
    sleepers: Vec<Arc<dyn Wake>>,
    bytes: usize,
    /// A task waits for it.
    urgent: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.retained.is_empty() && self.unretained.is_empty() && !self.urgent
    }
}

/// Handle of the session store.
pub(crate) struct Store {
    gate: RwLock<()>,
    pending: Mutex<Pending>,
    work: Condvar,
    /// Number of the batch that collects.
    batch: AtomicU64,
    /// Number of the last batch on the disk.
    committed: AtomicU64,
    /// Bytes that are not on the disk yet.
    waiting: AtomicUsize,
    capacity: usize,
    room: Mutex<Option<Room>>,
    failed: AtomicBool,
    closed: AtomicBool,
    next_session: AtomicU64,
    next_message: AtomicU64,
    writer: Mutex<Option<JoinHandle<()>>>,
    stats: Arc<Stats>,
}

/// Keeps what is put in while it is held in one transaction.
pub(crate) struct Gate<'a> {
    store: &'a Store,
    _open: RwLockReadGuard<'a, ()>,
}

impl Gate<'_> {
    /// Puts in the rest of a turn: further changes, and the sequences that wait for all of it.
    pub(crate) fn finish(
        self,
        ops: impl Iterator<Item = Op>,
        publisher: &Arc<impl AckSink + 'static>,
        sequences: &[SequenceRange],
    ) {
        let mut pending = self.store.pending.lock();
        pending.ops.extend(ops);
        if !sequences.is_empty() {
            pending.tickets.push((publisher.clone(), SmallVec::from_slice(sequences)));
        }
        self.store.urge(&mut pending);
    }

    /// As [`Self::finish`], for a hand-over that waits for all of it.
    pub(crate) fn hand_over(self, ops: impl Iterator<Item = Op>, hand_over: Arc<HandOver>) {
        let mut pending = self.store.pending.lock();
        pending.ops.extend(ops);
        pending.hand_overs.push(hand_over);
        self.store.urge(&mut pending);
    }
}

impl Store {
    /// Opens the file at `path` and reads it, which blocks. Without `lives` it is taken for what the process
    /// before left.
    pub(crate) fn open(
        path: &Path,
        lives: Option<Lives>,
        memory: Memory,
        stats: Arc<Stats>,
    ) -> Result<(Arc<Self>, Loaded), OpenError> {
        Self::open_with(path, file::file_opener(path), Tuning::default(), lives, memory, stats)
    }

    fn open_with(
        path: &Path,
        opener: file::Opener,
        Tuning { capacity, compact_from }: Tuning,
        lives: Option<Lives>,
        memory: Memory,
        stats: Arc<Stats>,
    ) -> Result<(Arc<Self>, Loaded), OpenError> {
        // In the first transaction: no release of this life is on the disk before the disk names this life.
        let ops: Vec<Op> = lives.iter().map(|lives| Op::Life(lives.now)).collect();
        let pending = Pending { urgent: !ops.is_empty(), ops, ..Pending::default() };
        writer::start(path, opener, compact_from, lives, memory, |loaded| {
            Arc::new(Self {
                gate: RwLock::new(()),
                pending: Mutex::new(pending),
                work: Condvar::new(),
                batch: AtomicU64::new(1),
                committed: AtomicU64::new(0),
                waiting: AtomicUsize::new(0),
                capacity,
                room: Mutex::new(None),
                failed: AtomicBool::new(false),
                closed: AtomicBool::new(false),
                next_session: AtomicU64::new(loaded.next_session + 1),
                next_message: AtomicU64::new(loaded.next_message + 1),
                writer: Mutex::new(None),
                stats,
            })
        })
    }

    /// A number for a new session.
    pub(crate) fn new_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// A number for a message that more than one row refers to.
    pub(crate) fn new_message(&self) -> u64 {
        self.next_message.fetch_add(1, Ordering::Relaxed)
    }

    /// The number that the next message gets.
    pub(crate) fn next_message(&self) -> u64 {
        self.next_message.load(Ordering::Relaxed)
    }

    /// Opens a turn.
    pub(crate) fn gate(&self) -> Gate<'_> {
        Gate { store: self, _open: self.gate.read() }
    }

    /// The batch that collects now.
    pub(crate) fn stamp(&self) -> u64 {
        self.batch.load(Ordering::Acquire)
    }

    /// True when the batch of this number is on the disk.
    pub(crate) fn is_committed(&self, stamp: u64) -> bool {
        self.committed.load(Ordering::Acquire) >= stamp
    }

    /// True after an error that ends every promise.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// False while so much waits for the disk that publishers must wait.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Acquire) < self.capacity && !self.has_failed()
    }

    /// Notified when there is room again.
    pub(crate) fn room(&self) -> Room {
        self.room.lock().get_or_insert_with(Room::default).clone()
    }

    fn charge(&self, pending: &mut Pending, bytes: usize) {
        pending.bytes += bytes;
        self.waiting.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Adds a change without a waiting task: it is written soon.
    pub(crate) fn put(&self, op: Op) {
        let mut pending = self.pending.lock();
        let first = pending.is_empty();
        self.charge(&mut pending, SMALL);
        pending.ops.push(op);
        drop(pending);
        if first {
            self.work.notify_one();
        }
    }

    /// Puts in changes that `sleeper` waits for; the batch they are in.
    pub(crate) fn put_all_and_wake(
        &self,
        ops: impl Iterator<Item = Op>,
        sleeper: &Arc<impl Wake + 'static>,
    ) -> u64 {
        let mut pending = self.pending.lock();
        let before = pending.ops.len();
        pending.ops.extend(ops);
        let bytes = (pending.ops.len() - before) * SMALL;
        self.charge(&mut pending, bytes);
        pending.sleepers.push(sleeper.clone());
        let stamp = self.stamp();
        self.urge(&mut pending);
        stamp
    }

    /// Wakes `sleeper` when everything put in so far is on the disk; the batch it is in.
    pub(crate) fn wake_at(&self, sleeper: &Arc<impl Wake + 'static>) -> u64 {
        let mut pending = self.pending.lock();
        pending.sleepers.push(sleeper.clone());
        let stamp = self.stamp();
        self.urge(&mut pending);
        stamp
    }

    /// Puts in the deliveries of one session, and the hand-overs that wait for them.
    pub(crate) fn append(&self, ops: impl Iterator<Item = Op>, hand_over: Option<Arc<HandOver>>) {
        let mut pending = self.pending.lock();
        let first = pending.is_empty();
        let mut bytes = 0;
        pending.ops.extend(ops.inspect(|op| {
            bytes += match op {
                Op::Append { entry, .. } if entry.publication.number() == 0 => entry.publication.weight(),
                _ => SMALL,
            };
        }));
        self.charge(&mut pending, bytes);
        if let Some(hand_over) = hand_over {
            pending.hand_overs.push(hand_over);
            self.urge(&mut pending);
        } else if first {
            self.work.notify_one();
        }
    }

    /// A message is the retained one of its topic from now on (`new`), others are not any more. Called in
    /// the order in which it happens to a topic.
    pub(crate) fn retain(
        &self,
        new: Option<&Arc<Publication>>,
        old: impl Iterator<Item = u64>,
        hand_over: Option<&Arc<HandOver>>,
    ) {
        let mut pending = self.pending.lock();
        for number in old {
            if pending.retained.remove(&number).is_none() {
                pending.unretained.push(number);
            }
        }
        if let Some(new) = new {
            pending.retained.insert(new.number(), new.clone());
        }
        if let Some(hand_over) = hand_over {
            pending.hand_overs.push(hand_over.clone());
            self.urge(&mut pending);
        } else {
            self.work.notify_one();
        }
    }

    fn urge(&self, pending: &mut Pending) {
        if !pending.urgent {
            pending.urgent = true;
            self.work.notify_one();
        }
    }

    /// Writes what waits, closes the file and waits for that, which blocks.
    pub(crate) fn close_and_wait(&self) {
        self.close();
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the writer of the stored sessions panicked");
        }
    }

    /// Writes what waits and closes the file, soon.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Under the lock: the writer either sees it or sleeps already.
        let pending = self.pending.lock();
        self.work.notify_one();
        drop(pending);
    }
}
