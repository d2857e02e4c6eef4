//! The store against a model, on a disk that forgets what was not synced and dies at any operation.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use causeway_protocol::mqtt::{PublishProperties, QoS, SubscriptionOptions};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IteratorRandom};

use super::{double::Disk, *};
use crate::{
    flow::{Message, Origin, Outcome, SessionId},
    mqtt::{
        memory::MemoryCounter,
        publication::{Via, tests::publication},
    },
};

/// Hears of tickets and wake-ups.
#[derive(Default)]
struct Publisher {
    completed: Mutex<BTreeSet<u64>>,
}

impl AckSink for Publisher {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        assert_eq!(outcome, Outcome::Success);
        let sequences = ranges.iter().flat_map(|range| range.first..range.first + u64::from(range.count));
        self.completed.lock().extend(sequences);
    }
}

impl Wake for Publisher {
    fn wake(&self) {}
}

fn open(disk: &Disk, capacity: usize) -> Result<(Arc<Store>, Loaded), OpenError> {
    let disk = disk.clone();
    let opener = Box::new(move || Ok(disk.mount()));
    let tuning = Tuning { capacity, ..Tuning::default() };
    Store::open_with(
        &PathBuf::from("double"),
        opener,
        tuning,
        None,
        MemoryCounter::new(u64::MAX),
        Arc::default(),
    )
}

/// The file alone, as its writer opens it.
fn open_file(disk: &Disk, compact_from: u64) -> Result<(file::File, books::Books, Loaded), OpenError> {
    let disk = disk.clone();
    let opener = Box::new(move || Ok(disk.mount()));
    file::File::open(&PathBuf::from("double"), opener, compact_from, None, MemoryCounter::new(u64::MAX))
}

fn record(client_id: &str) -> Record {
    Record {
        id: SessionId::random(),
        client_id: client_id.into(),
        username: None,
        expiry: 1000,
        presence: Presence::Connected,
        will: None,
    }
}

fn entry(payload: &[u8], number: u64) -> Entry {
    let publication = Arc::new(publication("t", payload, QoS::AtLeastOnce, false).stored_as(number));
    Entry { publication, via: None, qos: QoS::AtLeastOnce, retain: false, charged: true }
}

fn append(session: u64, position: u64, entry: &Entry) -> Op {
    Op::Append { session, position, entry: entry.clone() }
}

/// Waits until a batch is on the disk; false when it never will be.
fn settled(store: &Store, stamp: u64) -> bool {
    loop {
        if store.is_committed(stamp) {
            return true;
        }
        if store.has_failed() {
            return store.is_committed(stamp);
        }
        std::thread::yield_now();
    }
}

/// Waits for what the writer does just after it has said what is on the disk.
fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about within 30 s");
        std::thread::yield_now();
    }
}

fn payloads(session: &LoadedSession) -> Vec<(u64, Vec<u8>)> {
    session.entries.iter().map(|(at, entry)| (*at, entry.publication.payload().to_vec())).collect()
}

#[test]
fn what_was_put_in_is_found_again() {
    let disk = Disk::default();
    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    assert!(loaded.sessions.is_empty());
    let session = store.new_session();
    let will = StoredWill {
        delay: 7,
        message: message_bytes(&Message {
            origin: &Arc::new(Origin { client_id: "c".into(), username: None, peer: None }),
            topic: "will/of/c",
            payload: b"gone",
            qos: QoS::ExactlyOnce,
            retain: true,
            dup: false,
            properties: &PublishProperties::default(),
            received_at: 5,
            hops: 0,
        }),
    };
    let presence = Presence::Away { since: 12, sent: 2 };
    let full = Record {
        id: SessionId::random(),
        client_id: "é".into(),
        username: Some("user".into()),
        expiry: 99,
        presence,
        will: Some(will),
    };
    store.put(Op::Session { session, record: Box::new(full.clone()) });
    let options = SubscriptionOptions { qos: QoS::ExactlyOnce, no_local: true, ..Default::default() };
    for filter in ["a/#", "b", "c"] {
        store.put(Op::Subscribe { session, filter: filter.into(), options, identifier: Some(300) });
    }
    store.put(Op::Unsubscribe { session, filter: "b".into() });
    for (filter, before) in [("c", Some(7)), ("a/#", Some(9)), ("b", Some(8)), ("b", None), ("a/#", Some(5))]
    {
        store.put(Op::Await { session, filter: filter.into(), before });
    }
    let identified = Entry { via: Via::identified([1, 2_000]), retain: true, ..entry(b"first", 0) };
    let shared = entry(b"shared", store.new_message());
    let ops = [append(session, 0, &identified), append(session, 1, &shared), append(session, 3, &shared)];
    store.append(ops.into_iter(), None);
    store.put(Op::Released { session, position: 1 });
    store.put(Op::Received { session, identifier: 65_535, sinks: true });
    store.close_and_wait();

    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    let [found] = &loaded.sessions[..] else { panic!("one session") };
    assert_eq!((found.session, &found.record, found.next), (session, &full, 4));
    let subscriptions: Vec<_> = found.subscriptions.iter().map(|(f, o, i)| (&**f, *o, *i)).collect();
    assert_eq!(subscriptions, [("a/#", options, Some(300)), ("c", options, Some(300))]);
    assert_eq!(found.awaited, [("a/#".into(), 5), ("c".into(), 7)], "the oldest first");
    assert_eq!(payloads(found), [(0, b"first".to_vec()), (3, b"shared".to_vec())]);
    assert_eq!(found.entries[0].1.via.as_ref().map(|via| &via.identifiers[..]), Some(&[1, 2_000][..]));
    assert!(found.entries[0].1.retain && !found.entries[1].1.retain);
    assert_eq!((&found.released[..], &found.received[..]), (&[1][..], &[(65_535, true)][..]));
    let origin = Arc::new(Origin { client_id: "é".into(), username: None, peer: None });
    let will = found.record.will.as_ref().unwrap();
    let read =
        read_message(&will.message, &origin, |m| (m.topic.to_owned(), m.payload.to_vec(), m.qos, m.retain));
    assert_eq!(read, Some(("will/of/c".to_owned(), b"gone".to_vec(), QoS::ExactlyOnce, true)));
    assert!(store.new_session() > session && store.new_message() > 1);
    store.put(Op::End { session });
    store.close_and_wait();
    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    assert!(loaded.sessions.is_empty());
    store.close_and_wait();
}

#[test]
fn what_is_held_back_goes_with_its_session() {
    let disk = Disk::default();
    let (store, _) = open(&disk, CAPACITY).unwrap();
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    store.put(Op::Await { session, filter: "a".into(), before: Some(1) });
    store.close_and_wait();
    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    assert_eq!(loaded.sessions[0].awaited.len(), 1);
    store.put(Op::End { session });
    store.put(Op::Session { session, record: Box::new(record("d")) });
    store.close_and_wait();
    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    assert!(loaded.sessions[0].awaited.is_empty());
    store.close_and_wait();
}

#[test]
fn what_is_taken_back_before_the_commit_is_never_written() {
    let disk = Disk::default();
    let (store, _) = open(&disk, CAPACITY).unwrap();
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
    let before = disk.len();
    let gate = store.gate();
    let entry = entry(&vec![7; 1 << 20], 0);
    for position in 0..20 {
        store.append(std::iter::once(append(session, position, &entry)), None);
        store.put(Op::Done { session, position });
    }
    drop(gate);
    assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
    assert!(disk.len() < before + (2 << 20), "{} {before}", disk.len());
    store.close_and_wait();
}

#[test]
fn a_body_is_stored_once_however_many_sessions_have_it() {
    let disk = Disk::default();
    let (store, _) = open(&disk, usize::MAX).unwrap();
    let number = store.new_message();
    let entry = entry(&vec![7; 1 << 20], number);
    let sessions: Vec<_> = (0..50).map(|_| store.new_session()).collect();
    for session in &sessions {
        store.put(Op::Session { session: *session, record: Box::new(record(&session.to_string())) });
        store.append(std::iter::once(append(*session, 0, &entry)), None);
    }
    assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
    assert!(disk.len() < 8 << 20, "{}", disk.len());
    store.close_and_wait();
    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    assert_eq!(loaded.sessions.len(), 50);
    assert!(loaded.sessions.iter().all(|session| payloads(session)[0].1.len() == 1 << 20));
    // It goes with the last of them.
    for session in sessions {
        store.put(Op::Done { session, position: 0 });
    }
    store.close_and_wait();
    let (file, books, loaded) = open_file(&disk, u64::MAX).unwrap();
    assert!(books.messages.is_empty() && loaded.sessions.iter().all(|session| session.entries.is_empty()));
    drop(file);
}

#[test]
fn a_full_disk_holds_and_goes_on() {
    let disk = Disk::default();
    let (store, _) = open(&disk, 1 << 20).unwrap();
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
    disk.set_full(true);
    let publisher = Arc::new(Publisher::default());
    for position in 0..20 {
        let gate = store.gate();
        store.append(std::iter::once(append(session, position, &entry(&vec![7; 100_000], 0))), None);
        gate.finish(std::iter::empty(), &publisher, &[SequenceRange { first: position, count: 1 }]);
    }
    while store.stats.snapshot().store_retries < 2 {
        std::thread::yield_now();
    }
    assert!(!store.has_room() && !store.has_failed());
    assert!(publisher.completed.lock().is_empty());
    disk.set_full(false);
    assert!(settled(&store, store.wake_at(&publisher)));
    until(|| publisher.completed.lock().len() == 20);
    until(|| store.has_room());
    store.close_and_wait();
    let (store, loaded) = open(&disk, CAPACITY).unwrap();
    assert_eq!(loaded.sessions[0].entries.len(), 20);
    store.close_and_wait();
}

#[test]
fn after_a_failed_sync_nothing_is_promised() {
    let disk = Disk::default();
    let (store, _) = open(&disk, CAPACITY).unwrap();
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
    disk.fail_syncs();
    let publisher = Arc::new(Publisher::default());
    for first in 0..3 {
        let gate = store.gate();
        store.append(std::iter::once(append(session, first, &entry(b"x", 0))), None);
        gate.finish(std::iter::empty(), &publisher, &[SequenceRange { first, count: 1 }]);
        assert!(!settled(&store, store.wake_at(&publisher)));
    }
    assert!(store.has_failed() && !store.has_room());
    assert!(publisher.completed.lock().is_empty());
    until(|| store.stats.snapshot().store_failed == 1);
    store.close_and_wait();
}

#[test]
fn a_damaged_or_foreign_file_is_named_and_left_alone() {
    let disk = Disk::default();
    let (store, _) = open(&disk, CAPACITY).unwrap();
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    for position in 0..200 {
        store.append(std::iter::once(append(session, position, &entry(&[7; 5000], 0))), None);
    }
    store.close_and_wait();
    let mut random = StdRng::seed_from_u64(7);
    let mut refused = 0;
    for _ in 0..30 {
        let (length, at) = (disk.len(), random.random_range(0..disk.len()));
        let copy = Disk::default();
        let mut bytes = Vec::new();
        disk.change(|disk| bytes.clone_from(disk));
        bytes[at..(at + 64).min(length)].fill(0xA5);
        copy.change(|disk| *disk = bytes.clone());
        match open(&copy, CAPACITY) {
            Err(OpenError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
            // Room that nothing uses.
            Ok((store, loaded)) => {
                assert_eq!(loaded.sessions[0].entries.len(), 200);
                store.close_and_wait();
            }
        }
    }
    assert!(refused > 10, "{refused}");
    let copy = Disk::default();
    copy.change(|disk| *disk = b"not a database at all, whatever its name".repeat(1000));
    let before = copy.len();
    let error = open(&copy, CAPACITY).err().unwrap().to_string();
    assert!(error.contains("damaged or no such file") && error.contains("nothing was changed"), "{error}");
    assert_eq!(copy.len(), before);

    let later = Disk::default();
    let database = redb::Builder::new().create_with_backend(Mounted(later.mount())).unwrap();
    let transaction = database.begin_write().unwrap();
    let table: redb::TableDefinition<&str, u64> = redb::TableDefinition::new("v3.meta");
    transaction.open_table(table).unwrap().insert("format", 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open(&later, CAPACITY).err().unwrap().to_string();
    assert!(error.contains("have the format 3, this version reads format 2"), "{error}");
}

#[derive(Debug)]
struct Mounted(Box<dyn redb::StorageBackend>);

impl redb::StorageBackend for Mounted {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
    fn try_lock_range(
        &self,
        _: std::ops::Bound<u64>,
        _: std::ops::Bound<u64>,
    ) -> Result<bool, redb::BackendError> {
        Ok(true)
    }
}

#[test]
fn the_file_does_not_grow_with_what_passes_through() {
    let disk = Disk::default();
    let (store, _) = open(&disk, CAPACITY).unwrap();
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    let mut sizes = Vec::new();
    for round in 0..40u64 {
        for at in 0..50 {
            let position = round * 50 + at;
            store.append(std::iter::once(append(session, position, &entry(&vec![7; 5000], 0))), None);
        }
        assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
        for at in 0..50 {
            store.put(Op::Done { session, position: round * 50 + at });
        }
        assert!(settled(&store, store.wake_at(&Arc::new(Publisher::default()))));
        sizes.push(disk.len());
    }
    // Ten million bytes went through, a quarter of one at a time; how they share commits is the writer's
    // affair.
    assert!(sizes[39] <= 2_500_000, "{sizes:?}");
    store.close_and_wait();
}

/// Puts in a session with 2,000 messages of 5 kB, and takes all back but four.
fn a_bad_day(store: &Arc<Store>) {
    let session = store.new_session();
    store.put(Op::Session { session, record: Box::new(record("c")) });
    store.append((0..2000).map(|position| append(session, position, &entry(&[7; 5000], 0))), None);
    assert!(settled(store, store.wake_at(&Arc::new(Publisher::default()))));
    for position in (0..2000).filter(|position| position % 500 != 0) {
        store.put(Op::Done { session, position });
    }
    assert!(settled(store, store.wake_at(&Arc::new(Publisher::default()))));
    store.close_and_wait();
}

fn the_bad_days_rest(loaded: &Loaded) {
    let [found] = &loaded.sessions[..] else { panic!("one session") };
    let positions: Vec<_> = found.entries.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, (0..4).map(|number| number * 500).collect::<Vec<_>>());
    assert!(found.entries.iter().all(|(_, entry)| entry.publication.payload() == [7; 5000]));
}

#[test]
fn a_file_that_is_mostly_empty_is_shortened_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let length = || path.metadata().unwrap().len();
    let open = |compact_from| {
        let tuning = Tuning { compact_from, ..Tuning::default() };
        let memory = MemoryCounter::new(u64::MAX);
        Store::open_with(&path, file::file_opener(&path), tuning, None, memory, Arc::default()).unwrap()
    };
    a_bad_day(&open(u64::MAX).0);
    let large = length();
    assert!(large > 10 << 20, "{large}");
    let (store, loaded) = open(large);
    the_bad_days_rest(&loaded);
    store.close_and_wait();
    assert_eq!(length(), large, "not larger than what is worth it");
    let (store, loaded) = open(large - 1);
    the_bad_days_rest(&loaded);
    store.close_and_wait();
    assert!(length() < large / 4, "{} of {large}", length());
    // It is good for more.
    let (store, loaded) = open(1 << 20);
    the_bad_days_rest(&loaded);
    store.put(Op::End { session: loaded.sessions[0].session });
    store.close_and_wait();
    let (store, loaded) = open(1 << 20);
    assert!(loaded.sessions.is_empty());
    store.close_and_wait();
}

/// A disk after a bad day, to be copied; operations that reading it takes, and reading and shortening it.
struct BadDay {
    bytes: Vec<u8>,
    reading: u64,
    all: u64,
}

impl BadDay {
    fn new() -> Self {
        const MANY: u64 = 1_000_000;
        let disk = Disk::default();
        a_bad_day(&open(&disk, CAPACITY).unwrap().0);
        let mut day = Self { bytes: Vec::new(), reading: 0, all: 0 };
        disk.change(|disk| day.bytes.clone_from(disk));
        let operations = |compact_from| {
            let disk = day.copy();
            disk.die_in(MANY);
            let file = open_file(&disk, compact_from).unwrap();
            let count = MANY - disk.left();
            drop(file);
            (count, disk.len())
        };
        let ((reading, long), (all, short)) = (operations(u64::MAX), operations(1 << 20));
        assert!(all > reading + 20 && short < long / 4, "{reading} {all} {long} {short}");
        (day.reading, day.all) = (reading, all);
        day
    }

    fn copy(&self) -> Disk {
        let copy = Disk::default();
        copy.change(|disk| disk.clone_from(&self.bytes));
        copy
    }
}

#[test]
fn power_that_fails_while_the_file_is_shortened_loses_nothing() {
    let day = BadDay::new();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..40 {
        let disk = day.copy();
        disk.die_in(random.random_range(day.reading..day.all));
        // It goes on without having been shortened, or says that the disk failed.
        drop(open_file(&disk, 1 << 20));
        assert!(disk.is_dead(), "seed {seed}");
        disk.restart(random.random());
        let opened = open_file(&disk, 1 << 20);
        let (file, _, loaded) = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        the_bad_days_rest(&loaded);
        drop(file);
    }
}

#[test]
fn want_of_room_while_the_file_is_shortened_is_no_reason_to_stop() {
    let day = BadDay::new();
    let disk = day.copy();
    disk.fill_in(day.reading + 5);
    let (mut file, _, loaded) = open_file(&disk, 1 << 20).unwrap();
    the_bad_days_rest(&loaded);
    assert!(disk.len() > day.bytes.len() / 2, "it was not shortened");
    disk.set_full(false);
    file.commit(&[books::Row::Session(loaded.sessions[0].session, None)]).unwrap();
    drop(file);
    let (_, _, loaded) = open_file(&disk, u64::MAX).unwrap();
    assert!(loaded.sessions.is_empty());
}

// ---- the model ----

/// What is known of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Known {
    /// It may be on the disk.
    Asked,
    /// It was said to be there.
    Promised,
}

#[derive(Debug, Clone)]
struct Queued {
    payload: Vec<u8>,
    flush: usize,
    appended: Known,
    /// Done or released.
    left: Option<Known>,
    released: Option<Known>,
}

#[derive(Debug, Clone, Default)]
struct SessionModel {
    queue: BTreeMap<u64, Queued>,
    next: u64,
    ended: Option<Known>,
    begun: Option<Known>,
    /// By identifier: the flush it came with, and what was asked for since.
    received: BTreeMap<u16, (usize, Known, Option<Known>)>,
}

#[derive(Default)]
struct Model {
    sessions: BTreeMap<u64, SessionModel>,
    /// By topic: every value asked for since the last one that is certain, that one first.
    retained: BTreeMap<String, Vec<Option<Vec<u8>>>>,
    flushes: usize,
}

impl Model {
    /// Everything that was asked for is promised now.
    fn promise(&mut self) {
        for session in self.sessions.values_mut() {
            for known in [&mut session.ended, &mut session.begun].into_iter().flatten() {
                *known = Known::Promised;
            }
            for queued in session.queue.values_mut() {
                queued.appended = Known::Promised;
                for known in [&mut queued.left, &mut queued.released].into_iter().flatten() {
                    *known = Known::Promised;
                }
            }
            for (_, appended, forgotten) in session.received.values_mut() {
                *appended = Known::Promised;
                if let Some(forgotten) = forgotten {
                    *forgotten = Known::Promised;
                }
            }
        }
        for values in self.retained.values_mut() {
            *values = vec![values.last().cloned().flatten()];
        }
    }

    /// What is on the disk must be what was promised, and nothing that was not asked for. Then it is what
    /// is known.
    fn check(&mut self, loaded: &Loaded, seed: u64) -> Result<(), String> {
        let mut whole: BTreeMap<usize, BTreeSet<bool>> = BTreeMap::new();
        let found: BTreeMap<u64, &LoadedSession> = loaded.sessions.iter().map(|s| (s.session, s)).collect();
        let mut wrong = Vec::new();
        let mut now = Model { flushes: self.flushes, ..Model::default() };
        for (number, session) in &self.sessions {
            let Some(found) = found.get(number) else {
                if session.ended.is_none() && session.begun == Some(Known::Promised) {
                    wrong.push(format!("session {number} is lost"));
                }
                continue;
            };
            if session.ended == Some(Known::Promised) {
                wrong.push(format!("session {number} is back"));
                continue;
            }
            let queue: BTreeMap<u64, Vec<u8>> = payloads(found).into_iter().collect();
            let mut kept =
                SessionModel { begun: Some(Known::Promised), next: found.next, ..Default::default() };
            for (position, queued) in &session.queue {
                let is_there = queue.get(position) == Some(&queued.payload);
                let is_released = found.released.contains(position);
                if queue.contains_key(position) && !is_there {
                    wrong.push(format!("position {position} of {number} has another message"));
                }
                if queued.appended == Known::Promised && queued.left.is_none() && !is_there {
                    wrong.push(format!("position {position} of {number} is lost"));
                }
                if queued.left == Some(Known::Promised) && is_there {
                    wrong.push(format!("position {position} of {number} is back"));
                }
                if queued.released == Some(Known::Promised)
                    && queued.left == Some(Known::Promised)
                    && !is_released
                {
                    wrong.push(format!("the release of {position} of {number} is lost"));
                }
                if queued.left.is_none() && session.ended.is_none() {
                    whole.entry(queued.flush).or_default().insert(is_there);
                }
                if is_there {
                    let queued =
                        Queued { appended: Known::Promised, left: None, released: None, ..queued.clone() };
                    kept.queue.insert(*position, queued);
                }
            }
            for position in queue.keys().filter(|position| !session.queue.contains_key(position)) {
                wrong.push(format!("position {position} of {number} was never there"));
            }
            for (identifier, (flush, appended, forgotten)) in &session.received {
                let is_there = found.received.iter().any(|(known, _)| known == identifier);
                if *appended == Known::Promised && forgotten.is_none() && !is_there {
                    wrong.push(format!("identifier {identifier} of {number} is lost"));
                }
                if *forgotten == Some(Known::Promised) && is_there {
                    wrong.push(format!("identifier {identifier} of {number} is back"));
                }
                if forgotten.is_none() && session.ended.is_none() {
                    whole.entry(*flush).or_default().insert(is_there);
                }
                if is_there {
                    kept.received.insert(*identifier, (*flush, Known::Promised, None));
                }
            }
            now.sessions.insert(*number, kept);
        }
        for (flush, parts) in whole.iter().filter(|(_, parts)| parts.len() > 1) {
            wrong.push(format!("turn {flush} is there in part: {parts:?}"));
        }
        let mut retained: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for publication in &loaded.retained {
            let value = publication.payload().to_vec();
            if retained.insert(publication.topic().to_owned(), value).is_some() {
                wrong.push(format!("two retained messages for {}", publication.topic()));
            }
        }
        for (topic, values) in &self.retained {
            let value = retained.get(topic).cloned();
            if !values.contains(&value) {
                wrong.push(format!("retained {topic} is {value:?}, not one of {values:?}"));
            }
            now.retained.insert(topic.clone(), vec![value]);
        }
        *self = now;
        if wrong.is_empty() { Ok(()) } else { Err(format!("seed {seed}: {}", wrong.join("; "))) }
    }
}

/// One process on a disk: does random things until the power fails or it has had enough.
fn live(store: &Arc<Store>, loaded: &Loaded, model: &mut Model, random: &mut StdRng, disk: &Disk) {
    let publisher = Arc::new(Publisher::default());
    // Numbers of the retained messages, as the router knows them.
    let mut retained: BTreeMap<String, u64> =
        loaded.retained.iter().map(|p| (p.topic().to_owned(), p.number())).collect();
    let steps = random.random_range(1..120);
    for step in 0..steps {
        if disk.is_dead() {
            break;
        }
        let session =
            model.sessions.iter().filter(|(_, s)| s.ended.is_none()).map(|(n, _)| *n).choose(random);
        match (random.random_range(0..100), session) {
            (0..4, _) | (_, None) => {
                let session = store.new_session();
                store.put(Op::Session { session, record: Box::new(record(&session.to_string())) });
                let begun = SessionModel { begun: Some(Known::Asked), ..SessionModel::default() };
                model.sessions.insert(session, begun);
            }
            (4..6, Some(session)) => {
                store.put(Op::End { session });
                model.sessions.get_mut(&session).unwrap().ended = Some(Known::Asked);
            }
            (6..45, Some(publishing)) => {
                // A turn: a few messages, each for one or several sessions, perhaps with QoS 2.
                let flush = model.flushes;
                model.flushes += 1;
                let gate = store.gate();
                for _ in 0..random.random_range(1..6) {
                    let payload: Vec<u8> =
                        (0..random.random_range(0..3000)).map(|_| random.random()).collect();
                    let takers = random.random_range(1..4);
                    let alive = model.sessions.iter_mut().filter(|(_, session)| session.ended.is_none());
                    let takers = alive.sample(random, takers);
                    let number = if takers.len() > 1 { store.new_message() } else { 0 };
                    let entry = entry(&payload, number);
                    for (session, taker) in takers {
                        let position = taker.next;
                        taker.next += 1;
                        store.append(std::iter::once(append(*session, position, &entry)), None);
                        let queued = Queued {
                            payload: payload.clone(),
                            flush,
                            appended: Known::Asked,
                            left: None,
                            released: None,
                        };
                        taker.queue.insert(position, queued);
                    }
                }
                let model = model.sessions.get_mut(&publishing).unwrap();
                let identifier = random.random_range(1..20);
                let mut ops = Vec::new();
                if let std::collections::btree_map::Entry::Vacant(vacant) = model.received.entry(identifier) {
                    ops.push(Op::Received { session: publishing, identifier, sinks: false });
                    vacant.insert((flush, Known::Asked, None));
                }
                gate.finish(ops.into_iter(), &publisher, &[SequenceRange { first: step, count: 1 }]);
            }
            (45..80, Some(session)) => {
                let model = model.sessions.get_mut(&session).unwrap();
                for _ in 0..random.random_range(1..8) {
                    let Some((&position, queued)) = model.queue.iter_mut().choose(random) else { break };
                    if queued.left.is_none() && random.random_bool(0.3) {
                        store.put(Op::Released { session, position });
                        (queued.left, queued.released) = (Some(Known::Asked), Some(Known::Asked));
                    } else {
                        store.put(Op::Done { session, position });
                        queued.left.get_or_insert(Known::Asked);
                        queued.released = None;
                    }
                }
                if let Some((&identifier, (.., forgotten))) = model.received.iter_mut().choose(random) {
                    store.put(Op::Forgotten { session, identifier });
                    forgotten.get_or_insert(Known::Asked);
                }
            }
            (80..92, _) => {
                let topic = format!("topic/{}", random.random_range(0..4));
                let old = retained.remove(&topic);
                let value = random.random_bool(0.7).then(|| random.random::<[u8; 8]>().to_vec());
                let new = value.as_ref().map(|value| {
                    let number = store.new_message();
                    retained.insert(topic.clone(), number);
                    Arc::new(publication(&topic, value, QoS::AtMostOnce, true).stored_as(number))
                });
                store.retain(new.as_ref(), old.into_iter(), None);
                model.retained.entry(topic).or_insert_with(|| vec![None]).push(value);
            }
            _ => {
                let stamp = store.wake_at(&publisher);
                if settled(store, stamp) {
                    model.promise();
                }
            }
        }
    }
}

/// Lives and deaths by a seed; what a check found wrong.
fn lives(seed: u64, lies: bool) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = Disk::default();
    let mut model = Model::default();
    let mut after_death = false;
    for _ in 0..6 {
        let (store, loaded) = match open(&disk, CAPACITY) {
            Ok(opened) => opened,
            Err(error) if disk.is_dead() => {
                let _ = error;
                disk.restart(random.random());
                continue;
            }
            Err(error) => return Err(format!("seed {seed}: {error}")),
        };
        model.check(&loaded, seed)?;
        after_death = !after_death;
        if lies {
            disk.lie();
        }
        if random.random_bool(0.8) {
            disk.die_in(random.random_range(0..400));
        }
        live(&store, &loaded, &mut model, &mut random, &disk);
        if random.random_bool(0.5) {
            let stamp = store.wake_at(&Arc::new(Publisher::default()));
            if settled(&store, stamp) {
                model.promise();
            }
        }
        store.close_and_wait();
        if !store.has_failed() {
            model.promise();
        }
        disk.restart(random.random());
    }
    Ok(())
}

#[test]
fn what_was_promised_survives_any_crash() {
    let seeds = std::env::var("CAUSEWAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = seeds.map_or_else(|| (0..40).map(|_| rand::random()).collect(), |seed| vec![seed]);
    for seed in seeds {
        lives(seed, false).unwrap();
    }
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    assert!((0..40).any(|seed| lives(seed, true).is_err()));
}

// ---- lives ----

fn open_in(disk: &Disk, lives: Lives) -> Result<(Arc<Store>, Loaded), OpenError> {
    let disk = disk.clone();
    let opener = Box::new(move || Ok(disk.mount()));
    let path = PathBuf::from("double");
    Store::open_with(
        &path,
        opener,
        Tuning::default(),
        Some(lives),
        MemoryCounter::new(u64::MAX),
        Arc::default(),
    )
}

/// A file that the last version with format 1 wrote: client `sub`, away, with `t/#` and three messages, and
/// client `pub`, away, with the identifier 7 of a QoS 2 publication.
#[test]
fn a_file_of_format_1_becomes_one_of_format_2_with_all_that_is_in_it() {
    use std::io::Read;
    let mut golden = Vec::new();
    let packed = &include_bytes!("../../../tests/store/v1.redb.gz")[..];
    flate2::read::GzDecoder::new(packed).read_to_end(&mut golden).unwrap();
    let disk = Disk::default();
    disk.change(|disk| disk.clone_from(&golden));
    let mut before = BTreeMap::new();
    for life in 5..8 {
        let lives = Lives { before: Some(life - 1), now: life };
        let (store, loaded) = open_in(&disk, lives).unwrap();
        assert!(loaded.continues, "life {life}");
        assert_eq!(loaded.retained.iter().map(|kept| kept.payload()).collect::<Vec<_>>(), [b"kept"]);
        let of = |client_id: &str| {
            loaded.sessions.iter().find(|found| &*found.record.client_id == client_id).unwrap()
        };
        let (subscriber, publisher) = (of("sub"), of("pub"));
        assert_eq!((subscriber.record.expiry, publisher.record.expiry), (3_600_000, 7_200_000));
        assert_eq!(subscriber.subscriptions.len(), 1);
        let waiting: Vec<_> = payloads(subscriber).into_iter().map(|(_, payload)| payload).collect();
        assert_eq!(waiting, [b"one".to_vec(), b"two".to_vec(), b"kept".to_vec()]);
        assert_eq!(publisher.received, [(7, false)]);
        let ids: BTreeMap<_, _> =
            loaded.sessions.iter().map(|found| (found.record.client_id.clone(), found.record.id)).collect();
        assert!(ids["sub"] != ids["pub"]);
        if life == 5 {
            before = ids;
        } else {
            assert_eq!(before, ids, "identities stay");
        }
        store.close_and_wait();
    }
    // A version that knows format 1 alone finds no table of it, and one of a later format.
    let database = redb::Builder::new().create_with_backend(Mounted(disk.mount())).unwrap();
    let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
    let names: Vec<_> =
        transaction.list_tables().unwrap().map(|table| redb::TableHandle::name(&table).to_owned()).collect();
    assert!(names.iter().all(|name| name.starts_with("v2.")) && names.len() == 7, "{names:?}");
}

#[test]
fn power_that_fails_while_format_1_is_taken_over_leaves_one_or_the_other() {
    use std::io::Read;
    let mut golden = Vec::new();
    let packed = &include_bytes!("../../../tests/store/v1.redb.gz")[..];
    flate2::read::GzDecoder::new(packed).read_to_end(&mut golden).unwrap();
    let mut died = 0;
    for at in 1..200 {
        let disk = Disk::default();
        disk.change(|disk| disk.clone_from(&golden));
        disk.die_in(at);
        drop(open_file(&disk, u64::MAX));
        died += usize::from(disk.is_dead());
        disk.restart(at);
        let (file, _, loaded) = open_file(&disk, u64::MAX).unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert_eq!((loaded.sessions.len(), loaded.retained.len()), (2, 1), "at {at}");
        drop(file);
    }
    assert!(died > 20, "{died}");
}

/// A client, its identifiers of QoS 2 publications, and lives of the node that end in any way or do without
/// the file.
#[test]
fn a_released_identifier_is_never_believed_whatever_became_of_the_file_in_between() {
    let seeds = std::env::var("CAUSEWAY_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in seeds.map_or(0..60, |seed: u64| seed..seed + 1) {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let publisher = Arc::new(Publisher::default());
        // Not released; true: its PUBREC was sent.
        let mut held = BTreeMap::<u16, bool>::new();
        let (mut next, mut stored) = (1_u16, false);
        for life in 1..12 {
            if random.random_bool(0.2) {
                // Sessions are in memory alone; the client releases whatever it has.
                held.clear();
                continue;
            }
            if random.random_bool(0.6) {
                disk.die_in(random.random_range(0..200));
            }
            let lives = Lives { before: (life > 1).then_some(life - 1), now: life };
            let (store, loaded) = match open_in(&disk, lives) {
                Ok(opened) => opened,
                Err(error) => {
                    // A file that was being made when the power failed is refused where its first bytes are
                    // half written.
                    println!("seed {seed}: {error}");
                    assert!(disk.is_dead() || !stored, "seed {seed}: {error}");
                    if !disk.is_dead() {
                        disk.change(Vec::clear);
                    }
                    disk.restart(random.random());
                    continue;
                }
            };
            let received: BTreeSet<u16> =
                loaded.sessions.iter().flat_map(|found| found.received.iter().map(|(id, _)| *id)).collect();
            for identifier in &received {
                assert!(held.contains_key(identifier), "seed {seed}: {identifier} in life {life}");
            }
            if loaded.continues && stored {
                let promised = held.iter().filter(|(_, promised)| **promised);
                assert!(
                    promised.clone().all(|(identifier, _)| received.contains(identifier)),
                    "seed {seed}: {held:?} {received:?} in life {life}"
                );
            } else {
                // Unknown here: PUBREL is answered at once.
                held.clear();
            }
            let session = loaded.sessions.first().map_or_else(|| store.new_session(), |found| found.session);
            store.put(Op::Session { session, record: Box::new(record("c")) });
            stored = settled(&store, store.wake_at(&publisher)) || stored;
            for _ in 0..random.random_range(0..8) {
                if random.random_bool(0.6) {
                    store.put(Op::Received { session, identifier: next, sinks: false });
                    held.insert(next, settled(&store, store.wake_at(&publisher)));
                    next += 1;
                } else if let Some(identifier) = held.keys().copied().choose(&mut random) {
                    store.put(Op::Forgotten { session, identifier });
                    if settled(&store, store.wake_at(&publisher)) {
                        held.remove(&identifier);
                    } else {
                        // It sends PUBREL until it is answered.
                        held.insert(identifier, false);
                    }
                }
            }
            store.close_and_wait();
            disk.restart(random.random());
        }
    }
}
