//! Headers of a record: what `kafka_headers` names, then the `kafka_ext_headers`, in order, duplicates kept.
//!
//! Headers made from the value of `kafka_headers`:
//!
//! | value | headers |
//! |---|---|
//! | an object | one a member |
//! | an array of objects with `key` and `value` | one an element |
//! | the JSON text of one of these | the same |
//! | missing, `null` | none |
//! | anything else | the message cannot be carried: [`NoHeaders`] |
//!
//! A further header is left out where a placeholder of its key or value has no value. With the encoding
//! `none` only values that are text (or bytes) are written, as they are; with `json` every value is, as JSON.
//!
//! Names and values are lent from the message where it has them as they are; only what must be made is made,
//! in the buffers of a [`HeaderSpace`] that its owner keeps.

use std::ops::Range;

use causeway_protocol::kafka::batch::Header;
use smallvec::SmallVec;

use crate::config::{ExtHeaderConfig, HeaderEncoding};
use crate::template::json;
use crate::template::json_text;
use crate::template::{Scope, Slot, Template, Value, has_placeholder};

/// The value of `kafka_headers` is nothing that headers can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoHeaders;

/// The headers of a bridge's records, compiled.
#[derive(Debug)]
pub(super) struct Headers<N: Slot> {
    from_message: Option<Template<N>>,
    further: Box<[ExtraHeader<N>]>,
    encoding: HeaderEncoding,
}

#[derive(Debug)]
struct ExtraHeader<N: Slot> {
    key: Name<N>,
    value: HeaderValue<N>,
}

#[derive(Debug)]
enum Name<N: Slot> {
    Fixed(Box<str>),
    Made(Template<N>),
}

#[derive(Debug)]
enum HeaderValue<N: Slot> {
    /// Encoded already.
    Fixed(Box<[u8]>),
    Made(Template<N>),
}

/// Room for what has to be made for the headers of one message.
#[derive(Debug, Default)]
pub(super) struct HeaderSpace {
    names: String,
    values: Vec<u8>,
}

enum HeaderText<'a, T: ?Sized> {
    HeaderText(&'a T),
    Made(Range<usize>),
}

/// Name and value of a header.
type Pair<'a> = (HeaderText<'a, str>, HeaderText<'a, [u8]>);

/// Most messages have few.
type Pairs<'a> = SmallVec<[Pair<'a>; 8]>;

/// The headers of one message.
pub(super) struct Assembled<'a>(Pairs<'a>);

impl HeaderSpace {
    /// Gives buffers back that grew beyond `kept` bytes.
    pub(super) fn shrink(&mut self, kept: usize) {
        if self.names.capacity() > kept {
            self.names = String::new();
        }
        if self.values.capacity() > kept {
            self.values = Vec::new();
        }
    }
}

impl Assembled<'_> {
    /// As the record wants them.
    pub(super) fn with<'h>(&'h self, space: &'h HeaderSpace) -> SmallVec<[Header<'h>; 8]> {
        let header = |(name, value): &'h Pair<'_>| Header {
            key: match name {
                HeaderText::HeaderText(name) => name,
                HeaderText::Made(range) => space.names.get(range.clone()).unwrap_or_default(),
            },
            value: Some(match value {
                HeaderText::HeaderText(value) => value,
                HeaderText::Made(range) => space.values.get(range.clone()).unwrap_or_default(),
            }),
        };
        self.0.iter().map(header).collect()
    }
}

impl<N: Slot> Headers<N> {
    /// Compiles the three settings; `None` where no header is asked for.
    pub(super) fn compile(
        from_message: Option<&str>,
        further: &[ExtHeaderConfig],
        encoding: HeaderEncoding,
    ) -> Option<Self> {
        let further: Box<[_]> = further.iter().map(|header| ExtraHeader::compile(header, encoding)).collect();
        let from_message = from_message.map(Template::compile);
        (from_message.is_some() || !further.is_empty()).then_some(Self { from_message, further, encoding })
    }

    /// The headers of one message.
    pub(super) fn assemble<'a, S: Scope<Slot = N>>(
        &'a self,
        scope: &'a S,
        space: &mut HeaderSpace,
    ) -> Result<Assembled<'a>, NoHeaders> {
        space.names.clear();
        space.values.clear();
        let mut out = Out { headers: SmallVec::new(), space, encoding: self.encoding };
        if let Some(template) = &self.from_message
            && !template.members(scope, &mut |name, value| out.add(HeaderText::HeaderText(name), value))
        {
            match template.value(scope) {
                Value::Missing => {}
                Value::Json(json) if json_text::is_null(&json) => {}
                Value::Json(json) => out.add_json(&json)?,
                Value::Bytes(text) => out.add_text(text)?,
                Value::Text(text) => out.add_text(&text)?,
                Value::Int(_) | Value::Bool(_) => return Err(NoHeaders),
            }
        }
        for further in &self.further {
            let name = match &further.key {
                Name::Fixed(name) => HeaderText::HeaderText(&**name),
                Name::Made(template) => {
                    let mut text = Vec::new();
                    if !template.render_whole(scope, &mut text) {
                        continue;
                    }
                    out.name(&String::from_utf8_lossy(&text))
                }
            };
            match &further.value {
                HeaderValue::Fixed(value) => out.headers.push((name, HeaderText::HeaderText(value))),
                HeaderValue::Made(template) => out.add(name, template.value(scope)),
            }
        }
        Ok(Assembled(out.headers))
    }
}

impl<N: Slot> ExtraHeader<N> {
    fn compile(header: &ExtHeaderConfig, encoding: HeaderEncoding) -> Self {
        let (key, value) = (&header.kafka_ext_header_key, &header.kafka_ext_header_value);
        let key = if has_placeholder(key) {
            Name::Made(Template::compile(key))
        } else {
            Name::Fixed(key.as_str().into())
        };
        let value = if has_placeholder(value) {
            HeaderValue::Made(Template::compile(value))
        } else {
            let mut text = Vec::new();
            match encoding {
                HeaderEncoding::None => text.extend_from_slice(value.as_bytes()),
                HeaderEncoding::Json => json::write_string(&mut text, value.as_bytes()),
            }
            HeaderValue::Fixed(text.into())
        };
        Self { key, value }
    }
}

/// Headers under construction.
struct Out<'a, 's> {
    headers: Pairs<'a>,
    space: &'s mut HeaderSpace,
    encoding: HeaderEncoding,
}

impl<'a> Out<'a, '_> {
    fn name(&mut self, name: &str) -> HeaderText<'a, str> {
        let start = self.space.names.len();
        self.space.names.push_str(name);
        HeaderText::Made(start..self.space.names.len())
    }

    /// Adds a header, unless its value is missing or the encoding leaves it out.
    fn add(&mut self, name: HeaderText<'a, str>, value: Value<'a>) {
        let start = self.space.values.len();
        let values = &mut self.space.values;
        match (self.encoding, value) {
            (HeaderEncoding::None, Value::Bytes(bytes)) => {
                self.headers.push((name, HeaderText::HeaderText(bytes)));
                return;
            }
            (HeaderEncoding::None, Value::Text(text)) => values.extend_from_slice(&text),
            (_, Value::Missing) | (HeaderEncoding::None, Value::Int(_) | Value::Bool(_) | Value::Json(_)) => {
                return;
            }
            (HeaderEncoding::Json, Value::Bytes(bytes)) => json::write_string(values, bytes),
            (HeaderEncoding::Json, Value::Text(text)) => json::write_string(values, &text),
            (HeaderEncoding::Json, Value::Int(value)) => json::write_int(values, value),
            (HeaderEncoding::Json, Value::Bool(value)) => {
                values.extend_from_slice(if value { b"true" } else { b"false" });
            }
            (HeaderEncoding::Json, Value::Json(json)) => json_text::write_compact(&json, values),
        }
        let end = self.space.values.len();
        self.headers.push((name, HeaderText::Made(start..end)));
    }

    /// Adds a header with a JSON value, unless the encoding leaves it out.
    fn add_member(&mut self, name: &str, value: &[u8]) {
        let name = self.name(name);
        let start = self.space.values.len();
        match self.encoding {
            HeaderEncoding::Json => json_text::write_compact(value, &mut self.space.values),
            HeaderEncoding::None => match json_text::string(value) {
                Some(text) => self.space.values.extend_from_slice(&text),
                None => return,
            },
        }
        let end = self.space.values.len();
        self.headers.push((name, HeaderText::Made(start..end)));
    }

    /// Adds the headers that a JSON value stands for.
    fn add_json(&mut self, json: &[u8]) -> Result<(), NoHeaders> {
        if json_text::each_member(json, |name, value| self.add_member(name, value)) {
            return Ok(());
        }
        let mut all = Ok(());
        if json_text::each_element(json, |element| {
            all = all.and_then(|()| self.add_pair(element));
        }) {
            return all;
        }
        Err(NoHeaders)
    }

    /// Adds the headers that a text stands for.
    fn add_text(&mut self, text: &[u8]) -> Result<(), NoHeaders> {
        let json = json_text::document(text).map_err(|_| NoHeaders)?;
        // A string may hold JSON text once more.
        match json_text::string(json) {
            Some(inner) => self.add_json(json_text::document(&inner).map_err(|_| NoHeaders)?),
            None => self.add_json(json),
        }
    }

    /// Adds the header that an element of a list stands for.
    fn add_pair(&mut self, element: &[u8]) -> Result<(), NoHeaders> {
        let part = |name| json_text::member(element, name).unwrap_or(None).ok_or(NoHeaders);
        let (name, value) = (json_text::string(part("key")?).ok_or(NoHeaders)?, part("value")?);
        self.add_member(&String::from_utf8_lossy(&name), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use causeway_protocol::mqtt::{PublishProperties, QoS, UserPropertiesBuf};

    use super::*;
    use crate::flow::{Message, Origin};
    use crate::template::publish::{PublishScope, PublishSlot};

    type Texts = Vec<(String, String)>;

    struct Case<'a> {
        payload: &'a [u8],
        properties: PublishProperties<'a>,
        further: &'a [(&'a str, &'a str)],
        encoding: HeaderEncoding,
    }

    impl Default for Case<'_> {
        fn default() -> Self {
            Self {
                payload: b"",
                properties: PublishProperties::default(),
                further: &[],
                encoding: HeaderEncoding::None,
            }
        }
    }

    impl Case<'_> {
        fn headers(&self, from_message: Option<&str>) -> Result<Texts, NoHeaders> {
            let origin = Arc::new(Origin { client_id: "c1".into(), username: None, peer: None });
            let message = Message {
                origin: &origin,
                topic: "t/1",
                payload: self.payload,
                qos: QoS::AtLeastOnce,
                retain: false,
                dup: false,
                properties: &self.properties,
                received_at: 1_700_000_000_000,
                hops: 0,
            };
            let further: Vec<_> = self
                .further
                .iter()
                .map(|(key, value)| ExtHeaderConfig {
                    kafka_ext_header_key: (*key).into(),
                    kafka_ext_header_value: (*value).into(),
                })
                .collect();
            let Some(headers) = Headers::<PublishSlot>::compile(from_message, &further, self.encoding) else {
                return Ok(Texts::new());
            };
            let (scope, mut space) = (PublishScope::new(&message, "n1"), HeaderSpace::default());
            let assembled = headers.assemble(&scope, &mut space)?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let pair = |header: &Header<'_>| (header.key.to_owned(), text(header.value.unwrap()));
            Ok(assembled.with(&space).iter().map(pair).collect())
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is compared with results")]
    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Result<Texts, NoHeaders> {
        Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec())
    }

    fn payload(payload: &str, encoding: HeaderEncoding) -> Result<Texts, NoHeaders> {
        Case { payload: payload.as_bytes(), encoding, ..Case::default() }.headers(Some("${payload.h}"))
    }

    /// P7
    #[test]
    fn own_headers_come_first_then_the_further_ones_and_json_quotes_texts() {
        let case = Case {
            payload: br#"{"h": {"foo": "bar", "n": 1.5, "deep": {"a": [1]}, "no": null}}"#,
            further: &[("clientid", "${clientid}"), ("x-${topic}", "plain")],
            encoding: HeaderEncoding::Json,
            ..Case::default()
        };
        assert_eq!(
            case.headers(Some("${payload.h}")),
            pairs([
                ("foo", "\"bar\""),
                ("n", "1.5"),
                ("deep", r#"{"a":[1]}"#),
                ("no", "null"),
                ("clientid", "\"c1\""),
                ("x-t/1", "\"plain\""),
            ])
        );
        let plain = Case { encoding: HeaderEncoding::None, ..case };
        assert_eq!(
            plain.headers(Some("${payload.h}")),
            pairs([("foo", "bar"), ("clientid", "c1"), ("x-t/1", "plain")])
        );
    }

    /// P8
    #[test]
    fn pairs_keep_their_order_and_their_duplicates() {
        let wanted = pairs([("b", "1"), ("a", "2"), ("b", "3")]);
        let text = r#"[{"key":"b","value":"1"},{"key":"a","value":"2"},{"value":"3","key":"b"}]"#;
        assert_eq!(payload(&format!(r#"{{"h": {text}}}"#), HeaderEncoding::None), wanted);
        // The same as JSON text within JSON, and as the whole payload.
        let quoted = serde_json::json!({ "h": text }).to_string();
        assert_eq!(payload(&quoted, HeaderEncoding::None), wanted);
        let whole = Case { payload: text.as_bytes(), ..Case::default() };
        assert_eq!(whole.headers(Some("${payload}")), wanted);
    }

    /// P11
    #[test]
    fn what_is_neither_an_object_nor_pairs_is_refused() {
        for value in [
            r#""wrong_header""#,
            r#"[{"foo":"bar"}]"#,
            r#"[{"key":"a"},{"value":"b"}]"#,
            r#"[{"key":1,"value":"b"}]"#,
            r#"["a","b"]"#,
            r#""[1]""#,
            "12",
            "true",
            r#""""#,
        ] {
            let wrong = format!(r#"{{"h": {value}}}"#);
            assert_eq!(payload(&wrong, HeaderEncoding::None), Err(NoHeaders), "{value}");
        }
        let plain = Case { payload: b"plain text", ..Case::default() };
        assert_eq!(plain.headers(Some("${payload}")), Err(NoHeaders));
        assert_eq!(plain.headers(Some("${qos}")), Err(NoHeaders));
    }

    #[test]
    fn what_is_missing_or_null_gives_no_headers() {
        for text in [r"{}", "not json", r#"{"h": null}"#, r#"{"h": {}}"#, r#"{"h": []}"#] {
            assert_eq!(payload(text, HeaderEncoding::Json), pairs([]), "{text}");
        }
        assert_eq!(Case::default().headers(Some("${nobody}")), pairs([]));
        assert_eq!(Case::default().headers(None), pairs([]));
    }

    /// P12
    #[test]
    fn a_further_header_without_its_placeholder_is_left_out() {
        let case = Case {
            payload: br#"{"here": "1"}"#,
            further: &[
                ("a", "${payload.there}"),
                ("b-${payload.there}", "x"),
                ("c-${payload.here}", "${payload.here}"),
                ("d", "${username}"),
            ],
            ..Case::default()
        };
        assert_eq!(case.headers(None), pairs([("c-1", "1")]));
    }

    #[test]
    fn user_properties_become_headers_as_the_named_part_of_pub_props_says() {
        let mut users = UserPropertiesBuf::new();
        for (key, value) in [("k", "1"), ("other", "x"), ("k", "2")] {
            users.push(key, value).unwrap();
        }
        let properties = PublishProperties {
            content_type: Some("text/plain"),
            message_expiry_interval: Some(60),
            correlation_data: Some(b"abc"),
            user_properties: users.borrow(),
            ..PublishProperties::default()
        };
        let case = |encoding| Case { properties: properties.clone(), encoding, ..Case::default() };
        let plain = case(HeaderEncoding::None);
        assert_eq!(
            plain.headers(Some("${pub_props.User-Property-Pairs}")),
            pairs([("k", "1"), ("other", "x"), ("k", "2")])
        );
        assert_eq!(plain.headers(Some("${pub_props.User-Property}")), pairs([("k", "2"), ("other", "x")]));
        assert_eq!(
            plain.headers(Some("${pub_props}")),
            pairs([("Correlation-Data", "abc"), ("Content-Type", "text/plain")])
        );
        assert_eq!(
            case(HeaderEncoding::Json).headers(Some("${pub_props}")),
            pairs([
                (
                    "User-Property-Pairs",
                    r#"[{"value":"1","key":"k"},{"value":"x","key":"other"},{"value":"2","key":"k"}]"#
                ),
                ("User-Property", r#"{"k":"2","other":"x"}"#),
                ("Message-Expiry-Interval", "60"),
                ("Correlation-Data", "\"abc\""),
                ("Content-Type", "\"text/plain\""),
            ])
        );
        let none = Case::default();
        assert_eq!(none.headers(Some("${pub_props.User-Property-Pairs}")), pairs([]));
        assert_eq!(none.headers(Some("${pub_props}")), pairs([]));
    }

    #[test]
    fn bytes_that_are_no_text_stay_what_they_are() {
        let origin = Arc::new(Origin { client_id: "c".into(), username: None, peer: None });
        let properties =
            PublishProperties { correlation_data: Some(&[0, 255, 254]), ..PublishProperties::default() };
        let message = Message {
            origin: &origin,
            topic: "t",
            payload: b"",
            qos: QoS::AtMostOnce,
            retain: false,
            dup: false,
            properties: &properties,
            received_at: 0,
            hops: 0,
        };
        let further = [ExtHeaderConfig {
            kafka_ext_header_key: "id".into(),
            kafka_ext_header_value: "${pub_props.Correlation-Data}".into(),
        }];
        let headers = Headers::<PublishSlot>::compile(None, &further, HeaderEncoding::None).unwrap();
        let (scope, mut space) = (PublishScope::new(&message, "n"), HeaderSpace::default());
        let assembled = headers.assemble(&scope, &mut space).unwrap();
        assert_eq!(assembled.with(&space)[0].value, Some(&[0, 255, 254][..]));
    }
}
