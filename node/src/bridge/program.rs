//! Templates of a producer bridge, compiled once, that make a record of a message.
//!
//! A message costs the rendering of three templates (a template that is one text of the message is lent, not
//! copied) and, where the bridge has any, its headers. What has to be made is made in buffers that each
//! thread keeps.

use std::cell::RefCell;

use causeway_protocol::kafka::batch::Record;
use causeway_protocol::mqtt::ReasonCode;
use smallvec::SmallVec;

use super::headers::{HeaderSpace, Headers, NoHeaders};
use super::hops;
use crate::config::{ProducerKafkaConfig, is_kafka_topic};
use crate::flow::Message;
use crate::kafka::producer::NoTopic;
use crate::template::publish::{PublishScope, PublishSlot};
use crate::template::{Template, has_placeholder};
use crate::throttle::Doublings;

/// Scratch buffers that grew beyond this many bytes are given back after the message: one large message
/// must not pin its size on every thread.
const SCRATCH_KEPT: usize = 64 * 1024;

/// A bridge's templates, compiled.
#[derive(Debug)]
pub(super) struct Program {
    /// Where the topic is a template.
    topic: Option<Template<PublishSlot>>,
    key: Template<PublishSlot>,
    value: Template<PublishSlot>,
    timestamp: Template<PublishSlot>,
    headers: Option<Headers<PublishSlot>>,
    empty_key_is_null: bool,
    empty_value_is_null: bool,
    bridge: Box<str>,
    /// Messages of which a template wanted a member and which are not JSON.
    not_json: Doublings,
}

/// Why a message cannot become the record that the bridge wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RenderError {
    /// The value of `kafka_headers` is neither an object nor pairs.
    Headers,
    /// A placeholder of the topic has no value.
    TopicIncomplete,
    /// The topic's template gives no legal name.
    TopicName,
    /// Kafka does not know the topic, or does not let us write to it.
    NoTopic(NoTopic),
    /// It has passed Kafka too often: [`hops::LIMIT`].
    Hops,
}

/// Rendered message.
pub(super) struct Rendered<'a> {
    /// As much of it as could be made, where it is unfit.
    pub(super) record: Record<'a>,
    /// Where the topic is a template: its name, as far as it could be made.
    pub(super) topic: Option<&'a str>,
    /// Why it cannot be sent.
    pub(super) unfit: Option<RenderError>,
}

impl RenderError {
    /// Reason code for the publisher.
    pub(super) fn reason(self) -> ReasonCode {
        match self {
            Self::Headers => ReasonCode::PayloadFormatInvalid,
            Self::TopicIncomplete | Self::TopicName => ReasonCode::TopicNameInvalid,
            Self::NoTopic(why) => why.reason(),
            Self::Hops => ReasonCode::ImplementationSpecificError,
        }
    }

    /// In words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Headers => "the value of kafka_headers is neither an object nor a list of key and value",
            Self::TopicIncomplete => "a placeholder of the topic has no value",
            Self::TopicName => "the topic's template does not give a legal topic name",
            Self::NoTopic(why) => why.words(),
            Self::Hops => {
                "it has passed Kafka 16 times: bridges send messages round in a loop, change one of their topics"
            }
        }
    }
}

#[derive(Default)]
struct Scratch {
    topic: Vec<u8>,
    key: Vec<u8>,
    value: Vec<u8>,
    timestamp: Vec<u8>,
    headers: HeaderSpace,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Program {
    /// Compiles the templates of a bridge; warns of names that no message has.
    pub(super) fn compile(bridge: &str, config: &ProducerKafkaConfig) -> Self {
        let compile = |field: &str, text: &str| {
            for name in Template::<PublishSlot>::unknown_names(text) {
                tracing::warn!(bridge, field, name, "no message has this name, it renders as nothing");
            }
            Template::compile(text)
        };
        let message = &config.message;
        Self {
            topic: has_placeholder(&config.topic).then(|| compile("topic", &config.topic)),
            key: compile("key", &message.key),
            value: compile("value", &message.value),
            timestamp: compile("timestamp", &message.timestamp),
            headers: Headers::compile(
                config.kafka_headers.as_deref(),
                &config.kafka_ext_headers,
                config.kafka_header_value_encode_mode,
            ),
            empty_key_is_null: message.empty_key_is_null,
            empty_value_is_null: message.empty_value_is_null,
            bridge: bridge.into(),
            not_json: Doublings::default(),
        }
    }

    /// Renders one message and hands what it made to `take`.
    pub(super) fn with_record<T>(
        &self,
        message: &Message<'_>,
        node: &str,
        take: impl FnOnce(&Rendered<'_>) -> T,
    ) -> T {
        SCRATCH.with_borrow_mut(|scratch| {
            let scope = PublishScope::new(message, node);
            let timestamp = self
                .timestamp
                .integer(&scope, &mut scratch.timestamp)
                .filter(|timestamp| *timestamp >= 0)
                .unwrap_or(message.received_at);
            let key = self.key.render_or_borrow(&scope, &mut scratch.key);
            let value = self.value.render_or_borrow(&scope, &mut scratch.value);
            let mut record = Record {
                timestamp,
                key: Some(key).filter(|key| !(self.empty_key_is_null && key.is_empty())),
                value: Some(value).filter(|value| !(self.empty_value_is_null && value.is_empty())),
                headers: &[],
            };
            let (topic, unfit) = match &self.topic {
                None => (None, None),
                Some(template) => {
                    let (name, unfit) = topic_name(template, &scope, &mut scratch.topic);
                    (Some(name), unfit)
                }
            };
            let is_worn = message.hops >= hops::LIMIT;
            let unfit = if is_worn { Some(RenderError::Hops) } else { unfit };
            let taken = match &self.headers {
                None if message.hops == 0 => take(&Rendered { record, topic, unfit }),
                None => {
                    let mut headers = SmallVec::new();
                    hops::write(message.hops, &mut headers);
                    record.headers = &headers;
                    take(&Rendered { record, topic, unfit })
                }
                Some(headers) => {
                    let (assembled, unfit) = match headers.assemble(&scope, &mut scratch.headers) {
                        Ok(assembled) => (Some(assembled), unfit),
                        Err(NoHeaders) => (None, unfit.or(Some(RenderError::Headers))),
                    };
                    let mut headers =
                        assembled.as_ref().map(|all| all.with(&scratch.headers)).unwrap_or_default();
                    if message.hops > 0 {
                        hops::write(message.hops, &mut headers);
                    }
                    record.headers = &headers;
                    take(&Rendered { record, topic, unfit })
                }
            };
            if scope.not_json() {
                self.note_not_json(message);
            }
            for buffer in [&mut scratch.topic, &mut scratch.key, &mut scratch.value, &mut scratch.timestamp] {
                if buffer.capacity() > SCRATCH_KEPT {
                    *buffer = Vec::new();
                }
            }
            scratch.headers.shrink(SCRATCH_KEPT);
            taken
        })
    }

    #[cold]
    fn note_not_json(&self, message: &Message<'_>) {
        if let Some(messages) = self.not_json.count() {
            tracing::warn!(
                bridge = &*self.bridge,
                messages,
                topic = message.topic,
                client_id = &*message.origin.client_id,
                payload_bytes = message.payload.len(),
                "a template asks for a member of a payload that is not JSON: it renders as nothing"
            );
        }
    }
}

/// The name that a topic's template gives, and what is wrong with it.
fn topic_name<'a>(
    template: &Template<PublishSlot>,
    scope: &PublishScope<'_>,
    scratch: &'a mut Vec<u8>,
) -> (&'a str, Option<RenderError>) {
    scratch.clear();
    let whole = template.render_whole(scope, scratch);
    let name = std::str::from_utf8(scratch).unwrap_or_default();
    let unfit = match (whole, is_kafka_topic(name)) {
        (false, _) => Some(RenderError::TopicIncomplete),
        (true, false) => Some(RenderError::TopicName),
        (true, true) => None,
    };
    (name, unfit)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use causeway_protocol::mqtt::{PublishProperties, QoS};

    use super::*;
    use crate::config::parse_producer_bridge;
    use crate::flow::Origin;

    const RECEIVED_AT: i64 = 1_700_000_000_000;

    /// Rendered parts of a payload: timestamp, key, value, headers.
    type Parts = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Vec<u8>)>);

    fn make(kafka: &str, payload: &[u8]) -> Result<Parts, RenderError> {
        with_made(&format!("topic = t, {kafka}"), payload, |made| {
            assert_eq!(made.topic, None);
            if let Some(unfit) = made.unfit {
                return Err(unfit);
            }
            let record = &made.record;
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            let header = |header: &causeway_protocol::kafka::batch::Header<'_>| {
                (header.key.to_owned(), header.value.unwrap_or_default().to_vec())
            };
            let headers = record.headers.iter().map(header).collect();
            Ok((record.timestamp, owned(record.key), owned(record.value), headers))
        })
    }

    fn with_made<T>(kafka: &str, payload: &[u8], take: impl FnOnce(&Rendered<'_>) -> T) -> T {
        let text = format!("bootstrap_hosts = k, kafka {{ {kafka} }}");
        let config = parse_producer_bridge("b", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
        let origin = Arc::new(Origin { client_id: "c1".into(), username: None, peer: None });
        let message = Message {
            origin: &origin,
            topic: "t/1",
            payload,
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            properties: &PublishProperties::default(),
            received_at: RECEIVED_AT,
            hops: 0,
        };
        Program::compile("b", &config.kafka).with_record(&message, "n1", take)
    }

    /// P16
    #[test]
    fn a_topic_is_made_whole_and_legal_or_not_at_all() {
        let topic = |template: &str, payload: &str| {
            with_made(&format!("topic = \"{template}\""), payload.as_bytes(), |made| {
                (made.topic.unwrap_or("fixed").to_owned(), made.unfit)
            })
        };
        assert_eq!(topic("pct${.payload.n}", r#"{"n": 1}"#), ("pct1".into(), None));
        assert_eq!(topic("${clientid}.${payload.a.b}", r#"{"a": {"b": "x"}}"#), ("c1.x".into(), None));
        for (template, payload, unfit) in [
            ("pct${.payload.n}", "{}", RenderError::TopicIncomplete),
            ("pct${.payload.n}", r#"{"n": null}"#, RenderError::TopicIncomplete),
            ("pct${.payload.n}", "no json", RenderError::TopicIncomplete),
            ("${username}", "", RenderError::TopicIncomplete),
            ("${topic}", "", RenderError::TopicName),
            ("${payload}", "", RenderError::TopicName),
            ("${payload}", "..", RenderError::TopicName),
            ("x${payload}", "\u{1F600}", RenderError::TopicName),
        ] {
            assert_eq!(topic(template, payload).1, Some(unfit), "{template} {payload}");
        }
        let long = "x".repeat(250);
        assert_eq!(topic("${payload}", &long).1, Some(RenderError::TopicName));
        assert_eq!(
            with_made("topic = \"${payload}\"", b"\xFF", |made| made.unfit),
            Some(RenderError::TopicName)
        );
    }

    /// P4, P5
    #[test]
    fn a_timestamp_that_is_no_count_of_milliseconds_becomes_the_time_of_arrival() {
        let at = |template: &str, payload: &str| {
            make(&format!("message.timestamp = \"{template}\""), payload.as_bytes()).unwrap().0
        };
        assert_eq!(at("123", ""), 123);
        assert_eq!(at("${payload.at}", r#"{"at": 1700000000123}"#), 1_700_000_000_123);
        assert_eq!(at("${payload.at}", r#"{"at": " 5 "}"#), 5);
        assert_eq!(at("${payload.at}000", r#"{"at": 17}"#), 17_000);
        assert_eq!(at("${timestamp}", ""), RECEIVED_AT);
        for (text, expected) in [
            ("1.5", 1),
            ("0.9", 0),
            ("1700000000123.999", 1_700_000_000_123),
            ("1.700000000123e12", 1_700_000_000_123),
            ("\"1700000000123.25\"", 1_700_000_000_123),
            ("\" 1.7E12 \"", 1_700_000_000_000),
        ] {
            assert_eq!(at("${payload.at}", &format!(r#"{{"at": {text}}}"#)), expected, "{text}");
        }
        for payload in [
            "",
            "{}",
            r#"{"at": "yesterday"}"#,
            r#"{"at": -1}"#,
            r#"{"at": -0.5}"#,
            r#"{"at": 1e19}"#,
            r#"{"at": 1e400}"#,
            r#"{"at": "1.5.2"}"#,
            r#"{"at": "infinity"}"#,
            r#"{"at": 99999999999999999999}"#,
            r#"{"at": null}"#,
        ] {
            assert_eq!(at("${payload.at}", payload), RECEIVED_AT, "{payload}");
        }
    }

    #[test]
    fn what_is_missing_is_empty_and_null_only_where_that_is_wanted() {
        let templates = "message { key = \"${username}\", value = \"${payload}\"";
        let (_, key, value, _) = make(&format!("{templates} }}"), b"").unwrap();
        assert_eq!((key.as_deref(), value.as_deref()), (Some(&b""[..]), Some(&b""[..])));
        let wanted = format!("{templates}, empty_key_is_null = true, empty_value_is_null = true }}");
        let (_, key, value, _) = make(&wanted, b"").unwrap();
        assert_eq!((key, value), (None, None), "a tombstone without key");
        let (_, key, value, _) = make(&wanted, b"x").unwrap();
        assert_eq!((key, value.as_deref()), (None, Some(&b"x"[..])));
    }

    #[test]
    fn a_payload_of_any_bytes_is_carried_as_it_is() {
        let all: Vec<u8> = (0..=255).collect();
        let (_, key, value, _) =
            make("message { key = \"${payload}\", value = \"${payload}\" }", &all).unwrap();
        assert_eq!((key.as_ref(), value.as_ref()), (Some(&all), Some(&all)));
    }

    #[test]
    fn numbers_of_a_payload_keep_their_digits_in_key_value_headers_and_topic() {
        let kafka = r#"topic = "t-${payload.iccid}", kafka_headers = "${payload}", kafka_header_value_encode_mode = json,
            message { key = "${payload.iccid}", value = "${payload.iccid}" },
            kafka_ext_headers = [{ kafka_ext_header_key = "x-${payload.iccid}", kafka_ext_header_value = "${payload.iccid}" }]"#;
        for iccid in ["89490200001234567890", "89490200001234567891", "18446744073709551615"] {
            let payload = format!(r#"{{"iccid":{iccid},"odd":1e400}}"#);
            with_made(kafka, payload.as_bytes(), |made| {
                let headers: Vec<_> =
                    made.record.headers.iter().map(|header| (header.key, header.value.unwrap())).collect();
                assert_eq!(made.topic, Some(format!("t-{iccid}").as_str()));
                assert_eq!(made.record.key, Some(iccid.as_bytes()));
                assert_eq!(made.record.value, Some(iccid.as_bytes()));
                let further = format!("x-{iccid}");
                assert_eq!(
                    headers,
                    [("iccid", iccid.as_bytes()), ("odd", b"1e400"), (&*further, iccid.as_bytes())]
                );
            });
        }
    }

    #[test]
    fn headers_stand_in_the_record_and_their_absence_keeps_it_from_being_sent() {
        let kafka = r#"kafka_headers = "${payload.h}", kafka_ext_headers =
            [{ kafka_ext_header_key = who, kafka_ext_header_value = "${clientid}" }]"#;
        let (_, _, _, headers) = make(kafka, br#"{"h": {"a": "1"}}"#).unwrap();
        assert_eq!(headers, [("a".to_owned(), b"1".to_vec()), ("who".to_owned(), b"c1".to_vec())]);
        assert_eq!(make(kafka, br#"{"h": "wrong_header"}"#), Err(RenderError::Headers));
    }
}
