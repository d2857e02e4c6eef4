//! Bridges: what is carried where, and the books about it.

pub mod admin;
mod admin_bridges;
mod consumer;
pub mod disk_buffer;
mod gate;
mod headers;
pub mod hybrid_buffer;
pub mod json;
mod json_text;
pub mod ledger;
mod manager;
mod member_id;
pub mod overlay;
mod producer;
mod program;
pub mod publish_scope;
pub mod rates;
pub mod record_scope;
pub mod service;
mod shared_clients;
#[cfg(test)]
mod supervision_tests;
pub mod template;
