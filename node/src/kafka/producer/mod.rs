//! The way out: partition producers.

pub mod core;
pub mod verdict;
