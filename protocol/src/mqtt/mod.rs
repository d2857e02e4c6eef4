//! MQTT packets: one model for all versions.
//!
//! The model borrows: a decoded packet points into the read buffer, an encoded one is written from
//! wherever its parts live. Nothing here owns a socket, a clock or a session.

mod packet;

pub use packet::*;
