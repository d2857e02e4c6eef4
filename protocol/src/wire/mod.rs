//! Versioned, size-limited frames of Causeway's own links (admin, later node to node).
//!
//! ```text
//! magic  version  kind  flags  header length  payload length  header    payload
//! 4      2        2     2      4              4               bincode   bytes as they are
//! ```
//!
//! All integers are big-endian. What a frame means stands in its header, a serde type in bincode; bulk
//! bytes travel beside it in the payload and are never copied through the encoder. Each kind of link is
//! a [`Protocol`] with a magic of its own, so that a socket that reached the wrong port is told so.
//!
//! Invariants:
//! * Magic, version, flags and both lengths are checked as soon as the 18 bytes of the [`Envelope`] are
//!   there and before anything is reserved for the rest.
//! * bincode stays in this module: no other one names it, and no allocation of its decoder is larger
//!   than [`MAX_HEADER_LEN`].

mod frame;

pub use frame::{ENVELOPE_LEN, Envelope, Error, Frame, FrameDecoder, MAX_HEADER_LEN, Protocol, encode};
