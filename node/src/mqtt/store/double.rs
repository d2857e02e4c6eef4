//! A disk that forgets what was not synced, and that can die at any operation.

use std::{io, path::Path, sync::Arc};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use redb::StorageBackend;

use super::{Loaded, OpenError, Store, Tuning};
use crate::mqtt::{memory::Memory, stats::Stats};

#[derive(Debug, Default)]
struct State {
    /// What a reader sees.
    current: Vec<u8>,
    /// What is on the disk.
    synced: Vec<u8>,
    /// Written since the last sync, in order.
    writes: Vec<(u64, Vec<u8>)>,
    /// Operations until it dies.
    left: Option<u64>,
    /// Operations until it is full.
    room: Option<u64>,
    full: bool,
    sync_fails: bool,
    /// Syncs that only say so.
    lies: bool,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

/// One opening of a disk: of no use after the next crash.
#[derive(Debug)]
struct Mount {
    disk: Disk,
    dead: Mutex<bool>,
}

impl Disk {
    pub(crate) fn mount(&self) -> Box<dyn StorageBackend> {
        Box::new(Mount { disk: self.clone(), dead: Mutex::new(false) })
    }

    /// Opens the store that is on it.
    pub(crate) fn open(&self, memory: Memory, stats: Arc<Stats>) -> Result<(Arc<Store>, Loaded), OpenError> {
        let disk = self.clone();
        let opener = Box::new(move || Ok(disk.mount()));
        Store::open_with(Path::new("double"), opener, Tuning::default(), None, memory, stats)
    }

    /// Lets every operation after the next `left` fail, as if the power were gone.
    pub(crate) fn die_in(&self, left: u64) {
        self.0.lock().left = Some(left);
    }

    /// Fills the disk after this many operations.
    pub(crate) fn fill_in(&self, operations: u64) {
        self.0.lock().room = Some(operations);
    }

    /// Operations that are left, where [`Self::die_in`] said how many.
    pub(crate) fn left(&self) -> u64 {
        self.0.lock().left.unwrap_or(u64::MAX)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().left == Some(0)
    }

    pub(crate) fn set_full(&self, full: bool) {
        let mut state = self.0.lock();
        (state.full, state.room) = (full, None);
    }

    pub(crate) fn fail_syncs(&self) {
        self.0.lock().sync_fails = true;
    }

    /// From now on a sync does nothing.
    pub(crate) fn lie(&self) {
        self.0.lock().lies = true;
    }

    /// The power comes back: what was synced is there, and of the rest whatever the disk happened to write.
    pub(crate) fn restart(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = self.0.lock();
        let mut disk = std::mem::take(&mut state.synced);
        let all = random.random_range(0..3);
        for (offset, data) in std::mem::take(&mut state.writes) {
            let written = match all {
                0 => false,
                1 => random.random_bool(0.5),
                _ => random.random_bool(0.95),
            };
            if written {
                let (offset, length) = (offset as usize, data.len());
                let length = if random.random_bool(0.1) { random.random_range(0..=length) } else { length };
                if disk.len() < offset + length {
                    disk.resize(offset + length, 0);
                }
                disk[offset..offset + length].copy_from_slice(&data[..length]);
            }
        }
        state.current.clone_from(&disk);
        state.synced = disk;
        state.left = None;
    }

    /// What is on the disk, to be damaged.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let mut synced = std::mem::take(&mut state.synced);
        change(&mut synced);
        state.current.clone_from(&synced);
        state.synced = synced;
        state.writes.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().current.len()
    }
}

impl Mount {
    fn act<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if *self.dead.lock() {
            return Err(io::Error::other("no power"));
        }
        if let Some(left) = &mut state.left {
            if *left == 0 {
                *self.dead.lock() = true;
                return Err(io::Error::other("no power"));
            }
            *left -= 1;
        }
        if let Some(room) = &mut state.room {
            match room.checked_sub(1) {
                Some(less) => *room = less,
                None => state.full = true,
            }
        }
        act(&mut state)
    }
}

impl StorageBackend for Mount {
    fn len(&self) -> io::Result<u64> {
        self.act(|state| Ok(state.current.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.act(|state| {
            let offset = offset as usize;
            let bytes = state.current.get(offset..offset + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.act(|state| {
            let len = len as usize;
            if len > state.current.len() && state.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.current.resize(len, 0);
            // The size of a file is metadata that survives or not with the writes; kept simple: it does.
            state.synced.resize(len, 0);
            state.writes.retain(|(offset, data)| *offset as usize + data.len() <= len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.act(|state| {
            if state.sync_fails {
                return Err(io::Error::other("input/output error"));
            }
            if !state.lies {
                state.synced.clone_from(&state.current);
                state.writes.clear();
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.act(|state| {
            let start = offset as usize;
            if state.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let place = state.current.get_mut(start..start + data.len());
            place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
            state.writes.push((offset, data.to_vec()));
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        *self.dead.lock() = true;
        Ok(())
    }

    fn try_lock_range(
        &self,
        _: std::ops::Bound<u64>,
        _: std::ops::Bound<u64>,
    ) -> Result<bool, redb::BackendError> {
        Ok(true)
    }

    fn unlock_range(
        &self,
        _: std::ops::Bound<u64>,
        _: std::ops::Bound<u64>,
    ) -> Result<(), redb::BackendError> {
        Ok(())
    }
}
