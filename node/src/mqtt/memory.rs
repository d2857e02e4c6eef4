//! The memory of the device side, counted: what sessions, queues, retained messages, wills and connection
//! buffers hold together, against one limit (`mqtt.max_memory`).
//!
//! A publication is counted once, however many sessions wait for it; each waiting delivery adds its place in
//! a queue. Counting costs no atomic operation per message: a thread collects what it takes and gives back,
//! and settles with the shared [`MemoryCounter`] in blocks.
//!
//! | pressure | from | what it means |
//! |---|---|---|
//! | [`Pressure::None`] | | nothing |
//! | [`Pressure::High`] | 7/8 of the limit | a session that has more than [`FAIR`] waiting gets no more; new sessions, subscriptions and retained messages are refused |
//! | [`Pressure::Full`] | the limit | a session that has anything waiting gets no more; a connection in the middle of a large packet is closed |
//!
//! So a consumer that keeps up is served whatever the others do, and what one that does not can take is
//! bounded.
//!
//! Invariants:
//! * What is counted is given back by the value that stands for it ([`Held`], a publication's drop), so it
//!   cannot be forgotten.
//! * The shared figure is off by at most [`BLOCK`] bytes for each thread.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

/// A thread settles when it owes or is owed this much: some hundred small messages.
const BLOCK: i64 = 32 << 10;

/// Bytes that any session may have waiting while the pressure is high.
pub(crate) const FAIR: usize = 16 << 10;

/// Bytes of a place in a session's queue.
pub(crate) const PLACE: usize = 48;

/// Bytes of a session beside its queue: its state, its entries in keeper and allocator.
pub(crate) const SESSION: usize = 1024;

/// Bytes of a connection beside its buffers.
pub(crate) const CONNECTION: usize = 1024;

/// Bytes of a subscription beside its filter, which is kept twice.
pub(crate) const SUBSCRIPTION: usize = 192;

/// How near the limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// Far.
    None,
    /// Near.
    High,
    /// Reached.
    Full,
}

impl Pressure {
    /// True where a queue that holds `waiting` bytes gets no more.
    pub(crate) fn refuses(self, waiting: usize) -> bool {
        match self {
            Self::None => false,
            Self::High => waiting > FAIR,
            Self::Full => waiting > 0,
        }
    }
}

/// The shared count. One for a router, and a process has one router: it is never freed, so that a publication
/// need not hold on to it.
#[derive(Debug)]
pub(crate) struct MemoryCounter {
    used: AtomicI64,
    limit: AtomicU64,
}

/// Shared name of a [`MemoryCounter`].
pub(crate) type Memory = &'static MemoryCounter;

/// Balance of this thread that is not settled.
struct Unsettled {
    with: Option<Memory>,
    bytes: i64,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Unsettled {
    fn settle(&mut self) {
        if let Some(ledger) = self.with
            && self.bytes != 0
        {
            ledger.used.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        }
    }
}

thread_local! {
    static UNSETTLED: RefCell<Unsettled> = const { RefCell::new(Unsettled { with: None, bytes: 0 }) };
}

impl MemoryCounter {
    /// A count that starts at nothing.
    pub(crate) fn new(limit: u64) -> Memory {
        Box::leak(Box::new(Self { used: AtomicI64::new(0), limit: AtomicU64::new(limit) }))
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes counted now.
    pub(crate) fn used(&self) -> u64 {
        u64::try_from(self.used.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(crate) fn pressure(&self) -> Pressure {
        let (used, limit) = (self.used(), self.limit.load(Ordering::Relaxed));
        if used < limit - limit / 8 {
            Pressure::None
        } else if used < limit {
            Pressure::High
        } else {
            Pressure::Full
        }
    }

    /// Counts bytes that are taken.
    pub(crate) fn take(&'static self, bytes: usize) {
        self.change(bytes as i64);
    }

    /// Counts bytes that are given back.
    pub(crate) fn give_back(&'static self, bytes: usize) {
        self.change(-(bytes as i64));
    }

    fn change(&'static self, by: i64) {
        let collected = UNSETTLED.try_with(|unsettled| {
            let Ok(mut unsettled) = unsettled.try_borrow_mut() else { return false };
            if !unsettled.with.is_some_and(|with| std::ptr::eq(with, self)) {
                unsettled.settle();
                unsettled.with = Some(self);
            }
            unsettled.bytes += by;
            if unsettled.bytes.abs() >= BLOCK {
                unsettled.settle();
            }
            true
        });
        // A thread that ends has nothing to collect in any more.
        if !matches!(collected, Ok(true)) {
            self.used.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// Settles what this thread has collected, for tests that look.
#[cfg(test)]
pub(crate) fn settle() {
    UNSETTLED.with_borrow_mut(Unsettled::settle);
}

/// Bytes that are given back when it goes.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Memory,
    bytes: usize,
}

impl Held {
    pub(crate) fn new(memory: Memory, bytes: usize) -> Self {
        memory.take(bytes);
        Self { memory, bytes }
    }

    /// Makes it `bytes`; nothing to do for most calls.
    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.memory.change(bytes as i64 - self.bytes as i64);
            self.bytes = bytes;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// Half of the memory that this machine, or the container this process runs in, has.
pub fn half_of_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let total = memory_total(&read("/proc/meminfo"));
    let container = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|path| read(path).trim().parse::<u64>().ok());
    let known = [total, container].into_iter().flatten().min();
    // A machine that does not say is taken for one with two gigabytes.
    known.unwrap_or(2 << 30) / 2
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_take_and_give_back_adds_up() {
        let memory = MemoryCounter::new(u64::MAX);
        let held: Vec<_> = (0..8)
            .map(|thread| {
                std::thread::spawn(move || {
                    (0..1000).map(|size| Held::new(memory, size * 10 + thread)).collect::<Vec<_>>()
                })
            })
            .map(|thread| thread.join().unwrap())
            .collect();
        let expected: usize =
            (0..8).map(|thread| (0..1000).map(|size| size * 10 + thread).sum::<usize>()).sum();
        assert_eq!(memory.used(), expected as u64, "threads that have ended have settled");
        drop(held);
        settle();
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn two_ledgers_on_one_thread_do_not_mix() {
        let (one, two) = (MemoryCounter::new(100), MemoryCounter::new(100));
        let mut held = Held::new(one, 10);
        let other = Held::new(two, 7);
        held.set(25);
        settle();
        assert_eq!((one.used(), two.used()), (25, 7));
        drop((held, other));
        settle();
        assert_eq!((one.used(), two.used()), (0, 0));
    }

    #[test]
    fn pressure_rises_with_use() {
        let memory = MemoryCounter::new(800 << 10);
        let mut held = Held::new(memory, 0);
        for (bytes, pressure) in
            [(699 << 10, Pressure::None), (700 << 10, Pressure::High), (800 << 10, Pressure::Full)]
        {
            held.set(bytes);
            settle();
            assert_eq!(memory.pressure(), pressure, "{bytes}");
        }
        assert!(!Pressure::None.refuses(usize::MAX));
        assert!(!Pressure::High.refuses(FAIR) && Pressure::High.refuses(FAIR + 1));
        assert!(!Pressure::Full.refuses(0) && Pressure::Full.refuses(1));
    }

    #[test]
    fn the_machine_says_what_it_has() {
        assert_eq!(memory_total("MemFree: 1 kB\nMemTotal:       16318380 kB\n"), Some(16_318_380 << 10));
        assert!(half_of_memory() > 64 << 20);
        assert_eq!(half_of_memory(), half_of_memory());
    }
}
