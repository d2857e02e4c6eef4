//! Names and templates inside bridges: what is a legal Kafka topic, MQTT filter, placeholder.

use super::kind::{Kind, Parsed, text};

/// Kafka's rule for topic names.
pub(super) fn check_kafka_topic(topic: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." || !topic.chars().all(legal) {
        return Err(
            "not a Kafka topic name; write letters, digits, `.`, `_` or `-`, at most 249 of them".into()
        );
    }
    Ok(())
}

/// A Kafka topic name, fixed or a template.
pub(super) fn check_topic_template(topic: &str) -> Result<(), String> {
    if is_dynamic(topic) { Ok(()) } else { check_kafka_topic(topic) }
}

/// True where a template has a placeholder.
pub(super) fn is_dynamic(template: &str) -> bool {
    template.split_once("${").is_some_and(|(_, rest)| rest.contains('}'))
}

/// Exactly one placeholder and nothing beside it.
pub(super) fn is_one_placeholder(template: &str) -> bool {
    template
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(|name| !name.is_empty() && !name.contains(['{', '}', '$']))
}

/// A text with placeholders `${...}`.
pub(super) fn template() -> Parsed<String> {
    text().called("template")
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
    if topic.is_empty() || topic.len() > 65_535 || topic.contains('\0') {
        return Err("not an MQTT topic name; it has 1 to 65535 bytes and no U+0000".into());
    }
    if !is_dynamic(topic) && topic.contains(['+', '#']) {
        return Err(
            "not an MQTT topic name: messages are published to it, so `+` and `#` are not allowed".into()
        );
    }
    Ok(())
}

fn check_filter(filter: &str) -> Result<(), String> {
    if filter.is_empty() || filter.len() > 65_535 || filter.contains('\0') {
        return Err("not an MQTT topic filter; it has 1 to 65535 bytes and no U+0000".into());
    }
    let last = filter.split('/').count() - 1;
    for (at, level) in filter.split('/').enumerate() {
        if level.contains('+') && level != "+" {
            return Err("not an MQTT topic filter; `+` stands for a whole level, as in a/+/b".into());
        }
        if level.contains('#') && (level != "#" || at != last) {
            return Err("not an MQTT topic filter; `#` stands for all last levels, as in a/#".into());
        }
    }
    Ok(())
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
