//! Random legal packets of every kind.

use std::sync::LazyLock;

use causeway_protocol::mqtt::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, PublishProperties, QoS, ReasonCode,
    RetainHandling, Role, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions, Unsubscribe,
    UserProperties, UserPropertiesBuf, Version, Will,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

pub(crate) const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];
pub(crate) const ROLES: [Role; 2] = [Role::Server, Role::Client];

const TEXTS: &[&str] =
    &["", "a", "text", "größer", "日本語", "\u{1F600}", "\u{FEFF}bom", "with space", "+/#", "\u{1}"];
const TOPICS: &[&str] =
    &["t/1", "a", "/", "//", "a/", "$SYS/x", "größe/℃", " ", "$share/x/y", "long/er/topic/1"];
const FILTERS: &[&str] = &[
    "t/1",
    "#",
    "+",
    "a/#",
    "+/+/#",
    "/+",
    "$SYS/#",
    "a/+/b",
    "//",
    "$share/group/t/#",
    "$share/g/+",
    "größe/+",
];

static LONG: LazyLock<String> = LazyLock::new(|| "x".repeat(65_535));
static LONG_TOPIC: LazyLock<String> = LazyLock::new(|| "level/".repeat(127) + "end");
static BLOB: LazyLock<Vec<u8>> = LazyLock::new(|| (0..70_000_u32).map(|n| (n % 251) as u8).collect());
static USER_PROPERTIES: LazyLock<Vec<UserPropertiesBuf>> = LazyLock::new(|| {
    let lists: &[&[(&str, &str)]] = &[
        &[],
        &[("k", "v")],
        &[("", "")],
        &[("k", "1"), ("k", "1"), ("k", "2")],
        &[("größe", "日本"), ("b", "")],
    ];
    lists
        .iter()
        .map(|list| {
            let mut built = UserPropertiesBuf::new();
            for (name, value) in *list {
                built.push(name, value).unwrap();
            }
            built
        })
        .collect()
});

/// Makes packets from a seed.
pub(crate) struct Generator {
    rng: StdRng,
    version: Version,
    /// Who decodes what is made.
    role: Role,
}

impl Generator {
    pub(crate) fn new(seed: u64, version: Version, role: Role) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), version, role }
    }

    /// Any packet that the other end may send.
    pub(crate) fn packet(&mut self) -> Packet<'static> {
        let kinds: &[fn(&mut Self) -> Packet<'static>] = match (self.role, self.version) {
            (Role::Server, Version::V5) => &[
                Self::connect,
                Self::publish,
                Self::puback,
                Self::pubrec,
                Self::pubrel,
                Self::pubcomp,
                Self::subscribe,
                Self::unsubscribe,
                |_| Packet::PingReq,
                Self::disconnect,
                Self::auth,
            ],
            (Role::Server, _) => &[
                Self::connect,
                Self::publish,
                Self::puback,
                Self::pubrec,
                Self::pubrel,
                Self::pubcomp,
                Self::subscribe,
                Self::unsubscribe,
                |_| Packet::PingReq,
                Self::disconnect,
            ],
            (Role::Client, Version::V5) => &[
                Self::connack,
                Self::publish,
                Self::puback,
                Self::pubrec,
                Self::pubrel,
                Self::pubcomp,
                Self::suback,
                Self::unsuback,
                |_| Packet::PingResp,
                Self::disconnect,
                Self::auth,
            ],
            (Role::Client, _) => &[
                Self::connack,
                Self::publish,
                Self::puback,
                Self::pubrec,
                Self::pubrel,
                Self::pubcomp,
                Self::suback,
                Self::unsuback,
                |_| Packet::PingResp,
            ],
        };
        self.pick(kinds)(self)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.rng).unwrap()
    }

    fn flip(&mut self) -> bool {
        self.rng.random_bool(0.5)
    }

    fn is_v5(&self) -> bool {
        self.version == Version::V5
    }

    /// In 5.0 sometimes, before never.
    fn property<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.is_v5() && self.rng.random_bool(0.4)).then(|| make(self))
    }

    fn text(&mut self) -> &'static str {
        if self.rng.random_bool(0.01) { &LONG } else { self.pick(TEXTS) }
    }

    fn topic(&mut self) -> &'static str {
        if self.rng.random_bool(0.02) { &LONG_TOPIC } else { self.pick(TOPICS) }
    }

    fn binary(&mut self) -> &'static [u8] {
        let length = match self.rng.random_range(0..100) {
            0 => 65_535,
            1..=10 => self.rng.random_range(0..2000),
            _ => self.rng.random_range(0..40),
        };
        &BLOB[..length]
    }

    fn u32(&mut self) -> u32 {
        let any = self.rng.random();
        self.pick(&[0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, u32::MAX, any])
    }

    fn u16(&mut self) -> u16 {
        self.u32() as u16
    }

    fn identifier(&mut self) -> u16 {
        self.rng.random_range(1..=u16::MAX)
    }

    fn qos(&mut self) -> QoS {
        self.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
    }

    fn user_properties(&mut self) -> UserProperties<'static> {
        if !self.is_v5() {
            return UserProperties::default();
        }
        USER_PROPERTIES.choose(&mut self.rng).unwrap().borrow()
    }

    fn reason(&mut self, from: &[u8]) -> ReasonCode {
        if self.is_v5() { ReasonCode::from_u8(self.pick(from)).unwrap() } else { ReasonCode::Success }
    }

    fn message_properties(&mut self) -> PublishProperties<'static> {
        PublishProperties {
            payload_format_indicator: self.property(|this| this.pick(&[0, 1])),
            message_expiry_interval: self.property(Self::u32),
            topic_alias: None,
            response_topic: self.property(Self::topic),
            correlation_data: self.property(Self::binary),
            subscription_identifiers: smallvec::SmallVec::new(),
            content_type: self.property(Self::text),
            user_properties: self.user_properties(),
        }
    }

    fn connect(&mut self) -> Packet<'static> {
        let will = self.flip().then(|| Will {
            topic: self.topic(),
            payload: self.binary(),
            qos: self.qos(),
            retain: self.flip(),
            delay_interval: self.property(Self::u32).unwrap_or(0),
            properties: self.message_properties(),
        });
        let username = self.flip().then(|| self.text());
        let password = ((self.is_v5() || username.is_some()) && self.flip()).then(|| self.binary());
        let clean_start = self.flip();
        let client_id = self.text();
        let may_be_empty = self.is_v5() || (self.version == Version::V311 && clean_start);
        let authentication_method = self.property(Self::text);
        Packet::Connect(Box::new(Connect {
            version: self.version,
            clean_start,
            keep_alive: self.u16(),
            client_id: if client_id.is_empty() && !may_be_empty { "me" } else { client_id },
            will,
            username,
            password,
            session_expiry_interval: self.property(Self::u32).unwrap_or(0),
            receive_maximum: self.property(|this| this.u16().max(1)).unwrap_or(u16::MAX),
            maximum_packet_size: self.property(|this| this.u32().max(1)),
            topic_alias_maximum: self.property(Self::u16).unwrap_or(0),
            request_response_information: self.property(Self::flip).unwrap_or(false),
            request_problem_information: self.property(Self::flip).unwrap_or(true),
            authentication_method,
            authentication_data: authentication_method.and_then(|_| self.property(Self::binary)),
            user_properties: self.user_properties(),
        }))
    }

    fn connack(&mut self) -> Packet<'static> {
        let reason = if self.is_v5() {
            self.reason(&[0, 0, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90])
        } else {
            ReasonCode::from_connack_return_code(self.pick(&[0, 0, 1, 2, 3, 4, 5])).unwrap()
        };
        let authentication_method = self.property(Self::text);
        Packet::ConnAck(Box::new(ConnAck {
            session_present: reason == ReasonCode::Success && self.version != Version::V31 && self.flip(),
            reason,
            session_expiry_interval: self.property(Self::u32),
            receive_maximum: self.property(|this| this.u16().max(1)),
            maximum_qos: self.property(|this| this.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce])),
            retain_available: self.property(Self::flip),
            maximum_packet_size: self.property(|this| this.u32().max(1)),
            assigned_client_identifier: self.property(Self::text),
            topic_alias_maximum: self.property(Self::u16),
            reason_string: self.property(Self::text),
            wildcard_subscription_available: self.property(Self::flip),
            subscription_identifiers_available: self.property(Self::flip),
            shared_subscription_available: self.property(Self::flip),
            server_keep_alive: self.property(Self::u16),
            response_information: self.property(Self::text),
            server_reference: self.property(Self::text),
            authentication_method,
            authentication_data: authentication_method.and_then(|_| self.property(Self::binary)),
            user_properties: self.user_properties(),
        }))
    }

    pub(crate) fn publish(&mut self) -> Packet<'static> {
        let qos = self.qos();
        let mut properties = self.message_properties();
        properties.topic_alias = self.property(|this| this.u16().max(1));
        if self.is_v5() && self.role == Role::Client {
            for _ in 0..self.rng.random_range(0..4) {
                properties.subscription_identifiers.push(self.pick(&[1, 127, 128, 16_384, 268_435_455]));
            }
        }
        let anonymous = properties.topic_alias.is_some() && self.flip();
        let payload_length = match self.rng.random_range(0..100) {
            0 => 70_000,
            1..=20 => self.rng.random_range(0..2000),
            _ => self.rng.random_range(0..60),
        };
        Packet::Publish(Publish {
            dup: qos != QoS::AtMostOnce && self.flip(),
            qos,
            retain: self.flip(),
            topic: if anonymous { "" } else { self.topic() },
            packet_identifier: if qos == QoS::AtMostOnce { 0 } else { self.identifier() },
            properties,
            payload: &BLOB[..payload_length],
        })
    }

    fn ack(&mut self, reasons: &[u8]) -> Ack<'static> {
        Ack {
            packet_identifier: self.identifier(),
            reason: self.reason(reasons),
            reason_string: self.property(Self::text),
            user_properties: self.user_properties(),
        }
    }

    fn puback(&mut self) -> Packet<'static> {
        Packet::PubAck(self.ack(&[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]))
    }

    fn pubrec(&mut self) -> Packet<'static> {
        Packet::PubRec(self.ack(&[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]))
    }

    fn pubrel(&mut self) -> Packet<'static> {
        Packet::PubRel(self.ack(&[0, 0x92]))
    }

    fn pubcomp(&mut self) -> Packet<'static> {
        Packet::PubComp(self.ack(&[0, 0x92]))
    }

    fn subscribe(&mut self) -> Packet<'static> {
        let filters = (0..self.rng.random_range(1..6)).map(|_| {
            let filter = self.pick(FILTERS);
            let qos = self.qos();
            let mut options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
            if self.is_v5() {
                options.no_local = !filter.starts_with("$share/") && self.flip();
                options.retain_as_published = self.flip();
                options.retain_handling =
                    self.pick(&[RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]);
            }
            SubscribeFilter { filter, options }
        });
        let filters = filters.collect();
        Packet::Subscribe(Subscribe {
            packet_identifier: self.identifier(),
            subscription_identifier: self.property(|this| this.u32().clamp(1, 268_435_455)),
            user_properties: self.user_properties(),
            filters,
        })
    }

    fn suback_of(&mut self, reasons: &[u8]) -> SubAck<'static> {
        let reasons = (0..self.rng.random_range(1..9))
            .map(|_| ReasonCode::from_u8(self.pick(reasons)).unwrap())
            .collect();
        SubAck {
            packet_identifier: self.identifier(),
            reason_string: self.property(Self::text),
            user_properties: self.user_properties(),
            reasons,
        }
    }

    fn suback(&mut self) -> Packet<'static> {
        Packet::SubAck(if self.is_v5() {
            self.suback_of(&[0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2])
        } else {
            self.suback_of(&[0, 1, 2, 0x80])
        })
    }

    fn unsuback(&mut self) -> Packet<'static> {
        let mut unsuback = self.suback_of(&[0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91]);
        if !self.is_v5() {
            unsuback.reasons.clear();
        }
        Packet::UnsubAck(unsuback)
    }

    fn unsubscribe(&mut self) -> Packet<'static> {
        let filters = (0..self.rng.random_range(1..6)).map(|_| self.pick(FILTERS)).collect();
        Packet::Unsubscribe(Unsubscribe {
            packet_identifier: self.identifier(),
            user_properties: self.user_properties(),
            filters,
        })
    }

    fn disconnect(&mut self) -> Packet<'static> {
        let reasons: &[u8] = match self.role {
            Role::Server => &[0, 4, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99],
            Role::Client => &[
                0, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96,
                0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
            ],
        };
        Packet::Disconnect(Disconnect {
            reason: self.reason(reasons),
            session_expiry_interval: if self.role == Role::Server { self.property(Self::u32) } else { None },
            reason_string: self.property(Self::text),
            server_reference: self.property(Self::text),
            user_properties: self.user_properties(),
        })
    }

    fn auth(&mut self) -> Packet<'static> {
        let reasons: &[u8] = if self.role == Role::Server { &[0x18, 0x19] } else { &[0, 0x18] };
        let reason = self.reason(reasons);
        if reason == ReasonCode::Success && self.flip() {
            return Packet::Auth(Auth::default());
        }
        Packet::Auth(Auth {
            reason,
            authentication_method: Some(self.text()),
            authentication_data: self.property(Self::binary),
            reason_string: self.property(Self::text),
            user_properties: self.user_properties(),
        })
    }
}
