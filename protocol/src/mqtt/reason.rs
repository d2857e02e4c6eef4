//! Which reason codes a packet may carry, and what they become in MQTT 3.x.

use super::ReasonCode;

impl ReasonCode {
    /// Whether it reports a failure: 0x80 and above (MQTT-5.0 2.4).
    pub fn is_error(self) -> bool {
        self as u8 >= 0x80
    }

    /// The CONNACK return code of MQTT 3.x with this meaning (MQTT-3.1.1 3.2.2.3). `None` where there is
    /// none: the connection is then closed without a CONNACK.
    pub fn connack_return_code(self) -> Option<u8> {
        Some(match self {
            Self::Success => 0,
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::UnspecifiedError
            | Self::ImplementationSpecificError
            | Self::ServerUnavailable
            | Self::ServerBusy
            | Self::ServerShuttingDown
            | Self::QuotaExceeded
            | Self::UseAnotherServer
            | Self::ServerMoved
            | Self::ConnectionRateExceeded => 3,
            Self::BadUserNameOrPassword => 4,
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => 5,
            _ => return None,
        })
    }

    /// The meaning of a CONNACK return code of MQTT 3.x.
    pub fn from_connack_return_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Success,
            1 => Self::UnsupportedProtocolVersion,
            2 => Self::ClientIdentifierNotValid,
            3 => Self::ServerUnavailable,
            4 => Self::BadUserNameOrPassword,
            5 => Self::NotAuthorized,
            _ => return None,
        })
    }
}

/// MQTT-5.0 3.2.2.2.
pub(super) fn in_connack(reason: ReasonCode) -> bool {
    matches!(reason as u8, 0 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F)
}

/// MQTT-5.0 3.4.2.1 and 3.5.2.1.
pub(super) fn in_puback_or_pubrec(reason: ReasonCode) -> bool {
    matches!(reason as u8, 0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
}

/// MQTT-5.0 3.6.2.1 and 3.7.2.1.
pub(super) fn in_pubrel_or_pubcomp(reason: ReasonCode) -> bool {
    matches!(reason as u8, 0 | 0x92)
}

/// MQTT-5.0 3.9.3.
pub(super) fn in_suback(reason: ReasonCode) -> bool {
    matches!(reason as u8, 0..=2 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
}

/// MQTT-5.0 3.11.3.
pub(super) fn in_unsuback(reason: ReasonCode) -> bool {
    matches!(reason as u8, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
}

/// MQTT-5.0 3.14.2.1, sent by a client.
pub(super) fn in_disconnect_of_client(reason: ReasonCode) -> bool {
    matches!(reason as u8, 0 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
}

/// MQTT-5.0 3.14.2.1, sent by a server.
pub(super) fn in_disconnect_of_server(reason: ReasonCode) -> bool {
    matches!(
        reason as u8,
        0 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B | 0x8D..=0x90 | 0x93..=0x9F | 0xA0..=0xA2
    )
}
