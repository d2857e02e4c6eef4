//! From a record to the inbox it belongs in.
//!
//! A [`Routes`] is what publishers see of a topic producer: the current [`Route`], swapped as a whole. While
//! the number of partitions is unknown, or is about to change under a keyed partitioner, all records go to
//! one *staging* inbox, and from there in order to their partitions.
//!
//! How order per key survives a change of the number of partitions: (1) the route leads to staging, and the
//! old partitions admit no record any more; (2) the old partitions finish what they hold; (3) what gathered
//! in staging moves, in order, to the partitions by the new number, and the route leads there. Where (2)
//! takes too long, staging moves back to the old partitions, which is in order too, and the change is tried
//! again later.
//!
//! Invariants:
//! * A publisher whose route is out of date is turned back by the inbox (generations) and loads the new one:
//!   nothing is appended behind a move.
//! * Moves and sums of ledgers exclude each other, so that a record on its way between inboxes is
//!   never missing in the books.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use causeway_protocol::kafka::batch::{BatchBuilder, Record, RecordRef};
use causeway_protocol::kafka::partitioner::KeyHash;
use causeway_protocol::mqtt::ReasonCode;
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::inbox::{InboxLimits, MovedBatch, PartitionInbox, Redirected, Stored, Taken, answered_ticket};
use super::obligations::Obligations;
use super::partition_producer::{Partition, PartitionMessage};
use crate::flow::ledger::Ledger;
use crate::flow::{Accepted, Ticket, Wake, WakeList};
use crate::kafka::buffer::Seal;

/// How a record finds its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// Any partition whose leader is up, the same one until its batch is taken.
    Random,
    /// Kafka's hash of the key, as Java producers do. A record without key goes anywhere.
    Murmur2,
    /// Erlang's hash of the key, as EMQX does. A record without key goes anywhere.
    Phash2,
}

impl Partitioner {
    fn hash(self) -> Option<KeyHash> {
        match self {
            Self::Random => None,
            Self::Murmur2 => Some(KeyHash::Murmur2),
            Self::Phash2 => Some(KeyHash::Phash2),
        }
    }

    /// Whether a key decides.
    pub fn is_keyed(self) -> bool {
        self.hash().is_some()
    }
}

/// A batch move is done in steps of one batch as long as publishers keep adding; after this many the rest
/// moves in one go, with publishers waiting.
const STEPS: usize = 4096;

/// Bytes after which the sticky partition changes although its batch was not taken.
const STICKY_BYTES: usize = 1024 * 1024;

struct Route {
    generation: u64,
    /// Empty: to staging.
    partitions: Vec<Arc<Partition>>,
}

/// The partition that records without a deciding key go to for now.
#[derive(Default)]
struct Sticky {
    index: AtomicUsize,
    /// Its inbox's count of taken batches when it was chosen.
    taken: AtomicU64,
    bytes: AtomicUsize,
}

/// Distribution of records over the partitions of a topic.
pub struct Routes {
    partitioner: Partitioner,
    limits: InboxLimits,
    route: ArcSwap<Route>,
    sticky: Sticky,
    pub(super) staging: Arc<PartitionInbox>,
    /// All partitions, those that the route does not lead to included.
    partitions: RwLock<Vec<Arc<Partition>>>,
    /// Books of partitions that are gone.
    gone: Mutex<Ledger>,
    /// Counts of records that were under way before a restart and have no partition yet.
    waiting: Mutex<Ledger>,
    moving: RwLock<()>,
    closed: RwLock<Option<ReasonCode>>,
}

/// Staging has no sleeper: it is emptied by the task that changes the route.
struct NoSleeper;

impl Wake for NoSleeper {
    fn wake(&self) {}
}

impl Routes {
    /// A route to staging.
    pub fn new(partitioner: Partitioner, limits: InboxLimits) -> Self {
        let staging = PartitionInbox::new(limits.clone(), Arc::new(NoSleeper));
        staging.admit_only(1);
        Self {
            partitioner,
            limits,
            route: ArcSwap::from_pointee(Route { generation: 1, partitions: Vec::new() }),
            sticky: Sticky::default(),
            staging,
            partitions: RwLock::default(),
            gone: Mutex::default(),
            waiting: Mutex::default(),
            moving: RwLock::default(),
            closed: RwLock::default(),
        }
    }

    /// Appends a record to the inbox it belongs in.
    pub fn append(&self, record: &Record<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        loop {
            let route = self.route.load();
            if let Ok(accepted) = self.append_by(&route, record, ticket, wakes) {
                return accepted;
            }
            // The route is being changed under this lock: wait until it is done.
            drop(route);
            drop(self.moving.read());
        }
    }

    fn append_by(
        &self,
        route: &Route,
        record: &Record<'_>,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Result<Accepted, Redirected> {
        if route.partitions.is_empty() {
            return self.staging.append_routed(route.generation, record, ticket, wakes);
        }
        let by_key = self.partitioner.hash().zip(record.key);
        let by_key = by_key.and_then(|(hash, key)| hash.partition(key, route.partitions.len() as u32));
        if let Some(partition) = by_key.and_then(|index| route.partitions.get(index as usize)) {
            return partition.inbox.append_routed(route.generation, record, ticket, wakes);
        }
        let mut refused = None;
        // A full inbox is no reason to turn a record away that may go anywhere; a few looks are enough.
        for turn in 0..route.partitions.len().min(8) {
            let Some(partition) = self.sticky_partition(route, record, turn > 0) else { break };
            match partition.inbox.append_routed(route.generation, record, ticket, wakes)? {
                Accepted::Full(room) => refused = Some(room),
                accepted => return Ok(accepted),
            }
        }
        refused.map(Accepted::Full).ok_or(Redirected)
    }

    fn sticky_partition<'a>(
        &self,
        route: &'a Route,
        record: &Record<'_>,
        leave: bool,
    ) -> Option<&'a Arc<Partition>> {
        let sticky = &self.sticky;
        let size = record.value.map_or(0, <[u8]>::len);
        if let Some(partition) = route.partitions.get(sticky.index.load(Ordering::Relaxed))
            && !leave
            && partition.up.load(Ordering::Relaxed)
            && partition.inbox.taken() == sticky.taken.load(Ordering::Relaxed)
            && sticky.bytes.fetch_add(size, Ordering::Relaxed) < STICKY_BYTES
        {
            return Some(partition);
        }
        let count = route.partitions.len();
        let start = rand::random_range(0..count);
        let candidates = || (start..start + count).map(|index| index % count);
        let is_up = |index: &usize| {
            route.partitions.get(*index).is_some_and(|partition| partition.up.load(Ordering::Relaxed))
        };
        let index = candidates().find(is_up).unwrap_or(start);
        let partition = route.partitions.get(index)?;
        sticky.taken.store(partition.inbox.taken(), Ordering::Relaxed);
        sticky.bytes.store(size, Ordering::Relaxed);
        sticky.index.store(index, Ordering::Relaxed);
        Some(partition)
    }

    /// A new inbox for a partition that is about to be added.
    pub fn new_inbox(&self, partition: i32, sleeper: Arc<dyn Wake>) -> Arc<PartitionInbox> {
        let mut limits = self.limits.clone();
        if let Some(store) = &mut limits.store {
            store.place.partition = partition;
        }
        PartitionInbox::new(limits, sleeper)
    }

    /// A record of before a restart, which is durable under this number: it goes wherever records go now.
    pub fn restore(&self, record: &RecordRef<'_>, number: u64) {
        self.staging.append_moved(record, Some(&answered_ticket(0)), Stored::Durable(number), None);
    }

    /// So many of the records that were restored may be in Kafka already.
    pub fn note_possible_duplicates(&self, records: u64) {
        self.staging.note_possible_duplicates(records);
    }

    /// So many records were under way before a restart, and wait for their partition.
    pub fn wait_for_partition(&self, records: u64) {
        let mut waiting = self.waiting.lock();
        waiting.matched += records;
        waiting.queuing += records;
    }

    /// These have it now, and count there.
    pub fn found_partition<T>(&self, records: u64, count: impl FnOnce() -> T) -> T {
        let _exclusive = self.moving.write();
        let mut waiting = self.waiting.lock();
        waiting.matched -= records;
        waiting.queuing -= records;
        count()
    }

    /// A batch of before a restart whose partition will never be known, to end it.
    pub(super) fn take_waiting(&self, seal: &Seal, builder: BatchBuilder) -> Taken {
        let count = || self.staging.resume(&builder, seal.numbers.clone());
        let obligations = self.found_partition(seal.records(), count);
        Taken { builder, obligations, expires_at: None }
    }

    /// Records move while no round of the disk buffer takes place.
    fn pause(&self) -> Option<MutexGuard<'_, ()>> {
        self.limits.store.as_ref().map(|store| store.buffer.pause())
    }

    /// Adds partitions, without leading anything to them yet.
    pub fn add(&self, partitions: impl IntoIterator<Item = Arc<Partition>>) {
        let mut all = self.partitions.write();
        for partition in partitions {
            if let Some(reason) = *self.closed.read() {
                partition.inbox.close(reason);
            }
            all.push(partition);
        }
    }

    /// All partitions.
    pub fn partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().clone()
    }

    /// Leads everything to staging; the partitions admit no record until [`Self::lead_to`].
    pub fn lead_to_staging(&self) {
        let _exclusive = self.moving.write();
        let _pause = self.pause();
        let generation = self.route.load().generation + 1;
        self.staging.admit_only(generation);
        self.route.store(Arc::new(Route { generation, partitions: Vec::new() }));
        for partition in &*self.partitions.read() {
            partition.inbox.admit_only(0);
        }
    }

    /// Whether there are partitions, and the route leads to staging all the same.
    pub fn is_interrupted(&self) -> bool {
        let _no_move = self.moving.read();
        self.route.load().partitions.is_empty() && !self.partitions.read().is_empty()
    }

    /// Moves what is in staging to these partitions, in order, and leads everything there.
    pub fn lead_to(&self, partitions: &[Arc<Partition>]) {
        if partitions.is_empty() {
            return;
        }
        for step in 0..STEPS {
            let _exclusive = self.moving.write();
            let _pause = self.pause();
            let Some(batch) = self.staging.surrender() else { break };
            self.place(partitions, batch, step);
        }
        let exclusive = self.moving.write();
        let pause = self.pause();
        let generation = self.route.load().generation + 1;
        self.staging.admit_only(0);
        let mut step = 0;
        while let Some(batch) = self.staging.surrender() {
            self.place(partitions, batch, step);
            step += 1;
        }
        for partition in partitions {
            partition.inbox.admit_only(generation);
        }
        self.route.store(Arc::new(Route { generation, partitions: partitions.to_vec() }));
        drop((pause, exclusive));
        for partition in partitions {
            partition.actor.tell(PartitionMessage::Wake);
        }
    }

    /// As the first part of [`Self::lead_to`], for what of staging is in files: that takes its time, and
    /// blocks no publisher. False where it cannot be read and is not waited for any more.
    pub async fn bring_in(&self, partitions: &[Arc<Partition>]) -> bool {
        // Publishers may add to the files meanwhile; what is left after these steps is read with them
        // waiting.
        let most = usize::try_from(self.staging.in_files()).unwrap_or(usize::MAX).saturating_add(STEPS);
        for step in 0..most {
            if self.staging.in_files() == 0 || partitions.is_empty() {
                break;
            }
            if !self.staging.front_in_memory().await {
                return false;
            }
            let _exclusive = self.moving.write();
            let _pause = self.pause();
            let Some(batch) = self.staging.surrender() else { break };
            self.place(partitions, batch, step);
        }
        true
    }

    fn place(&self, partitions: &[Arc<Partition>], mut batch: MovedBatch, step: usize) {
        let count = partitions.len();
        let Some(anywhere) = partitions.get(step % count.max(1)) else { return };
        let Some(hash) = self.partitioner.hash() else {
            anywhere.inbox.adopt_batch(batch);
            return;
        };
        if !batch.read_back() {
            anywhere.inbox.adopt_lost(batch);
            return;
        }
        // They have been waiting since then, wherever they go.
        let since = batch.since();
        batch.for_each(|record, ticket, stored| {
            let index = record.key.and_then(|key| hash.partition(key, count as u32));
            let partition = index.and_then(|index| partitions.get(index as usize)).unwrap_or(anywhere);
            partition.inbox.append_moved(record, ticket, stored, since);
        });
    }

    /// Takes partitions from `count` on away: the route leads to the others, their books stay in the sum.
    /// They are the caller's to end.
    pub fn cut_to(&self, count: usize) -> Vec<Arc<Partition>> {
        let exclusive = self.moving.write();
        let pause = self.pause();
        let all = self.partitions.write();
        let lost: Vec<Arc<Partition>> = all.iter().skip(count).cloned().collect();
        let kept: Vec<Arc<Partition>> = all.iter().take(count).cloned().collect();
        let generation = self.route.load().generation + 1;
        for partition in &lost {
            partition.inbox.admit_only(0);
        }
        for partition in &kept {
            partition.inbox.admit_only(generation);
        }
        self.route.store(Arc::new(Route { generation, partitions: kept.clone() }));
        drop((all, pause, exclusive));
        for partition in &kept {
            partition.actor.tell(PartitionMessage::Wake);
        }
        lost
    }

    /// Gives a batch that was in flight for a lost partition to another one.
    pub(super) fn rehome(&self, builder: BatchBuilder, obligations: Obligations, to: &Partition) {
        let _exclusive = self.moving.write();
        let _pause = self.pause();
        if let Some(batch) = MovedBatch::of_flight(builder, obligations) {
            to.inbox.adopt_batch(batch);
        }
    }

    /// Gives what waits for a lost partition to another one.
    pub(super) fn rehome_waiting(&self, from: &PartitionInbox, to: &Partition) {
        let _exclusive = self.moving.write();
        let _pause = self.pause();
        while let Some(batch) = from.surrender() {
            to.inbox.adopt_batch(batch);
        }
    }

    /// Gives what a lost partition held and what no key binds to it to another one; the rest stays, in order.
    /// `under_way` came out of the inbox of the lost one.
    pub(super) fn rehome_keyless(
        &self,
        under_way: Vec<(BatchBuilder, Obligations)>,
        from: &PartitionInbox,
        to: &Partition,
    ) {
        let _exclusive = self.moving.write();
        let _pause = self.pause();
        let under_way =
            under_way.into_iter().filter_map(|(records, owed)| MovedBatch::of_flight(records, owed));
        let held: Vec<MovedBatch> = under_way.chain(std::iter::from_fn(|| from.surrender())).collect();
        for mut batch in held {
            if !batch.read_back() {
                from.adopt_lost(batch);
                continue;
            }
            let since = batch.since();
            batch.for_each(|record, ticket, stored| {
                let inbox = if record.key.is_some() { from } else { &to.inbox };
                inbox.append_moved(record, ticket, stored, since);
            });
        }
    }

    /// Forgets partitions that have ended; only their books stay.
    pub fn forget(&self, lost: &[Arc<Partition>]) {
        let _exclusive = self.moving.write();
        let mut all = self.partitions.write();
        all.retain(|partition| {
            let is_lost = lost.iter().any(|lost| Arc::ptr_eq(lost, partition));
            if is_lost {
                *self.gone.lock() += partition.inbox.ledger();
            }
            !is_lost
        });
    }

    /// The books of the whole topic.
    pub fn ledger(&self) -> Ledger {
        let _no_move = self.moving.read();
        let mut sum = self.staging.ledger();
        sum += *self.gone.lock();
        sum += *self.waiting.lock();
        for partition in &*self.partitions.read() {
            sum += partition.inbox.ledger();
        }
        sum
    }

    /// Counts of records that wait in no partition's inbox.
    pub fn staged(&self) -> Ledger {
        self.staging.ledger()
    }

    /// Refuses every record from now on with this reason.
    pub fn close(&self, reason: ReasonCode) {
        let _exclusive = self.moving.write();
        *self.closed.write() = Some(reason);
        self.staging.close(reason);
        for partition in &*self.partitions.read() {
            partition.inbox.close(reason);
            // It may be waiting for more.
            partition.actor.wake();
        }
    }

    /// Resolves when nothing waits and nothing is in flight anywhere.
    pub async fn idle(&self) {
        loop {
            self.staging.idle().await;
            let partitions = self.partitions();
            for partition in &partitions {
                partition.inbox.idle().await;
            }
            let busy = {
                let _no_move = self.moving.read();
                self.staging.is_busy()
                    || self.partitions.read().iter().any(|partition| partition.inbox.is_busy())
            };
            if !busy {
                return;
            }
        }
    }

    /// Takes the oldest batch out of staging, to end it: see [`PartitionInbox::take_in_any_case`].
    pub fn take_staged(&self, records: bool) -> Option<Taken> {
        let _no_move = self.moving.read();
        self.staging.take_in_any_case(records)
    }

    /// As [`Self::take_staged`], if all of its records are too old.
    pub fn take_expired(&self, now: Instant) -> Option<Taken> {
        let _no_move = self.moving.read();
        self.staging.take_expired(now)
    }
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").field("partitioner", &self.partitioner).finish_non_exhaustive()
    }
}
