//! Bridges: what is carried where, and the books about it.

pub mod admin;
mod consumer;
mod headers;
pub mod json;
pub mod ledger;
mod producer;
mod program;
pub mod publish_scope;
pub mod record_scope;
pub mod service;
mod shared_clients;
pub mod template;
