//! Loops: producer and consumer bridges that send one message round and round.
//!
//! A mapping of a consumer bridge publishes the records of a Kafka topic, a producer bridge takes what
//! matches its filter and writes it to a Kafka topic, and so on, until a message is where it was. The search
//! goes over enabled bridges without `allow_loop`: a loop with that key in one of its bridges is wanted.
//!
//! * A loop is certain if each message in it stays in it. Where a placeholder decides which topic a message
//!   goes to, or the way leads through a dead-letter topic, it is possible.
//! * Two bridges reach the same Kafka where their bootstrap hosts, as written, have one in common. One
//!   cluster under different names is not seen as one; the hop count of records ends such loops.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, VecDeque};

use super::tree::{Object, Walk};
use super::{BridgesConfig, ConnectionConfig, ConsumerBridgeConfig, ProducerBridgeConfig, TopicMapping};

mod patterns;

use patterns::{Reach, takes, writes_to};

/// The bridges that may be part of a loop.
#[derive(Default)]
pub(crate) struct Loops<'c> {
    producers: Vec<(&'c str, &'c ProducerBridgeConfig)>,
    consumers: Vec<(&'c str, &'c ConsumerBridgeConfig)>,
}

/// A loop that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loop {
    /// Whether each message in it stays in it.
    pub(crate) certain: bool,
    /// A consumer bridge that is part of it.
    pub(crate) consumer: String,
    /// The way round, and what to do about it.
    pub(crate) message: String,
}

/// A producer bridge, or one mapping of a consumer bridge, by their numbers in [`Loops`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Station {
    Producer(usize),
    Mapping(usize, usize),
}

/// Where each station's messages go.
type Ways = BTreeMap<Station, Vec<(Station, Reach)>>;

impl<'c> Loops<'c> {
    /// The bridges of a configuration.
    pub(crate) fn of(bridges: &'c BridgesConfig) -> Self {
        let mut loops = Self::default();
        bridges.kafka.iter().for_each(|(name, bridge)| loops.add_producer(name, bridge));
        bridges.kafka_consumer.iter().for_each(|(name, bridge)| loops.add_consumer(name, bridge));
        loops
    }

    /// Adds a producer bridge, unless it is disabled, has no source or may be part of a loop.
    pub(crate) fn add_producer(&mut self, name: &'c str, bridge: &'c ProducerBridgeConfig) {
        if bridge.enable && !bridge.allow_loop && bridge.local_topic.is_some() {
            self.producers.push((name, bridge));
        }
    }

    /// Adds a consumer bridge, unless it is disabled or may be part of a loop.
    pub(crate) fn add_consumer(&mut self, name: &'c str, bridge: &'c ConsumerBridgeConfig) {
        if bridge.enable && !bridge.allow_loop {
            self.consumers.push((name, bridge));
        }
    }

    /// Loops that together have every consumer's mapping that is in one; the certain ones first.
    pub(crate) fn all(&self) -> Vec<Loop> {
        self.through(self.mappings())
    }

    /// Loops that together have every station of these bridges that is in one; the certain ones first.
    pub(crate) fn through_any(&self, producers: &[&str], consumers: &[&str]) -> Vec<Loop> {
        let of_producers = self.producers.iter().enumerate();
        let of_producers = of_producers.filter(|(_, (name, _))| producers.contains(name));
        let of_producers = of_producers.map(|(at, _)| Station::Producer(at));
        let of_consumers = self.mappings().filter(|station| match station {
            Station::Mapping(at, _) => {
                self.consumers.get(*at).is_some_and(|(name, _)| consumers.contains(name))
            }
            Station::Producer(_) => false,
        });
        self.through(of_producers.chain(of_consumers))
    }

    fn mappings(&self) -> impl Iterator<Item = Station> {
        self.consumers.iter().enumerate().flat_map(|(at, (_, bridge))| {
            (0..bridge.topic_mapping.len()).map(move |mapping| Station::Mapping(at, mapping))
        })
    }

    fn through(&self, starts: impl Iterator<Item = Station>) -> Vec<Loop> {
        let (starts, ways) = (starts.collect::<Vec<_>>(), self.ways());
        let mut seen = BTreeSet::new();
        let mut loops = Vec::new();
        for least in [Reach::Surely, Reach::Maybe] {
            for start in &starts {
                if !seen.contains(start)
                    && let Some(stations) = shortest(&ways, *start, least)
                {
                    loops.push(self.described(&stations, least));
                    seen.extend(stations);
                }
            }
        }
        loops
    }

    fn ways(&self) -> Ways {
        let mut ways = Ways::new();
        for (producer, (_, from)) in self.producers.iter().enumerate() {
            let filter = from.local_topic.as_deref().unwrap_or_default();
            for (consumer, (_, to)) in self.consumers.iter().enumerate() {
                let is_same = same_cluster(&from.connection, &to.connection);
                for (mapping, topics) in to.topic_mapping.iter().enumerate() {
                    let (producer, mapping) =
                        (Station::Producer(producer), Station::Mapping(consumer, mapping));
                    let reach = if is_same { reaches(from, topics) } else { Reach::No };
                    if reach > Reach::No {
                        ways.entry(producer).or_default().push((mapping, reach));
                    }
                    let reach = takes(filter, &topics.mqtt_topic);
                    if reach > Reach::No {
                        ways.entry(mapping).or_default().push((producer, reach));
                    }
                }
            }
        }
        ways
    }

    /// A loop in words: it begins and ends with the bridge of its first station.
    fn described(&self, stations: &[Station], least: Reach) -> Loop {
        let mut consumer = String::new();
        let mut way = Vec::new();
        let next = stations.iter().cycle().skip(1);
        for (station, next) in stations.iter().zip(next) {
            way.push(self.named(*station));
            match (*station, *next) {
                (Station::Mapping(at, mapping), _) => {
                    if let (Some((name, _)), true) = (self.consumers.get(at), consumer.is_empty()) {
                        (*name).clone_into(&mut consumer);
                    }
                    let topic = self.mapping(at, mapping).map_or("", |mapping| mapping.mqtt_topic.as_str());
                    way.push(format!("MQTT topic {topic:?}"));
                }
                (Station::Producer(at), Station::Mapping(to, mapping)) => {
                    let (Some((_, from)), Some(to)) = (self.producers.get(at), self.mapping(to, mapping))
                    else {
                        continue;
                    };
                    let is_letter = writes_to(&from.kafka.topic, &to.kafka_topic) < least;
                    let of = if is_letter { "dead letters in the Kafka topic" } else { "Kafka topic" };
                    way.push(format!("{of} {:?}", to.kafka_topic));
                }
                (Station::Producer(_), Station::Producer(_)) => {}
            }
        }
        way.extend(stations.first().map(|first| self.named(*first)));
        let way = way.join(" -> ");
        let certain = least == Reach::Surely;
        let what = if certain {
            "messages go round in a loop for ever"
        } else {
            "messages may go round in a loop, if their templates name these topics or if they become dead letters"
        };
        let message = format!(
            "{what}: {way}; change one of the topics, disable one of the bridges, or set allow_loop = true in one of them if the \
             loop is wanted"
        );
        Loop { certain, consumer, message }
    }

    fn mapping(&self, consumer: usize, mapping: usize) -> Option<&'c TopicMapping> {
        self.consumers.get(consumer).and_then(|(_, bridge)| bridge.topic_mapping.get(mapping))
    }

    fn named(&self, station: Station) -> String {
        match station {
            Station::Producer(at) => self.producers.get(at).map_or_else(String::new, |(name, bridge)| {
                format!(
                    "bridges.kafka.{name} (local_topic {:?})",
                    bridge.local_topic.as_deref().unwrap_or_default()
                )
            }),
            Station::Mapping(at, _) => self
                .consumers
                .get(at)
                .map_or_else(String::new, |(name, _)| format!("bridges.kafka_consumer.{name}")),
        }
    }
}

/// The shortest way from a station back to it over steps that are at least so certain.
fn shortest(ways: &Ways, start: Station, least: Reach) -> Option<Vec<Station>> {
    let mut before = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    while let Some(station) = waiting.pop_front() {
        let next = ways.get(&station).into_iter().flatten();
        for (next, _) in next.filter(|(_, reach)| *reach >= least) {
            if *next == start {
                let mut way = vec![station];
                while let Some(previous) = way.last().and_then(|last| before.get(last)) {
                    way.push(*previous);
                }
                way.reverse();
                return Some(way);
            }
            if let Entry::Vacant(vacant) = before.entry(*next) {
                vacant.insert(station);
                waiting.push_back(*next);
            }
        }
    }
    None
}

/// Whether what the producer bridge writes comes to the mapping.
fn reaches(producer: &ProducerBridgeConfig, mapping: &TopicMapping) -> Reach {
    let kafka = &producer.kafka;
    let is_letter = kafka.dead_letter_topic.as_ref() == Some(&mapping.kafka_topic);
    writes_to(&kafka.topic, &mapping.kafka_topic).max(if is_letter { Reach::Maybe } else { Reach::No })
}

fn same_cluster(one: &ConnectionConfig, other: &ConnectionConfig) -> bool {
    let is_same =
        |a: &super::HostPort, b: &super::HostPort| a.port == b.port && a.host.eq_ignore_ascii_case(&b.host);
    one.bootstrap_hosts.iter().any(|a| other.bootstrap_hosts.iter().any(|b| is_same(a, b)))
}

/// Refuses certain loops and warns of possible ones.
pub(super) fn check_loops(bridges: &BridgesConfig, object: &Object<'_>, walk: &mut Walk) {
    for Loop { certain, consumer, message } in Loops::of(bridges).all() {
        let keys = ["kafka_consumer", &consumer, "topic_mapping"];
        if certain {
            walk.wrong_under(object, &keys, message);
        } else {
            walk.warn_under(object, &keys, message);
        }
    }
}

#[cfg(test)]
mod tests;
