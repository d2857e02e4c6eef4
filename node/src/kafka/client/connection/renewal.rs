//! Renewing a login before it lapses (KIP-368), on the connection as it is.
//!
//! A broker that limits a session (`connections.max.reauth.ms`, or the life of a token) closes the connection
//! at the first request after its end. So, at a random 85 to 95 % of it, new requests are held, those under
//! way are answered, the login is made again, and what was held follows.
//!
//! Invariants:
//! * Between the handshake of a renewal and its end nothing else is on the wire: Kafka asks for that.
//! * A renewal that fails ends the connection, with the broker's reason: its users make another, with
//!   backoff.
//! * A login that lapses too soon to be renewed is given up in time: [`BrokerConnection::is_usable`] is false
//!   then.
//!
//! [`BrokerConnection::is_usable`]: super::BrokerConnection::is_usable

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::protocol::{Request, VersionRange};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::login::{Ask, log_in};
use super::super::wire::encode_body;
use super::super::{Authentication, Error};
use super::{Expect, Held, NEVER, RawRequest, Shared};

/// Kafka takes no two logins of a connection within a second.
const LEAST_INTERVAL: Duration = Duration::from_millis(1_100);
/// Part of a lifetime after which the login is renewed, at least and at most.
const RENEW_FROM: f64 = 0.85;
const RENEW_TO: f64 = 0.95;
/// Part of a lifetime after which a connection whose login was not renewed is not used any more.
const RETIRE: f64 = 0.99;

/// Plan for a login of this lifetime.
#[derive(Debug, PartialEq)]
struct Plan {
    /// When to renew it; `None` where that would be too soon for Kafka.
    renew: Option<Duration>,
    /// When to stop using the connection, where it was not renewed.
    retire: Duration,
}

/// `random` is uniform in 0..1.
fn plan(lifetime: Duration, random: f64) -> Plan {
    let renew = lifetime.mul_f64(RENEW_FROM + (RENEW_TO - RENEW_FROM) * random.clamp(0.0, 1.0));
    let renew = renew.max(LEAST_INTERVAL);
    if renew > lifetime.mul_f64(RENEW_TO) {
        return Plan { renew: None, retire: lifetime.mul_f64(RENEW_FROM) };
    }
    Plan { renew: Some(renew), retire: lifetime.mul_f64(RETIRE) }
}

/// Renews the login of a connection until the connection ends.
pub(super) async fn keep_logged_in(
    shared: Arc<Shared>,
    versions: Arc<HashMap<i16, VersionRange>>,
    authentication: Authentication,
    timeout: Duration,
    mut lifetime: Duration,
) {
    loop {
        let granted = Instant::now();
        let Plan { renew, retire } = plan(lifetime, rand::random());
        let retire_after = (granted + retire).saturating_duration_since(shared.started).as_millis();
        shared.retire_after.store(u64::try_from(retire_after).unwrap_or(NEVER), Ordering::Relaxed);
        let Some(renew) = renew else { return };
        tokio::time::sleep_until(granted + renew).await;
        if shared.ended.load(Ordering::Acquire) {
            return;
        }
        match renewed(&shared, &versions, &authentication, timeout).await {
            Ok(Some(next)) => {
                tracing::debug!(broker = %shared.address, lifetime = ?next, "login renewed");
                lifetime = next;
                shared.release();
            }
            Ok(None) => {
                shared.retire_after.store(NEVER, Ordering::Relaxed);
                return shared.release();
            }
            Err(Failed::Credentials(reason)) => {
                // The login is good for a little longer: what is under way may end well.
                tracing::warn!(broker = %shared.address, %reason, "login cannot be renewed");
                return shared.retire_after.store(0, Ordering::Relaxed);
            }
            Err(Failed::Login(error)) => {
                tracing::warn!(broker = %shared.address, %error, "login was not renewed");
                return shared.end(&error);
            }
        }
    }
}

enum Failed {
    /// There is nothing to log in with.
    Credentials(String),
    /// The broker did not take it, or the connection ended.
    Login(Error),
}

async fn renewed(
    shared: &Shared,
    versions: &HashMap<i16, VersionRange>,
    authentication: &Authentication,
    timeout: Duration,
) -> Result<Option<Duration>, Failed> {
    let conversation = authentication.start(&shared.address.host).await.map_err(Failed::Credentials)?;
    let Some(conversation) = conversation else { return Ok(None) };
    // From here on it is renewed, or it ends; Kafka takes a renewal that comes late, too.
    shared.retire_after.store(NEVER, Ordering::Relaxed);
    shared.hold().await;
    let mut renewing = Renewing { shared };
    let login = log_in(&mut renewing, &shared.address, versions, conversation);
    tokio::time::timeout(timeout, login)
        .await
        .unwrap_or_else(|_| {
            Err(Error::Timeout {
                address: shared.address.clone(),
                what: "the renewed login".into(),
                after: timeout,
            })
        })
        .map_err(Failed::Login)
}

struct Renewing<'a> {
    shared: &'a Shared,
}

impl Ask for Renewing<'_> {
    async fn ask<R: Request + Sync>(&mut self, request: &R, version: i16) -> Result<Bytes, Error> {
        let body = encode_body(&self.shared.address, request, version)?;
        let (sender, receiver) = oneshot::channel();
        let completion = Box::new(move |result| {
            let _ = sender.send(result);
        });
        let raw = RawRequest { api_key: R::KEY, version, body: vec![body], timeout: None };
        self.shared.enqueue(&raw, Expect::Answer(completion), None)?;
        receiver.await.unwrap_or(Err(Error::Closed))
    }
}

impl Shared {
    /// Holds what comes from now on, and waits until all that went before is answered, or the connection
    /// ended.
    async fn hold(&self) {
        let drained = || {
            let state = self.state.lock();
            state.ended.is_some() || state.unanswered.is_empty()
        };
        {
            let mut state = self.state.lock();
            if state.ended.is_none() {
                state.held = Some(Held::default());
            }
        }
        // A permit may be left over from an answer before: it is only a reason to look.
        while !drained() {
            self.drained.notified().await;
        }
    }

    /// Lets what was held follow.
    fn release(&self) {
        {
            let mut state = self.state.lock();
            let Some(held) = state.held.take() else { return };
            state.queue.extend(held.queue);
            state.unanswered.extend(held.unanswered);
        }
        self.wake_writer.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_renewed_well_before_it_lapses_and_not_too_soon_for_kafka() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        assert_eq!(
            plan(minute, 0.0),
            Plan { renew: Some(minute.mul_f64(0.85)), retire: minute.mul_f64(0.99) }
        );
        let latest = plan(minute, 1.0).renew.unwrap();
        assert!(latest > minute.mul_f64(0.949) && latest < minute.mul_f64(0.951), "{latest:?}");
        assert_eq!(plan(second.mul_f64(1.2), 0.0).renew, Some(LEAST_INTERVAL));
        assert_eq!(plan(second, 0.5), Plan { renew: None, retire: second.mul_f64(0.85) });
    }
}
