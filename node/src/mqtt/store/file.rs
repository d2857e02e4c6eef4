//! The file of the store: opened, checked, read at the start, written in transactions.
//!
//! Invariants:
//! * Nothing in it is removed because it cannot be read: the start fails and says what to do.
//! * A transaction is durable when [`File::commit`] returns, or it did not happen.
//! * What the system says of a sync is final: after one failed, it is unknown what is on the disk
//!   ([`Failure::Final`]). Want of room is not ([`Failure::NoRoom`]): the same rows can be tried again.

use std::{
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use causeway_protocol::mqtt::SubscriptionOptions;
use hashbrown::HashMap;
use redb::{
    BackendError, Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend,
    StorageError, TableHandle, WriteTransaction, backends::FileBackend,
};

use super::{
    books::{Books, MessageBooks, Row, RunBooks, SessionBooks, is_live},
    v1,
    v2::{self, Damaged, Entry, Presence, Reader, Record, Stored},
};
use crate::{
    flow::{Lives, Origin},
    mqtt::{memory::Memory, publication::Publication},
};

/// Memory for pages: what is written lately is in it, the rest is read at the start only.
const CACHE: usize = 32 << 20;

/// Why the stored sessions cannot be used. The file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("the stored sessions in {path} cannot be opened: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is in the file, or it was changed from outside.
    #[error(
        "the stored sessions in {path} are damaged or no such file ({reason}); nothing was changed: put a copy from a \
         backup in its place, or move it away to start without stored sessions (mqtt.session_store = memory does so too)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Finding.
        reason: String,
    },
    /// Another version wrote it.
    #[error(
        "the stored sessions in {path} have the format {found}, this version reads format {known}; nothing was changed: \
         use the version that wrote it, or move the file away to start without stored sessions"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        known: u64,
    },
}

/// Why a transaction did not happen.
#[derive(Debug)]
pub(super) enum Failure {
    /// The disk, or what this user may have of it, is full.
    NoRoom(String),
    /// Anything else: nothing more can be promised.
    Final(String),
}

/// A session as it was found.
pub(crate) struct LoadedSession {
    pub(crate) session: u64,
    pub(crate) record: Record,
    pub(crate) subscriptions: Vec<(Box<str>, SubscriptionOptions, Option<u32>)>,
    /// Filters whose retained messages are held back, with the number that those are below; the oldest first.
    pub(crate) awaited: Vec<(Box<str>, u64)>,
    /// Queued deliveries, by position.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// Positions between PUBREC and PUBCOMP.
    pub(crate) released: Vec<u64>,
    /// QoS 2 identifiers of the client between PUBLISH and PUBREL; true: message sinks may not have the
    /// publication.
    pub(crate) received: Vec<(u16, bool)>,
    /// The next position to be given out.
    pub(crate) next: u64,
}

/// Everything that was found.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) sessions: Vec<LoadedSession>,
    pub(crate) retained: Vec<Arc<Publication>>,
    pub(super) next_session: u64,
    pub(super) next_message: u64,
    /// The file is from the end of the life before this one.
    pub(crate) continues: bool,
    life: Option<u64>,
    bytes: u64,
}

/// Observed state of the storage.
#[derive(Debug, Default)]
struct Seen {
    /// A sync has failed.
    sync_failed: AtomicBool,
    /// Bytes.
    length: AtomicU64,
}

/// A backend that is watched.
#[derive(Debug)]
struct Watched {
    inner: Box<dyn StorageBackend>,
    seen: Arc<Seen>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.inner.len().inspect(|length| self.seen.length.store(*length, Ordering::Release))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len).inspect(|()| self.seen.length.store(len, Ordering::Release))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| self.seen.sync_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

/// Opens the storage of a store; again after it was full.
pub(super) type Opener = Box<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send>;

/// The opener of a file.
pub(super) fn file_opener(path: &Path) -> Opener {
    let path = path.to_owned();
    Box::new(move || {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        // The file's name must survive as well.
        if let Some(folder) = path.parent() {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(Box::new(backend) as Box<dyn StorageBackend>)
    })
}

/// The file of the session store.
pub(super) struct File {
    path: PathBuf,
    opener: Opener,
    seen: Arc<Seen>,
    /// None after a failure.
    database: Option<Database>,
}

fn open_database(opener: &Opener, seen: &Arc<Seen>) -> Result<Database, DatabaseError> {
    let inner = opener().map_err(StorageError::Io)?;
    Builder::new()
        .set_cache_size(CACHE)
        // Without it a damaged file may be trusted, and panic later. What is read at the start is checked
        // on the way, at little more than the price of reading it.
        .set_check_integrity_on_open(true)
        .create_with_backend(Watched { inner, seen: seen.clone() })
}

impl File {
    /// Opens the store and reads everything in it. One of `compact_from` bytes that is mostly empty is
    /// shortened. Where it is not from the end of the life before, what it says of QoS 2 publications of
    /// clients is dropped.
    pub(super) fn open(
        path: &Path,
        opener: Opener,
        compact_from: u64,
        lives: Option<Lives>,
        memory: Memory,
    ) -> Result<(Self, Books, Loaded), OpenError> {
        let seen = Arc::new(Seen::default());
        let failed = |error: redb::Error| match error {
            redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => {
                OpenError::Io { path: path.to_owned(), source }
            }
            error => OpenError::Damaged { path: path.to_owned(), reason: error.to_string() },
        };
        let database = open_database(&opener, &seen).map_err(|error| failed(error.into()))?;
        check_format(path, &database, lives, &failed)?;
        let (mut books, mut loaded) = load(&database, memory).map_err(|error| match error {
            LoadError::Database(error) => failed(error),
            LoadError::Damaged(error) => {
                OpenError::Damaged { path: path.to_owned(), reason: error.to_string() }
            }
        })?;
        let is_before = |lives: Lives| lives.before.is_some() && lives.before == loaded.life;
        loaded.continues = lives.is_none_or(is_before);
        if !loaded.continues {
            let forgotten = books.forget_received();
            loaded.sessions.iter_mut().for_each(|session| session.received.clear());
            if forgotten > 0 {
                tracing::warn!(
                    path = %path.display(),
                    publications = forgotten,
                    "the stored sessions are not from the end of the last run (from a backup, or without data_dir/life): \
                     QoS 2 publications that clients send again now may be delivered twice"
                );
            }
        }
        let before = seen.length.load(Ordering::Acquire);
        let mut database = Some(database);
        if before > compact_from && loaded.bytes < before / 4 {
            // Room that is free inside is used again, so it is never needed; but who had a bad day once
            // wants the disk back.
            match database.as_mut().map_or(Ok(false), Database::compact) {
                Ok(_) => {
                    let after = seen.length.load(Ordering::Acquire);
                    tracing::info!(path = %path.display(), before, after, "stored sessions compacted");
                }
                Err(error) if seen.sync_failed.load(Ordering::Acquire) => {
                    return Err(OpenError::Io { path: path.to_owned(), source: io::Error::other(error) });
                }
                Err(error) => {
                    // The contents of the file are unchanged. The handle is of no use any more: the next
                    // transaction opens another.
                    tracing::warn!(%error, "stored sessions not compacted");
                    database = None;
                }
            }
        }
        let path = path.to_owned();
        Ok((Self { path, opener, seen, database }, books, loaded))
    }

    /// Writes rows, all or none, and returns when they are on the disk.
    pub(super) fn commit(&mut self, rows: &[Row]) -> Result<(), Failure> {
        let result = self.try_commit(rows);
        result.map_err(|error| {
            // The handle is of no use after an error; what is in the file is the last transaction.
            self.database = None;
            let no_room = matches!(
                &error,
                redb::Error::Io(error) if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
                )
            );
            let text = format!("{}: {error}", self.path.display());
            if no_room && !self.seen.sync_failed.load(Ordering::Acquire) {
                Failure::NoRoom(text)
            } else {
                Failure::Final(text)
            }
        })
    }

    fn try_commit(&mut self, rows: &[Row]) -> Result<(), redb::Error> {
        let database = match &self.database {
            Some(database) => database,
            None => self.database.insert(open_database(&self.opener, &self.seen)?),
        };
        let transaction = database.begin_write()?;
        write_rows(&transaction, rows)?;
        transaction.commit()?;
        Ok(())
    }
}

fn check_format(
    path: &Path,
    database: &Database,
    lives: Option<Lives>,
    failed: &impl Fn(redb::Error) -> OpenError,
) -> Result<(), OpenError> {
    let read = || -> Result<Option<u64>, redb::Error> {
        let transaction = database.begin_read()?;
        let names: Vec<_> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
        if names.is_empty() {
            return Ok(None);
        }
        if names.iter().any(|name| name == v1::META.name()) {
            let format = transaction.open_table(v1::META)?.get(v2::FORMAT.0)?.map(|value| value.value());
            return Ok(Some(format.unwrap_or_default()));
        }
        if !names.iter().any(|name| name == v2::META.name()) {
            // `v3.meta` is a later one of ours.
            let version = |name: &String| name.strip_prefix('v')?.split_once('.')?.0.parse().ok();
            return Ok(Some(names.iter().find_map(version).unwrap_or_default()));
        }
        let format = transaction.open_table(v2::META)?.get(v2::FORMAT.0)?.map(|value| value.value());
        Ok(Some(format.unwrap_or_default()))
    };
    let known = v2::FORMAT.1;
    match read().map_err(failed)? {
        Some(found) if found == known => Ok(()),
        Some(v1::FORMAT) => upgrade(path, database, lives).map_err(failed),
        Some(0) => Err(OpenError::Damaged {
            path: path.to_owned(),
            reason: "a database that this program did not write".to_owned(),
        }),
        Some(found) => Err(OpenError::Version { path: path.to_owned(), found, known }),
        None => create(database).map_err(failed),
    }
}

/// Makes a file of format 1 one of this format, at once or not at all.
fn upgrade(path: &Path, database: &Database, lives: Option<Lives>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    v1::upgrade(&transaction, lives.and_then(|lives| lives.before))?;
    transaction.commit()?;
    tracing::info!(path = %path.display(), "stored sessions are of format 2 now, which earlier versions do not read");
    Ok(())
}

/// All tables of a new file.
fn create(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(v2::META)?.insert(v2::FORMAT.0, v2::FORMAT.1)?;
    transaction.open_table(v2::SESSIONS)?;
    transaction.open_table(v2::SUBSCRIPTIONS)?;
    transaction.open_table(v2::AWAITED)?;
    transaction.open_table(v2::RUNS)?;
    transaction.open_table(v2::PROGRESS)?;
    transaction.open_table(v2::MESSAGES)?;
    transaction.commit()?;
    Ok(())
}

fn write_rows(transaction: &WriteTransaction, rows: &[Row]) -> Result<(), redb::Error> {
    // Table by table: opening one has its price, and most batches touch two.
    macro_rules! each {
        ($table:expr, $pattern:pat, |$open:ident, $row:ident| $write:expr) => {
            let mut table = None;
            for $row in rows {
                if matches!($row, $pattern) {
                    let $open = match &mut table {
                        Some(table) => table,
                        none => none.insert(transaction.open_table($table)?),
                    };
                    $write
                }
            }
        };
    }
    each!(v2::META, Row::Life(_), |table, row| if let Row::Life(life) = row {
        table.insert(v2::LIFE, life)?;
    });
    each!(v2::SESSIONS, Row::Session(..), |table, row| match row {
        Row::Session(session, Some(value)) => drop(table.insert(session, &**value)?),
        Row::Session(session, None) => drop(table.remove(session)?),
        _ => {}
    });
    each!(v2::SUBSCRIPTIONS, Row::Subscription(..) | Row::Subscriptions(_), |table, row| match row {
        Row::Subscription(session, filter, Some(value)) => {
            drop(table.insert((*session, &**filter), &value[..])?);
        }
        Row::Subscription(session, filter, None) => drop(table.remove((*session, &**filter))?),
        Row::Subscriptions(session) => {
            table.retain_in((*session, "")..(*session + 1, ""), |_, _| false)?;
        }
        _ => {}
    });
    each!(v2::AWAITED, Row::Awaited(..), |table, row| match row {
        Row::Awaited(session, filter, Some(before)) => drop(table.insert((*session, &**filter), before)?),
        Row::Awaited(session, filter, None) => drop(table.remove((*session, &**filter))?),
        _ => {}
    });
    each!(v2::RUNS, Row::Run(..), |table, row| match row {
        Row::Run(session, first, Some(value)) => drop(table.insert((*session, *first), &**value)?),
        Row::Run(session, first, None) => drop(table.remove((*session, *first))?),
        _ => {}
    });
    each!(v2::PROGRESS, Row::Progress(..), |table, row| match row {
        Row::Progress(session, Some(value)) => drop(table.insert(session, &**value)?),
        Row::Progress(session, None) => drop(table.remove(session)?),
        _ => {}
    });
    each!(v2::MESSAGES, Row::Message(..) | Row::Retained(..), |table, row| match row {
        Row::Message(number, Some(value)) => drop(table.insert(number, &**value)?),
        Row::Message(number, None) => drop(table.remove(number)?),
        Row::Retained(number, retained) => {
            let value = table.get(number)?.map(|value| value.value().to_vec());
            if let Some(mut value) = value {
                v2::set_retained(&mut value, *retained);
                table.insert(number, &*value)?;
            }
        }
        _ => {}
    });
    Ok(())
}

enum LoadError {
    Database(redb::Error),
    Damaged(Damaged),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

fn load(database: &Database, memory: Memory) -> Result<(Books, Loaded), LoadError> {
    let origin = Arc::new(Origin { client_id: "stored".into(), username: None, peer: None });
    let reader = Reader { origin, memory };
    let transaction = database.begin_read()?;
    let (mut books, mut loaded) = (Books::default(), Loaded::default());
    loaded.life = transaction.open_table(v2::META)?.get(v2::LIFE)?.map(|value| value.value());
    let mut messages: HashMap<u64, Arc<Publication>> = HashMap::new();
    for row in transaction.open_table(v2::MESSAGES)?.iter()? {
        let (number, value) = row?;
        let (number, value) = (number.value(), value.value());
        loaded.bytes += value.len() as u64;
        let (publication, retained) = v2::read_shared(value, &reader, number).map_err(LoadError::Damaged)?;
        let references = u64::from(retained);
        if retained {
            loaded.retained.push(publication.clone());
        }
        books.messages.insert(number, MessageBooks { references, retained, in_file: Some(retained) });
        messages.insert(number, publication);
        loaded.next_message = loaded.next_message.max(number);
    }
    let mut places: HashMap<u64, usize> = HashMap::new();
    for row in transaction.open_table(v2::SESSIONS)?.iter()? {
        let (session, value) = row?;
        let (session, value) = (session.value(), value.value());
        loaded.bytes += value.len() as u64;
        places.insert(session, loaded.sessions.len());
        loaded.sessions.push(LoadedSession {
            session,
            record: v2::read_record(value).map_err(LoadError::Damaged)?,
            subscriptions: Vec::new(),
            awaited: Vec::new(),
            entries: Vec::new(),
            released: Vec::new(),
            received: Vec::new(),
            next: 0,
        });
        books.sessions.insert(session, SessionBooks::default());
        loaded.next_session = loaded.next_session.max(session);
    }
    for row in transaction.open_table(v2::SUBSCRIPTIONS)?.iter()? {
        let (key, value) = row?;
        let (session, filter) = key.value();
        let (options, identifier) = v2::read_subscription(value.value()).map_err(LoadError::Damaged)?;
        if let Some(place) = places.get(&session).and_then(|at| loaded.sessions.get_mut(*at)) {
            place.subscriptions.push((filter.into(), options, identifier));
        }
    }
    for row in transaction.open_table(v2::AWAITED)?.iter()? {
        let (key, before) = row?;
        let (session, filter) = key.value();
        let place = places.get(&session).and_then(|at| loaded.sessions.get_mut(*at));
        let (Some(found), Some(books)) = (place, books.sessions.get_mut(&session)) else { continue };
        found.awaited.push((filter.into(), before.value()));
        books.awaited.insert(filter.into());
    }
    for row in transaction.open_table(v2::PROGRESS)?.iter()? {
        let (session, value) = row?;
        let progress = v2::read_progress(value.value()).map_err(LoadError::Damaged)?;
        if let Some(books) = books.sessions.get_mut(&session.value()) {
            books.progress = progress;
        }
    }
    for row in transaction.open_table(v2::RUNS)?.iter()? {
        let (key, value) = row?;
        let ((session, first), value) = (key.value(), value.value());
        loaded.bytes += value.len() as u64;
        let place = places.get(&session).and_then(|at| loaded.sessions.get_mut(*at));
        let (Some(found), Some(books_of)) = (place, books.sessions.get_mut(&session)) else { continue };
        let mut run = RunBooks { first, count: 0, live: 0, shared: None };
        let mut shared = Vec::new();
        for stored in v2::Run::new(value, &reader) {
            let position = first + u64::from(run.count);
            run.count += 1;
            let live = is_live(&books_of.progress, position);
            let (number, entry) = match stored.map_err(LoadError::Damaged)? {
                Stored::Hole => (0, None),
                Stored::Own(entry) => (0, Some(entry)),
                Stored::Shared(reference) => {
                    let number = reference.number;
                    let publication = messages.get(&number);
                    if live && publication.is_none() {
                        return Err(LoadError::Damaged(Damaged("v2.messages")));
                    }
                    let publication = publication.cloned();
                    (number, publication.map(|publication| reference.with(publication)))
                }
            };
            shared.push(number);
            let Some(entry) = entry.filter(|_| live) else { continue };
            run.live += 1;
            if let Some(message) = books.messages.get_mut(&number) {
                message.references += 1;
            }
            found.entries.push((position, entry));
        }
        found.next = found.next.max(first + u64::from(run.count));
        if shared.iter().any(|number| *number != 0) {
            run.shared = Some(shared.into_boxed_slice());
        }
        books_of.runs.push_back(run);
    }
    books.sweep();
    for found in &mut loaded.sessions {
        found.awaited.sort_unstable_by_key(|(_, before)| *before);
        let Some(books) = books.sessions.get_mut(&found.session) else { continue };
        let progress = &mut books.progress;
        let last = progress.done.iter().last().map_or(0, |range| range.end);
        let released = progress.released.last().map_or(0, |position| position + 1);
        found.next = found.next.max(progress.cursor).max(last).max(released);
        if let Presence::Away { sent, .. } = found.record.presence {
            found.next = found.next.max(sent);
        }
        // Positions that were given out and never stored are free again.
        let mut from = progress.cursor;
        for (position, _) in &found.entries {
            progress.done.insert(from..*position);
            from = position + 1;
        }
        progress.done.insert(from..found.next);
        progress.cursor = progress.done.advance(progress.cursor);
        found.released.clone_from(&progress.released);
        found.received.clone_from(&progress.received);
    }
    Ok((books, loaded))
}
