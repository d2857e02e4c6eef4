//! A client's publications: from the packet to the sinks and sessions that take them, and back to the
//! client as acknowledgements.
//!
//! Invariants:
//! * Each sink and each session gets a publication once, also when a sink without room interrupts it: a
//!   [`Parked`] publication goes on where it stopped.
//! * Waiting for acknowledgements stops nothing; beyond the receive maximum, and while a sink has no room,
//!   publications wait ([`Block`]) and everything else goes on.
//! * A publication that is sent again (DUP) while its first copy is under way is not published again, as long
//!   as the session lives.

use std::{future::Future, pin::Pin, sync::Arc, task::Context, time::Duration};

use bytes::{Bytes, BytesMut};
use causeway_protocol::mqtt::{Ack, AckKind, Decoded, Decoder, Packet, Publish, QoS, ReasonCode, Version};
use tokio::{sync::futures::OwnedNotified, time::Instant};

use super::{
    ack_tracker::{AtLeastOnce, ExactlyOnce, Release},
    clock,
    connection::{Connection, End, Work},
    explain::explain,
    inbox::Inbox,
    out_buffer::OutBuffer,
    route::{Route, RouteCache},
    session::ClientLimits,
    shared::{Client, Shared},
    store::Op,
    stored::Held,
    sys,
    will::{DeferredPublish, OwnedMessage, UnfinishedPublish},
};
use crate::{
    access::Allowed,
    flow::{Accepted, HandOver, Mark, Message, Outcome, Room, Ticket},
};

/// How long a publication waits for room before it asks again, told or not.
const RETRY: Duration = Duration::from_millis(100);

/// How often a client whose publications wait is looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Why a client's publications wait.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) enum Block {
    /// They do not.
    #[default]
    No,
    /// As many publications as our receive maximum wait for their acknowledgement.
    Limit {
        /// When to look whether the client is still there.
        look: Instant,
    },
    /// A sink has no room for the publication that is parked.
    Room {
        /// When to ask again in any case.
        retry: Instant,
    },
}

/// A publication that a sink had no room for.
pub(crate) struct Parked {
    sequence: Option<u64>,
    route: Arc<Route>,
    next_sink: usize,
    room: Room,
    /// Our place in the queue for room, once we have taken it.
    place: Option<Pin<Box<OwnedNotified>>>,
    /// Sessions have it from before a restart.
    sinks_only: bool,
}

impl Parked {
    /// True when it is worth asking the sink again.
    fn may_ask(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(place) = &mut self.place {
            let heard = place.as_mut().poll(cx).is_ready();
            if heard {
                self.place = None;
            }
            return heard;
        }
        // Take a place first, then ask: room that comes in between is not missed.
        let place = self.place.insert(Box::pin(self.room.clone().notified_owned()));
        if place.as_mut().poll(cx).is_ready() {
            self.place = None;
        }
        true
    }
}

impl Connection {
    /// True when publications that were set aside may be looked at again; the block is then gone.
    pub(super) fn may_go_on(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(client) = self.client.as_deref_mut() else { return false };
        let Some(ahead) = &mut self.ahead else { return false };
        let limit = usize::from(self.shared.options.receive_maximum);
        let go_on = match &ahead.block {
            Block::No => true,
            Block::Limit { .. } => {
                client.lease.session().is_none_or(|session| session.tracker.held() < limit)
            }
            Block::Room { retry } => {
                let heard = client.parked.as_mut().is_none_or(|parked| parked.may_ask(cx));
                heard || now >= *retry
            }
        };
        if go_on {
            ahead.block = Block::No;
        }
        go_on
    }
}

impl Client {
    /// Brings a publication to all its receivers. A block: it is to be offered again, unchanged.
    pub(super) fn publish(
        &mut self,
        shared: &Shared,
        publish: &Publish<'_>,
        work: &mut Work,
    ) -> Result<Block, End> {
        let alias;
        let topic = if let Some(number) = publish.properties.topic_alias {
            alias = self.resolve_alias(shared, number, publish.topic)?;
            &*alias
        } else {
            publish.topic
        };
        let options = &shared.options;
        if publish.qos > options.max_qos {
            return Err(End::Refused(ReasonCode::QoSNotSupported));
        }
        if publish.retain && !options.retain_available {
            return Err(End::Refused(ReasonCode::RetainNotSupported));
        }
        let (sequence, route, next_sink, place, sinks_only) = if let Some(parked) = self.parked.take() {
            let Parked { sequence, route, next_sink, room, place, sinks_only } = *parked;
            (sequence, route, next_sink, Some((room, place)), sinks_only)
        } else {
            let (sequence, sinks_only) = match self.begin(shared, publish, work)? {
                Begun::New(sequence) => (sequence, false),
                Begun::Sinks(sequence) => (Some(sequence), true),
                Begun::Repeated => return Ok(Block::No),
                Begun::Limit => return Ok(Block::Limit { look: Instant::now() + LOOK }),
            };
            let routes =
                self.routes.get_or_insert_with(|| Box::new(RouteCache::new(shared.options.route_cache)));
            let (access, origin) = (&self.access, &self.origin);
            let (route, allowed) = routes.checked_route(&shared.router, topic, || {
                if topic.starts_with(sys::PREFIX) {
                    // The node's own.
                    return Allowed::NOTHING;
                }
                access.as_ref().map_or(Allowed::ALL, |access| access.publish(origin, topic))
            });
            if !allowed.contains(publish.qos, publish.retain) {
                return self.deny(shared, topic, sequence, work);
            }
            if options.payload_format_validation
                && publish.properties.payload_format_indicator == Some(1)
                && std::str::from_utf8(publish.payload).is_err()
            {
                work.tally.counts().dropped_invalid_payload += 1;
                return self.reject(ReasonCode::PayloadFormatInvalid, sequence);
            }
            (sequence, route, 0, None, sinks_only)
        };
        let message = Message {
            origin: &self.origin,
            topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            properties: &publish.properties,
            received_at: work.wall,
            hops: 0,
        };
        let Some(session) = self.lease.session() else { return Err(End::Gone) };
        self.ticket.sequence = sequence.unwrap_or_default();
        let is_marked = publish.qos == QoS::ExactlyOnce && self.inbox.stored().is_some();
        self.ticket.identifier = if is_marked { publish.packet_identifier } else { 0 };
        for (at, sink) in route.sinks.iter().enumerate().skip(next_sink) {
            let ticket = sequence.filter(|_| sink.holds_acknowledgement);
            let offered = ticket.map(|_| &self.ticket);
            match (sink.sink.accept(&message, offered, &mut work.wakes), ticket) {
                (Accepted::Taken, Some(sequence)) => session.tracker.ticket_taken(sequence),
                (Accepted::Done(outcome), Some(sequence)) => session.tracker.done_at_once(sequence, outcome),
                (Accepted::Taken | Accepted::Done(_), None) => {}
                (Accepted::Full(room), _) => {
                    let place = place
                        .and_then(|(known, place)| if Arc::ptr_eq(&known, &room) { place } else { None });
                    let route = route.clone();
                    let parked = Parked { sequence, route, next_sink: at, room, place, sinks_only };
                    self.parked = Some(Box::new(parked));
                    return Ok(Block::Room { retry: Instant::now() + RETRY });
                }
            }
        }
        // Who has a session that lasts gets it from the disk, should it come to that.
        let mut stored = None;
        if let Some(sequence) = sequence
            && let Some(store) = shared.router.store()
        {
            let identified = publish.qos == QoS::ExactlyOnce && self.inbox.stored().is_some();
            if (identified || publish.retain || route.stored > 0) && !sinks_only {
                if !store.has_room() {
                    let (route, next_sink, room) = (route.clone(), route.sinks.len(), store.room());
                    let place = place
                        .and_then(|(known, place)| if Arc::ptr_eq(&known, &room) { place } else { None });
                    let parked =
                        Parked { sequence: Some(sequence), route, next_sink, room, place, sinks_only };
                    self.parked = Some(Box::new(parked));
                    return Ok(Block::Room { retry: Instant::now() + RETRY });
                }
                stored = Some((store, sequence, identified));
            }
        }
        let mut matched = sinks_only || !route.sinks.is_empty();
        if !sinks_only {
            matched |= shared.router.dispatch(&message, &route, self.inbox.id(), &mut work.outbox);
        }
        if let Some((store, sequence, identified)) = stored {
            session.tracker.ticket_taken(sequence);
            let received =
                if identified { received(&self.inbox, &route, publish.packet_identifier) } else { None };
            work.outbox.await_store(store, &self.inbox, sequence, received);
        }
        if !matched {
            work.tally.counts().unmatched += 1;
        }
        if let Some(sequence) = sequence {
            session.tracker.dispatched(sequence, matched);
        }
        Ok(Block::No)
    }

    /// A publication that the rules do not allow goes nowhere. An MQTT 3 client cannot be told, and is
    /// acknowledged (MQTT-3.3.5-2); or the connection ends.
    fn deny(
        &mut self,
        shared: &Shared,
        topic: &str,
        sequence: Option<u64>,
        work: &mut Work,
    ) -> Result<Block, End> {
        work.tally.counts().denied_publishes += 1;
        shared.refusals.publication(&self.origin, topic, "publication");
        Self::denied(shared)?;
        self.reject(ReasonCode::NotAuthorized, sequence)
    }

    /// A publication that goes nowhere, with the reason that an MQTT 5 client is told.
    fn reject(&mut self, reason: ReasonCode, sequence: Option<u64>) -> Result<Block, End> {
        let outcome = match self.version() {
            Version::V5 => Outcome::Failed(reason),
            Version::V31 | Version::V311 => Outcome::Success,
        };
        let Some(session) = self.lease.session() else { return Err(End::Gone) };
        if let Some(sequence) = sequence {
            session.tracker.done_at_once(sequence, outcome);
            session.tracker.dispatched(sequence, true);
        }
        Ok(Block::No)
    }

    fn begin(&mut self, shared: &Shared, publish: &Publish<'_>, work: &mut Work) -> Result<Begun, End> {
        let limit = usize::from(shared.options.receive_maximum);
        let version = self.limits.version;
        let Some(session) = self.lease.session() else { return Err(End::Gone) };
        let tracker = &mut session.tracker;
        if publish.qos == QoS::AtLeastOnce && publish.dup && tracker.is_under_way(publish.packet_identifier) {
            let counts = work.tally.counts();
            counts.received_qos1 += 1;
            counts.received_duplicates += 1;
            return Ok(Begun::Repeated);
        }
        if publish.qos != QoS::AtMostOnce {
            if version == Version::V5 {
                let repeated = publish.qos == QoS::ExactlyOnce && tracker.knows(publish.packet_identifier);
                if !repeated && tracker.outstanding() >= limit {
                    return Err(End::Refused(ReasonCode::ReceiveMaximumExceeded));
                }
            } else if tracker.held() >= limit {
                return Ok(Begun::Limit);
            }
        }
        let counts = work.tally.counts();
        Ok(match publish.qos {
            QoS::AtMostOnce => {
                counts.received_qos0 += 1;
                Begun::New(None)
            }
            QoS::AtLeastOnce => {
                counts.received_qos1 += 1;
                match tracker.begin_at_least_once(publish.packet_identifier, publish.dup) {
                    AtLeastOnce::New(sequence) => Begun::New(Some(sequence)),
                    AtLeastOnce::Repeated => {
                        counts.received_duplicates += 1;
                        Begun::Repeated
                    }
                }
            }
            QoS::ExactlyOnce => {
                counts.received_qos2 += 1;
                match tracker.begin_exactly_once(publish.packet_identifier) {
                    ExactlyOnce::New(sequence) => Begun::New(Some(sequence)),
                    ExactlyOnce::Sinks(sequence) => Begun::Sinks(sequence),
                    ExactlyOnce::Repeated => {
                        counts.received_duplicates += 1;
                        Begun::Repeated
                    }
                }
            }
        })
    }

    /// The topic behind an alias, after setting it where the packet names both (MQTT-5.0 3.3.2.3.4).
    fn resolve_alias(&mut self, shared: &Shared, alias: u16, topic: &str) -> Result<Arc<str>, End> {
        if alias == 0 || alias > shared.options.topic_alias_maximum {
            return Err(End::Refused(ReasonCode::TopicAliasInvalid));
        }
        let index = usize::from(alias) - 1;
        if topic.is_empty() {
            let known = self.aliases.get(index).and_then(Option::as_ref);
            return known.cloned().ok_or(End::Refused(ReasonCode::ProtocolError));
        }
        if self.aliases.len() <= index {
            self.aliases.resize(index + 1, None);
        }
        let Some(slot) = self.aliases.get_mut(index) else { return Err(End::Gone) };
        match slot {
            Some(known) if **known == *topic => Ok(known.clone()),
            slot => Ok(slot.insert(Arc::from(topic)).clone()),
        }
    }

    /// Sends the acknowledgements that are due, in the order of the publications.
    pub(super) fn release_acknowledgements(&mut self, shared: &Shared, out: &mut OutBuffer, work: &mut Work) {
        let version = self.limits.version;
        let Some(session) = self.lease.session() else { return };
        while let Some(release) = session.tracker.release() {
            let Release { kind, identifier, reason } = release;
            if !reason.is_error() {
                out.ack(version, kind, identifier, reason);
                continue;
            }
            // A denial is counted already; to an MQTT 3 client that is no error, so it comes from a sink.
            if reason != ReasonCode::NotAuthorized || version != Version::V5 {
                work.tally.counts().failed_in_sink += 1;
            }
            if version != Version::V5 {
                let uncounted = work.tally.counts().failed_in_sink;
                shared.warn_failed(&self.origin.client_id, reason, uncounted, work.wall);
                out.ack(version, kind, identifier, reason);
                continue;
            }
            let explained = if self.problem_information { self.limits.explained(release) } else { None };
            if kind == AckKind::PubRec {
                session.tracker.refused(identifier, reason);
                if let Some(durable) = &mut session.durable {
                    // The client may use the identifier for another publication at once.
                    let stored = &durable.stored;
                    let mark = Mark { session: stored.id, identifier };
                    shared.router.release_soon(mark, stored.restored);
                    let session = stored.number;
                    let packet = explained.map_or(Held::Ack(kind, identifier, reason), Held::Explained);
                    durable.answer(Op::Forgotten { session, identifier }, packet);
                    continue;
                }
            }
            match explained {
                Some(packet) => out.raw(&packet),
                None => out.ack(version, kind, identifier, reason),
            }
        }
    }

    /// The connection ends. A parked publication that the client will not repeat, because some sinks have
    /// it under a packet identifier that is remembered, is brought to its end by the keeper. `packet` is
    /// the publication, encoded.
    pub(super) fn leave(&mut self, shared: &Shared, packet: &[u8], decoder: Decoder) {
        let Some(parked) = self.parked.take() else { return };
        let Some(sequence) = parked.sequence else { return };
        let Some(session) = self.lease.session() else { return };
        if parked.next_sink == 0 {
            session.tracker.abandon(sequence, parked.sinks_only);
            return;
        }
        let Ok(Decoded::Packet { packet: Packet::Publish(publish), .. }) = decoder.decode(packet) else {
            return;
        };
        let topic = match publish.properties.topic_alias {
            Some(alias) => match self.resolve_alias(shared, alias, publish.topic) {
                Ok(topic) => topic,
                Err(_) => return,
            },
            None => Arc::from(publish.topic),
        };
        let message = Message {
            origin: &self.origin,
            topic: &topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            properties: &publish.properties,
            received_at: clock::unix_millis(),
            hops: 0,
        };
        let message = OwnedMessage::copy(&message, shared.router.memory());
        // Behind this one.
        let ticket = Ticket { sequence, identifier: 0, ..self.ticket.clone() };
        let identified = publish.qos == QoS::ExactlyOnce;
        let Parked { route, next_sink, sinks_only, .. } = *parked;
        shared.keeper.run_errand(DeferredPublish::UnfinishedPublish(Box::new(UnfinishedPublish {
            message,
            received: if identified {
                received(&self.inbox, &route, publish.packet_identifier)
            } else {
                None
            },
            route,
            next_sink,
            sinks_only,
            publisher: self.inbox.id(),
            // Its completion is that of the dispatch, which the tracker waits for.
            hand_over: HandOver::new(ticket),
        })));
    }
}

impl ClientLimits {
    /// A PUBACK or PUBREC with its reason in words; none where there are none, or no room for them.
    fn explained(&self, release: Release) -> Option<Bytes> {
        let Release { kind, identifier, reason } = release;
        let reason_string = Some(explain(reason)?);
        let ack = Ack { packet_identifier: identifier, reason, reason_string, ..Ack::default() };
        let packet = match kind {
            AckKind::PubRec => Packet::PubRec(ack),
            _ => Packet::PubAck(ack),
        };
        let mut bytes = BytesMut::new();
        packet.encode_within(self.version, self.maximum_packet_size, &mut bytes).ok()?;
        Some(bytes.freeze())
    }
}

/// Store operation for a QoS 2 publication of a stored session.
fn received(inbox: &Inbox, route: &Route, identifier: u16) -> Option<Op> {
    let sinks = route.sinks.iter().any(|sink| sink.holds_acknowledgement);
    inbox.stored().map(|stored| Op::Received { session: stored.number, identifier, sinks })
}

enum Begun {
    /// To be dispatched, with its sequence if it has QoS 1 or 2.
    New(Option<u64>),
    /// To be dispatched to sinks alone: sessions have it from before a restart.
    Sinks(u64),
    /// Dispatched before.
    Repeated,
    /// Too many wait.
    Limit,
}
