//! The acknowledgements that a session owes its client.
//!
//! Each QoS 1 or 2 publication gets the next sequence and a slot. The slot is complete when its dispatch
//! is over and every sink with a ticket has said what became of it; the worst outcome is the answer.
//!
//! Invariants:
//! * PUBACK and PUBREC leave in the order of the PUBLISHes (MQTT-4.6.0-2, MQTT-4.6.0-3), each once, none
//!   before its publication is complete.
//! * A QoS 2 packet identifier is dispatched once from its first PUBLISH to its PUBREL, however often the
//!   PUBLISH is repeated and however many connections that takes (MQTT-4.3.3-10).
//! * A QoS 1 publication that an earlier connection left without its PUBACK is not dispatched again when its
//!   client repeats it with DUP: the repetition waits for the first copy. The identifier without DUP is
//!   another publication.
//! * Completions of an earlier connection are recorded for those who may repeat them.

use std::collections::VecDeque;

use causeway_protocol::mqtt::{AckKind, ReasonCode};
use hashbrown::HashMap;

use super::lazy_deque::LazyMap;
use crate::flow::{Outcome, SequenceRange};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// QoS 1.
    Acknowledged,
    /// QoS 1 repeated: the answer is that of the first, when it is known.
    AcknowledgedAgain,
    /// QoS 2, dispatched from this slot.
    Received,
    /// QoS 2 repeated: the answer is that of the first, when it is known.
    ReceivedAgain,
}

struct Slot {
    /// Sinks that have not reported, and the dispatch itself.
    pending: u32,
    identifier: u16,
    answer: Answer,
    reason: ReasonCode,
}

/// A publication of an earlier connection that sinks still hold.
struct Orphan {
    pending: u32,
    identifier: u16,
    answer: Answer,
    reason: ReasonCode,
}

/// A QoS 1 publication that an earlier connection left without its PUBACK.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Earlier {
    /// Sinks still hold it, under this sequence.
    Pending(u64),
    /// Its PUBACK may be sent.
    Complete(ReasonCode),
}

/// A QoS 2 publication between PUBLISH and PUBREL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Sinks still hold it.
    Pending,
    /// Complete: PUBREC was sent or may be.
    Complete(ReasonCode),
    /// From before a restart: sessions have it, sinks may not.
    Sinks,
}

/// Consequence of a QoS 1 PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtLeastOnce {
    /// A publication: its sequence.
    New(u64),
    /// Nothing: it has arrived before.
    Repeated,
}

/// Consequence of a QoS 2 PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExactlyOnce {
    /// A publication: its sequence.
    New(u64),
    /// One that sessions have from before a restart, and sinks may not: its sequence.
    Sinks(u64),
    /// Nothing: it has arrived before.
    Repeated,
}

/// An acknowledgement to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) kind: AckKind,
    pub(crate) identifier: u16,
    pub(crate) reason: ReasonCode,
}

/// State that a PUBREL finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    /// The publication it belongs to; it is over now.
    Known,
    /// Nothing (MQTT-5.0 3.7.2.1: 0x92).
    Unknown,
    /// A publication without a PUBREC so far: the client breaks the protocol.
    TooEarly,
}

/// Publications of a session and the acknowledgements owed for them, in order.
#[derive(Default)]
pub(crate) struct AckTracker {
    /// Sequence of the first slot.
    base: u64,
    slots: VecDeque<Slot>,
    qos1_slots: usize,
    exactly_once: HashMap<u16, Phase>,
    /// At most one for each packet identifier.
    earlier: LazyMap<u16, Earlier>,
    orphans: LazyMap<u64, Orphan>,
}

fn worse(known: ReasonCode, outcome: Outcome) -> ReasonCode {
    match outcome {
        Outcome::Failed(reason) if !known.is_error() => reason,
        _ => known,
    }
}

impl AckTracker {
    /// A QoS 1 publication arrived: its sequence, unless it is a repetition that must not be dispatched. Call
    /// [`Self::dispatched`] for a new one.
    pub(crate) fn begin_at_least_once(&mut self, identifier: u16, dup: bool) -> AtLeastOnce {
        self.qos1_slots += 1;
        if !self.earlier.is_empty() {
            if dup && self.earlier.contains_key(&identifier) {
                self.add(identifier, Answer::AcknowledgedAgain);
                return AtLeastOnce::Repeated;
            }
            self.earlier.remove(&identifier);
        }
        AtLeastOnce::New(self.add(identifier, Answer::Acknowledged))
    }

    /// True where a QoS 1 publication with this packet identifier arrived on this connection and is not
    /// acknowledged.
    pub(crate) fn is_under_way(&self, identifier: u16) -> bool {
        let reliable = |slot: &Slot| matches!(slot.answer, Answer::Acknowledged | Answer::AcknowledgedAgain);
        self.qos1_slots > 0 && self.slots.iter().any(|slot| slot.identifier == identifier && reliable(slot))
    }

    /// A QoS 2 publication arrived: its sequence, as with QoS 1, unless it has arrived before and must not be
    /// dispatched again.
    pub(crate) fn begin_exactly_once(&mut self, identifier: u16) -> ExactlyOnce {
        match self.exactly_once.insert(identifier, Phase::Pending) {
            None => ExactlyOnce::New(self.add(identifier, Answer::Received)),
            Some(Phase::Sinks) => ExactlyOnce::Sinks(self.add(identifier, Answer::Received)),
            Some(known) => {
                self.exactly_once.insert(identifier, known);
                self.add(identifier, Answer::ReceivedAgain);
                ExactlyOnce::Repeated
            }
        }
    }

    /// Takes up what a store had: QoS 2 identifiers between PUBLISH and PUBREL; true where sinks may not have
    /// the publication.
    pub(crate) fn restore(&mut self, received: &[(u16, bool)]) {
        self.exactly_once.extend(received.iter().map(|&(identifier, sinks)| {
            (identifier, if sinks { Phase::Sinks } else { Phase::Complete(ReasonCode::Success) })
        }));
    }

    fn add(&mut self, identifier: u16, answer: Answer) -> u64 {
        let sequence = self.base + self.slots.len() as u64;
        let pending = u32::from(matches!(answer, Answer::Acknowledged | Answer::Received));
        self.slots.push_back(Slot { pending, identifier, answer, reason: ReasonCode::Success });
        sequence
    }

    fn slot(&mut self, sequence: u64) -> Option<&mut Slot> {
        let index = sequence.checked_sub(self.base)?;
        self.slots.get_mut(usize::try_from(index).ok()?)
    }

    /// A sink took a ticket for this sequence.
    pub(crate) fn ticket_taken(&mut self, sequence: u64) {
        if let Some(slot) = self.slot(sequence) {
            slot.pending += 1;
        }
    }

    /// A sink that needed no ticket is done with this sequence.
    pub(crate) fn done_at_once(&mut self, sequence: u64, outcome: Outcome) {
        if let Some(slot) = self.slot(sequence) {
            slot.reason = worse(slot.reason, outcome);
        }
    }

    /// All receivers of this publication have it; `matched` is false where there was none.
    pub(crate) fn dispatched(&mut self, sequence: u64, matched: bool) {
        if !matched && let Some(slot) = self.slot(sequence) {
            slot.reason = ReasonCode::NoMatchingSubscribers;
        }
        self.complete(SequenceRange { first: sequence, count: 1 }, Outcome::Success);
    }

    /// A publication that is the last that arrived was given to no receiver, and is forgotten; `sinks_only`:
    /// sessions have it from before a restart, and that is remembered.
    pub(crate) fn abandon(&mut self, sequence: u64, sinks_only: bool) {
        let is_last = sequence + 1 == self.base + self.slots.len() as u64;
        if is_last && let Some(slot) = self.slots.pop_back() {
            match slot.answer {
                Answer::Acknowledged => self.qos1_slots -= 1,
                Answer::Received if sinks_only => {
                    self.exactly_once.insert(slot.identifier, Phase::Sinks);
                }
                Answer::Received => drop(self.exactly_once.remove(&slot.identifier)),
                Answer::ReceivedAgain | Answer::AcknowledgedAgain => {}
            }
        }
    }

    /// Sinks are done with these sequences.
    pub(crate) fn complete(&mut self, range: SequenceRange, outcome: Outcome) {
        let end = range.first.saturating_add(u64::from(range.count));
        if range.first < self.base && !self.orphans.is_empty() {
            self.complete_orphans(range.first, end, outcome);
        }
        let from = range.first.saturating_sub(self.base) as usize;
        let to = (end.saturating_sub(self.base) as usize).min(self.slots.len());
        for slot in self.slots.range_mut(from.min(to)..to) {
            slot.pending = slot.pending.saturating_sub(1);
            slot.reason = worse(slot.reason, outcome);
            if slot.pending == 0 && slot.answer == Answer::Received {
                self.exactly_once.insert(slot.identifier, Phase::Complete(slot.reason));
            }
        }
    }

    fn complete_orphans(&mut self, first: u64, end: u64, outcome: Outcome) {
        let (exactly_once, earlier) = (&mut self.exactly_once, &mut self.earlier);
        self.orphans.retain(|sequence, orphan| {
            if !(first..end).contains(sequence) {
                return true;
            }
            orphan.pending = orphan.pending.saturating_sub(1);
            orphan.reason = worse(orphan.reason, outcome);
            if orphan.pending > 0 {
                return true;
            }
            if orphan.answer == Answer::Received {
                exactly_once.insert(orphan.identifier, Phase::Complete(orphan.reason));
            } else if let Some(known) = earlier.get_mut(&orphan.identifier)
                && *known == Earlier::Pending(*sequence)
            {
                *known = Earlier::Complete(orphan.reason);
            }
            false
        });
    }

    /// The next acknowledgement, if it is time for it.
    pub(crate) fn release(&mut self) -> Option<Release> {
        let slot = self.slots.front()?;
        let phase = self.exactly_once.get(&slot.identifier).copied();
        let (kind, reason) = match (slot.answer, phase) {
            (Answer::Acknowledged, _) if slot.pending == 0 => (AckKind::PubAck, slot.reason),
            (Answer::Received, _) if slot.pending == 0 => (AckKind::PubRec, slot.reason),
            (Answer::ReceivedAgain, Some(Phase::Complete(reason))) => (AckKind::PubRec, reason),
            // Over in the meantime: released by the client, or refused.
            (Answer::ReceivedAgain, None) => (AckKind::PubRec, slot.reason),
            (Answer::AcknowledgedAgain, _) => match self.earlier.get(&slot.identifier) {
                Some(Earlier::Pending(_)) => return None,
                Some(Earlier::Complete(reason)) => (AckKind::PubAck, *reason),
                None => (AckKind::PubAck, slot.reason),
            },
            _ => return None,
        };
        if slot.answer == Answer::AcknowledgedAgain {
            self.earlier.remove(&slot.identifier);
        }
        let identifier = slot.identifier;
        self.slots.pop_front();
        self.base += 1;
        if kind == AckKind::PubAck {
            self.qos1_slots -= 1;
        }
        Some(Release { kind, identifier, reason })
    }

    /// A PUBREC with a failure was sent to a client that understands it: the identifier is free
    /// (MQTT-5.0 4.3.3).
    pub(crate) fn refused(&mut self, identifier: u16, reason: ReasonCode) {
        self.exactly_once.remove(&identifier);
        for slot in &mut self.slots {
            if slot.answer == Answer::ReceivedAgain && slot.identifier == identifier {
                slot.reason = reason;
            }
        }
    }

    /// True while sinks hold the QoS 2 publication with this identifier.
    pub(crate) fn is_pending(&self, identifier: u16) -> bool {
        matches!(self.exactly_once.get(&identifier), Some(Phase::Pending))
    }

    /// A PUBREL arrived.
    pub(crate) fn released(&mut self, identifier: u16) -> Released {
        match self.exactly_once.get(&identifier) {
            None => Released::Unknown,
            Some(Phase::Pending) => Released::TooEarly,
            Some(Phase::Complete(_) | Phase::Sinks) => {
                self.exactly_once.remove(&identifier);
                Released::Known
            }
        }
    }

    /// Publications that count against our receive maximum (MQTT-5.0 4.9): QoS 1 without PUBACK, QoS 2
    /// without PUBCOMP.
    pub(crate) fn outstanding(&self) -> usize {
        self.qos1_slots + self.exactly_once.len()
    }

    /// Acknowledgements that were not sent yet.
    pub(crate) fn held(&self) -> usize {
        self.slots.len()
    }

    /// True for the identifier of a QoS 2 publication that is not released.
    pub(crate) fn knows(&self, identifier: u16) -> bool {
        self.exactly_once.contains_key(&identifier)
    }

    /// The connection has gone, the session stays: nothing is owed to the old connection. What sinks still
    /// hold is followed to its end.
    pub(crate) fn disconnected(&mut self) {
        for slot in self.slots.drain(..) {
            let Slot { pending, identifier, answer, reason } = slot;
            match answer {
                Answer::Acknowledged if pending > 0 => {
                    self.earlier.insert(identifier, Earlier::Pending(self.base));
                }
                Answer::Acknowledged => {
                    self.earlier.insert(identifier, Earlier::Complete(reason));
                }
                Answer::AcknowledgedAgain | Answer::Received | Answer::ReceivedAgain => {}
            }
            if matches!(answer, Answer::Acknowledged | Answer::Received) && pending > 0 {
                self.orphans.insert(self.base, Orphan { pending, identifier, answer, reason });
            }
            self.base += 1;
        }
        self.slots = VecDeque::new();
        self.qos1_slots = 0;
    }
}

#[cfg(test)]
#[path = "ack_tracker_tests.rs"]
mod tests;
