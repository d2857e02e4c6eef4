//! Reads a property section (MQTT-5.0 2.2.2).
//!
//! [`PropertySection`] enforces what holds for every packet: the length fits, each property is one that
//! the packet may carry, is there once unless the standard lets it repeat, and has a value that its type
//! and meaning allow. Packets only assign what it yields.

use super::ReasonCode;
use super::UserProperties;
use super::error::{DecodeError, malformed, protocol};
use super::reader::{MAX_VARIABLE_BYTE_INTEGER, Reader};

/// Property identifiers (MQTT-5.0 2.2.2.2).
pub(super) mod id {
    pub(in super::super) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub(in super::super) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(in super::super) const CONTENT_TYPE: u8 = 0x03;
    pub(in super::super) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in super::super) const CORRELATION_DATA: u8 = 0x09;
    pub(in super::super) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub(in super::super) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(in super::super) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(in super::super) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(in super::super) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in super::super) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in super::super) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in super::super) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(in super::super) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in super::super) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(in super::super) const SERVER_REFERENCE: u8 = 0x1C;
    pub(in super::super) const REASON_STRING: u8 = 0x1F;
    pub(in super::super) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in super::super) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in super::super) const TOPIC_ALIAS: u8 = 0x23;
    pub(in super::super) const MAXIMUM_QOS: u8 = 0x24;
    pub(in super::super) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(in super::super) const USER_PROPERTY: u8 = 0x26;
    pub(in super::super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in super::super) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(in super::super) const SUBSCRIPTION_IDENTIFIERS_AVAILABLE: u8 = 0x29;
    pub(in super::super) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// One property other than a user property.
#[derive(Clone, Copy, Debug)]
pub(super) enum Property<'a> {
    PayloadFormatIndicator(u8),
    MessageExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQos(u8),
    RetainAvailable(bool),
    User(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifiersAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

/// A set of property identifiers: all of them are below 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PropertySet(u64);

impl PropertySet {
    /// The given identifiers and the user property, which every packet with properties may carry.
    pub(super) const fn of(identifiers: &[u8]) -> Self {
        let mut bits = Self::bit(id::USER_PROPERTY);
        let mut index = 0;
        while index < identifiers.len() {
            bits |= Self::bit(identifiers[index]);
            index += 1;
        }
        Self(bits)
    }

    const fn bit(identifier: u8) -> u64 {
        if identifier < 64 { 1 << identifier } else { 0 }
    }

    fn contains(self, identifier: u8) -> bool {
        self.0 & Self::bit(identifier) != 0
    }
}

/// Walks the properties of one packet.
pub(super) struct PropertySection<'a> {
    section: &'a [u8],
    rest: Reader<'a>,
    allowed: PropertySet,
    /// Subscription identifiers of a PUBLISH may repeat (MQTT-5.0 3.3.2.3.8).
    repeatable: PropertySet,
    seen: u64,
    user_properties: u32,
}

impl<'a> PropertySection<'a> {
    /// Takes property length and properties from `packet`.
    pub(super) fn take(packet: &mut Reader<'a>, allowed: PropertySet) -> Result<Self, DecodeError> {
        Self::take_with_repeats(packet, allowed, PropertySet::of(&[]))
    }

    pub(super) fn take_with_repeats(
        packet: &mut Reader<'a>,
        allowed: PropertySet,
        repeatable: PropertySet,
    ) -> Result<Self, DecodeError> {
        let length = packet.variable_byte_integer()?;
        if length as usize > packet.rest().len() {
            return Err(malformed("property length reaches past the end of the packet").with_value(length));
        }
        let section = packet.take(length as usize)?;
        Ok(Self { section, rest: Reader::new(section), allowed, repeatable, seen: 0, user_properties: 0 })
    }

    /// The next property that is not a user property.
    pub(super) fn next(&mut self) -> Result<Option<Property<'a>>, DecodeError> {
        while !self.rest.is_empty() {
            let identifier = self.rest.u8()?;
            if !self.allowed.contains(identifier) {
                return Err(malformed("property that this packet may not carry, or an unknown one")
                    .with_value(u32::from(identifier)));
            }
            if self.seen & PropertySet::bit(identifier) != 0 && !self.repeatable.contains(identifier) {
                return Err(protocol("property that may be there once is there twice")
                    .with_value(u32::from(identifier)));
            }
            self.seen |= PropertySet::bit(identifier);
            match read_value(identifier, &mut self.rest)? {
                Property::User(..) => self.user_properties += 1,
                property => return Ok(Some(property)),
            }
        }
        Ok(None)
    }

    /// The user properties, once [`next`](Self::next) has said `None`.
    pub(super) fn user_properties(&self) -> UserProperties<'a> {
        if self.user_properties == 0 {
            return UserProperties::default();
        }
        UserProperties { section: self.section, count: self.user_properties }
    }
}

/// Reads the value of a property and checks what does not depend on the packet it is in.
pub(super) fn read_value<'a>(identifier: u8, reader: &mut Reader<'a>) -> Result<Property<'a>, DecodeError> {
    Ok(match identifier {
        id::PAYLOAD_FORMAT_INDICATOR => Property::PayloadFormatIndicator(zero_or_one(reader)?),
        id::MESSAGE_EXPIRY_INTERVAL => Property::MessageExpiryInterval(reader.u32()?),
        id::CONTENT_TYPE => Property::ContentType(reader.string()?),
        id::RESPONSE_TOPIC => {
            let topic = reader.string()?;
            if topic.is_empty() || super::topic::has_wildcard(topic) {
                return Err(protocol("response topic that is empty or has a wildcard: must be a topic name"));
            }
            Property::ResponseTopic(topic)
        }
        id::CORRELATION_DATA => Property::CorrelationData(reader.binary()?),
        id::SUBSCRIPTION_IDENTIFIER => match reader.variable_byte_integer()? {
            0 => return Err(protocol("subscription identifier 0: must be 1 to 268435455")),
            identifier => Property::SubscriptionIdentifier(identifier),
        },
        id::SESSION_EXPIRY_INTERVAL => Property::SessionExpiryInterval(reader.u32()?),
        id::ASSIGNED_CLIENT_IDENTIFIER => Property::AssignedClientIdentifier(reader.string()?),
        id::SERVER_KEEP_ALIVE => Property::ServerKeepAlive(reader.u16()?),
        id::AUTHENTICATION_METHOD => Property::AuthenticationMethod(reader.string()?),
        id::AUTHENTICATION_DATA => Property::AuthenticationData(reader.binary()?),
        id::REQUEST_PROBLEM_INFORMATION => Property::RequestProblemInformation(boolean(reader)?),
        id::WILL_DELAY_INTERVAL => Property::WillDelayInterval(reader.u32()?),
        id::REQUEST_RESPONSE_INFORMATION => Property::RequestResponseInformation(boolean(reader)?),
        id::RESPONSE_INFORMATION => Property::ResponseInformation(reader.string()?),
        id::SERVER_REFERENCE => Property::ServerReference(reader.string()?),
        id::REASON_STRING => Property::ReasonString(reader.string()?),
        id::RECEIVE_MAXIMUM => match reader.u16()? {
            0 => return Err(protocol("receive maximum 0: must be 1 to 65535")),
            maximum => Property::ReceiveMaximum(maximum),
        },
        id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(reader.u16()?),
        id::TOPIC_ALIAS => match reader.u16()? {
            0 => {
                return Err(DecodeError::new(
                    ReasonCode::TopicAliasInvalid,
                    "topic alias 0: must be 1 to the receiver's topic alias maximum",
                ));
            }
            alias => Property::TopicAlias(alias),
        },
        id::MAXIMUM_QOS => Property::MaximumQos(zero_or_one(reader)?),
        id::RETAIN_AVAILABLE => Property::RetainAvailable(boolean(reader)?),
        id::USER_PROPERTY => Property::User(reader.string()?, reader.string()?),
        id::MAXIMUM_PACKET_SIZE => match reader.u32()? {
            0 => return Err(protocol("maximum packet size 0: must be at least 1")),
            maximum => Property::MaximumPacketSize(maximum),
        },
        id::WILDCARD_SUBSCRIPTION_AVAILABLE => Property::WildcardSubscriptionAvailable(boolean(reader)?),
        id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE => {
            Property::SubscriptionIdentifiersAvailable(boolean(reader)?)
        }
        id::SHARED_SUBSCRIPTION_AVAILABLE => Property::SharedSubscriptionAvailable(boolean(reader)?),
        unknown => return Err(malformed("unknown property").with_value(u32::from(unknown))),
    })
}

fn zero_or_one(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    match reader.u8()? {
        value @ (0 | 1) => Ok(value),
        value => Err(protocol("property that must be 0 or 1").with_value(u32::from(value))),
    }
}

fn boolean(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    zero_or_one(reader).map(|value| value == 1)
}

/// Whether a subscription identifier can be written.
pub(super) fn is_subscription_identifier(value: u32) -> bool {
    (1..=MAX_VARIABLE_BYTE_INTEGER).contains(&value)
}
