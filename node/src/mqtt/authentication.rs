//! The way from CONNECT to CONNACK through authentication, and authenticating again in a session
//! (MQTT-5.0 4.12).
//!
//! Who may come in is decided by [`Access`](crate::access::Access); here are the packets, the times and what
//! a client is told. While a CONNECT is decided on, nothing else of the connection is read, except the AUTH
//! packets of a conversation.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use causeway_protocol::mqtt::{Auth, Packet, QoS, ReasonCode, UserProperties, Version};
use tokio::{sync::futures::OwnedNotified, time::Instant};

use super::{
    connection::{Connection, End, Phase, Work},
    handshake::Prepared,
    shared::{Client, Shared},
};
use crate::access::{
    Admitted, Allowed, Answer, CertificateNames, Credentials, DenyAction, Exchange, Pending, Permissions,
    Refusal, Step,
};
use crate::flow::Origin;

/// A CONNECT that is being decided on.
pub(crate) struct Authenticating {
    waits: Waits,
    connect: Prepared,
    deadline: Instant,
    stop: Pin<Box<OwnedNotified>>,
}

/// Reason to wait.
enum Waits {
    /// A check.
    Check(Pending),
    /// The client's next AUTH.
    Client(Exchange),
    /// The moment at which it is told that it may not come in.
    Refusal(ReasonCode),
}

/// Knowledge of a connection about its client's rights. Clients that may do everything for ever have none.
pub(crate) struct ClientAccess {
    permissions: Permissions,
    /// When the connection has to end.
    expires: Option<Instant>,
    /// The authentication method of the CONNECT.
    method: Option<Box<str>>,
    /// Authenticating again, and until when.
    again: Option<(Exchange, Instant)>,
}

impl ClientAccess {
    fn new(admitted: Admitted, method: Option<Box<str>>) -> Option<Box<Self>> {
        let Admitted { permissions, expires, .. } = admitted;
        if permissions.are_all() && expires.is_none() && method.is_none() {
            return None;
        }
        Some(Box::new(Self { permissions, expires, method, again: None }))
    }

    /// Verdict on the client's publications to `topic`.
    pub(super) fn publish(&self, origin: &Origin, topic: &str) -> Allowed {
        self.permissions.publish(origin, topic)
    }

    /// Filters of a resumed session that its client may not subscribe to with any QoS.
    pub(super) fn denied_filters<'f>(
        &self,
        origin: &Origin,
        filters: impl Iterator<Item = &'f str>,
    ) -> Vec<Box<str>> {
        let levels = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
        let denied =
            |filter: &&str| !levels.iter().any(|qos| self.permissions.may_subscribe(origin, filter, *qos));
        filters.filter(denied).map(Box::from).collect()
    }

    /// The method, for CONNACK.
    pub(super) fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// The next moment at which something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let again = self.again.as_ref().map(|(_, until)| *until);
        [self.expires, again].into_iter().flatten().min()
    }

    /// Ends the connection where its time is over.
    pub(super) fn check_time(&self, now: Instant) -> Result<(), End> {
        if self.expires.is_some_and(|expires| expires <= now) {
            return Err(End::Refused(ReasonCode::MaximumConnectTime));
        }
        match &self.again {
            Some((_, until)) if *until <= now => Err(End::Refused(ReasonCode::NotAuthorized)),
            _ => Ok(()),
        }
    }
}

impl Client {
    /// Whether it may subscribe to `filter`. An error: it is to be disconnected.
    pub(super) fn may_subscribe(
        &self,
        shared: &Shared,
        filter: &str,
        qos: QoS,
        work: &mut Work,
    ) -> Result<bool, End> {
        let Some(access) = &self.access else { return Ok(true) };
        if access.permissions.may_subscribe(&self.origin, filter, qos) {
            return Ok(true);
        }
        work.tally.counts().denied_subscribes += 1;
        shared.refusals.subscription(&self.origin, filter);
        Self::denied(shared).map(|()| false)
    }

    /// Consequence of a publication or subscription that is not allowed.
    pub(super) fn denied(shared: &Shared) -> Result<(), End> {
        match shared.options.access.deny_action() {
            DenyAction::Ignore => Ok(()),
            DenyAction::Disconnect => Err(End::Refused(ReasonCode::NotAuthorized)),
        }
    }
}

impl Authenticating {
    /// Whether the client may be heard.
    pub(super) fn listens(&self) -> bool {
        matches!(self.waits, Waits::Client(_))
    }

    /// When something is due without any event.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The deadline has come.
    pub(super) fn timed_out(&self) -> End {
        let reason = match self.waits {
            Waits::Check(_) => ReasonCode::ServerBusy,
            Waits::Client(_) => ReasonCode::NotAuthorized,
            Waits::Refusal(reason) => reason,
        };
        End::NotConnected(reason, self.connect.version)
    }
}

impl Connection {
    /// Asks who the client is. `connect` and `method` are of its CONNECT.
    pub(super) fn authenticate(
        &mut self,
        mut connect: Prepared,
        username: Option<&str>,
        password: Option<&[u8]>,
        method: Option<(&str, Option<&[u8]>)>,
        work: &mut Work,
    ) -> Result<(), End> {
        let access = self.shared.options.access.clone();
        let credentials = self.credentials(&connect.origin, username, password);
        if let Some((method, data)) = method {
            let step = access.begin(method, data, &credentials);
            connect.method = Some(method.into());
            return self.exchanged(step, connect, work);
        }
        match access.authenticate(&credentials) {
            Answer::Now(Ok(admitted)) => self.admit(connect, admitted, work),
            Answer::Now(Err(refusal)) => self.refuse(refusal, connect, work),
            Answer::Later(check) => {
                self.wait(Waits::Check(check), connect);
                Ok(())
            }
        }
    }

    fn credentials<'a>(
        &'a self,
        origin: &'a Origin,
        username: Option<&'a str>,
        password: Option<&'a [u8]>,
    ) -> Credentials<'a> {
        let certificate = self.peer.certificate.as_deref();
        Credentials {
            client_id: &origin.client_id,
            username,
            password,
            peer: self.peer.address,
            listener: self.listener(),
            certificate: certificate.map(|certificate| CertificateNames {
                common_name: certificate.common_name.as_deref(),
                subject: &certificate.subject,
            }),
        }
    }

    fn wait(&mut self, waits: Waits, connect: Prepared) {
        let deadline = Instant::now() + self.shared.options.connect_timeout;
        self.wait_until(deadline, waits, connect);
    }

    fn wait_until(&mut self, deadline: Instant, waits: Waits, connect: Prepared) {
        let stop = Box::pin(self.shared.stop.clone().notified_owned());
        self.phase = Phase::Authenticating(Box::new(Authenticating { waits, connect, deadline, stop }));
    }

    /// Tells the client that it may not come in, when it is time for that.
    fn refuse(&mut self, refusal: Refusal, connect: Prepared, work: &mut Work) -> Result<(), End> {
        let counts = work.tally.counts();
        match refusal.reason {
            ReasonCode::ServerBusy => counts.authentication_busy += 1,
            _ => counts.authentication_failed += 1,
        }
        let why = match refusal.reason {
            ReasonCode::ServerBusy => "too many logins are being checked",
            ReasonCode::ServerUnavailable => "its login could not be checked",
            ReasonCode::Banned => "its address is banned",
            ReasonCode::BadAuthenticationMethod => "its authentication method is not offered",
            _ => "authentication failed",
        };
        self.note_refused(&connect.origin, refusal.reason, why);
        if refusal.delay.is_zero() {
            return Err(End::NotConnected(refusal.reason, connect.version));
        }
        self.wait_until(Instant::now() + refusal.delay, Waits::Refusal(refusal.reason), connect);
        Ok(())
    }

    /// The client is who it says.
    fn admit(&mut self, mut connect: Prepared, admitted: Admitted, work: &mut Work) -> Result<(), End> {
        if let Some(username) = &admitted.username {
            connect.rename(username.clone());
        }
        if let Some(will) = connect.will() {
            let allowed = admitted.permissions.publish(&connect.origin, &will.topic);
            if !allowed.contains(will.qos, will.retain) {
                // Told now, while the client listens, and not when it is too late.
                work.tally.counts().denied_publishes += 1;
                self.shared.refusals.publication(&connect.origin, &will.topic, "will");
                return Err(End::NotConnected(ReasonCode::NotAuthorized, connect.version));
            }
        }
        connect.access = ClientAccess::new(admitted, connect.method.take());
        self.claim(connect, work)
    }

    fn exchanged(
        &mut self,
        step: Result<Step, Refusal>,
        mut connect: Prepared,
        work: &mut Work,
    ) -> Result<(), End> {
        match step {
            Ok(Step::Continue(exchange, data)) => {
                let maximum = connect.maximum_packet_size();
                self.send_auth(
                    ReasonCode::ContinueAuthentication,
                    connect.method.as_deref(),
                    &data,
                    maximum,
                )?;
                self.wait(Waits::Client(exchange), connect);
                Ok(())
            }
            Ok(Step::Done(admitted, data)) => {
                connect.last_word = Some(data.into());
                self.admit(connect, admitted, work)
            }
            Err(refusal) => self.refuse(refusal, connect, work),
        }
    }

    fn send_auth(
        &mut self,
        reason: ReasonCode,
        method: Option<&str>,
        data: &[u8],
        maximum: u32,
    ) -> Result<(), End> {
        let auth = Packet::Auth(Auth {
            reason,
            authentication_method: method,
            authentication_data: Some(data),
            reason_string: None,
            user_properties: UserProperties::default(),
        });
        self.out.packet(Version::V5, maximum, &auth).map_err(|error| {
            tracing::debug!(peer = %self.peer.address, %error, "AUTH not sent");
            End::Gone
        })
    }

    /// Looks whether what a CONNECT waits for has come. True: something happened.
    pub(super) fn poll_authentication(&mut self, cx: &mut Context<'_>, work: &mut Work) -> Result<bool, End> {
        let Phase::Authenticating(authenticating) = &mut self.phase else { return Ok(false) };
        let stops = authenticating.stop.as_mut().poll(cx).is_ready();
        if stops || self.shared.stopping.load(Ordering::Acquire) {
            return Err(End::Gone);
        }
        let Waits::Check(check) = &mut authenticating.waits else { return Ok(false) };
        let Poll::Ready(verdict) = check.as_mut().poll(cx) else { return Ok(false) };
        let connect = self.decided()?.connect;
        match verdict {
            Ok(admitted) => self.admit(connect, admitted, work)?,
            Err(refusal) => self.refuse(refusal, connect, work)?,
        }
        Ok(true)
    }

    /// Ends the phase.
    fn decided(&mut self) -> Result<Box<Authenticating>, End> {
        match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Authenticating(authenticating) => Ok(authenticating),
            _ => Err(End::Gone),
        }
    }

    /// A packet while a conversation before CONNACK is under way: only AUTH and DISCONNECT may come.
    pub(super) fn handle_before_connack(&mut self, packet: &Packet<'_>, work: &mut Work) -> Result<(), End> {
        let Authenticating { waits, connect, .. } = *self.decided()?;
        let refused = Err(End::NotConnected(ReasonCode::ProtocolError, connect.version));
        match (packet, waits) {
            (Packet::Disconnect(_), _) => Err(End::Gone),
            (Packet::Auth(auth), Waits::Client(exchange)) => {
                let same = auth.authentication_method == connect.method.as_deref();
                if auth.reason != ReasonCode::ContinueAuthentication || !same {
                    work.tally.counts().protocol_errors += 1;
                    return refused;
                }
                self.exchanged(exchange.answer(auth.authentication_data), connect, work)
            }
            _ => {
                work.tally.counts().protocol_errors += 1;
                refused
            }
        }
    }

    /// AUTH in a session (MQTT-5.0 4.12.1). What the client may do stays as it is until the end of it.
    pub(super) fn handle_auth(&mut self, auth: &Auth<'_>, work: &mut Work) -> Result<(), End> {
        let wrong = Err(End::Refused(ReasonCode::ProtocolError));
        let access = self.shared.options.access.clone();
        let until = Instant::now() + self.shared.options.connect_timeout;
        let Some(client) = self.client.as_deref_mut() else { return Err(End::Gone) };
        let Some(own) = client.access.as_deref_mut() else { return wrong };
        // MQTT-4.12.1-1: the method of the CONNECT, and none where that had none (MQTT-4.12.0-6).
        if own.method.is_none() || own.method() != auth.authentication_method {
            return wrong;
        }
        let (origin, maximum) = (client.origin.clone(), client.limits.maximum_packet_size);
        let step = match (auth.reason, own.again.take()) {
            (ReasonCode::ReAuthenticate, None) => {
                let method = auth.authentication_method.unwrap_or_default();
                access.begin(method, auth.authentication_data, &self.credentials(&origin, None, None))
            }
            (ReasonCode::ContinueAuthentication, Some((exchange, _))) => {
                exchange.answer(auth.authentication_data)
            }
            _ => return wrong,
        };
        let method = auth.authentication_method;
        match step {
            Ok(Step::Continue(exchange, data)) => {
                if let Some(own) = self.client.as_deref_mut().and_then(|client| client.access.as_deref_mut())
                {
                    own.again = Some((exchange, until));
                }
                self.send_auth(ReasonCode::ContinueAuthentication, method, &data, maximum)
            }
            Ok(Step::Done(admitted, data)) => {
                // The session is that of the user who began it.
                let same = admitted.username.as_ref().is_none_or(|name| *name == origin.username);
                let client = self.client.as_deref_mut().filter(|_| same);
                let Some(client) = client else {
                    work.tally.counts().authentication_failed += 1;
                    return Err(End::Refused(ReasonCode::NotAuthorized));
                };
                client.access = ClientAccess::new(admitted, method.map(Box::from));
                client.routes = None;
                self.send_auth(ReasonCode::Success, method, &data, maximum)
            }
            Err(refusal) => {
                work.tally.counts().authentication_failed += 1;
                self.note_refused(&origin, refusal.reason, "it could not authenticate again");
                // DISCONNECT has fewer reasons than CONNACK (MQTT-5.0 3.14.2.1).
                Err(End::Refused(match refusal.reason {
                    ReasonCode::ServerBusy => ReasonCode::ServerBusy,
                    _ => ReasonCode::NotAuthorized,
                }))
            }
        }
    }
}
