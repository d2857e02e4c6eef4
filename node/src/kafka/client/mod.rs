//! Connections to brokers, version negotiation, metadata.
//!
//! [`ClientPool`] hands out one [`Client`] for equal [`ClientOptions`]; a client shares one
//! [`BrokerConnection`] per broker and [`Purpose`] among all its users. Everything above (producers,
//! group members, fetchers) asks the client for a connection each time it needs one and never keeps a
//! dead one.
//!
//! Invariants:
//! * A connection either answers a request or fails it with an [`Error`]; it never forgets one.
//! * Kafka answers the requests of one connection strictly one after another, so what waits on purpose
//!   (a long poll, a join) has a connection of its own: see [`Purpose`].
//! * Nothing that a broker sends makes us panic or allocate more than a small multiple of what it sent.

mod auth;
mod connection;
mod error;
mod greeting;
mod handle;
mod http;
mod kerberos;
pub(in crate::kafka) mod layout;
mod links;
mod login;
mod metadata;
mod oauth;
mod options;
mod scram;
mod tls;
mod transport;
mod wire;

pub use auth::Authentication;
pub use connection::{Answer, BrokerConnection, Completion, RawRequest, Written};
pub use error::Error;
pub use handle::{Client, ClientPool, Coordinator, ListedOffset, OffsetAt, ProducerIdentity};
pub use kerberos::{KERBEROS, KerberosLogin, NO_KERBEROS};
pub use links::Purpose;
pub use metadata::{Broker, PartitionView, TopicView, TopicWatch};
pub use oauth::{OauthSettings, OauthSource, OauthTokens, check_endpoint, check_extension};
pub use options::{Address, Backoff, ClientOptions, Keepalive, SocketOptions};

pub use crate::secret::Secret;
pub use scram::ScramHash;
pub use tls::{CipherVersion, Pem, ServerName, Tls, TlsError, TlsSettings, cipher_names, cipher_version};
pub use wire::decode_answer;

/// An error code in a broker's answer.
pub use kafka_protocol::error::ResponseError;

#[cfg(test)]
mod security_tests;
