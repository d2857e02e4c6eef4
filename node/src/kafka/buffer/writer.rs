//! The thread that makes records durable: one for each bridge with a disk buffer.
//!
//! It takes what all partitions of the bridge have gathered, writes it in one piece, syncs once, and then
//! tells its users: inboxes (which release their tickets) and partition producers (whose batches may go).
//! While it writes, the next round gathers, so a slow disk makes rounds larger, not longer queues.
//!
//! Invariants:
//! * Nothing is confirmed before the sync has returned, and nothing any more after a failed one.
//! * What is done is written before seals that were ordered later: a batch is never missing in both.
//! * Records do not move between inboxes during a round ([`Buffer::pause`]).
//! * A full disk is asked again every [`RETRY`]; seals and ends of batches go through meanwhile.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::TopicPartition;
use super::disk::{Directory, Disk};
use super::live::Numbers;
use super::log::{Error, Found, Log, OpenError};
use super::v2::Seal;
use crate::flow::{HandOver, Mark, Remembers, SessionId, Wake};

/// From one sync to the next, at least: the price of a sync (some 0.1 ms of CPU and the device's time) then
/// stays small beside that of the messages, and an acknowledgement waits this much longer at most.
const PACE: Duration = Duration::from_millis(3);

/// Ends of batches wait for company so long; nothing waits for them.
const LAZY: Duration = Duration::from_millis(200);

/// How often a full disk is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Longest wait for a flush.
const FLUSH: Duration = Duration::from_secs(5);

/// Bytes of records in a round, and one run more: what comes beyond waits for the next one, so that neither a
/// backlog nor its copy here grows with what publishers wrote during a slow sync, and acknowledgements come
/// in between.
const ROUND_BYTES: usize = 8 << 20;

/// Takes a run of encoded records (how many, the base of their timestamps, the bytes, marks of some of them)
/// and gives their numbers; `None` where the round is full.
pub type Put<'a> = dyn FnMut(&TopicPartition, u32, i64, &[u8], &[Mark]) -> Option<Numbers> + 'a;

/// Where records gather.
pub trait Source: Send + Sync {
    /// Gives what was never given, in order, until there is nothing or the round is full. True where
    /// something is left: it will be asked again without having called [`Wake::wake`].
    fn collect(&self, put: &mut Put<'_>) -> bool;

    /// Records with numbers below this one are durable.
    fn durable(&self, below: u64);

    /// The disk is full ([`Buffer::is_full`]): what is durable is not to wait for what is not.
    fn held_up(&self) {}
}

/// Called when something is durable.
pub type Then = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// A source has something new.
    dirty: bool,
    done: Vec<Numbers>,
    seals: Vec<(TopicPartition, Vec<Seal>, Then)>,
    forgotten: Vec<(Mark, Option<Arc<HandOver>>)>,
    ended: Vec<SessionId>,
    believe: Option<(u64, BTreeSet<Mark>)>,
    forget_all: bool,
    flushes: Vec<oneshot::Sender<()>>,
    stop: bool,
}

/// Shared view of a buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BufferState {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Records on the disk that are still needed.
    pub records: u64,
    /// Why nothing becomes durable.
    pub trouble: Option<Arc<str>>,
    /// Parts that could not be read at the start.
    pub damage: Option<Arc<str>>,
}

/// Handle of a disk buffer and its writing thread.
pub struct Buffer {
    queue: Mutex<Queue>,
    work: Condvar,
    round: Mutex<()>,
    sources: Mutex<Vec<Weak<dyn Source>>>,
    state: Mutex<BufferState>,
    full: AtomicBool,
    /// All marks there are, durable or about to be, less those that are forgotten for good.
    marks: Mutex<HashSet<Mark>>,
    /// Of these, what was found at the start; none counts before [`Remembers::believe`].
    recalled: Mutex<BTreeSet<Mark>>,
    recalls: AtomicBool,
    /// The life whose marks were found.
    life: Option<u64>,
    /// The disk may say that marks there are of this life, and count for the next.
    claims: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Wake for Buffer {
    fn wake(&self) {
        self.queue.lock().dirty = true;
        self.work.notify_one();
    }
}

impl Remembers for Buffer {
    fn life(&self) -> Option<u64> {
        self.life
    }

    fn believe(&self, now: u64, meant: &dyn Fn(Mark) -> bool) {
        let mut recalled = self.recalled.lock();
        recalled.retain(|mark| meant(*mark));
        self.marks.lock().extend(recalled.iter());
        self.recalls.store(!recalled.is_empty(), Ordering::Release);
        self.claims.store(true, Ordering::Release);
        self.queue.lock().believe = Some((now, recalled.clone()));
        self.work.notify_one();
    }

    fn remembers(&self, mark: Mark) -> bool {
        self.marks.lock().contains(&mark)
    }

    fn forget(&self, mark: Mark, then: Arc<HandOver>) {
        self.recalled.lock().remove(&mark);
        let mut queue = self.queue.lock();
        if queue.stop {
            // It will not become durable any more.
            then.abandon();
            return;
        }
        queue.forgotten.push((mark, Some(then)));
        self.work.notify_one();
    }

    fn session_ended(&self, session: SessionId) {
        let mut recalled = self.recalled.lock();
        let of = Mark { session, identifier: 0 }..=Mark { session, identifier: u16::MAX };
        let gone: Vec<Mark> = recalled.range(of).copied().collect();
        for mark in gone {
            recalled.remove(&mark);
        }
        drop(recalled);
        self.queue.lock().ended.push(session);
        self.work.notify_one();
    }

    fn keep_sessions(&self, exists: &dyn Fn(SessionId) -> bool) {
        let mut recalled = self.recalled.lock();
        let mut queue = self.queue.lock();
        recalled.retain(|mark| {
            let exists = exists(mark.session);
            if !exists {
                queue.forgotten.push((*mark, None));
            }
            exists
        });
        self.work.notify_one();
    }
}

impl Buffer {
    /// Opens the buffer in a directory, which no other process may have, and gives what is in it.
    pub fn open(path: &Path, segment_bytes: u64) -> Result<(Arc<Self>, Found), OpenError> {
        let (log, found) = Log::open(Directory::open(path)?, segment_bytes)?;
        Ok((Self::start(log, &found)?, found))
    }

    /// A buffer on a disk of the tests.
    #[cfg(test)]
    pub(in crate::kafka) fn open_on(
        disk: impl Disk + 'static,
        segment_bytes: u64,
    ) -> Result<Arc<Self>, OpenError> {
        let (log, found) = Log::open(disk, segment_bytes)?;
        Ok(Self::start(log, &found)?)
    }

    fn start<D: Disk + 'static>(log: Log<D>, found: &Found) -> std::io::Result<Arc<Self>> {
        let damage = found.damage.first().map(|first| {
            let (places, lost) = (found.damage.len(), found.lost);
            let name = &first.name;
            format!("{places} damaged places in the buffer, the first in {name}: {lost} records are missing")
                .into()
        });
        let state = BufferState { bytes: log.bytes(), records: log.records(), trouble: None, damage };
        let buffer = Arc::new(Self {
            queue: Mutex::default(),
            work: Condvar::new(),
            round: Mutex::default(),
            sources: Mutex::default(),
            state: Mutex::new(state),
            full: false.into(),
            marks: Mutex::default(),
            recalled: Mutex::new(found.marks.clone()),
            recalls: false.into(),
            life: found.life,
            claims: false.into(),
            thread: Mutex::default(),
        });
        let shared = buffer.clone();
        let thread = std::thread::Builder::new().name("causeway-buffer".into());
        *buffer.thread.lock() = Some(thread.spawn(move || shared.run(log))?);
        Ok(buffer)
    }

    /// From now on this source is asked in every round.
    pub fn add_source(&self, source: Weak<dyn Source>) {
        let mut sources = self.sources.lock();
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
    }

    /// These records are no longer needed.
    pub fn done(&self, done: &[Numbers]) {
        self.queue.lock().done.extend_from_slice(done);
        self.work.notify_one();
    }

    /// These are the batches of a place that are under way; `then` is called when that is durable.
    pub fn seal(&self, place: TopicPartition, seals: Vec<Seal>, then: Then) {
        self.queue.lock().seals.push((place, seals, then));
        self.work.notify_one();
    }

    /// Whether this publication is one from before the start, whose record is here or was brought to Kafka.
    pub fn recalls(&self, mark: Mark) -> bool {
        if !self.recalls.load(Ordering::Relaxed) {
            return false;
        }
        let recalled = self.recalled.lock();
        self.recalls.store(!recalled.is_empty(), Ordering::Relaxed);
        recalled.contains(&mark)
    }

    /// Forgets all marks, those that are still to be put in included: publications are about to be released
    /// unheard.
    pub fn forget_all(&self) {
        self.recalled.lock().clear();
        self.queue.lock().forget_all = true;
        self.work.notify_one();
    }

    /// True where the next life of the node may believe the marks that are on the disk: releases must be
    /// heard until it begins.
    pub fn must_hear(&self) -> bool {
        self.claims.load(Ordering::Acquire)
    }

    /// No round takes place while this is held.
    pub fn pause(&self) -> MutexGuard<'_, ()> {
        self.round.lock()
    }

    /// How it is doing.
    pub fn state(&self) -> BufferState {
        self.state.lock().clone()
    }

    /// True while there is no room on the disk.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Resolves when what was put in before is durable, or cannot be for the moment.
    pub async fn flush(&self) {
        let (told, done) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.stop {
                return;
            }
            queue.flushes.push(told);
        }
        self.work.notify_one();
        let _ = tokio::time::timeout(FLUSH, done).await;
    }

    /// Ends the thread after a last round; the directory is free afterwards.
    pub async fn close(&self) {
        if let Some(thread) = self.tell_to_end() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// As [`Self::close`], for an unused buffer.
    pub fn close_unused(&self) {
        if let Some(thread) = self.tell_to_end() {
            let _ = thread.join();
        }
    }

    fn tell_to_end(&self) -> Option<JoinHandle<()>> {
        let thread = self.thread.lock().take()?;
        self.queue.lock().stop = true;
        self.work.notify_one();
        Some(thread)
    }

    /// Waits for work and takes it. The pace is kept while the queue is open, so that more gathers.
    fn next_work(&self, last: Instant, retry: bool) -> Queue {
        let mut queue = self.queue.lock();
        let urgent = |queue: &Queue| {
            let lazy = queue.done.len() > 10_000;
            let forget = !queue.forgotten.is_empty() || !queue.ended.is_empty() || queue.forget_all;
            let asked = forget || queue.believe.is_some() || !queue.flushes.is_empty();
            queue.dirty || lazy || queue.stop || !queue.seals.is_empty() || asked
        };
        while !urgent(&queue) {
            let wait = if retry {
                RETRY
            } else if queue.done.is_empty() {
                Duration::from_hours(1)
            } else {
                LAZY
            };
            if self.work.wait_for(&mut queue, wait).timed_out() && (retry || !queue.done.is_empty()) {
                break;
            }
        }
        let early = PACE.saturating_sub(last.elapsed());
        if !early.is_zero() && !queue.stop {
            drop(queue);
            std::thread::sleep(early);
            queue = self.queue.lock();
        }
        let stop = queue.stop;
        std::mem::replace(&mut *queue, Queue { stop, ..Queue::default() })
    }

    fn run<D: Disk>(&self, mut log: Log<D>) {
        let mut last = Instant::now();
        let mut held: Vec<Then> = Vec::new();
        let mut forgotten: Vec<(Mark, Option<Arc<HandOver>>)> = Vec::new();
        let mut retry = false;
        let mut forgets_all = false;
        let mut turn = 0_usize;
        loop {
            let work = self.next_work(last, retry);
            let round = self.round.lock();
            last = Instant::now();
            log.put_done(&work.done);
            for (place, seals, then) in work.seals {
                log.put_seals(&place, seals);
                held.push(then);
            }
            if let Some((now, marks)) = work.believe {
                log.believe(now, marks);
            }
            for session in work.ended {
                forgotten.extend(log.marks_of(session).into_iter().map(|mark| (mark, None)));
            }
            forgotten.extend(work.forgotten);
            let unneeded: Vec<Mark> = forgotten.iter().map(|(mark, _)| *mark).collect();
            log.forget(&unneeded);
            if work.forget_all {
                log.forget_all();
                forgets_all = true;
            }
            let mut sources: Vec<Arc<dyn Source>> =
                self.sources.lock().iter().filter_map(Weak::upgrade).collect();
            // Another one is the first each time, so that all have their turn while rounds are full.
            turn = turn.wrapping_add(1);
            let first = turn % sources.len().max(1);
            sources.rotate_left(first);
            let mut left = log.has_records();
            if !left {
                for source in &sources {
                    left |= source.collect(&mut |place, count, base, bytes, marks| {
                        if log.record_bytes() >= ROUND_BYTES {
                            return None;
                        }
                        let numbers = log.put_records(place, count, base, bytes);
                        if !marks.is_empty() {
                            self.marks.lock().extend(marks);
                            log.put_marks(marks);
                        }
                        Some(numbers)
                    });
                }
            }
            let result = log.commit();
            if !log.has_control() {
                held.drain(..).for_each(|then| then());
                let mut marks = self.marks.lock();
                let done = std::mem::take(&mut forgotten);
                for (mark, _) in &done {
                    marks.remove(mark);
                }
                if forgets_all {
                    marks.clear();
                    self.claims.store(false, Ordering::Release);
                }
                drop(marks);
                drop(done);
            }
            self.full.store(matches!(result, Err(Error::Full(_))), Ordering::Release);
            match &result {
                Ok(()) => {
                    // Records that came while the disk was full, or during the round, has been announced
                    // before.
                    self.queue.lock().dirty |= left;
                    let below = log.next_number();
                    for source in &sources {
                        source.durable(below);
                    }
                }
                Err(Error::Failed(_)) => {
                    held.clear();
                    abandon(&mut forgotten);
                }
                Err(Error::Full(_)) => sources.iter().for_each(|source| source.held_up()),
            }
            drop(round);
            retry = matches!(result, Err(Error::Full(_)));
            self.show(&log, result.as_ref().err());
            let failed = matches!(result, Err(Error::Failed(_)));
            if left && result.is_ok() {
                self.queue.lock().flushes.extend(work.flushes);
                continue;
            }
            work.flushes.into_iter().for_each(|told| {
                let _ = told.send(());
            });
            if work.stop {
                return;
            }
            if failed {
                return self.sit_out();
            }
            if retry {
                // New records wait in their inboxes.
                std::thread::sleep(PACE);
            }
        }
    }

    /// After a failed sync: what was said before stands, nothing is said any more.
    fn sit_out(&self) {
        let mut queue = self.queue.lock();
        while !queue.stop {
            queue.flushes.clear();
            queue.done.clear();
            queue.seals.clear();
            abandon(&mut queue.forgotten);
            self.work.wait_for(&mut queue, RETRY);
        }
    }

    fn show<D: Disk>(&self, log: &Log<D>, error: Option<&Error>) {
        let trouble: Option<Arc<str>> = error.map(|error| format!("buffer: {error}").into());
        let mut state = self.state.lock();
        (state.bytes, state.records) = (log.bytes(), log.records());
        if state.trouble != trouble {
            if let Some(reason) = &trouble {
                tracing::error!(%reason, "acknowledgements are held: nothing becomes durable");
            } else {
                tracing::info!("the disk buffer takes records again");
            }
            state.trouble = trouble;
        }
    }
}

/// Drops these without an answer.
fn abandon(forgotten: &mut Vec<(Mark, Option<Arc<HandOver>>)>) {
    for (_, then) in forgotten.drain(..) {
        if let Some(then) = then {
            then.abandon();
        }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
