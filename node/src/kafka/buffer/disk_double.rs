//! A disk that forgets what was not synced, tears writes, and fails when told to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::disk::Disk;

#[derive(Default, Clone)]
struct FileState {
    durable: Vec<u8>,
    /// As the process sees it.
    now: Vec<u8>,
}

#[derive(Default)]
struct State {
    /// What the process sees.
    names: BTreeMap<String, u64>,
    /// The directory as it was last synced.
    durable_names: BTreeMap<String, u64>,
    /// Changes of the directory since, in order.
    changes: Vec<(String, Option<u64>)>,
    files: BTreeMap<u64, FileState>,
    next: u64,
    operations: u64,
    crash_at: Option<u64>,
    crashed: bool,
    room: Option<usize>,
    fail_sync: bool,
    ignore_syncs: bool,
    longest_write: usize,
}

/// Shared, so that a test can look while a log has it.
#[derive(Default, Clone)]
pub(in crate::kafka) struct Double(Arc<Mutex<State>>);

impl Double {
    /// The process dies in the operation with this number, counted from now on.
    pub(in crate::kafka) fn crash_in(&self, operations: u64) {
        let mut state = self.0.lock();
        state.crash_at = Some(state.operations + operations);
    }

    /// Operations so far.
    pub(in crate::kafka) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Most bytes that were written at once.
    pub(in crate::kafka) fn longest_write(&self) -> usize {
        self.0.lock().longest_write
    }

    /// Another disk with the same on it, all of it durable.
    pub(in crate::kafka) fn copy(&self) -> Self {
        let copy = Self::default();
        let state = self.0.lock();
        for (name, file) in &state.names {
            let bytes = state.files[file].now.clone();
            let mut copy = copy.clone();
            copy.create(name).unwrap();
            copy.append(name, &bytes).unwrap();
            copy.sync(name).unwrap();
            copy.sync_dir().unwrap();
        }
        copy
    }

    /// Bytes that may still be added.
    pub(in crate::kafka) fn set_room(&self, room: Option<usize>) {
        self.0.lock().room = room;
    }

    /// The next syncs fail.
    pub(in crate::kafka) fn fail_syncs(&self) {
        self.0.lock().fail_sync = true;
    }

    /// Syncs do nothing from now on: what a log without them would do.
    pub(in crate::kafka) fn ignore_syncs(&self) {
        self.0.lock().ignore_syncs = true;
    }

    /// The power goes: what was not synced survives as far as chance wants, pages and names each for
    /// themselves.
    pub(in crate::kafka) fn lose_power(&self, rng: &mut SmallRng) {
        let mut state = self.0.lock();
        let mut names = state.durable_names.clone();
        for (name, file) in std::mem::take(&mut state.changes) {
            if rng.random_bool(0.5) {
                match file {
                    Some(file) => names.insert(name, file),
                    None => names.remove(&name),
                };
            }
        }
        for file in state.files.values_mut() {
            let kept = rng.random_range(0..=file.now.len().saturating_sub(file.durable.len()));
            let mut after = file.durable.clone();
            if file.now.len() >= file.durable.len() {
                let len = file.durable.len() + kept;
                after.extend_from_slice(&file.now[file.durable.len()..len]);
                // A page may be missing though a later one is there.
                if kept > 1 && rng.random_bool(0.5) {
                    let from = file.durable.len() + rng.random_range(0..kept);
                    let to = (from + rng.random_range(1..64)).min(len);
                    after[from..to].fill(0);
                }
            } else if rng.random_bool(0.5) {
                after = file.now.clone();
            }
            *file = FileState { durable: after.clone(), now: after };
        }
        state.durable_names = names.clone();
        state.names = names;
        state.crashed = false;
        state.crash_at = None;
        state.fail_sync = false;
    }

    /// A bit of a durable byte flips.
    pub(in crate::kafka) fn damage(&self, name: &str, offset: usize) {
        let mut state = self.0.lock();
        let file = state.names[name];
        let file = state.files.get_mut(&file).unwrap();
        file.now[offset] ^= 1;
        file.durable[offset] ^= 1;
    }

    /// Names of the files.
    pub(in crate::kafka) fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }
}

impl State {
    /// Counts an operation. An error: the process is dead, in the middle of this one where `Ok(true)`.
    fn operate(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("dead"));
        }
        self.operations += 1;
        if self.crash_at == Some(self.operations) {
            self.crashed = true;
            return Ok(true);
        }
        Ok(false)
    }

    fn file(&mut self, name: &str) -> io::Result<&mut FileState> {
        let file = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.files.get_mut(file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn dead(dying: bool) -> io::Result<()> {
    if dying { Err(io::Error::other("dying")) } else { Ok(()) }
}

impl Disk for Double {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().file(name)?.now.clone())
    }

    fn read_at(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = self.read(name)?;
        let rest = bytes.get(offset as usize..).unwrap_or(&[]);
        Ok(rest[..len.min(rest.len())].to_vec())
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let dying = state.operate()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.next;
        state.next += 1;
        state.files.insert(file, FileState::default());
        state.names.insert(name.to_owned(), file);
        state.changes.push((name.to_owned(), Some(file)));
        dead(dying)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        let dying = state.operate()?;
        state.longest_write = state.longest_write.max(bytes.len());
        let fits = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        let written = if dying { fits / 2 } else { fits };
        state.file(name)?.now.extend_from_slice(&bytes[..written]);
        if let Some(room) = &mut state.room {
            *room -= written;
        }
        if fits < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        dead(dying)
    }

    fn truncate(&mut self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let dying = state.operate()?;
        let file = state.file(name)?;
        let freed = file.now.len() - len as usize;
        file.now.truncate(len as usize);
        if let Some(room) = &mut state.room {
            *room += freed;
        }
        dead(dying)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let dying = state.operate()?;
        dead(dying)?;
        if state.fail_sync {
            return Err(io::Error::other("input/output error"));
        }
        if state.ignore_syncs {
            return Ok(());
        }
        let file = state.file(name)?;
        file.durable = file.now.clone();
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let dying = state.operate()?;
        let freed = state.file(name)?.now.len();
        state.names.remove(name);
        state.changes.push((name.to_owned(), None));
        if let Some(room) = &mut state.room {
            *room += freed;
        }
        dead(dying)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.0.lock();
        let dying = state.operate()?;
        dead(dying)?;
        if !state.ignore_syncs {
            state.durable_names = state.names.clone();
            state.changes.clear();
        }
        Ok(())
    }
}
