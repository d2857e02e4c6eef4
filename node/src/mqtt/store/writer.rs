//! The writer of the store: one thread that owns the file.
//!
//! * It sleeps until a task waits for something, and a little ([`LAZY`]) where none does: what a client
//!   has acknowledged need not be on the disk at once, and in a larger batch it costs less.
//! * Without room on the disk it holds everything and tries again; the publishers wait.
//! * After any other error, above all of a sync, it completes nothing any more. The node goes on with
//!   what needs no disk, and says what to do.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use super::{
    Loaded, OpenError, Pending, Store,
    books::{Books, Op, Row},
    file::{Failure, File, Opener},
};
#[cfg(test)]
use crate::mqtt::clock;
use crate::{
    flow::{Lives, Outcome},
    mqtt::{memory::Memory, stats::Stats},
};

/// How long a change without a waiting task may wait for company. A crash within it costs a repetition.
const LAZY: Duration = Duration::from_millis(20);

/// Between attempts while the disk is full: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A warning that repeats is logged that often.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Opens the file on the writer's own thread: whatever a damaged one does there does not reach us.
pub(super) fn start(
    path: &Path,
    opener: Opener,
    compact_from: u64,
    lives: Option<Lives>,
    memory: Memory,
    store: impl FnOnce(&Loaded) -> Arc<Store>,
) -> Result<(Arc<Store>, Loaded), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let (opened, answer) = mpsc::sync_channel(1);
    let (begin, begun) = mpsc::sync_channel::<Arc<Store>>(1);
    let its_path = path.to_owned();
    #[cfg(test)]
    let ahead = clock::tests::ahead();
    let thread = std::thread::Builder::new().name("causeway-store".to_owned()).spawn(move || {
        #[cfg(test)]
        clock::tests::set_ahead(ahead);
        match File::open(&its_path, opener, compact_from, lives, memory) {
            Ok((file, books, loaded)) => {
                if opened.send(Ok(loaded)).is_ok()
                    && let Ok(store) = begun.recv()
                {
                    let guard = Guard(store);
                    run(&guard.0, file, books);
                }
            }
            // There is no receiver when the start was given up.
            Err(error) => drop(opened.send(Err(error))),
        }
    });
    let thread = thread.map_err(io)?;
    let loaded = answer.recv().unwrap_or_else(|_| {
        Err(OpenError::Damaged { path: path.to_owned(), reason: "reading it panicked".to_owned() })
    })?;
    let store = store(&loaded);
    *store.writer.lock() = Some(thread);
    begin.send(store.clone()).map_err(|_| io(std::io::Error::other("the writer ended")))?;
    Ok((store, loaded))
}

/// Nothing is promised after the writer is gone, however it went.
struct Guard(Arc<Store>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(&self.0, Pending::default(), "the writer panicked");
        }
    }
}

fn run(store: &Arc<Store>, mut file: File, mut books: Books) {
    while let Some((number, mut batch)) = next(store) {
        let retained = std::mem::take(&mut batch.retained);
        let unretained = std::mem::take(&mut batch.unretained);
        let ops = std::mem::take(&mut batch.ops).into_iter();
        let ops = ops
            .chain(retained.into_values().map(|publication| Op::Retain { publication }))
            .chain(unretained.into_iter().map(|message| Op::Unretain { message }));
        let rows = books.apply(ops);
        if !rows.is_empty() {
            match commit(store, &mut file, &rows) {
                Ok(()) => Stats::add(&store.stats.store_commits, 1),
                Err(reason) => {
                    fail(store, batch, &reason);
                    return;
                }
            }
        }
        drop(rows);
        complete(store, number, batch);
    }
}

/// The next batch, when it is time for it; `None` when the store is closed and nothing waits.
fn next(store: &Store) -> Option<(u64, Pending)> {
    let mut pending = store.pending.lock();
    let mut company = None;
    loop {
        let closed = store.closed.load(Ordering::Acquire);
        if pending.urgent || (closed && !pending.is_empty()) {
            break;
        }
        if closed {
            return None;
        }
        if pending.is_empty() {
            store.work.wait(&mut pending);
            continue;
        }
        let until = *company.get_or_insert_with(|| Instant::now() + LAZY);
        if store.work.wait_until(&mut pending, until).timed_out() {
            break;
        }
    }
    drop(pending);
    // Turns that have begun are finished first: they stay whole.
    let open = store.gate.write();
    let mut pending = store.pending.lock();
    let batch = std::mem::take(&mut *pending);
    let number = store.batch.fetch_add(1, Ordering::AcqRel);
    drop(pending);
    drop(open);
    Some((number, batch))
}

/// Writes rows; an error is final.
fn commit(store: &Store, file: &mut File, rows: &[Row]) -> Result<(), String> {
    let (mut pause, mut warned) = (RETRY.0, None::<Instant>);
    loop {
        match file.commit(rows) {
            Ok(()) => {
                if warned.is_some() {
                    tracing::info!("stored sessions are written again");
                }
                return Ok(());
            }
            Err(Failure::NoRoom(reason)) => {
                Stats::add(&store.stats.store_retries, 1);
                if store.closed.load(Ordering::Acquire) {
                    return Err(reason);
                }
                if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    warned = Some(Instant::now());
                    tracing::error!(
                        %reason,
                        "no room for stored sessions: acknowledgements of messages for them are held until there is"
                    );
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY.1);
            }
            Err(Failure::Final(reason)) => return Err(reason),
        }
    }
}

/// Answers all tasks that waited for a batch.
fn complete(store: &Store, number: u64, batch: Pending) {
    let Pending { tickets, hand_overs, sleepers, bytes, .. } = batch;
    store.committed.store(number, Ordering::Release);
    for (publisher, sequences) in tickets {
        publisher.acknowledge(&sequences, Outcome::Success);
    }
    drop(hand_overs);
    for sleeper in sleepers {
        sleeper.wake();
    }
    let waiting = store.waiting.fetch_sub(bytes, Ordering::AcqRel).saturating_sub(bytes);
    store.stats.store_waiting_bytes.store(waiting as u64, Ordering::Relaxed);
    // Half empty is when it is worth trying again.
    if waiting <= store.capacity / 2
        && let Some(room) = store.room.lock().take()
    {
        room.notify_waiters();
    }
}

/// Ends all promises. What waits, and what will be put in, is never completed.
fn fail(store: &Store, batch: Pending, reason: &str) {
    store.failed.store(true, Ordering::Release);
    store.stats.store_failed.store(1, Ordering::Relaxed);
    tracing::error!(
        reason,
        "stored sessions cannot be written any more: messages for them are not acknowledged from now on, and clients \
         with a session that lasts are refused; check the disk, then restart the node"
    );
    let mut batch = batch;
    loop {
        for hand_over in batch.hand_overs.drain(..) {
            hand_over.abandon();
        }
        drop(batch);
        let mut pending = store.pending.lock();
        while pending.is_empty() && !store.closed.load(Ordering::Acquire) {
            store.work.wait(&mut pending);
        }
        if pending.is_empty() {
            return;
        }
        batch = std::mem::take(&mut *pending);
    }
}
