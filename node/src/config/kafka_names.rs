//! Names and templates inside bridges: what is a legal Kafka topic, MQTT filter, placeholder.

use causeway_protocol::mqtt::topic::{validate_topic_filter, validate_topic_name};

use super::kind::Kind;
use super::kind_values::text;
use crate::bridge::template::{Piece, Slot, Template, has_placeholder, pieces};
use crate::mqtt::reserved_prefix;

/// Kafka's rule for topic names.
pub(crate) fn is_kafka_topic(topic: &str) -> bool {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    !topic.is_empty() && topic.len() <= 249 && topic != "." && topic != ".." && topic.bytes().all(legal)
}

/// As [`is_kafka_topic`], with words.
pub(super) fn check_kafka_topic(topic: &str) -> Result<(), String> {
    if !is_kafka_topic(topic) {
        return Err(
            "not a Kafka topic name; write letters, digits, `.`, `_` or `-`, at most 249 of them".into()
        );
    }
    Ok(())
}

/// A Kafka topic name, fixed or a template.
pub(super) fn check_topic_template(topic: &str) -> Result<(), String> {
    if has_placeholder(topic) { Ok(()) } else { check_kafka_topic(topic) }
}

/// A template for messages with the names of `N`; names that they never have are warned about.
pub(super) fn template<N: Slot>() -> impl Kind<Out = String> {
    text().called("template").advise(|template| {
        let unknown = Template::<N>::unknown_names(template);
        let names: Vec<String> = unknown.iter().map(|name| format!("`{name}`")).collect();
        (!names.is_empty())
            .then(|| format!("messages here never have {}: it becomes an empty text", names.join(", ")))
    })
}

/// An MQTT topic filter (MQTT-5.0 4.7).
pub(super) fn topic_filter() -> impl Kind<Out = String> {
    text().called("MQTT topic filter").check(|filter| check_filter(filter)).advise(|filter| {
        filter.ends_with('/').then(|| {
            "the filter ends in `/`; if `#` followed, HOCON took it for a comment: write the filter in quotes, as \"t/#\""
                .into()
        })
    })
}

/// An MQTT topic name (MQTT-5.0 4.7.1), fixed or a template.
pub(super) fn check_mqtt_topic_template(topic: &str) -> Result<(), String> {
    // The value of a placeholder is not known yet; any level will do for the check.
    let name: String = pieces(topic)
        .into_iter()
        .map(|piece| match piece {
            Piece::Literal(text) => text,
            Piece::Placeholder(_) => "x",
        })
        .collect();
    validate_topic_name(&name, u16::MAX).map_err(|error| error.to_string())?;
    match reserved_prefix(topic) {
        Some(prefix) => {
            Err(format!("topics that begin with {prefix} are reserved; publish to another topic"))
        }
        None => Ok(()),
    }
}

fn check_filter(filter: &str) -> Result<(), String> {
    validate_topic_filter(filter, u16::MAX).map_err(|error| error.to_string())
}

/// The rule for names of bridges and listeners.
pub fn check_name(name: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || name.len() > 254 || !name.chars().all(legal) {
        return Err(
            "not a bridge name; it starts with a letter or digit and goes on with letters, digits, `-`, `_` \
                    or `.`, at most 254 of them"
                .into(),
        );
    }
    Ok(())
}
