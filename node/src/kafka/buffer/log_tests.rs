use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use causeway_protocol::kafka::batch::{BatchBuilder, BatchStamp, Record};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::disk_double::Double;
use super::*;

/// Opens a log and goes on with its marks, as if it were the same life again and again.
fn open(disk: &Double, segment_bytes: u64) -> Result<(Log<Double>, Found), OpenError> {
    let (mut log, found) = Log::open(disk.clone(), segment_bytes)?;
    log.believe(1, found.marks.clone());
    Ok((log, found))
}

fn mark(session: u8, identifier: u16) -> Mark {
    Mark { session: SessionId([session; 16]), identifier }
}

fn place(partition: i32) -> TopicPartition {
    TopicPartition { topic: "t".into(), partition }
}

fn batch(values: &[u64]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for value in values {
        let value = value.to_be_bytes();
        builder.append(&Record { timestamp: 7, key: None, value: Some(&value), headers: &[] });
    }
    builder
}

fn put(log: &mut Log<Double>, partition: i32, values: &[u64]) -> Numbers {
    let builder = batch(values);
    log.put_records(&place(partition), values.len() as u32, 7, builder.encoded_from(0))
}

fn seal(first_sequence: i32, numbers: &[Numbers]) -> Seal {
    let stamp = BatchStamp { producer_id: 5, producer_epoch: 0, base_sequence: first_sequence };
    Seal { stamp, numbers: numbers.to_vec() }
}

/// Number, partition and value of each record found.
fn records(disk: &Double, found: &Found) -> Vec<(u64, i32, u64)> {
    let mut records = Vec::new();
    let visited = found.for_each(&mut disk.clone(), |number, place, record| {
        let value = record.value.and_then(|value| value.try_into().ok()).map(u64::from_be_bytes);
        records.push((number, place.partition, value.unwrap()));
        ControlFlow::Continue(())
    });
    visited.unwrap();
    let places = found.places();
    for (place, count) in &places {
        assert_eq!(records.iter().filter(|(_, p, _)| *p == place.partition).count() as u64, *count);
    }
    assert_eq!(places.values().sum::<u64>(), found.records());
    records
}

#[derive(Default, Clone)]
struct Model {
    /// Durable and needed: number to partition and value.
    needed: BTreeMap<u64, (i32, u64)>,
    /// Put in, not durable.
    put: BTreeMap<u64, (i32, u64)>,
    /// Durable for good.
    done: BTreeSet<u64>,
    /// Done, not durable.
    ending: BTreeSet<u64>,
    /// Durable seals, by partition, and those put in.
    seals: BTreeMap<i32, Vec<Seal>>,
    /// In the order in which they were put in: each replaces the one before.
    new_seals: Vec<(i32, Vec<Seal>)>,
    /// Durable marks with the numbers of their records, and those put in.
    marks: BTreeMap<Mark, u64>,
    new_marks: BTreeMap<Mark, u64>,
    /// Forgotten, which is not durable.
    forgetting: BTreeSet<Mark>,
}

impl Model {
    fn committed(&mut self) {
        self.needed.append(&mut self.put);
        self.marks.append(&mut self.new_marks);
        self.ended();
    }

    fn ended(&mut self) {
        for number in std::mem::take(&mut self.ending) {
            self.needed.remove(&number);
            self.done.insert(number);
        }
        self.seals.extend(std::mem::take(&mut self.new_seals));
        for mark in std::mem::take(&mut self.forgetting) {
            self.marks.remove(&mark);
        }
    }

    /// What was found after a crash is what was promised, and nothing but what was put in.
    fn check(&self, disk: &Double, found: &Found, seed: u64) {
        assert!(found.damage.is_empty() && found.lost == 0, "seed {seed}: {:?}", found.damage);
        let got = records(disk, found);
        assert!(got.is_sorted(), "seed {seed}: out of order");
        let got: BTreeMap<u64, (i32, u64)> = got.into_iter().map(|(n, p, value)| (n, (p, value))).collect();
        for (number, what) in &self.needed {
            assert!(
                got.get(number) == Some(what) || self.ending.contains(number),
                "seed {seed}: record {number} was durable and is not there"
            );
        }
        for (number, what) in &got {
            let known = self.needed.get(number).or_else(|| self.put.get(number));
            assert_eq!(known, Some(what), "seed {seed}: record {number} was never put in, or was done");
        }
        for mark in self.marks.keys().filter(|mark| !self.forgetting.contains(mark)) {
            assert!(found.marks.contains(mark), "seed {seed}: {mark:?} was durable and is not there");
        }
        for mark in &found.marks {
            let durable = self.marks.contains_key(mark);
            let with_record = self.new_marks.get(mark).is_some_and(|number| got.contains_key(number));
            assert!(durable || with_record, "seed {seed}: {mark:?} without its record, or forgotten");
        }
        for (partition, seals) in &self.seals {
            let alive = |seal: &&Seal| seal.numbers.iter().any(|n| got.contains_key(&n.first));
            let old: Vec<&Seal> = seals.iter().filter(alive).collect();
            let theirs: Vec<&Seal> = found.seals.get(&place(*partition)).into_iter().flatten().collect();
            let mut new = self.new_seals.iter().filter(|(theirs, _)| theirs == partition);
            let is_new = new.any(|(_, seals)| theirs.iter().copied().eq(seals.iter().filter(alive)));
            assert!(theirs == old || is_new, "seed {seed}: {theirs:?} for {old:?}");
        }
    }

    fn taken_over(&mut self, disk: &Double, found: &Found) {
        *self = Self {
            needed: records(disk, found).into_iter().map(|(n, p, value)| (n, (p, value))).collect(),
            done: std::mem::take(&mut self.done),
            marks: found.marks.iter().map(|mark| (*mark, 0)).collect(),
            ..Self::default()
        };
        for (place, seals) in &found.seals {
            self.seals.insert(place.partition, seals.clone());
        }
    }
}

struct Run {
    rng: SmallRng,
    model: Model,
    disk: Double,
    next_value: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { rng, model: Model::default(), disk: Double::default(), next_value: 0 }
    }

    fn step(&mut self, log: &mut Log<Double>) -> Result<(), Error> {
        match self.rng.random_range(0..10) {
            0..=4 => {
                let partition = self.rng.random_range(-1..3);
                let values: Vec<u64> =
                    (0..self.rng.random_range(1..6)).map(|n| self.next_value + n).collect();
                self.next_value += values.len() as u64;
                let numbers = put(log, partition, &values);
                if self.rng.random_bool(0.4) {
                    let mark = mark((values[0] % 3) as u8, values[0] as u16);
                    log.put_marks(&[mark]);
                    self.model.new_marks.insert(mark, numbers.first);
                }
                let of = (numbers.first..).zip(values).map(|(number, value)| (number, (partition, value)));
                self.model.put.extend(of);
                if self.rng.random_bool(0.3) {
                    let model = &mut self.model;
                    let unneeded: Vec<Mark> = model.marks.keys().take(2).copied().collect();
                    log.forget(&unneeded);
                    model.forgetting.extend(unneeded);
                }
            }
            5 => {
                let model = &mut self.model;
                let free: Vec<u64> =
                    model.needed.keys().filter(|n| !model.ending.contains(n)).copied().collect();
                // Mostly the oldest, as batches end; now and then one stays behind.
                let skip = usize::from(self.rng.random_bool(0.3)).min(free.len());
                let count = self.rng.random_range(0..20);
                let done: Vec<u64> = free.into_iter().skip(skip).take(count).collect();
                let ranges: Vec<Numbers> = done.iter().map(|n| Numbers { first: *n, count: 1 }).collect();
                log.put_done(&ranges);
                model.ending.extend(done);
            }
            6 => {
                let model = &mut self.model;
                let partition = self.rng.random_range(0..3);
                let of = |(_, (p, _)): &(&u64, &(i32, u64))| *p == partition;
                let free = model.needed.iter().filter(of).filter(|(n, _)| !model.ending.contains(n));
                let seals: Vec<Seal> =
                    free.take(3).map(|(n, _)| seal(*n as i32, &[Numbers { first: *n, count: 1 }])).collect();
                log.put_seals(&place(partition), seals.clone());
                model.new_seals.push((partition, seals));
            }
            7 if self.rng.random_bool(0.3) => {
                let room = self.rng.random_range(0..300);
                self.disk.set_room(self.rng.random_bool(0.6).then_some(room));
            }
            _ => match log.commit() {
                Ok(()) => self.model.committed(),
                Err(Error::Full(_)) if log.has_control() => {}
                Err(Error::Full(_)) => self.model.ended(),
                Err(failed) => return Err(failed),
            },
        }
        Ok(())
    }

    /// Works until the process dies, loses power, and checks what is found; a few times.
    fn go(&mut self, seed: u64, crash_in: impl Fn(&mut SmallRng) -> u64) {
        for _ in 0..4 {
            let (log, found) = match open(&self.disk, 400) {
                Ok(opened) => opened,
                Err(error) => panic!("seed {seed}: {error}"),
            };
            self.model.check(&self.disk, &found, seed);
            self.model.taken_over(&self.disk, &found);
            let mut log = log;
            self.disk.crash_in(crash_in(&mut self.rng));
            for _ in 0..300 {
                if self.step(&mut log).is_err() {
                    break;
                }
            }
            // It may also die while it is opened.
            self.disk.lose_power(&mut self.rng);
            self.disk.set_room(None);
            self.disk.crash_in(self.rng.random_range(1..12));
            if let Ok((_, found)) = open(&self.disk, 400) {
                self.model.check(&self.disk, &found, seed);
            }
            self.disk.lose_power(&mut self.rng);
        }
    }
}

#[test]
fn what_was_durable_is_there_after_any_crash_in_order_and_nothing_else() {
    let seeds = std::env::var("CAUSEWAY_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in seeds.map_or(0..1000, |seed: u64| seed..seed + 1) {
        Run::new(seed).go(seed, |rng| rng.random_range(1..120));
    }
}

#[test]
fn a_crash_at_every_single_operation_loses_nothing() {
    // How many operations it takes without a crash.
    let mut whole = Run::new(1);
    whole.go(1, |_| u64::MAX / 2);
    let operations = whole.disk.operations();
    assert!(operations > 100);
    for at in 1..operations / 4 {
        Run::new(1).go(1, |_| at);
    }
}

#[test]
fn without_syncs_the_crash_test_would_fail() {
    let failed = (0..200).any(|seed| {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut run = Run::new(seed);
            run.disk.ignore_syncs();
            run.go(seed, |rng| rng.random_range(10..120));
        });
        std::panic::catch_unwind(run).is_err()
    });
    assert!(failed);
}

#[test]
fn files_roll_and_go_when_they_are_done_with() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 300).unwrap();
    let mut all = Vec::new();
    for value in 0..50 {
        all.push(put(&mut log, 0, &[value]));
        log.commit().unwrap();
    }
    let files = |disk: &Double| disk.names().iter().filter(|name| name.ends_with(SUFFIX)).count();
    assert!(files(&disk) > 5, "{:?}", disk.names());
    log.put_done(&all);
    log.commit().unwrap();
    assert!(files(&disk) <= 2, "{:?}", disk.names());
    assert_eq!(log.records(), 0);
}

#[test]
fn a_partition_that_does_not_move_does_not_keep_what_the_others_are_done_with() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 2000).unwrap();
    let stuck = put(&mut log, 1, &[1_000_000, 1_000_001]);
    log.commit().unwrap();
    log.put_seals(&place(1), vec![seal(0, &[stuck])]);
    let mut most = 0;
    for value in 0..2000 {
        let numbers = put(&mut log, 0, &[value]);
        log.commit().unwrap();
        log.put_done(&[numbers]);
        most = most.max(log.bytes());
    }
    log.commit().unwrap();
    assert!(most < 20_000, "{most} bytes for two records");
    drop(log);
    let (_, found) = open(&disk, 2000).unwrap();
    assert_eq!(records(&disk, &found), [(stuck.first, 1, 1_000_000), (stuck.first + 1, 1, 1_000_001)]);
    assert_eq!(found.seals[&place(1)], [seal(0, &[stuck])]);
}

#[test]
fn on_a_full_disk_nothing_is_lost_and_the_backlog_can_still_leave() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 100_000).unwrap();
    let first = put(&mut log, 0, &[1, 2]);
    log.commit().unwrap();
    disk.set_room(Some(10));
    put(&mut log, 0, &[3]);
    log.put_seals(&place(0), vec![seal(0, &[first])]);
    // The seal is durable, the record is not.
    assert!(matches!(log.commit(), Err(Error::Full(_))));
    assert!(!log.has_control() && log.has_records());
    let (_, found) = open(&disk, 100_000).unwrap();
    assert_eq!(found.seals[&place(0)].len(), 1);
    assert_eq!(found.records(), 2);
    // The room that was kept for seals is not for records, however often they are tried.
    for _ in 0..3 {
        assert!(matches!(log.commit(), Err(Error::Full(_))));
        assert!(log.has_records());
    }
    disk.set_room(None);
    log.commit().unwrap();
    let (_, found) = open(&disk, 100_000).unwrap();
    assert_eq!(records(&disk, &found).iter().map(|(_, _, value)| *value).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_disk_that_the_log_has_filled_has_room_again_when_all_of_it_is_done() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 10_000_000).unwrap();
    // More than what is kept for seals and ends.
    let first = put(&mut log, 0, &(0..100_000).collect::<Vec<_>>());
    log.commit().unwrap();
    disk.set_room(Some(0));
    put(&mut log, 0, &(100..200).collect::<Vec<_>>());
    let mark = mark(1, 1);
    log.put_marks(&[mark]);
    assert!(matches!(log.commit(), Err(Error::Full(_))));
    // Nobody else takes anything away from the disk.
    disk.set_room(Some(500));
    log.put_done(&[first]);
    assert!(matches!(log.commit(), Err(Error::Full(_))));
    let (_, found) = survey(&mut disk.clone()).unwrap();
    assert_eq!((found.records(), found.marks.len()), (0, 0), "what is not durable is not announced");
    log.commit().unwrap();
    let newest = disk.names().into_iter().find(|name| name.ends_with(SUFFIX)).unwrap();
    assert_eq!(newest, file_name(2));
    let (_, found) = survey(&mut disk.clone()).unwrap();
    assert_eq!((found.records(), found.marks.contains(&mark)), (100, true));
    // What is not whole in the new file is a torn end there, and no damage.
    let end = log.bytes() as usize;
    drop(log);
    disk.damage(&newest, end - 10);
    let (_, found) = open(&disk, 100_000).unwrap();
    assert!(found.damage.is_empty() && found.torn > 0, "{found:?}");
}

#[test]
fn after_a_failed_sync_nothing_is_reported_durable_any_more() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 1000).unwrap();
    disk.fail_syncs();
    put(&mut log, 0, &[1]);
    assert!(matches!(log.commit(), Err(Error::Failed(_))));
    disk.lose_power(&mut SmallRng::seed_from_u64(0));
    assert!(matches!(log.commit(), Err(Error::Failed(_))));
}

#[test]
fn an_unreadable_middle_is_reported_set_aside_and_counted() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 100_000).unwrap();
    let mut offsets = Vec::new();
    for value in 0..5 {
        offsets.push(log.bytes());
        put(&mut log, 0, &[value * 2, value * 2 + 1]);
        log.commit().unwrap();
    }
    drop(log);
    disk.damage(&file_name(1), offsets[2] as usize + 40);
    let (reports, _) = survey(&mut disk.clone()).unwrap();
    assert_eq!(reports[0].damage[0].offset, offsets[2]);
    let (log, found) = open(&disk, 100_000).unwrap();
    let values: Vec<u64> = records(&disk, &found).into_iter().map(|(_, _, value)| value).collect();
    assert_eq!(values, [0, 1, 2, 3, 6, 7, 8, 9]);
    let gap = Gap { offset: offsets[2], len: offsets[3] - offsets[2] };
    assert_eq!(found.damage, [Damage { name: file_name(1), gap }]);
    assert_eq!(found.lost, 2);
    assert!(disk.names().contains(&format!("damaged-{}", file_name(1))));
    assert!(log.bytes() > 0);
}

#[test]
fn where_it_is_damaged_what_may_have_been_sent_is_counted() {
    let disk = Double::default();
    let (mut log, _) = open(&disk, 100_000).unwrap();
    let first = put(&mut log, 0, &[1, 2]);
    let second = put(&mut log, 0, &[3]);
    let third = put(&mut log, 1, &[4, 5, 6]);
    log.commit().unwrap();
    log.put_seals(&place(0), vec![seal(0, &[first]), seal(2, &[second])]);
    log.commit().unwrap();
    let seals_end = log.bytes() as usize;
    log.put_done(&[first]);
    log.commit().unwrap();
    let done_end = log.bytes() as usize;
    log.put_seals(&place(1), vec![seal(0, &[third])]);
    log.commit().unwrap();
    drop(log);
    let found = |damaged: &[usize]| {
        let disk = disk.copy();
        for offset in damaged {
            disk.damage(&file_name(1), *offset);
        }
        let (_, found) = open(&disk, 100_000).unwrap();
        (
            found.records(),
            found.lost,
            found.unsealed.into_iter().map(|(place, n)| (place.partition, n)).collect(),
        )
    };
    assert_eq!(found(&[]), (4, 0, vec![]));
    // Nobody knows any more that a batch is done: it is sent again as it was, which Kafka knows.
    assert_eq!(found(&[done_end - 3]), (6, 0, vec![]));
    // Nor in which batch a record was.
    assert_eq!(found(&[seals_end - 3]), (4, 0, vec![(0, 1)]));
    assert_eq!(found(&[seals_end - 3, done_end - 3]), (6, 0, vec![(0, 3)]));
}

#[test]
fn the_files_say_in_which_life_marks_were_kept_up_to_date() {
    let disk = Double::default();
    // Many files: what they say does not depend on those that are gone.
    let work = |log: &mut Log<Double>| {
        for value in 0..100 {
            let numbers = put(log, 0, &[value]);
            log.commit().unwrap();
            log.put_done(&[numbers]);
        }
        log.commit().unwrap();
    };
    let found = || {
        let (_, found) = survey(&mut disk.clone()).unwrap();
        (found.life.unwrap(), found.marks.into_iter().collect::<Vec<_>>())
    };
    let (mut log, _) = Log::open(disk.clone(), 400).unwrap();
    assert_eq!(found(), (NOBODYS, vec![]));
    log.believe(7, BTreeSet::new());
    put(&mut log, 0, &[1]);
    log.put_marks(&[mark(1, 1), mark(1, 2), mark(2, 1)]);
    log.commit().unwrap();
    assert_eq!(log.marks_of(mark(1, 0).session), [mark(1, 1), mark(1, 2)]);
    log.forget(&[mark(1, 1)]);
    log.commit().unwrap();
    let left = vec![mark(1, 2), mark(2, 1)];
    assert_eq!(found(), (7, left.clone()));
    drop(log);
    // Opened and used, but not believed: nothing says that it was kept up to date in a life after 7.
    let (mut log, opened) = Log::open(disk.clone(), 400).unwrap();
    assert_eq!((opened.life, opened.marks), (Some(7), left.iter().copied().collect()));
    work(&mut log);
    assert_eq!(found(), (7, left.clone()));
    // Part of it is believed.
    log.believe(8, BTreeSet::from([mark(2, 1)]));
    assert_eq!(found(), (7, left), "not before it is durable");
    work(&mut log);
    assert_eq!(found(), (8, vec![mark(2, 1)]));
    drop(log);
    // Whoever does not hear releases any more says so, also of what comes behind.
    let (mut log, _) = Log::open(disk.clone(), 400).unwrap();
    log.believe(9, BTreeSet::from([mark(2, 1)]));
    log.commit().unwrap();
    put(&mut log, 0, &[1]);
    log.put_marks(&[mark(3, 1)]);
    log.forget_all();
    log.commit().unwrap();
    assert_eq!(found().0, NOBODYS);
    put(&mut log, 0, &[2]);
    log.put_marks(&[mark(3, 2)]);
    work(&mut log);
    assert_eq!(found().0, NOBODYS);
}

/// Two records for t/-1, three for t/0, the first two of them sealed, the first for t/-1 done; two marks, one
/// forgotten.
fn golden(golden: &[u8]) -> (Double, Found) {
    let mut disk = Double::default();
    disk.create(&file_name(1)).unwrap();
    disk.append(&file_name(1), golden).unwrap();
    disk.sync(&file_name(1)).unwrap();
    let (_, found) = Log::open(disk.clone(), 100_000).unwrap();
    assert!(found.damage.is_empty() && found.torn == 0);
    assert_eq!(records(&disk, &found), [(1, -1, 11), (2, 0, 20), (3, 0, 21), (4, 0, 22)]);
    let sealed = Numbers { first: 2, count: 2 };
    assert_eq!(found.seals[&place(0)], [seal(7, &[sealed])]);
    (disk, found)
}

#[test]
fn the_golden_file_of_version_2_is_read() {
    let bytes = include_bytes!("../../../tests/buffer/v2.buffer");
    let build = || {
        let disk = Double::default();
        let (mut log, _) = open(&disk, 100_000).unwrap();
        put(&mut log, -1, &[10, 11]);
        let sealed = put(&mut log, 0, &[20, 21]);
        put(&mut log, 0, &[22]);
        log.put_marks(&[mark(5, 6), mark(5, 7)]);
        log.commit().unwrap();
        log.forget(&[mark(5, 6)]);
        log.put_seals(&place(0), vec![seal(7, &[sealed])]);
        log.put_done(&[Numbers { first: 0, count: 1 }]);
        log.commit().unwrap();
        disk
    };
    let written = build().read(&file_name(1)).unwrap();
    assert_eq!(written, bytes, "the format has changed: make it version 3");
    let (_, found) = golden(bytes);
    assert_eq!((found.life, found.marks), (Some(1), BTreeSet::from([mark(5, 7)])));
}

#[test]
fn the_golden_file_of_version_1_is_read_without_its_marks_and_followed_by_one_of_version_2() {
    let bytes = include_bytes!("../../../tests/buffer/v1.buffer");
    let (mut disk, found) = golden(bytes);
    assert_eq!((found.life, found.marks.len()), (Some(1), 0));
    assert_eq!(disk.read(&file_name(1)).unwrap(), bytes, "it stays as it is");
    let version = |disk: &mut Double, file| v2::read_file_header(&disk.read(&file_name(file)).unwrap());
    assert_eq!((version(&mut disk, 1), version(&mut disk, 2)), (Ok(1), Ok(2)));
    // Both together are a log like any other.
    let (mut log, _) = open(&disk, 100_000).unwrap();
    let new = put(&mut log, 0, &[23]);
    log.put_marks(&[mark(5, 8)]);
    log.commit().unwrap();
    drop(log);
    let (mut log, found) = open(&disk, 100_000).unwrap();
    assert_eq!((found.records(), found.marks), (5, BTreeSet::from([mark(5, 8)])));
    log.put_done(&[Numbers { first: 1, count: 4 }, new]);
    log.commit().unwrap();
    assert_eq!(log.records(), 0);
    assert!(!disk.names().contains(&file_name(1)), "{:?}", disk.names());
}

#[test]
fn a_file_of_version_1_is_taken_over_on_a_full_disk() {
    let mut disk = Double::default();
    drop(Log::open(disk.clone(), 100_000).unwrap());
    disk.remove(&file_name(1)).unwrap();
    disk.create(&file_name(1)).unwrap();
    disk.append(&file_name(1), include_bytes!("../../../tests/buffer/v1.buffer")).unwrap();
    disk.sync(&file_name(1)).unwrap();
    disk.set_room(Some(0));
    let (mut log, found) = Log::open(disk.clone(), 100_000).unwrap();
    assert_eq!(found.records(), 4);
    log.put_done(&[Numbers { first: 1, count: 4 }]);
    log.commit().unwrap();
    assert_eq!(log.records(), 0);
}

#[test]
fn a_newer_format_is_refused_by_its_version() {
    let mut disk = Double::default();
    let mut header = v2::file_header(1);
    header[9] = 3;
    disk.create(&file_name(1)).unwrap();
    disk.append(&file_name(1), &header).unwrap();
    assert!(matches!(open(&disk, 1000), Err(OpenError::Version { version: 3, .. })));
}
