//! Bridges: what is carried where, and the books about it.

pub mod admin;
mod consumer;
pub mod json;
pub mod ledger;
mod producer;
pub mod publish_scope;
pub mod record_scope;
pub mod service;
mod shared_clients;
pub mod template;
