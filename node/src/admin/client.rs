//! The caller's side of the admin link.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::link::{Link, LinkError, Patience};
use super::v1::{self, AdminError, Answer, BridgeInfo, ClientsPage, Counter, NodeInfo, Request, StatsAnswer};
use super::v1_access::{AccessAnswer, AccessRequest};
use super::v1_bridges::{BridgeAnswer, BridgeRequest};
use crate::dial;

const CONNECT: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(5);
/// Longer than a node waits for its own operations, so that its answer comes before our patience ends.
const ANSWER: Patience = Patience { first: Duration::from_secs(40), rest: Duration::from_secs(10) };

/// Why a call to a node failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no node, or not there.
    #[error("cannot reach a node's admin link at {address}: {source}")]
    Connect {
        /// The address.
        address: String,
        /// Error of the system.
        source: io::Error,
    },
    /// The connection or what came over it was bad.
    #[error("admin link to {address}: {source}")]
    Link {
        /// The node.
        address: String,
        /// Cause.
        source: LinkError,
    },
    /// The node closed the connection instead of answering.
    #[error("the node at {address} closed the admin link without an answer")]
    Closed {
        /// The node.
        address: String,
    },
    /// The node answered something else.
    #[error("the node at {address} answered something else than was asked: {detail}")]
    Unexpected {
        /// The node.
        address: String,
        /// Detail.
        detail: String,
    },
    /// The node refused.
    #[error(transparent)]
    Refused(#[from] AdminError),
}

/// A connection to a node's admin link, one call at a time.
///
/// After any error but [`ClientError::Refused`] it must be connected anew: an answer that comes late
/// would be taken for the next call's.
pub struct AdminClient {
    link: Link,
    address: String,
}

impl AdminClient {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { address: address.into(), source };
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "write HOST:PORT");
        let (host, port) = address.rsplit_once(':').ok_or_else(|| failed(wrong()))?;
        let port = port.parse().map_err(|_| failed(wrong()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = dial::connect(host, port, CONNECT).await.map_err(failed)?;
        Ok(Self { link: Link::new(stream, v1::answers(), v1::requests()), address: address.into() })
    }

    async fn call(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let failed = |source| ClientError::Link { address: self.address.clone(), source };
        // A node that is busy says so and closes before it has read anything, so a failed write does not
        // mean that there is nothing to be read.
        let sent = self.link.send(v1::VERSION, v1::KIND_REQUEST, request, WRITE).await;
        let frame = match (self.link.receive(ANSWER).await, sent) {
            (Ok(Some(frame)), _) => frame,
            (_, Err(source)) | (Err(source), _) => return Err(failed(source)),
            (Ok(None), Ok(())) => return Err(ClientError::Closed { address: self.address.clone() }),
        };
        let unreadable = |error| failed(LinkError::Wire(error));
        match frame.envelope.kind {
            v1::KIND_ANSWER => frame.header().map_err(unreadable),
            v1::KIND_ERROR => Err(frame.header::<AdminError>().map_err(unreadable)?.into()),
            kind => Err(self.unexpected(&format_args!("a frame of kind {kind}"))),
        }
    }

    fn unexpected(&self, detail: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unexpected { address: self.address.clone(), detail: detail.to_string() }
    }

    /// The node itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn node(&mut self) -> Result<NodeInfo, ClientError> {
        match self.call(&Request::Node).await? {
            Answer::Node(node) => Ok(node),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    /// All bridges.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn bridges(&mut self) -> Result<Vec<BridgeInfo>, ClientError> {
        match self.call(&Request::Bridges).await? {
            Answer::Bridges(bridges) => Ok(bridges),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    /// Counters of one bridge or of all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stats(
        &mut self,
        bridge: Option<String>,
        partitions: bool,
    ) -> Result<StatsAnswer, ClientError> {
        match self.call(&Request::Stats { bridge, partitions }).await? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    /// Stops and starts a bridge.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn restart_bridge(&mut self, id: String) -> Result<BridgeInfo, ClientError> {
        self.bridge_call(&Request::BridgeRestart { id }).await
    }

    /// Starts or stops a bridge for good.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn enable_bridge(&mut self, id: String, on: bool) -> Result<BridgeInfo, ClientError> {
        self.bridge_call(&Request::BridgeEnable { id, on }).await
    }

    /// One client, or up to `limit` of those behind `after`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn clients(
        &mut self,
        client_id: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Result<ClientsPage, ClientError> {
        match self.call(&Request::Clients { client_id, after, limit }).await? {
            Answer::Clients(page) => Ok(page),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    /// All counters of the MQTT front.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn mqtt(&mut self) -> Result<Vec<Counter>, ClientError> {
        match self.call(&Request::Mqtt).await? {
            Answer::Mqtt(counters) => Ok(counters),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    /// Users and bans.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn access(&mut self, request: AccessRequest) -> Result<AccessAnswer, ClientError> {
        match self.call(&Request::Access(request)).await? {
            Answer::Access(answer) => Ok(answer),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    /// Other operations on bridges.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn bridge(&mut self, request: BridgeRequest) -> Result<BridgeAnswer, ClientError> {
        match self.call(&Request::Bridge(request)).await? {
            Answer::BridgeDone(answer) => Ok(answer),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }

    async fn bridge_call(&mut self, request: &Request) -> Result<BridgeInfo, ClientError> {
        match self.call(request).await? {
            Answer::Bridge(bridge) => Ok(bridge),
            other => Err(self.unexpected(&format_args!("{other:?}"))),
        }
    }
}
