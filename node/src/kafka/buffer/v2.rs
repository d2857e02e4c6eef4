//! Version 2 of the buffer's files, byte for byte as `docs/buffer-format.md` has it. Integers are big-endian.
//!
//! A file is a header and entries. An entry says how far its file was durable when the entry was written: a
//! broken entry below that mark is damage, one above it is the torn end of a write that was not confirmed.

use std::collections::BTreeSet;

use causeway_protocol::kafka::batch::{BatchStamp, RecordIter};

use super::live::Numbers;
use super::{TopicPartition, v1};
use crate::flow::{Mark, SessionId};

/// First bytes of a file.
pub const FILE_MAGIC: [u8; 8] = *b"CWBUFFER";
/// The version this module writes. It reads version 1 as well, see [`v1`].
pub const VERSION: u16 = 2;
/// Bytes of a file's header.
pub const FILE_HEADER_LEN: usize = 24;
/// First bytes of an entry.
pub const ENTRY_MAGIC: [u8; 4] = *b"CWE\x01";
/// Bytes of an entry before its body.
pub const ENTRY_HEADER_LEN: usize = 20;

const RECORDS: u8 = 1;
const SEALS: u8 = 2;
const DONE: u8 = 3;
pub(super) const MARKS: u8 = 4;
pub(super) const FORGOTTEN: u8 = 5;
pub(super) const ALL_MARKS: u8 = 6;

/// Bytes of a mark.
const MARK_LEN: usize = 18;

/// The bounds of a batch that has been or is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// With what it is sent.
    pub stamp: BatchStamp,
    /// Its records, in the order of the batch.
    pub numbers: Vec<Numbers>,
}

impl Seal {
    /// Records of the batch.
    pub fn records(&self) -> u64 {
        self.numbers.iter().map(|numbers| u64::from(numbers.count)).sum()
    }
}

/// Content of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Encoded records with consecutive numbers.
    Records {
        /// Where they go.
        place: TopicPartition,
        /// Their numbers.
        numbers: Numbers,
        /// Base of their timestamps.
        base_timestamp: i64,
        /// As in a Kafka record batch.
        bytes: &'a [u8],
    },
    /// All batches of a place that are under way; in place of what was said of it before.
    Seals {
        /// Which place.
        place: TopicPartition,
        /// In order.
        seals: Vec<Seal>,
    },
    /// Records that are no longer needed.
    Done(Vec<Numbers>),
    /// QoS 2 publications whose records stand before it, to be remembered until they are released.
    Marks(Vec<Mark>),
    /// They were released.
    Forgotten(Vec<Mark>),
    /// All marks that are remembered; in place of what was said before.
    AllMarks {
        /// In which life of the node.
        life: u64,
        /// In any order.
        marks: Vec<Mark>,
    },
}

/// Writes a file's header.
pub fn file_header(number: u64) -> [u8; FILE_HEADER_LEN] {
    let mut header = [0; FILE_HEADER_LEN];
    header[..8].copy_from_slice(&FILE_MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_be_bytes());
    header[12..20].copy_from_slice(&number.to_be_bytes());
    let crc = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&crc.to_be_bytes());
    header
}

/// Why a file's header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    /// Shorter than a header.
    Short,
    /// Not ours, or damaged.
    Damaged,
    /// Written by a newer causeway.
    Version(u16),
}

/// The version in a file's header.
pub fn read_file_header(bytes: &[u8]) -> Result<u16, BadHeader> {
    let header = bytes.get(..FILE_HEADER_LEN).ok_or(BadHeader::Short)?;
    let mut reader = Reader(header);
    let (Some(magic), Some(version), Some(_), Some(_), Some(crc)) =
        (reader.take(8), reader.u16(), reader.u16(), reader.u64(), reader.u32())
    else {
        return Err(BadHeader::Short);
    };
    if magic != FILE_MAGIC {
        return Err(BadHeader::Damaged);
    }
    // Before the checksum: another version may have another header. There is no 0: a torn write has it.
    if ![VERSION, v1::VERSION, 0].contains(&version) {
        return Err(BadHeader::Version(version));
    }
    if crc != crc32c::crc32c(header.get(..20).unwrap_or(&[])) {
        return Err(BadHeader::Damaged);
    }
    Ok(version)
}

/// Appends entries to a buffer.
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    synced: u64,
}

impl<'a> Writer<'a> {
    /// Entries for a file that is durable up to `synced`.
    pub fn new(out: &'a mut Vec<u8>, synced: u64) -> Self {
        Self { out, synced }
    }

    fn entry(&mut self, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.out.extend_from_slice(&ENTRY_MAGIC);
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&self.synced.to_be_bytes());
        self.out.extend_from_slice(&[0; 4]);
        body(self.out);
        let len = (self.out.len() - start - ENTRY_HEADER_LEN) as u32;
        if let Some(field) = self.out.get_mut(start + 4..start + 8) {
            field.copy_from_slice(&len.to_be_bytes());
        }
        let crc = entry_crc(self.out.get(start..).unwrap_or(&[]));
        if let Some(field) = self.out.get_mut(start + 16..start + 20) {
            field.copy_from_slice(&crc.to_be_bytes());
        }
    }

    /// A run of records.
    pub fn records(&mut self, place: &TopicPartition, numbers: Numbers, base_timestamp: i64, bytes: &[u8]) {
        self.entry(|out| {
            out.push(RECORDS);
            put_place(out, place);
            put_numbers(out, numbers);
            out.extend_from_slice(&base_timestamp.to_be_bytes());
            out.extend_from_slice(bytes);
        });
    }

    /// The batches of a place.
    pub fn seals(&mut self, place: &TopicPartition, seals: &[Seal]) {
        self.entry(|out| {
            out.push(SEALS);
            put_place(out, place);
            out.extend_from_slice(&(seals.len() as u32).to_be_bytes());
            for seal in seals {
                out.extend_from_slice(&seal.stamp.producer_id.to_be_bytes());
                out.extend_from_slice(&seal.stamp.producer_epoch.to_be_bytes());
                out.extend_from_slice(&seal.stamp.base_sequence.to_be_bytes());
                out.extend_from_slice(&(seal.numbers.len() as u32).to_be_bytes());
                for numbers in &seal.numbers {
                    put_numbers(out, *numbers);
                }
            }
        });
    }

    /// Records that are no longer needed.
    pub fn done(&mut self, done: &[Numbers]) {
        self.entry(|out| {
            out.push(DONE);
            out.extend_from_slice(&(done.len() as u32).to_be_bytes());
            for numbers in done {
                put_numbers(out, *numbers);
            }
        });
    }
}

impl Writer<'_> {
    /// Marks to be remembered.
    pub fn marks(&mut self, marks: &[Mark]) {
        self.entry(|out| {
            out.push(MARKS);
            put_marks(out, marks.len(), marks.iter());
        });
    }

    /// Marks that are not needed any more.
    pub fn forgotten(&mut self, marks: &[Mark]) {
        self.entry(|out| {
            out.push(FORGOTTEN);
            put_marks(out, marks.len(), marks.iter());
        });
    }

    /// All marks.
    pub fn all_marks(&mut self, life: u64, marks: &BTreeSet<Mark>) {
        self.entry(|out| {
            out.push(ALL_MARKS);
            out.extend_from_slice(&life.to_be_bytes());
            put_marks(out, marks.len(), marks.iter());
        });
    }
}

fn put_marks<'a>(out: &mut Vec<u8>, count: usize, marks: impl Iterator<Item = &'a Mark>) {
    out.extend_from_slice(&(count as u32).to_be_bytes());
    for mark in marks {
        out.extend_from_slice(&mark.session.0);
        out.extend_from_slice(&mark.identifier.to_be_bytes());
    }
}

fn put_place(out: &mut Vec<u8>, place: &TopicPartition) {
    // Kafka's names have at most 249 bytes.
    let topic = place.topic.as_bytes();
    out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
    out.extend_from_slice(topic);
    out.extend_from_slice(&place.partition.to_be_bytes());
}

fn put_numbers(out: &mut Vec<u8>, numbers: Numbers) {
    out.extend_from_slice(&numbers.first.to_be_bytes());
    out.extend_from_slice(&numbers.count.to_be_bytes());
}

/// Over everything but magic and checksum.
/// Makes whole entries ones for a file that is durable up to `synced`.
pub fn set_synced(mut entries: &mut [u8], synced: u64) {
    while let Some(len) = entries.get(4..8).and_then(|len| len.try_into().ok()).map(u32::from_be_bytes) {
        let Some((entry, rest)) = entries.split_at_mut_checked(ENTRY_HEADER_LEN + len as usize) else {
            return;
        };
        if let Some(field) = entry.get_mut(8..16) {
            field.copy_from_slice(&synced.to_be_bytes());
        }
        let crc = entry_crc(entry);
        if let Some(field) = entry.get_mut(16..20) {
            field.copy_from_slice(&crc.to_be_bytes());
        }
        entries = rest;
    }
}

fn entry_crc(entry: &[u8]) -> u32 {
    let head = crc32c::crc32c(entry.get(4..16).unwrap_or(&[]));
    crc32c::crc32c_append(head, entry.get(ENTRY_HEADER_LEN..).unwrap_or(&[]))
}

/// Bytes of a file that are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// An entry of a file.
#[derive(Debug)]
pub struct FoundEntry<'a> {
    /// Where it begins.
    pub offset: u64,
    /// How long it is, its header included.
    pub len: usize,
    /// Content.
    pub entry: Entry<'a>,
}

/// Contents behind a file's header.
#[derive(Debug, Default)]
pub struct Scanned<'a> {
    /// Readable entries, in order.
    pub entries: Vec<FoundEntry<'a>>,
    /// Unreadable gaps between them, in order.
    pub gaps: Vec<Gap>,
    /// How far the file was durable, as far as its entries say.
    pub synced: u64,
}

/// Reads all entries; where one is broken, goes on at the next whole one.
pub fn scan(bytes: &[u8]) -> Scanned<'_> {
    let mut scanned = Scanned::default();
    let mut at = FILE_HEADER_LEN.min(bytes.len());
    let mut gap: Option<usize> = None;
    let close = |gap: &mut Option<usize>, at: usize, gaps: &mut Vec<Gap>| {
        if let Some(from) = gap.take() {
            gaps.push(Gap { offset: from as u64, len: (at - from) as u64 });
        }
    };
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or(&[]);
        if let Some((len, synced, entry)) = read_entry(rest) {
            close(&mut gap, at, &mut scanned.gaps);
            scanned.entries.push(FoundEntry { offset: at as u64, len, entry });
            scanned.synced = scanned.synced.max(synced);
            at += len;
            continue;
        }
        gap.get_or_insert(at);
        let next = rest.get(1..).unwrap_or(&[]).windows(ENTRY_MAGIC.len()).position(|w| w == ENTRY_MAGIC);
        at = next.map_or(bytes.len(), |found| at + 1 + found);
    }
    close(&mut gap, bytes.len(), &mut scanned.gaps);
    scanned
}

/// The entry that these bytes are; `None` where they are not whole.
pub fn entry(bytes: &[u8]) -> Option<Entry<'_>> {
    read_entry(bytes).filter(|(len, ..)| *len == bytes.len()).map(|(_, _, entry)| entry)
}

fn read_entry(bytes: &[u8]) -> Option<(usize, u64, Entry<'_>)> {
    let mut reader = Reader(bytes);
    if reader.take(4)? != ENTRY_MAGIC {
        return None;
    }
    let len = reader.u32()? as usize;
    let synced = reader.u64()?;
    let crc = reader.u32()?;
    let body = reader.take(len)?;
    let whole = ENTRY_HEADER_LEN + len;
    if entry_crc(bytes.get(..whole)?) != crc {
        return None;
    }
    Some((whole, synced, read_body(body).or_else(|| v1::read_marks(body))?))
}

fn read_body(body: &[u8]) -> Option<Entry<'_>> {
    let mut reader = Reader(body);
    match reader.take(1)? {
        [RECORDS] => {
            let (place, numbers) = (reader.place()?, reader.numbers()?);
            let base_timestamp = reader.u64()?.cast_signed();
            let bytes = reader.0;
            let whole = RecordIter::over(bytes, numbers.count as usize, base_timestamp);
            whole.clone().all(|record| record.is_ok()).then_some(())?;
            Some(Entry::Records { place, numbers, base_timestamp, bytes })
        }
        [SEALS] => {
            let place = reader.place()?;
            let mut seals = Vec::new();
            for _ in 0..reader.u32()? {
                let stamp = BatchStamp {
                    producer_id: reader.u64()?.cast_signed(),
                    producer_epoch: reader.u16()?.cast_signed(),
                    base_sequence: reader.u32()?.cast_signed(),
                };
                seals.push(Seal { stamp, numbers: reader.many_numbers()? });
            }
            reader.0.is_empty().then_some(Entry::Seals { place, seals })
        }
        [DONE] => {
            let done = reader.many_numbers()?;
            reader.0.is_empty().then_some(Entry::Done(done))
        }
        [MARKS] => {
            let marks = reader.marks()?;
            reader.0.is_empty().then_some(Entry::Marks(marks))
        }
        [FORGOTTEN] => {
            let marks = reader.marks()?;
            reader.0.is_empty().then_some(Entry::Forgotten(marks))
        }
        [ALL_MARKS] => {
            let (life, marks) = (reader.u64()?, reader.marks()?);
            reader.0.is_empty().then_some(Entry::AllMarks { life, marks })
        }
        _ => None,
    }
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn place(&mut self) -> Option<TopicPartition> {
        let len = self.u16()?;
        let topic = std::str::from_utf8(self.take(usize::from(len))?).ok()?.into();
        Some(TopicPartition { topic, partition: self.u32()?.cast_signed() })
    }

    fn numbers(&mut self) -> Option<Numbers> {
        let numbers = Numbers { first: self.u64()?, count: self.u32()? };
        numbers.first.checked_add(u64::from(numbers.count))?;
        (numbers.count > 0).then_some(numbers)
    }

    fn marks(&mut self) -> Option<Vec<Mark>> {
        let count = self.u32()? as usize;
        // No allocation beyond what is there.
        (count <= self.0.len() / MARK_LEN).then_some(())?;
        (0..count).map(|_| Some(Mark { session: self.session()?, identifier: self.u16()? })).collect()
    }

    fn session(&mut self) -> Option<SessionId> {
        Some(SessionId(self.take(16)?.try_into().ok()?))
    }

    fn many_numbers(&mut self) -> Option<Vec<Numbers>> {
        let count = self.u32()? as usize;
        // No allocation beyond what is there.
        (count <= self.0.len() / 12).then_some(())?;
        (0..count).map(|_| self.numbers()).collect()
    }
}
