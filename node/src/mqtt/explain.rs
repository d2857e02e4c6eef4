//! Meaning of reason codes here, for people: the reason strings of CONNACK, SUBACK, PUBACK, PUBREC and
//! DISCONNECT (MQTT-5.0 4.13). Sent only where the client takes them and where they fit.

use causeway_protocol::mqtt::ReasonCode;

/// A sentence for a failure; `None` where the code says all there is.
pub(super) fn explain(reason: ReasonCode) -> Option<&'static str> {
    Some(match reason {
        ReasonCode::MalformedPacket => "the packet cannot be read",
        ReasonCode::ProtocolError => "the packet is not allowed here",
        ReasonCode::BadUserNameOrPassword => "user name or password is wrong",
        ReasonCode::NotAuthorized => "the access rules of this server do not allow it",
        ReasonCode::ServerUnavailable => "the server cannot do it now",
        ReasonCode::ServerBusy => "the server is busy; try again later",
        ReasonCode::Banned => "banned for a time after repeated failures",
        ReasonCode::ServerShuttingDown => "the server shuts down",
        ReasonCode::BadAuthenticationMethod => "the server does not know this authentication method",
        ReasonCode::KeepAliveTimeout => "nothing was received for 1.5 times the keep-alive",
        ReasonCode::SessionTakenOver => "another connection uses this client identifier",
        ReasonCode::TopicFilterInvalid => "the topic filter is not valid",
        ReasonCode::TopicNameInvalid => "the topic name is not valid",
        ReasonCode::PacketIdentifierNotFound => "no such packet identifier is in use",
        ReasonCode::ReceiveMaximumExceeded => "more QoS 1 and 2 messages than the receive maximum of CONNACK",
        ReasonCode::TopicAliasInvalid => "the topic alias is above the maximum of CONNACK",
        ReasonCode::PacketTooLarge => "larger than the maximum packet size",
        ReasonCode::MessageRateTooHigh => "more messages than the listener allows",
        ReasonCode::QuotaExceeded => {
            "a limit of this server is reached: memory, sessions, subscriptions or a queue"
        }
        ReasonCode::AdministrativeAction => "ended by an administrator",
        ReasonCode::PayloadFormatInvalid => "the payload is not what its format indicator says",
        ReasonCode::RetainNotSupported => "retained messages are switched off (mqtt.retain_available)",
        ReasonCode::QoSNotSupported => "the QoS is above the maximum of this server (mqtt.max_qos_allowed)",
        ReasonCode::SharedSubscriptionsNotSupported => {
            "shared subscriptions are switched off (mqtt.shared_subscription)"
        }
        ReasonCode::WildcardSubscriptionsNotSupported => {
            "wildcards are switched off (mqtt.wildcard_subscription)"
        }
        ReasonCode::ConnectionRateExceeded => "too many connections at one time; try again later",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_that_we_send_is_explained() {
        let left_out = |code: u8| {
            let reason = ReasonCode::from_u8(code)?;
            (reason.is_error() && explain(reason).is_none()).then_some(code)
        };
        let unexplained: Vec<u8> = (0x80..=0xFF).filter_map(left_out).collect();
        // Unspecified and implementation errors, versions, client identifiers, packet identifiers in use,
        // other servers, connect times, subscription identifiers: what we never send, or what the code says.
        assert_eq!(unexplained, [0x80, 0x83, 0x84, 0x85, 0x91, 0x9C, 0x9D, 0xA0, 0xA1]);
    }
}
