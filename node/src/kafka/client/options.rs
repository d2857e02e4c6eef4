//! Settings of a client: where Kafka is, how to log in, how long to wait.

use std::fmt;
use std::time::Duration;

use super::auth::Authentication;
use super::tls::Tls;

/// A host (name or address) and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Host name, IPv4 address, or IPv6 address without brackets.
    pub host: Box<str>,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// An address of its two parts.
    pub fn new(host: impl Into<Box<str>>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// TCP keep-alive probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is dead.
    pub probes: u32,
}

/// Options of the TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SocketOptions {
    /// `TCP_NODELAY`: send small segments at once.
    pub nodelay: bool,
    /// `SO_SNDBUF`, bytes; `None` leaves the system's.
    pub send_buffer: Option<u32>,
    /// `SO_RCVBUF`, bytes; `None` leaves the system's.
    pub receive_buffer: Option<u32>,
    /// Keep-alive probes; `None` sends none.
    pub keepalive: Option<Keepalive>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            send_buffer: Some(1024 * 1024),
            receive_buffer: Some(1024 * 1024),
            keepalive: None,
        }
    }
}

/// How long to wait between attempts: doubles from `first` to `max`, each time less a random part of up
/// to a half, so that many clients do not return in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Backoff {
    /// Wait after the first failure.
    pub first: Duration,
    /// Longest wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row; none after none. `random` is uniform in 0..1.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let doublings = (failures - 1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(1.0 - 0.5 * random.clamp(0.0, 1.0))
    }

    /// As [`Self::delay`], with the thread's random numbers.
    pub fn jittered(&self, failures: u32) -> Duration {
        self.delay(failures, rand::random())
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(5) }
    }
}

/// Settings of a client. Clients with equal settings share their connections ([`super::ClientPool`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientOptions {
    /// Where to ask first; the brokers' own addresses come from their answer.
    pub bootstrap: Vec<Address>,
    /// Name shown in the broker's logs and quotas.
    pub client_id: Box<str>,
    /// Budget for one connection to come up: resolve, TCP, TLS, version negotiation, SASL.
    pub connect_timeout: Duration,
    /// A connection whose oldest request waits longer is dead.
    pub request_timeout: Duration,
    /// How long the answer to a metadata request may take, once a broker is connected.
    pub metadata_request_timeout: Duration,
    /// A topic is not asked for again sooner than this.
    pub min_metadata_refresh_interval: Duration,
    /// TCP options.
    pub socket: SocketOptions,
    /// TLS; `None` speaks in the clear.
    pub tls: Option<Tls>,
    /// How to log in.
    pub authentication: Authentication,
    /// Between attempts to connect to one broker.
    pub reconnect_backoff: Backoff,
    /// An answer that claims to be larger ends its connection, bytes.
    pub max_response_bytes: usize,
    /// Requests queued or unanswered on one connection, bytes; more wait for room.
    pub max_in_flight_bytes: usize,
    /// Whether producers and consumers that ask for a topic may create it, where the broker allows that.
    pub allow_auto_topic_creation: bool,
}

impl ClientOptions {
    /// The defaults of the user guide, for these hosts.
    pub fn new(bootstrap: Vec<Address>) -> Self {
        Self {
            bootstrap,
            client_id: "causeway".into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            metadata_request_timeout: Duration::from_secs(5),
            min_metadata_refresh_interval: Duration::from_secs(3),
            socket: SocketOptions::default(),
            tls: None,
            authentication: Authentication::None,
            reconnect_backoff: Backoff::default(),
            max_response_bytes: 128 * 1024 * 1024,
            max_in_flight_bytes: 64 * 1024 * 1024,
            allow_auto_topic_creation: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_secret_is_never_printed() {
        let options = ClientOptions {
            authentication: Authentication::Plain {
                username: "bridge".into(),
                password: Secret::new("hunter2"),
            },
            ..ClientOptions::new(vec![Address::new("localhost", 9092)])
        };
        let printed = format!("{options:?}");
        assert!(printed.contains("******") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_jitters_downwards() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(1) };
        assert_eq!(backoff.delay(0, 0.9), Duration::ZERO);
        assert_eq!(backoff.delay(1, 0.0), Duration::from_millis(100));
        assert_eq!(backoff.delay(3, 0.0), Duration::from_millis(400));
        assert_eq!(backoff.delay(3, 1.0), Duration::from_millis(200));
        assert_eq!(backoff.delay(u32::MAX, 0.0), Duration::from_secs(1));
    }
}
