//! Benchmarks and the load generator of Causeway.
