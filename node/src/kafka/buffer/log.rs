//! The log of one bridge's buffer: records, seals and what is done, in files that are only ever appended to.
//!
//! Knows nothing of threads or time. Entries are put in ([`Log::put_records`] and others), and
//! [`Log::commit`] makes all of them durable with one sync. Record numbers rise in the order in which records
//! are put in, over all places, and stay for the record's life.
//!
//! Invariants:
//! * What [`Log::commit`] reported durable is found by the next [`Log::open`], in order, until it is done.
//! * A file begins after the one before it is durable, so that a broken entry in any file but the last is
//!   damage.
//! * Files go from the oldest on, one after the other: what a file says of records in older ones is needed as
//!   long as those are there.
//! * A file that is nearly done with does not hold up the others: what it still holds is written again at the
//!   end.
//! * Marks ([`Mark`]) become durable with the records they were put in with, and stay until they are
//!   forgotten: each file begins with all that there are, so that none depends on an older file. They are
//!   those of a life of the node; another one that goes on with them says so ([`Log::believe`]), and until
//!   then the files say what they said.
//! * On a full disk the newest file goes as well, when nothing in it is needed: what waits for room gets it.
//! * A failed sync ends the log's use ([`Error::Failed`]). Without room ([`Error::Full`]) nothing is lost:
//!   what was put in stays, and seals and ends go first, into room that is kept for them, so that the backlog
//!   can leave.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use causeway_protocol::kafka::batch::{RecordIter, RecordRef};

use super::TopicPartition;
use super::disk::Disk;
use super::live::{Live, Numbers};
use super::v2::{self, BadHeader, Entry, FoundEntry, Gap, Seal, Writer};
use crate::flow::{Mark, SessionId};

/// Files end so.
pub const SUFFIX: &str = ".buffer";

/// File that keeps room for seals and ends on a full disk.
pub const RESERVE_NAME: &str = "reserve";

/// Size of that: some ten thousand seals.
const RESERVE_BYTES: usize = 1 << 20;

/// Room for records that is kept from commit to commit.
const KEPT_BYTES: usize = 16 << 20;

/// Files may take this many times the needed bytes before the oldest is written again.
const WASTE: u64 = 2;

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No room on the disk; to be tried again. Seals and ends may have become durable all the same.
    #[error("the disk is full: {0}")]
    Full(io::Error),
    /// The disk does not do what it is told; nothing more will become durable.
    #[error("the disk fails: {0}")]
    Failed(io::Error),
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or the directory cannot be used.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A newer causeway wrote it.
    #[error(
        "{name} has version {version} of the format, this causeway knows versions 1 and 2; use the newer causeway"
    )]
    Version {
        /// Which file.
        name: String,
        /// Its version.
        version: u16,
    },
}

/// Something in a file that cannot be read although it was durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which file.
    pub name: String,
    /// Where, and how many bytes.
    pub gap: Gap,
}

/// Bytes of a file that are read at once, where entries are smaller.
const WINDOW: usize = 1 << 20;

/// Records that follow one another, and where in the files they stand.
#[derive(Debug, Clone)]
pub struct StoredRun {
    /// Where they go.
    pub place: TopicPartition,
    /// Their numbers: some of the entry's.
    pub numbers: Numbers,
    file: u64,
    offset: u64,
    /// Of the whole entry.
    len: usize,
}

/// Reads entries that mostly follow one another.
#[derive(Default)]
struct Reader {
    file: u64,
    offset: u64,
    bytes: Vec<u8>,
}

impl Reader {
    /// The entry of a run, which is checked once more.
    fn entry(&mut self, disk: &mut impl Disk, run: &StoredRun) -> io::Result<Entry<'_>> {
        let from = run.offset.checked_sub(self.offset).map(|from| from as usize);
        let mut from = from.filter(|from| self.file == run.file && from + run.len <= self.bytes.len());
        if from.is_none() {
            self.bytes = disk.read_at(&file_name(run.file), run.offset, run.len.max(WINDOW))?;
            (self.file, self.offset, from) = (run.file, run.offset, Some(0));
        }
        let rest = from.and_then(|from| self.bytes.get(from..from + run.len));
        rest.and_then(v2::entry).ok_or_else(|| {
            let (name, offset) = (file_name(run.file), run.offset);
            io::Error::new(io::ErrorKind::InvalidData, format!("{name} has changed at offset {offset}"))
        })
    }
}

/// Findings of a survey.
#[derive(Debug, Default)]
pub struct Found {
    /// Needed records, by number.
    pub runs: Vec<StoredRun>,
    /// Batches that may have been sent, by place, in order.
    pub seals: BTreeMap<TopicPartition, Vec<Seal>>,
    /// Parts that cannot be read.
    pub damage: Vec<Damage>,
    /// Record numbers that damage has taken: at most this many records are lost.
    pub lost: u64,
    /// Records that may have been sent, and cannot be sent as they were, because of damage: to their batch,
    /// or to what may have said what became of them. At most this many are there twice.
    pub unsealed: BTreeMap<TopicPartition, u64>,
    /// Bytes of a torn end that were cut.
    pub torn: u64,
    /// QoS 2 publications that were not released.
    pub marks: BTreeSet<Mark>,
    /// In which life of the node they were kept up to date.
    pub life: Option<u64>,
    live: Live,
    known: BTreeSet<TopicPartition>,
    /// Damaged entries may have been about records below this one.
    suspect_below: u64,
}

impl Found {
    /// Reads the records that are needed from the disk on which they were found, and visits them in order,
    /// each once, until it is enough.
    ///
    /// # Errors
    /// A file cannot be read, or has changed meanwhile.
    pub fn for_each(
        &self,
        disk: &mut impl Disk,
        mut visit: impl FnMut(u64, &TopicPartition, &RecordRef<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut reader = Reader::default();
        for run in &self.runs {
            let Entry::Records { numbers, base_timestamp, bytes, .. } = reader.entry(disk, run)? else {
                continue;
            };
            let records = RecordIter::over(bytes, numbers.count as usize, base_timestamp).flatten();
            let before = run.numbers.first.saturating_sub(numbers.first) as usize;
            for (number, record) in (run.numbers.first..run.numbers.end()).zip(records.skip(before)) {
                if visit(number, &run.place, &record).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// How many records are needed, by place.
    pub fn places(&self) -> BTreeMap<TopicPartition, u64> {
        let mut places = BTreeMap::new();
        for run in &self.runs {
            *places.entry(run.place.clone()).or_default() += u64::from(run.numbers.count);
        }
        places
    }

    /// Needed records topic by topic: a part each, of records and seals alone.
    pub fn by_topic(self) -> BTreeMap<Arc<str>, Self> {
        let mut parts = BTreeMap::<Arc<str>, Self>::new();
        for run in self.runs {
            let part = parts.entry(run.place.topic.clone()).or_default();
            part.live.insert(run.numbers, run.file);
            part.runs.push(run);
        }
        for (place, seals) in self.seals {
            parts.entry(place.topic.clone()).or_default().seals.insert(place, seals);
        }
        for (place, records) in self.unsealed {
            parts.entry(place.topic.clone()).or_default().unsealed.insert(place, records);
        }
        parts
    }

    /// Records that are needed.
    pub fn records(&self) -> u64 {
        self.live.count()
    }

    /// Takes an entry into account and gives the highest number it names.
    fn apply(&mut self, found: FoundEntry<'_>, file: u64) -> Option<u64> {
        match found.entry {
            Entry::Records { place, numbers, .. } => {
                self.live.insert(numbers, file);
                let place = self.known(place);
                self.runs.push(StoredRun { place, numbers, file, offset: found.offset, len: found.len });
                Some(numbers.end() - 1)
            }
            Entry::Seals { place, seals } => {
                let highest =
                    seals.iter().flat_map(|seal| &seal.numbers).map(|numbers| numbers.end() - 1).max();
                self.seals.insert(place, seals);
                highest
            }
            Entry::Done(done) => {
                for numbers in &done {
                    self.live.remove(*numbers);
                }
                done.iter().map(|numbers| numbers.end() - 1).max()
            }
            Entry::Marks(marks) => {
                self.marks.extend(marks);
                None
            }
            Entry::Forgotten(marks) => {
                for mark in marks {
                    self.marks.remove(&mark);
                }
                None
            }
            Entry::AllMarks { life, marks } => {
                self.life = Some(life);
                self.marks = marks.into_iter().collect();
                None
            }
        }
    }

    /// This place, sharing its name with those that were found before.
    fn known(&mut self, place: TopicPartition) -> TopicPartition {
        if let Some(known) = self.known.get(&place) {
            return known.clone();
        }
        self.known.insert(place.clone());
        place
    }

    /// Combines the meaning of all entries.
    fn finish(&mut self) {
        if !self.damage.is_empty() {
            self.lost = self.missing();
        }
        let live = &self.live;
        // A run may be in two files, after a crash while it was written again: what counts is the younger
        // one.
        let needed = |run: StoredRun| {
            let parts = live.within(run.numbers, run.file).into_iter();
            parts.map(move |numbers| StoredRun { numbers, ..run.clone() })
        };
        self.runs = std::mem::take(&mut self.runs).into_iter().flat_map(needed).collect();
        self.runs.sort_by_key(|run| run.numbers.first);
        self.seals.retain(|_, seals| {
            seals.retain(|seal| seal.numbers.iter().any(|numbers| live.covers_any(*numbers)));
            // Behind a batch that is not whole Kafka would take none as it was.
            let whole = |seal: &Seal| seal.numbers.iter().all(|numbers| live.covers(*numbers));
            seals.truncate(seals.iter().position(|seal| !whole(seal)).unwrap_or(seals.len()));
            !seals.is_empty()
        });
        let mut sealed = Live::default();
        for numbers in self.seals.values().flatten().flat_map(|seal| &seal.numbers) {
            sealed.insert(*numbers, 0);
        }
        for run in &self.runs {
            let count =
                self.suspect_below.saturating_sub(run.numbers.first).min(u64::from(run.numbers.count));
            let suspects = Numbers { count: count as u32, ..run.numbers };
            let open = count - sealed.overlap(suspects);
            if open > 0 {
                *self.unsealed.entry(run.place.clone()).or_default() += open;
            }
        }
    }

    /// Numbers between the lowest and the highest that no run names.
    fn missing(&self) -> u64 {
        let mut seen = Live::default();
        for run in &self.runs {
            seen.insert(run.numbers, 0);
        }
        let (low, high) =
            seen.iter().fold((u64::MAX, 0), |(low, high), (first, end, _)| (low.min(first), high.max(end)));
        high.saturating_sub(low).saturating_sub(seen.count())
    }
}

struct FileInfo {
    number: u64,
    len: u64,
    /// Records ever written to it.
    records: u64,
}

impl FileInfo {
    fn name(&self) -> String {
        file_name(self.number)
    }
}

/// The name of the file with this number.
pub fn file_name(number: u64) -> String {
    format!("{number:020}{SUFFIX}")
}

/// Log of a disk buffer; the module documentation lists the invariants.
pub struct Log<D> {
    disk: D,
    segment_bytes: u64,
    files: VecDeque<FileInfo>,
    live: Live,
    seals: BTreeMap<TopicPartition, Vec<Seal>>,
    next_number: u64,
    /// Seals and ends.
    control: Vec<u8>,
    /// Records.
    data: Vec<u8>,
    put: Vec<Numbers>,
    done: Vec<Numbers>,
    new_seals: BTreeMap<TopicPartition, Vec<Seal>>,
    /// Durable, or about to be with `control`.
    marks: BTreeSet<Mark>,
    /// Those in `data`.
    new_marks: BTreeSet<Mark>,
    /// Whose they are; [`NOBODYS`]: they do not count any more.
    life: u64,
    has_reserve: bool,
    failed: bool,
}

/// No life has this number.
const NOBODYS: u64 = 0;

impl<D: Disk> Log<D> {
    /// Opens what is there, or begins anew. `segment_bytes`: a file that has reached it is followed by the
    /// next.
    pub fn open(mut disk: D, segment_bytes: u64) -> Result<(Self, Found), OpenError> {
        let mut found = Found::default();
        let mut numbers = numbered_files(&mut disk)?;
        let begun = begun_files(&mut disk, &numbers)?;
        for unborn in numbers.split_off(begun).into_iter().rev() {
            found.torn += disk.read(&file_name(unborn))?.len() as u64;
            disk.remove(&file_name(unborn))?;
            disk.sync_dir()?;
        }
        let mut files = VecDeque::new();
        let mut highest = None;
        let mut usable_end = false;
        let mut version = v2::VERSION;
        while let Some(number) = (!numbers.is_empty()).then(|| numbers.remove(0)) {
            let (name, is_last) = (file_name(number), numbers.is_empty());
            let bytes = disk.read(&name)?;
            match v2::read_file_header(&bytes) {
                Ok(found) => version = found,
                Err(BadHeader::Version(version)) => return Err(OpenError::Version { name, version }),
                Err(_) => {
                    let gap = Gap { offset: 0, len: v2::FILE_HEADER_LEN as u64 };
                    found.damage.push(Damage { name: name.clone(), gap });
                }
            }
            let mut scanned = v2::scan(&bytes);
            let mut len = bytes.len() as u64;
            let first_torn = scanned.gaps.iter().find(|gap| is_last && gap.offset >= scanned.synced).copied();
            if let Some(torn) = first_torn {
                scanned.entries.retain(|found| found.offset < torn.offset);
                scanned.gaps.retain(|gap| gap.offset < torn.offset);
                disk.truncate(&name, torn.offset)?;
                found.torn += len - torn.offset;
                len = torn.offset;
            }
            usable_end = scanned.gaps.is_empty() && found.damage.iter().all(|damage| damage.name != name);
            for gap in scanned.gaps {
                found.damage.push(Damage { name: name.clone(), gap });
            }
            if is_last {
                // Writes of a killed process may be in memory alone, and is believed from here on.
                disk.sync(&name)?;
            }
            if found.damage.iter().any(|damage| damage.name == name) {
                set_aside(&mut disk, &name, &bytes)?;
            }
            let mut records = 0;
            for entry in scanned.entries {
                if let Entry::Records { numbers, .. } = &entry.entry {
                    records += u64::from(numbers.count);
                }
                highest = highest.max(found.apply(entry, number));
            }
            if found.damage.iter().any(|damage| damage.name == name) {
                found.suspect_below = highest.map_or(0, |highest| highest.saturating_add(1));
            }
            files.push_back(FileInfo { number, len, records });
        }
        found.finish();
        let mut log = Self {
            disk,
            segment_bytes,
            live: found.live.clone(),
            seals: found.seals.clone(),
            next_number: highest.map_or(0, |highest: u64| highest.saturating_add(1)),
            control: Vec::new(),
            data: Vec::new(),
            put: Vec::new(),
            done: Vec::new(),
            new_seals: BTreeMap::new(),
            marks: found.marks.clone(),
            new_marks: BTreeSet::new(),
            life: found.life.unwrap_or(NOBODYS),
            has_reserve: false,
            failed: false,
            files,
        };
        if log.files.is_empty() || !usable_end || version != v2::VERSION {
            log.begin_first_file()?;
        }
        log.has_reserve = log.disk.list()?.iter().any(|name| name == RESERVE_NAME);
        match log.keep_reserve() {
            Err(error) if !is_full(&error) => return Err(error.into()),
            // Records will have to wait for it.
            _ => {}
        }
        log.remove_unneeded()?;
        Ok((log, found))
    }

    /// Puts in a run of `count` encoded records (at least 1) and gives their numbers.
    pub fn put_records(
        &mut self,
        place: &TopicPartition,
        count: u32,
        base_timestamp: i64,
        bytes: &[u8],
    ) -> Numbers {
        let numbers = Numbers { first: self.next_number, count };
        self.next_number = numbers.end();
        let synced = self.synced();
        Writer::new(&mut self.data, synced).records(place, numbers, base_timestamp, bytes);
        self.put.push(numbers);
        numbers
    }

    /// These are the batches of a place that are under way, all of them.
    pub fn put_seals(&mut self, place: &TopicPartition, seals: Vec<Seal>) {
        let synced = self.synced();
        Writer::new(&mut self.control, synced).seals(place, &seals);
        self.new_seals.insert(place.clone(), seals);
    }

    /// These records are no longer needed.
    pub fn put_done(&mut self, done: &[Numbers]) {
        if done.is_empty() {
            return;
        }
        let synced = self.synced();
        Writer::new(&mut self.control, synced).done(done);
        self.done.extend_from_slice(done);
    }

    /// These are to be remembered from when the records put in so far are durable.
    pub fn put_marks(&mut self, marks: &[Mark]) {
        if marks.is_empty() {
            return;
        }
        let synced = self.synced();
        Writer::new(&mut self.data, synced).marks(marks);
        self.new_marks.extend(marks);
    }

    /// These are not needed any more.
    pub fn forget(&mut self, marks: &[Mark]) {
        let mut remove = |mark: &&Mark| self.marks.remove(mark) | self.new_marks.remove(mark);
        let known: Vec<Mark> = marks.iter().filter(|mark| remove(mark)).copied().collect();
        if !known.is_empty() {
            let synced = self.synced();
            Writer::new(&mut self.control, synced).forgotten(&known);
        }
    }

    /// Of the marks that were found these count in the life `now`, in which they are kept up to date from
    /// here on.
    pub fn believe(&mut self, now: u64, marks: BTreeSet<Mark>) {
        (self.life, self.marks) = (now, marks);
        self.put_all_marks();
    }

    /// None of them counts any more, nor does any that is put in from here on.
    pub fn forget_all(&mut self) {
        self.life = NOBODYS;
        self.marks.clear();
        self.new_marks.clear();
        self.put_all_marks();
    }

    /// The marks of a session.
    pub fn marks_of(&self, session: SessionId) -> Vec<Mark> {
        let (first, last) = (Mark { session, identifier: 0 }, Mark { session, identifier: u16::MAX });
        let of = |marks: &BTreeSet<Mark>| marks.range(first..=last).copied().collect::<Vec<_>>();
        [of(&self.marks), of(&self.new_marks)].concat()
    }

    fn put_all_marks(&mut self) {
        let synced = self.synced();
        Writer::new(&mut self.control, synced).all_marks(self.life, &self.marks);
    }

    /// The number that the next record will get: where everything is durable, all below it are.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// True where something was put in and is not durable.
    pub fn has_work(&self) -> bool {
        !self.control.is_empty() || !self.data.is_empty()
    }

    /// True where records are among that.
    pub fn has_records(&self) -> bool {
        !self.data.is_empty()
    }

    /// Bytes of records that were put in and are not durable.
    pub fn record_bytes(&self) -> usize {
        self.data.len()
    }

    /// Makes durable what was put in.
    ///
    /// # Errors
    /// [`Error::Full`]: seals and ends are durable if [`Self::has_control`] is false afterwards; the rest
    /// waits for the next call. [`Error::Failed`]: for good.
    pub fn commit(&mut self) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed(io::Error::other("it failed before")));
        }
        self.commit_or_fail().inspect_err(|error| self.failed = matches!(error, Error::Failed(_)))
    }

    /// True where seals or ends are not durable.
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    fn commit_or_fail(&mut self) -> Result<(), Error> {
        if !self.has_work() {
            return Ok(());
        }
        self.write_out()?;
        self.rewrite_waste()
    }

    /// As [`Self::commit`], and leaves files where they are that are needed.
    fn write_out(&mut self) -> Result<(), Error> {
        let mut full = None;
        // The room that is kept for seals and ends comes first: records must not take it.
        let reserved = if self.data.is_empty() { Ok(()) } else { self.keep_reserve() };
        let appended = match reserved {
            Ok(()) => self.append(true),
            Err(error) if is_full(&error) => Err(Error::Full(error)),
            Err(error) => Err(Error::Failed(error)),
        };
        match appended {
            Ok(()) => {}
            Err(Error::Full(error)) => {
                full = Some(error);
                if std::mem::take(&mut self.has_reserve) {
                    self.disk.remove(RESERVE_NAME).map_err(Error::Failed)?;
                }
                self.append(false)?;
                self.give_up_newest().map_err(Error::Failed)?;
            }
            Err(failed) => return Err(failed),
        }
        self.remove_unneeded().map_err(Error::Failed)?;
        if let Some(error) = full {
            return Err(Error::Full(error));
        }
        if self.files.back().is_some_and(|file| file.len >= self.segment_bytes) {
            match self.begin_file() {
                // Then this file goes on growing.
                Err(error) if is_full(&error) => {}
                begun => begun.map_err(Error::Failed)?,
            }
        }
        Ok(())
    }

    /// Appends and syncs: seals and ends, and records `with` them. Nothing has happened where it returns
    /// `Full`.
    fn append(&mut self, with_records: bool) -> Result<(), Error> {
        let Some(file) = self.files.back_mut() else { return Ok(()) };
        let name = file.name();
        let parts = [&self.control, if with_records { &self.data } else { &const { Vec::new() } }];
        for part in parts.iter().filter(|part| !part.is_empty()) {
            if let Err(error) = self.disk.append(&name, part) {
                if !is_full(&error) {
                    return Err(Error::Failed(error));
                }
                self.disk.truncate(&name, file.len).map_err(Error::Failed)?;
                return Err(Error::Full(error));
            }
        }
        if parts.iter().all(|part| part.is_empty()) {
            return Ok(());
        }
        self.disk.sync(&name).map_err(Error::Failed)?;
        file.len += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let number = file.number;
        self.control.clear();
        if with_records {
            self.data.clear();
            self.marks.append(&mut self.new_marks);
            // A file that was written again is no reason to keep so much.
            self.data.shrink_to(KEPT_BYTES);
            for numbers in self.put.drain(..) {
                file.records += u64::from(numbers.count);
                self.live.insert(numbers, number);
            }
        }
        for numbers in self.done.drain(..) {
            self.live.remove(numbers);
        }
        self.seals.append(&mut self.new_seals);
        self.seals.retain(|_, seals| !seals.is_empty());
        Ok(())
    }

    fn synced(&self) -> u64 {
        self.files.back().map_or(0, |file| file.len)
    }

    /// As [`Self::begin_file`], where nothing can be written without: on a full disk in the room that is
    /// kept.
    fn begin_first_file(&mut self) -> io::Result<()> {
        match self.begin_file() {
            Err(error) if is_full(&error) && self.disk.list()?.iter().any(|name| name == RESERVE_NAME) => {
                self.disk.remove(RESERVE_NAME)?;
                self.begin_file()
            }
            begun => begun,
        }
    }

    fn begin_file(&mut self) -> io::Result<()> {
        let number = self.files.back().map_or(1, |file| file.number + 1);
        let name = file_name(number);
        self.disk.create(&name)?;
        let mut head = v2::file_header(number).to_vec();
        Writer::new(&mut head, 0).all_marks(self.life, &self.marks);
        let written = self
            .disk
            .append(&name, &head)
            .and_then(|()| self.disk.sync(&name))
            .and_then(|()| self.disk.sync_dir());
        if let Err(error) = written {
            // It would be in the way of the next attempt.
            let _ = self.disk.remove(&name);
            return Err(error);
        }
        self.files.push_back(FileInfo { number, len: head.len() as u64, records: 0 });
        Ok(())
    }

    /// Begins a file where the newest one holds nothing needed, so that it can go; for a disk that is full.
    fn give_up_newest(&mut self) -> io::Result<()> {
        let is_waste = |file: &FileInfo| file.records > 0 && self.live.is_unused(file.number);
        if !self.files.back().is_some_and(is_waste) {
            return Ok(());
        }
        match self.begin_file() {
            Err(error) if is_full(&error) => return Ok(()),
            begun => begun?,
        }
        // Waiting entries were to follow on the end of the other file.
        let synced = self.synced();
        v2::set_synced(&mut self.data, synced);
        Ok(())
    }

    /// Removes files from the oldest on that hold nothing needed. Their seals are not needed either: the
    /// records of a batch are in the file of its seal or in older ones.
    fn remove_unneeded(&mut self) -> io::Result<()> {
        while self.files.len() > 1
            && let Some(oldest) = self.files.front()
            && self.live.is_unused(oldest.number)
        {
            self.disk.remove(&oldest.name())?;
            // One after the other: a younger one must not be gone before.
            self.disk.sync_dir()?;
            self.files.pop_front();
        }
        Ok(())
    }

    /// Writes again what the oldest file still holds, where less than half of all is needed.
    fn rewrite_waste(&mut self) -> Result<(), Error> {
        let written: u64 = self.files.iter().map(|file| file.records).sum();
        if self.files.len() <= 2 || self.live.count() * WASTE >= written {
            return Ok(());
        }
        let Some((number, name)) = self.files.front().map(|file| (file.number, file.name())) else {
            return Ok(());
        };
        let bytes = self.disk.read(&name).map_err(Error::Failed)?;
        for found in v2::scan(&bytes).entries {
            if let Entry::Records { place, numbers, base_timestamp, bytes } = found.entry {
                for kept in self.live.within(numbers, number) {
                    let part = records_part(bytes, numbers, kept);
                    let synced = self.synced();
                    Writer::new(&mut self.data, synced).records(&place, kept, base_timestamp, part);
                    self.put.push(kept);
                }
            }
        }
        for (place, seals) in self.seals.clone() {
            let needed: Vec<Seal> = seals.into_iter().filter(|seal| is_needed(&self.live, seal)).collect();
            self.put_seals(&place, needed);
        }
        match self.append(true) {
            Ok(()) => self.remove_unneeded().map_err(Error::Failed),
            // It was only about room.
            Err(Error::Full(_)) => {
                self.control.clear();
                self.data.clear();
                self.put.clear();
                self.new_seals.clear();
                Ok(())
            }
            Err(failed) => Err(failed),
        }
    }

    fn keep_reserve(&mut self) -> io::Result<()> {
        if self.has_reserve {
            return Ok(());
        }
        let made = self
            .disk
            .create(RESERVE_NAME)
            .and_then(|()| self.disk.append(RESERVE_NAME, &vec![0; RESERVE_BYTES]));
        self.has_reserve = made.is_ok();
        if made.is_err() {
            let _ = self.disk.remove(RESERVE_NAME);
        }
        made
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// Records that are needed.
    pub fn records(&self) -> u64 {
        self.live.count()
    }
}

/// Numbers of the log's files, in order.
fn numbered_files(disk: &mut impl Disk) -> io::Result<Vec<u64>> {
    let names = disk.list()?;
    let number = |name: &String| name.strip_suffix(SUFFIX).filter(|n| n.len() == 20)?.parse::<u64>().ok();
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// How many of the files are more than the attempt to begin one. Where that fails for want of room the file
/// before goes on growing, and a crash may bring back what was removed: nothing in it was confirmed.
fn begun_files(disk: &mut impl Disk, numbers: &[u64]) -> io::Result<usize> {
    for (index, number) in numbers.iter().enumerate().rev() {
        let bytes = disk.read(&file_name(*number))?;
        let scanned = v2::scan(&bytes);
        let unborn = match v2::read_file_header(&bytes) {
            Ok(_) => scanned.entries.is_empty(),
            Err(BadHeader::Version(_)) => false,
            Err(_) => scanned.entries.iter().all(|found| matches!(found.entry, Entry::AllMarks { .. })),
        };
        if !unborn {
            return Ok(index + 1);
        }
    }
    Ok(0)
}

/// Keeps a copy of a damaged file, which the log itself will remove when it no longer needs the rest of it.
fn set_aside(disk: &mut impl Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let copy = format!("damaged-{name}");
    if disk.list()?.contains(&copy) {
        return Ok(());
    }
    disk.create(&copy)?;
    disk.append(&copy, bytes)?;
    disk.sync(&copy)?;
    disk.sync_dir()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The bytes of `part`, which lies within `whole`.
fn records_part(bytes: &[u8], whole: Numbers, part: Numbers) -> &[u8] {
    let lens: Vec<usize> = RecordIter::over(bytes, whole.count as usize, 0)
        .flatten()
        .map(|record| record.encoded_len())
        .collect();
    let skip = (part.first - whole.first) as usize;
    let from: usize = lens.iter().take(skip).sum();
    let len: usize = lens.iter().skip(skip).take(part.count as usize).sum();
    bytes.get(from..from + len).unwrap_or(&[])
}

fn is_needed(live: &Live, seal: &Seal) -> bool {
    seal.numbers.iter().any(|numbers| live.covers_any(*numbers))
}

/// One file, for a reader that changes nothing.
#[derive(Debug)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Whole entries in it.
    pub entries: usize,
    /// Records ever written to it.
    pub records: u64,
    /// Fault of its header.
    pub header: Option<BadHeader>,
    /// Unreadable bytes that were durable.
    pub damage: Vec<Gap>,
    /// Unreadable bytes at the end of the last file, which a restart cuts.
    pub torn: u64,
}

/// Reads a log without changing anything.
pub fn survey(disk: &mut impl Disk) -> io::Result<(Vec<FileReport>, Found)> {
    let numbers = numbered_files(disk)?;
    let begun = begun_files(disk, &numbers)?;
    let (mut reports, mut found) = (Vec::new(), Found::default());
    for (index, number) in numbers.iter().enumerate() {
        let (name, is_last) = (file_name(*number), index + 1 >= begun);
        let bytes = disk.read(&name)?;
        let scanned = v2::scan(&bytes);
        let header = v2::read_file_header(&bytes).err();
        let torn_from = scanned.gaps.iter().find(|gap| is_last && gap.offset >= scanned.synced);
        let torn_from = torn_from.map_or(bytes.len() as u64, |gap| gap.offset);
        let damage: Vec<Gap> = scanned.gaps.iter().filter(|gap| gap.offset < torn_from).copied().collect();
        found.damage.extend(damage.iter().map(|gap| Damage { name: name.clone(), gap: *gap }));
        let mut report = FileReport {
            name,
            bytes: bytes.len() as u64,
            entries: 0,
            records: 0,
            // A file whose creation was interrupted holds nothing.
            header: header.filter(|_| index < begun),
            damage,
            torn: bytes.len() as u64 - torn_from,
        };
        for entry in scanned.entries.into_iter().filter(|found| found.offset < torn_from) {
            report.entries += 1;
            if let Entry::Records { numbers, .. } = &entry.entry {
                report.records += u64::from(numbers.count);
            }
            found.apply(entry, *number);
        }
        reports.push(report);
    }
    found.finish();
    Ok((reports, found))
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
