//! Names and templates inside bridges: what is a legal Kafka topic, MQTT filter, placeholder.

use causeway_protocol::mqtt::topic::{validate_topic_filter, validate_topic_name};

use super::kind::Kind;
use super::kind_values::text;
use crate::mqtt::reserved_prefix;
use crate::template::{Piece, Slot, Template, has_placeholder, pieces};

/// Kafka's rule for topic names.
pub(crate) fn is_kafka_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 249 && topic != "." && topic != ".." && topic.bytes().all(is_legal)
}

/// Whether Kafka allows this character in the name of a topic.
fn is_legal(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-')
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
    if let Some(open) = unclosed(topic) {
        return Err(format!("{}; a Kafka topic cannot have it in its name", not_closed(open)));
    }
    if !has_placeholder(topic) {
        return check_kafka_topic(topic);
    }
    for piece in pieces(topic) {
        if let Piece::Literal(text) = piece
            && !text.bytes().all(is_legal)
        {
            return Err(format!(
                "`{text}` cannot be in the name of a Kafka topic; beside placeholders write letters, digits, `.`, `_` or `-`"
            ));
        }
    }
    Ok(())
}

/// Advice about templates of Kafka topics.
pub(super) fn advise_topic_template(topic: &str) -> Option<String> {
    let is_topic = |piece: &Piece<'_>| matches!(piece, Piece::Placeholder(name) if name.trim().trim_start_matches('.') == "topic");
    pieces(topic).iter().any(is_topic).then(|| {
        "`${topic}` is the MQTT topic; with a `/` in it, as nearly every MQTT topic has one, it names no Kafka topic and the \
         message fails; write a fixed name, or a placeholder without `/`, such as `${username}`"
            .into()
    })
}

/// A placeholder that is not closed before the text ends or the next one begins, from its `${` on.
fn unclosed(template: &str) -> Option<&str> {
    pieces(template).into_iter().find_map(|piece| match piece {
        Piece::Literal(text) => text.find("${").and_then(|at| text.get(at..)),
        Piece::Placeholder(name) => name.contains("${").then_some(name),
    })
}

fn not_closed(open: &str) -> String {
    let name = open.trim_start_matches("${").split("${").next().unwrap_or_default().trim_end();
    format!("the `}}` of `${{{name}` is missing")
}

/// A placeholder with an index, such as `payload.a[0].b`, and the same one without it: `payload.a`.
fn indexed(name: &str) -> Option<(&str, &str)> {
    let name = name.trim().trim_start_matches('.');
    let (array, index) = name.split_once('[')?;
    let digits = index.split_once(']')?.0;
    (!array.is_empty() && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .then_some((name, array))
}

/// A template for messages with the names of `N`; names that they never have are warned about.
pub(super) fn template<N: Slot>() -> impl Kind<Out = String> {
    text().called("template").advise(|template| {
        if let Some(open) = unclosed(template) {
            return Some(format!("{}; without it the text stands in every message as it is", not_closed(open)));
        }
        let index = pieces(template).into_iter().find_map(|piece| match piece {
            Piece::Placeholder(name) => indexed(name),
            Piece::Literal(_) => None,
        });
        if let Some((name, array)) = index {
            return Some(format!(
                "`${{{name}}}`: arrays are not indexed, and this becomes an empty text; `${{{array}}}` is the whole array as JSON"
            ));
        }
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
    if let Some((_, own)) = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')) {
        return Err(format!(
            "a shared subscription, which a bridge cannot be part of: it sees each message once anyway; write \"{own}\""
        ));
    }
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

#[cfg(test)]
mod tests {
    use super::super::parse_producer_bridge;

    /// All that is said of a producer bridge with these keys: errors, or warnings.
    fn told(local_topic: &str, topic: &str, value: &str) -> Result<String, String> {
        let text = format!(
            "bootstrap_hosts = k, local_topic = {local_topic:?}, kafka {{ topic = {topic:?}, message.value = {value:?} }}"
        );
        match parse_producer_bridge("b", &text) {
            Ok(loaded) => Ok(loaded.warnings.iter().map(ToString::to_string).collect()),
            Err(errors) => Err(errors.to_string()),
        }
    }

    #[test]
    fn a_template_that_hardly_means_what_it_says_is_warned_about() {
        for (value, expected) in [
            ("${payload", "the `}` of `${payload` is missing; without it the text stands"),
            ("a ${payload", "the `}` of `${payload` is missing"),
            ("${a ${payload}", "the `}` of `${a` is missing"),
            (
                "${payload.a[0]}",
                "`${payload.a[0]}`: arrays are not indexed, and this becomes an empty text; `${payload.a}` is",
            ),
            ("x ${.payload.a[12].b}", "`${payload.a[12].b}`: arrays are not indexed"),
            ("${payload[0]}", "`${payload}` is the whole array as JSON"),
        ] {
            let warning = told("t/#", "t", value).unwrap();
            assert!(warning.contains(expected), "{value}: {warning}");
        }
        for value in
            ["${payload}", "${payload.a}", "${payload.a[x]}", "$ {payload", "{${payload}}", "[0] ${payload}"]
        {
            assert_eq!(told("t/#", "t", value), Ok(String::new()), "{value}");
        }
    }

    #[test]
    fn a_template_of_a_kafka_topic_that_can_never_be_one_is_refused() {
        for (topic, expected) in [
            ("a-${username", "the `}` of `${username` is missing; a Kafka topic cannot"),
            ("${clientid}-${username", "the `}` of `${username` is missing"),
            ("a/${username}", "`a/` cannot be in the name of a Kafka topic"),
        ] {
            let error = told("t/#", topic, "${payload}").unwrap_err();
            assert!(error.contains(expected), "{topic}: {error}");
        }
        for topic in ["a-${topic}", "${.topic}"] {
            let warning = told("t/#", topic, "${payload}").unwrap();
            assert!(warning.contains("`${topic}` is the MQTT topic; with a `/`"), "{topic}: {warning}");
        }
        assert_eq!(told("t/#", "a-${username}_b.c", "${payload}"), Ok(String::new()));
    }

    #[test]
    fn a_shared_subscription_is_no_source_of_a_bridge() {
        let error = told("$share/g/t/#", "t", "${payload}").unwrap_err();
        assert!(error.contains("a shared subscription") && error.ends_with("write \"t/#\""), "{error}");
    }
}
