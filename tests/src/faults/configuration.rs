//! The configuration of the node in an episode, as a value that faults change and render.

use std::fmt::Write;

/// Where records wait for Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// In memory.
    Memory,
    /// In files, fsynced before the acknowledgement.
    Disk,
    /// In memory and beyond a bound in files.
    Hybrid,
}

impl Buffer {
    /// The buffers that there are.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Hybrid];

    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Hybrid => "hybrid",
        }
    }
}

/// A producer bridge.
#[derive(Debug, Clone)]
pub struct Bridge {
    /// Its name.
    pub name: &'static str,
    /// Topics it takes.
    pub filter: &'static str,
    /// Whether it takes a topic.
    pub takes: fn(&str) -> bool,
    /// `key_dispatch`, else `random`.
    pub is_keyed: bool,
    /// Its buffer.
    pub buffer: Buffer,
    /// Lines of its `kafka` section.
    pub settings: String,
    /// Kafka topic.
    pub topic: String,
    /// Partitions of the topic.
    pub partitions: usize,
    /// `enable`.
    pub is_enabled: bool,
    /// An address where no Kafka is, instead of the right one.
    pub wrong_bootstrap: Option<String>,
}

/// A Kafka topic whose records go to MQTT.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Kafka topic.
    pub topic: String,
    /// QoS of its messages.
    pub qos: u8,
}

/// The consumer bridge.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Consumer group.
    pub group: String,
    /// `enable`.
    pub is_enabled: bool,
    /// Its topics. The records of the one at place N go to the MQTT topic `down/N`.
    pub mappings: Vec<Mapping>,
}

impl Consumer {
    /// Name of the bridge.
    pub const NAME: &'static str = "down";
}

/// Limits that may change from one life of the node to the next.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages that may wait for a session.
    pub queue: u32,
    /// The least that `queue` is in the episode.
    pub least_queue: u32,
    /// Deliveries of QoS 1 and 2 that a client may have unacknowledged.
    pub inflight: u16,
    /// Bound of a bridge's buffer for each partition.
    pub partition: &'static str,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Where Kafka is.
    pub bootstrap: String,
    /// `request_timeout` of the bridges.
    pub request_timeout: &'static str,
    /// `min_metadata_refresh_interval` of the bridges.
    pub refresh: &'static str,
    /// Producer bridges.
    pub bridges: Vec<Bridge>,
    /// The consumer bridge, if there is one.
    pub consumer: Option<Consumer>,
    /// Limits.
    pub limits: Limits,
}

impl Configuration {
    /// The same with a change.
    pub fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    /// The text of a file.
    pub fn text(&self) -> String {
        let Limits { queue, inflight, .. } = self.limits;
        let mut text = format!(
            "mqtt {{ max_mqueue = {queue}, max_mqueue_bytes = 64MB, max_inflight = {inflight} }}\n\
             node {{ max_buffer_memory = 512MB }}\n"
        );
        for place in 0..self.bridges.len() {
            text.push_str(&self.bridge(place));
        }
        if let Some(consumer) = &self.consumer {
            text.push_str(&self.consumer(consumer));
        }
        text
    }

    /// The text of one producer bridge.
    pub fn bridge(&self, place: usize) -> String {
        let Some(bridge) = self.bridges.get(place) else { return String::new() };
        format!(
            r#"bridges.kafka.{} {{
              enable = {}
              bootstrap_hosts = "{}"
              local_topic = "{}"
              connect_timeout = 2s, metadata_request_timeout = 2s, request_timeout = {}
              min_metadata_refresh_interval = {}
              kafka {{
                topic = "{}"
                partition_strategy = {}
                message {{ key = "${{.clientid}}", value = "${{.payload}}" }}
                buffer {{ mode = {}, per_partition_limit = {}{} }}
                {}
              }}
            }}
            "#,
            bridge.name,
            bridge.is_enabled,
            bridge.wrong_bootstrap.as_ref().unwrap_or(&self.bootstrap),
            bridge.filter,
            self.request_timeout,
            self.refresh,
            bridge.topic,
            if bridge.is_keyed { "key_dispatch" } else { "random" },
            bridge.buffer.name(),
            self.limits.partition,
            if bridge.buffer == Buffer::Memory { "" } else { ", segment_bytes = 256KB" },
            bridge.settings,
        )
    }

    fn consumer(&self, consumer: &Consumer) -> String {
        let mut mappings = String::new();
        for (place, mapping) in consumer.mappings.iter().enumerate() {
            // Writing to a text does not fail.
            let _ = write!(
                mappings,
                "{{ kafka_topic = \"{}\", mqtt_topic = \"down/{place}\", qos = {}, \
                 payload_template = \"${{.offset}} ${{.value}}\" }},",
                mapping.topic, mapping.qos
            );
        }
        format!(
            r#"bridges.kafka_consumer.{} {{
              enable = {}
              bootstrap_hosts = "{}"
              connect_timeout = 2s, metadata_request_timeout = 2s, request_timeout = {}
              min_metadata_refresh_interval = {}
              group_id = "{}"
              topic_mapping = [ {mappings} ]
              kafka {{
                offset_reset_policy = earliest
                offset_commit_interval_seconds = 1s
                max_wait_time = 200ms
              }}
            }}
            "#,
            Consumer::NAME,
            consumer.is_enabled,
            self.bootstrap,
            self.request_timeout,
            self.refresh,
            consumer.group,
        )
    }
}
