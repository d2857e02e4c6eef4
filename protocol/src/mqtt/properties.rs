//! User properties and the owned forms of properties.
//!
//! [`UserProperties`] borrows a validated section and is read on demand.
//! [`UserPropertiesBuf`] and [`PublishPropertiesBuf`] own what has to outlive the read buffer: queued
//! and retained messages, wills. Empty ones allocate nothing.

use std::fmt;

use smallvec::SmallVec;

use super::error::EncodeError;
use super::property::{Property, id, read_value};
use super::reader::Reader;
use super::{PublishProperties, UserProperties};

impl<'a> UserProperties<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Names and values in the order of the packet, duplicates included.
    pub fn iter(&self) -> UserPropertiesIter<'a> {
        UserPropertiesIter { rest: Reader::new(self.section), remaining: self.count }
    }

    /// The first value with this name.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().find_map(|(key, value)| (key == name).then_some(value))
    }
}

impl<'a> IntoIterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Equal when names and values are, in order.
impl PartialEq for UserProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for UserProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The user properties of a packet, in order.
#[derive(Clone, Debug)]
pub struct UserPropertiesIter<'a> {
    rest: Reader<'a>,
    remaining: u32,
}

impl<'a> Iterator for UserPropertiesIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        // The section was validated when it was made: an error cannot come up and would end the walk.
        while self.remaining > 0 {
            let identifier = self.rest.u8().ok()?;
            if let Property::User(name, value) = read_value(identifier, &mut self.rest).ok()? {
                self.remaining -= 1;
                return Some((name, value));
            }
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining as usize, Some(self.remaining as usize))
    }
}

impl ExactSizeIterator for UserPropertiesIter<'_> {}

/// Owned user properties in order, stored as they are on the wire; also the way to build some.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserPropertiesBuf {
    /// Nothing but valid user properties.
    section: Vec<u8>,
    count: u32,
}

impl UserPropertiesBuf {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one at the end. Names may repeat.
    ///
    /// # Errors
    /// Name or value longer than 65,535 bytes, or with U+0000 (MQTT-5.0 1.5.4).
    pub fn push(&mut self, name: &str, value: &str) -> Result<(), EncodeError> {
        for (field, text) in [("user property name", name), ("user property value", value)] {
            if text.len() > usize::from(u16::MAX) {
                return Err(EncodeError::FieldTooLong { field, length: text.len() });
            }
            if memchr::memchr(0, text.as_bytes()).is_some() {
                return Err(EncodeError::NullCharacter { field });
            }
        }
        self.append(name, value);
        Ok(())
    }

    /// Adds one that came out of a validated section.
    fn append(&mut self, name: &str, value: &str) {
        self.section.reserve(5 + name.len() + value.len());
        self.section.push(id::USER_PROPERTY);
        for text in [name, value] {
            self.section.extend_from_slice(&(text.len() as u16).to_be_bytes());
            self.section.extend_from_slice(text.as_bytes());
        }
        self.count += 1;
    }

    /// The borrowed form, as packets carry it.
    pub fn borrow(&self) -> UserProperties<'_> {
        UserProperties { section: &self.section, count: self.count }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes on the heap.
    pub fn heap_size(&self) -> usize {
        self.section.capacity()
    }
}

impl From<&UserProperties<'_>> for UserPropertiesBuf {
    fn from(properties: &UserProperties<'_>) -> Self {
        let mut owned = Self::new();
        // The section may hold other properties too: never more than it has bytes.
        owned.section.reserve_exact(if properties.is_empty() { 0 } else { properties.section.len() });
        for (name, value) in properties {
            owned.append(name, value);
        }
        owned.section.shrink_to_fit();
        owned
    }
}

impl fmt::Debug for UserPropertiesBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.borrow().fmt(f)
    }
}

/// Owned publish properties: one pointer, and nothing on the heap while there are none.
///
/// The topic alias is not taken over: it means something only on the connection it came from
/// (MQTT-5.0 3.3.2.3.4).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishPropertiesBuf {
    owned: Option<Box<Owned>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Owned {
    payload_format_indicator: Option<u8>,
    message_expiry_interval: Option<u32>,
    response_topic: Option<Box<str>>,
    correlation_data: Option<Box<[u8]>>,
    subscription_identifiers: SmallVec<[u32; 2]>,
    content_type: Option<Box<str>>,
    user_properties: UserPropertiesBuf,
}

impl PublishPropertiesBuf {
    /// No properties.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.owned.is_none()
    }

    /// The borrowed form, as packets carry it.
    pub fn borrow(&self) -> PublishProperties<'_> {
        let Some(owned) = &self.owned else {
            return PublishProperties::default();
        };
        PublishProperties {
            payload_format_indicator: owned.payload_format_indicator,
            message_expiry_interval: owned.message_expiry_interval,
            topic_alias: None,
            response_topic: owned.response_topic.as_deref(),
            correlation_data: owned.correlation_data.as_deref(),
            subscription_identifiers: owned.subscription_identifiers.clone(),
            content_type: owned.content_type.as_deref(),
            user_properties: owned.user_properties.borrow(),
        }
    }

    /// Seconds until the message expires, as it was published.
    pub fn message_expiry_interval(&self) -> Option<u32> {
        self.owned.as_ref()?.message_expiry_interval
    }

    /// Bytes on the heap, for those who bound a queue in bytes.
    pub fn heap_size(&self) -> usize {
        let Some(owned) = &self.owned else {
            return 0;
        };
        let identifiers = &owned.subscription_identifiers;
        size_of::<Owned>()
            + owned.response_topic.as_ref().map_or(0, |text| text.len())
            + owned.correlation_data.as_ref().map_or(0, |data| data.len())
            + owned.content_type.as_ref().map_or(0, |text| text.len())
            + if identifiers.spilled() { identifiers.capacity() * size_of::<u32>() } else { 0 }
            + owned.user_properties.heap_size()
    }
}

impl PublishProperties<'_> {
    /// Whether no property is set.
    pub fn is_empty(&self) -> bool {
        self.payload_format_indicator.is_none()
            && self.message_expiry_interval.is_none()
            && self.topic_alias.is_none()
            && self.response_topic.is_none()
            && self.correlation_data.is_none()
            && self.subscription_identifiers.is_empty()
            && self.content_type.is_none()
            && self.user_properties.is_empty()
    }
}

impl From<&PublishProperties<'_>> for PublishPropertiesBuf {
    fn from(properties: &PublishProperties<'_>) -> Self {
        if properties.is_empty() {
            return Self::default();
        }
        let owned = Owned {
            payload_format_indicator: properties.payload_format_indicator,
            message_expiry_interval: properties.message_expiry_interval,
            response_topic: properties.response_topic.map(Box::from),
            correlation_data: properties.correlation_data.map(Box::from),
            subscription_identifiers: properties.subscription_identifiers.clone(),
            content_type: properties.content_type.map(Box::from),
            user_properties: UserPropertiesBuf::from(&properties.user_properties),
        };
        if owned == Owned::default() {
            return Self::default();
        }
        Self { owned: Some(Box::new(owned)) }
    }
}
