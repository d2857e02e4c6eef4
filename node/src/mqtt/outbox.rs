//! The deliveries of one read batch, on their way to inboxes.

use std::sync::Arc;

use super::{
    inbox::Inbox,
    publication::Delivery,
    stats::Tally,
    store::{Op, Store},
};
use crate::flow::{HandOver, SequenceRange, WakeList};

/// Deliveries of one read batch, grouped by session: one lock a session, one wake-up a session.
#[derive(Default)]
pub(crate) struct Outbox {
    slots: Vec<(Arc<Inbox>, Vec<Delivery>)>,
    index: hashbrown::HashMap<u64, usize>,
    spare: Vec<Vec<Delivery>>,
    last: usize,
    /// Set where something of this batch is to be stored.
    store: Option<Arc<Store>>,
    /// Whose publications wait for that, and which.
    publisher: Option<Arc<Inbox>>,
    sequences: Vec<SequenceRange>,
    /// Complete then, in place of a publisher.
    hand_over: Option<Arc<HandOver>>,
    ops: Vec<Op>,
}

impl Outbox {
    /// A hand-over is complete when everything of this batch is on the disk, with `op`.
    pub(crate) fn hand_over_when_stored(
        &mut self,
        store: &Arc<Store>,
        hand_over: &Arc<HandOver>,
        op: Option<Op>,
    ) {
        self.store = Some(store.clone());
        self.hand_over = Some(hand_over.clone());
        self.ops.extend(op);
    }

    /// A publication is acknowledged when everything of this batch is on the disk, with `op`.
    pub(crate) fn await_store(
        &mut self,
        store: &Arc<Store>,
        publisher: &Arc<Inbox>,
        sequence: u64,
        op: Option<Op>,
    ) {
        if self.store.is_none() {
            self.store = Some(store.clone());
            self.publisher = Some(publisher.clone());
        }
        match self.sequences.last_mut() {
            Some(last) if last.first + u64::from(last.count) == sequence && last.count < u32::MAX => {
                last.count += 1;
            }
            _ => self.sequences.push(SequenceRange { first: sequence, count: 1 }),
        }
        self.ops.extend(op);
    }

    /// Adds a delivery for a session.
    pub(crate) fn push(&mut self, inbox: &Arc<Inbox>, delivery: Delivery) {
        if let Some((last, deliveries)) = self.slots.get_mut(self.last)
            && last.id() == inbox.id()
        {
            deliveries.push(delivery);
            return;
        }
        let next = self.slots.len();
        let slot = if next < 8 {
            // A few are found faster by looking than by hashing.
            self.slots.iter().position(|(known, _)| known.id() == inbox.id()).unwrap_or(next)
        } else {
            if self.index.is_empty() {
                self.index.extend(self.slots.iter().enumerate().map(|(slot, (known, _))| (known.id(), slot)));
            }
            *self.index.entry(inbox.id()).or_insert(next)
        };
        if slot == next {
            self.slots.push((inbox.clone(), self.spare.pop().unwrap_or_default()));
        }
        self.last = slot;
        if let Some((_, deliveries)) = self.slots.get_mut(slot) {
            deliveries.push(delivery);
        }
    }

    /// True where there is nothing to hand over.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.store.is_none()
    }

    /// Hands everything over; who must be woken goes on `wakes`.
    pub(crate) fn flush(&mut self, wakes: &mut WakeList, tally: &mut Tally) {
        /// Buffers kept for the next batch; more or larger ones are given back.
        const SPARE: usize = 32;
        self.last = 0;
        self.index.clear();
        let store = self.store.take();
        let gate = store.as_ref().map(|store| store.gate());
        for (inbox, mut deliveries) in self.slots.drain(..) {
            if inbox.offer_all(&mut deliveries, tally) {
                wakes.push(inbox);
            }
            if self.spare.len() < SPARE && deliveries.capacity() <= 2048 {
                self.spare.push(deliveries);
            }
        }
        let Some(gate) = gate else { return };
        if let Some(publisher) = self.publisher.take() {
            gate.finish(self.ops.drain(..), &publisher, &self.sequences);
            self.sequences.clear();
        } else if let Some(hand_over) = self.hand_over.take() {
            gate.hand_over(self.ops.drain(..), hand_over);
        }
    }
}
