//! The template environment of an MQTT publication.
//!
//! The names are those of the message event of the system in the user guide; `${.}` writes them in
//! descending order of their names, as that system does, with `null` for what is absent.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU16, Ordering};

use causeway_protocol::mqtt::QoS;
use serde_json::{Map, Value as Json};

use super::json::ObjectWriter;
use super::{Scope, Slot, Value};
use crate::flow::Message;

/// A message as templates see it.
pub struct PublishScope<'a> {
    message: &'a Message<'a>,
    node: &'a str,
    made: OnceCell<RenderedText>,
    not_json: Cell<bool>,
}

/// Values that have to be written as text before they can be lent.
struct RenderedText {
    id: String,
    peerhost: Option<String>,
    peername: Option<String>,
}

/// Top-level names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name it stands for")]
pub enum PublishSlot {
    Id,
    ClientId,
    Username,
    Payload,
    Peerhost,
    Peername,
    Topic,
    Qos,
    Flags,
    PubProps,
    Timestamp,
    PublishReceivedAt,
    Node,
    Event,
    ClientAttrs,
}

/// The members of `${pub_props}`, in the order of its JSON.
const PROPERTIES: [&str; 7] = [
    "User-Property-Pairs",
    "User-Property",
    "Response-Topic",
    "Payload-Format-Indicator",
    "Message-Expiry-Interval",
    "Correlation-Data",
    "Content-Type",
];

const EVENT: &str = "message.publish";

impl<'a> PublishScope<'a> {
    /// The environment of `message` on the node named `node`.
    pub fn new(message: &'a Message<'a>, node: &'a str) -> Self {
        Self { message, node, made: OnceCell::new(), not_json: Cell::new(false) }
    }

    /// Whether a template asked for a member of a payload (or another text) that is not JSON.
    pub(crate) fn not_json(&self) -> bool {
        self.not_json.get()
    }

    fn made(&self) -> &RenderedText {
        self.made.get_or_init(|| RenderedText {
            id: message_id(self.message.received_at, self.node),
            peerhost: self.message.origin.peer.map(|peer| peer.ip().to_string()),
            peername: self.message.origin.peer.map(|peer| peer.to_string()),
        })
    }

    fn write_flags(&self, out: &mut Vec<u8>) {
        let mut flags = ObjectWriter::new(out);
        flags.bool("retain", self.message.retain);
        flags.bool("dup", self.message.dup);
        flags.end();
    }

    fn write_pub_props(&self, out: &mut Vec<u8>) {
        let properties = self.message.properties;
        let mut object = ObjectWriter::new(out);
        if !properties.user_properties.is_empty() {
            self.write_user_property_pairs(object.name("User-Property-Pairs"));
        }
        self.write_user_properties(object.name("User-Property"));
        if let Some(topic) = properties.response_topic {
            object.text("Response-Topic", topic.as_bytes());
        }
        if let Some(indicator) = properties.payload_format_indicator {
            object.int("Payload-Format-Indicator", i64::from(indicator));
        }
        if let Some(interval) = properties.message_expiry_interval {
            object.int("Message-Expiry-Interval", i64::from(interval));
        }
        if let Some(data) = properties.correlation_data {
            object.text("Correlation-Data", data);
        }
        if let Some(kind) = properties.content_type {
            object.text("Content-Type", kind.as_bytes());
        }
        object.end();
    }

    /// User properties as an object; of duplicates the last one stays.
    fn write_user_properties(&self, out: &mut Vec<u8>) {
        if self.message.properties.user_properties.is_empty() {
            return out.extend_from_slice(b"{}");
        }
        let mut object = Map::new();
        for (key, value) in &self.message.properties.user_properties {
            object.insert(key.to_owned(), Json::from(value));
        }
        out.extend_from_slice(Json::Object(object).to_string().as_bytes());
    }

    /// User properties in order, duplicates kept, as an array of objects.
    fn write_user_property_pairs(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (at, (key, value)) in self.message.properties.user_properties.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            let mut pair = ObjectWriter::new(out);
            pair.text("value", value.as_bytes());
            pair.text("key", key.as_bytes());
            pair.end();
        }
        out.push(b']');
    }

    /// One property by the name it has in `${pub_props}`.
    fn property(&self, name: &str) -> Value<'_> {
        let properties = self.message.properties;
        let text = |text: Option<&'a str>| text.map_or(Value::Missing, |text| Value::Bytes(text.as_bytes()));
        let number = |number: Option<i64>| number.map_or(Value::Missing, Value::Int);
        match name {
            "User-Property-Pairs" if properties.user_properties.is_empty() => Value::Missing,
            "User-Property-Pairs" => Self::tree(|out| self.write_user_property_pairs(out)),
            "User-Property" => Self::tree(|out| self.write_user_properties(out)),
            "Response-Topic" => text(properties.response_topic),
            "Payload-Format-Indicator" => number(properties.payload_format_indicator.map(i64::from)),
            "Message-Expiry-Interval" => number(properties.message_expiry_interval.map(i64::from)),
            "Correlation-Data" => properties.correlation_data.map_or(Value::Missing, Value::Bytes),
            "Content-Type" => text(properties.content_type),
            _ => Value::Missing,
        }
    }

    fn tree(write: impl FnOnce(&mut Vec<u8>)) -> Value<'static> {
        let mut text = Vec::new();
        write(&mut text);
        Value::Json(Cow::Owned(text))
    }
}

fn qos_number(qos: QoS) -> i64 {
    i64::from(qos as u8)
}

/// 128 bits as 32 upper-case hexadecimal digits: microseconds, 48 bits of the node's name, a counter.
fn message_id(received_at_ms: i64, node: &str) -> String {
    static COUNTER: AtomicU16 = AtomicU16::new(0);
    let sequence = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in node.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut id = String::with_capacity(32);
    let micros = (received_at_ms.max(0) as u64).wrapping_mul(1000);
    // Writing to a String does not fail.
    let _ = write!(id, "{micros:016X}{:012X}{sequence:04X}", hash >> 16);
    id
}

impl Slot for PublishSlot {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "id" => PublishSlot::Id,
            "clientid" => PublishSlot::ClientId,
            "username" => PublishSlot::Username,
            "payload" => PublishSlot::Payload,
            "peerhost" => PublishSlot::Peerhost,
            "peername" => PublishSlot::Peername,
            "topic" => PublishSlot::Topic,
            "qos" => PublishSlot::Qos,
            "flags" => PublishSlot::Flags,
            "pub_props" => PublishSlot::PubProps,
            "timestamp" => PublishSlot::Timestamp,
            "publish_received_at" => PublishSlot::PublishReceivedAt,
            "node" => PublishSlot::Node,
            "event" => PublishSlot::Event,
            "client_attrs" => PublishSlot::ClientAttrs,
            _ => return None,
        })
    }
}

impl Scope for PublishScope<'_> {
    type Slot = PublishSlot;

    fn value(&self, slot: PublishSlot) -> Value<'_> {
        match slot {
            PublishSlot::Id => Value::Bytes(self.made().id.as_bytes()),
            PublishSlot::ClientId => Value::Bytes(self.message.origin.client_id.as_bytes()),
            PublishSlot::Username => match &self.message.origin.username {
                Some(name) => Value::Bytes(name.as_bytes()),
                None => Value::Missing,
            },
            PublishSlot::Payload => Value::Bytes(self.message.payload),
            PublishSlot::Peerhost => match &self.made().peerhost {
                Some(host) => Value::Bytes(host.as_bytes()),
                None => Value::Missing,
            },
            PublishSlot::Peername => match &self.made().peername {
                Some(name) => Value::Bytes(name.as_bytes()),
                None => Value::Missing,
            },
            PublishSlot::Topic => Value::Bytes(self.message.topic.as_bytes()),
            PublishSlot::Qos => Value::Int(qos_number(self.message.qos)),
            PublishSlot::Flags => Self::tree(|out| self.write_flags(out)),
            PublishSlot::PubProps => Self::tree(|out| self.write_pub_props(out)),
            PublishSlot::Timestamp | PublishSlot::PublishReceivedAt => Value::Int(self.message.received_at),
            PublishSlot::Node => Value::Bytes(self.node.as_bytes()),
            PublishSlot::Event => Value::Bytes(EVENT.as_bytes()),
            PublishSlot::ClientAttrs => Value::Json(Cow::Borrowed(b"{}")),
        }
    }

    fn member(&self, slot: PublishSlot, key: &str) -> Option<Value<'_>> {
        match (slot, key) {
            (PublishSlot::PubProps, name) => Some(self.property(name)),
            (PublishSlot::Flags, "retain") => Some(Value::Bool(self.message.retain)),
            (PublishSlot::Flags, "dup") => Some(Value::Bool(self.message.dup)),
            _ => None,
        }
    }

    fn members<'s>(
        &'s self,
        slot: PublishSlot,
        path: &[Box<str>],
        visit: &mut dyn FnMut(&'s str, Value<'s>),
    ) -> bool {
        match (slot, path) {
            (PublishSlot::PubProps, []) => {
                for name in PROPERTIES {
                    match self.property(name) {
                        Value::Missing => {}
                        value => visit(name, value),
                    }
                }
                true
            }
            (PublishSlot::PubProps, [name]) if &**name == "User-Property-Pairs" => {
                for (key, value) in &self.message.properties.user_properties {
                    visit(key, Value::Bytes(value.as_bytes()));
                }
                true
            }
            _ => false,
        }
    }

    fn note_not_json(&self, _: PublishSlot) {
        self.not_json.set(true);
    }

    fn write_whole(&self, out: &mut Vec<u8>) {
        let message = self.message;
        let made = self.made();
        let mut object = ObjectWriter::new(out);
        object.optional_text("username", message.origin.username.as_ref().map(|name| name.as_bytes()));
        object.text("topic", message.topic.as_bytes());
        object.int("timestamp", message.received_at);
        object.int("qos", qos_number(message.qos));
        object.int("publish_received_at", message.received_at);
        self.write_pub_props(object.name("pub_props"));
        object.optional_text("peername", made.peername.as_ref().map(String::as_bytes));
        object.optional_text("peerhost", made.peerhost.as_ref().map(String::as_bytes));
        object.text("payload", message.payload);
        object.text("node", self.node.as_bytes());
        object.text("id", made.id.as_bytes());
        self.write_flags(object.name("flags"));
        object.text("event", EVENT.as_bytes());
        object.text("clientid", message.origin.client_id.as_bytes());
        object.name("client_attrs").extend_from_slice(b"{}");
        object.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use causeway_protocol::mqtt::{PublishProperties, UserPropertiesBuf};

    use super::super::Template;
    use super::*;
    use crate::flow::Origin;

    fn render(template: &str, username: Option<&str>, properties: &PublishProperties<'_>) -> String {
        let origin = Arc::new(Origin {
            client_id: "emqx_c".into(),
            username: username.map(Into::into),
            peer: Some("192.0.2.7:5555".parse().unwrap()),
        });
        let message = Message {
            origin: &origin,
            topic: "t/1",
            payload: br#"{ "msg": "Hello Kafka" }"#,
            qos: QoS::AtLeastOnce,
            retain: true,
            dup: false,
            properties,
            received_at: 1_679_665_968_238,
            hops: 0,
        };
        let mut out = Vec::new();
        Template::compile(template).render(&PublishScope::new(&message, "n1"), &mut out);
        String::from_utf8(out).unwrap()
    }

    /// P6
    #[test]
    fn the_whole_environment_has_every_name_in_descending_order_and_nulls_for_the_absent() {
        let whole = render("${.}", None, &PublishProperties::default());
        let parsed: Json = serde_json::from_str(&whole).unwrap();
        let keys: Vec<_> = parsed.as_object().unwrap().keys().map(String::as_str).collect();
        let mut descending = keys.clone();
        descending.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(keys, descending);
        for key in &keys {
            assert!(PublishSlot::named(key).is_some(), "{key} is in the object but no template can name it");
        }
        assert_eq!(parsed["id"].as_str().unwrap().len(), 32);
        let mut rest = parsed;
        rest.as_object_mut().unwrap().remove("id");
        assert_eq!(
            rest,
            serde_json::json!({
                "username": null, "topic": "t/1", "timestamp": 1_679_665_968_238_i64, "qos": 1,
                "publish_received_at": 1_679_665_968_238_i64, "pub_props": {"User-Property": {}},
                "peername": "192.0.2.7:5555", "peerhost": "192.0.2.7", "payload": "{ \"msg\": \"Hello Kafka\" }",
                "node": "n1", "flags": {"retain": true, "dup": false}, "event": "message.publish",
                "clientid": "emqx_c", "client_attrs": {},
            })
        );
    }

    #[test]
    fn names_members_and_properties_render_one_by_one() {
        let mut users = UserPropertiesBuf::new();
        users.push("k", "1").unwrap();
        users.push("k", "2").unwrap();
        let properties = PublishProperties {
            content_type: Some("text/plain"),
            message_expiry_interval: Some(60),
            user_properties: users.borrow(),
            ..PublishProperties::default()
        };
        for (template, expected) in [
            ("${payload.msg}", "Hello Kafka"),
            ("${clientid}/${username}/${topic}/${qos}", "emqx_c/joe/t/1/1"),
            ("${flags.retain}${flags.dup}", "truefalse"),
            ("${flags}", r#"{"retain":true,"dup":false}"#),
            ("${pub_props.User-Property.k}", "2"),
            (
                "${pub_props}",
                r#"{"User-Property-Pairs":[{"value":"1","key":"k"},{"value":"2","key":"k"}],"User-Property":{"k":"2"},"Message-Expiry-Interval":60,"Content-Type":"text/plain"}"#,
            ),
            ("${timestamp}", "1679665968238"),
            ("${node} ${event} ${peerhost}", "n1 message.publish 192.0.2.7"),
        ] {
            assert_eq!(render(template, Some("joe"), &properties), expected, "{template}");
        }
    }
}
