//! The thread that writes and reads the files of a bridge: inboxes queue for it, and it does one batch for
//! each in turn.
//!
//! Invariants:
//! * No lock of the queue is held while a file is written or read, and none of an inbox: [`SpillClient::turn`]
//!   sees to that.
//! * While writing fails, reading goes on: a full disk gets room again when batches leave for Kafka. What
//!   failed is tried again after [`RETRY`], for as long as it is wanted.
//! * An inbox that queues is held weakly; the thread ends with the [`Spill`].

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::file::{FileSystem, Piece, ReadError, Storage, Writer};

/// How often a disk that fails is asked again.
pub const RETRY: Duration = Duration::from_millis(500);

/// Next wish of a client that had its turn.
#[derive(Debug)]
pub enum NextStep {
    /// Nothing.
    Done,
    /// Another turn.
    More,
    /// Another turn when the disk may work again.
    Blocked,
}

/// One who queues for the thread.
pub trait SpillClient: Send + Sync {
    /// Does one thing. Who wants no further turn, or one when the disk works again, may queue anew from that
    /// moment on.
    fn turn(&self, thread: &mut SpillThread) -> NextStep;
}

/// One way of using the disk.
#[derive(Default)]
struct Way {
    /// It failed, and is not tried before.
    again: Option<Instant>,
    reason: Option<String>,
}

impl Way {
    fn is_open(&self) -> bool {
        self.again.is_none()
    }

    fn note<T, E: std::fmt::Display>(&mut self, result: &Result<T, E>) {
        match result {
            Ok(_) => *self = Self::default(),
            Err(error) => {
                self.again = Some(Instant::now() + RETRY);
                self.reason = Some(error.to_string());
            }
        }
    }
}

/// Tools of a client during its turn.
pub struct SpillThread {
    writer: Writer,
    writing: Way,
    reading: Way,
    /// Room for the bytes of a batch, which stays from turn to turn.
    pub scratch: Vec<u8>,
}

impl SpillThread {
    /// False for a while after writing has failed.
    pub fn may_write(&self) -> bool {
        self.writing.is_open()
    }

    /// False for a while after reading has failed.
    pub fn may_read(&self) -> bool {
        self.reading.is_open()
    }

    /// Writes the batch of which [`Self::scratch`] has the encoded records.
    pub fn write(&mut self, records: u32) -> std::io::Result<Piece> {
        let piece = self.writer.write(records, &self.scratch);
        self.writing.note(&piece);
        // One batch of a gigabyte is no reason to keep so much.
        if self.scratch.capacity() > 8 << 20 {
            self.scratch = Vec::new();
        }
        piece
    }

    /// As [`Piece::read`].
    pub fn read(&mut self, piece: &Piece, room: usize) -> Result<Vec<u8>, ReadError> {
        let bytes = piece.read(room);
        if !matches!(bytes, Err(ReadError::Lost(_))) {
            self.reading.note(&bytes);
        }
        bytes
    }

    /// When what failed may be tried again.
    fn again(&self) -> Option<Instant> {
        [self.writing.again, self.reading.again].into_iter().flatten().min()
    }

    /// Opens the ways whose time has come.
    fn open_ways(&mut self) -> bool {
        let now = Instant::now();
        let mut opened = false;
        for way in [&mut self.writing, &mut self.reading] {
            if way.again.is_some_and(|again| again <= now) {
                way.again = None;
                opened = true;
            }
        }
        opened
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Weak<dyn SpillClient>>,
    /// Those who wait until the disk works again.
    blocked: Vec<Weak<dyn SpillClient>>,
    running: bool,
    stop: bool,
}

/// Why something cannot be written or read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Trouble {
    write: Option<String>,
    read: Option<String>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    trouble: Mutex<Trouble>,
}

/// Handle of the thread that reads and writes spill files.
pub struct Spill {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    directory: PathBuf,
    file_bytes: u64,
}

impl std::fmt::Debug for Spill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spill").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Spill {
    /// Files in this folder, which is made when the first one is; each of them of about `file_bytes`.
    pub fn new(directory: PathBuf, file_bytes: u64) -> Arc<Self> {
        Self::with_storage(Arc::new(FileSystem), directory, file_bytes)
    }

    /// As [`Self::new`], on another file system.
    pub fn with_storage(storage: Arc<dyn Storage>, directory: PathBuf, file_bytes: u64) -> Arc<Self> {
        Arc::new(Self { shared: Arc::default(), storage, directory, file_bytes })
    }

    /// Queues; the first one starts the thread.
    pub fn submit(&self, client: Weak<dyn SpillClient>) {
        let mut queue = self.shared.queue.lock();
        queue.waiting.push_back(client);
        if !queue.running {
            let shared = self.shared.clone();
            let state = SpillThread {
                writer: Writer::new(self.storage.clone(), self.directory.clone(), self.file_bytes),
                writing: Way::default(),
                reading: Way::default(),
                scratch: Vec::new(),
            };
            let thread = std::thread::Builder::new().name("causeway-spill".into());
            match thread.spawn(move || shared.run(state)) {
                Ok(_) => queue.running = true,
                Err(error) => {
                    self.shared.trouble.lock().write = Some(format!("no thread: {error}"));
                }
            }
        }
        drop(queue);
        self.shared.work.notify_one();
    }

    /// Why records stay in memory that should be in files, or in files that should be in memory.
    pub fn trouble(&self) -> Option<Arc<str>> {
        let trouble = self.shared.trouble.lock();
        match &*trouble {
            Trouble { read: Some(reason), .. } => {
                Some(format!("hybrid buffer: records cannot be read from files: {reason}").into())
            }
            Trouble { write: Some(reason), .. } => {
                Some(format!("hybrid buffer: records cannot be written to files: {reason}").into())
            }
            _ => None,
        }
    }

    /// Whether reading fails.
    pub fn cannot_read(&self) -> bool {
        self.shared.trouble.lock().read.is_some()
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // Not waited for: the last one to have it may be the thread itself.
        self.shared.queue.lock().stop = true;
        self.shared.work.notify_one();
        let _ = std::fs::remove_dir(&self.directory);
    }
}

impl Shared {
    /// The next client; `None` at the end.
    fn next(&self, thread: &mut SpillThread) -> Option<Arc<dyn SpillClient>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stop {
                return None;
            }
            if thread.open_ways() {
                let blocked = std::mem::take(&mut queue.blocked);
                queue.waiting.extend(blocked);
            }
            while let Some(client) = queue.waiting.pop_front() {
                if let Some(client) = client.upgrade() {
                    return Some(client);
                }
            }
            if queue.blocked.is_empty() {
                // Failed work is not wanted any more.
                (thread.writing, thread.reading) = (Way::default(), Way::default());
                self.show(thread);
            }
            match thread.again() {
                Some(again) => {
                    self.work.wait_until(&mut queue, again);
                }
                None => self.work.wait(&mut queue),
            }
        }
    }

    fn run(&self, mut thread: SpillThread) {
        while let Some(client) = self.next(&mut thread) {
            self.serve(&mut thread, client);
        }
    }

    /// Gives a client its turn.
    fn serve(&self, thread: &mut SpillThread, client: Arc<dyn SpillClient>) {
        let turn = client.turn(thread);
        let back = Arc::downgrade(&client);
        drop(client);
        thread.writer.close_unneeded();
        self.show(thread);
        let mut queue = self.queue.lock();
        match turn {
            NextStep::Done => {}
            NextStep::More => queue.waiting.push_back(back),
            NextStep::Blocked => {
                let address = |client: &Weak<dyn SpillClient>| client.as_ptr().cast::<()>();
                if !queue.blocked.iter().any(|other| address(other) == address(&back)) {
                    queue.blocked.push(back);
                }
            }
        }
    }

    /// Says what fails, when that changes.
    fn show(&self, thread: &SpillThread) {
        let now = Trouble { write: thread.writing.reason.clone(), read: thread.reading.reason.clone() };
        let mut shown = self.trouble.lock();
        if *shown == now {
            return;
        }
        for (what, before, reason) in
            [("written", &shown.write, &now.write), ("read", &shown.read, &now.read)]
        {
            match reason {
                Some(reason) if before.as_ref() != Some(reason) => {
                    tracing::error!(reason, "batches of a hybrid buffer cannot be {what}; it is tried again");
                }
                None if before.is_some() => {
                    tracing::info!("batches of a hybrid buffer can be {what} again");
                }
                _ => {}
            }
        }
        *shown = now;
    }
}

/// The thread's work, done by a test at moments of its own.
#[cfg(test)]
pub(crate) struct ByHand {
    pub(crate) spill: Arc<Spill>,
    thread: SpillThread,
}

#[cfg(test)]
impl ByHand {
    pub(crate) fn new(storage: Arc<dyn Storage>, file_bytes: u64) -> Self {
        let directory = PathBuf::from("/by-hand");
        let writer = Writer::new(storage.clone(), directory.clone(), file_bytes);
        let spill = Spill::with_storage(storage, directory, file_bytes);
        spill.shared.queue.lock().running = true;
        let thread =
            SpillThread { writer, writing: Way::default(), reading: Way::default(), scratch: Vec::new() };
        Self { spill, thread }
    }

    /// One turn; false where no inbox queues. `retry`: what failed may be tried again.
    pub(crate) fn work(&mut self, retry: bool) -> bool {
        if retry {
            (self.thread.writing.again, self.thread.reading.again) = (None, None);
            let mut queue = self.spill.shared.queue.lock();
            let blocked = std::mem::take(&mut queue.blocked);
            queue.waiting.extend(blocked);
        }
        let client = self.spill.shared.queue.lock().waiting.pop_front();
        let Some(client) = client else { return false };
        if let Some(client) = client.upgrade() {
            self.spill.shared.serve(&mut self.thread, client);
        }
        true
    }
}

#[cfg(test)]
#[path = "thread_tests.rs"]
mod tests;
