//! Legal packets of clients, chosen by a random number generator.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use crate::mqtt::property::{self, id};
use crate::mqtt::wire::{
    self, Connect, DISCONNECT, PINGREQ, Publish, Version, Will, first, subscribe_with, unsubscribe,
};

/// One of a few.
pub(super) fn pick<T: Clone>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())].clone()
}

/// A version, 5.0 most often.
pub(super) fn version(random: &mut StdRng) -> Version {
    pick(random, &[Version::V31, Version::V311, Version::V311, Version::V5, Version::V5, Version::V5])
}

/// A short identifier, so that packets of one connection meet.
fn identifier(random: &mut StdRng) -> u16 {
    if random.random_bool(0.9) { random.random_range(1..20) } else { random.random_range(1..=u16::MAX) }
}

/// Levels of topics. Few, so that publications find subscriptions.
const LEVELS: [&str; 8] = ["a", "b", "c", "", "é", "$x", "long-level-of-a-topic", "d"];

/// A topic name below `root`.
fn topic(random: &mut StdRng, root: &str) -> String {
    let mut topic = root.to_owned();
    for _ in 0..random.random_range(0..4) {
        topic.push('/');
        topic.push_str(pick(random, &LEVELS));
    }
    topic
}

/// A topic filter below `root`, shared now and then.
fn filter(random: &mut StdRng, root: &str, version: Version) -> String {
    let mut filter = root.to_owned();
    for _ in 0..random.random_range(0..3) {
        filter.push('/');
        filter.push_str(if random.random_bool(0.3) { "+" } else { pick(random, &LEVELS) });
    }
    if random.random_bool(0.3) {
        filter.push_str("/#");
    }
    if version == Version::V5 && random.random_bool(0.1) {
        filter = format!("$share/{}/{filter}", pick(random, &["g", "h"]));
    }
    filter
}

fn bytes(random: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..=most)];
    random.fill_bytes(&mut bytes);
    bytes
}

/// Some of the properties with these identifiers, and user properties.
fn properties(random: &mut StdRng, version: Version, allowed: &[u8]) -> Vec<Vec<u8>> {
    if version != Version::V5 || random.random_bool(0.5) {
        return Vec::new();
    }
    let mut chosen: Vec<Vec<u8>> = property::every()
        .into_iter()
        .filter(|(id, _)| allowed.contains(id) && random.random_bool(0.3))
        .map(|(_, bytes)| bytes)
        .collect();
    for _ in 0..random.random_range(0..3) {
        chosen.push(property::user(pick(random, &["", "a", "name"]), pick(random, &["", "b", "value"])));
    }
    chosen
}

/// A CONNECT with everything that it may have.
pub(super) fn connect(random: &mut StdRng, version: Version, client_id: &str, root: &str) -> Connect {
    let mut connect = Connect::new(version, client_id).clean(random.random_bool(0.7));
    connect.keep_alive = pick(random, &[0, 1, 60, 60, 65_535]);
    connect.properties = properties(
        random,
        version,
        &[
            id::RECEIVE_MAXIMUM,
            id::MAXIMUM_PACKET_SIZE,
            id::TOPIC_ALIAS_MAXIMUM,
            id::REQUEST_PROBLEM_INFORMATION,
            id::REQUEST_RESPONSE_INFORMATION,
        ],
    );
    if version == Version::V5 && random.random_bool(0.4) {
        let seconds = pick(random, &[0, 1, 100, u32::MAX]);
        connect.properties.push(property::four(id::SESSION_EXPIRY_INTERVAL, seconds));
    }
    if random.random_bool(0.2) {
        let will_properties = [
            id::WILL_DELAY_INTERVAL,
            id::PAYLOAD_FORMAT_INDICATOR,
            id::MESSAGE_EXPIRY_INTERVAL,
            id::CONTENT_TYPE,
            id::RESPONSE_TOPIC,
            id::CORRELATION_DATA,
        ];
        connect.will = Some(Will {
            topic: topic(random, root).into(),
            payload: bytes(random, 40),
            qos: random.random_range(0..3),
            retain: random.random_bool(0.1),
            properties: properties(random, version, &will_properties),
        });
    }
    if random.random_bool(0.2) {
        connect = connect.login(Some("user"), random.random_bool(0.5).then_some(&b"password"[..]));
    }
    connect
}

/// A PUBLISH.
pub(super) fn publish(random: &mut StdRng, version: Version, root: &str) -> Vec<u8> {
    let most = if random.random_bool(0.01) { 4000 } else { 60 };
    let mut publish = Publish::new(version, &topic(random, root), bytes(random, most));
    publish.qos = random.random_range(0..3);
    publish.packet_identifier = identifier(random);
    publish.dup = publish.qos > 0 && random.random_bool(0.2);
    publish.retain = random.random_bool(0.05);
    let allowed = [
        id::PAYLOAD_FORMAT_INDICATOR,
        id::MESSAGE_EXPIRY_INTERVAL,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::CONTENT_TYPE,
    ];
    publish.properties = properties(random, version, &allowed);
    if version == Version::V5 && random.random_bool(0.1) {
        publish.properties.push(property::two(id::TOPIC_ALIAS, random.random_range(1..5)));
    }
    publish.bytes()
}

/// A SUBSCRIBE.
pub(super) fn subscribe(random: &mut StdRng, version: Version, root: &str) -> Vec<u8> {
    let filters: Vec<(String, u8)> = (0..random.random_range(1..4))
        .map(|_| {
            let filter = filter(random, root, version);
            let mut options = random.random_range(0..3);
            if version == Version::V5 {
                let bits = random.random_range(0..4) & if filter.starts_with("$share") { 2 } else { 3 };
                options |= bits << 2 | random.random_range(0..3) << 4;
            }
            (filter, options)
        })
        .collect();
    let filters: Vec<(&str, u8)> =
        filters.iter().map(|(filter, options)| (filter.as_str(), *options)).collect();
    let properties = properties(random, version, &[id::SUBSCRIPTION_IDENTIFIER]);
    subscribe_with(version, identifier(random), &properties, &filters)
}

/// An acknowledgement, in the short form or with reason and properties.
fn ack(random: &mut StdRng, version: Version) -> Vec<u8> {
    let kind = pick(random, &[first::PUBACK, first::PUBREC, first::PUBREL, first::PUBREL, first::PUBCOMP]);
    let number = identifier(random);
    if version != Version::V5 || random.random_bool(0.5) {
        return wire::ack(kind, number);
    }
    let reason = match kind {
        first::PUBACK | first::PUBREC => pick(random, &[0, 0x10, 0x80, 0x97]),
        _ => pick(random, &[0, 0x92]),
    };
    let section = property::section(&properties(random, version, &[id::REASON_STRING]));
    wire::packet(kind, &[&wire::identifier(number), &[reason], &section])
}

/// Any legal packet of a connected client but DISCONNECT.
pub(super) fn packet(random: &mut StdRng, version: Version, root: &str) -> Vec<u8> {
    match random.random_range(0..100) {
        0..50 => publish(random, version, root),
        50..65 => subscribe(random, version, root),
        65..73 => {
            let filter = filter(random, root, version);
            unsubscribe(version, identifier(random), &[&filter])
        }
        73..95 => ack(random, version),
        _ => PINGREQ.to_vec(),
    }
}

/// DISCONNECT, in one of its forms.
pub(super) fn disconnect(random: &mut StdRng, version: Version) -> Vec<u8> {
    if version != Version::V5 || random.random_bool(0.5) {
        return DISCONNECT.to_vec();
    }
    let section = property::section(&properties(random, version, &[id::REASON_STRING]));
    wire::packet(first::DISCONNECT, &[&[pick(random, &[0, 4, 0x80])], &section])
}
