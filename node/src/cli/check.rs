//! `causeway check`: everything there is to say about a configuration file, without starting anything.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, Errors, Loaded, MAX_CONNECTIONS, load_file, open_files_limit};
use crate::mqtt;

/// Prints what is wrong with the file (code 1), or what it contains (code 0).
pub(super) fn check(path: &Path) -> anyhow::Result<ExitCode> {
    match load_file(path) {
        Ok(loaded) => {
            if let Err(failure) = certificates(&loaded.value) {
                eprint!("{}{failure}", remarks(&loaded));
                return Ok(ExitCode::FAILURE);
            }
            let broken = unusable_bridges(&loaded.value);
            if !broken.is_empty() {
                eprintln!(
                    "{}{broken}the configuration is valid, and these bridges cannot be started",
                    remarks(&loaded)
                );
                return Ok(ExitCode::FAILURE);
            }
            let wrong = crate::access::check(&loaded.value.access_options(&loaded.value.node.data_dir));
            if !wrong.is_empty() {
                for error in &wrong {
                    eprintln!("{error}");
                }
                return Ok(ExitCode::FAILURE);
            }
            super::print(&format!("{}configuration is valid\n{}", remarks(&loaded), summary(&loaded.value)))
        }
        Err(errors) => {
            eprint!("{}", failure(&errors));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Looks at the certificate files of the listeners: warnings are printed, errors returned, one a line.
pub(super) fn certificates(config: &Config) -> Result<(), String> {
    let (errors, warnings) = mqtt::check_tls(&config.mqtt_options());
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    if errors.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for error in &errors {
        let _ = writeln!(text, "{error}");
    }
    let plural = if errors.len() == 1 { "" } else { "s" };
    let _ = writeln!(text, "\n{} error{plural}: the certificates cannot be used", errors.len());
    Err(text)
}

/// The errors, one a line, and how many they are.
pub(super) fn failure(errors: &Errors) -> String {
    let count = errors.0.len();
    let plural = if count == 1 { "" } else { "s" };
    format!("{errors}\n{count} error{plural}: the configuration is not valid\n")
}

/// Warnings, one a line.
pub(super) fn remarks(loaded: &Loaded<Config>) -> String {
    let mut text = String::new();
    for warning in &loaded.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// The enabled bridges whose certificates, keys or passwords cannot be used, one a line. Reads their files.
fn unusable_bridges(config: &Config) -> String {
    let producers =
        config.bridges.kafka.iter().map(|(name, bridge)| ("kafka", name, bridge.enable, &bridge.connection));
    let consumers = config
        .bridges
        .kafka_consumer
        .iter()
        .map(|(name, bridge)| ("kafka_consumer", name, bridge.enable, &bridge.connection));
    let mut text = String::new();
    for (kind, name, enabled, connection) in producers.chain(consumers) {
        if enabled && let Err(error) = connection.client_options("check", None) {
            let _ = writeln!(text, "bridges.{kind}.{name}: {error}");
        }
    }
    text
}

fn summary(config: &Config) -> String {
    let mut text = format!("node {}, data in {}\n", config.node.name, config.node.data_dir.display());
    let limit = open_files_limit();
    for any in config.listeners.all() {
        let listener = any.common;
        let state = if listener.enable { "" } else { " (disabled)" };
        let below = match any.kind {
            "ssl" => "TLS",
            "ws" => "WebSocket",
            "wss" => "WebSocket and TLS",
            _ => "TCP",
        };
        let _ = writeln!(text, "listener {}: MQTT over {below} on {}{state}", any.name, listener.bind);
        if let Some(limit) = limit.filter(|limit| {
            listener.max_connections != MAX_CONNECTIONS && u64::from(listener.max_connections) > *limit
        }) {
            let _ = writeln!(
                text,
                "  max_connections is {}, this shell's limit of open files is {limit}: connections beyond it fail",
                listener.max_connections
            );
        }
    }
    for (name, bridge) in &config.bridges.kafka {
        let state = if bridge.enable { "" } else { " (disabled)" };
        let from = bridge.local_topic.as_deref().unwrap_or("(no source topic)");
        let _ = writeln!(text, "producer bridge {name}: {from} -> {}{state}", bridge.kafka.topic);
    }
    for (name, bridge) in &config.bridges.kafka_consumer {
        let state = if bridge.enable { "" } else { " (disabled)" };
        for mapping in &bridge.topic_mapping {
            let _ = writeln!(
                text,
                "consumer bridge {name}: {} -> {}{state}",
                mapping.kafka_topic, mapping.mqtt_topic
            );
        }
    }
    text
}
