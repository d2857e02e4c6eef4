//! The log lines about what clients are refused: the first of each reason and then each doubling of it, so
//! that a flood fills no disk and a single one is not overlooked. Everything is counted in
//! [`Stats`](super::stats::Stats) besides.
//!
//! Invariants:
//! * Memory is a number a reason; nothing is kept by client or address.
//! * No password, token or certificate is logged, and no user name that may be a token.
//! * Names that a client gives, of itself or of topics, are cut to [`LONGEST`] and written with its control
//!   characters escaped.

use std::borrow::Cow;
use std::net::SocketAddr;

use causeway_protocol::mqtt::ReasonCode;

use crate::flow::Origin;
use crate::throttle::Doublings;

/// Bytes of a client id, user name or topic that a line shows.
const LONGEST: usize = 128;

/// Bytes of the reason for which an opening failed. Parts of it may be the client's.
const LONGEST_REASON: usize = 300;

/// A step before MQTT that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opening {
    /// The PROXY protocol header.
    Proxy,
    /// The TLS handshake.
    Tls,
    /// The WebSocket request.
    WebSocket,
    /// One of them did not come in time.
    Late,
}

/// The beginning of a text from outside. Fields that are texts are written with control characters escaped.
fn shown(text: &str) -> Cow<'_, str> {
    cut(text, LONGEST)
}

fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return text.into();
    }
    let end = text.floor_char_boundary(longest);
    format!("{}...", text.get(..end).unwrap_or_default()).into()
}

/// Counters that decide which refusals are logged.
pub(crate) struct Refusals {
    /// By reason code.
    clients: Box<[Doublings; 256]>,
    publications: Doublings,
    subscriptions: Doublings,
    openings: [Doublings; 4],
    full: Doublings,
    /// User names may be tokens.
    tokens: bool,
}

impl Refusals {
    /// `tokens`: user names may be tokens, and are not shown.
    pub(crate) fn new(tokens: bool) -> Self {
        Self {
            clients: Box::new(std::array::from_fn(|_| Doublings::default())),
            publications: Doublings::default(),
            subscriptions: Doublings::default(),
            openings: Default::default(),
            full: Doublings::default(),
            tokens,
        }
    }

    /// The user name, unless it may be a token.
    fn user<'a>(&self, origin: &'a Origin) -> Cow<'a, str> {
        match &origin.username {
            None => "".into(),
            Some(name) if self.tokens || name.starts_with("eyJ") => "******".into(),
            Some(name) => shown(name),
        }
    }

    /// A client was not let in.
    pub(crate) fn client(&self, origin: &Origin, listener: &str, reason: ReasonCode, why: &str) {
        let Some(times) = self.clients.get(usize::from(reason as u8)).and_then(Doublings::count) else {
            return;
        };
        tracing::warn!(
            listener,
            peer = peer(origin),
            client_id = &*shown(&origin.client_id),
            username = &*self.user(origin),
            ?reason,
            times,
            "client refused: {why}"
        );
    }

    /// A publication or will was not allowed.
    pub(crate) fn publication(&self, origin: &Origin, topic: &str, what: &str) {
        let Some(times) = self.publications.count() else { return };
        tracing::warn!(
            topic = &*shown(topic),
            peer = peer(origin),
            client_id = &*shown(&origin.client_id),
            username = &*self.user(origin),
            times,
            "{what} denied by the authorization rules"
        );
    }

    /// A subscription was not allowed.
    pub(crate) fn subscription(&self, origin: &Origin, filter: &str) {
        let Some(times) = self.subscriptions.count() else { return };
        tracing::warn!(
            filter = &*shown(filter),
            peer = peer(origin),
            client_id = &*shown(&origin.client_id),
            username = &*self.user(origin),
            times,
            "subscription denied by the authorization rules"
        );
    }

    /// A connection ended before MQTT began. A probe of a load balancer is one, too: no reason to warn.
    pub(crate) fn opening(&self, what: Opening, listener: &str, peer: SocketAddr, why: &str) {
        let Some(times) = self.openings.get(what as usize).and_then(Doublings::count) else { return };
        tracing::info!(listener, %peer, times, why = &*cut(why, LONGEST_REASON), "connection closed before MQTT began");
    }

    /// A listener has as many connections as it may have.
    pub(crate) fn full(&self, listener: &str, peer: SocketAddr) {
        let Some(times) = self.full.count() else { return };
        tracing::warn!(listener, %peer, times, "connection closed: max_connections of the listener is reached");
    }
}

fn peer(origin: &Origin) -> String {
    origin.peer.map(|peer| peer.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// Lines that are logged on this thread during `work`.
    fn logged(tokens: bool, work: impl FnOnce(&Refusals)) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || work(&Refusals::new(tokens)));
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn origin(client_id: &str, username: Option<&str>) -> Origin {
        Origin {
            client_id: client_id.into(),
            username: username.map(Into::into),
            peer: Some("192.0.2.7:5555".parse().unwrap()),
        }
    }

    #[test]
    fn the_first_of_each_reason_is_logged_and_then_each_doubling() {
        let lines = logged(false, |refusals| {
            let origin = origin("c1", Some("ann"));
            for _ in 0..100 {
                refusals.client(&origin, "tcp:default", ReasonCode::BadUserNameOrPassword, "wrong");
            }
            refusals.client(&origin, "tcp:default", ReasonCode::NotAuthorized, "no");
            for _ in 0..5 {
                refusals.publication(&origin, "t/1", "publication");
                refusals.subscription(&origin, "t/#");
                refusals.opening(Opening::Tls, "ssl:default", "192.0.2.7:1".parse().unwrap(), "bad");
            }
            refusals.opening(Opening::Late, "ssl:default", "192.0.2.7:1".parse().unwrap(), "late");
            refusals.full("tcp:default", "192.0.2.7:1".parse().unwrap());
        });
        let count = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
        assert_eq!(count("client refused: wrong"), 7, "{lines:#?}");
        assert!(lines[0].contains("192.0.2.7:5555") && lines[0].contains("c1") && lines[0].contains("ann"));
        assert_eq!(count("times=64"), 1);
        assert_eq!(count("client refused: no"), 1);
        assert_eq!((count("publication denied"), count("subscription denied")), (3, 3));
        assert_eq!(count("before MQTT began"), 4);
        assert_eq!(count("max_connections"), 1);
    }

    #[test]
    fn no_token_and_no_control_character_is_written() {
        let long = "x".repeat(60_000);
        let lines = logged(false, |refusals| {
            let reason = ReasonCode::NotAuthorized;
            let evil = origin("a\nERROR forged\u{1b}[31m", Some("b\r\nWARN"));
            refusals.client(&evil, "tcp:default", reason, "no");
            refusals.client(
                &origin(&long, Some("eyJhbGciOi.secret.x")),
                "l",
                ReasonCode::BadUserNameOrPassword,
                "no",
            );
            refusals.publication(&evil, "t\u{7}\n", "publication");
            refusals.subscription(&evil, &long);
        });
        assert_eq!(lines.len(), 4, "{lines:#?}");
        let lines = [
            lines,
            logged(true, |refusals| {
                let opaque = origin("c", Some("opaque-secret"));
                refusals.client(&opaque, "l", ReasonCode::NotAuthorized, "no");
                refusals.publication(&opaque, "t", "publication");
                refusals.subscription(&opaque, "t");
            }),
        ]
        .concat();
        for line in &lines {
            assert!(!line.contains("secret") && !line.chars().any(char::is_control), "{line:?}");
            assert!(line.len() < 800, "{} bytes", line.len());
        }
    }
}
