//! What the encoder writes, the decoder reads back.

use bytes::BytesMut;
use causeway_protocol::mqtt::{Decoded, Decoder, Packet, Publish, QoS, Role, Version, encode_publish};

#[test]
fn a_publish_survives_the_way_through_buffer_and_back() {
    let publish = Publish {
        qos: QoS::AtLeastOnce,
        topic: "t/1",
        packet_identifier: 7,
        payload: b"{\"msg\":\"Hello Kafka\"}",
        ..Publish::default()
    };
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut buffer = BytesMut::new();
        let layout = encode_publish(&mut buffer, version, &publish).unwrap();
        assert_eq!(layout.packet_identifier, Some(7));
        assert_eq!(layout.frame_len(), buffer.len());
        let mut decoder = Decoder::new(Role::Server, 1000);
        decoder.version = Some(version);
        let expected = Decoded::Packet { packet: Packet::Publish(publish.clone()), consumed: buffer.len() };
        assert_eq!(decoder.decode(&buffer), Ok(expected));
    }
}
