//! MQTT as bytes: what the conformance suite and the fuzzer of the running node speak.
//!
//! * [`wire`]: packets from their parts, also illegal ones, and a strict reader of what a server sends
//!   (`reading`).
//! * [`property`]: the properties of MQTT 5.0.
//! * [`client`]: one connection with deadlines, whose traffic is kept for the text of a failure.
//! * [`road`]: the transports it may take: TCP, TLS, WebSocket.
//! * [`scram`]: enhanced authentication from the client's side.
//!
//! Nothing here uses the node's codec or any other MQTT library: a second opinion must not share code with
//! what it judges.

pub mod client;
pub mod property;
mod reading;
pub mod road;
pub mod scram;
pub mod wire;

pub use client::{Client, Trace};
pub use property::Property;
pub use road::Road;
pub use wire::{Connect, Packet, Publish, Version, Will};
