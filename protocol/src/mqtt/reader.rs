//! Reads the data types of MQTT-5.0 1.5 from a slice. Every read is checked against what is there: a
//! length that is not backed by bytes is an error, never an allocation.

use memchr::memchr;

use super::error::{DecodeError, malformed, protocol};

/// The largest value of a variable byte integer (MQTT-5.0 1.5.5).
pub(super) const MAX_VARIABLE_BYTE_INTEGER: u32 = 268_435_455;

#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// Bytes that have not been read.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses bytes behind the end of a packet.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(malformed("bytes behind the end of the packet: none must be left")
            .with_value(self.rest.len() as u32))
    }

    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(malformed("a field reaches past the end of the packet"))?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) =
            self.rest.split_first_chunk::<N>().ok_or(malformed("the packet ends inside a field"))?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A packet identifier, never 0 (MQTT-2.2.1-3).
    #[inline]
    pub(super) fn packet_identifier(&mut self) -> Result<u16, DecodeError> {
        match self.u16()? {
            0 => Err(protocol("packet identifier 0: must be 1 to 65535")),
            identifier => Ok(identifier),
        }
    }

    /// A variable byte integer in its shortest form (MQTT-5.0 1.5.5, MQTT-1.5.5-1).
    pub(super) fn variable_byte_integer(&mut self) -> Result<u32, DecodeError> {
        match VariableByteInteger::read(self.rest) {
            VariableByteInteger::Complete { value, length, minimal: true } => {
                self.take(length)?;
                Ok(value)
            }
            VariableByteInteger::Complete { value, .. } => {
                Err(malformed("variable byte integer with more bytes than it needs").with_value(value))
            }
            VariableByteInteger::Incomplete => {
                Err(malformed("the packet ends inside a variable byte integer"))
            }
            VariableByteInteger::TooLong => Err(malformed("variable byte integer of more than 4 bytes")),
        }
    }

    /// Binary data (MQTT-5.0 1.5.6).
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// A UTF-8 string that may still hold U+0000: for those who look for it in the same pass as for
    /// other characters.
    #[inline]
    pub(super) fn string_with_nulls(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.binary()?).map_err(|_| malformed("string that is not valid UTF-8"))
    }

    /// A UTF-8 encoded string (MQTT-5.0 1.5.4): no surrogates, no U+0000.
    #[inline]
    pub(super) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let text = self.string_with_nulls()?;
        if memchr(0, text.as_bytes()).is_some() {
            return Err(malformed("string with U+0000"));
        }
        Ok(text)
    }
}

/// A variable byte integer at the start of a slice, in whatever form (MQTT-5.0 1.5.5).
pub(super) enum VariableByteInteger {
    Complete {
        value: u32,
        length: usize,
        /// It has no more bytes than the value needs.
        minimal: bool,
    },
    Incomplete,
    TooLong,
}

impl VariableByteInteger {
    #[inline]
    pub(super) fn read(input: &[u8]) -> Self {
        if let Some(&byte) = input.first()
            && byte < 0x80
        {
            return Self::Complete { value: u32::from(byte), length: 1, minimal: true };
        }
        Self::read_long(input)
    }

    fn read_long(input: &[u8]) -> Self {
        let mut value = 0;
        for (index, &byte) in input.iter().take(4).enumerate() {
            value |= u32::from(byte & 0x7F) << (7 * index);
            if byte < 0x80 {
                return Self::Complete { value, length: index + 1, minimal: index == 0 || byte != 0 };
            }
        }
        if input.len() < 4 { Self::Incomplete } else { Self::TooLong }
    }
}
