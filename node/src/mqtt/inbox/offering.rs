//! Deliveries offered to an inbox: queued, dropped by the table at the top of
//! [`super`], passed on to others of a group, stored.

use std::sync::{Arc, atomic::Ordering};

use causeway_protocol::mqtt::{QoS, ReasonCode};

use super::{Inbox, Mail};
use crate::{
    flow::HandOver,
    flow::mailbox::{Batch, Refused},
    mqtt::{
        memory::{self, Pressure},
        options::QueueFull,
        publication::Delivery,
        stats::{StatsSnapshot, Tally},
        store::{Entry, Op},
    },
};

/// Work of putting deliveries into one inbox.
pub(super) struct Offering<'a> {
    inbox: &'a Inbox,
    pressure: Pressure,
    counts: Dropped,
    /// Complete; its end may call others, so it is dropped when the lock is free.
    completed: Option<Arc<HandOver>>,
    /// Not taken, and others of its group may.
    pub(super) passed_on: Vec<Delivery>,
    /// Complete when what is put in is on the disk.
    stored: Option<Arc<HandOver>>,
    ops: Vec<Op>,
}

#[derive(Default)]
struct Dropped {
    slow: u64,
    queue_full: u64,
    offline: u64,
    offline_full: u64,
    memory: u64,
    disconnected: u64,
}

impl<'a> Offering<'a> {
    pub(super) fn new(inbox: &'a Inbox) -> Self {
        let pressure = inbox.rules.memory.pressure();
        let counts = Dropped::default();
        Self {
            inbox,
            pressure,
            counts,
            completed: None,
            passed_on: Vec::new(),
            stored: None,
            ops: Vec::new(),
        }
    }

    /// True where memory allows one more delivery to wait.
    pub(super) fn may_wait(&self, batch: &Batch<'_, Mail>) -> bool {
        self.pressure == Pressure::None || !self.pressure.refuses(batch.charge().bytes)
    }

    /// Takes a delivery; false where it was dropped. What a stored session takes goes to the store as well,
    /// which has its hand-over from now on.
    pub(super) fn put(&mut self, batch: &mut Batch<'_, Mail>, mut delivery: Delivery) -> bool {
        let reliable = delivery.qos != QoS::AtMostOnce;
        let Some(stored) = self.inbox.stored.as_ref().filter(|_| reliable && batch.is_open()) else {
            return self.put_in(batch, delivery);
        };
        let hand_over = delivery.hand_over.take();
        let position = stored.next();
        delivery.position = position as u32;
        let entry = Entry::of(&delivery);
        let passed_on = self.passed_on.len();
        if !self.put_in(batch, delivery) {
            match self.passed_on.get_mut(passed_on) {
                Some(delivery) => delivery.hand_over = hand_over,
                None => self.completed = hand_over,
            }
            return false;
        }
        stored.advance();
        self.ops.push(Op::Append { session: stored.number, position, entry });
        self.stored = hand_over;
        true
    }

    /// The inbox is locked: a connection cannot acknowledge what is not in the store yet.
    pub(super) fn store(&mut self) {
        if let Some(stored) = &self.inbox.stored
            && !self.ops.is_empty()
        {
            stored.store.append(self.ops.drain(..), self.stored.take());
        }
    }

    /// Takes a delivery by the table at the top; false where it was dropped.
    fn put_in(&mut self, batch: &mut Batch<'_, Mail>, mut delivery: Delivery) -> bool {
        if !batch.is_open() {
            if delivery.group().is_some() {
                self.passed_on.push(delivery);
            } else {
                self.completed = delivery.hand_over.take();
            }
            return false;
        }
        let attached = batch.is_attached();
        let unreliable = delivery.qos == QoS::AtMostOnce;
        if delivery.hand_over.is_some() && attached && self.inbox.is_overdue() {
            self.completed = delivery.hand_over.take();
        }
        if !attached {
            self.completed = delivery.hand_over.take();
            if unreliable && delivery.group().is_some_and(|group| group.has_connected()) {
                self.passed_on.push(delivery);
                return false;
            }
            if unreliable {
                self.counts.offline += 1;
                return false;
            }
        }
        let weight = delivery.weight();
        let may_wait = self.may_wait(batch);
        let mut refused = if may_wait {
            match batch.push(Mail::Delivery(delivery), weight) {
                Ok(()) => return true,
                Err(Refused::Full(mail) | Refused::Closed(mail)) => mail,
            }
        } else {
            Mail::Delivery(delivery)
        };
        if !unreliable && self.inbox.rules.full == QueueFull::DropOldest {
            match self.put_for_oldest(batch, refused, weight, may_wait) {
                Ok(()) => return true,
                Err(mail) => refused = mail,
            }
        }
        if let Mail::Delivery(mut delivery) = refused {
            if delivery.group().is_some() {
                self.passed_on.push(delivery);
                return false;
            }
            if let Some(hand_over) = delivery.hand_over.take() {
                self.completed = Some(hand_over);
            }
        }
        match (may_wait, attached, unreliable) {
            (false, ..) => self.counts.memory += 1,
            (true, true, true) => self.counts.slow += 1,
            (true, true, false) => self.counts.queue_full += 1,
            (true, false, _) => self.counts.offline_full += 1,
        }
        if attached
            && !unreliable
            && self.inbox.rules.full == QueueFull::Disconnect
            && !self.inbox.ending.swap(true, Ordering::Relaxed)
        {
            self.counts.disconnected += 1;
            batch.push_uncharged(Mail::Close(ReasonCode::QuotaExceeded));
        }
        false
    }

    /// Makes room by dropping the oldest deliveries. A connection may have taken them out: the queue is then
    /// overdrawn, and the connection drops them. Those that must be handed over stay.
    fn put_for_oldest(
        &mut self,
        batch: &mut Batch<'_, Mail>,
        mut mail: Mail,
        weight: usize,
        may_wait: bool,
    ) -> Result<(), Mail> {
        let attached = batch.is_attached();
        let mut may_put = may_wait;
        loop {
            if may_put {
                let put = if attached { batch.overdraw(mail, weight) } else { batch.push(mail, weight) };
                mail = match put {
                    Ok(()) => return Ok(()),
                    Err(Refused::Full(mail) | Refused::Closed(mail)) => mail,
                };
            }
            let oldest = batch.evict(|mail| match mail {
                Mail::Delivery(delivery) if delivery.hand_over.is_none() && delivery.charged => {
                    Some(delivery.weight())
                }
                _ => None,
            });
            let Some(oldest) = oldest else { return Err(mail) };
            if let (Some(stored), Mail::Delivery(delivery)) = (&self.inbox.stored, &oldest)
                && delivery.qos != QoS::AtMostOnce
            {
                self.ops.push(stored.done(delivery.position));
            }
            may_put = true;
            let unreliable = matches!(oldest, Mail::Delivery(delivery) if delivery.qos == QoS::AtMostOnce);
            match (may_wait, attached, unreliable) {
                (false, ..) => self.counts.memory += 1,
                (true, true, true) => self.counts.slow += 1,
                (true, true, false) => self.counts.queue_full += 1,
                (true, false, _) => self.counts.offline_full += 1,
            }
        }
    }

    pub(super) fn count_places(&self, before: usize, after: usize) {
        let memory = self.inbox.rules.memory;
        if after >= before {
            memory.take((after - before) * memory::PLACE);
        } else {
            memory.give_back((before - after) * memory::PLACE);
        }
    }

    /// The lock is free: counts what was dropped and lets go of it.
    pub(super) fn finish(self, tally: &mut Tally) {
        let Dropped { slow, queue_full, offline, offline_full, memory, disconnected } = self.counts;
        let dropped = slow + queue_full + offline + offline_full + memory;
        if dropped + disconnected > 0 {
            self.inbox.count_dropped(dropped);
            let counts: &mut StatsSnapshot = tally.counts();
            counts.dropped_slow += slow;
            counts.dropped_queue_full += queue_full;
            counts.dropped_offline += offline;
            counts.dropped_offline_full += offline_full;
            counts.dropped_memory += memory;
            counts.disconnected_queue_full += disconnected;
        }
    }
}
