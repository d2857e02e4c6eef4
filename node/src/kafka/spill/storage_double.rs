//! A file system in memory, which fails as a test wants, and lets it do something in the midst of an
//! operation.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::file::Storage;

/// What happens in the midst of an operation.
type Meanwhile = Box<dyn FnMut() + Send>;

#[derive(Default)]
pub(crate) struct StorageDouble {
    files: Mutex<HashMap<PathBuf, Vec<u8>>>,
    state: Mutex<State>,
    meanwhile: Mutex<Option<Meanwhile>>,
}

#[derive(Default)]
struct State {
    /// So many more bytes fit.
    room: Option<usize>,
    reads_fail: bool,
    operations: u64,
}

impl StorageDouble {
    /// So many more bytes can be written; `None`: any number.
    pub(crate) fn set_room(&self, room: Option<usize>) {
        self.state.lock().room = room;
    }

    pub(crate) fn fail_reads(&self, fail: bool) {
        self.state.lock().reads_fail = fail;
    }

    /// Called in each operation from now on, between its beginning and its effect.
    pub(crate) fn meanwhile(&self, meanwhile: impl FnMut() + Send + 'static) {
        *self.meanwhile.lock() = Some(Box::new(meanwhile));
    }

    pub(crate) fn files(&self) -> usize {
        self.files.lock().len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.files.lock().values().map(Vec::len).sum()
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Somebody deletes all files.
    pub(crate) fn lose(&self) {
        self.files.lock().clear();
    }

    fn begin(&self) {
        self.state.lock().operations += 1;
        // Taken out: what happens meanwhile may come here again.
        let meanwhile = self.meanwhile.lock().take();
        if let Some(mut meanwhile) = meanwhile {
            meanwhile();
            *self.meanwhile.lock() = Some(meanwhile);
        }
    }
}

impl Storage for StorageDouble {
    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.begin();
        let mut files = self.files.lock();
        let mut state = self.state.lock();
        let offset = offset as usize;
        let fits = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        if let Some(room) = &mut state.room {
            *room -= fits;
        }
        let file = files.entry(path.to_owned()).or_default();
        file.resize(file.len().max(offset + fits), 0);
        file[offset..offset + fits].copy_from_slice(&bytes[..fits]);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read(&self, path: &Path, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.begin();
        if self.state.lock().reads_fail {
            return Err(io::Error::other("a bad sector"));
        }
        let files = self.files.lock();
        let file = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        let part = file.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
