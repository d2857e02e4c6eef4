//! Bridges: what is carried where, and the books about it.

#[allow(clippy::module_inception, reason = "a file is called as the actor in it")]
mod bridge;
mod consumer;
mod deletion;
pub mod disk_buffer;
mod entry;
mod gate;
mod headers;
mod hops;
pub mod hybrid_buffer;
pub(crate) mod loops;
mod manager;
mod member_id;
pub mod overlay;
mod producer;
mod program;
pub mod rates;
pub mod service;
mod shared_clients;
#[cfg(test)]
mod supervision_tests;
