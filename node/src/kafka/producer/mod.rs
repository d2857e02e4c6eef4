//! The way out: partition producers.

pub mod core;
pub mod inbox;
pub mod obligations;
pub mod verdict;
