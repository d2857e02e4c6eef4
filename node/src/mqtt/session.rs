//! A session: what client and server owe each other, beyond the connection that carries it.
//!
//! A pure state machine. In go deliveries, acknowledgements, completions and the time; out come packets,
//! into an [`OutBuffer`]. Sockets, timers and the router are its connection's business.
//!
//! Invariants:
//! * At most `window` QoS 1 and 2 deliveries are sent and not acknowledged; the others wait in order.
//! * Packet identifiers are given out in order, and again only when they are free. A resumed session sends
//!   what was not acknowledged with the old identifiers, in the old order, before anything new
//!   (MQTT-4.4.0-1, MQTT-4.6.0-1).
//! * What was taken out of the inbox stays charged there until it is sent, so the inbox's capacity bounds
//!   what waits here as well.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use causeway_protocol::mqtt::{AckKind, QoS, ReasonCode, Version};
use hashbrown::HashSet;

use super::{
    ack_tracker::{AckTracker, Released},
    inbox::{Inbox, Mail},
    lazy_deque::LazyDeque,
    memory::{self, Held},
    out_buffer::{OutBuffer, Unsendable},
    publication::Delivery,
    stats::{StatsSnapshot, Tally},
    store::{LoadedSession, Op},
    stored::{self, Durable, Held as HeldPacket},
};
use crate::flow::{HandOver, mailbox::Charge};

/// Bytes on their way to a client beyond which nothing more is put there: enough for one large write,
/// little enough that a slow client's backlog stays in its queue, where the bounds are.
pub(crate) const OUT_HIGH: usize = 256 << 10;

/// Identifiers from the oldest unacknowledged delivery to the newest: all that there are but one, so that a
/// place in flight follows from its identifier. A client may acknowledge in any order; one that leaves a
/// delivery out gets this many further ones before it has to acknowledge that one.
const SPAN: usize = u16::MAX as usize - 1;

/// Limits of the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientLimits {
    pub(crate) version: Version,
    pub(crate) maximum_packet_size: u32,
    /// QoS 1 and 2 deliveries that may be unacknowledged.
    pub(crate) window: usize,
}

/// Retained messages that may wait for a session when those of one more subscription are added: what waits is
/// then at most this and one whole store. Those of further subscriptions are held back.
const RETAINED_BACKLOG: usize = if cfg!(test) { 3 } else { 10_000 };

/// A subscription with no more retained messages than this need not wait: few clients have one filter that
/// matches much and many that match much.
const RETAINED_FEW: usize = if cfg!(test) { 1 } else { 100 };

/// A subscription whose retained messages are held back.
pub(crate) struct Awaited {
    pub(crate) filter: Box<str>,
    pub(crate) qos: QoS,
    pub(crate) identifier: Option<u32>,
    /// Messages with this number and later ones were published after the client subscribed and reach it by
    /// the subscription itself.
    pub(crate) before: u64,
}

impl Awaited {
    fn footprint(&self) -> usize {
        size_of::<Self>() + self.filter.len()
    }
}

enum State {
    /// PUBLISH sent, PUBACK or PUBREC outstanding.
    Publish(Delivery),
    /// PUBREL sent, PUBCOMP outstanding.
    Release,
    /// Acknowledged, behind an older one that is not.
    Done,
}

struct Inflight {
    identifier: u16,
    state: State,
}

/// A session of a client (MQTT-5.0 4.1).
pub(crate) struct Session {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) filters: HashSet<Box<str>>,
    pub(crate) tracker: AckTracker,
    /// Charge of what left the queues since it was last given back to the inbox.
    pub(crate) released: Charge,
    /// How long it outlives its connection, as the keeper last heard.
    pub(crate) expiry: Option<Duration>,
    /// Others may wait for something that it has, or for room in its queue.
    pub(crate) awaited: bool,
    /// The client has acknowledged something since this was last taken.
    pub(crate) went_on: bool,
    limits: ClientLimits,
    next_identifier: u16,
    /// Bytes of the filters, with what the router keeps for them.
    filter_bytes: usize,
    /// Charge beside the queue: filters, retained messages, packets in flight.
    held: Held,
    /// Sent QoS 1 and 2 deliveries, oldest first.
    inflight: LazyDeque<Inflight>,
    /// How many of `inflight` were sent on this connection.
    sent: usize,
    /// How many of those are not acknowledged.
    unacknowledged: usize,
    /// How many of `inflight` are not acknowledged, sent on this connection or not.
    owed: usize,
    /// It was logged that no identifier is left.
    exhausted: bool,
    /// Retained messages for new subscriptions. Not charged: they are shared with the store, which is
    /// bounded.
    retained: LazyDeque<Delivery>,
    /// Subscriptions whose retained messages are held back, in the order in which they are served. One for a
    /// filter at most.
    held_back: LazyDeque<Awaited>,
    /// Retained messages that were added while there was a backlog.
    added: usize,
    /// QoS 1 and 2 deliveries that wait for the window.
    waiting: LazyDeque<Delivery>,
    /// QoS 0 deliveries that wait for room on the way out.
    unsent: LazyDeque<Delivery>,
    /// Additional state of a stored session.
    pub(crate) durable: Option<Box<Durable>>,
}

/// An acknowledgement of another kind than the delivery waits for (MQTT-5.0 4.13: a protocol error).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfPlace;

/// Where the packets of a session go: one turn of its connection.
pub(crate) struct Output<'a> {
    pub(crate) buffer: &'a mut OutBuffer,
    pub(crate) tally: &'a mut Tally,
    /// The steady clock, milliseconds.
    pub(crate) now: i64,
}

impl Session {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            filter_bytes: 0,
            held: Held::new(inbox.memory(), 0),
            durable: inbox.stored().cloned().map(Durable::new),
            inbox,
            filters: HashSet::new(),
            tracker: AckTracker::default(),
            released: Charge::default(),
            expiry: None,
            awaited: false,
            went_on: false,
            limits: ClientLimits { version: Version::V311, maximum_packet_size: u32::MAX, window: 1 },
            next_identifier: 1,
            inflight: LazyDeque::default(),
            sent: 0,
            unacknowledged: 0,
            owed: 0,
            exhausted: false,
            retained: LazyDeque::default(),
            held_back: LazyDeque::default(),
            added: 0,
            waiting: LazyDeque::default(),
            unsent: LazyDeque::default(),
        }
    }

    /// A connection carries the session from now on. Call [`Self::pump`] when its CONNACK is on the way.
    pub(crate) fn connected(&mut self, limits: ClientLimits) {
        self.limits = limits;
        self.sent = 0;
        self.unacknowledged = 0;
        self.awaited = false;
        self.inbox.attach();
    }

    /// Holds QoS 1 and 2 deliveries until the store has the record that the resumed session is connected.
    pub(crate) fn resumed(&mut self) {
        if let Some(durable) = &mut self.durable {
            durable.resumed(&self.inbox);
        }
    }

    fn may_deliver(&self) -> bool {
        self.durable.as_ref().is_none_or(|durable| durable.may_deliver())
    }

    /// A subscription was added.
    pub(crate) fn subscribed(&mut self, filter: &str) {
        if self.filters.insert(filter.into()) {
            self.filter_bytes += memory::SUBSCRIPTION + 2 * filter.len();
            self.count_held();
        }
    }

    /// A subscription goes; false where there was none.
    pub(crate) fn unsubscribed(&mut self, filter: &str) -> bool {
        let known = self.filters.remove(filter);
        self.cancel_awaited(filter);
        if known {
            self.filter_bytes -= memory::SUBSCRIPTION + 2 * filter.len();
            self.count_held();
        }
        known
    }

    fn count_held(&mut self) {
        // Retained messages in the queue of a stored session are not charged there: all share them. Their
        // places are this session's.
        let stored = self.durable.as_ref().map_or(0, |durable| durable.retained);
        self.held.set(
            self.filter_bytes
                + stored * memory::PLACE
                + self.retained.capacity() * size_of::<Delivery>()
                + self.inflight.capacity() * size_of::<Inflight>(),
        );
    }

    /// Answers a PUBREL whose release is complete.
    pub(crate) fn forgotten(&mut self, release: u64, version: Version, out: &mut Output<'_>) {
        if let Some(identifier) = self.durable.as_mut().and_then(|durable| durable.end_release(release)) {
            self.released(identifier, version, out);
        }
    }

    /// The client has released a QoS 2 publication: PUBCOMP follows, in a stored session when that is on the
    /// disk.
    pub(crate) fn released(&mut self, identifier: u16, version: Version, out: &mut Output<'_>) {
        if let Some(durable) = &mut self.durable {
            durable.cancel_release(identifier);
        }
        let reason = match self.tracker.released(identifier) {
            Released::Known => ReasonCode::Success,
            Released::Unknown | Released::TooEarly => ReasonCode::PacketIdentifierNotFound,
        };
        if let Some(durable) = &mut self.durable {
            let session = durable.stored.number;
            let packet = HeldPacket::Ack(AckKind::PubComp, identifier, reason);
            if reason == ReasonCode::Success {
                durable.answer(Op::Forgotten { session, identifier }, packet);
                return;
            }
            // It may have been released on an earlier connection, and the disk not have it yet.
            if !durable.changes_are_stored() {
                durable.hold(packet);
                return;
            }
        }
        out.buffer.ack(version, AckKind::PubComp, identifier, reason);
    }

    /// The connection has gone and the session stays: QoS 0 is dropped, the rest is kept and counts as
    /// handed over. What waits is in the inbox again.
    pub(crate) fn disconnected(&mut self, tally: &mut Tally) {
        for mail in self.inbox.detach() {
            match mail {
                Mail::Delivery(delivery) if delivery.qos == QoS::AtMostOnce => {
                    self.unsent.push_back(delivery);
                }
                Mail::Delivery(delivery) => self.waiting.push_back(delivery),
                Mail::Acknowledged(range, outcome) => self.tracker.complete(range, outcome),
                // The client sends PUBREL again.
                Mail::Forgotten(_) | Mail::Close(_) | Mail::Awaited => {}
            }
        }
        tally.counts().dropped_offline += self.unsent.len() as u64;
        self.inbox.count_dropped(self.unsent.len() as u64);
        for delivery in self.unsent.take() {
            self.released.add(delivery.weight());
        }
        let inflight = self.inflight.iter_mut().filter_map(|inflight| match &mut inflight.state {
            State::Publish(delivery) => Some(delivery),
            State::Release | State::Done => None,
        });
        for delivery in inflight.chain(self.waiting.iter_mut()) {
            delivery.hand_over = None;
        }
        self.retained.retain(|delivery| delivery.qos != QoS::AtMostOnce);
        self.retained.shrink();
        self.inflight.shrink();
        self.tracker.disconnected();
        if let Some(durable) = &mut self.durable {
            durable.disconnected(&self.inbox);
        }
        self.inbox.put_back(self.waiting.take());
        self.inbox.set_inflight(self.owed);
        self.inbox.release(std::mem::take(&mut self.released));
        self.count_held();
    }

    /// Deliveries that the client has not received when the session ends, `mails` being what was in the
    /// inbox. QoS 2 that was sent is not among it: it may have got that (MQTT-4.8.2-5).
    pub(crate) fn undelivered(&mut self, mails: VecDeque<Mail>) -> impl Iterator<Item = Delivery> {
        let inflight = self.inflight.take().into_iter().filter_map(|inflight| match inflight.state {
            State::Publish(delivery) if delivery.qos == QoS::AtLeastOnce => Some(delivery),
            State::Publish(_) | State::Release | State::Done => None,
        });
        let mails = mails.into_iter().filter_map(|mail| match mail {
            Mail::Delivery(delivery) => Some(delivery),
            Mail::Acknowledged(..) | Mail::Forgotten(_) | Mail::Close(_) | Mail::Awaited => None,
        });
        inflight.chain(self.waiting.take()).chain(self.unsent.take()).chain(mails)
    }

    /// A delivery came out of the inbox.
    pub(crate) fn deliver(&mut self, mut delivery: Delivery, out: &mut Output<'_>) {
        if delivery.hand_over.is_some() {
            if self.inbox.is_overdue() {
                delivery.hand_over = None;
            } else {
                self.awaited = true;
            }
        }
        if delivery.qos != QoS::AtMostOnce
            && let Some(durable) = &mut self.durable
        {
            if delivery.qos == QoS::ExactlyOnce {
                let position = durable.stored.position(delivery.position);
                durable.fence(&self.inbox, position);
            }
            self.waiting.push_back(delivery);
            return;
        }
        let room = out.buffer.len() < OUT_HIGH;
        if delivery.qos == QoS::AtMostOnce {
            if room && self.unsent.is_empty() {
                self.released.add(delivery.weight());
                self.send_at_most_once(delivery, out);
            } else {
                self.unsent.push_back(delivery);
            }
        } else if room && self.waiting.is_empty() && self.window_is_open() {
            self.released.add(delivery.weight());
            self.send_new(delivery, out);
        } else {
            self.waiting.push_back(delivery);
        }
    }

    /// Hand-overs of what waits and of what is in flight.
    pub(crate) fn hand_overs(&self) -> impl Iterator<Item = &Arc<HandOver>> {
        let inflight = self.inflight.iter().filter_map(|inflight| match &inflight.state {
            State::Publish(delivery) => Some(delivery),
            State::Release | State::Done => None,
        });
        let all = inflight.chain(self.waiting.iter()).chain(self.unsent.iter());
        all.filter_map(|delivery| delivery.hand_over.as_ref())
    }

    /// Lets go of all hand-overs: the client is not waited for any longer. What it has not got it still gets.
    pub(crate) fn let_go(&mut self) {
        self.awaited = false;
        let inflight = self.inflight.iter_mut().filter_map(|inflight| match &mut inflight.state {
            State::Publish(delivery) => Some(delivery),
            State::Release | State::Done => None,
        });
        for delivery in inflight.chain(self.waiting.iter_mut()).chain(self.unsent.iter_mut()) {
            delivery.hand_over = None;
        }
    }

    /// Drops what has waited longest, after senders put in more than there is room for; see
    /// [`Inbox::excess`]. The newest stays, and what must be handed over.
    pub(crate) fn shed(&mut self, excess: Charge, tally: &mut Tally) {
        let mut shed = Charge::default();
        let mut at = 0;
        while (shed.bytes < excess.bytes || shed.items < excess.items) && at + 1 < self.waiting.len() {
            match self.waiting.get(at) {
                Some(oldest) if oldest.hand_over.is_none() && oldest.charged => shed.add(oldest.weight()),
                _ => {
                    at += 1;
                    continue;
                }
            }
            if let Some(oldest) = self.waiting.remove(at)
                && let Some(durable) = &mut self.durable
            {
                let position = durable.stored.position(oldest.position);
                durable.done(position);
            }
        }
        if !shed.is_empty() {
            tally.counts().dropped_queue_full += shed.items as u64;
            self.inbox.count_dropped(shed.items as u64);
            self.released.bytes += shed.bytes;
            self.released.items += shed.items;
        }
    }

    /// Retained messages that a subscription matches; `served`: they were held back.
    pub(crate) fn deliver_retained(
        &mut self,
        deliveries: impl Iterator<Item = Delivery>,
        served: Option<Awaited>,
    ) {
        if let Some(durable) = &mut self.durable {
            let (unreliable, reliable): (Vec<_>, Vec<_>) =
                deliveries.partition(|delivery| delivery.qos == QoS::AtMostOnce);
            self.retained.extend(unreliable.into_iter());
            durable.retained += reliable.len();
            let session = durable.stored.number;
            let served = served.map(|served| Op::Await { session, filter: served.filter, before: None });
            if !reliable.is_empty() || served.is_some() {
                self.inbox.offer_retained(reliable.into_iter(), served);
            }
        } else {
            self.retained.extend(deliveries);
        }
        self.count_held();
    }

    /// True while enough retained messages wait for those of further subscriptions to be held back.
    fn has_retained_backlog(&self) -> bool {
        let stored = self.durable.as_ref().map_or(0, |durable| durable.retained);
        self.retained.len() + stored > RETAINED_BACKLOG
    }

    /// How many retained messages of one more subscription may be added now; `None`: any number.
    pub(crate) fn retained_room(&mut self) -> Option<usize> {
        if self.has_retained_backlog() || !self.held_back.is_empty() {
            return Some(RETAINED_FEW.min(RETAINED_BACKLOG.saturating_sub(self.added)));
        }
        self.added = 0;
        None
    }

    /// Retained messages are about to be added although there is a backlog.
    pub(crate) fn count_added(&mut self, count: usize) {
        self.added += count;
    }

    /// Holds the retained messages of a subscription back.
    pub(crate) fn await_retained(&mut self, awaited: Awaited) {
        if let Some(durable) = &mut self.durable {
            let (session, filter) = (durable.stored.number, awaited.filter.clone());
            durable.put(Op::Await { session, filter, before: Some(awaited.before) });
        }
        self.restore_awaited(awaited);
    }

    /// Holds back what was held back before a restart.
    pub(crate) fn restore_awaited(&mut self, awaited: Awaited) {
        self.filter_bytes += awaited.footprint();
        self.held_back.push_back(awaited);
        self.count_held();
    }

    /// No retained messages for a filter are waited for any more.
    pub(crate) fn cancel_awaited(&mut self, filter: &str) {
        let Some(at) = self.held_back.iter().position(|awaited| *awaited.filter == *filter) else { return };
        let Some(awaited) = self.held_back.remove(at) else { return };
        self.filter_bytes -= awaited.footprint();
        if let Some(durable) = &mut self.durable {
            durable.put(Op::Await { session: durable.stored.number, filter: awaited.filter, before: None });
        }
    }

    /// True when the retained messages of a subscription need not be held back any more.
    pub(crate) fn wants_retained(&self) -> bool {
        !self.held_back.is_empty() && !self.has_retained_backlog()
    }

    /// The next subscription whose retained messages need not be held back any more.
    pub(crate) fn next_awaited(&mut self) -> Option<Awaited> {
        if !self.wants_retained() {
            return None;
        }
        let awaited = self.held_back.pop_front()?;
        self.filter_bytes -= awaited.footprint();
        self.held_back.rest();
        Some(awaited)
    }

    /// Sends what waits, as far as window and buffer allow.
    pub(crate) fn pump(&mut self, out: &mut Output<'_>) {
        if self.durable.is_some() && !self.pump_store(out) {
            return;
        }
        if self.may_deliver() {
            self.resend(out);
        }
        while out.buffer.len() < OUT_HIGH
            && let Some(next) = self.retained.front()
        {
            if next.qos == QoS::AtMostOnce {
                if let Some(delivery) = self.retained.pop_front() {
                    self.send_at_most_once(delivery, out);
                }
            } else if self.window_is_open() {
                if let Some(delivery) = self.retained.pop_front() {
                    self.send_new(delivery, out);
                }
            } else {
                break;
            }
        }
        while out.buffer.len() < OUT_HIGH
            && self.window_is_open()
            && self.may_send_next()
            && let Some(delivery) = self.waiting.pop_front()
        {
            if delivery.charged {
                self.released.add(delivery.weight());
            } else if let Some(durable) = &mut self.durable {
                durable.retained = durable.retained.saturating_sub(1);
            }
            self.send_new(delivery, out);
        }
        if let Some(durable) = &mut self.durable {
            // Deliveries that could not be sent are not in the store any more, either.
            durable.flush(&self.inbox);
        }
        while out.buffer.len() < OUT_HIGH
            && let Some(delivery) = self.unsent.pop_front()
        {
            self.released.add(delivery.weight());
            self.send_at_most_once(delivery, out);
        }
        if self.retained.is_empty() && self.retained.capacity() > 0 {
            self.retained.rest();
        }
        self.count_held();
        self.inbox.set_inflight(self.owed);
        if self.inflight.len() + self.limits.window >= SPAN && !self.exhausted {
            self.warn_when_exhausted();
        }
    }

    /// Logs once that a delivery which its client does not acknowledge leaves no identifier for further ones.
    #[cold]
    fn warn_when_exhausted(&mut self) {
        if self.waiting.is_empty() || self.unacknowledged >= self.limits.window {
            return;
        }
        if self.inflight.len() < SPAN && self.may_send_next() {
            return;
        }
        if let Some(oldest) = self.inflight.front() {
            self.exhausted = true;
            tracing::warn!(
                client_id = self.inbox.client_id(),
                packet_identifier = oldest.identifier,
                "the client has acknowledged 65,533 deliveries and not this one before them: it gets no more until it does"
            );
        }
    }

    /// Hands this turn's changes to the store and sends what needs not wait for it any more. False while a
    /// SUBACK waits, which retained messages follow.
    fn pump_store(&mut self, out: &mut Output<'_>) -> bool {
        let Some(durable) = &mut self.durable else { return true };
        durable.flush(&self.inbox);
        durable.notice_commits();
        while let Some(packet) = durable.next_held() {
            match packet {
                HeldPacket::Ack(kind, identifier, reason) => {
                    out.buffer.ack(self.limits.version, kind, identifier, reason);
                }
                HeldPacket::Explained(packet) | HeldPacket::Packet(packet) => out.buffer.raw(&packet),
            }
        }
        !durable.holds_packets()
    }

    /// A stored session sends QoS 2 when it is on the disk, and keeps its identifiers close together: they
    /// follow from the positions.
    fn may_send_next(&self) -> bool {
        let (Some(durable), Some(next)) = (&self.durable, self.waiting.front()) else { return true };
        let position = durable.stored.position(next.position);
        let stored = next.qos != QoS::ExactlyOnce || position < durable.stored_upto;
        stored && (self.inflight.is_empty() || position - durable.first < SPAN as u64)
    }

    /// Packets that wait for the disk.
    pub(crate) fn holding(&self) -> usize {
        self.durable.as_ref().map_or(0, |durable| durable.holding())
    }

    /// True while too many wait for anything more to be read from the client.
    pub(crate) fn holds_much(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.holds_much())
    }

    /// Positions below were sent.
    pub(crate) fn sent_upto(&self) -> u64 {
        let durable = self.durable.as_ref().filter(|_| !self.inflight.is_empty());
        durable.map_or(0, |durable| durable.first + self.inflight.len() as u64)
    }

    /// Takes up what the store had; the client is away. Positions below `sent_upto` were sent, or may have
    /// been.
    pub(crate) fn restore(&mut self, found: &mut LoadedSession, sent_upto: u64) {
        let Some(durable) = &mut self.durable else { return };
        self.tracker.restore(&found.received);
        let mut entries = std::mem::take(&mut found.entries).into_iter().peekable();
        let mut released = found.released.iter().copied().peekable();
        let sent_upto = sent_upto.max(found.released.last().map_or(0, |position| position + 1));
        let mut first = None;
        // Both rise: the positions in flight are merged from them, the gaps are done.
        loop {
            let entry =
                entries.peek().map(|(position, _)| *position).filter(|position| *position < sent_upto);
            let Some(position) = [entry, released.peek().copied()].into_iter().flatten().min() else { break };
            let first = *first.get_or_insert(position);
            if position - first >= SPAN as u64 {
                break;
            }
            for gap in first + self.inflight.len() as u64..position {
                self.inflight.push_back(Inflight { identifier: stored::identifier(gap), state: State::Done });
            }
            let state = if entry == Some(position) {
                match entries.next() {
                    Some((position, entry)) => State::Publish(entry.into_delivery(position)),
                    None => State::Done,
                }
            } else {
                released.next();
                State::Release
            };
            self.owed += usize::from(!matches!(state, State::Done));
            self.inflight.push_back(Inflight { identifier: stored::identifier(position), state });
        }
        durable.first = first.unwrap_or_default();
        durable.retained = self.inbox.restore(entries.map(|(position, entry)| entry.into_delivery(position)));
        self.count_held();
        self.inbox.set_inflight(self.owed);
    }

    /// True when the window, not the buffer, is all that keeps deliveries back.
    #[cfg(test)]
    fn is_idle(&self) -> bool {
        self.inflight.is_empty()
            && self.waiting.is_empty()
            && self.unsent.is_empty()
            && self.retained.is_empty()
    }

    /// Gives memory back that is not needed while nothing is under way.
    pub(crate) fn rest(&mut self) {
        if self.inflight.is_empty() && self.inflight.capacity() > 0 {
            self.inflight.rest();
            self.count_held();
        }
        self.waiting.rest();
        self.unsent.rest();
        if let Some(durable) = &mut self.durable {
            durable.rest();
        }
    }

    fn window_is_open(&self) -> bool {
        self.sent == self.inflight.len()
            && self.unacknowledged < self.limits.window
            && self.inflight.len() < SPAN
            && self.may_deliver()
    }

    /// Sends again what an earlier connection left unacknowledged (MQTT-4.4.0-1).
    fn resend(&mut self, out: &mut Output<'_>) {
        while self.unacknowledged < self.limits.window && out.buffer.len() < OUT_HIGH {
            let Some(inflight) = self.inflight.get_mut(self.sent) else { return };
            let Inflight { identifier, state } = inflight;
            match state {
                State::Publish(delivery) => {
                    let sent = send(&self.limits, &self.inbox, delivery, *identifier, true, out);
                    if sent {
                        self.unacknowledged += 1;
                    } else {
                        *state = State::Done;
                        self.owed = self.owed.saturating_sub(1);
                        if let Some(durable) = &mut self.durable {
                            durable.done(durable.first + self.sent as u64);
                        }
                    }
                }
                State::Release => {
                    if self.durable.as_ref().is_some_and(|durable| !durable.releases_are_stored()) {
                        return;
                    }
                    out.buffer.ack(self.limits.version, AckKind::PubRel, *identifier, ReasonCode::Success);
                    self.unacknowledged += 1;
                }
                State::Done => {}
            }
            self.sent += 1;
        }
        self.forget_done();
    }

    fn send_at_most_once(&self, mut delivery: Delivery, out: &mut Output<'_>) {
        let hand_over = delivery.hand_over.take();
        if send(&self.limits, &self.inbox, &delivery, 0, false, out)
            && let Some(hand_over) = hand_over
        {
            out.buffer.hold(hand_over);
        }
    }

    fn send_new(&mut self, delivery: Delivery, out: &mut Output<'_>) {
        let position = self.durable.as_ref().map(|durable| durable.stored.position(delivery.position));
        let identifier = position.map_or(self.next_identifier, stored::identifier);
        let sent = send(&self.limits, &self.inbox, &delivery, identifier, false, out);
        if let (Some(durable), Some(position)) = (&mut self.durable, position) {
            if !sent {
                durable.done(position);
                return;
            }
            if self.inflight.is_empty() {
                durable.first = position;
            }
            for gap in durable.first + self.inflight.len() as u64..position {
                self.inflight.push_back(Inflight { identifier: stored::identifier(gap), state: State::Done });
                self.sent += 1;
            }
        } else if !sent {
            return;
        } else {
            self.next_identifier = identifier.checked_add(1).unwrap_or(1);
        }
        self.inflight.push_back(Inflight { identifier, state: State::Publish(delivery) });
        self.sent += 1;
        self.unacknowledged += 1;
        self.owed += 1;
    }

    /// Identifiers are given out in order, so an identifier's place follows from the first one's.
    fn find(&mut self, identifier: u16) -> Option<(usize, &mut Inflight)> {
        let first = self.inflight.front()?.identifier;
        let place = if identifier >= first {
            usize::from(identifier - first)
        } else {
            // Over the end: 65,535 is followed by 1.
            usize::from(u16::MAX - first) + usize::from(identifier)
        };
        let inflight = self.inflight.get_mut(place)?;
        (inflight.identifier == identifier).then_some((place, inflight))
    }

    fn done(&mut self, place: usize) {
        self.went_on = true;
        if place < self.sent {
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
        }
        self.owed = self.owed.saturating_sub(1);
        if let Some(durable) = &mut self.durable {
            durable.done(durable.first + place as u64);
        }
        self.forget_done();
    }

    fn forget_done(&mut self) {
        while self.inflight.front().is_some_and(|inflight| matches!(inflight.state, State::Done)) {
            self.inflight.pop_front();
            self.exhausted = false;
            self.sent = self.sent.saturating_sub(1);
            if let Some(durable) = &mut self.durable {
                durable.first += 1;
            }
        }
    }

    /// PUBACK. One that nothing waits for is ignored: it may be a repetition.
    pub(crate) fn puback(&mut self, identifier: u16, reason: ReasonCode) -> Result<(), OutOfPlace> {
        let Some((place, inflight)) = self.find(identifier) else { return Ok(()) };
        match &inflight.state {
            State::Publish(delivery) if delivery.qos == QoS::AtLeastOnce => refuse(delivery, reason),
            State::Done => return Ok(()),
            State::Publish(_) | State::Release => return Err(OutOfPlace),
        }
        inflight.state = State::Done;
        self.done(place);
        Ok(())
    }

    /// PUBREC. The answer is PUBREL, also for an unknown identifier (MQTT-5.0 3.6.2.1).
    pub(crate) fn pubrec(
        &mut self,
        identifier: u16,
        reason: ReasonCode,
        out: &mut Output<'_>,
    ) -> Result<(), OutOfPlace> {
        let version = self.limits.version;
        let Some((place, inflight)) = self.find(identifier) else {
            if !reason.is_error() {
                let reason = ReasonCode::PacketIdentifierNotFound;
                out.buffer.ack(version, AckKind::PubRel, identifier, reason);
            }
            return Ok(());
        };
        match &inflight.state {
            State::Publish(delivery) if delivery.qos == QoS::ExactlyOnce => {
                refuse(delivery, reason);
                if reason.is_error() {
                    // The client will not send PUBCOMP: the identifier is free (MQTT-5.0 4.3.3).
                    inflight.state = State::Done;
                    self.done(place);
                    return Ok(());
                }
                inflight.state = State::Release;
                self.went_on = true;
                if let Some(durable) = &mut self.durable {
                    durable.release(durable.first + place as u64, identifier);
                    return Ok(());
                }
            }
            State::Release => {
                if self.durable.as_ref().is_some_and(|durable| !durable.releases_are_stored()) {
                    return Ok(());
                }
            }
            State::Publish(_) => return Err(OutOfPlace),
            State::Done => return Ok(()),
        }
        out.buffer.ack(version, AckKind::PubRel, identifier, ReasonCode::Success);
        Ok(())
    }

    /// PUBCOMP. One that nothing waits for is ignored: it may be a repetition.
    pub(crate) fn pubcomp(&mut self, identifier: u16) -> Result<(), OutOfPlace> {
        let Some((place, inflight)) = self.find(identifier) else { return Ok(()) };
        match inflight.state {
            State::Release => {
                inflight.state = State::Done;
                self.done(place);
                Ok(())
            }
            State::Publish(_) => Err(OutOfPlace),
            State::Done => Ok(()),
        }
    }
}

/// A client that refuses a delivery has not been handed it.
fn refuse(delivery: &Delivery, reason: ReasonCode) {
    if reason.is_error()
        && let Some(hand_over) = &delivery.hand_over
    {
        hand_over.fail(reason);
    }
}

/// Puts a PUBLISH into the buffer; false where it cannot be sent, which is counted.
fn send(
    limits: &ClientLimits,
    inbox: &Inbox,
    delivery: &Delivery,
    identifier: u16,
    dup: bool,
    out: &mut Output<'_>,
) -> bool {
    let ClientLimits { version, maximum_packet_size, .. } = *limits;
    let result = out.buffer.publish(version, maximum_packet_size, delivery, identifier, dup, out.now);
    let counts = out.tally.counts();
    let counter = match (result, delivery.qos) {
        (Ok(()), qos) => {
            *sent_counter(counts, qos) += 1;
            return true;
        }
        (Err(Unsendable::TooLarge), _) => &mut counts.dropped_too_large,
        (Err(Unsendable::Expired), _) => &mut counts.dropped_expired,
    };
    *counter += 1;
    inbox.count_dropped(1);
    false
}

fn sent_counter(counts: &mut StatsSnapshot, qos: QoS) -> &mut u64 {
    match qos {
        QoS::AtMostOnce => &mut counts.sent_qos0,
        QoS::AtLeastOnce => &mut counts.sent_qos1,
        QoS::ExactlyOnce => &mut counts.sent_qos2,
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
