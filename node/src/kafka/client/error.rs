//! Errors between client and broker, in words that an operator can act on.

use std::time::Duration;

use super::{Address, ResponseError};

/// A failed connection or request. Cheap to clone: one cause may fail many requests.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing listens there.
    #[error("{address}: connection refused; is Kafka running and is the port right?")]
    Refused {
        /// Whom we called.
        address: Address,
    },
    /// The name has no address.
    #[error("{address}: the host name could not be resolved ({reason})")]
    Unresolvable {
        /// Whom we called.
        address: Address,
        /// The resolver's text.
        reason: Box<str>,
    },
    /// The connection could not be made for another reason.
    #[error("{address}: could not connect ({reason})")]
    Unreachable {
        /// Whom we called.
        address: Address,
        /// The system's text.
        reason: Box<str>,
    },
    /// No answer in time.
    #[error("{address}: no answer to {what} within {after:?}")]
    Timeout {
        /// Who did not answer.
        address: Address,
        /// Awaited event.
        what: Box<str>,
        /// How long.
        after: Duration,
    },
    /// TLS did not come about, or the other side is not whom it should be.
    #[error("{address}: TLS failed: {reason}")]
    Tls {
        /// Whom we called.
        address: Address,
        /// Fault and remedy.
        reason: Box<str>,
    },
    /// The broker answered in TLS, and we spoke in the clear.
    #[error(
        "{address}: the broker speaks TLS on this port: set ssl.enable = true, or take the port without TLS"
    )]
    SpeaksTls {
        /// Whom we called.
        address: Address,
    },
    /// The broker refused our login.
    #[error("{address}: authentication with {mechanism} failed: {reason}")]
    Authentication {
        /// Who refused.
        address: Address,
        /// SASL mechanism.
        mechanism: &'static str,
        /// The broker's text.
        reason: Box<str>,
    },
    /// No version of an API that both sides speak.
    #[error("{address}: no common version of {api}: we speak {ours}, the broker {theirs}")]
    UnsupportedVersion {
        /// Which broker.
        address: Address,
        /// Which API.
        api: Box<str>,
        /// Our versions.
        ours: Box<str>,
        /// The broker's.
        theirs: Box<str>,
    },
    /// An answer beyond our limit.
    #[error(
        "{address}: an answer of {size} bytes is larger than the limit of {limit}; is this a Kafka port?"
    )]
    AnswerTooLarge {
        /// Which broker.
        address: Address,
        /// Claimed size.
        size: u64,
        /// `max_response_bytes`.
        limit: usize,
    },
    /// An answer that is not what Kafka's protocol says.
    #[error("{address}: malformed answer to {what}: {reason}")]
    MalformedAnswer {
        /// Which broker.
        address: Address,
        /// Which request.
        what: Box<str>,
        /// Fault.
        reason: Box<str>,
    },
    /// A request that we could not put into bytes.
    #[error("{address}: {what} cannot be encoded: {reason}")]
    Encoding {
        /// Which broker.
        address: Address,
        /// Which request.
        what: Box<str>,
        /// Fault.
        reason: Box<str>,
    },
    /// The connection ended while something was outstanding.
    #[error("{address}: connection lost ({reason})")]
    Disconnected {
        /// Which broker.
        address: Address,
        /// Why.
        reason: Box<str>,
    },
    /// We closed the connection or the client.
    #[error("the connection was closed on our side")]
    Closed,
    /// The broker answered with an error code.
    #[error("{address}: {what}: Kafka answered {code}")]
    Broker {
        /// Which broker.
        address: Address,
        /// Which request, and about what.
        what: Box<str>,
        /// The code.
        code: ResponseError,
    },
    /// A broker id that no metadata answer has named.
    #[error("broker {id} is not in the cluster's metadata")]
    UnknownBroker {
        /// Which one.
        id: i32,
    },
    /// No host could be used.
    #[error("no broker could be reached: {}", list(.0))]
    NoBroker(Box<[Error]>),
}

fn list(errors: &[Error]) -> String {
    if errors.is_empty() {
        return "no host is configured".to_owned();
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl Error {
    /// The broker's code, where it answered one.
    pub fn code(&self) -> Option<ResponseError> {
        match self {
            Self::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True where Kafka is away and has not refused: a broker that cannot be reached, does not answer or is
    /// about to lead again.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Unresolvable { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Disconnected { .. }
            | Self::UnknownBroker { .. } => true,
            Self::Broker { code, .. } => code.is_retriable(),
            Self::NoBroker(errors) => !errors.is_empty() && errors.iter().all(Self::is_outage),
            _ => false,
        }
    }

    /// True where trying again later, unchanged, may succeed. False for what only an operator or a
    /// different request can mend; a refused login is not among them, the broker may learn of it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Broker { code, .. } => code.is_retriable(),
            Self::UnsupportedVersion { .. } | Self::Encoding { .. } | Self::Closed => false,
            _ => true,
        }
    }
}
