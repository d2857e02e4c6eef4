//! Metadata, CreateTopics, DeleteTopics, CreatePartitions.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::{Context, broker_id};
use crate::dev_kafka::cluster::Refused;
use crate::dev_kafka::topics::{MAX_PARTITIONS, Topic, check_name};

/// The broker that all tools are sent to for changes; any would do.
const CONTROLLER: i32 = 1;

pub(super) fn metadata(context: &mut Context, request: MetadataRequest) -> MetadataResponse {
    let mut response = MetadataResponse::default()
        .with_cluster_id(Some(context.cluster.id.clone()))
        .with_controller_id(broker_id(CONTROLLER));
    for broker in 1..=context.cluster.brokers.len() as i32 {
        if let Some((host, port)) = context.endpoint(broker) {
            response.brokers.push(
                MetadataResponseBroker::default()
                    .with_node_id(broker_id(broker))
                    .with_host(host)
                    .with_port(port),
            );
        }
    }
    let all = context.version == 0 && request.topics.as_ref().is_some_and(Vec::is_empty);
    match request.topics {
        Some(wanted) if !all => {
            for topic in wanted {
                let auto_create = request.allow_auto_topic_creation;
                let entry = match topic.name {
                    Some(name) => metadata_by_name(context, &name, auto_create),
                    None => metadata_by_id(context, topic.topic_id),
                };
                response.topics.push(entry);
            }
        }
        _ => {
            let topics: Vec<_> = context.cluster.topics.read().by_name.values().cloned().collect();
            response.topics = topics.iter().map(|topic| describe(context, topic)).collect();
        }
    }
    response
}

fn metadata_by_name(context: &mut Context, name: &TopicName, auto_create: bool) -> MetadataResponseTopic {
    let failed =
        |code: i16| MetadataResponseTopic::default().with_name(Some(name.clone())).with_error_code(code);
    if let Some(code) = context.fault(name, -1) {
        return failed(code);
    }
    if let Some(topic) = context.cluster.topic(name) {
        return describe(context, &topic);
    }
    if let Err(error) = check_name(name) {
        return failed(error.code());
    }
    if !auto_create || !context.cluster.options.auto_create {
        return failed(ResponseError::UnknownTopicOrPartition.code());
    }
    match context.cluster.create_topic(name, context.cluster.options.default_partitions, BTreeMap::new()) {
        Ok(topic) => describe(context, &topic),
        // Another client was faster: the next request finds it.
        Err((ResponseError::TopicAlreadyExists, _)) => failed(ResponseError::LeaderNotAvailable.code()),
        Err((error, _)) => failed(error.code()),
    }
}

fn metadata_by_id(context: &mut Context, id: Uuid) -> MetadataResponseTopic {
    match context.cluster.topic_by("", id) {
        Some(topic) if !id.is_nil() => describe(context, &topic),
        _ => MetadataResponseTopic::default()
            .with_topic_id(id)
            .with_error_code(ResponseError::UnknownTopicId.code()),
    }
}

fn describe(context: &mut Context, topic: &Topic) -> MetadataResponseTopic {
    let mut entry = MetadataResponseTopic::default()
        .with_name(Some(TopicName(topic.name.clone())))
        .with_topic_id(topic.id)
        .with_is_internal(false);
    for partition in topic.all() {
        let leader = partition.leader();
        if context.plan.hides(&topic.name, partition.index) {
            continue;
        }
        let mut described = MetadataResponsePartition::default()
            .with_partition_index(partition.index)
            .with_leader_id(broker_id(leader.broker))
            .with_leader_epoch(leader.epoch)
            .with_replica_nodes(vec![broker_id(leader.broker)])
            .with_isr_nodes(vec![broker_id(leader.broker)]);
        if let Some(code) = context.fault(&topic.name, partition.index) {
            described = described.with_error_code(code).with_leader_id(broker_id(-1));
        }
        entry.partitions.push(described);
    }
    entry
}

pub(super) fn create_topics(context: &mut Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut response = CreateTopicsResponse::default();
    for wanted in request.topics {
        let name = wanted.name.clone();
        let result = match context.fault(&name, -1) {
            Some(code) => Err((code, String::new())),
            None => create_one(context, &wanted, request.validate_only)
                .map_err(|(error, reason)| (error.code(), reason)),
        };
        response.topics.push(match result {
            Ok(result) => result.with_name(name),
            Err((code, reason)) => CreatableTopicResult::default()
                .with_name(name)
                .with_error_code(code)
                .with_error_message(Some(StrBytes::from_string(reason))),
        });
    }
    response
}

fn create_one(
    context: &Context,
    wanted: &CreatableTopic,
    validate_only: bool,
) -> Result<CreatableTopicResult, Refused> {
    let cluster = &context.cluster;
    let brokers = cluster.brokers.len() as i16;
    let mut configs = BTreeMap::new();
    for config in &wanted.configs {
        let value = config.value.as_ref().map(ToString::to_string);
        configs.extend(value.map(|value| (config.name.to_string(), value)));
    }
    let partitions = match (wanted.assignments.len(), wanted.num_partitions) {
        (0, -1) => cluster.options.default_partitions,
        (0, count) => count,
        (assigned, _) => i32::try_from(assigned).unwrap_or(i32::MAX),
    };
    if wanted.assignments.is_empty()
        && wanted.replication_factor != -1
        && !(1..=brokers).contains(&wanted.replication_factor)
    {
        let reason =
            format!("Replication factor must be between 1 and {brokers}, not {}.", wanted.replication_factor);
        return Err((ResponseError::InvalidReplicationFactor, reason));
    }
    let mut result = CreatableTopicResult::default();
    let config = if validate_only {
        cluster.check_topic(&wanted.name, partitions, configs)?
    } else {
        let topic = cluster.create_topic(&wanted.name, partitions, configs)?;
        result = result.with_topic_id(topic.id);
        topic.config.read().clone()
    };
    if context.version >= 5 {
        let given = config.given.into_iter().map(|(name, value)| {
            let value = Some(StrBytes::from_string(value));
            CreatableTopicConfigs::default()
                .with_name(StrBytes::from_string(name))
                .with_value(value)
                .with_config_source(1)
        });
        result = result
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(Some(given.collect()));
    }
    Ok(result)
}

pub(super) fn delete_topics(context: &mut Context, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let mut response = DeleteTopicsResponse::default();
    let mut wanted: Vec<_> = request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil())).collect();
    wanted.extend(request.topics.into_iter().map(|topic| (topic.name, topic.topic_id)));
    for (name, id) in wanted {
        let found = context.find_topic(name.as_deref().map_or("", |name| name), id);
        let result = found.map_err(|error| (error, String::new())).and_then(|topic| {
            context.cluster.delete_topic(&topic.name)?;
            Ok(topic)
        });
        let entry = DeletableTopicResult::default().with_topic_id(id);
        response.responses.push(match result {
            Ok(topic) => entry.with_name(Some(TopicName(topic.name.clone()))).with_topic_id(topic.id),
            // A client that gave an id must not learn the name from an error.
            Err((error, reason)) => entry
                .with_name(name)
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_string(reason)).filter(|reason| !reason.is_empty())),
        });
    }
    if context.version < 6 {
        for entry in &mut response.responses {
            entry.topic_id = Uuid::nil();
        }
    }
    response
}

pub(super) fn create_partitions(
    context: &mut Context,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let mut response = CreatePartitionsResponse::default();
    for wanted in request.topics {
        let result = match context.find_topic(&wanted.name, Uuid::nil()) {
            Ok(topic) => grow(context, &topic, wanted.count, request.validate_only),
            Err(error) => Err((error, "The topic does not exist.".to_owned())),
        };
        let entry = CreatePartitionsTopicResult::default().with_name(wanted.name);
        response.results.push(match result {
            Ok(()) => entry,
            Err((error, reason)) => {
                entry.with_error_code(error.code()).with_error_message(Some(StrBytes::from_string(reason)))
            }
        });
    }
    response
}

fn grow(context: &Context, topic: &Topic, count: i32, validate_only: bool) -> Result<(), Refused> {
    let now = topic.partitions.read().len() as i32;
    if count <= now {
        let reason = format!("The topic currently has {now} partition(s); {count} would not be an increase.");
        return Err((ResponseError::InvalidPartitions, reason));
    }
    if count > MAX_PARTITIONS {
        let reason = format!("A topic has at most {MAX_PARTITIONS} partitions, not {count}.");
        return Err((ResponseError::InvalidPartitions, reason));
    }
    if validate_only { Ok(()) } else { context.cluster.grow_topic(topic, count) }
}
