//! The operations behind the admin link.

use std::future::Future;
use std::pin::Pin;

use super::v1::{AdminError, BridgeInfo, ClientsPage, Counter, NodeInfo, StatsAnswer};
use super::v1_access::{AccessAnswer, AccessRequest};
use super::v1_bridges::{BridgeAnswer, BridgeRequest};

/// An operation under way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, AdminError>> + Send + 'a>>;

/// Operations of a node. Bridges are named by their id, `kafka:NAME` or `kafka_consumer:NAME`;
/// an unknown id is [`AdminError::NotFound`] with the known ones ([`AdminError::no_bridge`]).
pub trait AdminService: Send + Sync + 'static {
    /// The node itself.
    fn node(&self) -> Pending<'_, NodeInfo>;

    /// All bridges, sorted by id.
    fn bridges(&self) -> Pending<'_, Vec<BridgeInfo>>;

    /// Counters of one bridge, or of all, sorted by id, and of past ones; with rows per partition where asked
    /// for.
    fn stats(&self, bridge: Option<String>, partitions: bool) -> Pending<'_, StatsAnswer>;

    /// Stops and starts a bridge, keeping what it has queued. Ends when the bridge runs again, which
    /// does not mean that it is connected.
    fn restart_bridge(&self, id: String) -> Pending<'_, BridgeInfo>;

    /// Starts or stops a bridge for good; no change if it is so already.
    fn enable_bridge(&self, id: String, on: bool) -> Pending<'_, BridgeInfo>;

    /// One client, or up to `limit` behind `after`, by client identifier.
    fn clients(
        &self,
        client_id: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Pending<'_, ClientsPage>;

    /// All counters of the MQTT front.
    fn mqtt(&self) -> Pending<'_, Vec<Counter>>;

    /// Users and bans.
    fn access(&self, request: AccessRequest) -> Pending<'_, AccessAnswer>;

    /// Other operations on bridges.
    fn bridge(&self, request: BridgeRequest) -> Pending<'_, BridgeAnswer>;
}
