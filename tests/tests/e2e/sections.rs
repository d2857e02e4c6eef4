//! Configuration sections of the scenarios' bridges.

/// A producer bridge whose records are keyed by client id and hold the payload as it came: what the judge
/// wants. `more` goes into its `kafka` section.
pub(crate) fn producer(name: &str, bootstrap: &str, filter: &str, topic: &str, more: &str) -> String {
    format!(
        r#"
        bridges.kafka.{name} {{
          bootstrap_hosts = "{bootstrap}"
          local_topic = "{filter}"
          kafka {{
            topic = "{topic}"
            message {{ key = "${{.clientid}}", value = "${{.payload}}", timestamp = "${{.timestamp}}" }}
            {more}
          }}
        }}
        "#
    )
}

/// One entry of a consumer bridge's topic mapping.
pub(crate) fn mapping(kafka_topic: &str, mqtt_topic: &str, qos: u8, payload: &str) -> String {
    format!(
        r#"{{ kafka_topic = "{kafka_topic}", mqtt_topic = "{mqtt_topic}", qos = {qos}, payload_template = "{payload}" }}"#
    )
}

/// A consumer bridge that begins at the earliest record and commits often.
pub(crate) fn consumer(name: &str, bootstrap: &str, mappings: &[String]) -> String {
    format!(
        r#"
        bridges.kafka_consumer.{name} {{
          bootstrap_hosts = "{bootstrap}"
          topic_mapping = [ {} ]
          kafka {{ offset_reset_policy = earliest, offset_commit_interval_seconds = 1, max_wait_time = 200ms }}
        }}
        "#,
        mappings.join(", ")
    )
}
