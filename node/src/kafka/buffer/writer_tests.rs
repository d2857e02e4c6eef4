use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use causeway_protocol::kafka::batch::{BatchBuilder, Record};

use super::super::disk_double::Double;
use super::*;
use crate::flow::{AckSink, Outcome, SequenceRange};

/// Records that wait, and how many of them are durable.
#[derive(Default)]
struct Records {
    waiting: Mutex<u32>,
    given: Mutex<Vec<Numbers>>,
    marks: Mutex<Vec<Mark>>,
    durable: AtomicU64,
    value_len: AtomicUsize,
}

impl Source for Records {
    fn collect(&self, put: &mut Put<'_>) -> bool {
        let mut waiting = self.waiting.lock();
        let value = vec![b'v'; self.value_len.load(Ordering::Relaxed).max(1)];
        while *waiting > 0 {
            // A run of so many at most, as the batches of an inbox are.
            let count = (*waiting).min(100);
            let mut builder = BatchBuilder::new();
            for _ in 0..count {
                builder.append(&Record { timestamp: 1, key: None, value: Some(&value), headers: &[] });
            }
            let place = TopicPartition { topic: "t".into(), partition: 0 };
            let numbers = put(&place, count, 1, builder.encoded_from(0), &self.marks.lock());
            let Some(numbers) = numbers else { return true };
            self.given.lock().push(numbers);
            *waiting -= count;
        }
        false
    }

    fn durable(&self, below: u64) {
        let given = self.given.lock();
        let durable = given.iter().map(|n| n.end().min(below).saturating_sub(n.first)).sum();
        self.durable.store(durable, Ordering::Release);
    }
}

fn start(disk: &Double) -> (Arc<Buffer>, Arc<Records>) {
    let (log, found) = Log::open(disk.clone(), 1 << 20).unwrap();
    let buffer = Buffer::start(log, &found).unwrap();
    // As if it were the same life again and again.
    buffer.believe(1, &|_| true);
    let records = Arc::new(Records::default());
    let source: Weak<dyn Source> = Arc::downgrade(&(records.clone() as Arc<dyn Source>));
    buffer.add_source(source);
    (buffer, records)
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not happen");
}

#[tokio::test]
async fn what_a_source_has_is_durable_after_one_round_and_there_after_the_next_start() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    *records.waiting.lock() = 100;
    buffer.wake();
    eventually("durability", || records.durable.load(Ordering::Acquire) == 100).await;
    buffer.close().await;
    let (_, found) = Log::open(disk, 1 << 20).unwrap();
    assert_eq!(found.records(), 100);
}

#[tokio::test]
async fn a_backlog_becomes_durable_in_rounds_and_nobody_waits_for_all_of_anothers() {
    let disk = Double::default();
    let (buffer, large) = start(&disk);
    let small = Arc::new(Records::default());
    buffer.add_source(Arc::downgrade(&(small.clone() as Arc<dyn Source>)));
    large.value_len.store(100_000, Ordering::Relaxed);
    let pause = buffer.pause();
    *large.waiting.lock() = 1000;
    *small.waiting.lock() = 5;
    buffer.wake();
    drop(pause);
    buffer.flush().await;
    assert_eq!(large.durable.load(Ordering::Acquire), 1000, "a flush is for all of it");
    assert_eq!(small.durable.load(Ordering::Acquire), 5);
    // Each run is of 10 MB, so each fills a round by itself, and the other source had its turn early.
    assert!(small.given.lock().first().unwrap().first <= 200);
    assert!(disk.longest_write() < 2 * ROUND_BYTES);
    // The last round of a buffer that is closed is as many as it takes.
    *large.waiting.lock() = 1000;
    buffer.wake();
    buffer.close().await;
    assert_eq!(large.durable.load(Ordering::Acquire), 2000);
    let (_, found) = Log::open(disk, 1 << 20).unwrap();
    assert_eq!(found.records(), 2005);
}

fn mark(session: u8, identifier: u16) -> Mark {
    Mark { session: SessionId([session; 16]), identifier }
}

struct Told(AtomicBool);

impl AckSink for Told {
    fn acknowledge(&self, _: &[SequenceRange], _: Outcome) {
        self.0.store(true, Ordering::Release);
    }
}

#[tokio::test]
async fn a_publication_is_recalled_after_a_restart_until_it_is_forgotten_for_good() {
    let disk = Double::default();
    let (mark, other) = (mark(3, 9), mark(3, 8));
    let (buffer, records) = start(&disk);
    records.marks.lock().push(mark);
    *records.waiting.lock() = 1;
    buffer.wake();
    eventually("durable", || records.durable.load(Ordering::Acquire) == 1).await;
    assert!(buffer.remembers(mark) && !buffer.recalls(mark), "its own life has its session for that");
    buffer.close().await;
    let (buffer, _records) = start(&disk);
    assert!(buffer.recalls(mark) && !buffer.recalls(other));
    let told = Arc::new(Told(false.into()));
    let then = || HandOver::new(crate::flow::Ticket::new(told.clone(), 0));
    buffer.forget(mark, then());
    assert!(!buffer.recalls(mark));
    eventually("told", || told.0.load(Ordering::Acquire)).await;
    assert!(!buffer.remembers(mark));
    buffer.close().await;
    let (buffer, records) = start(&disk);
    assert!(!buffer.recalls(mark) && !buffer.remembers(mark));
    // Where it does not become durable nobody is told.
    records.marks.lock().push(mark);
    *records.waiting.lock() = 1;
    buffer.wake();
    eventually("durable", || records.durable.load(Ordering::Acquire) == 1).await;
    disk.fail_syncs();
    told.0.store(false, Ordering::Release);
    buffer.forget(mark, then());
    eventually("trouble", || buffer.state().trouble.is_some()).await;
    buffer.close().await;
    assert!(buffer.remembers(mark) && !told.0.load(Ordering::Acquire));
}

/// Puts in a record of this publication, and waits until it is durable.
async fn publish(buffer: &Buffer, records: &Records, mark: Mark) {
    let before = records.durable.load(Ordering::Acquire);
    records.marks.lock().push(mark);
    *records.waiting.lock() = 1;
    buffer.wake();
    eventually("durable", || records.durable.load(Ordering::Acquire) == before + 1).await;
    records.marks.lock().clear();
}

fn on_disk(disk: &Double) -> (Option<u64>, Vec<Mark>) {
    let (_, found) = super::super::log::survey(&mut disk.clone()).unwrap();
    (found.life, found.marks.into_iter().collect())
}

/// A bridge may have nothing else to write for hours.
#[tokio::test]
async fn the_marks_of_a_session_that_ends_are_gone_from_the_disk_at_once_also_from_an_idle_bridge() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    publish(&buffer, &records, mark(1, 1)).await;
    publish(&buffer, &records, mark(2, 1)).await;
    buffer.session_ended(SessionId([1; 16]));
    eventually("forgotten", || on_disk(&disk) == (Some(1), vec![mark(2, 1)])).await;
    buffer.close().await;
    let (buffer, _records) = start(&disk);
    assert!(buffer.recalls(mark(2, 1)));
    buffer.session_ended(SessionId([2; 16]));
    assert!(!buffer.recalls(mark(2, 1)));
    eventually("forgotten", || on_disk(&disk) == (Some(1), vec![])).await;
    buffer.close().await;
}

#[tokio::test]
async fn of_what_was_found_only_that_counts_which_is_meant_and_whose_session_exists() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    for mark in [mark(1, 1), mark(1, 2), mark(2, 1)] {
        publish(&buffer, &records, mark).await;
    }
    buffer.close().await;
    let (log, found) = Log::open(disk.clone(), 1 << 20).unwrap();
    let buffer = Buffer::start(log, &found).unwrap();
    assert_eq!(buffer.life(), Some(1));
    assert!(!buffer.recalls(mark(1, 1)) && !buffer.must_hear(), "nothing before it was said what is meant");
    buffer.believe(2, &|found| found != mark(1, 1));
    assert!(buffer.must_hear());
    assert!(!buffer.recalls(mark(1, 1)) && buffer.recalls(mark(1, 2)) && buffer.recalls(mark(2, 1)));
    eventually("believed", || on_disk(&disk) == (Some(2), vec![mark(1, 2), mark(2, 1)])).await;
    buffer.keep_sessions(&|session| session == SessionId([2; 16]));
    assert!(!buffer.recalls(mark(1, 2)) && buffer.recalls(mark(2, 1)));
    eventually("forgotten", || on_disk(&disk) == (Some(2), vec![mark(2, 1)])).await;
    buffer.close().await;
}

/// Releases are no longer heard when it is closed: neither what it had nor what came last may count for the
/// next life.
#[tokio::test]
async fn one_that_forgets_all_claims_nothing_any_more_and_one_that_cannot_says_so() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    publish(&buffer, &records, mark(1, 1)).await;
    assert!(buffer.must_hear());
    buffer.forget_all();
    publish(&buffer, &records, mark(1, 2)).await;
    buffer.close().await;
    assert!(!buffer.must_hear());
    assert_ne!(on_disk(&disk).0, Some(1));
    let (buffer, records) = start(&disk);
    publish(&buffer, &records, mark(1, 3)).await;
    disk.fail_syncs();
    buffer.forget_all();
    buffer.close().await;
    assert!(buffer.must_hear() && buffer.remembers(mark(1, 3)));
    // Who releases it then is not answered.
    let told = Arc::new(Told(false.into()));
    buffer.forget(mark(1, 3), HandOver::new(crate::flow::Ticket::new(told.clone(), 0)));
    assert!(!told.0.load(Ordering::Acquire));
}

#[tokio::test]
async fn a_full_disk_holds_records_lets_seals_through_and_recovers() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    disk.set_room(Some(20));
    *records.waiting.lock() = 5;
    buffer.wake();
    eventually("trouble", || buffer.state().trouble.is_some()).await;
    let (told, sealed) = oneshot::channel();
    let place = TopicPartition { topic: "t".into(), partition: 0 };
    buffer.seal(place, Vec::new(), Box::new(move || told.send(()).unwrap()));
    tokio::time::timeout(Duration::from_secs(10), sealed).await.expect("in time").unwrap();
    assert_eq!(records.durable.load(Ordering::Acquire), 0);
    disk.set_room(None);
    eventually("room", || records.durable.load(Ordering::Acquire) == 5).await;
    eventually("an end of the trouble", || buffer.state().trouble.is_none()).await;
    buffer.close().await;
}

#[tokio::test]
async fn after_a_failed_sync_nobody_is_told_anything() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    disk.fail_syncs();
    *records.waiting.lock() = 5;
    buffer.wake();
    let (told, sealed) = oneshot::channel::<()>();
    let place = TopicPartition { topic: "t".into(), partition: 0 };
    buffer.seal(place, Vec::new(), Box::new(move || told.send(()).unwrap()));
    assert!(sealed.await.is_err(), "a seal was reported durable");
    buffer.flush().await;
    assert_eq!(records.durable.load(Ordering::Acquire), 0);
    assert!(buffer.state().trouble.is_some());
    buffer.close().await;
}
