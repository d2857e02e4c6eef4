//! The way out: partition producers.
