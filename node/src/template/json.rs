//! Writing JSON into a byte buffer, without a tree in between.
//!
//! Output is compact and always valid UTF-8: bytes that are not are replaced by U+FFFD, because a
//! payload is whatever a device sent and the receiver expects JSON.

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    match std::str::from_utf8(text) {
        Ok(valid) => write_escaped(out, valid.as_bytes()),
        Err(_) => write_escaped(out, String::from_utf8_lossy(text).as_bytes()),
    }
    out.push(b'"');
}

/// Appends a decimal integer.
pub fn write_int(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Escape of a byte of a JSON string: 0 nothing, `u` a `\u00XX` escape, else the letter behind a
/// backslash (RFC 8259 section 7).
const ESCAPE: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0A] = b'n';
    table[0x0C] = b'f';
    table[0x0D] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut clean_from = 0;
    for (at, &byte) in text.iter().enumerate() {
        let escape = ESCAPE[usize::from(byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&text[clean_from..at]);
        clean_from = at + 1;
        if escape == b'u' {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 0xF)]);
        } else {
            out.push(b'\\');
            out.push(escape);
        }
    }
    out.extend_from_slice(&text[clean_from..]);
}

/// Writes the members of one object: commas and keys in the right places.
pub struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> ObjectWriter<'a> {
    /// Opens an object.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// Writes a name of ours, which needs no escapes; the value goes into the returned buffer.
    pub fn name(&mut self, name: &'static str) -> &mut Vec<u8> {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn comma(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
    }

    /// A text member.
    pub fn text(&mut self, name: &'static str, value: &[u8]) {
        write_string(self.name(name), value);
    }

    /// A text member, `null` where it is absent.
    pub fn optional_text(&mut self, name: &'static str, value: Option<&[u8]>) {
        write_optional(self.name(name), value);
    }

    /// As [`Self::optional_text`], under a name from outside.
    pub fn optional_member(&mut self, name: &str, value: Option<&[u8]>) {
        self.comma();
        write_string(self.out, name.as_bytes());
        self.out.push(b':');
        write_optional(self.out, value);
    }

    /// An integer member.
    pub fn int(&mut self, name: &'static str, value: i64) {
        write_int(self.name(name), value);
    }

    /// A boolean member.
    pub fn bool(&mut self, name: &'static str, value: bool) {
        self.name(name).extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Closes the object.
    pub fn end(self) {
        self.out.push(b'}');
    }
}

fn write_optional(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => write_string(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &[u8]) -> String {
        let mut out = Vec::new();
        write_string(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_sequence_becomes_a_valid_json_string() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let written = string(&[b'a', first, second, b'z']);
                let parsed: String = serde_json::from_str(&written).unwrap();
                assert_eq!(parsed, String::from_utf8_lossy(&[b'a', first, second, b'z']));
            }
        }
        assert_eq!(string("grün \u{1F600}".as_bytes()), "\"grün \u{1F600}\"");
        assert_eq!(string(b"{\"msg\":\"x\"}\n"), r#""{\"msg\":\"x\"}\n""#);
    }

    #[test]
    fn integers_are_written_plain() {
        for value in [0, 1, -1, 9, 10, -10, i64::MAX, i64::MIN, 1_679_665_968_238] {
            let mut out = Vec::new();
            write_int(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
