//! Bridges: what is carried where, and the books about it.

pub mod ledger;
