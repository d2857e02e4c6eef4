//! Everything a connected client asks for except to publish: subscriptions, acknowledgements of
//! deliveries, ping, DISCONNECT.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use causeway_protocol::mqtt::{
    Disconnect, Packet, QoS, ReasonCode, RetainHandling, SubAck, SubscribeFilter, UserProperties, Version,
    topic,
};

use super::{
    connection::{End, Work},
    explain::explain,
    inbox::Forgotten,
    memory::Pressure,
    out_buffer::OutBuffer,
    publication::{Delivery, Publication, Via},
    router::Router,
    session::{Awaited, OutOfPlace, Output, Session},
    shared::{Client, Shared},
    store::Op,
    stored::Held,
};
use crate::flow::{HandOver, Mark, Ticket};

/// Acts on one packet.
pub(super) fn handle(
    shared: &Shared,
    client: &mut Client,
    buffer: &mut OutBuffer,
    work: &mut Work,
    packet: Packet<'_>,
) -> Result<(), End> {
    let version = client.version();
    match packet {
        Packet::PingReq => put(client, buffer, &Packet::PingResp),
        Packet::Subscribe(subscribe) => {
            let identifier = subscribe.subscription_identifier;
            let mut reasons = smallvec::SmallVec::new();
            for filter in &subscribe.filters {
                reasons.push(client.subscribe(shared, filter, identifier, work)?);
            }
            let text = client.problem_information.then(|| why(&subscribe.filters, &reasons)).flatten();
            let answer =
                SubAck { reason_string: text.as_deref(), ..answer(subscribe.packet_identifier, reasons) };
            confirm(client, buffer, &Packet::SubAck(answer))
        }
        Packet::Unsubscribe(unsubscribe) => {
            let reasons =
                unsubscribe.filters.iter().map(|filter| client.unsubscribe(shared, filter)).collect();
            confirm(client, buffer, &Packet::UnsubAck(answer(unsubscribe.packet_identifier, reasons)))
        }
        Packet::Disconnect(disconnect) => Err(client.disconnect(shared, &disconnect)),
        Packet::PubAck(ack) => {
            let Some(session) = client.lease.session() else { return Err(End::Gone) };
            session.puback(ack.packet_identifier, ack.reason).map_err(out_of_place)
        }
        Packet::PubRec(ack) => {
            let Some(session) = client.lease.session() else { return Err(End::Gone) };
            let mut out = Output { buffer, tally: &mut work.tally, now: work.steady };
            session.pubrec(ack.packet_identifier, ack.reason, &mut out).map_err(out_of_place)
        }
        Packet::PubComp(ack) => {
            let Some(session) = client.lease.session() else { return Err(End::Gone) };
            session.pubcomp(ack.packet_identifier).map_err(out_of_place)
        }
        Packet::PubRel(ack) => {
            let identifier = ack.packet_identifier;
            let Some(session) = client.lease.session() else { return Err(End::Gone) };
            if session.tracker.is_pending(identifier) {
                return Err(End::Refused(ReasonCode::ProtocolError));
            }
            if let Some(durable) = &mut session.durable {
                let mark = Mark { session: durable.stored.id, identifier };
                let restored = durable.stored.restored;
                let inbox = &client.inbox;
                let then = || {
                    let forgotten = Arc::new(Forgotten(inbox.clone()));
                    HandOver::new(Ticket::new(forgotten, durable.begin_release(identifier)))
                };
                // Before the client may use the identifier for something else.
                if shared.router.releases().release(mark, restored, then) {
                    return Ok(());
                }
            }
            let mut out = Output { buffer, tally: &mut work.tally, now: work.steady };
            session.released(identifier, version, &mut out);
            Ok(())
        }
        // AUTH was dealt with before, and the rest is for servers to send.
        Packet::Auth(_)
        | Packet::Connect(_)
        | Packet::ConnAck(_)
        | Packet::Publish(_)
        | Packet::SubAck(_)
        | Packet::UnsubAck(_)
        | Packet::PingResp => Err(End::Refused(ReasonCode::ProtocolError)),
    }
}

fn out_of_place(_: OutOfPlace) -> End {
    End::Refused(ReasonCode::ProtocolError)
}

fn answer<'a>(packet_identifier: u16, reasons: smallvec::SmallVec<[ReasonCode; 4]>) -> SubAck<'a> {
    SubAck { packet_identifier, reason_string: None, user_properties: UserProperties::default(), reasons }
}

/// Adds a subscription that the client may have, and the retained messages that come with it.
pub(super) fn subscribe(
    router: &Router,
    session: &mut Session,
    wanted: &SubscribeFilter<'_>,
    identifier: Option<u32>,
    now: i64,
) {
    let SubscribeFilter { filter, options } = *wanted;
    let new = router.subscribe(&session.inbox, filter, options, identifier);
    if new {
        session.subscribed(filter);
    }
    if let Some(durable) = &mut session.durable {
        let session = durable.stored.number;
        durable.put(Op::Subscribe { session, filter: filter.into(), options, identifier });
    }
    let send_retained = match options.retain_handling {
        RetainHandling::Send => true,
        RetainHandling::SendIfNew => new,
        RetainHandling::DoNotSend => false,
    };
    // None for a shared subscription (MQTT-5.0 4.8.2).
    if send_retained && !topic::is_shared(filter) {
        // An earlier wait for the same is over, and begins anew where it must.
        session.cancel_awaited(filter);
        let before = router.retained_before();
        let awaited = Awaited { filter: filter.into(), qos: options.qos, identifier, before };
        let room = session.retained_room();
        match router.retained_matching(filter, before, now, room.unwrap_or(usize::MAX)) {
            Some(matching) => {
                if room.is_some() {
                    session.count_added(matching.len());
                }
                session.deliver_retained(deliveries(&awaited, matching), None);
            }
            None => session.await_retained(awaited),
        }
    }
}

/// Retained messages that a client asked for.
fn deliveries(awaited: &Awaited, matching: Vec<Arc<Publication>>) -> impl Iterator<Item = Delivery> + use<> {
    let (via, qos) = (Via::identified(awaited.identifier), awaited.qos);
    matching.into_iter().map(move |publication| {
        let qos = publication.qos.min(qos);
        Delivery { via: via.clone(), retain: true, ..Delivery::new(publication, qos) }
    })
}

/// Goes on with retained messages that were held back, as far as the client has taken others.
pub(super) fn feed_retained(router: &Router, session: &mut Session, now: i64) {
    /// Subscriptions of a turn: each may have to look at many topics.
    const AT_ONCE: usize = 16;
    for _ in 0..AT_ONCE {
        let Some(awaited) = session.next_awaited() else { return };
        let matching =
            router.retained_matching(&awaited.filter, awaited.before, now, usize::MAX).unwrap_or_default();
        session.deliver_retained(deliveries(&awaited, matching), Some(awaited));
    }
}

/// Ends a subscription; false where there was none.
pub(super) fn unsubscribe(router: &Router, session: &mut Session, filter: &str) -> bool {
    if !session.unsubscribed(filter) || !router.unsubscribe(session.inbox.id(), filter) {
        return false;
    }
    if let Some(durable) = &mut session.durable {
        durable.put(Op::Unsubscribe { session: durable.stored.number, filter: filter.into() });
    }
    true
}

/// Reason string of a SUBACK for the first filter that was refused.
fn why(filters: &[SubscribeFilter<'_>], reasons: &[ReasonCode]) -> Option<String> {
    /// Of a longer filter the beginning is shown.
    const SHOWN: usize = 200;
    let (filter, reason) = filters.iter().zip(reasons).find(|(_, reason)| reason.is_error())?;
    let shown: String = filter.filter.chars().take(SHOWN).collect();
    Some(format!("{shown}: {}", explain(*reason)?))
}

/// Answers a change of subscriptions, which a stored session has on the disk first.
fn confirm(client: &mut Client, buffer: &mut OutBuffer, packet: &Packet<'_>) -> Result<(), End> {
    if client.inbox.stored().is_none() {
        return put(client, buffer, packet);
    }
    let limits = client.limits;
    let mut bytes = BytesMut::new();
    let encoded = packet.encode_within(limits.version, limits.maximum_packet_size, &mut bytes);
    if encoded.is_err() {
        return Err(End::Refused(ReasonCode::PacketTooLarge));
    }
    if let Some(durable) = client.lease.session().and_then(|session| session.durable.as_mut()) {
        durable.hold(Held::Packet(bytes.freeze()));
    }
    Ok(())
}

fn put(client: &Client, buffer: &mut OutBuffer, packet: &Packet<'_>) -> Result<(), End> {
    let limits = client.limits;
    buffer.packet(limits.version, limits.maximum_packet_size, packet).map_err(|error| {
        // A client that takes no answer of this size cannot be served.
        tracing::debug!(client_id = &*client.origin.client_id, %error, "answer not sent");
        End::Refused(ReasonCode::PacketTooLarge)
    })
}

impl Client {
    /// One filter of a SUBSCRIBE: the reason for the SUBACK. Retained messages follow behind it.
    fn subscribe(
        &mut self,
        shared: &Shared,
        wanted: &SubscribeFilter<'_>,
        identifier: Option<u32>,
        work: &mut Work,
    ) -> Result<ReasonCode, End> {
        let SubscribeFilter { filter, options } = *wanted;
        if !self.may_subscribe(shared, filter, options.qos, work)? {
            return Ok(ReasonCode::NotAuthorized);
        }
        Ok(self.subscribe_allowed(shared, wanted, identifier, work.steady))
    }

    fn subscribe_allowed(
        &mut self,
        shared: &Shared,
        wanted: &SubscribeFilter<'_>,
        identifier: Option<u32>,
        now: i64,
    ) -> ReasonCode {
        let SubscribeFilter { filter, mut options } = *wanted;
        let switches = &shared.options;
        let plain = match topic::parse_shared(filter) {
            Some(_) if !switches.shared_subscription => return ReasonCode::SharedSubscriptionsNotSupported,
            Some((_, plain)) => plain,
            None => filter,
        };
        if !switches.wildcard_subscription && topic::has_wildcard(plain) {
            return ReasonCode::WildcardSubscriptionsNotSupported;
        }
        options.qos = options.qos.min(switches.max_qos);
        let Some(session) = self.lease.session() else { return ReasonCode::UnspecifiedError };
        if session.filters.len() >= shared.options.max_subscriptions && !session.filters.contains(filter) {
            return ReasonCode::QuotaExceeded;
        }
        if shared.router.memory().pressure() != Pressure::None {
            return ReasonCode::QuotaExceeded;
        }
        subscribe(&shared.router, session, &SubscribeFilter { filter, options }, identifier, now);
        match options.qos {
            QoS::AtMostOnce => ReasonCode::Success,
            QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
            QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
        }
    }

    fn unsubscribe(&mut self, shared: &Shared, filter: &str) -> ReasonCode {
        let Some(session) = self.lease.session() else { return ReasonCode::UnspecifiedError };
        if unsubscribe(&shared.router, session, filter) {
            ReasonCode::Success
        } else {
            ReasonCode::NoSubscriptionExisted
        }
    }

    /// DISCONNECT (MQTT-5.0 3.14.4): the will goes, unless the client wants it published.
    fn disconnect(&mut self, shared: &Shared, disconnect: &Disconnect<'_>) -> End {
        if let Some(seconds) = disconnect.session_expiry_interval
            && self.version() == Version::V5
        {
            if self.ends_with_connection && seconds > 0 {
                return End::Refused(ReasonCode::ProtocolError);
            }
            let expiry = Duration::from_secs(u64::from(seconds)).min(shared.options.max_session_expiry);
            self.lease.ending().expiry = (seconds > 0).then_some(expiry);
        }
        // Any other reason than a normal end leaves the will (MQTT-3.14.4-3).
        if disconnect.reason == ReasonCode::Success { End::Disconnected } else { End::Gone }
    }
}
