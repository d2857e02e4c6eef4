//! The optional data directory: what survives a restart of the development Kafka.
//!
//! ```text
//! meta.json                       cluster id, topics with their configuration, next producer id
//! offsets.jsonl                   committed offsets, one per line, the last line of a key counts; rewritten at start
//! TOPIC-PARTITION/BASE.log        batches back to back; BASE is the first offset of the file
//! ```
//!
//! Batches are written before they are answered, but not synced: this keeps a developer's data over restarts,
//! it does not protect it from a power cut. A torn or damaged tail is cut at the last whole batch with a
//! right checksum. A lock file keeps a second process out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::batch;

/// A partition file is closed and a new one begun at this size, so that retention can delete whole files.
const SEGMENT_BYTES: u64 = 64 << 20;

/// A topic as it is kept in `meta.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TopicMeta {
    pub(super) name: String,
    /// Topic id (KIP-516) as a number.
    pub(super) id: String,
    pub(super) partitions: i32,
    #[serde(default)]
    pub(super) configs: Vec<(String, String)>,
}

/// The content of `meta.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) cluster_id: String,
    pub(super) next_producer_id: i64,
    pub(super) topics: Vec<TopicMeta>,
}

/// A committed offset, one line of `offsets.jsonl`. An `offset` below zero deletes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OffsetLine {
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: String,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    offsets: File,
    _lock: File,
}

impl Store {
    /// Opens or creates the directory and reads what it holds. Fails with `WouldBlock` when another process
    /// has it.
    pub(super) fn open(root: &Path) -> io::Result<(Self, Meta, Vec<OffsetLine>)> {
        fs::create_dir_all(root)?;
        let lock = File::create(root.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::WouldBlock, "another process uses it"),
            TryLockError::Error(error) => error,
        })?;
        let meta = match fs::read(root.join("meta.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Meta::default(),
            Err(error) => return Err(error),
        };
        let lines = read_offsets(&root.join("offsets.jsonl"))?;
        let offsets = rewrite_offsets(root, &lines)?;
        Ok((Self { root: root.to_owned(), offsets, _lock: lock }, meta, lines))
    }

    /// Replaces `meta.json` in one step.
    pub(super) fn write_meta(&self, meta: &Meta) -> io::Result<()> {
        replace(&self.root.join("meta.json"), &serde_json::to_vec_pretty(meta)?)
    }

    /// Appends committed offsets.
    pub(super) fn commit(&mut self, lines: &[OffsetLine]) -> io::Result<()> {
        self.offsets.write_all(&encode_offsets(lines)?)
    }

    /// Opens a partition's files; answers its whole batches in order.
    pub(super) fn partition(&self, topic: &str, partition: i32) -> io::Result<(PartitionStore, Vec<Bytes>)> {
        PartitionStore::open(self.root.join(format!("{topic}-{partition}")))
    }

    /// Deletes a partition's files.
    pub(super) fn delete_partition(&self, topic: &str, partition: i32) -> io::Result<()> {
        match fs::remove_dir_all(self.root.join(format!("{topic}-{partition}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, content)?;
    fs::rename(part, path)
}

fn read_offsets(path: &Path) -> io::Result<Vec<OffsetLine>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut last = std::collections::BTreeMap::new();
    for line in BufReader::new(file).lines() {
        // The last line may be torn: what follows the last whole one was never answered.
        let Ok(offset) = serde_json::from_str::<OffsetLine>(&line?) else { break };
        let key = (offset.group.clone(), offset.topic.clone(), offset.partition);
        last.insert(key, offset);
    }
    Ok(last.into_values().filter(|line| line.offset >= 0).collect())
}

fn encode_offsets(lines: &[OffsetLine]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut out, line)?;
        out.push(b'\n');
    }
    Ok(out)
}

fn rewrite_offsets(root: &Path, lines: &[OffsetLine]) -> io::Result<File> {
    let path = root.join("offsets.jsonl");
    replace(&path, &encode_offsets(lines)?)?;
    OpenOptions::new().append(true).open(path)
}

/// The files of one partition.
#[derive(Debug)]
pub(super) struct PartitionStore {
    directory: PathBuf,
    /// First offset of each file, rising; the last one is written.
    segments: Vec<i64>,
    active: Option<(File, u64)>,
}

impl PartitionStore {
    fn open(directory: PathBuf) -> io::Result<(Self, Vec<Bytes>)> {
        fs::create_dir_all(&directory)?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let name = entry?.file_name();
            let base = name
                .to_str()
                .and_then(|name| name.strip_suffix(".log"))
                .and_then(|base| base.parse::<i64>().ok());
            segments.extend(base);
        }
        segments.sort_unstable();
        let mut store = Self { directory, segments: Vec::new(), active: None };
        let mut batches = Vec::new();
        let mut whole = true;
        for base in segments {
            let path = store.path(base);
            if !whole {
                // A file behind damage has no place in a log without gaps.
                warn!(path = %path.display(), "dropping a partition file behind a damaged one");
                fs::remove_file(path)?;
                continue;
            }
            let content = Bytes::from(fs::read(&path)?);
            let mut at = 0;
            while let Ok(batch) = batch::first(content.slice(at..)) {
                at += batch.bytes().len();
                batches.push(batch.bytes().clone());
            }
            let file = OpenOptions::new().append(true).open(&path)?;
            if at < content.len() {
                warn!(path = %path.display(), bytes = content.len() - at, "cutting a torn tail");
                file.set_len(at as u64)?;
                whole = false;
            }
            store.segments.push(base);
            store.active = Some((file, at as u64));
        }
        Ok((store, batches))
    }

    fn path(&self, base: i64) -> PathBuf {
        self.directory.join(format!("{base:020}.log"))
    }

    /// Appends a batch that starts at `base_offset`. After an error the file ends where it ended before, or
    /// is no longer used.
    pub(super) fn append(&mut self, base_offset: i64, batch: &[u8]) -> io::Result<()> {
        if self.active.as_ref().is_none_or(|(_, size)| *size >= SEGMENT_BYTES) {
            let file = OpenOptions::new().create(true).append(true).open(self.path(base_offset))?;
            self.segments.push(base_offset);
            self.active = Some((file, 0));
        }
        let Some((file, size)) = &mut self.active else { return Ok(()) };
        if let Err(error) = file.write_all(batch) {
            file.set_len(*size)?;
            return Err(error);
        }
        *size += batch.len() as u64;
        Ok(())
    }

    /// Deletes the files that hold nothing at or after `start_offset`.
    pub(super) fn trim(&mut self, start_offset: i64) {
        while let [base, next, ..] = *self.segments.as_slice() {
            if next > start_offset {
                break;
            }
            if let Err(error) = fs::remove_file(self.path(base)) {
                warn!(path = %self.path(base).display(), %error, "cannot delete an old partition file");
            }
            self.segments.remove(0);
        }
    }
}
