//! The template environment of a Kafka record on its way to MQTT: the fields of the user guide's table.
//!
//! `${.}` is compact JSON with its keys in the guide's order: `value`, `ts_type`, `ts`, `topic`,
//! `offset`, `key`, `headers`. A null key or value is `null` there and nothing in other templates.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::collections::HashMap;

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use super::json::ObjectWriter;
use super::{Scope, Slot, Value};

/// How bytes of a key or value become text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As they are; in JSON, invalid UTF-8 is replaced.
    #[default]
    None,
    /// Base64, standard alphabet, padded.
    Base64,
}

/// A header: its key and, unless null, its value.
pub type HeaderPair<'a> = (&'a str, Option<&'a [u8]>);

/// A record as templates see it.
pub struct RecordScope<'a> {
    topic: &'a str,
    offset: i64,
    timestamp: i64,
    timestamp_type: &'static str,
    headers: &'a [HeaderPair<'a>],
    key: Encoded<'a>,
    value: Encoded<'a>,
    not_json: Cell<bool>,
}

/// The plain facts of a record.
#[derive(Debug, Clone, Copy)]
pub struct RecordFacts<'a> {
    /// Kafka topic.
    pub topic: &'a str,
    /// Offset in its partition.
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// `create`, `append` or `undefined`.
    pub timestamp_type: &'static str,
    /// Key, unless null.
    pub key: Option<&'a [u8]>,
    /// Value, unless null.
    pub value: Option<&'a [u8]>,
    /// Headers in order.
    pub headers: &'a [HeaderPair<'a>],
}

struct Encoded<'a> {
    raw: Option<&'a [u8]>,
    encoding: Encoding,
    made: OnceCell<String>,
}

impl Encoded<'_> {
    fn text(&self) -> Option<&[u8]> {
        let raw = self.raw?;
        Some(match self.encoding {
            Encoding::None => raw,
            Encoding::Base64 => {
                self.made.get_or_init(|| base64::engine::general_purpose::STANDARD.encode(raw)).as_bytes()
            }
        })
    }

    fn value(&self) -> Value<'_> {
        self.text().map_or(Value::Missing, Value::Bytes)
    }
}

/// Top-level names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name it stands for")]
pub enum RecordSlot {
    Headers,
    Key,
    Offset,
    Topic,
    Ts,
    TsType,
    Value,
}

impl<'a> RecordScope<'a> {
    /// The environment of a record with the bridge's encodings.
    pub fn new(record: RecordFacts<'a>, key: Encoding, value: Encoding) -> Self {
        Self {
            topic: record.topic,
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type: record.timestamp_type,
            headers: record.headers,
            key: Encoded { raw: record.key, encoding: key, made: OnceCell::new() },
            value: Encoded { raw: record.value, encoding: value, made: OnceCell::new() },
            not_json: Cell::new(false),
        }
    }

    /// Whether a template asked for a member of a key, value or header that is not JSON.
    pub(crate) fn not_json(&self) -> bool {
        self.not_json.get()
    }

    fn write_headers(&self, out: &mut Vec<u8>) {
        // Of duplicate keys the last one stays.
        let last: HashMap<&str, usize> =
            self.headers.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        let mut object = ObjectWriter::new(out);
        for (at, (key, value)) in self.headers.iter().enumerate() {
            if last.get(key) == Some(&at) {
                object.optional_member(key, *value);
            }
        }
        object.end();
    }
}

impl Slot for RecordSlot {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "headers" => RecordSlot::Headers,
            "key" => RecordSlot::Key,
            "offset" => RecordSlot::Offset,
            "topic" => RecordSlot::Topic,
            "ts" => RecordSlot::Ts,
            "ts_type" => RecordSlot::TsType,
            "value" => RecordSlot::Value,
            _ => return None,
        })
    }
}

impl Scope for RecordScope<'_> {
    type Slot = RecordSlot;

    fn value(&self, slot: RecordSlot) -> Value<'_> {
        match slot {
            RecordSlot::Headers => {
                let mut text = Vec::new();
                self.write_headers(&mut text);
                Value::Json(Cow::Owned(text))
            }
            RecordSlot::Key => self.key.value(),
            RecordSlot::Offset => Value::Int(self.offset),
            RecordSlot::Topic => Value::Bytes(self.topic.as_bytes()),
            RecordSlot::Ts => Value::Int(self.timestamp),
            RecordSlot::TsType => Value::Bytes(self.timestamp_type.as_bytes()),
            RecordSlot::Value => self.value.value(),
        }
    }

    fn member(&self, slot: RecordSlot, key: &str) -> Option<Value<'_>> {
        if slot != RecordSlot::Headers {
            return None;
        }
        let found = self.headers.iter().rev().find(|(name, _)| *name == key);
        Some(found.and_then(|(_, value)| *value).map_or(Value::Missing, Value::Bytes))
    }

    fn note_not_json(&self, _: RecordSlot) {
        self.not_json.set(true);
    }

    fn write_whole(&self, out: &mut Vec<u8>) {
        let mut object = ObjectWriter::new(out);
        object.optional_text("value", self.value.text());
        object.text("ts_type", self.timestamp_type.as_bytes());
        object.int("ts", self.timestamp);
        object.text("topic", self.topic.as_bytes());
        object.int("offset", self.offset);
        object.optional_text("key", self.key.text());
        self.write_headers(object.name("headers"));
        object.end();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Template;
    use super::*;

    fn render(template: &str, facts: RecordFacts<'_>, key: Encoding, value: Encoding) -> String {
        let mut out = Vec::new();
        Template::compile(template).render(&RecordScope::new(facts, key, value), &mut out);
        String::from_utf8(out).unwrap()
    }

    const GUIDE: RecordFacts<'_> = RecordFacts {
        topic: "my-kafka-topic",
        offset: 2,
        timestamp: 1_679_665_968_238,
        timestamp_type: "create",
        key: Some(b"key"),
        value: Some(b"value"),
        headers: &[("header_key", Some(b"header_value"))],
    };

    #[test]
    fn the_whole_environment_is_the_guides_object() {
        assert_eq!(
            render("${.}", GUIDE, Encoding::None, Encoding::None),
            r#"{"value":"value","ts_type":"create","ts":1679665968238,"topic":"my-kafka-topic","offset":2,"key":"key","headers":{"header_key":"header_value"}}"#
        );
    }

    #[test]
    fn fields_headers_and_absent_values_render_as_the_guide_says() {
        for (template, expected) in [
            ("v = ${.value}", "v = value"),
            ("${.headers.header_key}", "header_value"),
            ("${.headers.nothing}", ""),
            ("${headers}", r#"{"header_key":"header_value"}"#),
            ("${topic}/${offset}/${ts}/${ts_type}/${key}", "my-kafka-topic/2/1679665968238/create/key"),
        ] {
            assert_eq!(render(template, GUIDE, Encoding::None, Encoding::None), expected);
        }
    }

    #[test]
    fn nulls_are_null_in_json_and_nothing_elsewhere_and_of_duplicate_headers_the_last_stays() {
        let facts = RecordFacts {
            key: None,
            value: None,
            headers: &[("a", Some(b"1")), ("b", None), ("a", Some(b"2"))],
            ..GUIDE
        };
        assert_eq!(
            render("${.}", facts, Encoding::None, Encoding::None),
            r#"{"value":null,"ts_type":"create","ts":1679665968238,"topic":"my-kafka-topic","offset":2,"key":null,"headers":{"b":null,"a":"2"}}"#
        );
        assert_eq!(
            render("[${key}${value}${headers.b}${headers.a}]", facts, Encoding::Base64, Encoding::Base64),
            "[2]"
        );
    }

    #[test]
    fn base64_keeps_binary_whole_and_json_stays_valid() {
        let facts = RecordFacts { key: Some(b"\xff\x00"), value: Some(b"\xcb\x48\xcd"), ..GUIDE };
        assert_eq!(render("${key} ${value}", facts, Encoding::Base64, Encoding::Base64), "/wA= y0jN");
        let whole = render("${.}", facts, Encoding::None, Encoding::None);
        let parsed: serde_json::Value = serde_json::from_str(&whole).unwrap();
        assert_eq!(parsed["key"], "\u{fffd}\u{0}");
    }

    #[test]
    fn numbers_of_a_value_keep_their_digits_and_a_value_that_is_no_json_is_noted() {
        let value = b"\xEF\xBB\xBF{\"iccid\":89490200001234567890,\"odd\":1e400}\0";
        let facts = RecordFacts {
            value: Some(value),
            headers: &[("h", Some(b"{\"n\":18446744073709551616}"))],
            ..GUIDE
        };
        assert_eq!(
            render("${.value.iccid}/${headers.h.n}", facts, Encoding::None, Encoding::None),
            "89490200001234567890/18446744073709551616"
        );
        let noted = |template: &str, encoding| {
            let scope = RecordScope::new(facts, encoding, encoding);
            Template::compile(template).render(&scope, &mut Vec::new());
            scope.not_json()
        };
        assert!(!noted("${value.iccid}${value.none}${value}${key}${.}", Encoding::None));
        assert!(noted("${key.id}", Encoding::None));
        assert!(noted("${value.iccid}", Encoding::Base64), "the text of an encoded value is Base64");
    }
}
