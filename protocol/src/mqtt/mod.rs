//! MQTT packets: one model for all versions.
//!
//! The model borrows: a decoded packet points into the read buffer, an encoded one is written from
//! wherever its parts live. Nothing here owns a socket, a clock or a session.
//!
//! * [`Decoder`] takes packets off a read buffer, strictly.
//! * [`Packet::encode`], [`encode_publish`] and [`encode_ack`] write them.
//! * [`topic`] checks and matches topic names and filters.
//! * [`PublishPropertiesBuf`] and [`UserPropertiesBuf`] own properties that outlive the buffer.

mod decode;
mod encode;
mod error;
mod packet;
mod properties;
mod property;
mod reader;
mod reason;
pub mod topic;

pub use decode::{Decoded, Decoder, MAX_PACKET_SIZE, Role};
pub use encode::{AckKind, PublishLayout, encode_ack, encode_publish, encode_publish_head};
pub use error::{DecodeError, EncodeError};
pub use packet::*;
pub use properties::{PublishPropertiesBuf, UserPropertiesBuf, UserPropertiesIter};
