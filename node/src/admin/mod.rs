//! The admin link: what `causeway ctl` asks a running node.
//!
//! [`AdminServer`] and [`AdminClient`] carry the operations of [`AdminService`] over loopback TCP, in
//! frames of [`causeway_protocol::wire`]; [`v1`] has the messages.
//!
//! Invariants:
//! * The link has no authentication, so it is never bound to anything but loopback.
//! * Connections and running operations are counted and limited; every read, write and operation has a
//!   time limit. A request that cannot be read is answered with a typed error, then the connection ends.
//! * An operation that was started runs to its end: a caller that goes away or waits too long does not
//!   leave a bridge half restarted.

mod client;
mod link;
mod reserve;
mod server;
mod service;
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
    Counter, Counters, ListenerInfo, NodeInfo, PartitionStats, PastStats, StatsAnswer,
};

/// Where a node's admin link is unless it is told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:8081";
