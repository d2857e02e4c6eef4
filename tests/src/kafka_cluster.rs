//! Three nodes of Apache Kafka with replicated topics: what acks from all in-sync replicas are about.
//!
//! Every topic has three replicas and `min.insync.replicas = 2`. Brokers are fenced after 3 s of silence
//! instead of Kafka's 9, so that tests see leaders move without waiting long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest, ElectLeadersRequest, MetadataRequest,
    TopicName,
};

use crate::eventually;
use crate::kafka::{Extras, Listener, Member, RealKafka, Version, cluster_id, free_ports};
use crate::kafka_wire::{Wire, name};

/// Brokers, and replicas of every partition.
pub const BROKERS: usize = 3;

/// How long a cluster may take to do what it was asked for.
const PATIENCE: Duration = Duration::from_mins(1);

/// NO_ERROR, and ELECTION_NOT_NEEDED: it leads already.
const LEADS: [i16; 2] = [0, 84];

const PROPERTIES: &str = "
default.replication.factor=3
offsets.topic.replication.factor=3
min.insync.replicas=2
auto.leader.rebalance.enable=false
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
replica.lag.time.max.ms=4000
num.io.threads=2
num.network.threads=2
log.flush.offset.checkpoint.interval.ms=10000
";

/// How the cluster is built.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Only the first node is a controller: the others can go without taking the quorum along. Otherwise all
    /// are.
    pub one_controller: bool,
    /// Ports of proxies, one a broker, through which clients of the listener [`OUTSIDE`] are told to come.
    pub proxies: Vec<u16>,
}

/// Name of the listener of those who come through proxies.
pub const OUTSIDE: &str = "OUTSIDE";

/// See the module. Nodes are called by their ids, from 1.
pub struct KafkaCluster {
    nodes: Vec<RealKafka>,
}

impl KafkaCluster {
    /// Starts a fresh cluster and waits until all its nodes serve.
    pub fn start(version: &Version, plan: &Plan) -> Result<Self> {
        // A port that was free a moment ago may have been taken by a test beside this one.
        let mut last = None;
        for _ in 0..3 {
            match Self::start_once(version, plan) {
                Ok(cluster) => return Ok(cluster),
                Err(error) if error.to_string().contains("Address already in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("no attempt was made")))
    }

    fn start_once(version: &Version, plan: &Plan) -> Result<Self> {
        let ports = free_ports::<{ 3 * BROKERS }>()?;
        let cluster = cluster_id(version)?;
        let controllers = if plan.one_controller { 1 } else { BROKERS };
        let voter = |id: usize| format!("{id}@127.0.0.1:{}", ports[3 * id - 1]);
        let voters = (1..=controllers).map(voter).collect::<Vec<_>>().join(",");
        let mut nodes = Vec::new();
        for id in 1..=BROKERS {
            let first = 3 * (id - 1);
            let member = Member {
                id,
                cluster: cluster.clone(),
                ports: [ports[first], ports[first + 1], ports[first + 2]],
                voters: voters.clone(),
                is_controller: id <= controllers,
            };
            let mut extras = Extras { properties: PROPERTIES.to_owned(), ..Extras::default() };
            if let Some(&proxy) = plan.proxies.get(id - 1) {
                extras.listeners.push(Listener { name: OUTSIDE, protocol: "PLAINTEXT" });
                extras.advertised.push((OUTSIDE, proxy));
            }
            nodes.push(RealKafka::prepare(version, &extras, &member)?);
        }
        let mut cluster = Self { nodes };
        for node in &mut cluster.nodes {
            node.launch()?;
        }
        for node in &mut cluster.nodes {
            node.wait_until_it_serves()?;
        }
        cluster.wait_for("all brokers", |cluster| {
            let brokers = cluster.wire()?.call(9, &MetadataRequest::default().with_topics(Some(vec![])))?;
            ensure!(brokers.brokers.len() == BROKERS, "{} brokers are known", brokers.brokers.len());
            Ok(())
        })?;
        Ok(cluster)
    }

    /// Which release it is.
    pub fn version(&self) -> &Version {
        self.nodes[0].version()
    }

    /// All nodes, `HOST:PORT,HOST:PORT,HOST:PORT`.
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(RealKafka::bootstrap).collect::<Vec<_>>().join(",")
    }

    /// `HOST:PORT` of a node's listener [`OUTSIDE`], which the proxies in front of it have to lead to.
    pub fn outside(&self, id: usize) -> Result<String> {
        Ok(self.nodes.get(id - 1).context("no such node")?.listener(OUTSIDE))
    }

    /// A node, to be stopped, killed, paused and started.
    pub fn node(&mut self, id: usize) -> Result<&mut RealKafka> {
        self.nodes.get_mut(id.wrapping_sub(1)).with_context(|| format!("nodes are 1 to {BROKERS}, not {id}"))
    }

    /// A connection to some node that answers.
    fn wire(&self) -> Result<Wire> {
        let mut last = anyhow!("no node");
        for node in &self.nodes {
            let asked = Wire::connect(&node.bootstrap()).and_then(|mut wire| {
                wire.give_up_after(Duration::from_secs(3))?;
                wire.call(9, &MetadataRequest::default().with_topics(Some(vec![])))?;
                Ok(wire)
            });
            match asked {
                Ok(wire) => return Ok(wire),
                Err(error) => last = error,
            }
        }
        Err(last.context("no node of Kafka answers"))
    }

    fn wait_for<T>(&self, what: &str, ask: impl Fn(&Self) -> Result<T>) -> Result<T> {
        eventually(PATIENCE, || ask(self)).with_context(|| format!("waiting for {what}"))
    }

    /// Creates a topic with three replicas a partition, and waits until every partition has a leader. The
    /// first replica, which is the preferred leader, goes round.
    pub fn create_topic(&self, topic: &str, partitions: usize, configs: &[(&str, &str)]) -> Result<()> {
        let config = |&(key, value): &(&str, &str)| {
            CreatableTopicConfig::default().with_name(name(key)).with_value(Some(name(value)))
        };
        let wanted = CreatableTopic::default()
            .with_name(TopicName(name(topic)))
            .with_num_partitions(i32::try_from(partitions)?)
            .with_replication_factor(i16::try_from(BROKERS)?)
            .with_configs(configs.iter().map(config).collect());
        let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
        let made = self.wire()?.call(5, &request)?;
        let code = made.topics.first().context("an answer per topic")?.error_code;
        ensure!(code == 0, "creating topic {topic}: error {code}");
        self.wait_until_whole(topic)
    }

    /// What Kafka says about the partitions of a topic, by their numbers.
    pub fn partitions(&self, topic: &str) -> Result<Vec<MetadataResponsePartition>> {
        let wanted = MetadataRequestTopic::default().with_name(Some(TopicName(name(topic))));
        let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
        let mut answer = self.wire()?.call(9, &request)?;
        let mut partitions = answer.topics.pop().context("an answer per topic")?.partitions;
        partitions.sort_by_key(|partition| partition.partition_index);
        Ok(partitions)
    }

    /// Waits until every partition of a topic has a leader and all its replicas in sync.
    pub fn wait_until_whole(&self, topic: &str) -> Result<()> {
        self.wait_for("every replica in sync", |cluster| {
            let partitions = cluster.partitions(topic)?;
            let is_whole = |partition: &MetadataResponsePartition| {
                partition.error_code == 0
                    && partition.leader_id.0 > 0
                    && partition.isr_nodes.len() == BROKERS
                    && partition.offline_replicas.is_empty()
            };
            ensure!(!partitions.is_empty(), "Kafka does not know {topic}");
            if !partitions.iter().all(is_whole) {
                bail!("not every replica is in sync: {partitions:?}");
            }
            Ok(())
        })
    }

    /// Makes this node the leader of a partition, as `kafka-reassign-partitions` and `kafka-leader-election`
    /// do: it becomes the first replica, then the preferred one is elected.
    pub fn move_leader(&self, topic: &str, partition: usize, to: usize) -> Result<()> {
        let index = i32::try_from(partition)?;
        let others = (1..=BROKERS).filter(|id| *id != to);
        let replicas = std::iter::once(to).chain(others).map(|id| BrokerId(id as i32)).collect();
        let wanted =
            ReassignablePartition::default().with_partition_index(index).with_replicas(Some(replicas));
        let request =
            AlterPartitionReassignmentsRequest::default().with_timeout_ms(10_000).with_topics(vec![
                ReassignableTopic::default().with_name(TopicName(name(topic))).with_partitions(vec![wanted]),
            ]);
        let mut wire = self.wire()?;
        let answer = wire.call(0, &request)?;
        let codes =
            answer.responses.iter().flat_map(|topic| &topic.partitions).map(|answer| answer.error_code);
        let code = Some(answer.error_code).into_iter().chain(codes).find(|code| *code != 0);
        ensure!(code.is_none(), "reassigning {topic}-{partition}: error {code:?}");
        let wanted =
            TopicPartitions::default().with_topic(TopicName(name(topic))).with_partitions(vec![index]);
        let request = ElectLeadersRequest::default()
            .with_election_type(0)
            .with_topic_partitions(Some(vec![wanted]))
            .with_timeout_ms(10_000);
        let answer = wire.call(2, &request)?;
        let results = answer.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
        let code = results.map(|result| result.error_code).find(|code| !LEADS.contains(code));
        ensure!(answer.error_code == 0 && code.is_none(), "electing for {topic}-{partition}: error {code:?}");
        Ok(())
    }

    /// Restarts all nodes in turn, in order and each when the topics are whole again, as operators do.
    pub fn roll(&mut self, topics: &[&str]) -> Result<Duration> {
        let started = Instant::now();
        for id in 1..=BROKERS {
            self.node(id)?.stop()?;
            self.node(id)?.restart()?;
            for topic in topics {
                self.wait_until_whole(topic)?;
            }
        }
        Ok(started.elapsed())
    }
}
