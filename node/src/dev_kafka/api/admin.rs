//! DescribeConfigs, IncrementalAlterConfigs, DescribeCluster.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{
    DescribeClusterRequest, DescribeClusterResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::{Context, broker_id};
use crate::dev_kafka::cluster::Refused;
use crate::dev_kafka::topics::{CONFIG_KEYS, TopicConfig};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;
const SET: i8 = 0;
const DELETE: i8 = 1;

fn text(value: impl Into<String>) -> StrBytes {
    StrBytes::from_string(value.into())
}

pub(super) fn describe_configs(
    context: &mut Context,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let mut response = DescribeConfigsResponse::default();
    for resource in &request.resources {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        response.results.push(match configs_of(context, resource, request.include_synonyms) {
            Ok(configs) => result.with_configs(configs).with_error_message(None),
            Err((error, reason)) => {
                result.with_error_code(error.code()).with_error_message(Some(text(reason)))
            }
        });
    }
    response
}

fn configs_of(
    context: &Context,
    resource: &DescribeConfigsResource,
    synonyms: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, Refused> {
    let options = &context.cluster.options;
    let max_message_bytes = options.max_message_bytes.to_string();
    let asked = |name: &str| {
        resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
    };
    let entry = |name: &'static str, value: String, source: i8, kind: i8, read_only: bool| {
        let value = Some(text(value));
        let synonym = DescribeConfigsSynonym::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(value.clone())
            .with_source(source);
        DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(value)
            .with_config_source(source)
            .with_read_only(read_only)
            .with_config_type(if context.version >= 3 { kind } else { 0 })
            .with_synonyms(if synonyms { vec![synonym] } else { Vec::new() })
    };
    match resource.resource_type {
        TOPIC => {
            let topic = context
                .find_topic(&resource.resource_name, Uuid::nil())
                .map_err(|error| (error, String::new()))?;
            let given = topic.config.read().given.clone();
            let keys = CONFIG_KEYS.iter().filter(|key| asked(key.name));
            Ok(keys
                .map(|key| {
                    let default = if key.default.is_empty() { &max_message_bytes } else { key.default };
                    let (value, source) = given
                        .get(key.name)
                        .map_or((default, SOURCE_DEFAULT), |value| (value.as_str(), SOURCE_TOPIC));
                    entry(key.name, value.to_owned(), source, key.kind, false)
                })
                .collect())
        }
        BROKER => {
            let known =
                resource.resource_name.parse().ok().filter(|broker| context.endpoint(*broker).is_some());
            if known.is_none() && !resource.resource_name.is_empty() {
                return Err((
                    ResponseError::InvalidRequest,
                    format!("broker {} does not exist", resource.resource_name),
                ));
            }
            let all = [
                ("auto.create.topics.enable", options.auto_create.to_string(), 1),
                ("num.partitions", options.default_partitions.to_string(), 3),
                ("default.replication.factor", "1".to_owned(), 3),
                ("message.max.bytes", max_message_bytes, 3),
            ];
            let shown = all.into_iter().filter(|(name, _, _)| asked(name));
            Ok(shown
                .map(|(name, value, kind)| entry(name, value, SOURCE_STATIC_BROKER, kind, true))
                .collect())
        }
        other => Err((
            ResponseError::InvalidRequest,
            format!("this development Kafka has no configuration for resource type {other}"),
        )),
    }
}

pub(super) fn incremental_alter_configs(
    context: &mut Context,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut response = IncrementalAlterConfigsResponse::default();
    for resource in &request.resources {
        let result = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        response.responses.push(match alter(context, resource, request.validate_only) {
            Ok(()) => result,
            Err((error, reason)) => {
                result.with_error_code(error.code()).with_error_message(Some(text(reason)))
            }
        });
    }
    response
}

fn alter(context: &Context, resource: &AlterConfigsResource, validate_only: bool) -> Result<(), Refused> {
    if resource.resource_type != TOPIC {
        return Err((
            ResponseError::InvalidRequest,
            "only topics can be configured in this development Kafka".to_owned(),
        ));
    }
    let topic =
        context.find_topic(&resource.resource_name, Uuid::nil()).map_err(|error| (error, String::new()))?;
    {
        let mut config = topic.config.write();
        let mut given = config.given.clone();
        for change in &resource.configs {
            match (change.config_operation, &change.value) {
                (SET, Some(value)) => drop(given.insert(change.name.to_string(), value.to_string())),
                (DELETE, _) => drop(given.remove(change.name.as_str())),
                (operation, _) => {
                    let reason = format!(
                        "operation {operation} on {} is not supported: only set and delete",
                        change.name
                    );
                    return Err((ResponseError::InvalidConfig, reason));
                }
            }
        }
        let changed = TopicConfig::new(given, context.cluster.options.max_message_bytes)
            .map_err(|reason| (ResponseError::InvalidConfig, reason))?;
        if validate_only {
            return Ok(());
        }
        *config = changed;
    }
    context.cluster.save()
}

pub(super) fn describe_cluster(
    context: &mut Context,
    request: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let mut response = DescribeClusterResponse::default()
        .with_cluster_id(context.cluster.id.clone())
        .with_controller_id(broker_id(1))
        .with_endpoint_type(request.endpoint_type);
    if request.endpoint_type != 1 {
        let reason = "this development Kafka has no controller endpoints";
        return response
            .with_error_code(ResponseError::UnsupportedEndpointType.code())
            .with_error_message(Some(text(reason)));
    }
    for broker in 1..=context.cluster.brokers.len() as i32 {
        if let Some((host, port)) = context.endpoint(broker) {
            response.brokers.push(
                DescribeClusterBroker::default()
                    .with_broker_id(broker_id(broker))
                    .with_host(host)
                    .with_port(port),
            );
        }
    }
    response
}
