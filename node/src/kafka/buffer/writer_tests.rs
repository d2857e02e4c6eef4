use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use causeway_protocol::kafka::batch::{BatchBuilder, Record};

use super::super::disk_double::Double;
use super::*;
use crate::flow::{AckSink, Outcome, SequenceRange};

/// The same life again and again.
const LIVES: Lives = Lives { before: Some(1), now: 1 };

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
            let place = Place { topic: "t".into(), partition: 0 };
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
    let (log, found) = Log::open(disk.clone(), 1 << 20, LIVES).unwrap();
    let buffer = Buffer::start(log, &found).unwrap();
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
    let (_, found) = Log::open(disk, 1 << 20, LIVES).unwrap();
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
    let (_, found) = Log::open(disk, 1 << 20, LIVES).unwrap();
    assert_eq!(found.records(), 2005);
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
    let mark = Mark { session: 3, identifier: 9 };
    let (buffer, records) = start(&disk);
    records.marks.lock().push(mark);
    *records.waiting.lock() = 1;
    buffer.wake();
    eventually("durable", || records.durable.load(Ordering::Acquire) == 1).await;
    assert!(buffer.remembers(mark) && !buffer.recalls(mark), "its own life has its session for that");
    buffer.close().await;
    let (buffer, _records) = start(&disk);
    assert!(buffer.recalls(mark) && !buffer.recalls(Mark { session: 3, identifier: 8 }));
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

#[tokio::test]
async fn a_full_disk_holds_records_lets_seals_through_and_recovers() {
    let disk = Double::default();
    let (buffer, records) = start(&disk);
    disk.set_room(Some(20));
    *records.waiting.lock() = 5;
    buffer.wake();
    eventually("trouble", || buffer.state().trouble.is_some()).await;
    let (told, sealed) = oneshot::channel();
    let place = Place { topic: "t".into(), partition: 0 };
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
    let place = Place { topic: "t".into(), partition: 0 };
    buffer.seal(place, Vec::new(), Box::new(move || told.send(()).unwrap()));
    assert!(sealed.await.is_err(), "a seal was reported durable");
    buffer.flush().await;
    assert_eq!(records.durable.load(Ordering::Acquire), 0);
    assert!(buffer.state().trouble.is_some());
    buffer.close().await;
}
