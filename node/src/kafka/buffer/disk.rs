//! The file system as the buffer sees it: few operations, all of which can fail and none of which is durable
//! until it has been synced.
//!
//! A file's bytes are durable after [`Disk::sync`] of it, a file's existence (or absence) after
//! [`Disk::sync_dir`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the file that keeps a second process out.
pub const LOCK_NAME: &str = "lock";

/// Directory of files that can be synced.
pub trait Disk: Send {
    /// Names of the files.
    fn list(&mut self) -> io::Result<Vec<String>>;

    /// All bytes of a file.
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>>;

    /// Up to `len` bytes of a file from this offset on; fewer where it ends before.
    fn read_at(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// A new, empty file; one of that name is an error.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Adds bytes at the end. After an error any part of them may be there.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to this length.
    fn truncate(&mut self, name: &str, len: u64) -> io::Result<()>;

    /// Makes a file's bytes durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes the existence and absence of files durable.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// A directory of the real file system, locked against other processes.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// The file that was appended to last.
    open: Option<(String, File)>,
    _lock: Option<File>,
}

impl Directory {
    /// Creates the directory where it is missing, and locks it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where another process has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        if let Some(parent) = path.parent() {
            // The directory itself must outlast a crash too.
            File::open(parent)?.sync_all()?;
        }
        let lock = File::create(path.join(LOCK_NAME))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process is using it; give each node its own node.data_dir",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Self { path: path.to_owned(), open: None, _lock: Some(lock) })
    }

    /// The directory for reading only: no lock, nothing is created.
    pub fn look(path: &Path) -> io::Result<Self> {
        fs::read_dir(path)?;
        Ok(Self { path: path.to_owned(), open: None, _lock: None })
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if self.open.as_ref().is_none_or(|(known, _)| known != name) {
            let file = OpenOptions::new().append(true).open(self.path.join(name))?;
            self.open = Some((name.to_owned(), file));
        }
        match &mut self.open {
            Some((_, file)) => Ok(file),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Disk for Directory {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }

    fn read_at(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.path.join(name))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(len);
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create_new(true).open(self.path.join(name))?;
        self.open = Some((name.to_owned(), file));
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all(bytes)
    }

    fn truncate(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.file(name)?.set_len(len)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|(known, _)| known == name) {
            self.open = None;
        }
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_for_one_process_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("b");
        let first = Directory::open(&path).unwrap();
        assert_eq!(Directory::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        Directory::look(&path).unwrap();
        drop(first);
        Directory::open(&path).unwrap();
    }
}
