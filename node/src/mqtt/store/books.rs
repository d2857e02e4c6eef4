//! The books of the store: what is in the file, and which rows a batch of changes writes and removes.
//!
//! Pure: [`Op`]s in, [`Rows`] out, no file and no clock. What a batch appends and takes back is never
//! written; the rest of a session's appends becomes a few runs, one row each, so that a thousand messages
//! cost one insertion into a tree and not a thousand.
//!
//! Invariants:
//! * A position is appended at most once, and is live from then until it is done or released.
//! * A run is removed with its last live position, a shared message with its last reference.
//! * Ops of one session may come in any order of positions: a position that is done before it is appended
//!   stays done.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use causeway_protocol::mqtt::SubscriptionOptions;
use hashbrown::HashMap;

use super::{
    ranges::Ranges,
    v2::{self, Entry, Progress, Record},
};
use crate::mqtt::publication::Publication;

/// Bytes of a run, beyond which its session's next entry begins another: a row that is read and removed
/// as a whole should not be larger than what a client takes in one go.
const RUN_BYTES: usize = 128 << 10;

/// Entries of a run, for the same reason.
const RUN_ENTRIES: usize = 2048;

/// A change.
pub(crate) enum Op {
    /// A session begins, or what is known of it changes.
    Session { session: u64, record: Box<Record> },
    /// A session ends, with everything it has.
    End { session: u64 },
    /// A subscription begins or changes.
    Subscribe { session: u64, filter: Box<str>, options: SubscriptionOptions, identifier: Option<u32> },
    /// A subscription ends.
    Unsubscribe { session: u64, filter: Box<str> },
    /// The retained messages for a subscription, with numbers below `before`, are held back; none: not any
    /// more.
    Await { session: u64, filter: Box<str>, before: Option<u64> },
    /// A delivery is queued.
    Append { session: u64, position: u64, entry: Entry },
    /// Nothing is owed for a position any more.
    Done { session: u64, position: u64 },
    /// The client has sent PUBREC: its message is not needed any more, its identifier is.
    Released { session: u64, position: u64 },
    /// A QoS 2 publication of the client went to the sessions that take it; `sinks`: message sinks may not
    /// have it.
    Received { session: u64, identifier: u16, sinks: bool },
    /// The identifier of a QoS 2 publication of the client is free.
    Forgotten { session: u64, identifier: u16 },
    /// A message is the retained one of its topic.
    Retain { publication: Arc<Publication> },
    /// A message is it no more.
    Unretain { message: u64 },
    /// The file belongs to this life of the node from now on.
    Life(u64),
}

/// A row to write, or to remove (`None`).
pub(super) enum Row {
    Session(u64, Option<Bytes>),
    /// All subscriptions of a session, to be removed.
    Subscriptions(u64),
    Subscription(u64, Box<str>, Option<[u8; 5]>),
    Awaited(u64, Box<str>, Option<u64>),
    Run(u64, u64, Option<Bytes>),
    Progress(u64, Option<Bytes>),
    Message(u64, Option<Bytes>),
    /// A message that is there becomes the retained one of its topic, or is it no more.
    Retained(u64, bool),
    /// The file belongs to this life of the node.
    Life(u64),
}

/// Consecutive positions in one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunBooks {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) live: u32,
    /// Messages they refer to, 0 where an entry has its own; none: no entry refers to one.
    pub(super) shared: Option<Box<[u64]>>,
}

impl RunBooks {
    fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct SessionBooks {
    /// In the file, by first position.
    pub(super) runs: VecDeque<RunBooks>,
    pub(super) progress: Progress,
    /// Filters whose retained messages are held back.
    pub(super) awaited: BTreeSet<Box<str>>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct MessageBooks {
    pub(super) references: u64,
    pub(super) retained: bool,
    /// In the file, and whether as a retained one.
    pub(super) in_file: Option<bool>,
}

/// Changes of one session in the batch at hand.
#[derive(Default)]
struct Staged {
    /// Appended and not taken back; `None`: taken back.
    entries: Vec<(u64, Option<Entry>)>,
    progress: bool,
    removed_runs: Vec<u64>,
}

/// Bookkeeping of the session store.
#[derive(Default)]
pub(super) struct Books {
    pub(super) sessions: HashMap<u64, SessionBooks>,
    pub(super) messages: HashMap<u64, MessageBooks>,
    staged: BTreeMap<u64, Staged>,
    /// Shared messages that the batch refers to and that are not in the file.
    bodies: HashMap<u64, Arc<Publication>>,
    touched: Vec<u64>,
    arena: BytesMut,
    /// Deliveries that a batch took back before they were written.
    pub(super) cancelled: u64,
    /// Deliveries written.
    pub(super) written: u64,
}

impl Books {
    /// Works out what a batch changes in the file.
    pub(super) fn apply(&mut self, ops: impl Iterator<Item = Op>) -> Vec<Row> {
        let mut rows = Vec::new();
        for op in ops {
            self.apply_one(op, &mut rows);
        }
        self.finish(&mut rows);
        rows
    }

    fn apply_one(&mut self, op: Op, rows: &mut Vec<Row>) {
        match op {
            Op::Session { session, record } => {
                self.sessions.entry(session).or_default();
                v2::put_record(&mut self.arena, &record);
                rows.push(Row::Session(session, Some(self.cut())));
            }
            Op::End { session } => self.end(session, rows),
            Op::Subscribe { session, .. } | Op::Unsubscribe { session, .. }
                if !self.sessions.contains_key(&session) => {}
            Op::Subscribe { session, filter, options, identifier } => {
                let value = v2::subscription(options, identifier);
                rows.push(Row::Subscription(session, filter, Some(value)));
            }
            Op::Unsubscribe { session, filter } => rows.push(Row::Subscription(session, filter, None)),
            Op::Await { session, filter, before } => {
                let Some(books) = self.sessions.get_mut(&session) else { return };
                if before.is_some() {
                    books.awaited.insert(filter.clone());
                } else if !books.awaited.remove(&filter) {
                    return;
                }
                rows.push(Row::Awaited(session, filter, before));
            }
            Op::Append { session, position, entry } => self.append(session, position, entry),
            Op::Done { session, position } => {
                let Some(books) = self.sessions.get_mut(&session) else { return };
                let released = &mut books.progress.released;
                if let Ok(at) = released.binary_search(&position) {
                    released.remove(at);
                    self.staged.entry(session).or_default().progress = true;
                } else {
                    self.leave(session, position);
                }
            }
            Op::Released { session, position } => {
                let Some(books) = self.sessions.get_mut(&session) else { return };
                if let Err(at) = books.progress.released.binary_search(&position) {
                    books.progress.released.insert(at, position);
                }
                self.leave(session, position);
            }
            Op::Received { session, identifier, sinks } => {
                let Some(books) = self.sessions.get_mut(&session) else { return };
                books.progress.received.retain(|(known, _)| *known != identifier);
                books.progress.received.push((identifier, sinks));
                self.staged.entry(session).or_default().progress = true;
            }
            Op::Forgotten { session, identifier } => {
                let Some(books) = self.sessions.get_mut(&session) else { return };
                books.progress.received.retain(|(known, _)| *known != identifier);
                self.staged.entry(session).or_default().progress = true;
            }
            Op::Life(life) => rows.push(Row::Life(life)),
            Op::Retain { publication } => {
                let number = publication.number();
                let message = self.messages.entry(number).or_default();
                if !message.retained {
                    message.retained = true;
                    message.references += 1;
                    self.touched.push(number);
                    self.bodies.entry(number).or_insert(publication);
                }
            }
            Op::Unretain { message } => {
                let Some(books) = self.messages.get_mut(&message) else { return };
                if std::mem::take(&mut books.retained) {
                    self.unrefer(message);
                }
            }
        }
    }

    fn append(&mut self, session: u64, position: u64, entry: Entry) {
        let Some(books) = self.sessions.get_mut(&session) else { return };
        if position < books.progress.cursor || books.progress.done.contains(position) {
            return;
        }
        let number = entry.publication.number();
        if number != 0 {
            self.messages.entry(number).or_default().references += 1;
            self.touched.push(number);
            self.bodies.entry(number).or_insert_with(|| entry.publication.clone());
        }
        let staged = self.staged.entry(session).or_default();
        staged.entries.push((position, Some(entry)));
        // Publishers on two threads may have been in each other's way.
        let mut at = staged.entries.len() - 1;
        while at > 0 && staged.entries.get(at - 1).is_some_and(|(before, _)| *before > position) {
            staged.entries.swap(at, at - 1);
            at -= 1;
        }
    }

    /// The message of a position is not needed any more.
    fn leave(&mut self, session: u64, position: u64) {
        let Some(books) = self.sessions.get_mut(&session) else { return };
        let progress = &mut books.progress;
        if position < progress.cursor || progress.done.contains(position) {
            return;
        }
        progress.done.insert(position..position + 1);
        progress.cursor = progress.done.advance(progress.cursor);
        let staged = self.staged.entry(session).or_default();
        staged.progress = true;
        let shared = if let Ok(at) = staged.entries.binary_search_by_key(&position, |(known, _)| *known) {
            let entry = staged.entries.get_mut(at).and_then(|(_, entry)| entry.take());
            self.cancelled += 1;
            entry.map_or(0, |entry| entry.publication.number())
        } else {
            let at = books.runs.partition_point(|run| run.end() <= position);
            let Some(run) = books.runs.get_mut(at).filter(|run| run.first <= position) else { return };
            run.live = run.live.saturating_sub(1);
            let place = (position - run.first) as usize;
            let shared = run.shared.as_ref().and_then(|shared| shared.get(place)).copied();
            if run.live == 0
                && let Some(run) = books.runs.remove(at)
            {
                staged.removed_runs.push(run.first);
            }
            shared.unwrap_or_default()
        };
        if shared != 0 {
            self.unrefer(shared);
        }
    }

    fn unrefer(&mut self, number: u64) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.references = message.references.saturating_sub(1);
            self.touched.push(number);
        }
    }

    fn end(&mut self, session: u64, rows: &mut Vec<Row>) {
        let Some(books) = self.sessions.remove(&session) else { return };
        let staged = self.staged.remove(&session).unwrap_or_default();
        for (_, entry) in staged.entries {
            if let Some(entry) = entry {
                self.cancelled += 1;
                self.unrefer(entry.publication.number());
            }
        }
        let removed = staged.removed_runs.into_iter();
        rows.extend(removed.map(|first| Row::Run(session, first, None)));
        let progress = &books.progress;
        for run in &books.runs {
            for (position, shared) in (run.first..).zip(run.shared.iter().flat_map(|shared| shared.iter())) {
                let live = position >= progress.cursor && !progress.done.contains(position);
                if live && *shared != 0 {
                    self.unrefer(*shared);
                }
            }
            rows.push(Row::Run(session, run.first, None));
        }
        rows.extend(books.awaited.iter().map(|filter| Row::Awaited(session, filter.clone(), None)));
        rows.push(Row::Subscriptions(session));
        rows.push(Row::Progress(session, None));
        rows.push(Row::Session(session, None));
    }

    /// Forgets which QoS 2 publications of clients were received; on the disk with the next batch. How many
    /// there were.
    pub(super) fn forget_received(&mut self) -> usize {
        let mut forgotten = 0;
        for (session, books) in &mut self.sessions {
            let received = std::mem::take(&mut books.progress.received);
            if !received.is_empty() {
                forgotten += received.len();
                self.staged.entry(*session).or_default().progress = true;
            }
        }
        forgotten
    }

    /// Messages without any reference go with the next batch.
    pub(super) fn sweep(&mut self) {
        let unused = self.messages.iter().filter(|(_, message)| message.references == 0);
        self.touched.extend(unused.map(|(number, _)| *number));
    }

    fn cut(&mut self) -> Bytes {
        self.arena.split().freeze()
    }

    /// The rows of everything staged.
    fn finish(&mut self, rows: &mut Vec<Row>) {
        for (session, staged) in std::mem::take(&mut self.staged) {
            let Staged { entries, progress, removed_runs } = staged;
            rows.extend(removed_runs.into_iter().map(|first| Row::Run(session, first, None)));
            self.write_runs(session, &entries, rows);
            if progress && let Some(books) = self.sessions.get(&session) {
                v2::put_progress(&mut self.arena, &books.progress);
                let row = self.arena.split().freeze();
                rows.push(Row::Progress(session, Some(row)));
            }
        }
        self.touched.sort_unstable();
        self.touched.dedup();
        for number in std::mem::take(&mut self.touched) {
            let Some(message) = self.messages.get_mut(&number) else { continue };
            match (message.references, message.in_file) {
                (0, in_file) => {
                    self.messages.remove(&number);
                    if in_file.is_some() {
                        rows.push(Row::Message(number, None));
                    }
                }
                (_, None) => {
                    let Some(publication) = self.bodies.get(&number) else { continue };
                    message.in_file = Some(message.retained);
                    v2::put_shared(&mut self.arena, publication, message.retained);
                    rows.push(Row::Message(number, Some(self.arena.split().freeze())));
                }
                (_, Some(retained)) if retained != message.retained => {
                    message.in_file = Some(message.retained);
                    rows.push(Row::Retained(number, message.retained));
                }
                (_, Some(_)) => {}
            }
        }
        self.bodies.clear();
    }

    /// Turns entries into runs: consecutive positions, what was taken back is a hole in them.
    fn write_runs(&mut self, session: u64, entries: &[(u64, Option<Entry>)], rows: &mut Vec<Row>) {
        let Some(books) = self.sessions.get_mut(&session) else { return };
        let mut rest = entries;
        while let Some(at) = rest.iter().position(|(_, entry)| entry.is_some()) {
            rest = rest.get(at..).unwrap_or_default();
            let Some(&(first, _)) = rest.first() else { return };
            let (mut count, mut live, mut shared) = (0, 0, None::<Vec<u64>>);
            // Holes at the end are not written.
            let (mut length, mut used) = (0, 0);
            for (place, (position, entry)) in rest.iter().enumerate() {
                let full = self.arena.len() >= RUN_BYTES || place >= RUN_ENTRIES;
                if *position != first + place as u64 || full {
                    break;
                }
                v2::put_entry(&mut self.arena, entry.as_ref());
                used = place + 1;
                if let Some(entry) = entry {
                    count = used;
                    live += 1;
                    length = self.arena.len();
                    let number = entry.publication.number();
                    if number != 0 || shared.is_some() {
                        let shared = shared.get_or_insert_default();
                        shared.resize(place, 0);
                        shared.push(number);
                    }
                }
            }
            self.arena.truncate(length);
            self.written += live;
            rows.push(Row::Run(session, first, Some(self.arena.split().freeze())));
            let run = RunBooks {
                first,
                count: count as u32,
                live: live as u32,
                shared: shared.map(|mut shared| {
                    shared.resize(count, 0);
                    shared.into_boxed_slice()
                }),
            };
            let at = books.runs.partition_point(|known| known.first < first);
            books.runs.insert(at, run);
            rest = rest.get(used..).unwrap_or_default();
        }
    }
}

/// Positions of a session that are live, for those who read the file.
pub(super) fn is_live(progress: &Progress, position: u64) -> bool {
    let Progress { cursor, done, .. } = progress;
    let done: &Ranges = done;
    position >= *cursor && !done.contains(position)
}
