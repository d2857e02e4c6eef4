//! An inbox with files: against one without, against a model while everything fails, and in single cases.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicUsize;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::*;
use super::*;
use crate::flow::{AckSink, SequenceRange};
use crate::kafka::spill::storage_double::StorageDouble;
use crate::kafka::spill::thread::ByHand;

#[derive(Default)]
struct Sleeper(AtomicUsize);

impl Wake for Sleeper {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Publisher(Mutex<BTreeMap<u64, Outcome>>);

impl AckSink for Publisher {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        for range in ranges {
            for sequence in range.first..range.first + u64::from(range.count) {
                assert!(self.0.lock().insert(sequence, outcome).is_none(), "{sequence} told twice");
            }
        }
    }
}

const BATCH: usize = 1000;
const MEMORY: usize = 10_000;

struct Rig {
    storage: Arc<StorageDouble>,
    hand: ByHand,
    sleeper: Arc<Sleeper>,
    inbox: Arc<PartitionInbox>,
    publisher: Arc<Publisher>,
    next: u64,
}

impl Rig {
    fn new(limits: InboxLimits, memory: usize) -> Self {
        let storage = Arc::<StorageDouble>::default();
        let hand = ByHand::new(storage.clone(), 3000);
        let sleeper = Arc::<Sleeper>::default();
        let spill = Some(SpillOptions { spill: hand.spill.clone(), memory });
        let inbox = PartitionInbox::new(InboxLimits { spill, ..limits }, sleeper.clone());
        Self { storage, hand, sleeper, inbox, publisher: Arc::default(), next: 0 }
    }

    fn plain() -> Self {
        Self::new(InboxLimits::new(100_000, BATCH), MEMORY)
    }

    /// A record that is named by its number, and has a ticket of that number where that is wanted.
    fn append(&mut self, ticket: bool, size: usize) -> Accepted {
        let (key, value) = (self.next.to_be_bytes(), vec![b'x'; size]);
        let record =
            Record { timestamp: 1_700_000_000_000, key: Some(&key), value: Some(&value), headers: &[] };
        let ticket = ticket.then(|| Ticket::new(self.publisher.clone(), self.next));
        self.next += 1;
        self.inbox.append(&record, ticket.as_ref(), &mut WakeList::default())
    }

    /// Appends records one by one, as fast as the thread takes them.
    fn fill(&mut self, records: usize, ticket: bool) {
        for _ in 0..records {
            assert!(matches!(self.append(ticket, 80), Accepted::Taken), "{:?}", self.inbox.ledger());
            self.work();
        }
    }

    /// Lets the thread do what it can.
    fn work(&mut self) {
        while self.hand.work(false) {}
    }

    /// As an idle line takes a batch: asks, and waits until it is told.
    fn take(&mut self) -> Option<Taken> {
        let woken = self.sleeper.0.load(Ordering::Relaxed);
        if !self.inbox.sleep_until(Some(1)) {
            self.work();
            if self.sleeper.0.load(Ordering::Relaxed) == woken || !self.inbox.sleep_until(Some(1)) {
                return None;
            }
        }
        self.inbox.take()
    }

    /// Takes everything, in order; the numbers of the records.
    fn drain(&mut self) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(taken) = self.take() {
            assert_eq!(taken.builder.count() as u64, taken.obligations.records());
            numbers.extend(self::numbers(&taken.builder));
            taken.obligations.end(End::Success);
        }
        numbers
    }

    fn waits_in_memory(&self) -> usize {
        in_memory(&self.inbox.ledger())
    }
}

fn numbers(builder: &BatchBuilder) -> Vec<u64> {
    let key = |record: RecordRef<'_>| u64::from_be_bytes(record.key.unwrap().try_into().unwrap());
    builder.records().map(|record| key(record.unwrap())).collect()
}

#[test]
fn what_is_beyond_the_memory_goes_to_files_and_comes_back_in_order() {
    let mut rig = Rig::plain();
    for _ in 0..500 {
        rig.fill(1, true);
        assert!(rig.waits_in_memory() <= MEMORY + 2 * BATCH, "{:?}", rig.inbox.ledger());
    }
    let books = rig.inbox.ledger();
    assert_eq!((books.queuing, books.imbalance()), (500, 0));
    assert!(books.queuing_in_files > 35_000 && rig.storage.files() > 10, "{books:?}");
    assert_eq!(rig.drain(), (0..500).collect::<Vec<_>>());
    let books = rig.inbox.ledger();
    assert_eq!((books.success, books.queuing, books.queuing_bytes, books.queuing_in_files), (500, 0, 0, 0));
    assert_eq!(rig.publisher.0.lock().values().filter(|told| **told == Outcome::Success).count(), 500);
    rig.work();
    assert_eq!(rig.storage.files(), 0, "files go with what was in them");
    // Memory again.
    let operations = rig.storage.operations();
    rig.fill(80, true);
    assert_eq!((rig.drain().len(), rig.storage.operations()), (80, operations));
}

#[test]
fn nothing_is_written_or_read_without_need() {
    let mut rig = Rig::plain();
    rig.fill(90, true);
    assert_eq!(rig.storage.operations(), 0, "it fits into the memory");
    rig.fill(210, true);
    let written = rig.storage.operations();
    rig.work();
    rig.inbox.sleep_until(None);
    rig.work();
    assert_eq!(rig.storage.operations(), written, "nobody takes anything: nothing is read");
    // Read ahead: the next ones are there before they are asked for.
    while rig.take().is_some_and(|taken| {
        taken.obligations.end(End::Success);
        rig.inbox.in_files() > 10_000
    }) {}
    rig.work();
    for _ in 0..4 {
        assert!(rig.inbox.sleep_until(Some(1)));
        rig.inbox.take().unwrap().obligations.end(End::Success);
    }
}

/// The same publications and takes, by one inbox with files and one without: all that can be seen is the
/// same.
#[test]
fn records_are_dropped_as_without_files() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let limit = rng.random_range(5_000..40_000);
        let mut with = Rig::new(InboxLimits::new(limit, BATCH), rng.random_range(1000..8000));
        let mut without = Rig::new(InboxLimits::new(limit, BATCH), usize::MAX);
        let tickets = rng.random_range(0..4);
        for step in 0..2000 {
            if rng.random_range(0..20) > 0 {
                let (ticket, size) = (rng.random_range(0..4) < tickets, rng.random_range(0..300));
                let answers = [with.append(ticket, size), without.append(ticket, size)];
                let named = answers.map(|answer| match answer {
                    Accepted::Taken => "taken".to_owned(),
                    Accepted::Done(outcome) => format!("{outcome:?}"),
                    Accepted::Full(_) => "full".to_owned(),
                });
                assert_eq!(named[0], named[1], "seed {seed}, step {step}: {:?}", with.inbox.ledger());
                with.work();
            } else {
                let taken = [with.take(), without.take()].map(|taken| {
                    taken.map(|taken| {
                        let numbers = numbers(&taken.builder);
                        taken.obligations.end(End::Success);
                        numbers
                    })
                });
                assert_eq!(taken[0], taken[1], "seed {seed}, step {step}");
            }
            let books = with.inbox.ledger();
            assert_eq!(books.imbalance(), 0);
            let comparable = Ledger { queuing_in_files: 0, ..books };
            assert_eq!(comparable, without.inbox.ledger(), "seed {seed}, step {step}");
        }
        assert_eq!(without.storage.operations(), 0);
        assert_eq!(with.drain(), without.drain(), "seed {seed}");
        assert_eq!(*with.publisher.0.lock(), *without.publisher.0.lock(), "seed {seed}");
    }
}

/// What the model does, also in the midst of a write or a read.
struct Modelled {
    rng: SmallRng,
    inbox: Arc<PartitionInbox>,
    publisher: Arc<Publisher>,
    next: u64,
    /// Number, whether it has a ticket.
    waiting: VecDeque<(u64, bool)>,
    under_way: Vec<(Taken, Vec<(u64, bool)>)>,
    dropped: u64,
    refused: u64,
    most_in_memory: usize,
}

impl Modelled {
    fn step(&mut self) {
        match self.rng.random_range(0..12) {
            0..=8 => self.append(),
            9 | 10 => self.take(),
            _ => self.end_one(),
        }
        let books = self.inbox.ledger();
        assert_eq!(books.imbalance(), 0, "{books:?}");
        assert!(books.queuing_in_files <= books.queuing_bytes, "{books:?}");
        assert!(in_memory(&books) <= self.most_in_memory, "{books:?}");
    }

    fn append(&mut self) {
        let (key, value) = (self.next.to_be_bytes(), vec![b'x'; self.rng.random_range(0..400)]);
        let record = Record {
            timestamp: self.rng.random_range(0..1 << 40),
            key: Some(&key),
            value: Some(&value),
            headers: &[],
        };
        let with = self.rng.random_range(0..3) > 0;
        let ticket = with.then(|| Ticket::new(self.publisher.clone(), self.next));
        match self.inbox.append(&record, ticket.as_ref(), &mut WakeList::default()) {
            Accepted::Taken => self.waiting.push_back((self.next, with)),
            Accepted::Full(_) => {
                assert!(with);
                self.refused += 1;
            }
            Accepted::Done(_) => {
                assert!(!with);
                self.dropped += 1;
            }
        }
        self.next += 1;
    }

    fn take(&mut self) {
        if !self.inbox.sleep_until(Some(1)) {
            return;
        }
        let taken = self.inbox.take().expect("what it has said is there");
        let mut records = Vec::new();
        for number in numbers(&taken.builder) {
            loop {
                let (next, with) =
                    self.waiting.pop_front().unwrap_or_else(|| panic!("{number} was not waiting"));
                if next == number {
                    records.push((next, with));
                    break;
                }
                assert!(!with, "{next} is missing or out of order: {number} came");
                self.dropped += 1;
            }
        }
        assert_eq!(taken.obligations.records(), records.len() as u64);
        self.under_way.push((taken, records));
    }

    fn end_one(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.under_way.len());
        let (taken, records) = self.under_way.swap_remove(index);
        let heard = |publisher: &Publisher| publisher.0.lock().len();
        let before = heard(&self.publisher);
        taken.obligations.end(End::Success);
        let with = records.iter().filter(|(_, with)| *with).count();
        assert_eq!(heard(&self.publisher) - before, with);
        for (number, _) in records.iter().filter(|(_, with)| *with) {
            assert_eq!(self.publisher.0.lock()[number], Outcome::Success, "told of the record that was sent");
        }
    }
}

/// Publications, takes and ends at random, also in the midst of writes and reads, which fail at random.
fn run_against_the_model(seed: u64) -> (u64, u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (memory, limit) = (rng.random_range(500..8000), rng.random_range(5_000..60_000));
    let mut rig = Rig::new(InboxLimits::new(limit, BATCH), memory);
    let spilling = Spilling::new(rig.inbox.state.lock().limits.spill.as_ref().unwrap(), BATCH);
    let model = Arc::new(Mutex::new(Modelled {
        rng: SmallRng::seed_from_u64(seed ^ 0xFF),
        inbox: rig.inbox.clone(),
        publisher: rig.publisher.clone(),
        next: 0,
        waiting: VecDeque::new(),
        under_way: Vec::new(),
        dropped: 0,
        refused: 0,
        // A record more, and what is read ahead.
        most_in_memory: spilling.memory + spilling.spare + spilling.ahead + 2 * BATCH,
    }));
    let within = model.clone();
    let mut meanwhile_rng = SmallRng::seed_from_u64(seed ^ 0xFFFF);
    rig.storage.meanwhile(move || {
        for _ in 0..meanwhile_rng.random_range(0..6) {
            within.lock().step();
        }
    });
    for _ in 0..3000 {
        match rng.random_range(0..20) {
            0 => rig.storage.set_room(Some(rng.random_range(0..4000))),
            1 => rig.storage.set_room(None),
            2 => rig.storage.fail_reads(rng.random_range(0..2) == 0),
            3..=9 => {
                rig.hand.work(rng.random_range(0..4) == 0);
            }
            _ => model.lock().step(),
        }
    }
    rig.storage.set_room(None);
    rig.storage.fail_reads(false);
    rig.storage.meanwhile(|| {});
    while rig.hand.work(true) {}
    // To the end: whoever waits is told.
    loop {
        model.lock().take();
        if rig.inbox.ledger().queuing == 0 {
            break;
        }
        if !rig.inbox.sleep_until(Some(1)) {
            assert!(rig.hand.work(true), "seed {seed}: nobody comes for {:?}", rig.inbox.ledger());
        }
    }
    let mut model = model.lock();
    while !model.under_way.is_empty() {
        model.end_one();
    }
    assert!(model.waiting.iter().all(|(_, with)| !with), "seed {seed}: lost");
    let books = rig.inbox.ledger();
    assert_eq!(
        books.dropped_queue_full,
        model.dropped + model.waiting.len() as u64,
        "seed {seed}: {books:?}"
    );
    assert_eq!((books.matched, books.failed), (model.next - model.refused, 0), "seed {seed}");
    assert_eq!(
        (books.queuing_bytes, books.queuing_in_files, books.inflight, rig.inbox.state.lock().held),
        (0, 0, 0, 0)
    );
    while rig.hand.work(true) {}
    assert!(rig.storage.files() <= 1, "seed {seed}");
    (rig.storage.operations(), books.success)
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order_whatever_fails() {
    let (mut operations, mut sent) = (0, 0);
    for seed in 0..100 {
        let (of, records) = run_against_the_model(seed);
        operations += of;
        sent += records;
    }
    assert!(operations > 10_000 && sent > 50_000, "{operations} {sent}: the model has become too timid");
}

#[test]
fn a_disk_that_takes_nothing_makes_publishers_wait_and_qos_0_give_way_and_comes_back() {
    let mut rig = Rig::plain();
    rig.storage.set_room(Some(0));
    let mut taken = 0;
    let room = loop {
        match rig.append(true, 80) {
            Accepted::Taken => taken += 1,
            Accepted::Full(room) => break room,
            Accepted::Done(_) => panic!("it was given up"),
        }
        rig.work();
    };
    assert!(rig.hand.spill.trouble().is_some());
    assert!(rig.waits_in_memory() > 2 * MEMORY - BATCH && rig.waits_in_memory() <= 2 * MEMORY);
    // Without a ticket there is nothing that may give way.
    assert!(matches!(rig.append(false, 80), Accepted::Done(Outcome::Failed(_))));
    let told = room.notified();
    tokio::pin!(told);
    told.as_mut().enable();
    rig.storage.set_room(None);
    while rig.hand.work(true) {}
    assert!(rig.hand.spill.trouble().is_none() && rig.inbox.in_files() > 0);
    // The room is announced: ready at the first look.
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(told, &mut context).is_ready());
    assert!(matches!(rig.append(true, 80), Accepted::Taken));
    assert_eq!(rig.drain().len(), taken + 1);
    assert_eq!((rig.inbox.ledger().dropped_queue_full, rig.inbox.ledger().imbalance()), (1, 0));
}

#[test]
fn while_the_disk_takes_nothing_the_oldest_in_memory_give_way_and_not_what_is_in_files() {
    let mut rig = Rig::plain();
    rig.fill(300, false);
    let in_files = rig.inbox.in_files();
    assert!(in_files > 0);
    rig.storage.set_room(Some(0));
    rig.fill(300, false);
    let books = rig.inbox.ledger();
    assert!(books.dropped_queue_full > 150 && books.queuing_in_files == in_files, "{books:?}");
    let numbers = rig.drain();
    assert!(numbers.is_sorted() && numbers.contains(&599));
    assert_eq!(numbers.len() as u64 + books.dropped_queue_full, 600);
}

#[test]
fn what_a_file_no_longer_has_counts_as_failed_and_is_told() {
    let mut rig = Rig::plain();
    rig.fill(300, true);
    rig.storage.lose();
    let sent = rig.drain();
    let books = rig.inbox.ledger();
    assert!(sent.len() >= 90 && books.failed >= 150, "{books:?}");
    assert_eq!((books.success + books.failed, books.queuing, books.imbalance()), (300, 0, 0));
    assert_eq!((books.success, books.queuing_in_files), (sent.len() as u64, 0));
    let told = rig.publisher.0.lock();
    for number in 0..300 {
        assert_eq!(told[&number] == Outcome::Success, sent.contains(&number));
    }
}

#[test]
fn few_that_must_stay_among_many_that_were_dropped_do_not_keep_the_disk() {
    let limits = InboxLimits::new(30_000, BATCH);
    let mut rig = Rig::new(limits, 3000);
    let mut rng = SmallRng::seed_from_u64(7);
    let mut kept = 0;
    for step in 0..20_000 {
        // Some of those that must stay find the room that a smaller newcomer has left.
        if step % 100 == 0 {
            kept += usize::from(matches!(rig.append(true, 20), Accepted::Taken));
        } else {
            let _ = rig.append(false, rng.random_range(0..300));
        }
        rig.work();
        assert!(rig.storage.bytes() < 4 * 30_000 + 9000, "{step}, {kept}: {} bytes", rig.storage.bytes());
    }
    assert!(kept > 60, "{kept}: too few to show anything");
    assert_eq!(rig.publisher.0.lock().len(), 0);
    assert!(rig.drain().is_sorted());
    assert_eq!(rig.publisher.0.lock().len(), kept);
}

#[test]
fn what_is_in_files_does_not_count_where_memory_is_shared_and_scarce_memory_is_used_up_later() {
    let budget = Budget::new(20_000);
    let node = NodeMemory::new(8 * share::BLOCK);
    let limits = InboxLimits {
        budget: Some(budget.clone()),
        node: Some(node.clone()),
        ..InboxLimits::new(1 << 20, BATCH)
    };
    // Its own memory would take all.
    let mut rig = Rig::new(limits, 1 << 20);
    rig.fill(4000, true);
    let books = rig.inbox.ledger();
    assert!(books.queuing_in_files > 300_000 && budget.used() <= 16_000, "{} {books:?}", budget.used());
    assert_eq!(budget.used(), rig.waits_in_memory());
    // Records in files cost what is kept of them.
    assert!(
        node.used() >= 4000 * share::RECORD
            && node.used() <= 4000 * share::RECORD + 20_000 + 2 * share::BLOCK
    );
    assert_eq!(rig.drain(), (0..4000).collect::<Vec<_>>());
    assert_eq!((budget.used(), node.used()), (0, 0));
}

#[test]
fn batches_in_files_move_to_another_inbox_as_they_are() {
    let mut rig = Rig::plain();
    rig.fill(300, true);
    let (in_files, operations) = (rig.inbox.in_files(), rig.storage.operations());
    let spill = Some(SpillOptions { spill: rig.hand.spill.clone(), memory: MEMORY });
    let others = [Some(()), None].map(|with| {
        let spill = spill.clone().filter(|_| with.is_some());
        PartitionInbox::new(InboxLimits { spill, ..InboxLimits::new(100_000, BATCH) }, rig.sleeper.clone())
    });
    for other in others {
        let from = std::mem::replace(&mut rig.inbox, other);
        while let Some(batch) = from.surrender() {
            rig.inbox.adopt_batch(batch);
        }
        let (left, books) = (from.ledger(), rig.inbox.ledger());
        assert_eq!(
            (left.matched, left.queuing_bytes, left.queuing_in_files, from.state.lock().held),
            (0, 0, 0, 0)
        );
        assert_eq!((books.queuing, books.queuing_in_files, books.imbalance()), (300, in_files, 0));
        assert_eq!(rig.storage.operations(), operations, "without being read");
    }
    // The last one has no files of its own.
    assert_eq!(rig.drain(), (0..300).collect::<Vec<_>>());
    assert_eq!(rig.inbox.ledger().success, 300);
    rig.work();
    assert_eq!(rig.storage.files(), 0);
}

#[test]
fn a_stop_ends_what_is_in_files_without_reading_it_and_a_burial_reads_it() {
    for records in [false, true] {
        let mut rig = Rig::new(InboxLimits::new(20_000, BATCH), 3000);
        rig.fill(100, true);
        for number in 0..300 {
            // Some are dropped before.
            assert!(matches!(rig.append(false, 80 + number % 2), Accepted::Taken));
            rig.work();
        }
        let operations = rig.storage.operations();
        let (mut seen, mut owed) = (0, 0);
        while let Some(taken) = rig.inbox.take_in_any_case(records) {
            let count = taken.obligations.records();
            assert!(taken.builder.is_empty() || taken.builder.count() as u64 == count);
            seen += taken.builder.count() as u64;
            owed += count;
            taken.obligations.end(End::Stopped(ReasonCode::UnspecifiedError));
        }
        let books = rig.inbox.ledger();
        assert_eq!((books.matched, books.queuing, books.inflight, books.imbalance()), (400, 0, 0, 0));
        assert_eq!((books.failed, books.failed + books.dropped_resource_stopped), (100, owed));
        assert!(books.dropped_queue_full > 0 && rig.inbox.state.lock().held == 0);
        assert_eq!((seen == owed, rig.storage.operations() > operations), (records, records));
        assert_eq!(rig.publisher.0.lock().len(), 100);
    }
}

#[test]
fn expired_batches_are_read_before_they_are_given_up() {
    let max_age = Duration::from_mins(1);
    let limits = InboxLimits { max_age: Some(max_age), ..InboxLimits::new(100_000, BATCH) };
    let mut rig = Rig::new(limits, 1000);
    rig.fill(100, true);
    let later = Instant::now() + 2 * max_age;
    let mut expired = 0;
    while rig.inbox.ledger().queuing > 0 {
        while let Some(taken) = rig.inbox.take_expired(later) {
            expired += taken.builder.count();
            taken.obligations.end(End::Expired(ReasonCode::UnspecifiedError));
        }
        if rig.inbox.ledger().queuing > 0 {
            assert_eq!(rig.inbox.next_expiry(), None, "who waits is told, and does not look again and again");
            let woken = rig.sleeper.0.load(Ordering::Relaxed);
            rig.work();
            assert!(rig.sleeper.0.load(Ordering::Relaxed) > woken);
        }
    }
    assert_eq!((expired, rig.inbox.ledger().dropped_expired), (100, 100));
}
