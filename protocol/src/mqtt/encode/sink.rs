//! Where encoded bytes go: into a buffer, or into a counter that only learns how many there are.

use bytes::{BufMut, BytesMut};

use super::super::UserProperties;
use super::super::error::EncodeError;
use super::super::property::id;
use super::super::reader::MAX_VARIABLE_BYTE_INTEGER;

pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// `value` is at most 268,435,455: callers check what comes from outside.
    fn put_variable_byte_integer(&mut self, mut value: u32) {
        debug_assert!(value <= MAX_VARIABLE_BYTE_INTEGER);
        while value >= 0x80 {
            self.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8(value as u8);
    }

    /// A string or binary data with its length in front (MQTT-5.0 1.5.4, 1.5.6).
    fn put_field(&mut self, field: &'static str, bytes: &[u8]) -> Result<(), EncodeError> {
        let length = u16::try_from(bytes.len())
            .map_err(|_| EncodeError::FieldTooLong { field, length: bytes.len() })?;
        self.put_u16(length);
        self.put(bytes);
        Ok(())
    }

    /// A packet identifier, never 0 (MQTT-2.2.1-2 to 2.2.1-4).
    fn put_packet_identifier(&mut self, identifier: u16) -> Result<(), EncodeError> {
        if identifier == 0 {
            return Err(EncodeError::PacketIdentifierZero);
        }
        self.put_u16(identifier);
        Ok(())
    }

    fn put_u8_property(&mut self, identifier: u8, value: Option<u8>) {
        if let Some(value) = value {
            self.put(&[identifier, value]);
        }
    }

    fn put_bool_property(&mut self, identifier: u8, value: Option<bool>) {
        self.put_u8_property(identifier, value.map(u8::from));
    }

    fn put_u16_property(&mut self, identifier: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.put_u8(identifier);
            self.put_u16(value);
        }
    }

    fn put_u32_property(&mut self, identifier: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.put_u8(identifier);
            self.put_u32(value);
        }
    }

    fn put_string_property(
        &mut self,
        identifier: u8,
        field: &'static str,
        value: Option<&str>,
    ) -> Result<(), EncodeError> {
        self.put_binary_property(identifier, field, value.map(str::as_bytes))
    }

    fn put_binary_property(
        &mut self,
        identifier: u8,
        field: &'static str,
        value: Option<&[u8]>,
    ) -> Result<(), EncodeError> {
        let Some(value) = value else {
            return Ok(());
        };
        self.put_u8(identifier);
        self.put_field(field, value)
    }

    fn put_user_properties(&mut self, properties: &UserProperties<'_>) -> Result<(), EncodeError> {
        for (name, value) in properties {
            self.put_u8(id::USER_PROPERTY);
            self.put_field("user property name", name.as_bytes())?;
            self.put_field("user property value", value.as_bytes())?;
        }
        Ok(())
    }
}

impl Sink for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }
}

/// Counts what would be written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter(usize);

impl Counter {
    pub(super) fn length(self) -> usize {
        self.0
    }
}

impl Sink for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// How many bytes a variable byte integer takes (MQTT-5.0 1.5.5).
pub(super) fn variable_byte_integer_len(value: u32) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}
