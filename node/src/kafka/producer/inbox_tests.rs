//! The inbox against a plain model: a list of records, each with its ticket, and numbers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicUsize;

use causeway_protocol::kafka::batch::Header;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::flow::{AckSink, SequenceRange};
use crate::kafka::buffer::disk_double::Double;

#[derive(Default)]
struct Sleeper(AtomicUsize);

impl Wake for Sleeper {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Publisher {
    told: Mutex<BTreeMap<u64, Outcome>>,
    calls: AtomicUsize,
}

impl AckSink for Publisher {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        for range in ranges {
            for sequence in range.first..range.first + u64::from(range.count) {
                assert!(self.told.lock().insert(sequence, outcome).is_none(), "{sequence} told twice");
            }
        }
    }
}

fn record<'a>(key: &'a [u8], value: &'a [u8]) -> Record<'a> {
    Record { timestamp: 1_700_000_000_000, key: Some(key), value: Some(value), headers: &[] }
}

fn ticket(sink: &Arc<Publisher>, sequence: u64) -> Ticket {
    Ticket::new(sink.clone(), sequence)
}

fn inbox(bytes: usize, batch_bytes: usize) -> (Arc<PartitionInbox>, Arc<Sleeper>) {
    let sleeper = Arc::new(Sleeper::default());
    (PartitionInbox::new(InboxLimits::new(bytes, batch_bytes), sleeper.clone()), sleeper)
}

#[derive(Clone, Debug)]
struct Modelled {
    id: u64,
    /// Which publisher and sequence.
    ticket: Option<(usize, u64)>,
    bytes: usize,
}

/// One seed: random publications, takes and ends; after each the books are compared.
fn run_against_the_model(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let limit = rng.random_range(200..4000);
    let (inbox, _sleeper) = inbox(limit, rng.random_range(100..1500));
    let publishers: Vec<Arc<Publisher>> = (0..3).map(|_| Arc::new(Publisher::default())).collect();
    let mut next = [0u64; 3];
    let mut waiting: VecDeque<Modelled> = VecDeque::new();
    let mut under_way: Vec<(Taken, Vec<Modelled>)> = Vec::new();
    let mut ended: Vec<Modelled> = Vec::new();
    let mut wanted = Ledger::default();
    for id in 0..400u64 {
        let mut wakes = WakeList::default();
        match rng.random_range(0..10) {
            0..=6 => {
                let value = vec![b'x'; rng.random_range(0..120)];
                let key = id.to_be_bytes();
                let record = Record { timestamp: rng.random_range(0..1 << 40), ..record(&key, &value) };
                let who = rng.random_range(0..3);
                let with = rng.random_range(0..3) > 0;
                let offered = with.then(|| ticket(&publishers[who], next[who]));
                let most = BatchBuilder::encoded_len(&record);
                let held: usize = waiting.iter().map(|record| record.bytes).sum::<usize>()
                    + under_way
                        .iter()
                        .flat_map(|(_, records)| records)
                        .map(|record| record.bytes)
                        .sum::<usize>();
                let before = inbox.ledger();
                match inbox.append(&record, offered.as_ref(), &mut wakes) {
                    Accepted::Taken => {
                        let mut held = held;
                        while held + most > limit {
                            let oldest = waiting.iter().position(|record| record.ticket.is_none());
                            let dropped = waiting.remove(oldest.expect("something to drop")).expect("it");
                            held -= dropped.bytes;
                            wanted.dropped_queue_full += 1;
                            wanted.queuing -= 1;
                            wanted.queuing_bytes -= dropped.bytes as u64;
                        }
                        wanted.matched += 1;
                        wanted.queuing += 1;
                        let bytes = (inbox.ledger().queuing_bytes - wanted.queuing_bytes) as usize;
                        assert!(bytes > 0 && bytes <= most);
                        wanted.queuing_bytes += bytes as u64;
                        let ticket = with.then(|| (who, next[who]));
                        waiting.push_back(Modelled { id, ticket, bytes });
                        next[who] += u64::from(with);
                    }
                    Accepted::Full(_) => {
                        assert!(with && held + most > limit);
                        assert_eq!(inbox.ledger(), before, "a refusal leaves a trace");
                    }
                    Accepted::Done(outcome) => {
                        assert!(!with && outcome != Outcome::Success);
                        let plain = waiting.iter().filter(|record| record.ticket.is_none());
                        let (records, bytes) = plain.fold((0, 0), |sum, it| (sum.0 + 1, sum.1 + it.bytes));
                        assert!(held - bytes + most > limit, "dropped though there was room");
                        waiting.retain(|record| record.ticket.is_some());
                        wanted.matched += 1;
                        wanted.dropped_queue_full += 1 + records;
                        wanted.queuing -= records;
                        wanted.queuing_bytes -= bytes as u64;
                    }
                }
            }
            7 | 8 => {
                if let Some(taken) = inbox.take() {
                    let count = taken.builder.count();
                    let records: Vec<Modelled> = waiting.drain(..count).collect();
                    for (read, modelled) in taken.builder.records().zip(&records) {
                        assert_eq!(read.unwrap().key, Some(&modelled.id.to_be_bytes()[..]));
                    }
                    assert_eq!(taken.obligations.records(), count as u64);
                    wanted.queuing -= count as u64;
                    wanted.queuing_bytes -= records.iter().map(|record| record.bytes as u64).sum::<u64>();
                    wanted.inflight += count as u64;
                    under_way.push((taken, records));
                } else {
                    assert!(waiting.is_empty());
                }
            }
            _ => {
                if !under_way.is_empty() {
                    let (taken, records) = under_way.swap_remove(rng.random_range(0..under_way.len()));
                    let count = records.len() as u64;
                    let plain = records.iter().filter(|record| record.ticket.is_none()).count() as u64;
                    wanted.inflight -= count;
                    let end = match rng.random_range(0..3) {
                        0 => {
                            wanted.success += count;
                            End::Success
                        }
                        1 => {
                            wanted.failed += count;
                            End::Failed(ReasonCode::QuotaExceeded)
                        }
                        _ => {
                            wanted.failed += count - plain;
                            wanted.dropped_resource_stopped += plain;
                            End::Stopped(ReasonCode::UnspecifiedError)
                        }
                    };
                    let mut obligations = taken.obligations;
                    if count > 1 {
                        let first = rng.random_range(1..count);
                        obligations.split_off_first(first, 10).end(end);
                    }
                    obligations.end(end);
                    ended.extend(records);
                }
            }
        }
        let ledger = inbox.ledger();
        assert_eq!(ledger.imbalance(), 0);
        assert_eq!(ledger, wanted);
    }
    for (taken, records) in under_way {
        drop(taken);
        ended.extend(records);
    }
    for record in ended {
        if let Some((who, sequence)) = record.ticket {
            assert!(publishers[who].told.lock().remove(&sequence).is_some(), "{record:?} not told");
        }
    }
    assert!(publishers.iter().all(|publisher| publisher.told.lock().is_empty()), "told without an end");
    assert_eq!(inbox.ledger().imbalance(), 0);
}

#[test]
fn the_inbox_does_what_the_model_does() {
    for seed in 0..1500 {
        let result = std::panic::catch_unwind(|| run_against_the_model(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

/// W1
#[test]
fn a_publisher_is_told_of_a_batch_in_one_call() {
    let (inbox, _) = inbox(1 << 20, 1 << 20);
    let (one, two) = (Arc::new(Publisher::default()), Arc::new(Publisher::default()));
    let mut wakes = WakeList::default();
    for sequence in 0..100 {
        inbox.append(&record(b"k", b"v"), Some(&ticket(&one, sequence)), &mut wakes);
        inbox.append(&record(b"k", b"v"), Some(&ticket(&two, sequence)), &mut wakes);
    }
    inbox.take().expect("a batch").obligations.end(End::Success);
    for publisher in [one, two] {
        assert_eq!(publisher.told.lock().len(), 100);
        assert_eq!(publisher.calls.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn the_sleeper_is_woken_once_and_only_when_enough_waits() {
    let (inbox, sleeper) = inbox(1 << 20, 1 << 20);
    let append = || {
        let mut wakes = WakeList::default();
        inbox.append(&record(b"k", &[0; 90]), None, &mut wakes);
    };
    append();
    assert_eq!(sleeper.0.load(Ordering::Relaxed), 0, "nobody sleeps yet");
    assert!(inbox.sleep_until(Some(1)), "something waits already");
    assert!(!inbox.sleep_until(Some(1000)));
    for _ in 0..5 {
        append();
    }
    assert_eq!(sleeper.0.load(Ordering::Relaxed), 0);
    for _ in 0..50 {
        append();
    }
    assert_eq!(sleeper.0.load(Ordering::Relaxed), 1);
    assert!(!inbox.sleep_until(None));
    append();
    assert_eq!(sleeper.0.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn whoever_was_refused_is_notified_when_space_is_freed() {
    let (inbox, _) = inbox(300, 300);
    let publisher = Arc::new(Publisher::default());
    let mut wakes = WakeList::default();
    let refused = (0..).find_map(|sequence| {
        let accepted = inbox.append(&record(b"k", &[0; 50]), Some(&ticket(&publisher, sequence)), &mut wakes);
        if let Accepted::Full(room) = accepted { Some(room) } else { None }
    });
    let room = refused.expect("a full inbox");
    inbox.take().expect("a batch").obligations.end(End::Success);
    // Freed before anybody waited: the permit is kept.
    tokio::time::timeout(std::time::Duration::from_secs(5), room.notified()).await.expect("notified");
}

/// L8
#[test]
fn a_record_larger_than_the_limit_is_refused_and_counted() {
    let (inbox, _) = inbox(100, 1000);
    let publisher = Arc::new(Publisher::default());
    let mut wakes = WakeList::default();
    let large = [0; 200];
    for ticket in [Some(ticket(&publisher, 0)), None] {
        let accepted = inbox.append(&record(b"k", &large), ticket.as_ref(), &mut wakes);
        assert!(matches!(accepted, Accepted::Done(Outcome::Failed(ReasonCode::QuotaExceeded))));
    }
    let ledger = inbox.ledger();
    assert_eq!((ledger.matched, ledger.failed, ledger.dropped_queue_full), (2, 1, 1));
    assert_eq!(ledger.imbalance(), 0);
}

/// W2
#[test]
fn a_record_larger_than_a_batch_travels_alone() {
    let (inbox, _) = inbox(1 << 20, 200);
    let mut wakes = WakeList::default();
    for size in [10, 500, 10] {
        inbox.append(&record(b"k", &vec![0; size]), None, &mut wakes);
    }
    let sizes: Vec<usize> = std::iter::from_fn(|| inbox.take()).map(|taken| taken.builder.count()).collect();
    assert_eq!(sizes, [1, 1, 1]);
}

#[test]
fn memory_is_given_back_when_most_of_a_batch_is_dropped() {
    let (inbox, _) = inbox(64 * 1024, 16 * 1024);
    let publisher = Arc::new(Publisher::default());
    let mut wakes = WakeList::default();
    for sequence in 0..20_000 {
        // One record in a hundred has a ticket and stays.
        let with = sequence % 100 == 0;
        let ticket = with.then(|| ticket(&publisher, sequence / 100));
        inbox.append(&record(b"k", &[0; 100]), ticket.as_ref(), &mut wakes);
    }
    let state = inbox.state.lock();
    let memory: usize = state.segments.iter().map(|segment| segment.builder.capacity()).sum();
    assert!(memory < 3 * 64 * 1024, "{memory} bytes for a limit of {}", 64 * 1024);
    assert!(state.held <= 64 * 1024);
}

#[test]
fn a_batch_moves_to_another_inbox_with_its_tickets_and_books() {
    let (from, _) = inbox(1 << 20, 1 << 20);
    let (to, _) = inbox(1 << 20, 1 << 20);
    let publisher = Arc::new(Publisher::default());
    let mut wakes = WakeList::default();
    let headers = [Header { key: "h", value: Some(b"v") }];
    for sequence in 0..10 {
        let ticket = (sequence % 2 == 0).then(|| ticket(&publisher, sequence / 2));
        let record = Record { headers: &headers, ..record(b"k", b"v") };
        from.append(&record, ticket.as_ref(), &mut wakes);
    }
    let batch = from.surrender().expect("a batch");
    assert_eq!(from.ledger(), Ledger::default());
    batch.for_each(|record, ticket, stored| to.append_moved(record, ticket, stored, batch.since()));
    assert_eq!(to.ledger().queuing, 10);
    to.adopt_batch(to.surrender().expect("a batch"));
    let taken = to.take().expect("a batch");
    assert!(taken.builder.records().all(|record| record.unwrap().header_count() == 1));
    taken.obligations.end(End::Success);
    assert_eq!(publisher.told.lock().len(), 5);
    assert_eq!((to.ledger().success, to.ledger().matched, to.ledger().imbalance()), (10, 10, 0));
}

#[test]
fn a_batch_expires_when_all_of_its_records_are_too_old_and_the_books_say_so() {
    let max_age = Duration::from_mins(8);
    let limits = InboxLimits { max_age: Some(max_age), ..InboxLimits::new(10_000, 5_000) };
    let inbox = PartitionInbox::new(limits, Arc::new(Sleeper::default()));
    let publisher = Arc::new(Publisher::default());
    let mut wakes = WakeList::default();
    let before = Instant::now();
    let ticket = ticket(&publisher, 7);
    for ticket in [Some(&ticket), None] {
        assert!(matches!(inbox.append(&record(b"k", b"v"), ticket, &mut wakes), Accepted::Taken));
    }
    let at = inbox.next_expiry().expect("an expiry");
    assert!(at >= before + max_age && at <= Instant::now() + max_age + max_age / 8);
    assert!(inbox.take_expired(before + max_age).is_none());
    let taken = inbox.take_expired(at).expect("a batch");
    assert_eq!((taken.obligations.records(), inbox.next_expiry()), (2, None));
    taken.obligations.end(End::Expired(ReasonCode::UnspecifiedError));
    let ledger = inbox.ledger();
    assert_eq!((ledger.dropped_expired, ledger.failed, ledger.imbalance()), (2, 0, 0));
    assert_eq!(publisher.told.lock()[&7], Outcome::Failed(ReasonCode::UnspecifiedError));
}

#[test]
fn what_comes_from_another_inbox_is_as_old_as_it_was_there() {
    let max_age = Duration::from_mins(8);
    let limits = InboxLimits { max_age: Some(max_age), ..InboxLimits::new(10_000, 5_000) };
    let from = PartitionInbox::new(limits.clone(), Arc::new(Sleeper::default()));
    let to = PartitionInbox::new(limits, Arc::new(Sleeper::default()));
    let mut wakes = WakeList::default();
    from.append(&record(b"k", b"v"), None, &mut wakes);
    let batch = from.surrender().expect("a batch");
    let first = batch.since().expect("a time");
    let second = first + Duration::from_secs(1);
    for since in [first, first, second] {
        batch.for_each(|record, ticket, stored| to.append_moved(record, ticket, stored, Some(since)));
    }
    // Whatever comes now is younger, and does not make them so.
    let expiry = |since: Instant| since + max_age + max_age / 8;
    for (since, records) in [(first, 2), (second, 1)] {
        assert_eq!(to.next_expiry(), Some(expiry(since)));
        assert!(to.take_expired(since + max_age).is_none());
        let taken = to.take_expired(expiry(since)).expect("a batch");
        assert_eq!(taken.obligations.records(), records);
        taken.obligations.end(End::Expired(ReasonCode::UnspecifiedError));
    }
}

#[test]
fn a_success_that_came_after_its_time_counts_as_late_for_those_who_waited() {
    for (late_after, late) in [(Duration::from_nanos(1), 1), (Duration::from_hours(1), 0)] {
        let limits = InboxLimits { late_after: Some(late_after), ..InboxLimits::new(10_000, 5_000) };
        let inbox = PartitionInbox::new(limits, Arc::new(Sleeper::default()));
        let mut wakes = WakeList::default();
        let ticket = ticket(&Arc::new(Publisher::default()), 0);
        for ticket in [Some(&ticket), None] {
            assert!(matches!(inbox.append(&record(b"k", b"v"), ticket, &mut wakes), Accepted::Taken));
        }
        while let Some(taken) = inbox.take() {
            taken.obligations.end(End::Success);
        }
        assert_eq!((inbox.ledger().success, inbox.ledger().late_reply), (2, late));
    }
}

#[tokio::test]
async fn inboxes_that_share_a_budget_hold_no_more_than_it_together() {
    let budget = Budget::new(150);
    let limits = InboxLimits { budget: Some(budget.clone()), ..InboxLimits::new(10_000, 5_000) };
    let inboxes = [(); 2].map(|()| PartitionInbox::new(limits.clone(), Arc::new(Sleeper::default())));
    let ticket = ticket(&Arc::new(Publisher::default()), 0);
    let mut wakes = WakeList::default();
    let value = [b'x'; 100];
    assert!(matches!(inboxes[0].append(&record(b"k", &value), Some(&ticket), &mut wakes), Accepted::Taken));
    let Accepted::Full(room) = inboxes[1].append(&record(b"k", &value), Some(&ticket), &mut wakes) else {
        panic!("the other one has the bytes");
    };
    // Without ticket it has nothing of its own to drop.
    assert!(matches!(inboxes[1].append(&record(b"k", &value), None, &mut wakes), Accepted::Done(_)));
    assert_eq!(inboxes[1].ledger().dropped_queue_full, 1);
    let freed = room.notified();
    inboxes[0].take().expect("a batch").obligations.end(End::Success);
    assert_eq!(budget.used(), 0);
    // Who was refused by one hears of the other's space.
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the space is announced");
    assert!(matches!(inboxes[1].append(&record(b"k", &value), Some(&ticket), &mut wakes), Accepted::Taken));
    assert_eq!(budget.used(), inboxes[1].ledger().queuing_bytes as usize);
}

/// An inbox with a disk buffer whose thread is never woken: the test does its work.
fn sharing(node: &Arc<NodeMemory>, when_short: Option<usize>) -> Arc<PartitionInbox> {
    let limits = InboxLimits { node: Some(node.clone()), when_short, ..InboxLimits::new(100 << 20, 10_000) };
    PartitionInbox::new(limits, Arc::<Sleeper>::default())
}

/// Appends records of 1,000 bytes until one is not taken; how many were, and what became of that one.
fn fill(inbox: &PartitionInbox, publisher: Option<&Arc<Publisher>>, most: u64) -> (u64, Accepted) {
    let value = [b'x'; 1000];
    for number in 0..most {
        let ticket = publisher.map(|publisher| ticket(publisher, number));
        match inbox.append(&record(b"k", &value), ticket.as_ref(), &mut WakeList::default()) {
            Accepted::Taken => {}
            other => return (number, other),
        }
    }
    (most, Accepted::Taken)
}

#[tokio::test]
async fn all_inboxes_of_a_node_stay_within_its_memory_and_none_starves() {
    let node = NodeMemory::new(4 * share::BLOCK);
    let publisher = Arc::new(Publisher::default());
    let (first, second) = (sharing(&node, None), sharing(&node, None));
    let (taken, refused) = fill(&first, Some(&publisher), 1000);
    assert!((240..255).contains(&taken), "{taken}: 256 KiB, less 32 bytes a record");
    assert!(matches!(refused, Accepted::Full(_)));
    assert_eq!(node.used(), node.limit());
    // The other one has a block all the same.
    let other = Arc::new(Publisher::default());
    let (small, refused) = fill(&second, Some(&other), 1000);
    assert!((55..64).contains(&small), "{small}");
    let Accepted::Full(room) = refused else { panic!("it was not refused") };
    // Room made by the one is heard of by who waits for the other, at once.
    let heard = room.notified();
    while let Some(batch) = first.take() {
        batch.obligations.end(End::Success);
    }
    heard.await;
    assert_eq!(fill(&second, Some(&Arc::new(Publisher::default())), 100).0, 100);
    drop((first, second));
    assert_eq!(node.used(), 0);
}

#[test]
fn without_a_ticket_the_oldest_of_the_same_inbox_make_room_in_the_node() {
    let node = NodeMemory::new(4 * share::BLOCK);
    let (first, second) = (sharing(&node, None), sharing(&node, None));
    assert_eq!(fill(&second, None, 50).0, 50);
    assert_eq!(fill(&first, None, 1000).0, 1000);
    let (first, second) = (first.ledger(), second.ledger());
    assert_eq!((second.queuing, second.dropped_queue_full), (50, 0));
    assert!((150..200).contains(&first.queuing), "{first:?}");
    assert_eq!((first.matched, first.imbalance()), (1000, 0));
    assert!(node.used() <= node.limit());
}

#[tokio::test]
async fn while_memory_is_short_new_records_come_in_place_of_old_ones_beyond_the_reserve() {
    let node = NodeMemory::new(1 << 30);
    let protected = sharing(&node, Some(50_000));
    let careless = sharing(&node, None);
    for inbox in [&protected, &careless] {
        assert_eq!(fill(inbox, None, 100).0, 100);
    }
    node.set_short(true);
    for inbox in [&protected, &careless] {
        assert_eq!(fill(inbox, None, 100).0, 100);
    }
    assert_eq!(careless.ledger().queuing, 200);
    let books = protected.ledger();
    assert!((95..=100).contains(&books.queuing) && books.imbalance() == 0, "{books:?}");
    // Those that are waited for are kept, and wait before they come.
    let publisher = Arc::new(Publisher::default());
    let (taken, refused) = fill(&protected, Some(&publisher), 10);
    let Accepted::Full(room) = refused else { panic!("it was not refused") };
    assert_eq!(taken, 0);
    let heard = room.notified();
    node.set_short(false);
    heard.await;
    assert_eq!(fill(&protected, Some(&publisher), 10).0, 10);
    // Within the reserve nothing changes.
    let reserve = sharing(&node, Some(50_000));
    node.set_short(true);
    assert_eq!(fill(&reserve, Some(&Arc::new(Publisher::default())), 40).0, 40);
}

fn stored_inbox(bytes: usize) -> (Arc<PartitionInbox>, Arc<Sleeper>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let (buffer, _) = Buffer::open(directory.path(), 1 << 20).unwrap();
    let place = TopicPartition { topic: "t".into(), partition: 0 };
    let store = Some(Store { buffer, place, answers: true });
    let sleeper = Arc::new(Sleeper::default());
    let limits = InboxLimits { store, ..InboxLimits::new(bytes, 10_000) };
    (PartitionInbox::new(limits, sleeper.clone()), sleeper, directory)
}

fn collect(inbox: &PartitionInbox, next: &mut u64) -> Vec<Numbers> {
    let mut runs = Vec::new();
    Source::collect(inbox, &mut |_, count, _, _, _| {
        let numbers = Numbers { first: *next, count };
        *next += u64::from(count);
        runs.push(numbers);
        Some(numbers)
    });
    runs
}

#[test]
fn a_round_that_is_full_takes_the_rest_in_the_next_one_in_order() {
    let (inbox, _sleeper, _directory) = stored_inbox(100_000);
    let mut wakes = WakeList::default();
    // Two of them are a batch.
    let value = vec![b'v'; 4_000];
    for key in [b"1", b"2", b"3", b"4", b"5", b"6"] {
        inbox.append(&record(key, &value), None, &mut wakes);
    }
    let collect_up_to = |most: usize, mut next: u64| {
        let mut runs = Vec::new();
        let left = Source::collect(&*inbox, &mut |_, count, _, _, _| {
            let first = next;
            (runs.len() < most).then(|| {
                runs.push(count);
                next += u64::from(count);
                Numbers { first, count }
            })
        });
        (left, runs)
    };
    assert_eq!(collect_up_to(0, 0), (true, vec![]));
    assert_eq!(collect_up_to(2, 0), (true, vec![2, 2]));
    // Nobody says so once more, and what comes now is behind what was left.
    inbox.append(&record(b"7", b"v"), None, &mut wakes);
    inbox.durable(4);
    assert_eq!(collect_up_to(9, 4), (false, vec![3]));
    assert_eq!(collect_up_to(9, 7), (false, vec![]));
    inbox.durable(7);
    let sizes: Vec<usize> = std::iter::from_fn(|| inbox.take()).map(|taken| taken.builder.count()).collect();
    assert_eq!(sizes, [2, 2, 3]);
}

#[test]
fn a_batch_goes_when_it_is_durable_and_its_tickets_are_answered_then_and_once() {
    let (inbox, sleeper, _directory) = stored_inbox(100_000);
    let (publisher, mut next) = (Arc::new(Publisher::default()), 0);
    let append = |sequence| {
        let mut wakes = WakeList::default();
        inbox.append(&record(b"k", b"v"), Some(&ticket(&publisher, sequence)), &mut wakes);
        // Its drop would wake the thread.
        std::mem::forget(wakes);
    };
    append(0);
    append(1);
    assert!(inbox.take().is_none(), "a batch went before it was durable");
    assert_eq!(collect(&inbox, &mut next), [Numbers { first: 0, count: 2 }]);
    // In the next batch: the one that was wanted takes no more.
    append(2);
    assert!(!inbox.sleep_until(Some(1)));
    assert!(publisher.told.lock().is_empty(), "answered before it was durable");
    Source::durable(&*inbox, next);
    assert_eq!(publisher.told.lock().len(), 2);
    assert_eq!(sleeper.0.load(Ordering::Relaxed), 1, "whoever wanted the batch is told");
    let taken = inbox.take().expect("a durable batch");
    assert_eq!(taken.builder.count(), 2);
    assert_eq!(taken.obligations.numbers(), [Numbers { first: 0, count: 2 }]);
    assert!(inbox.take().is_none());
    taken.obligations.end(End::Success);
    assert_eq!(publisher.told.lock().len(), 2, "answered once");
    // What is stopped stays on the disk, and was never matched here.
    collect(&inbox, &mut next);
    Source::durable(&*inbox, next);
    inbox.take().expect("a durable batch").obligations.end(End::Stopped(ReasonCode::UnspecifiedError));
    let ledger = inbox.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed, ledger.imbalance()), (2, 2, 0, 0));
    assert_eq!(publisher.told.lock()[&2], Outcome::Success);
}

#[tokio::test]
async fn on_a_full_disk_the_durable_part_of_a_batch_goes_without_the_rest() {
    let disk = Double::default();
    let buffer = Buffer::open_on(disk.clone(), 1 << 20).unwrap();
    let place = TopicPartition { topic: "t".into(), partition: 0 };
    let store = Some(Store { buffer: buffer.clone(), place, answers: true });
    let sleeper = Arc::new(Sleeper::default());
    let limits = InboxLimits { store, ..InboxLimits::new(100_000, 10_000) };
    let inbox = PartitionInbox::new(limits, sleeper.clone());
    let publisher = Arc::new(Publisher::default());
    let append = |sequence: u64, wakes: &mut WakeList| {
        let (value, plain) = (sequence.to_string(), sequence.is_multiple_of(3));
        let record = Record { timestamp: 1_000_000 - sequence as i64, ..record(b"k", value.as_bytes()) };
        let ticket = ticket(&publisher, sequence);
        let taken = inbox.append(&record, Some(&ticket).filter(|_| !plain), wakes);
        assert!(matches!(taken, Accepted::Taken));
    };
    let eventually = async |what: &str, holds: &dyn Fn() -> bool| {
        let until = tokio::time::Instant::now() + Duration::from_mins(1);
        while !holds() {
            assert!(tokio::time::Instant::now() < until, "{what} did not happen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut wakes = WakeList::default();
    (0..6).for_each(|sequence| append(sequence, &mut wakes));
    drop(wakes);
    eventually("the first answers", &|| publisher.told.lock().len() == 4).await;
    let mut wakes = WakeList::default();
    (6..11).for_each(|sequence| append(sequence, &mut wakes));
    // The batch is wanted before the buffer hears of its end.
    assert!(!inbox.sleep_until(Some(1)));
    disk.set_room(Some(0));
    drop(wakes);
    eventually("a wake-up", &|| sleeper.0.load(Ordering::Relaxed) > 0).await;
    assert!(inbox.sleep_until(Some(1)));
    let numbers = |taken: &Taken| -> Vec<u64> {
        let values = taken.builder.records().map(|record| record.unwrap().value.unwrap().to_vec());
        values.map(|value| String::from_utf8(value).unwrap().parse().unwrap()).collect()
    };
    let first = inbox.take().expect("what is durable");
    assert_eq!(numbers(&first), [0, 1, 2, 3, 4, 5]);
    assert_eq!(first.obligations.numbers(), [Numbers { first: 0, count: 6 }]);
    let counted = (first.builder.len() - HEADER_LEN) as u64;
    assert!(inbox.take().is_none() && !inbox.sleep_until(Some(1)), "the rest is not durable");
    let ledger = inbox.ledger();
    assert_eq!((ledger.queuing, ledger.inflight), (5, 6));
    disk.set_room(None);
    eventually("room", &|| inbox.sleep_until(Some(1))).await;
    let rest = inbox.take().expect("the rest");
    assert_eq!(numbers(&rest), [6, 7, 8, 9, 10]);
    assert_eq!(rest.obligations.numbers(), [Numbers { first: 6, count: 5 }]);
    assert_eq!(inbox.state.lock().held as u64, counted + (rest.builder.len() - HEADER_LEN) as u64);
    first.obligations.end(End::Success);
    rest.obligations.end(End::Success);
    let ledger = inbox.ledger();
    assert_eq!((ledger.success, ledger.queuing_bytes, ledger.imbalance()), (11, 0, 0), "{ledger:?}");
    assert_eq!((inbox.state.lock().held, publisher.told.lock().len()), (0, 7));
    buffer.close().await;
}

#[test]
fn what_was_answered_is_never_dropped_for_want_of_room_and_numbers_stay_with_their_records() {
    let (inbox, _sleeper, _directory) = stored_inbox(600);
    let (publisher, mut next) = (Arc::new(Publisher::default()), 0);
    let mut wakes = WakeList::default();
    for sequence in 0..5 {
        inbox.append(&record(b"k", b"kept"), Some(&ticket(&publisher, sequence)), &mut wakes);
        inbox.append(&record(b"k", b"dropped"), None, &mut wakes);
    }
    collect(&inbox, &mut next);
    Source::durable(&*inbox, next);
    for _ in 0..200 {
        inbox.append(&record(b"k", b"newer"), None, &mut wakes);
    }
    collect(&inbox, &mut next);
    Source::durable(&*inbox, next);
    let mut kept = Vec::new();
    while let Some(taken) = inbox.take() {
        let numbers: Vec<u64> =
            taken.obligations.numbers().iter().flat_map(|numbers| numbers.first..numbers.end()).collect();
        assert_eq!(numbers.len(), taken.builder.count());
        for (number, record) in numbers.iter().zip(taken.builder.records().flatten()) {
            if record.value == Some(b"kept") {
                kept.push(*number);
            }
        }
        taken.obligations.end(End::Success);
    }
    std::mem::forget(wakes);
    assert_eq!(kept, [0, 2, 4, 6, 8]);
    assert_eq!(inbox.ledger().imbalance(), 0);
}
