//! A session's side of the store: positions, and what has to wait for the disk.
//!
//! Every QoS 1 and 2 delivery of a stored session has a position, given out while the inbox is locked, so
//! positions rise in the order of delivery. The packet identifier follows from the position: nothing needs
//! to be written when a delivery is sent, and after a restart it is sent with the same identifier
//! (MQTT-4.4.0-1).
//!
//! | what | waits for the disk, because a crash in between |
//! |---|---|
//! | PUBLISH with QoS 2 | would use its identifier for another message, which the client took for a repetition |
//! | PUBREL | would repeat the PUBLISH, for which the client has forgotten the identifier |
//! | PUBREC | would dispatch the repetition once more |
//! | PUBCOMP, also for a PUBREL that comes again | would take the next publication with the identifier for a repetition |
//! | PUBLISH with QoS 1 or 2 of a resumed session, for the record that it is connected | would repeat it without DUP |
//! | SUBACK, UNSUBACK | would undo what was confirmed |
//! | PUBLISH with QoS 1, and what a PUBACK or PUBCOMP removes | does no harm: at worst it is repeated; does not wait |

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use causeway_protocol::mqtt::{AckKind, ReasonCode};
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    inbox::Inbox,
    store::{Op, Store},
};
use crate::flow::SessionId;

/// Packets of one client that may wait for the disk before nothing more is read from it.
const HELD: usize = 1024;

/// Knowledge of an inbox about its session in the store.
pub(crate) struct StoredSession {
    pub(crate) store: Arc<Store>,
    /// The store's number for it: names its rows, as long as it is there.
    pub(crate) number: u64,
    /// Its identity, for those who remember something of it.
    pub(crate) id: SessionId,
    /// It is from before this start.
    pub(crate) restored: bool,
    /// The next position. Changes while the inbox is locked.
    next: AtomicU64,
}

impl StoredSession {
    /// A new session.
    pub(crate) fn new(store: Arc<Store>) -> Arc<Self> {
        let number = store.new_session();
        Arc::new(Self { store, number, id: SessionId::random(), restored: false, next: AtomicU64::new(0) })
    }

    /// One that the store had.
    pub(crate) fn restored(store: Arc<Store>, number: u64, id: SessionId, next: u64) -> Arc<Self> {
        Arc::new(Self { store, number, id, restored: true, next: AtomicU64::new(next) })
    }

    /// The position that the next delivery gets.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// It has it. The inbox is locked.
    pub(crate) fn advance(&self) {
        self.next.store(self.next() + 1, Ordering::Relaxed);
    }

    /// The position of a delivery that was given one: its lower half says which of the last 2^32.
    pub(crate) fn position(&self, low: u32) -> u64 {
        let next = self.next();
        let back = (next as u32).wrapping_sub(low);
        next.wrapping_sub(if back == 0 { 1 << 32 } else { u64::from(back) })
    }

    pub(crate) fn done(&self, low: u32) -> Op {
        Op::Done { session: self.number, position: self.position(low) }
    }
}

/// The packet identifier of a position: 1 to 65,535, and again.
pub(crate) fn identifier(position: u64) -> u16 {
    (position % u64::from(u16::MAX)) as u16 + 1
}

/// A packet that waits for the disk.
pub(crate) enum Held {
    Ack(AckKind, u16, ReasonCode),
    /// An acknowledgement that says more than its reason.
    Explained(Bytes),
    /// An answer that deliveries do not overtake.
    Packet(Bytes),
}

/// Additional state of a stored session.
pub(crate) struct Durable {
    pub(crate) stored: Arc<StoredSession>,
    /// Position of the oldest delivery in flight.
    pub(crate) first: u64,
    /// Positions below are on the disk.
    pub(crate) stored_upto: u64,
    /// Retained messages that are in the queue and not charged there.
    pub(crate) retained: usize,
    /// Positions up to which the queue is on the disk with a batch.
    fences: SmallVec<[(u64, u64); 2]>,
    /// The batch of the last PUBREC.
    released: u64,
    /// The batch of the last change that was handed to the store from here.
    changed: u64,
    /// The batch with the record that a connection carries the resumed session.
    resumed: u64,
    /// Changes of this turn, and packets that wait for them.
    ops: Vec<Op>,
    answers: Vec<Held>,
    has_release: bool,
    /// Packet identifiers whose PUBREL waits for others to forget them, with the latest one.
    releasing: HashMap<u16, u64>,
    releases: u64,
    /// Packets with the batch they wait for.
    held: VecDeque<(u64, Held)>,
    /// Packets among them that are not acknowledgements.
    packets: usize,
}

impl Durable {
    pub(crate) fn new(stored: Arc<StoredSession>) -> Box<Self> {
        let stored_upto = stored.next();
        Box::new(Self {
            stored,
            first: 0,
            stored_upto,
            retained: 0,
            fences: SmallVec::new(),
            released: 0,
            changed: 0,
            resumed: 0,
            ops: Vec::new(),
            answers: Vec::new(),
            has_release: false,
            releasing: HashMap::new(),
            releases: 0,
            held: VecDeque::new(),
            packets: 0,
        })
    }

    fn store(&self) -> &Store {
        &self.stored.store
    }

    /// A QoS 2 delivery came out of the inbox: it is sent when its batch is on the disk.
    pub(crate) fn fence(&mut self, inbox: &Arc<Inbox>, position: u64) {
        if position < self.stored_upto {
            return;
        }
        let stamp = self.store().stamp();
        match self.fences.last_mut() {
            Some((upto, known)) if *known >= stamp => *upto = position,
            _ => {
                let stamp = self.store().wake_at(inbox);
                self.fences.push((position, stamp));
            }
        }
    }

    /// Nothing is owed for a position any more.
    pub(crate) fn done(&mut self, position: u64) {
        self.ops.push(Op::Done { session: self.stored.number, position });
    }

    /// PUBREC arrived; PUBREL follows.
    pub(crate) fn release(&mut self, position: u64, identifier: u16) {
        let op = Op::Released { session: self.stored.number, position };
        self.has_release = true;
        self.answer(op, Held::Ack(AckKind::PubRel, identifier, ReasonCode::Success));
    }

    /// True when every PUBREC is on the disk.
    pub(crate) fn releases_are_stored(&self) -> bool {
        !self.has_release && self.store().is_committed(self.released)
    }

    /// A PUBREL has to wait for others: its name.
    pub(crate) fn begin_release(&mut self, identifier: u16) -> u64 {
        self.releases += 1;
        let release = self.releases << 16 | u64::from(identifier);
        self.releasing.insert(identifier, release);
        release
    }

    /// It need not wait any more: its packet identifier, unless the client has sent it again meanwhile, or
    /// this is the one before.
    pub(crate) fn end_release(&mut self, release: u64) -> Option<u16> {
        let identifier = release as u16;
        if self.releasing.get(&identifier) != Some(&release) {
            return None;
        }
        self.releasing.remove(&identifier);
        Some(identifier)
    }

    /// Cancels the answer to an earlier PUBREL with this packet identifier.
    pub(crate) fn cancel_release(&mut self, identifier: u16) {
        self.releasing.remove(&identifier);
    }

    /// True when every change of this session is on the disk.
    pub(crate) fn changes_are_stored(&self) -> bool {
        self.ops.is_empty() && self.answers.is_empty() && self.store().is_committed(self.changed)
    }

    /// A connection carries the session again, and the record of that was handed to the store: deliveries
    /// wait for it. After a crash without it, what this connection was sent would not be known to be
    /// repeated.
    pub(crate) fn resumed(&mut self, inbox: &Arc<Inbox>) {
        self.resumed = self.store().wake_at(inbox);
    }

    /// True when deliveries need not wait for the record of the connection.
    pub(crate) fn may_deliver(&self) -> bool {
        self.store().is_committed(self.resumed)
    }

    /// A change, and the packet that follows when it is on the disk.
    pub(crate) fn answer(&mut self, op: Op, packet: Held) {
        self.ops.push(op);
        self.answers.push(packet);
    }

    /// A change without a waiting task.
    pub(crate) fn put(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// A packet that follows what was put in before.
    pub(crate) fn hold(&mut self, packet: Held) {
        self.answers.push(packet);
    }

    /// Hands the changes of this turn to the store.
    pub(crate) fn flush(&mut self, inbox: &Arc<Inbox>) {
        if self.answers.is_empty() {
            if !self.ops.is_empty() {
                self.stored.store.append(self.ops.drain(..), None);
                // Not before the batch that has them.
                self.changed = self.store().stamp();
            }
            return;
        }
        let stamp = self.stored.store.put_all_and_wake(self.ops.drain(..), inbox);
        self.changed = stamp;
        if std::mem::take(&mut self.has_release) {
            self.released = stamp;
        }
        for packet in self.answers.drain(..) {
            self.packets += usize::from(matches!(packet, Held::Packet(_)));
            self.held.push_back((stamp, packet));
        }
    }

    /// Notices what the disk has got meanwhile.
    pub(crate) fn notice_commits(&mut self) {
        while let Some(&(upto, stamp)) = self.fences.first() {
            if !self.store().is_committed(stamp) {
                break;
            }
            self.stored_upto = self.stored_upto.max(upto + 1);
            self.fences.remove(0);
        }
    }

    /// The next packet that need not wait any more.
    pub(crate) fn next_held(&mut self) -> Option<Held> {
        let (stamp, _) = self.held.front()?;
        if !self.store().is_committed(*stamp) {
            return None;
        }
        let (_, packet) = self.held.pop_front()?;
        self.packets -= usize::from(matches!(packet, Held::Packet(_)));
        Some(packet)
    }

    /// True while a SUBACK waits: retained messages should not come before it.
    pub(crate) fn holds_packets(&self) -> bool {
        self.packets > 0
    }

    /// Packets that wait.
    pub(crate) fn holding(&self) -> usize {
        self.held.len()
    }

    /// True while too many wait for anything more to be read.
    pub(crate) fn holds_much(&self) -> bool {
        self.held.len() >= HELD
    }

    /// The connection has gone, and with it what its packets were an answer to.
    pub(crate) fn disconnected(&mut self, inbox: &Arc<Inbox>) {
        self.flush(inbox);
        // The client sends PUBREL again, and is answered then.
        self.releasing.clear();
        self.held = VecDeque::new();
        self.packets = 0;
        self.ops = Vec::new();
        self.answers = Vec::new();
    }

    /// Gives memory back, and keeps what is not handed to the store yet: a connection may end before that.
    pub(crate) fn rest(&mut self) {
        if self.held.is_empty() && self.held.capacity() > 0 {
            self.held = VecDeque::new();
        }
        if self.ops.is_empty() {
            self.ops = Vec::new();
        }
        if self.answers.is_empty() {
            self.answers = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_go_round() {
        assert_eq!((identifier(0), identifier(65_534), identifier(65_535)), (1, 65_535, 1));
    }
}
