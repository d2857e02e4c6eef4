//! The admin link: what `causeway ctl` asks a running node.
//!
//! * [`AdminService`]: the operations. The node implements it once; this link and, later, the HTTP API
//!   are two ways to reach it.
//! * [`AdminServer`], [`AdminClient`]: the operations over loopback TCP, in frames of
//!   [`causeway_protocol::wire`]; [`v1`] has the messages.
//! * [`ctl`]: the command line around the client.
//!
//! Invariants:
//! * The link has no authentication, so it is never bound to anything but loopback.
//! * Connections and running operations are counted and limited; every read, write and operation has a
//!   time limit. A request that cannot be read is answered with a typed error, then the connection ends.
//! * An operation that was started runs to its end: a caller that goes away or waits too long does not
//!   leave a bridge half restarted.

mod client;
pub mod ctl;
mod ctl_bridges;
mod link;
mod server;
mod service;
mod table;
pub(crate) mod table_bridges;
#[cfg(test)]
mod tests;
pub mod v1;
pub mod v1_access;
pub mod v1_bridges;

pub use client::{AdminClient, ClientError};
pub use server::{AdminHandle, AdminOptions, AdminServer, StartError};
pub use service::{AdminService, Pending};
pub use v1::{
    AdminError, BridgeInfo, BridgeKind, BridgeStats, BridgeStatus, CLIENTS_PAGE, ClientInfo, ClientsPage,
    Counter, ListenerInfo, NodeInfo, PartitionStats,
};

/// Where a node's admin link is unless it is told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:8081";
