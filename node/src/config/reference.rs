//! The reference page and the example file, both made from the declarations of the sections.

use std::fmt::Write;

use super::Config;
use super::kind::{DefaultDoc, FieldDoc};
use super::section::Section;

/// Text of the page about each part, in this order: key prefix, heading, introduction.
const PARTS: &[(&str, &str, &str)] = &[
    ("node", "node", "Who the node is and where it keeps its data."),
    (
        "listeners.tcp.NAME",
        "listeners.tcp.NAME",
        "Where MQTT clients connect; as many as wanted, each with a name. Where the configuration names no listener of any kind (`tcp`, `ssl`, `ws`, `wss`), the listener `default` takes port 1883 on every IPv4 address; `listeners.tcp = {}` opens none.",
    ),
    (
        "listeners.ssl.NAME",
        "listeners.ssl.NAME",
        "Where MQTT clients connect over TLS, usually on port 8883. None is opened unless it is configured.",
    ),
    (
        "listeners.ws.NAME",
        "listeners.ws.NAME",
        "Where MQTT clients connect over WebSocket, usually on port 8083.",
    ),
    (
        "listeners.wss.NAME",
        "listeners.wss.NAME",
        "Where MQTT clients connect over WebSocket and TLS, usually on port 8084.",
    ),
    ("mqtt", "mqtt", "Limits and timers of the device side."),
    (
        "sys_topics",
        "sys_topics",
        "Topics about the node itself, under `$SYS/`. `sys-topics.md` lists the topics.",
    ),
    ("authentication", "authentication", "Who may connect. `access-control.md` explains it with examples."),
    (
        "authorization",
        "authorization",
        "Rights of clients: rules, of which the first that fits decides. Without any, everything is allowed.",
    ),
    (
        "sysmon",
        "sysmon",
        "Looking after the machine. Keys about the CPU and the memory of processes are accepted and have no effect.",
    ),
    ("log", "log", "Logging, to standard error."),
    ("admin", "admin", "The link that `causeway ctl` uses."),
    (
        "bridges.kafka.NAME",
        "bridges.kafka.NAME",
        "A producer bridge: MQTT into Kafka. The older spelling `producer { mqtt { topic }, kafka { .. } }` and `parameters` for `kafka` are read, too.",
    ),
    ("bridges.kafka_consumer.NAME", "bridges.kafka_consumer.NAME", "A consumer bridge: Kafka into MQTT."),
];

/// The reference page (`docs/configuration.md`).
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Made by `causeway config reference` from the declarations in node/src/config; do not edit. -->\n\n\
         A configuration is one HOCON file: `causeway start --config FILE` runs a node with it, `causeway check --config FILE`\n\
         reports everything that is wrong with it, `causeway config example` prints one to begin with.\n\n\
         - Durations are whole numbers with `ms`, `s`, `m`, `h`, `d` or `w`, parts may be joined (`1h30m`). A bare number counts\n  \
           in the unit that the type names.\n\
         - Byte sizes are whole numbers with `B`, `KB`, `MB` or `GB`, powers of 1024. A bare number is bytes.\n\
         - Both may stand in quotes or not. `null` means: not given.\n\
         - Templates have placeholders such as `${.payload}` and stand in quotes, or HOCON takes the placeholder for its own. An MQTT\n  \
           filter with `#` stands in quotes, too, or HOCON takes the rest of the line for a comment.\n\
         - `include \"other.conf\"` and environment variables (`${HOME}`, outside quotes) work as HOCON has them.\n\
         - Names of bridges and listeners start with a letter or digit and go on with letters, digits, `-`, `_` or `.`, at most 254\n  \
           of them; one with a dot stands in quotes.\n\
         - An unknown key is an error.\n",
    );
    let docs = Config::docs();
    for (prefix, heading, introduction) in PARTS {
        let _ = write!(
            page,
            "\n## `{heading}`\n\n{introduction}\n\n| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n"
        );
        for doc in &docs {
            let Some(key) = doc.key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            let default = match &doc.default {
                DefaultDoc::Value(_) => format!("`{}`", doc.default),
                other => other.to_string(),
            };
            let row = [&format!("`{key}`"), &doc.kind, &default, &doc.allowed, &doc.meaning]
                .map(|cell| cell.replace('|', "\\|").replace('\n', " "));
            let _ = writeln!(page, "| {} |", row.join(" | "));
        }
    }
    page
}

/// Values that the example sets; everything else stands in it as a comment with its default.
const EXAMPLE_VALUES: &[(&str, &str)] = &[
    ("node.name", "causeway-1"),
    ("listeners.tcp.default.bind", "\"0.0.0.0:1883\""),
    ("listeners.ssl.default.enable", "false"),
    ("listeners.ssl.default.bind", "\"0.0.0.0:8883\""),
    ("listeners.ssl.default.ssl_options.certfile", "\"certs/server.pem\""),
    ("listeners.ssl.default.ssl_options.keyfile", "\"certs/server.key\""),
    ("listeners.ws.default.enable", "false"),
    ("listeners.ws.default.bind", "\"0.0.0.0:8083\""),
    ("listeners.wss.default.enable", "false"),
    ("listeners.wss.default.bind", "\"0.0.0.0:8084\""),
    ("listeners.wss.default.ssl_options.certfile", "\"certs/server.pem\""),
    ("listeners.wss.default.ssl_options.keyfile", "\"certs/server.key\""),
    ("authentication.allow_anonymous", "false"),
    (
        "authentication.backends",
        "[\n  # `causeway ctl users add NAME` makes them.\n  { type = built_in_database }\n]",
    ),
    ("bridges.kafka.to_kafka.enable", "true"),
    ("bridges.kafka.to_kafka.bootstrap_hosts", "\"127.0.0.1:9092\""),
    ("bridges.kafka.to_kafka.local_topic", "\"t/#\""),
    ("bridges.kafka.to_kafka.kafka.topic", "testtopic-in"),
    ("bridges.kafka_consumer.from_kafka.enable", "true"),
    ("bridges.kafka_consumer.from_kafka.bootstrap_hosts", "\"127.0.0.1:9092\""),
    (
        "bridges.kafka_consumer.from_kafka.topic_mapping",
        "[\n  { kafka_topic = testtopic-out, mqtt_topic = from-kafka, qos = 1, payload_template = \"${.value}\" }\n]",
    ),
];

/// A commented configuration with every key. A line `#key = value` is a setting that is off, with its
/// default; `null` stands where there is none.
pub fn example() -> String {
    let mut file = String::from(
        "# A Causeway configuration. Each line `#key = value` shows a default: take the `#` away to change it.\n\
         # `causeway check --config FILE` tells what is wrong with a file, `causeway config reference` explains it all.\n",
    );
    // Open objects, and whether each has braces of its own: `a.b { c { .. } }` opens a, b and c with two.
    let mut open: Vec<(String, bool)> = Vec::new();
    // A field whose own fields follow as rows: they are explained, not set.
    let mut explained: Option<String> = None;
    for doc in Config::docs() {
        let key = doc
            .key
            .replace("tcp.NAME", "tcp.default")
            .replace("ssl.NAME", "ssl.default")
            .replace("ws.NAME", "ws.default")
            .replace("wss.NAME", "wss.default")
            .replace("kafka.NAME", "kafka.to_kafka")
            .replace("kafka_consumer.NAME", "kafka_consumer.from_kafka");
        if let Some(parent) = &explained
            && let Some(rest) = key.strip_prefix(parent.as_str())
            && rest.starts_with(['.', '['])
        {
            let name = rest.trim_start_matches("[]").trim_start_matches('.');
            wrap(&mut file, &indent(&open), &format!("- {name}: {}", describe(&doc)));
            continue;
        }
        let mut path: Vec<&str> = key.split('.').collect();
        let Some(name) = path.pop() else { continue };
        let common = open.iter().zip(&path).take_while(|((a, _), b)| a == *b).count();
        let kept = open.iter().take(common).rposition(|(_, braces)| *braces).map_or(0, |at| at + 1);
        close(&mut file, &mut open, kept);
        if let Some(segments) = path.get(kept..).filter(|segments| !segments.is_empty()) {
            let _ = writeln!(file, "\n{}{} {{", indent(&open), segments.join("."));
            let last = segments.len() - 1;
            open.extend(segments.iter().enumerate().map(|(at, segment)| ((*segment).to_owned(), at == last)));
        }
        let indent = indent(&open);
        wrap(&mut file, &indent, &describe(&doc));
        let set = EXAMPLE_VALUES.iter().find(|(set, _)| *set == key);
        let line = match set {
            Some((_, value)) => format!("{name} = {value}"),
            None => format!("#{name} = {}", written(&doc.default)),
        };
        for line in line.lines() {
            let _ = writeln!(file, "{indent}{line}");
        }
        explained = Some(key.clone());
    }
    close(&mut file, &mut open, 0);
    file
}

fn indent(open: &[(String, bool)]) -> String {
    "  ".repeat(open.iter().filter(|(_, braces)| *braces).count())
}

/// Closes braces until `keep` segments are open.
fn close(file: &mut String, open: &mut Vec<(String, bool)>, keep: usize) {
    while open.len() > keep {
        if open.pop().is_some_and(|(_, braces)| braces) {
            let _ = writeln!(file, "{}}}", indent(open));
        }
    }
}

fn describe(doc: &FieldDoc) -> String {
    let mut text = doc.meaning.replace('\n', " ");
    if !doc.allowed.is_empty() {
        let _ = write!(text, " Allowed: {}.", doc.allowed.trim_end_matches('.'));
    }
    if let DefaultDoc::Described(default) = &doc.default {
        let _ = write!(text, " Default: {default}.");
    }
    text
}

/// A default as HOCON.
fn written(default: &DefaultDoc) -> String {
    match default {
        DefaultDoc::Value(serde_json::Value::String(text)) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if !text.is_empty() && text.chars().all(plain) { text.clone() } else { format!("{text:?}") }
        }
        DefaultDoc::Value(value) => value.to_string(),
        DefaultDoc::Required | DefaultDoc::Unset | DefaultDoc::Described(_) => "null".into(),
    }
}

/// Writes a comment in lines of at most 100 characters.
fn wrap(file: &mut String, indent: &str, text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + line.len() + word.len() > 97 {
            let _ = writeln!(file, "{indent}# {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(file, "{indent}# {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_on_the_page() {
        for doc in Config::docs() {
            let on_page = PARTS
                .iter()
                .any(|(prefix, ..)| doc.key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')));
            // Sections have a row of their own nowhere; `authentication` may be a list.
            assert!(on_page || PARTS.iter().any(|(prefix, ..)| doc.key == *prefix), "{}", doc.key);
        }
    }
}
