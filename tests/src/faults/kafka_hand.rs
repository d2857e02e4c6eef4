//! What happens to Kafka, and on the way to it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use causeway::dev_kafka::{ApiKey, DevKafka, Match, Options as DevOptions, TopicSpec};
use causeway_benches::topic::Topic;
use rand::RngExt;
use rand::rngs::StdRng;

use super::proxy::Proxy;
use super::signals::Signals;
use super::verdict::Found;
use super::{Tally, Where};
use crate::block_on;
use crate::kafka::Version;
use crate::kafka_cluster::{BROKERS, KafkaCluster, Plan};

/// LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS,
/// NOT_ENOUGH_REPLICAS_AFTER_APPEND, KAFKA_STORAGE_ERROR, UNKNOWN_TOPIC_OR_PARTITION.
const CODES: [i16; 7] = [5, 6, 7, 19, 20, 56, 3];

/// A Kafka that can be struck.
pub enum Kafka {
    /// The development Kafka, in this process: fast, and it fails on command.
    Development(Box<DevKafka>),
    /// Three brokers of Apache Kafka, each behind a proxy.
    Apache(Box<Cluster>),
}

/// Three brokers and their proxies.
pub struct Cluster {
    proxies: Vec<Proxy>,
    kafka: KafkaCluster,
}

impl Kafka {
    /// Starts one. A development Kafka has `brokers` brokers.
    pub fn start(place: &Where, brokers: usize) -> Result<Self> {
        match place {
            Where::Development => {
                let options = DevOptions { auto_create: false, ..DevOptions::brokers(brokers) };
                Ok(Self::Development(Box::new(block_on(DevKafka::start(options))?)))
            }
            Where::Apache(name) => {
                let version = Version::find(name)?;
                let proxies = (0..BROKERS).map(|_| Proxy::open()).collect::<Result<Vec<_>>>()?;
                let plan = Plan { proxies: proxies.iter().map(Proxy::port).collect(), ..Plan::default() };
                let kafka = KafkaCluster::start(&version, &plan)?;
                for (id, proxy) in (1..).zip(&proxies) {
                    proxy.lead_to(&kafka.outside(id)?)?;
                }
                Ok(Self::Apache(Box::new(Cluster { proxies, kafka })))
            }
        }
    }

    /// Where the node finds it.
    pub fn bootstrap(&self) -> String {
        match self {
            Self::Development(kafka) => kafka.bootstrap(),
            Self::Apache(cluster) => {
                let address = |proxy: &Proxy| format!("127.0.0.1:{}", proxy.port());
                cluster.proxies.iter().map(address).collect::<Vec<_>>().join(",")
            }
        }
    }

    /// Where others than the node find it: past the proxies.
    pub fn direct(&self) -> String {
        match self {
            Self::Development(kafka) => kafka.bootstrap(),
            Self::Apache(cluster) => cluster.kafka.bootstrap(),
        }
    }

    /// Creates a topic.
    pub fn create_topic(&self, topic: &str, partitions: usize) -> Result<()> {
        match self {
            Self::Development(kafka) => {
                kafka.create_topic(&TopicSpec::new(topic, i32::try_from(partitions)?))?;
                Ok(())
            }
            Self::Apache(cluster) => cluster.kafka.create_topic(topic, partitions, &[]),
        }
    }

    /// Everything in a topic, read by rskafka.
    pub fn read(&self, topic: &str) -> Result<Vec<Found>> {
        // Not through the proxies, and not at a bootstrap broker that is about to lead nothing.
        let bootstrap = match self {
            Self::Development(kafka) => kafka.bootstrap(),
            Self::Apache(cluster) => {
                cluster.kafka.wait_until_whole(topic)?;
                cluster.kafka.bootstrap()
            }
        };
        let mut found = Vec::new();
        block_on(async {
            let topic = Topic::open(&bootstrap, topic).await?;
            let take = |partition, record: rskafka::record::RecordAndOffset| {
                let rskafka::record::Record { key, value, .. } = record.record;
                let value = value.unwrap_or_default();
                found.push(Found { partition, offset: record.offset, key, value });
            };
            topic.read(&std::collections::BTreeMap::new(), take).await
        })
        .with_context(|| format!("reading topic {topic}"))?;
        Ok(found)
    }

    /// Strikes until calm is called; then everything is well again.
    pub fn strike_on(
        &mut self,
        rng: &mut StdRng,
        topics: &[(String, usize)],
        signals: &Signals,
        tally: &mut Tally,
    ) -> Result<()> {
        signals.doze(Duration::from_millis(rng.random_range(0..1500)));
        while !signals.is_calm() {
            match self {
                Self::Development(kafka) => strike_development(kafka, rng, topics, signals, tally)?,
                Self::Apache(cluster) => cluster.strike(rng, topics, signals, tally)?,
            }
            signals.doze(Duration::from_millis(rng.random_range(50..1800)));
        }
        if let Self::Development(kafka) = self {
            kafka.faults().clear();
        }
        Ok(())
    }
}

fn strike_development(
    kafka: &DevKafka,
    rng: &mut StdRng,
    topics: &[(String, usize)],
    signals: &Signals,
    tally: &mut Tally,
) -> Result<()> {
    let faults = kafka.faults();
    let brokers = kafka.addresses().len();
    let broker = rng.random_range(1..=brokers) as i32;
    let count = rng.random_range(1..12_usize);
    let mut matches = Match::api(ApiKey::Produce);
    if rng.random_bool(0.4) {
        matches = matches.broker(broker);
    }
    if rng.random_bool(0.3) {
        matches = matches.topic(&topics[rng.random_range(0..topics.len())].0);
    }
    let log = |text: String| signals.log(format!("kafka: {text}"));
    match rng.random_range(0..13) {
        0 => {
            log(format!("{count} requests are lost: {matches:?}"));
            faults.drop_before(matches, count);
            tally.count("requests lost");
        }
        1 | 2 => {
            log(format!("{count} answers are lost: {matches:?}"));
            faults.drop_after(matches, count);
            tally.count("answers lost");
        }
        3 | 4 => {
            let code = CODES[rng.random_range(0..CODES.len())];
            log(format!("{count} answers with error {code}: {matches:?}"));
            faults.error(matches, code, count);
            tally.count("errors answered");
        }
        5 | 6 => {
            let delay = Duration::from_millis(rng.random_range(20..2500));
            log(format!("{count} answers are delayed by {delay:.1?}: {matches:?}"));
            faults.delay(matches, delay, count);
            tally.count("answers delayed");
        }
        7 => {
            log("every connection is cut".to_owned());
            faults.close_connections();
            tally.count("connections cut");
        }
        8 | 9 => {
            let time = Duration::from_millis(rng.random_range(20..2500));
            log(format!("broker {broker} is away for {time:.1?}"));
            block_on(faults.pause_broker(broker))?;
            tally.count("broker down");
            signals.doze(time);
            block_on(faults.resume_broker(broker))?;
            log(format!("broker {broker} is back"));
        }
        10 | 11 => {
            for (topic, partitions) in topics {
                for partition in 0..*partitions {
                    if rng.random_bool(0.6) {
                        let to = rng.random_range(1..=brokers) as i32;
                        kafka.move_leader(topic, i32::try_from(partition)?, to)?;
                    }
                }
            }
            log("leaders move".to_owned());
            tally.count("leaders moved");
        }
        _ => {
            // Lost on the way there, answered with an error, lost on the way back, in any mixture.
            let code = CODES[rng.random_range(0..CODES.len())];
            log(format!("a storm: lost requests, error {code}, lost answers: {matches:?}"));
            for _ in 0..count {
                match rng.random_range(0..4) {
                    0 => faults.drop_before(matches.clone(), 1),
                    1 => faults.error(matches.clone(), code, 1),
                    2 => faults.delay(matches.clone(), Duration::from_millis(rng.random_range(0..300)), 1),
                    _ => faults.drop_after(matches.clone(), 1),
                }
            }
            tally.count("storms");
        }
    }
    Ok(())
}

impl Cluster {
    fn strike(
        &mut self,
        rng: &mut StdRng,
        topics: &[(String, usize)],
        signals: &Signals,
        tally: &mut Tally,
    ) -> Result<()> {
        let broker = rng.random_range(1..=BROKERS);
        let Some(proxy) = self.proxies.get(broker - 1) else { bail!("no proxy for broker {broker}") };
        let log = |text: String| signals.log(format!("kafka: {text}"));
        let time = Duration::from_millis(rng.random_range(100..5000));
        match rng.random_range(0..12) {
            0 => {
                log(format!("broker {broker}: kill -9"));
                self.kafka.node(broker)?.kill()?;
                tally.count("broker killed");
                signals.doze(time);
                self.kafka.node(broker)?.restart()?;
                log(format!("broker {broker} is back"));
            }
            1 => {
                log(format!("broker {broker}: SIGTERM"));
                self.kafka.node(broker)?.stop()?;
                tally.count("broker restarted");
                self.kafka.node(broker)?.restart()?;
                log(format!("broker {broker} is back"));
            }
            2 | 3 => {
                log(format!("broker {broker} stands still for {time:.1?}"));
                self.kafka.node(broker)?.pause()?;
                tally.count("broker paused");
                signals.doze(time);
                self.kafka.node(broker)?.resume()?;
                log(format!("broker {broker} goes on"));
            }
            4..=6 => {
                let mut moved = 0;
                for (topic, partitions) in topics {
                    for partition in 0..*partitions {
                        if rng.random_bool(0.5) {
                            // A cluster that is just being restarted may refuse: then another time.
                            let to = rng.random_range(1..=BROKERS);
                            moved += u64::from(self.kafka.move_leader(topic, partition, to).is_ok());
                        }
                    }
                }
                log(format!("{moved} leaders move"));
                tally.count("leaders moved");
            }
            7 | 8 => {
                log(format!("the connections to broker {broker} are cut"));
                proxy.cut();
                tally.count("connections cut");
            }
            9 => {
                let delay = Duration::from_millis(rng.random_range(5..400));
                log(format!("the way to broker {broker} takes {delay:.1?} more for {time:.1?}"));
                proxy.change(|weather| weather.delay = delay);
                tally.count("way delayed");
                signals.doze(time);
                proxy.clear();
            }
            10 => {
                let there = rng.random_bool(0.3);
                log(format!(
                    "broker {broker}: {} for {time:.1?}, then cut",
                    if there { "no request arrives" } else { "no answer comes back" }
                ));
                proxy.change(|weather| {
                    weather.to_broker_stands = there;
                    weather.from_broker_stands = !there;
                });
                tally.count("way blocked");
                signals.doze(time);
                proxy.cut();
                proxy.clear();
            }
            _ => {
                log(format!("nobody gets to broker {broker} for {time:.1?}"));
                proxy.change(|weather| weather.is_shut = true);
                tally.count("way shut");
                signals.doze(time);
                proxy.clear();
            }
        }
        Ok(())
    }
}
