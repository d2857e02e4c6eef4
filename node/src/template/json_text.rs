//! Reading JSON where it stands: the members of a text are slices of it, not a tree of copies.
//!
//! A number is its digits, so an integer of any length stays what the device sent. Devices send more than RFC
//! 8259 allows, and one odd member must not hide the others. Accepted beyond the standard:
//!
//! | in the text | becomes |
//! |---|---|
//! | a byte order mark before it, NULs behind it | ignored |
//! | a number beyond the range of a double | its digits |
//! | `NaN`, `Infinity`, `-Infinity` | that word; `null` in JSON |
//! | control characters in a string | the same characters |
//! | bytes that are not UTF-8 in a string | the same bytes; U+FFFD in JSON |
//! | half of a surrogate pair (`\ud800`) | U+FFFD |
//!
//! Anything else that is not JSON, a text that was cut off for example, is [`NotJson`] as a whole.

use std::borrow::Cow;

use super::json;

/// The deepest nesting that is read.
const MAX_DEPTH: u8 = 128;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotJson;

/// The value that a whole text is, without anything around it.
pub(crate) fn document(text: &[u8]) -> Result<&[u8], NotJson> {
    let mut reader = Reader::new(text);
    let value = reader.value(0)?;
    reader.end()?;
    Ok(value)
}

/// The member `name` of a text that is an object: its value as it stands. Of duplicates the last one counts.
/// `None` where there is no such member, or the text is another kind of JSON.
pub(crate) fn member<'t>(text: &'t [u8], name: &str) -> Result<Option<&'t [u8]>, NotJson> {
    let mut reader = Reader::new(text);
    if reader.peek() != Some(b'{') {
        reader.value(0)?;
        reader.end()?;
        return Ok(None);
    }
    let mut found = None;
    reader.object(0, &mut |raw, value| {
        if is_name(raw, name) {
            found = Some(value);
        }
    })?;
    reader.end()?;
    Ok(found)
}

/// Visits the members of an object in order, duplicates included: name, and value as it stands. False where
/// the value is no object.
pub(crate) fn each_member(value: &[u8], mut visit: impl FnMut(&str, &[u8])) -> bool {
    let mut reader = Reader::new(value);
    reader.peek() == Some(b'{')
        && reader.object(0, &mut |raw, value| visit(&String::from_utf8_lossy(&unescaped(raw)), value)).is_ok()
}

/// Visits the elements of an array in order, as they stand. False where the value is no array.
pub(crate) fn each_element(value: &[u8], mut visit: impl FnMut(&[u8])) -> bool {
    let mut reader = Reader::new(value);
    reader.peek() == Some(b'[') && reader.array(0, &mut visit).is_ok()
}

/// The text of a string value, `None` where the value is of another kind. Lent where it has no escapes.
pub(crate) fn string(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let inside = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some(unescaped(inside))
}

/// True for the value `null`.
pub(crate) fn is_null(value: &[u8]) -> bool {
    value == b"null"
}

/// Appends a value as compact, valid JSON: no white space, numbers digit by digit.
pub(crate) fn write_compact(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Some(&byte) = rest.first() {
        match byte {
            b'"' => {
                let length = string_length(rest);
                let (text, behind) = rest.split_at(length);
                let inside = text.get(1..length - 1).unwrap_or_default();
                if inside.iter().all(|byte| *byte >= 0x20 && *byte != b'\\')
                    && std::str::from_utf8(inside).is_ok()
                {
                    out.extend_from_slice(text);
                } else {
                    json::write_string(out, &unescaped(inside));
                }
                rest = behind;
            }
            b' ' | b'\t' | b'\n' | b'\r' => rest = &rest[1..],
            b'N' | b'I' => {
                let word = if byte == b'N' { "NaN" } else { "Infinity" };
                if out.last() == Some(&b'-') {
                    out.pop();
                }
                out.extend_from_slice(b"null");
                rest = rest.get(word.len()..).unwrap_or_default();
            }
            _ => {
                out.push(byte);
                rest = &rest[1..];
            }
        }
    }
}

/// Bytes of the string that a valid text begins with, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

fn is_name(raw: &[u8], name: &str) -> bool {
    // Nearly every name has no escapes.
    raw == name.as_bytes() || (raw.contains(&b'\\') && *unescaped(raw) == *name.as_bytes())
}

/// The text between the quotes of a valid string.
fn unescaped(inside: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = inside.iter().position(|byte| *byte == b'\\') else { return Cow::Borrowed(inside) };
    let (plain, mut rest) = inside.split_at(first);
    let mut text = Vec::with_capacity(inside.len());
    text.extend_from_slice(plain);
    while let [byte, behind @ ..] = rest {
        rest = behind;
        if *byte != b'\\' {
            text.push(*byte);
            continue;
        }
        let Some((letter, behind)) = rest.split_first() else { break };
        rest = behind;
        text.push(match letter {
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let character = escaped_character(&mut rest);
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            same => *same,
        });
    }
    Cow::Owned(text)
}

/// The character of a `\u` escape, whose four digits `rest` begins with, and of the one behind it where both
/// are a pair.
fn escaped_character(rest: &mut &[u8]) -> char {
    let unit = |text: &[u8]| {
        let digits = std::str::from_utf8(text.get(..4)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let first = unit(rest).unwrap_or(0xFFFD);
    *rest = rest.get(4..).unwrap_or_default();
    if !(0xD800..0xDC00).contains(&first) {
        return char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER);
    }
    let second = rest.strip_prefix(b"\\u").and_then(unit).filter(|unit| (0xDC00..0xE000).contains(unit));
    let Some(second) = second else { return char::REPLACEMENT_CHARACTER };
    *rest = rest.get(6..).unwrap_or_default();
    char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00))
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Walks over a text and checks it.
struct Reader<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Reader<'t> {
    /// At the first byte of the text's value.
    fn new(text: &'t [u8]) -> Self {
        let mut reader = Self { text: text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text), at: 0 };
        reader.skip_space();
        reader
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Takes the next byte if it is `wanted`.
    fn take(&mut self, wanted: u8) -> bool {
        let is_it = self.peek() == Some(wanted);
        self.at += usize::from(is_it);
        is_it
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Nothing but white space, then NULs, may follow the value.
    fn end(&mut self) -> Result<(), NotJson> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_filler = |byte: &u8| matches!(byte, 0 | b' ' | b'\t' | b'\n' | b'\r');
        if rest.iter().all(is_filler) { Ok(()) } else { Err(NotJson) }
    }

    fn value(&mut self, depth: u8) -> Result<&'t [u8], NotJson> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => drop(self.string()?),
            Some(b'{') => self.object(depth, &mut |_, _| {})?,
            Some(b'[') => self.array(depth, &mut |_| {})?,
            Some(b't') => self.word(b"true")?,
            Some(b'f') => self.word(b"false")?,
            Some(b'n') => self.word(b"null")?,
            Some(b'N') => self.word(b"NaN")?,
            Some(b'I') => self.word(b"Infinity")?,
            _ => self.number()?,
        }
        Ok(self.text.get(start..self.at).unwrap_or_default())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), NotJson> {
        if !self.text.get(self.at..).unwrap_or_default().starts_with(word) {
            return Err(NotJson);
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(NotJson) }
    }

    fn number(&mut self) -> Result<(), NotJson> {
        if self.take(b'-') && self.peek() == Some(b'I') {
            return self.word(b"Infinity");
        }
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// The text between the quotes, as it stands.
    fn string(&mut self) -> Result<&'t [u8], NotJson> {
        if !self.take(b'"') {
            return Err(NotJson);
        }
        let start = self.at;
        loop {
            match self.peek().ok_or(NotJson)? {
                b'"' => break,
                b'\\' => {
                    self.at += 1;
                    let digits = match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 0,
                        Some(b'u') => 4,
                        _ => return Err(NotJson),
                    };
                    self.at += 1;
                    let hex = self.text.get(self.at..self.at + digits).ok_or(NotJson)?;
                    if !hex.iter().all(u8::is_ascii_hexdigit) {
                        return Err(NotJson);
                    }
                    self.at += digits;
                }
                _ => self.at += 1,
            }
        }
        let inside = self.text.get(start..self.at).unwrap_or_default();
        self.at += 1;
        Ok(inside)
    }

    fn object(&mut self, depth: u8, visit: &mut dyn FnMut(&'t [u8], &'t [u8])) -> Result<(), NotJson> {
        if depth == MAX_DEPTH || !self.take(b'{') {
            return Err(NotJson);
        }
        self.skip_space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let name = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(NotJson);
            }
            self.skip_space();
            let value = self.value(depth + 1)?;
            visit(name, value);
            self.skip_space();
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(NotJson);
            }
            self.skip_space();
        }
    }

    fn array(&mut self, depth: u8, visit: &mut dyn FnMut(&'t [u8])) -> Result<(), NotJson> {
        if depth == MAX_DEPTH || !self.take(b'[') {
            return Err(NotJson);
        }
        self.skip_space();
        if self.take(b']') {
            return Ok(());
        }
        loop {
            let value = self.value(depth + 1)?;
            visit(value);
            self.skip_space();
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(NotJson);
            }
            self.skip_space();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact(value: &[u8]) -> String {
        let mut out = Vec::new();
        write_compact(document(value).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_member_is_what_stands_in_the_text_and_the_last_of_duplicates_counts() {
        let text = br#" {"a": 1, "b" : { "c":[1, 2] } , "a":"x", "\u00e4":null} "#;
        assert_eq!(member(text, "a"), Ok(Some(&b"\"x\""[..])));
        assert_eq!(member(text, "b"), Ok(Some(&br#"{ "c":[1, 2] }"#[..])));
        assert_eq!(member(text, "ä"), Ok(Some(&b"null"[..])));
        assert_eq!(member(text, "none"), Ok(None));
        assert_eq!(member(b"[1]", "a"), Ok(None));
        assert_eq!(member(b"12", "a"), Ok(None));
    }

    #[test]
    fn odd_members_do_not_hide_the_others() {
        for odd in [
            r#"{"id":"m","v":1e400}"#,
            r#"{"id":"m","v":-1E-400}"#,
            r#"{"id":"m","v":"\ud800"}"#,
            r#"{"id":"m","v":"\udc00\ud800x"}"#,
            r#"{"id":"m","v":NaN,"w":[-Infinity,Infinity]}"#,
            "{\"id\":\"m\",\"v\":\"a\nb\"}",
            "\u{FEFF}{\"id\":\"m\"}",
            "{\"id\":\"m\"}\0",
            "{\"id\":\"m\"}\r\n\0\0",
            r#"{"id":"m","v":184467440737095516160000000000}"#,
        ] {
            assert_eq!(member(odd.as_bytes(), "id"), Ok(Some(&b"\"m\""[..])), "{odd}");
            // And what is written of it is JSON for every reader, but for the range of a number.
            let written = compact(odd.as_bytes());
            let read: Result<serde_json::Value, _> = serde_json::from_str(&written);
            assert!(read.is_ok() || odd.contains("e400"), "{odd} became {written}");
        }
        assert_eq!(member(b"{\"id\":\"m\",\"v\":\"\xFF\"}", "v"), Ok(Some(&b"\"\xFF\""[..])));
        assert_eq!(compact(b"{\"v\":\"\xFF\"}"), "{\"v\":\"\u{FFFD}\"}");
    }

    #[test]
    fn what_is_no_json_is_refused_as_a_whole() {
        for text in [
            "",
            " ",
            "\u{FEFF}",
            "x",
            "{",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "[1,]",
            "[1 2]",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":1e}",
            "{\"a\":+1}",
            "{\"a\":-}",
            "{\"a\":tru}",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u12",
            "\"\\",
            "{\"a\":1}{\"a\":2}",
            "{\"a\":1} x",
            "\0{\"a\":1}",
            "{\"a\":1}]",
            "nullx",
            "{'a':1}",
            "{\"a\":--1}",
        ] {
            assert_eq!(document(text.as_bytes()), Err(NotJson), "{text}");
            assert_eq!(member(text.as_bytes(), "a"), Err(NotJson), "{text}");
        }
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(document(&nested(128)).is_ok());
        assert_eq!(document(&nested(129)), Err(NotJson));
        assert_eq!(document(&vec![b'['; 1 << 20]), Err(NotJson));
    }

    #[test]
    fn strings_are_decoded_and_lent_where_they_stand_plain() {
        let decoded = |text: &[u8]| String::from_utf8(string(text).unwrap().into_owned()).unwrap();
        assert!(matches!(string(b"\"plain\""), Some(Cow::Borrowed(b"plain"))));
        assert_eq!(decoded(br#""\"\\\/\b\f\n\r\t""#), "\"\\/\u{8}\u{c}\n\r\t");
        assert_eq!(decoded(br#""x\u00e4\ud83d\ude00y""#), "xä\u{1F600}y");
        assert_eq!(decoded(br#""\ud83d\u0041\ud83d""#), "\u{FFFD}A\u{FFFD}");
        assert_eq!(string(b"12"), None);
    }

    /// Texts made at random of pieces of JSON: whatever the widely used reader takes, this one reads the
    /// same.
    #[test]
    fn it_agrees_with_a_full_parser_on_everything_that_one_takes() {
        const PIECES: [&str; 22] = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"b\\n\"",
            "\"\\u00e4\"",
            "1",
            "-0",
            "2.5",
            "1e3",
            "true",
            "null",
            " ",
            "\n",
            "\"",
            "\\",
            "0",
            "{\"a\":",
            "[1,",
        ];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut taken = 0;
        for _ in 0..200_000 {
            let text: String = (0..=next(9)).map(|_| PIECES[next(PIECES.len())]).collect();
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            let ours = document(text.as_bytes());
            if let Ok(theirs) = theirs {
                taken += 1;
                let read: serde_json::Value = serde_json::from_str(&compact(text.as_bytes())).unwrap();
                assert_eq!(read, theirs, "{text}");
                let member = member(text.as_bytes(), "a").unwrap();
                let member = member.map(|value| serde_json::from_slice::<serde_json::Value>(value).unwrap());
                assert_eq!(member.as_ref(), theirs.get("a"), "{text}");
            } else if ours.is_ok() {
                // Only a raw line break in a string and a number out of range are read beyond what it takes.
                let out_of_range = theirs.unwrap_err().to_string().contains("out of range");
                assert!(text.contains('\n') || out_of_range, "{text}");
            }
        }
        assert!(taken > 1000, "{taken}");
    }

    #[test]
    fn members_and_elements_are_visited_in_order_with_their_duplicates() {
        let mut seen = Vec::new();
        assert!(each_member(br#"{"b":1,"\u0061":"x","b":[2]}"#, |name, value| {
            seen.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
        }));
        let pairs = [("b", "1"), ("a", "\"x\""), ("b", "[2]")];
        assert_eq!(seen, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut elements = Vec::new();
        assert!(each_element(b"[1, {} ,\"x\"]", |value| elements.push(value.to_vec())));
        assert_eq!(elements, [&b"1"[..], b"{}", b"\"x\""]);
        assert!(
            !each_member(b"[]", |_, _| {}) && !each_element(b"{}", |_| {}) && !each_element(b"1", |_| {})
        );
    }
}
