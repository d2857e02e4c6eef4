//! Bridges: what is carried where, and the books about it.

pub mod json;
pub mod ledger;
pub mod publish_scope;
pub mod record_scope;
pub mod template;
