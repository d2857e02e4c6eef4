//! Loops: producer and consumer bridges that send one message round and round.
//!
//! A consumer bridge publishes the records of a Kafka topic, a producer bridge takes what is published and writes
//! it to a Kafka topic, and so on, until a message is back where it was. A loop is certain if every message that is in
//! it stays in it; where a template decides, it is possible. Kafka clusters are the same if their bootstrap hosts, as
//! written, have one in common; bridges that reach one cluster by different names are not seen, and the hop count of
//! records ends their loops.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use causeway_protocol::mqtt::topic;

use super::tree::{Object, Walk};
use super::{BridgesConfig, ConnectionConfig, ConsumerBridgeConfig, ProducerBridgeConfig, TopicMapping};
use crate::bridge::template::{Piece, has_placeholder, pieces};

/// The bridges that may be part of a loop.
#[derive(Default)]
pub(crate) struct Loops<'c> {
    producers: Vec<(&'c str, &'c ProducerBridgeConfig)>,
    consumers: Vec<(&'c str, &'c ConsumerBridgeConfig)>,
}

/// A loop that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loop {
    /// Whether no message can leave it.
    pub certain: bool,
    /// A consumer bridge that is part of it.
    pub consumer: String,
    /// What goes round, and what to do about it.
    pub message: String,
}

/// A producer bridge, or one mapping of a consumer bridge; numbers of the lists in [`Loops`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Station {
    Producer(usize),
    Mapping(usize, usize),
}

/// Whether what one station sends reaches another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    No,
    Maybe,
    Yes,
}

impl<'c> Loops<'c> {
    /// Adds a producer bridge, unless it is disabled or loops are allowed in it.
    pub(crate) fn add_producer(&mut self, name: &'c str, bridge: &'c ProducerBridgeConfig) {
        if bridge.enable && !bridge.allow_loop && bridge.local_topic.is_some() {
            self.producers.push((name, bridge));
        }
    }

    /// Adds a consumer bridge, unless it is disabled or loops are allowed in it.
    pub(crate) fn add_consumer(&mut self, name: &'c str, bridge: &'c ConsumerBridgeConfig) {
        if bridge.enable && !bridge.allow_loop {
            self.consumers.push((name, bridge));
        }
    }

    /// Loops that together have every station that is in one.
    pub(crate) fn all(&self) -> Vec<Loop> {
        let mappings = |(at, (_, bridge)): (usize, &(&str, &ConsumerBridgeConfig))| {
            (0..bridge.topic_mapping.len()).map(move |mapping| Station::Mapping(at, mapping))
        };
        let starts: Vec<Station> = self.consumers.iter().enumerate().flat_map(mappings).collect();
        let mut seen = BTreeSet::new();
        let mut loops = Vec::new();
        for least in [Reach::Yes, Reach::Maybe] {
            for start in &starts {
                if !seen.contains(start)
                    && let Some(stations) = self.shortest(*start, least)
                {
                    loops.push(self.described(&stations, least));
                    seen.extend(stations);
                }
            }
        }
        loops
    }

    /// A loop that this producer bridge is part of, a certain one if there is any.
    pub(crate) fn through_producer(&self, name: &str) -> Option<Loop> {
        let at = self.producers.iter().position(|(known, _)| *known == name)?;
        self.through(&[Station::Producer(at)])
    }

    /// A loop that this consumer bridge is part of, a certain one if there is any.
    pub(crate) fn through_consumer(&self, name: &str) -> Option<Loop> {
        let at = self.consumers.iter().position(|(known, _)| *known == name)?;
        let mappings = self.consumers.get(at).map_or(0, |(_, bridge)| bridge.topic_mapping.len());
        self.through(&(0..mappings).map(|mapping| Station::Mapping(at, mapping)).collect::<Vec<_>>())
    }

    fn through(&self, starts: &[Station]) -> Option<Loop> {
        [Reach::Yes, Reach::Maybe].into_iter().find_map(|least| {
            let stations = starts.iter().find_map(|start| self.shortest(*start, least))?;
            Some(self.described(&stations, least))
        })
    }

    /// The shortest way from a station back to it over steps that are at least so certain.
    fn shortest(&self, start: Station, least: Reach) -> Option<Vec<Station>> {
        let mut before = BTreeMap::new();
        let mut waiting = VecDeque::from([start]);
        while let Some(station) = waiting.pop_front() {
            for next in self.following(station, least) {
                if next == start {
                    let mut way = vec![station];
                    while let Some(previous) = way.last().and_then(|last| before.get(last)) {
                        way.push(*previous);
                    }
                    way.reverse();
                    return Some(way);
                }
                if let std::collections::btree_map::Entry::Vacant(vacant) = before.entry(next) {
                    vacant.insert(station);
                    waiting.push_back(next);
                }
            }
        }
        None
    }

    fn following(&self, station: Station, least: Reach) -> Vec<Station> {
        match station {
            Station::Producer(at) => {
                let Some((_, producer)) = self.producers.get(at) else { return Vec::new() };
                let of_consumer = |(at, (_, bridge)): (usize, &(&str, &'c ConsumerBridgeConfig))| {
                    let same = same_cluster(&producer.connection, &bridge.connection);
                    let mappings = bridge.topic_mapping.iter().enumerate().filter(move |(_, mapping)| {
                        same && writes_to(&producer.kafka.topic, &mapping.kafka_topic) >= least
                    });
                    mappings.map(move |(mapping, _)| Station::Mapping(at, mapping)).collect::<Vec<_>>()
                };
                self.consumers.iter().enumerate().flat_map(of_consumer).collect()
            }
            Station::Mapping(at, mapping) => {
                let Some(mapping) = self.mapping(at, mapping) else { return Vec::new() };
                let takes = |(_, (_, bridge)): &(usize, &(&str, &ProducerBridgeConfig))| {
                    let filter = bridge.local_topic.as_deref();
                    filter.is_some_and(|filter| takes(filter, &mapping.mqtt_topic) >= least)
                };
                let producers = self.producers.iter().enumerate().filter(takes);
                producers.map(|(at, _)| Station::Producer(at)).collect()
            }
        }
    }

    fn mapping(&self, consumer: usize, mapping: usize) -> Option<&'c TopicMapping> {
        self.consumers.get(consumer).and_then(|(_, bridge)| bridge.topic_mapping.get(mapping))
    }

    fn described(&self, stations: &[Station], least: Reach) -> Loop {
        let certain = least == Reach::Yes;
        let mut consumer = String::new();
        let steps: Vec<String> = stations
            .iter()
            .filter_map(|station| match *station {
                Station::Producer(at) => {
                    let (name, bridge) = self.producers.get(at)?;
                    let filter = bridge.local_topic.as_deref().unwrap_or_default();
                    Some(format!(
                        "bridges.kafka.{name} takes {filter:?} and writes it to the Kafka topic {:?}",
                        bridge.kafka.topic
                    ))
                }
                Station::Mapping(at, mapping) => {
                    let (name, _) = self.consumers.get(at)?;
                    let mapping = self.mapping(at, mapping)?;
                    if consumer.is_empty() {
                        (*name).clone_into(&mut consumer);
                    }
                    Some(format!(
                        "bridges.kafka_consumer.{name} publishes the Kafka topic {:?} to {:?}",
                        mapping.kafka_topic, mapping.mqtt_topic
                    ))
                }
            })
            .collect();
        let what = if certain {
            "messages go round in a loop for ever"
        } else {
            "messages may go round in a loop, depending on the templates"
        };
        let message = format!(
            "{what}: {}; change one of the topics, or write allow_loop = true in one of these bridges",
            steps.join(", ")
        );
        Loop { certain, consumer, message }
    }
}

/// Refuses certain loops and warns of possible ones.
pub(super) fn check_loops(bridges: &BridgesConfig, object: &Object<'_>, walk: &mut Walk) {
    let mut loops = Loops::default();
    bridges.kafka.iter().for_each(|(name, bridge)| loops.add_producer(name, bridge));
    bridges.kafka_consumer.iter().for_each(|(name, bridge)| loops.add_consumer(name, bridge));
    for Loop { certain, consumer, message } in loops.all() {
        let keys = ["kafka_consumer", &consumer, "topic_mapping"];
        if certain {
            walk.wrong_under(object, &keys, message);
        } else {
            walk.warn_within(object, &keys, message);
        }
    }
}

fn same_cluster(one: &ConnectionConfig, other: &ConnectionConfig) -> bool {
    one.bootstrap_hosts.iter().any(|host| other.bootstrap_hosts.contains(host))
}

/// Whether a producer bridge with this topic, fixed or a template, writes to `kafka_topic`.
fn writes_to(topic: &str, kafka_topic: &str) -> Reach {
    if !has_placeholder(topic) {
        return if topic == kafka_topic { Reach::Yes } else { Reach::No };
    }
    let parts = pieces(topic);
    let mut rest = kafka_topic;
    for (at, piece) in parts.iter().enumerate() {
        let Piece::Literal(text) = piece else { continue };
        let found = match at {
            0 => rest.starts_with(text).then_some(0),
            _ if at + 1 == parts.len() => rest.ends_with(text).then(|| rest.len() - text.len()),
            _ => rest.find(text),
        };
        let Some(found) = found else { return Reach::No };
        rest = rest.get(found + text.len()..).unwrap_or("");
    }
    Reach::Maybe
}

/// Whether a topic filter takes what is published to `mqtt_topic`, a topic name or a template of one.
fn takes(filter: &str, mqtt_topic: &str) -> Reach {
    /// Stands for a placeholder: no topic name has it.
    const UNKNOWN: char = '\0';
    if !has_placeholder(mqtt_topic) {
        return if topic::matches(filter, mqtt_topic) { Reach::Yes } else { Reach::No };
    }
    let mut name = String::new();
    for piece in pieces(mqtt_topic) {
        match piece {
            Piece::Literal(text) => name.push_str(text),
            Piece::Placeholder(_) => name.push(UNKNOWN),
        }
    }
    let mut levels = name.split('/');
    for (at, wanted) in filter.split('/').enumerate() {
        let level = levels.next();
        // A wildcard at the beginning takes no topic that begins with `$`.
        let reserved = at == 0 && matches!(wanted, "#" | "+");
        match (wanted, level) {
            (_, Some(level)) if reserved && level.starts_with('$') => return Reach::No,
            (_, Some(level)) if reserved && level.starts_with(UNKNOWN) => return Reach::Maybe,
            ("#", _) => return Reach::Yes,
            (_, None) => return Reach::No,
            // A value may have slashes in it: nothing is certain behind it.
            (_, Some(level)) if level.contains(UNKNOWN) => {
                let begin = level.split(UNKNOWN).next().unwrap_or_default();
                return if wanted == "+" || wanted.starts_with(begin) { Reach::Maybe } else { Reach::No };
            }
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return Reach::No,
        }
    }
    if levels.next().is_none() { Reach::Yes } else { Reach::No }
}

#[cfg(test)]
mod tests {
    use super::super::{Errors, Loaded, load_text};
    use super::*;

    fn producer(name: &str, filter: &str, topic: &str, more: &str) -> String {
        format!(
            "bridges.kafka.{name} {{ bootstrap_hosts = \"k:1\", local_topic = \"{filter}\", kafka.topic = \"{topic}\"\n{more} }}\n"
        )
    }

    fn consumer(name: &str, topic: &str, mqtt_topic: &str, more: &str) -> String {
        format!(
            "bridges.kafka_consumer.{name} {{ bootstrap_hosts = \"k:1\", topic_mapping = \
             [{{ kafka_topic = \"{topic}\", mqtt_topic = \"{mqtt_topic}\" }}]\n{more} }}\n"
        )
    }

    /// What is said of loops: errors and warnings.
    fn said(text: &str) -> (Vec<String>, Vec<String>) {
        let (errors, warnings) = match load_text("c", text) {
            Ok(Loaded { warnings, .. }) => (Vec::new(), warnings),
            Err(Errors(errors)) => (errors, Vec::new()),
        };
        let about = |problems: Vec<super::super::Problem>| {
            let shown = problems.iter().map(ToString::to_string);
            shown.filter(|problem| problem.contains("in a loop")).collect::<Vec<_>>()
        };
        (about(errors), about(warnings))
    }

    #[test]
    fn a_certain_loop_is_refused_with_its_way_and_a_remedy() {
        let text = producer("out", "t/#", "x", "") + &consumer("in", "x", "t/back", "");
        let (errors, warnings) = said(&text);
        assert_eq!(warnings, [""; 0]);
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        assert!(error.starts_with("c:3: bridges.kafka_consumer.in.topic_mapping: messages go round"), "{error}");
        for part in [
            "bridges.kafka_consumer.in publishes the Kafka topic \"x\" to \"t/back\"",
            "bridges.kafka.out takes \"t/#\" and writes it to the Kafka topic \"x\"",
            "allow_loop = true",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_ring_over_several_bridges_is_one_loop() {
        let ring = producer("one", "a/+", "x", "")
            + &consumer("two", "x", "b/1", "")
            + &producer("three", "b/#", "y", "")
            + &consumer("four", "y", "a/1", "");
        assert_eq!(said(&ring).0.len(), 1);
        let broken = ring.replace("a/1", "c/1");
        assert_eq!(said(&broken), (vec![], vec![]));
        for bridge in ["one", "two", "three", "four"] {
            let allowed = ring.replace(&format!(".{bridge} {{"), &format!(".{bridge} {{ allow_loop = true,"));
            assert_eq!(said(&allowed), (vec![], vec![]), "{bridge}");
            let disabled = ring.replace(&format!(".{bridge} {{"), &format!(".{bridge} {{ enable = false,"));
            assert_eq!(said(&disabled), (vec![], vec![]), "{bridge}");
        }
    }

    #[test]
    fn other_topics_and_other_clusters_are_no_loop() {
        let pair = |filter: &str, mqtt_topic: &str| {
            said(&(producer("out", filter, "x", "") + &consumer("in", "x", mqtt_topic, "")))
        };
        assert_eq!(pair("t/#", "u/back"), (vec![], vec![]));
        assert_eq!(pair("#", "$x/back"), (vec![], vec![]));
        let text = producer("out", "t/#", "x", "") + &consumer("in", "x", "t/back", "");
        let elsewhere = text.replacen("k:1", "other:1", 1);
        assert_eq!(said(&elsewhere), (vec![], vec![]));
        let one_in_common = text.replacen("k:1", "other:1,k:1", 1);
        assert_eq!(said(&one_in_common).0.len(), 1);
    }

    #[test]
    fn where_a_template_decides_there_is_a_warning() {
        for (filter, topic, mqtt_topic, expected) in [
            ("t/#", "x", "t/${.key}", Reach::Yes),
            ("t/#", "x", "${.key}", Reach::Maybe),
            ("#", "x", "${.key}/t", Reach::Maybe),
            ("t/+/x", "x", "t/${.key}/x", Reach::Maybe),
            ("t/a", "x", "t/b${.key}", Reach::No),
            ("t/a", "x", "u/${.key}", Reach::No),
            ("t/a/b", "x", "t/${.key}", Reach::Maybe),
            ("t/#", "${clientid}", "t/back", Reach::Maybe),
            ("t/#", "x${clientid}", "t/back", Reach::Maybe),
            ("t/#", "y${clientid}", "t/back", Reach::No),
            ("t/#", "${clientid}y", "t/back", Reach::No),
        ] {
            let (errors, warnings) =
                said(&(producer("out", filter, topic, "") + &consumer("in", "x", mqtt_topic, "")));
            let found = match (errors.len(), warnings.len()) {
                (0, 0) => Reach::No,
                (0, 1) => Reach::Maybe,
                (1, 0) => Reach::Yes,
                more => panic!("{more:?}"),
            };
            assert_eq!(found, expected, "{filter} {topic} {mqtt_topic}: {errors:?} {warnings:?}");
        }
    }
}
