//! Wire formats, without sockets, clocks or a runtime.
//!
//! * [`mqtt`]: MQTT 3.1, 3.1.1 and 5.0 packets.
//! * [`kafka`]: Kafka record batches (v2), request framing and partitioners.
//! * [`wire`]: the frames of Causeway's own admin and peer links.

pub mod kafka;
pub mod mqtt;
pub mod wire;
