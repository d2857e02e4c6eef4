//! The MQTT codec as its users see it: every packet there and back, every illegal one refused, no input
//! that breaks it, and a second codec that agrees.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its expectation does")]

mod encoding;
mod generate;
mod illegal;
mod incremental;
mod legal;
mod mutation;
mod round_trip;
mod second_opinion;
mod wire;
