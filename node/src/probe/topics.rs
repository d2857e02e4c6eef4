//! Needs of a bridge at Kafka once it is connected: topics, rights, limits, a producer id, a group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeGroupsRequest, GroupId, MetadataResponse};
use kafka_protocol::protocol::StrBytes;

use super::{Notes, clock, reach};
use crate::bridge::service::Definition;
use crate::config::{ConsumerBridgeConfig, ProducerBridgeConfig, RequiredAcks};
use crate::kafka::client::{BrokerConnection, Client, ClientOptions, Error, Purpose};

/// Bit numbers of Kafka's operations in what a broker says we may do (KIP-430).
const READ: (u8, &str) = (3, "Read");
const WRITE: (u8, &str) = (4, "Write");
const DESCRIBE: (u8, &str) = (8, "Describe");
/// The broker does not say.
const UNSAID: i32 = i32::MIN;
/// Resource type of a topic in DescribeConfigs.
const TOPIC: i8 = 2;
/// From this version of DescribeGroups on the broker tells what we may do.
const TELLS_RIGHTS: i16 = 3;
/// So long a coordinator that is not ready yet is no fault.
const NOT_READY: Duration = Duration::from_secs(8);
/// Between two questions to it.
const BETWEEN: Duration = Duration::from_millis(100);

pub(super) async fn walk(
    name: &str,
    definition: &Definition,
    options: &ClientOptions,
    broker: &Arc<BrokerConnection>,
    cluster: &MetadataResponse,
    notes: &Notes,
) {
    let named = reach::topics(definition);
    if named.is_empty() {
        notes.ok("topic", name, "each message names its own: looked for when the first one comes");
    }
    for topic in named {
        let answer = cluster
            .topics
            .iter()
            .find(|answer| answer.name.as_ref().is_some_and(|name| name.as_str() == topic));
        let Some(answer) = answer else {
            notes.fail("topic", topic, "the answer does not mention it", "look into the log of the broker");
            continue;
        };
        if !exists(topic, answer, definition, notes) {
            continue;
        }
        let operations: &[_] = match definition {
            Definition::Producer(_) => &[WRITE, DESCRIBE],
            Definition::Consumer(_) => &[READ, DESCRIBE],
        };
        rights("topic", topic, answer.topic_authorized_operations, operations, notes);
        if let Definition::Producer(config) = definition {
            limits(topic, answer, config, broker, notes).await;
        }
    }
    let client = Client::new(options.clone());
    match definition {
        Definition::Producer(config) => {
            producer_id(name, config, &client, notes).await;
            clock::compare(name, broker, notes).await;
        }
        Definition::Consumer(config) => group(name, config, &client, notes).await,
    }
    client.close().await;
}

fn exists(topic: &str, answer: &MetadataResponseTopic, definition: &Definition, notes: &Notes) -> bool {
    let create = format!("kafka-topics.sh --create --topic {topic} --partitions N --replication-factor N");
    match ResponseError::try_from_code(answer.error_code) {
        None => {}
        Some(ResponseError::UnknownTopicOrPartition) if definition.connection().allow_auto_topic_creation => {
            notes.warn("topic", topic, "it is not there; Kafka may create it with the first record", create);
            return false;
        }
        Some(ResponseError::UnknownTopicOrPartition) => {
            notes.fail("topic", topic, "it is not there (or we may not see it)", create);
            return false;
        }
        Some(ResponseError::TopicAuthorizationFailed) => {
            rights("topic", topic, 0, &[DESCRIBE], notes);
            return false;
        }
        Some(code) => {
            let fix = "correct the name of the topic, or look into the log of the broker";
            notes.fail("topic", topic, format!("Kafka answered {code}"), fix);
            return false;
        }
    }
    let leaderless: Vec<String> = answer
        .partitions
        .iter()
        .filter(|partition| partition.leader_id.0 < 0)
        .map(|partition| partition.partition_index.to_string())
        .collect();
    let count = answer.partitions.len();
    if leaderless.is_empty() {
        notes.ok("topic", topic, format!("{count} partitions, each with a leader"));
    } else {
        let found = format!("partitions without a leader: {} of {count}", leaderless.join(", "));
        notes.fail("topic", topic, found, "start the brokers that hold their replicas");
    }
    true
}

/// Notes whether we may do what is needed.
fn rights(kind: &str, name: &str, told: i32, needed: &[(u8, &str)], notes: &Notes) {
    if told == UNSAID {
        let fix = "Kafka 2.3 or newer tells; otherwise the first record will";
        return notes.warn("acl", name, "the broker does not tell what we may do", fix);
    }
    let missing: Vec<&str> =
        needed.iter().filter(|(bit, _)| told & (1 << bit) == 0).map(|(_, name)| *name).collect();
    let all: Vec<&str> = needed.iter().map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return notes.ok("acl", name, format!("allowed: {}", all.join(", ")));
    }
    let operations: Vec<String> = missing.iter().map(|name| format!("--operation {name}")).collect();
    notes.fail(
        "acl",
        name,
        format!("our user may not: {}", missing.join(", ")),
        format!("kafka-acls.sh --add --allow-principal User:OURS {} --{kind} {name}", operations.join(" ")),
    );
}

/// The topic's limits against what the bridge sends.
async fn limits(
    topic: &str,
    answer: &MetadataResponseTopic,
    config: &ProducerBridgeConfig,
    broker: &BrokerConnection,
    notes: &Notes,
) {
    const LARGEST: &str = "max.message.bytes";
    const IN_SYNC: &str = "min.insync.replicas";
    let key = |key: &'static str| StrBytes::from_static_str(key);
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(StrBytes::from_string(topic.to_owned()))
        .with_configuration_keys(Some(vec![key(LARGEST), key(IN_SYNC)]));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let unknown = |why: String| {
        let fix = "allow DescribeConfigs on the topic to have this checked; records do not need it";
        notes.warn(LARGEST, topic, format!("it cannot be read: {why}"), fix);
    };
    let result = match broker.call(&request).await {
        Ok(answer) => answer.results.into_iter().next(),
        Err(error) => return unknown(error.to_string()),
    };
    let Some(result) = result else { return unknown("no answer".to_owned()) };
    if let Some(code) = ResponseError::try_from_code(result.error_code) {
        return unknown(format!("Kafka answered {code}"));
    }
    let value = |name: &str| -> Option<u64> {
        let entry = result.configs.iter().find(|entry| entry.name.as_str() == name)?;
        entry.value.as_ref()?.parse().ok()
    };
    let batch = config.kafka.max_batch_bytes.bytes();
    match value(LARGEST) {
        Some(largest) if largest < batch => notes.warn(
            LARGEST,
            topic,
            format!("{largest}, and kafka.max_batch_bytes is {batch}: batches beyond it are refused and sent again in pieces"),
            format!("set kafka.max_batch_bytes to at most {largest}, or raise {LARGEST} of the topic"),
        ),
        Some(largest) => notes.ok(LARGEST, topic, format!("{largest}, batches have at most {batch}")),
        None => unknown("the broker does not name it".to_owned()),
    }
    let Some(needed) = value(IN_SYNC).and_then(|needed| usize::try_from(needed).ok()) else { return };
    in_sync(topic, answer, needed, config.kafka.required_acks, notes);
}

fn in_sync(topic: &str, answer: &MetadataResponseTopic, needed: usize, acks: RequiredAcks, notes: &Notes) {
    const STEP: &str = "min.insync.replicas";
    if acks != RequiredAcks::AllIsr {
        return notes.ok(
            STEP,
            topic,
            format!("{needed}; it does not count with the required_acks of the bridge"),
        );
    }
    let partitions = &answer.partitions;
    let replicas = partitions.iter().map(|partition| partition.replica_nodes.len()).min().unwrap_or(0);
    let alive = partitions.iter().map(|partition| partition.isr_nodes.len()).min().unwrap_or(0);
    if replicas < needed {
        return notes.fail(
            STEP,
            topic,
            format!("{needed}, and there are partitions with {replicas} replicas: every write is refused"),
            format!("give the topic {needed} replicas, or lower {STEP}"),
        );
    }
    if alive < needed {
        return notes.fail(
            STEP,
            topic,
            format!(
                "{needed}, and there are partitions with {alive} replicas in sync: writes are refused for now"
            ),
            "start the brokers that are missing",
        );
    }
    if replicas == 1 || needed == 1 {
        let found = format!(
            "{needed}, with {replicas} replicas: the death of one broker can lose what was acknowledged"
        );
        return notes.warn(STEP, topic, found, format!("3 replicas and {STEP} = 2 survive it"));
    }
    notes.ok(STEP, topic, format!("{needed} of {replicas} replicas, at least {alive} are in sync"));
}

/// Asks again for a while where Kafka is only not ready yet: it makes its topic of offsets when somebody
/// first asks for a group, and gives no producer ids in its first moments.
async fn patiently<T, A: Future<Output = Result<T, Error>>>(ask: impl Fn() -> A) -> Result<T, Error> {
    let deadline = Instant::now() + NOT_READY;
    loop {
        match ask().await {
            Err(Error::Broker {
                code: ResponseError::CoordinatorNotAvailable | ResponseError::CoordinatorLoadInProgress,
                ..
            }) if Instant::now() < deadline => tokio::time::sleep(BETWEEN).await,
            answer => return answer,
        }
    }
}

async fn producer_id(name: &str, config: &ProducerBridgeConfig, client: &Client, notes: &Notes) {
    if config.kafka.required_acks != RequiredAcks::AllIsr {
        return;
    }
    match patiently(|| client.init_producer_id()).await {
        Ok(_) => notes.ok("producer id", name, "Kafka gives one: records are written once"),
        Err(error) => notes.fail(
            "producer id",
            name,
            error.to_string(),
            "allow our user to write to the topic; before Kafka 3.0 also IdempotentWrite on the cluster",
        ),
    }
}

async fn group(name: &str, config: &ConsumerBridgeConfig, client: &Client, notes: &Notes) {
    let group = config.group_id(name);
    let about = group.as_str();
    let coordinator = match patiently(|| client.find_coordinator(about)).await {
        Ok(coordinator) => coordinator,
        Err(Error::Broker { code: ResponseError::GroupAuthorizationFailed, .. }) => {
            return rights("group", about, 0, &[READ, DESCRIBE], notes);
        }
        Err(error) => {
            let fix = "Kafka may still be starting, or its topic of offsets lacks replicas";
            return notes.fail("group", about, error.to_string(), fix);
        }
    };
    let describe = || async {
        let broker = client.broker(coordinator.id, Purpose::Metadata).await?;
        let tells = broker.version::<DescribeGroupsRequest>()? >= TELLS_RIGHTS;
        let request = DescribeGroupsRequest::default()
            .with_groups(vec![GroupId(StrBytes::from_string(about.to_owned()))])
            .with_include_authorized_operations(tells);
        let described = broker.call(&request).await?.groups.into_iter().next();
        let code = described.as_ref().and_then(|group| ResponseError::try_from_code(group.error_code));
        match code {
            Some(
                code @ (ResponseError::CoordinatorNotAvailable | ResponseError::CoordinatorLoadInProgress),
            ) => {
                let address = broker.address().clone();
                Err(Error::Broker { address, what: "DescribeGroups".into(), code })
            }
            _ => Ok(described),
        }
    };
    let fix = "look into the log of the group's coordinator";
    match patiently(describe).await {
        Err(error) => notes.fail("group", about, error.to_string(), fix),
        Ok(described) => {
            let Some(described) = described else {
                return notes.fail("group", about, "the answer does not mention it", fix);
            };
            match ResponseError::try_from_code(described.error_code) {
                Some(ResponseError::GroupAuthorizationFailed) => {
                    rights("group", about, 0, &[READ, DESCRIBE], notes);
                }
                // A group without members so far.
                None | Some(ResponseError::GroupIdNotFound) => {
                    let members = described.members.len();
                    let state = described.group_state.as_str();
                    notes.ok(
                        "group",
                        about,
                        format!("coordinated by {}, {members} members, {state}", coordinator.address),
                    );
                    rights("group", about, described.authorized_operations, &[READ], notes);
                }
                Some(code) => notes.fail("group", about, format!("Kafka answered {code}"), fix),
            }
        }
    }
}
