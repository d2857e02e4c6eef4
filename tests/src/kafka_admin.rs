//! What an administrator does with a Kafka: topics with settings, rights of users, lists.

use anyhow::{Context, Result, ensure};
use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::{
    CreateAclsRequest, CreateTopicsRequest, ListGroupsRequest, MetadataRequest, TopicName,
};

use crate::kafka::RealKafka;
use crate::kafka_wire::{PATIENCE, Wire, name};

/// What somebody may do, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the operation of its name")]
pub enum Operation {
    Read = 3,
    Write = 4,
    Describe = 8,
    DescribeConfigs = 10,
}

/// With what, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the resource of its name")]
pub enum Resource {
    Topic = 2,
    Group = 3,
}

/// Lines of `server.properties` with which users may do what they are allowed to, and whoever comes without a
/// login everything.
pub const ACCESS_CONTROL: &str = "
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
";

impl RealKafka {
    fn wire(&self) -> Result<Wire> {
        Wire::connect(&self.bootstrap())
    }

    /// Creates a topic of one replica with these settings, and waits until it can be used.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        let setting = |&(key, value): &(&str, &str)| {
            CreatableTopicConfig::default().with_name(name(key)).with_value(Some(name(value)))
        };
        let wanted = CreatableTopic::default()
            .with_name(TopicName(name(topic)))
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(settings.iter().map(setting).collect());
        let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
        let made = self.wire()?.call(5, &request)?;
        let code = made.topics.first().context("an answer per topic")?.error_code;
        ensure!(code == 0, "creating topic {topic}: error {code}");
        crate::eventually(PATIENCE, || {
            let known = self.topics()?;
            crate::need(known.iter().any(|known| known == topic), || format!("{topic} is not in {known:?}"))
        })
    }

    /// Names of all topics whose partitions have leaders, by their names.
    pub fn topics(&self) -> Result<Vec<String>> {
        let answer = self.wire()?.call(9, &MetadataRequest::default().with_topics(None))?;
        let led = answer.topics.into_iter().filter(|topic| {
            topic.error_code == 0 && topic.partitions.iter().all(|partition| partition.leader_id.0 > 0)
        });
        let mut names: Vec<String> = led.filter_map(|topic| Some(topic.name?.to_string())).collect();
        names.sort();
        Ok(names)
    }

    /// Names of all consumer groups, by their names.
    pub fn groups(&self) -> Result<Vec<String>> {
        let answer = self.wire()?.call(2, &ListGroupsRequest::default())?;
        ensure!(answer.error_code == 0, "listing groups: error {}", answer.error_code);
        let mut names: Vec<String> =
            answer.groups.into_iter().map(|group| group.group_id.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// Allows a user something; for nodes with [`ACCESS_CONTROL`].
    pub fn allow(&self, user: &str, operation: Operation, resource: Resource, what: &str) -> Result<()> {
        // A literal name, from any host, allowed.
        let entry = AclCreation::default()
            .with_resource_type(resource as i8)
            .with_resource_name(name(what))
            .with_resource_pattern_type(3)
            .with_principal(name(&format!("User:{user}")))
            .with_host(name("*"))
            .with_operation(operation as i8)
            .with_permission_type(3);
        let request = CreateAclsRequest::default().with_creations(vec![entry]);
        let made = self.wire()?.call(2, &request)?;
        let result = made.results.first().context("an answer per entry")?;
        ensure!(result.error_code == 0, "allowing {operation:?}: error {}", result.error_code);
        Ok(())
    }
}
