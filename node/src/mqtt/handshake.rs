//! CONNECT and CONNACK (MQTT-5.0 3.1, 3.2): which session the client gets, and what it is told. Who it is is
//! asked in between, in [`super::authentication`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use causeway_protocol::mqtt::{
    ConnAck, Connect, Packet, QoS, ReasonCode, UserProperties, Version, Will as WillPacket,
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    authentication::ClientAccess,
    connection::{Connection, End, Phase, Work},
    explain::explain,
    keeper::{Claim, Claimed, Granted},
    options::{CertificateUsername, Options},
    requests,
    session::{ClientLimits, Output},
    shared::Client,
    store::Presence,
    sys,
    will::{OwnedMessage, Will},
};
use crate::flow::{Origin, Ticket};

/// Parts of the CONNECT packet that outlive it.
pub(crate) struct Prepared {
    pub(crate) version: Version,
    pub(super) origin: Arc<Origin>,
    clean_start: bool,
    assigned: bool,
    keep_alive: u16,
    limits: ClientLimits,
    will: Option<Box<Will>>,
    expiry: Option<Duration>,
    /// The expiry to announce, where it is not the one asked for.
    shortened: Option<u32>,
    /// The keep-alive to announce, where it is not the one asked for.
    server_keep_alive: Option<u16>,
    wants_response_information: bool,
    problem_information: bool,
    topic_alias_maximum: u16,
    /// How often users had lost their rights when it arrived.
    revocations: u64,
    /// The authentication method.
    pub(super) method: Option<Box<str>>,
    /// Authentication data for CONNACK.
    pub(super) last_word: Option<Box<[u8]>>,
    /// Rights of the client, once they are known.
    pub(super) access: Option<Box<ClientAccess>>,
}

impl Prepared {
    /// The client's user name is another than the one of its CONNECT.
    pub(super) fn rename(&mut self, username: Option<Box<str>>) {
        let origin = Arc::new(Origin { username, ..(*self.origin).clone() });
        if let Some(will) = &mut self.will {
            will.message.origin = origin.clone();
        }
        self.origin = origin;
    }

    /// The message of its will.
    pub(super) fn will(&self) -> Option<&OwnedMessage> {
        self.will.as_deref().map(|will| &will.message)
    }

    /// The largest packet that the client takes.
    pub(super) fn maximum_packet_size(&self) -> u32 {
        self.limits.maximum_packet_size
    }
}

/// A CONNECT that waits for another connection to let go of the session.
pub(crate) struct Claiming {
    pub(crate) granted: oneshot::Receiver<Granted>,
    pub(crate) connect: Prepared,
    pub(crate) deadline: Instant,
}

impl Connection {
    /// A CONNECT arrived.
    pub(super) fn connect(&mut self, connect: &Connect<'_>, work: &mut Work) -> Result<(), End> {
        let version = connect.version;
        let refuse = |reason| Err(End::NotConnected(reason, version));
        if self.shared.stopping.load(Ordering::Relaxed) {
            return refuse(ReasonCode::ServerShuttingDown);
        }
        if connect.client_id.is_empty() && version != Version::V5 && !connect.clean_start {
            // MQTT-3.1.3-8: without an id there is nothing to find the session by.
            return refuse(ReasonCode::ClientIdentifierNotValid);
        }
        work.client_maximum = Some(connect.maximum_packet_size.unwrap_or(u32::MAX));
        if let Some(reason) =
            connect.will.as_ref().and_then(|will| will_not_supported(will, &self.shared.options))
        {
            return refuse(reason);
        }
        let prepared = self.prepare(connect);
        self.decoder.version = Some(version);
        if prepared.expiry.is_some() && self.shared.router.store().is_some_and(|store| store.has_failed()) {
            // A session that lasts cannot be had until the disk is seen to.
            return refuse(ReasonCode::ServerUnavailable);
        }
        let method = connect.authentication_method.map(|method| (method, connect.authentication_data));
        let named = self.username_by_certificate().map(Box::<str>::from);
        let username = named.as_deref().or(connect.username);
        self.authenticate(prepared, username, connect.password, method, work)
    }

    /// The client may come in: asks for its session.
    pub(super) fn claim(&mut self, prepared: Prepared, work: &mut Work) -> Result<(), End> {
        let Origin { client_id, username, .. } = &*prepared.origin;
        let claimed = Claimed {
            client_id,
            username: username.as_deref(),
            known: self.shared.options.access.knows_users() || self.username_by_certificate().is_some(),
            clean_start: prepared.clean_start,
            lasts: prepared.expiry.is_some(),
        };
        match self.shared.keeper.claim(&claimed) {
            Claim::Granted(granted) => self.accept(granted, prepared, work),
            Claim::Wait(granted) => {
                let deadline = Instant::now() + self.shared.options.connect_timeout;
                let claiming = Claiming { granted, connect: prepared, deadline };
                self.phase = Phase::Claiming(Box::new(claiming));
                Ok(())
            }
            Claim::Refused => {
                self.note_refused(&prepared.origin, ReasonCode::QuotaExceeded, "max_sessions is reached");
                Err(End::NotConnected(ReasonCode::QuotaExceeded, prepared.version))
            }
            Claim::NotYours => {
                let why = "the session of this client id is another user's";
                self.note_refused(&prepared.origin, ReasonCode::ClientIdentifierNotValid, why);
                Err(End::NotConnected(ReasonCode::ClientIdentifierNotValid, prepared.version))
            }
        }
    }

    /// Tells that a client is not let in.
    pub(super) fn note_refused(&self, origin: &Origin, reason: ReasonCode, why: &str) {
        self.shared.refusals.client(origin, self.listener(), reason, why);
    }

    fn prepare(&self, connect: &Connect<'_>) -> Prepared {
        let options = &self.shared.options;
        let assigned = connect.client_id.is_empty();
        let client_id: Box<str> = if assigned {
            format!("causeway-{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()).into()
        } else {
            connect.client_id.into()
        };
        let username = self.username_by_certificate().or(connect.username).map(Box::from);
        let origin = Arc::new(Origin { client_id, username, peer: Some(self.peer.address) });
        let (expiry, shortened) = session_expiry(connect, options);
        let (keep_alive, server_keep_alive) = keep_alive(connect, options);
        Prepared {
            version: connect.version,
            clean_start: connect.clean_start,
            assigned,
            keep_alive,
            server_keep_alive,
            wants_response_information: connect.request_response_information,
            problem_information: connect.request_problem_information,
            topic_alias_maximum: connect.topic_alias_maximum.min(options.topic_alias_maximum_out),
            limits: ClientLimits {
                version: connect.version,
                maximum_packet_size: connect.maximum_packet_size.unwrap_or(u32::MAX),
                window: usize::from(connect.receive_maximum.min(options.max_inflight)).max(1),
            },
            will: connect
                .will
                .as_ref()
                .map(|will| Box::new(Will::new(will, &origin, self.shared.router.memory()))),
            origin,
            expiry,
            shortened,
            revocations: self.shared.options.access.revocations(),
            method: None,
            last_word: None,
            access: None,
        }
    }

    /// The user name that the client's certificate gives it, where its listener says so.
    pub(super) fn username_by_certificate(&self) -> Option<&str> {
        let certificate = self.peer.certificate.as_deref()?;
        match self.certificate_username() {
            CertificateUsername::Disabled => None,
            CertificateUsername::CommonName => certificate.common_name.as_deref(),
            CertificateUsername::Subject => Some(&certificate.subject),
        }
    }

    /// The other connection has let go, or a third one was faster.
    pub(super) fn claimed(&mut self, granted: Option<Granted>, work: &mut Work) -> Result<(), End> {
        let Phase::Claiming(claiming) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return Err(End::Gone);
        };
        match granted {
            Some(granted) => self.accept(granted, claiming.connect, work),
            None => {
                // Taken over before it began.
                Err(End::NotConnected(ReasonCode::ServerBusy, claiming.connect.version))
            }
        }
    }

    fn accept(&mut self, granted: Granted, connect: Prepared, work: &mut Work) -> Result<(), End> {
        let Granted { mut lease, present } = granted;
        let Some(session) = lease.session() else { return Err(End::Gone) };
        let inbox = session.inbox.clone();
        let acknowledgement = conn_ack(&self.shared.options, &connect, present);
        let maximum = connect.limits.maximum_packet_size;
        if let Err(error) = self.out.packet(connect.version, maximum, &acknowledgement) {
            tracing::debug!(listener = self.listener(), peer = %self.peer.address, %error, "CONNACK not sent");
            return Err(End::Gone);
        }
        self.out.use_aliases(connect.topic_alias_maximum);
        if present && let Some(access) = &connect.access {
            // The client id may be another user's: its subscriptions are not for others.
            for filter in
                access.denied_filters(&connect.origin, session.filters.iter().map(|filter| &**filter))
            {
                requests::unsubscribe(&self.shared.router, session, &filter);
                work.tally.counts().denied_subscribes += 1;
            }
        }
        session.connected(connect.limits);
        session.inbox.record(connect.expiry, Presence::Connected, connect.will.as_deref());
        if present {
            session.resumed();
        }
        let mut out = Output { buffer: &mut self.out, tally: &mut work.tally, now: work.steady };
        session.pump(&mut out);
        let ending = lease.ending();
        ending.expiry = connect.expiry;
        ending.will = connect.will;
        // A request to close the connection may have come before there was one.
        if self.shared.keeper.is_claimed(&inbox) {
            inbox.close_connection(ReasonCode::SessionTakenOver);
        }
        if self.shared.stopping.load(Ordering::Acquire) {
            inbox.close_connection(ReasonCode::ServerShuttingDown);
        }
        let access = &self.shared.options.access;
        if access.revocations() != connect.revocations
            && inbox.owner().is_some_and(|owner| access.is_revoked_since(connect.revocations, owner))
        {
            // While it was on its way in.
            inbox.close_connection(ReasonCode::AdministrativeAction);
        }
        let grace = |seconds: u16| Duration::from_millis(u64::from(seconds) * 1500);
        self.client = Some(Box::new(Client {
            lease,
            ticket: Ticket::new(inbox.clone(), 0),
            inbox,
            limits: connect.limits,
            access: connect.access,
            origin: connect.origin,
            routes: None,
            aliases: Vec::new(),
            problem_information: connect.problem_information,
            parked: None,
            // MQTT-3.1.2-22.
            keep_alive: (connect.keep_alive > 0).then(|| grace(connect.keep_alive)),
            ends_with_connection: connect.expiry.is_none(),
            watch: None,
            departure: None,
        }));
        self.phase = Phase::Running;
        if let Some(client) = &self.client {
            sys::client_event(&self.shared, &client.origin, client.version(), sys::Event::Connected);
        }
        Ok(())
    }

    /// A CONNACK with a failure, where the version has one for it.
    ///
    /// `maximum` is the largest packet that the client takes, where that is known.
    pub(super) fn refuse_connection(&mut self, reason: ReasonCode, version: Version, maximum: Option<u32>) {
        let reason_string = maximum.and_then(|_| explain(reason));
        let acknowledgement = ConnAck { reason, reason_string, ..empty() };
        let maximum = maximum.unwrap_or(u32::MAX);
        if let Err(error) = self.out.packet(version, maximum, &Packet::ConnAck(Box::new(acknowledgement))) {
            tracing::debug!(listener = self.listener(), peer = %self.peer.address, %error, "refused without a CONNACK");
        }
    }
}

/// How long the session outlives the connection, and what an MQTT 5 client is told if that is less than it
/// asked for.
fn session_expiry(connect: &Connect<'_>, options: &Options) -> (Option<Duration>, Option<u32>) {
    if connect.version != Version::V5 {
        return ((!connect.clean_start).then_some(options.session_expiry), None);
    }
    let maximum = u32::try_from(options.max_session_expiry.as_secs()).unwrap_or(u32::MAX);
    let seconds = connect.session_expiry_interval.min(maximum);
    let shortened = (seconds < connect.session_expiry_interval).then_some(seconds);
    ((seconds > 0).then(|| Duration::from_secs(u64::from(seconds))), shortened)
}

/// The keep-alive that holds, and what an MQTT 5 client is told if that is not the one it asked for.
fn keep_alive(connect: &Connect<'_>, options: &Options) -> (u16, Option<u16>) {
    let Connect { version, keep_alive, .. } = *connect;
    let maximum = options.max_keep_alive;
    if version == Version::V5 && maximum > 0 && (keep_alive == 0 || keep_alive > maximum) {
        (maximum, Some(maximum))
    } else {
        (keep_alive, None)
    }
}

/// Why this will is refused, if it is.
fn will_not_supported(will: &WillPacket<'_>, options: &Options) -> Option<ReasonCode> {
    let declared = will.properties.payload_format_indicator == Some(1);
    if will.topic.starts_with(sys::PREFIX) {
        Some(ReasonCode::NotAuthorized)
    } else if will.qos > options.max_qos {
        Some(ReasonCode::QoSNotSupported)
    } else if will.retain && !options.retain_available {
        Some(ReasonCode::RetainNotSupported)
    } else if declared && options.payload_format_validation && std::str::from_utf8(will.payload).is_err() {
        Some(ReasonCode::PayloadFormatInvalid)
    } else {
        None
    }
}

fn empty<'a>() -> ConnAck<'a> {
    ConnAck {
        session_present: false,
        reason: ReasonCode::Success,
        session_expiry_interval: None,
        receive_maximum: None,
        maximum_qos: None,
        retain_available: None,
        maximum_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_maximum: None,
        reason_string: None,
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
        user_properties: UserProperties::default(),
    }
}

/// Success, with our limits where the client is to know them.
fn conn_ack<'a>(options: &'a Options, connect: &'a Prepared, present: bool) -> Packet<'a> {
    Packet::ConnAck(Box::new(ConnAck {
        session_present: present,
        session_expiry_interval: connect.shortened,
        receive_maximum: Some(options.receive_maximum.max(1)),
        maximum_packet_size: Some(options.max_packet_size),
        assigned_client_identifier: connect.assigned.then_some(&*connect.origin.client_id),
        topic_alias_maximum: Some(options.topic_alias_maximum),
        maximum_qos: (options.max_qos != QoS::ExactlyOnce).then_some(options.max_qos),
        retain_available: (!options.retain_available).then_some(false),
        wildcard_subscription_available: (!options.wildcard_subscription).then_some(false),
        shared_subscription_available: (!options.shared_subscription).then_some(false),
        server_keep_alive: connect.server_keep_alive,
        response_information: Some(&*options.response_information)
            .filter(|text| connect.wants_response_information && !text.is_empty()),
        authentication_method: connect.access.as_ref().and_then(|access| access.method()),
        authentication_data: connect.last_word.as_deref(),
        ..empty()
    }))
}
