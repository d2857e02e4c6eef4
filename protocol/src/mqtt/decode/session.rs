//! DISCONNECT and AUTH (MQTT-5.0 3.14, 3.15).

use super::super::error::{DecodeError, protocol};
use super::super::property::{Property, PropertySection, PropertySet, id};
use super::super::reader::Reader;
use super::super::reason::{in_disconnect_of_client, in_disconnect_of_server};
use super::super::{Auth, Disconnect, ReasonCode, UserProperties, Version};
use super::{Role, reason};

const DISCONNECT_ALLOWED: PropertySet =
    PropertySet::of(&[id::SESSION_EXPIRY_INTERVAL, id::REASON_STRING, id::SERVER_REFERENCE]);
const AUTH_ALLOWED: PropertySet =
    PropertySet::of(&[id::AUTHENTICATION_METHOD, id::AUTHENTICATION_DATA, id::REASON_STRING]);

pub(super) fn disconnect(
    mut reader: Reader<'_>,
    version: Version,
    role: Role,
) -> Result<Disconnect<'_>, DecodeError> {
    let mut disconnect = Disconnect {
        reason: ReasonCode::Success,
        session_expiry_interval: None,
        reason_string: None,
        server_reference: None,
        user_properties: UserProperties::default(),
    };
    // Reason code and properties may each be left out at the end (MQTT-5.0 3.14.2.1, 3.14.2.2.1).
    if version == Version::V5 && !reader.is_empty() {
        let allowed = match role {
            Role::Server => in_disconnect_of_client,
            Role::Client => in_disconnect_of_server,
        };
        disconnect.reason = reason(&mut reader, allowed)?;
        if !reader.is_empty() {
            let mut section = PropertySection::take(&mut reader, DISCONNECT_ALLOWED)?;
            while let Some(property) = section.next()? {
                match property {
                    Property::SessionExpiryInterval(_) if role == Role::Client => {
                        return Err(protocol("session expiry interval in a DISCONNECT of a server"));
                    }
                    Property::SessionExpiryInterval(value) => {
                        disconnect.session_expiry_interval = Some(value);
                    }
                    Property::ReasonString(text) => disconnect.reason_string = Some(text),
                    Property::ServerReference(text) => disconnect.server_reference = Some(text),
                    _ => return Err(super::UNEXPECTED_PROPERTY),
                }
            }
            disconnect.user_properties = section.user_properties();
        }
    }
    reader.finish()?;
    Ok(disconnect)
}

pub(super) fn auth(mut reader: Reader<'_>, role: Role) -> Result<Auth<'_>, DecodeError> {
    let mut auth = Auth {
        reason: ReasonCode::Success,
        authentication_method: None,
        authentication_data: None,
        reason_string: None,
        user_properties: UserProperties::default(),
    };
    // An empty AUTH stands for success without properties (MQTT-5.0 3.15.2.1), which only a server
    // reports.
    if reader.is_empty() {
        if role == Role::Server {
            return Err(protocol("AUTH of a client with reason success: must be 0x18 or 0x19"));
        }
        return Ok(auth);
    }
    auth.reason = reason(
        &mut reader,
        match role {
            Role::Server => |reason| matches!(reason as u8, 0x18 | 0x19),
            Role::Client => |reason| matches!(reason as u8, 0x00 | 0x18),
        },
    )?;
    let mut section = PropertySection::take(&mut reader, AUTH_ALLOWED)?;
    while let Some(property) = section.next()? {
        match property {
            Property::AuthenticationMethod(method) => auth.authentication_method = Some(method),
            Property::AuthenticationData(data) => auth.authentication_data = Some(data),
            Property::ReasonString(text) => auth.reason_string = Some(text),
            _ => return Err(super::UNEXPECTED_PROPERTY),
        }
    }
    auth.user_properties = section.user_properties();
    if auth.authentication_method.is_none() {
        return Err(protocol("AUTH without an authentication method"));
    }
    reader.finish()?;
    Ok(auth)
}
