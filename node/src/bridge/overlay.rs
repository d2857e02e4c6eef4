//! Changes made at run time, kept beside the configuration file: `bridges.overlay.json` in the data
//! directory.
//!
//! The file says what each bridge that was created, changed, enabled, disabled or deleted at run time is now,
//! and what the configuration file said about it then (as a digest). At the start the newest word counts: an
//! entry holds as long as the configuration file says the same about that bridge as it did when the entry was
//! made; where the file was edited since, the file counts and the entry is dropped, with a warning.
//!
//! Invariants:
//! * The file is written beside its old version, synced, renamed over it, and the folder is synced: after a
//!   crash it is the old one or the new one.
//! * A deleted bridge's disk buffer goes, whenever the node dies: the file says in the same write that the
//!   bridge is deleted and that its buffer is to be removed, until it is. A buffer whose bridge is merely
//!   missing in the configuration is left alone.
//! * It holds secrets in the clear, as the configuration file does; only the node's user can read it.
//! * A file that cannot be read stops the start: bridges that were deleted must not come back by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk_buffer;
use super::service::{BridgeId, Definition, Kind};
use crate::config::{BridgesConfig, Secrets, parse_consumer_bridge, parse_producer_bridge};

/// Name of the file.
pub const FILE: &str = "bridges.overlay.json";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("{path} cannot be {what}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Read, written or removed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Its content cannot be understood.
    #[error(
        "{path}, which keeps what was changed at run time, is damaged: {reason}; mend it, or move it away to go on with the configuration file alone"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Fault.
        reason: String,
    },
}

/// One change.
#[derive(Debug, Clone)]
pub enum Change {
    /// The bridge is this now.
    Defined(Box<Definition>),
    /// There is no such bridge any more.
    Deleted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Canonical configuration with its secrets; none: deleted.
    config: Option<serde_json::Value>,
    /// Digest of what the configuration file said; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_said: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    bridges: BTreeMap<String, Stored>,
    /// Names of producer bridges that are deleted and whose disk buffer is still to be removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    deleted_buffers: BTreeSet<String>,
}

const VERSION: u32 = 1;

/// Changes made at run time and their file.
#[derive(Debug)]
pub struct Overlay {
    path: PathBuf,
    data_dir: PathBuf,
    stored: BTreeMap<BridgeId, Stored>,
    /// See [`Document::deleted_buffers`].
    deleted_buffers: BTreeSet<String>,
    /// Definitions of the configuration file.
    file: BTreeMap<BridgeId, Definition>,
}

/// Keys that are younger than the first overlays, with the value that changes nothing: they are left out of
/// digests, so that no upgrade looks like an edited configuration file.
const YOUNGER_KEYS: [(&str, serde_json::Value); 1] = [("allow_loop", serde_json::Value::Bool(false))];

fn digest(definition: &Definition) -> String {
    let mut said = definition.canonical_json(Secrets::Revealed);
    if let Some(said) = said.as_object_mut() {
        for (key, without) in YOUNGER_KEYS {
            if said.get(key) == Some(&without) {
                said.shift_remove(key);
            }
        }
    }
    BASE64_STANDARD.encode(Sha256::digest(said.to_string().as_bytes()))
}

impl Overlay {
    /// Reads the file in `data_dir`, over what the configuration file says; answers the bridges that there
    /// are to be. Removes the disk buffers of deleted bridges that are still there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(
        data_dir: &Path,
        file: BridgesConfig,
    ) -> Result<(Self, BTreeMap<BridgeId, Definition>), Error> {
        let producers = file.kafka.into_iter().map(|(name, config)| {
            (BridgeId { kind: Kind::Producer, name }, Definition::Producer(Box::new(config)))
        });
        let consumers = file.kafka_consumer.into_iter().map(|(name, config)| {
            (BridgeId { kind: Kind::Consumer, name }, Definition::Consumer(Box::new(config)))
        });
        let file: BTreeMap<_, _> = producers.chain(consumers).collect();
        let path = data_dir.join(FILE);
        let mut effective = file.clone();
        let mut stored = BTreeMap::new();
        let (entries, deleted_buffers) = read(&path)?;
        for (id, entry) in entries {
            if entry.file_said != file.get(&id).map(digest) {
                tracing::warn!(
                    bridge = %id,
                    "the configuration file says something else about the bridge since it was changed at run time: the file counts"
                );
                continue;
            }
            match &entry.config {
                Some(config) => {
                    let damaged = |reason: String| Error::Damaged {
                        path: path.clone(),
                        reason: format!("{id}: {reason}"),
                    };
                    let definition = parse(&id, &config.to_string()).map_err(damaged)?;
                    effective.insert(id.clone(), definition);
                }
                None => drop(effective.remove(&id)),
            }
            stored.insert(id, entry);
        }
        if !stored.is_empty() {
            tracing::info!(bridges = stored.len(), file = %path.display(), "bridges changed at run time");
        }
        let mut overlay = Self { path, data_dir: data_dir.to_owned(), stored, deleted_buffers, file };
        overlay.remove_buffers()?;
        Ok((overlay, effective))
    }

    /// Remembers changes, all or none. Where a bridge is again what the configuration file says nothing is
    /// kept.
    ///
    /// # Errors
    /// [`Error::File`]; then nothing is remembered.
    pub fn store(&mut self, changes: &[(BridgeId, Change)]) -> Result<(), Error> {
        let mut stored = self.stored.clone();
        let mut deleted_buffers = self.deleted_buffers.clone();
        for (id, change) in changes {
            match change {
                _ if id.kind != Kind::Producer => {}
                Change::Defined(_) => {
                    // One of that name begins with nothing.
                    if deleted_buffers.remove(&id.name) {
                        self.remove_buffer(&id.name)?;
                    }
                }
                Change::Deleted => {
                    if disk_buffer::directory(&self.data_dir, &id.name).exists() {
                        deleted_buffers.insert(id.name.clone());
                    }
                }
            }
            let said = self.file.get(id);
            let as_in_file = match change {
                Change::Defined(definition) => said == Some(definition),
                Change::Deleted => said.is_none(),
            };
            if as_in_file {
                stored.remove(id);
                continue;
            }
            let config = match change {
                Change::Defined(definition) => Some(definition.canonical_json(Secrets::Revealed)),
                Change::Deleted => None,
            };
            stored.insert(id.clone(), Stored { config, file_said: said.map(digest) });
        }
        self.replace(stored, deleted_buffers)
    }

    /// Removes the disk buffers of deleted bridges, which are not open any more.
    ///
    /// # Errors
    /// [`Error::File`]; then it is tried again at the next start, or before a bridge of that name is created.
    pub fn remove_buffers(&mut self) -> Result<(), Error> {
        for name in &self.deleted_buffers {
            self.remove_buffer(name)?;
        }
        self.replace(self.stored.clone(), BTreeSet::new())
    }

    /// Removes the disk buffer of one deleted bridge, which no producer has open any more; others may still
    /// be in use.
    ///
    /// # Errors
    /// As [`Self::remove_buffers`].
    pub fn remove_buffer_of(&mut self, id: &BridgeId) -> Result<(), Error> {
        if id.kind == Kind::Producer && self.deleted_buffers.contains(&id.name) {
            self.remove_buffer(&id.name)?;
            let mut rest = self.deleted_buffers.clone();
            rest.remove(&id.name);
            self.replace(self.stored.clone(), rest)?;
        }
        Ok(())
    }

    fn remove_buffer(&self, name: &str) -> Result<(), Error> {
        disk_buffer::delete(&self.data_dir, name).map_err(|source| Error::File {
            path: disk_buffer::directory(&self.data_dir, name),
            what: "removed",
            source,
        })
    }

    fn replace(
        &mut self,
        stored: BTreeMap<BridgeId, Stored>,
        deleted_buffers: BTreeSet<String>,
    ) -> Result<(), Error> {
        if stored != self.stored || deleted_buffers != self.deleted_buffers {
            self.write(&stored, &deleted_buffers).map_err(|source| Error::File {
                path: self.path.clone(),
                what: "written",
                source,
            })?;
            (self.stored, self.deleted_buffers) = (stored, deleted_buffers);
        }
        Ok(())
    }

    fn write(
        &self,
        stored: &BTreeMap<BridgeId, Stored>,
        deleted_buffers: &BTreeSet<String>,
    ) -> io::Result<()> {
        let bridges = stored.iter().map(|(id, entry)| (id.to_string(), entry.clone())).collect();
        let deleted_buffers = deleted_buffers.clone();
        let text = serde_json::to_string_pretty(&Document { version: VERSION, bridges, deleted_buffers })?;
        let part = self.path.with_extension("json.new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, &self.path)?;
        match self.path.parent() {
            Some(folder) => std::fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// The changes, and whose buffers are to be removed.
fn read(path: &Path) -> Result<(BTreeMap<BridgeId, Stored>, BTreeSet<String>), Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(source) => return Err(Error::File { path: path.to_owned(), what: "read", source }),
    };
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let document: Document = serde_json::from_str(&text).map_err(|error| {
        // Its own words may quote a secret.
        damaged(format!("line {}, column {}", error.line(), error.column()))
    })?;
    if document.version != VERSION {
        return Err(damaged(format!("version {} is not known, {VERSION} is", document.version)));
    }
    let id = |text: String| text.parse::<BridgeId>().map_err(|error| damaged(error.to_string()));
    let stored: Result<_, Error> =
        document.bridges.into_iter().map(|(name, stored)| Ok((id(name)?, stored))).collect();
    Ok((stored?, document.deleted_buffers))
}

fn parse(id: &BridgeId, text: &str) -> Result<Definition, String> {
    let words = |errors: crate::config::Errors| errors.to_string();
    match id.kind {
        Kind::Producer => parse_producer_bridge(&id.name, text)
            .map(|loaded| Definition::Producer(Box::new(loaded.value)))
            .map_err(words),
        Kind::Consumer => parse_consumer_bridge(&id.name, text)
            .map(|loaded| Definition::Consumer(Box::new(loaded.value)))
            .map_err(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_new_and_not_used_is_no_edit_of_the_configuration_file() {
        let id = BridgeId { kind: Kind::Producer, name: "out".to_owned() };
        let read = |more: &str| {
            let text = format!("bootstrap_hosts = k, local_topic = t, kafka.topic = x\n{more}");
            parse(&id, &text).unwrap()
        };
        let mut before = read("").canonical_json(Secrets::Revealed);
        assert_eq!(before.as_object_mut().unwrap().shift_remove("allow_loop"), Some(false.into()));
        let before = BASE64_STANDARD.encode(Sha256::digest(before.to_string().as_bytes()));
        assert_eq!(digest(&read("")), before);
        assert_eq!(digest(&read("allow_loop = false")), before);
        assert_ne!(digest(&read("allow_loop = true")), before);
    }

    #[test]
    fn the_end_of_one_deletion_leaves_the_disk_buffer_of_another_one_alone() {
        let data_dir = tempfile::tempdir().unwrap();
        let no_bridges =
            || BridgesConfig { kafka: [].into_iter().collect(), kafka_consumer: [].into_iter().collect() };
        let (mut overlay, _) = Overlay::open(data_dir.path(), no_bridges()).unwrap();
        let ids = ["a", "b"].map(|name| BridgeId { kind: Kind::Producer, name: name.to_owned() });
        let directory = |id: &BridgeId| disk_buffer::directory(data_dir.path(), &id.name);
        for id in &ids {
            std::fs::create_dir_all(directory(id)).unwrap();
            overlay.store(&[(id.clone(), Change::Deleted)]).unwrap();
        }
        overlay.remove_buffer_of(&ids[0]).unwrap();
        assert_eq!(ids.each_ref().map(|id| directory(id).exists()), [false, true]);
        // The other one is still to be removed.
        drop(overlay);
        drop(Overlay::open(data_dir.path(), no_bridges()).unwrap());
        assert!(!directory(&ids[1]).exists());
    }
}
