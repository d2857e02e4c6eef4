//! The files that batches wait in, and the few operations that they need of a file system.
//!
//! A file begins with [`MAGIC`]. Each batch in it is a head of three little-endian numbers of 32 bits (the
//! length of its encoded records, how many they are, their CRC-32C) and the records as they will be sent. A
//! file is written from front to end; a batch is read by its place. The file is removed when there is no need
//! of it any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// First bytes of a file; the last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"CWSPILL1";

/// Bytes before the records of a batch.
const HEAD: usize = 12;

/// Ends the names of files.
const SUFFIX: &str = ".spill";

/// No two files of a process have one number, whichever bridge they belong to.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// File system that the files need.
pub trait Storage: Send + Sync {
    /// Writes bytes at a place of a file, which is created where it is missing (and so are the folders above
    /// it). After an error any part of them may be there.
    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills `bytes` from a place of a file.
    fn read(&self, path: &Path, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The real one. A file is opened for each batch, so that no number of files takes all descriptors.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

impl Storage for FileSystem {
    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let open = || OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(path))?;
                open()?
            }
            opened => opened?,
        };
        file.write_all_at(bytes, offset)
    }

    fn read(&self, path: &Path, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        File::open(path)?.read_exact_at(bytes, offset)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// A file; the last one who has a piece of it removes it.
struct SpillFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// Bytes of all batches that were ever written to it.
    written: AtomicU64,
    /// Bytes of those that are held.
    needed: AtomicU64,
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        match self.storage.remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a file of a hybrid buffer cannot be removed");
            }
            _ => {}
        }
    }
}

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not there any more, or not what was written: it is lost.
    #[error("{0}")]
    Lost(String),
    /// It may be there, and cannot be read now.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Where a batch is.
#[derive(Clone)]
pub struct Piece(Arc<Place>);

struct Place {
    file: Arc<SpillFile>,
    offset: u64,
    records: u32,
    len: u32,
    crc: u32,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} records at {} of {}", self.0.records, self.0.offset, self.0.file.path.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.file.needed.fetch_sub(u64::from(self.len), Ordering::Relaxed);
    }
}

impl Piece {
    /// Records in it.
    pub fn records(&self) -> usize {
        self.0.records as usize
    }

    /// Whether its file is there for less than half of what was written to it.
    pub fn is_among_waste(&self) -> bool {
        let file = &self.0.file;
        file.needed.load(Ordering::Relaxed) < file.written.load(Ordering::Relaxed) / 2
    }

    /// Its encoded records, behind `room` bytes of zeros.
    pub fn read(&self, room: usize) -> Result<Vec<u8>, ReadError> {
        let Place { file, offset, len, crc, .. } = &*self.0;
        let lost = |why: &str| ReadError::Lost(format!("{}: {why}", file.path.display()));
        let mut bytes = vec![0; room + *len as usize];
        let records = bytes.get_mut(room..).unwrap_or_default();
        let read = file.storage.read(&file.path, offset + HEAD as u64, records);
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(lost("the file is gone")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(lost("the file is shorter than it was"));
            }
            other => other?,
        }
        if crc32c::crc32c(records) != *crc {
            return Err(lost("the checksum is wrong"));
        }
        Ok(bytes)
    }
}

/// Writes batches one behind the other.
pub struct Writer {
    storage: Arc<dyn Storage>,
    directory: PathBuf,
    file_bytes: u64,
    /// The file that is written, and the end of its last batch.
    open: Option<(Arc<SpillFile>, u64)>,
}

impl Writer {
    /// Files in this folder; each is followed by the next when it has reached `file_bytes`.
    pub fn new(storage: Arc<dyn Storage>, directory: PathBuf, file_bytes: u64) -> Self {
        Self { storage, directory, file_bytes, open: None }
    }

    /// Removes the file that is written where no piece of it is held.
    pub fn close_unneeded(&mut self) {
        self.open.take_if(|(file, _)| Arc::strong_count(file) == 1);
    }

    /// Writes a batch. After an error its place is written again by the next one.
    pub fn write(&mut self, records: u32, encoded: &[u8]) -> io::Result<Piece> {
        self.open.take_if(|(_, end)| *end >= self.file_bytes);
        let (file, offset) = if let Some((file, end)) = &self.open {
            (file.clone(), *end)
        } else {
            let path = self.directory.join(format!("{:020}{SUFFIX}", NEXT.fetch_add(1, Ordering::Relaxed)));
            let (written, needed) = (AtomicU64::new(0), AtomicU64::new(0));
            let file = Arc::new(SpillFile { storage: self.storage.clone(), path, written, needed });
            self.storage.write(&file.path, 0, &MAGIC)?;
            (file, MAGIC.len() as u64)
        };
        let crc = crc32c::crc32c(encoded);
        let len = u32::try_from(encoded.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut head = [0; HEAD];
        for (into, number) in head.chunks_exact_mut(4).zip([len, records, crc]) {
            into.copy_from_slice(&number.to_le_bytes());
        }
        self.open = Some((file.clone(), offset));
        // The head last: a batch is there for one who counts what a dead node left when all of it is.
        self.storage.write(&file.path, offset + HEAD as u64, encoded)?;
        self.storage.write(&file.path, offset, &head)?;
        self.open = Some((file.clone(), offset + (HEAD + encoded.len()) as u64));
        file.written.fetch_add(u64::from(len), Ordering::Relaxed);
        file.needed.fetch_add(u64::from(len), Ordering::Relaxed);
        Ok(Piece(Arc::new(Place { file, offset, records, len, crc })))
    }
}

/// Remains of a dead node in the files of a bridge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Records in them, those included that had left for Kafka.
    pub records: u64,
    /// Bytes of these records.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

/// Counts and removes the files in a folder, and the folder. What is not a file of ours stays.
pub fn sweep(directory: &Path) -> io::Result<Leftover> {
    let mut left = Leftover::default();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|suffix| suffix != SUFFIX.trim_start_matches('.')) {
            continue;
        }
        let (records, bytes) = count(&path)?;
        left.records += records;
        left.bytes += bytes;
        left.files += 1;
        fs::remove_file(&path)?;
    }
    let _ = fs::remove_dir(directory);
    Ok(left)
}

/// Records and their bytes in a file, as far as it is whole.
fn count(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let (mut records, mut bytes, mut at) = (0, 0, MAGIC.len() as u64);
    let mut head = [0; HEAD];
    while at + HEAD as u64 <= size {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        let number = |index: usize| {
            head.get(index..index + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let len = u64::from(number(0));
        at += HEAD as u64 + len;
        if len == 0 || at > size {
            break;
        }
        records += u64::from(number(4));
        bytes += len;
    }
    Ok((records, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).map_or(0, Iterator::count)
    }

    #[test]
    fn batches_are_read_back_by_their_place_and_files_go_with_their_last_batch() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("spill/out");
        let mut writer = Writer::new(Arc::new(FileSystem), directory.clone(), 100);
        let pieces: Vec<Piece> = (0..10u8).map(|n| writer.write(1, &[n; 40]).unwrap()).collect();
        assert_eq!(files(&directory), 5, "two batches a file");
        let mut pieces = pieces;
        assert!(!pieces[0].is_among_waste());
        drop(pieces.remove(1));
        assert!(!pieces[0].is_among_waste(), "half of it is needed");
        pieces.insert(1, writer.write(1, &[1; 40]).unwrap());
        for (n, piece) in pieces.iter().enumerate().rev() {
            let bytes = piece.read(3).unwrap();
            assert_eq!((&bytes[..3], &bytes[3..]), (&[0; 3][..], &[n as u8; 40][..]));
        }
        drop(pieces);
        assert_eq!(files(&directory), 1, "the one that is written");
        let piece = writer.write(1, b"x").unwrap();
        writer.close_unneeded();
        assert_eq!((files(&directory), &*piece.read(0).unwrap()), (1, &b"x"[..]));
        drop(piece);
        writer.close_unneeded();
        assert_eq!(files(&directory), 0);
    }

    #[test]
    fn a_batch_that_is_not_what_was_written_is_lost_and_not_something_else() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Arc::new(FileSystem), root.path().to_owned(), 1000);
        let first = writer.write(1, &[1; 40]).unwrap();
        let second = writer.write(1, &[2; 40]).unwrap();
        FileSystem.write(&first.0.file.path, first.0.offset + 20, b"!").unwrap();
        let said = |piece: &Piece| match piece.read(0) {
            Err(ReadError::Lost(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(said(&first).ends_with(".spill: the checksum is wrong"), "{}", said(&first));
        assert_eq!(second.read(0).unwrap(), [2; 40]);
        OpenOptions::new().write(true).open(&second.0.file.path).unwrap().set_len(80).unwrap();
        assert!(said(&second).ends_with("shorter than it was"));
        fs::remove_file(&second.0.file.path).unwrap();
        assert!(said(&second).ends_with("the file is gone"));
    }

    #[test]
    fn what_a_dead_node_left_is_counted_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("out");
        let mut writer = Writer::new(Arc::new(FileSystem), directory.clone(), 100);
        let pieces: Vec<Piece> = (1..=5u8).map(|n| writer.write(u32::from(n), &[n; 40]).unwrap()).collect();
        // One that was being written: its head is not there.
        let (file, end) = writer.open.clone().unwrap();
        FileSystem.write(&file.path, end + HEAD as u64, &[9; 40]).unwrap();
        fs::write(directory.join("notes.txt"), "mine").unwrap();
        std::mem::forget((pieces, file, writer));
        assert_eq!(sweep(&directory).unwrap(), Leftover { records: 15, bytes: 200, files: 3 });
        assert_eq!(files(&directory), 1, "the notes stay");
        fs::remove_file(directory.join("notes.txt")).unwrap();
        assert_eq!(sweep(&directory).unwrap(), Leftover::default());
        assert!(!directory.exists());
    }
}
