//! The batch mailbox: data moves between actors in whole queues.
//!
//! A [`Mailbox`] is one queue under one lock. Senders put in one item or many while they hold it; the
//! receiver takes the whole queue by swapping it with an empty one. What a message costs is therefore
//! a push into a vector, and what a batch costs is one lock on each side and at most one wake-up.
//!
//! Invariants:
//! * Bounded in bytes and items. What is taken stays charged until the receiver releases it, so items
//!   it had to set aside count as well. An empty mailbox takes one item of any size: nothing is stuck.
//!   A sender may overdraw by a quarter ([`Batch::overdraw`]); the receiver then sheds what is too much.
//! * Exactly one sender owes the wake-up of a sleeping receiver: the one that filled the empty queue.
//!   It may pay later ([`crate::flow::WakeList`]), but it must pay.
//! * An idle mailbox holds no buffer.
//! * Items leave in the order they came, each once.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

use super::Room;

/// How much a mailbox takes before it says it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Sum of the weights of all charged items, in bytes.
    pub bytes: usize,
    /// Number of charged items.
    pub items: usize,
}

/// Amount that is charged to a mailbox, or released from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge {
    /// Bytes.
    pub bytes: usize,
    /// Items.
    pub items: usize,
}

impl Charge {
    /// Adds one item of `bytes`.
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.items += 1;
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.items == 0 && self.bytes == 0
    }
}

/// Why an item was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// No room now.
    Full(T),
    /// The mailbox is closed for good.
    Closed(T),
}

struct Inner<T> {
    queue: VecDeque<T>,
    charge: Charge,
    capacity: Capacity,
    sleeper: Option<Waker>,
    room: Option<Room>,
    attached: bool,
    closed: bool,
}

impl<T> Inner<T> {
    fn has_room(&self, bytes: usize) -> bool {
        self.charge.items == 0
            || (self.charge.items < self.capacity.items
                && self.charge.bytes.saturating_add(bytes) <= self.capacity.bytes)
    }

    fn release(&mut self, released: Charge) {
        self.charge.bytes = self.charge.bytes.saturating_sub(released.bytes);
        self.charge.items = self.charge.items.saturating_sub(released.items);
    }

    /// Half empty is when it is worth trying again: one more item at a time would wake for each.
    fn take_room(&mut self) -> Option<Room> {
        let roomy =
            self.charge.bytes <= self.capacity.bytes / 2 && self.charge.items <= self.capacity.items / 2;
        if roomy || self.closed || !self.attached { self.room.take() } else { None }
    }
}

/// A bounded queue between any number of senders and one receiver.
pub struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
}

impl<T> Mailbox<T> {
    /// An empty mailbox without a receiver: who drains it attaches first ([`Self::set_attached`]).
    pub fn new(capacity: Capacity) -> Self {
        Self {
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                charge: Charge::default(),
                capacity,
                sleeper: None,
                room: None,
                attached: false,
                closed: false,
            }),
        }
    }

    /// Locks it to put in several items. Keep it short: the receiver waits.
    pub fn lock(&self) -> Batch<'_, T> {
        let inner = self.inner.lock();
        let sleeps = inner.queue.is_empty() && inner.sleeper.is_some();
        Batch { inner, sleeps }
    }

    /// Puts in one item of `bytes`. `Ok(true)`: the caller owes a [`Self::wake`].
    pub fn push(&self, item: T, bytes: usize) -> Result<bool, Refused<T>> {
        let mut batch = self.lock();
        batch.push(item, bytes)?;
        Ok(batch.finish())
    }

    /// Wakes the receiver, if it sleeps.
    pub fn wake(&self) {
        let sleeper = self.inner.lock().sleeper.take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Takes the whole queue into `into`, which must be empty, and gives back what `released` names.
    /// Pending when there is nothing: the receiver is then woken by the next item.
    pub fn poll_take(&self, cx: &mut Context<'_>, into: &mut VecDeque<T>, released: &mut Charge) -> Poll<()> {
        debug_assert!(into.is_empty(), "the receiver has dealt with the last batch");
        let mut inner = self.inner.lock();
        let room = if released.is_empty() {
            None
        } else {
            inner.release(std::mem::take(released));
            inner.take_room()
        };
        let taken = if inner.queue.is_empty() {
            match &mut inner.sleeper {
                Some(sleeper) => sleeper.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        } else {
            std::mem::swap(&mut inner.queue, into);
            Poll::Ready(())
        };
        // An idle mailbox holds no buffer.
        let spare = if taken.is_pending() { std::mem::take(&mut inner.queue) } else { VecDeque::new() };
        drop(inner);
        drop(spare);
        notify(room);
        taken
    }

    /// Takes what is there, without waiting.
    pub fn take(&self) -> VecDeque<T> {
        std::mem::take(&mut self.inner.lock().queue)
    }

    /// Puts items back that were taken earlier and are still charged, in front of what has come since.
    pub fn put_back(&self, mut items: VecDeque<T>) {
        let mut inner = self.inner.lock();
        if inner.closed {
            return;
        }
        items.append(&mut inner.queue);
        inner.queue = items;
    }

    /// Gives back the charge of items that were taken earlier.
    pub fn release(&self, released: Charge) {
        let room = {
            let mut inner = self.inner.lock();
            inner.release(released);
            inner.take_room()
        };
        notify(room);
    }

    /// Current charge.
    pub fn charge(&self) -> Charge {
        self.inner.lock().charge
    }

    /// Charge beyond the capacity.
    pub fn excess(&self) -> Charge {
        let inner = self.inner.lock();
        Charge {
            bytes: inner.charge.bytes.saturating_sub(inner.capacity.bytes),
            items: inner.charge.items.saturating_sub(inner.capacity.items),
        }
    }

    /// Notified once when at least half of the capacity is free again, or the mailbox closes.
    pub fn room(&self) -> Room {
        self.lock().room()
    }

    /// Notifies those who wait for room, although there is none: what they put in is treated differently now.
    pub fn ask_again(&self) {
        let room = self.inner.lock().room.take();
        notify(room);
    }

    /// Says whether a receiver listens: senders may see it and behave differently. A mailbox without
    /// one keeps what it has.
    pub fn set_attached(&self, attached: bool) {
        let room = {
            let mut inner = self.inner.lock();
            inner.attached = attached;
            if !attached {
                inner.sleeper = None;
            }
            inner.take_room()
        };
        notify(room);
    }

    /// Refuses everything from now on, and hands out what was inside and what was charged.
    pub fn close(&self) -> (VecDeque<T>, Charge) {
        let (closed, room) = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.sleeper = None;
            let charge = std::mem::take(&mut inner.charge);
            ((std::mem::take(&mut inner.queue), charge), inner.take_room())
        };
        notify(room);
        closed
    }
}

fn notify(room: Option<Room>) {
    if let Some(room) = room {
        room.notify_waiters();
    }
}

/// The locked mailbox, for senders.
pub struct Batch<'a, T> {
    inner: MutexGuard<'a, Inner<T>>,
    sleeps: bool,
}

impl<T> Batch<'_, T> {
    /// False once the mailbox is closed.
    pub fn is_open(&self) -> bool {
        !self.inner.closed
    }

    /// True while a receiver listens.
    pub fn is_attached(&self) -> bool {
        self.inner.attached
    }

    /// True when an item of `bytes` would be taken.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.inner.has_room(bytes)
    }

    /// Current charge.
    pub fn charge(&self) -> Charge {
        self.inner.charge
    }

    /// The item put in last and not yet taken, to add to it instead of putting in another.
    pub fn last_mut(&mut self) -> Option<&mut T> {
        self.inner.queue.back_mut()
    }

    /// Takes out the oldest item that `weigh` gives a weight, which is the one it was put in with. Looks at
    /// the first few items only: a queue that begins with others is left alone.
    pub fn evict(&mut self, weigh: impl Fn(&T) -> Option<usize>) -> Option<T> {
        /// Acknowledgements come in runs and merge; more than this in front of a queue is something else.
        const LOOK: usize = 64;
        let mut found = self.inner.queue.iter().take(LOOK).enumerate();
        let (at, bytes) = found.find_map(|(at, item)| weigh(item).map(|bytes| (at, bytes)))?;
        self.inner.release(Charge { bytes, items: 1 });
        self.inner.queue.remove(at)
    }

    /// Puts in an item although there is no room, up to a quarter over the capacity.
    pub fn overdraw(&mut self, item: T, bytes: usize) -> Result<(), Refused<T>> {
        let Capacity { bytes: most_bytes, items: most_items } = self.inner.capacity;
        let charge = self.inner.charge;
        if self.inner.closed {
            return Err(Refused::Closed(item));
        }
        if charge.bytes.saturating_add(bytes) > most_bytes.saturating_add(most_bytes / 4)
            || charge.items >= most_items.saturating_add(most_items / 4)
        {
            return Err(Refused::Full(item));
        }
        self.inner.charge.add(bytes);
        self.inner.queue.push_back(item);
        Ok(())
    }

    /// Makes room for `additional` items at once.
    pub fn reserve(&mut self, additional: usize) {
        self.inner.queue.reserve(additional);
    }

    /// Puts in an item of `bytes`.
    pub fn push(&mut self, item: T, bytes: usize) -> Result<(), Refused<T>> {
        if self.inner.closed {
            return Err(Refused::Closed(item));
        }
        if !self.inner.has_room(bytes) {
            return Err(Refused::Full(item));
        }
        self.inner.charge.add(bytes);
        self.inner.queue.push_back(item);
        Ok(())
    }

    /// Puts in an item whatever the capacity: it was taken before, by an earlier process.
    pub fn push_anyway(&mut self, item: T, bytes: usize) {
        if !self.inner.closed {
            self.inner.charge.add(bytes);
            self.inner.queue.push_back(item);
        }
    }

    /// Puts in an item that is bounded by other means; it is not charged. Lost when closed.
    pub fn push_uncharged(&mut self, item: T) {
        if !self.inner.closed {
            self.inner.queue.push_back(item);
        }
    }

    /// See [`Mailbox::room`].
    pub fn room(&mut self) -> Room {
        self.inner.room.get_or_insert_with(|| Arc::new(tokio::sync::Notify::new())).clone()
    }

    /// Unlocks. True: the caller owes a [`Mailbox::wake`].
    #[must_use = "a receiver may be asleep"]
    pub fn finish(self) -> bool {
        self.sleeps && !self.inner.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    struct CountedWake(AtomicUsize);

    impl std::task::Wake for CountedWake {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn mailbox(bytes: usize, items: usize) -> (Mailbox<u32>, Arc<CountedWake>) {
        (Mailbox::new(Capacity { bytes, items }), Arc::new(CountedWake(AtomicUsize::new(0))))
    }

    fn take(mailbox: &Mailbox<u32>, wake: &Arc<CountedWake>, released: Charge) -> Option<Vec<u32>> {
        let waker = Waker::from(wake.clone());
        let mut into = VecDeque::new();
        let mut released = released;
        match mailbox.poll_take(&mut Context::from_waker(&waker), &mut into, &mut released) {
            Poll::Ready(()) => Some(into.into()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn only_the_item_that_fills_an_empty_queue_owes_a_wake_up() {
        let (mailbox, wake) = mailbox(1000, 100);
        assert_eq!(mailbox.push(0, 1), Ok(false), "nobody sleeps yet");
        assert_eq!(take(&mailbox, &wake, Charge::default()), Some(vec![0]));
        assert_eq!(take(&mailbox, &wake, Charge::default()), None);
        assert_eq!(mailbox.push(1, 1), Ok(true));
        assert_eq!(mailbox.push(2, 1), Ok(false));
        mailbox.wake();
        mailbox.wake();
        assert_eq!(wake.0.load(Ordering::SeqCst), 1);
        assert_eq!(take(&mailbox, &wake, Charge::default()), Some(vec![1, 2]));
    }

    #[test]
    fn what_was_taken_counts_until_it_is_released() {
        let (mailbox, wake) = mailbox(10, 100);
        assert_eq!(mailbox.push(0, 6), Ok(false));
        assert_eq!(mailbox.push(1, 6), Err(Refused::Full(1)));
        assert_eq!(take(&mailbox, &wake, Charge::default()), Some(vec![0]));
        assert_eq!(mailbox.push(1, 6), Err(Refused::Full(1)));
        mailbox.release(Charge { bytes: 6, items: 1 });
        assert_eq!(mailbox.push(1, 6), Ok(false));
    }

    #[test]
    fn an_empty_mailbox_takes_an_item_of_any_size() {
        let (mailbox, _) = mailbox(10, 100);
        assert_eq!(mailbox.push(0, 1_000_000), Ok(false));
        assert_eq!(mailbox.push(1, 1), Err(Refused::Full(1)));
    }

    #[test]
    fn items_are_bounded_as_well_as_bytes() {
        let (mailbox, _) = mailbox(1000, 2);
        assert_eq!(mailbox.push(0, 1), Ok(false));
        assert_eq!(mailbox.push(1, 1), Ok(false));
        assert_eq!(mailbox.push(2, 1), Err(Refused::Full(2)));
    }

    #[tokio::test]
    async fn one_who_was_refused_hears_of_room() {
        let (mailbox, wake) = mailbox(10, 100);
        mailbox.push(0, 10).unwrap();
        let room = mailbox.room();
        let heard = room.notified();
        tokio::pin!(heard);
        heard.as_mut().enable();
        assert_eq!(take(&mailbox, &wake, Charge::default()), Some(vec![0]));
        assert!(futures_util::FutureExt::now_or_never(&mut heard).is_none());
        assert_eq!(take(&mailbox, &wake, Charge { bytes: 10, items: 1 }), None);
        assert!(futures_util::FutureExt::now_or_never(&mut heard).is_some());
    }

    #[test]
    fn a_closed_mailbox_gives_back_what_it_held_and_refuses_the_rest() {
        let (mailbox, _) = mailbox(10, 100);
        mailbox.push(7, 1).unwrap();
        let (queue, charge) = mailbox.close();
        assert_eq!((queue, charge), (VecDeque::from([7]), Charge { bytes: 1, items: 1 }));
        assert_eq!(mailbox.push(8, 1), Err(Refused::Closed(8)));
        assert!(mailbox.charge().is_empty());
    }

    #[test]
    fn the_oldest_item_of_a_kind_makes_room() {
        let (mailbox, wake) = mailbox(10, 100);
        for item in [1, 20, 30] {
            mailbox.push(item, 3).unwrap();
        }
        let mut batch = mailbox.lock();
        assert_eq!(batch.evict(|item| (*item >= 10).then_some(3)), Some(20));
        assert_eq!(batch.evict(|item| (*item >= 100).then_some(3)), None);
        batch.push(40, 4).unwrap();
        assert!(!batch.finish());
        assert_eq!(mailbox.charge(), Charge { bytes: 10, items: 3 });
        assert_eq!(take(&mailbox, &wake, Charge::default()), Some(vec![1, 30, 40]));
    }

    #[test]
    fn an_overdraft_is_bounded_and_seen() {
        let (mailbox, _) = mailbox(100, 8);
        mailbox.push(0, 100).unwrap();
        let mut batch = mailbox.lock();
        assert_eq!(batch.overdraw(1, 20), Ok(()));
        assert_eq!(batch.overdraw(2, 20), Err(Refused::Full(2)));
        assert_eq!(batch.overdraw(3, 5), Ok(()));
        drop(batch);
        assert_eq!(mailbox.excess(), Charge { bytes: 25, items: 0 });
    }

    #[test]
    fn what_is_put_back_comes_before_what_came_since() {
        let (mailbox, wake) = mailbox(100, 100);
        mailbox.push(1, 1).unwrap();
        mailbox.push(2, 1).unwrap();
        let taken = mailbox.take();
        mailbox.push(3, 1).unwrap();
        mailbox.put_back(taken);
        assert_eq!(take(&mailbox, &wake, Charge::default()), Some(vec![1, 2, 3]));
        assert_eq!(mailbox.charge().items, 3);
    }

    #[test]
    fn an_idle_mailbox_holds_no_buffer() {
        let (mailbox, wake) = mailbox(1 << 20, 1 << 20);
        for i in 0..1000 {
            mailbox.push(i, 1).unwrap();
        }
        assert_eq!(take(&mailbox, &wake, Charge::default()).map(|items| items.len()), Some(1000));
        assert_eq!(take(&mailbox, &wake, Charge { bytes: 1000, items: 1000 }), None);
        assert_eq!(mailbox.inner.lock().queue.capacity(), 0);
        assert!(size_of::<Mailbox<[u64; 5]>>() <= 128, "{}", size_of::<Mailbox<[u64; 5]>>());
    }

    /// Two senders and a receiver that sleeps for real: nothing is lost, doubled or reordered.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_sent_arrives_once_and_in_order() {
        const EACH: u32 = 20_000;
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mailbox = Arc::new(Mailbox::<(u32, u32)>::new(Capacity { bytes: 4096, items: 500 }));
        let senders: Vec<_> = (0..2u32)
            .map(|sender| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed ^ u64::from(sender));
                    let mut next = 0;
                    while next < EACH {
                        let mut batch = mailbox.lock();
                        for _ in 0..random.random_range(1..20) {
                            if next < EACH && batch.push((sender, next), 16).is_ok() {
                                next += 1;
                            }
                        }
                        if batch.finish() {
                            mailbox.wake();
                        }
                        if random.random_bool(0.1) {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0u32; 2];
        let mut items = VecDeque::new();
        let mut released = Charge::default();
        let receive = async {
            while next != [EACH; 2] {
                std::future::poll_fn(|cx| mailbox.poll_take(cx, &mut items, &mut released)).await;
                for (sender, number) in items.drain(..) {
                    assert_eq!(number, next[sender as usize], "seed {seed}");
                    next[sender as usize] += 1;
                    released.add(16);
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), receive)
            .await
            .expect("the receiver is woken");
        for sender in senders {
            sender.join().unwrap();
        }
    }
}
