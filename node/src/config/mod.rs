//! Configuration: HOCON text into typed structs.
//!
//! * One struct a section, declared with its defaults, ranges and meanings in one place; the reader, the
//!   canonical JSON and the reference page come from that declaration.
//! * Reading collects every problem before it gives up; each names file, line, key path, value and what
//!   would be right. Secrets are in none of them.
//! * Unknown keys are errors. What is understood but never changes anything is a warning.
//! * Bridges are data: [`parse_producer_bridge`] and [`parse_consumer_bridge`] read them from text (HOCON or
//!   JSON), their `Serialize` writes canonical JSON that reads back as the same value.

mod access;
mod address;
mod client_options;
mod connection;
mod consumer;
mod general;
mod hocon;
mod kafka_names;
mod kind;
mod kind_numbers;
mod kind_values;
mod lines;
mod listener_checks;
mod listeners;
pub(crate) mod loops;
mod mqtt;
mod pem_text;
mod producer;
mod reference;
mod section;
mod sys_topics;
mod tree;
mod units;

use std::collections::BTreeMap;
use std::path::Path;

use self::hocon::Source;
use kind::Kind;
use section::{Section, named, nested, section};
use tree::{Node, Walk};

pub use crate::secret::{MASK, Secret};
pub use access::{
    ActionWord, AuthenticationConfig, AuthorizationConfig, BackendConfig, BanConfig, BuiltInDatabaseConfig,
    CertificateName, ClientCertificateConfig, DenyActionWord, JwtConfig, NoMatch, PasswordChecksConfig,
    PasswordFileConfig, PermissionWord, RetainWord, RuleConfig, RulesFile, TokenAlgorithm, TokenField,
};
pub use address::{HostPort, KAFKA_PORT};
pub use client_options::ClientOptionsError;
pub use connection::{
    Authentication, ConnectionConfig, GrantType, KerberosAuthentication, OauthAuthentication, OauthMechanism,
    PasswordAuthentication, ResourceOptions, SaslMechanism, ServerName, SocketOptions, SslConfig,
    TcpKeepalive, TlsVersion, Verify,
};
pub use consumer::{
    ConsumerBridgeConfig, ConsumerKafkaConfig, Encoding, OffsetReset, TopicMapping, WhenNoSubscriber,
};
pub use general::{
    AdminConfig, LogConfig, LogFormat, LogLevel, NodeConfig, SysmonConfig, SysmonOsConfig, open_files_limit,
};
pub use kafka_names::check_name;
pub(crate) use kafka_names::is_kafka_topic;
pub use kind::{DefaultDoc, FieldDoc, Secrets};
pub use kind_values::Choice;
pub use listeners::{
    AnyListener, CertificateConfig, ListenerConfig, ListenersConfig, MAX_CONNECTIONS, PeerCertAsUsername,
    SslListenerConfig, SslOptionsConfig, TcpListenerConfig, VerifyClient, WebSocketConfig, WsListenerConfig,
    WssListenerConfig,
};
pub use mqtt::{MqttConfig, QueueFull, RetainConfig, ShareStrategy};
pub use pem_text::PemText;
pub use producer::{
    BufferConfig, BufferMode, Compression, DynamicTopicsConfig, ExtHeaderConfig, HeaderEncoding,
    MessageConfig, PartitionStrategy, ProducerBridgeConfig, ProducerKafkaConfig, QueryMode, RequiredAcks,
};
pub use reference::{example, reference};
pub use sys_topics::{SysEventsConfig, SysTopicsConfig};
pub use tree::{Errors, Problem};
pub use units::ByteSize;

section! {
    /// The whole configuration of a node.
    pub struct Config {
        /// Who this node is and where it keeps its data.
        node: NodeConfig => nested();
        /// Where MQTT clients connect.
        listeners: ListenersConfig => nested();
        /// Limits of the device side.
        mqtt: MqttConfig => nested();
        /// Topics about the node itself, under `$SYS/`.
        sys_topics: SysTopicsConfig => nested();
        /// Who may connect.
        authentication: AuthenticationConfig => access::AuthenticationKind;
        /// Rights of clients.
        authorization: AuthorizationConfig => nested();
        /// Looking after the machine.
        sysmon: SysmonConfig => nested();
        /// Logging.
        log: LogConfig => nested();
        /// The link that `causeway ctl` uses.
        admin: AdminConfig => nested();
        /// Bridges between MQTT and Kafka.
        bridges: BridgesConfig => nested();
    }
    validate listener_checks::check;
}

section! {
    /// Bridges by kind and name.
    pub struct BridgesConfig {
        /// A producer bridge.
        kafka: BTreeMap<String, ProducerBridgeConfig> => named(ProducerKind, check_name);
        /// A consumer bridge.
        kafka_consumer: BTreeMap<String, ConsumerBridgeConfig> => named(nested(), check_name);
    }
    validate loops::check_loops;
}

section! {
    /// Bridges that are given to a node that runs.
    struct GivenBridges {
        /// Bridges between MQTT and Kafka.
        bridges: BridgesConfig => nested();
    }
}

/// Kind of a producer bridge in any of its spellings.
struct ProducerKind;

impl Kind for ProducerKind {
    type Out = ProducerBridgeConfig;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<ProducerBridgeConfig> {
        let object = walk.object(node)?;
        let object = producer::modernise(object, walk)?;
        ProducerBridgeConfig::read_object(&object, walk)
    }

    fn json(&self, value: &ProducerBridgeConfig, secrets: Secrets) -> serde_json::Value {
        value.to_json(secrets)
    }

    fn name(&self) -> String {
        "object".into()
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        nested::<ProducerBridgeConfig>().docs(key, meaning)
    }
}

/// Result of reading, with remarks about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<T> {
    /// The value.
    pub value: T,
    /// Warnings: it works, but hardly as meant.
    pub warnings: Vec<Problem>,
}

/// Reads a configuration file; its includes count from its folder.
pub fn load_file(path: &Path) -> Result<Loaded<Config>, Errors> {
    load(path, &nested::<Config>())
}

/// Reads a file of access rules: `rules = [ .. ]`, as in the section `authorization`.
pub fn load_rules(path: &Path) -> Result<Loaded<RulesFile>, Errors> {
    load(path, &nested::<RulesFile>())
}

fn load<K: Kind>(path: &Path, kind: &K) -> Result<Loaded<K::Out>, Errors> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::InvalidData => "not a text file in UTF-8".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        Errors(vec![Problem::whole(&name, message)])
    })?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    read(&name, &text, Source::File(folder), kind)
}

/// Reads a configuration from text that messages call `name`. It can include no files and substitute nothing.
pub fn load_text(name: &str, text: &str) -> Result<Loaded<Config>, Errors> {
    read(name, text, Source::Text, &nested::<Config>())
}

/// Reads one producer bridge from HOCON or JSON text, with or without the outer braces. The text comes
/// from another machine: it sees no files and no environment variables of this one.
pub fn parse_producer_bridge(name: &str, text: &str) -> Result<Loaded<ProducerBridgeConfig>, Errors> {
    parse_bridge(name, text, &ProducerKind)
}

/// Reads one consumer bridge; see [`parse_producer_bridge`].
pub fn parse_consumer_bridge(name: &str, text: &str) -> Result<Loaded<ConsumerBridgeConfig>, Errors> {
    parse_bridge(name, text, &nested::<ConsumerBridgeConfig>())
}

/// Reads bridges as they stand in a configuration file, `bridges { .. }`, from text that messages call
/// `name`; see [`parse_producer_bridge`].
pub fn parse_bridges(name: &str, text: &str) -> Result<Loaded<BridgesConfig>, Errors> {
    let Loaded { value, warnings } = read(name, text, Source::Text, &nested::<GivenBridges>())?;
    let value = value.bridges;
    if value.kafka.is_empty() && value.kafka_consumer.is_empty() {
        let message = "no bridge is described; as in a configuration file, write bridges.kafka.NAME { .. } or bridges.kafka_consumer.NAME { .. }";
        return Err(Errors(vec![Problem::whole(name, message.to_owned())]));
    }
    Ok(Loaded { value, warnings })
}

fn parse_bridge<K: Kind>(name: &str, text: &str, kind: &K) -> Result<Loaded<K::Out>, Errors> {
    let what = format!("bridge {name:?}");
    if let Err(message) = check_name(name) {
        return Err(Errors(vec![Problem::whole(&what, message)]));
    }
    read(&what, text, Source::Text, kind)
}

impl serde::Serialize for ProducerBridgeConfig {
    /// Canonical JSON with the secrets masked; [`ProducerBridgeConfig::canonical_json`] can reveal them.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.canonical_json(Secrets::Masked).serialize(serializer)
    }
}

impl serde::Serialize for ConsumerBridgeConfig {
    /// Canonical JSON with the secrets masked; [`ConsumerBridgeConfig::canonical_json`] can reveal them.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.canonical_json(Secrets::Masked).serialize(serializer)
    }
}

impl ProducerBridgeConfig {
    /// The bridge as JSON with every field in its current spelling; [`parse_producer_bridge`] reads it back.
    pub fn canonical_json(&self, secrets: Secrets) -> serde_json::Value {
        self.to_json(secrets)
    }

    /// Takes the secrets of `stored` where this configuration has only their mask.
    pub fn keep_secrets_of(&mut self, stored: &Self) {
        self.connection.keep_secrets_of(&stored.connection);
    }
}

impl ConsumerBridgeConfig {
    /// The bridge as JSON with every field in its current spelling; [`parse_consumer_bridge`] reads it back.
    pub fn canonical_json(&self, secrets: Secrets) -> serde_json::Value {
        self.to_json(secrets)
    }

    /// Takes the secrets of `stored` where this configuration has only their mask.
    pub fn keep_secrets_of(&mut self, stored: &Self) {
        self.connection.keep_secrets_of(&stored.connection);
    }
}

fn read<K: Kind>(name: &str, text: &str, source: Source<'_>, kind: &K) -> Result<Loaded<K::Out>, Errors> {
    let hocon::Document { root, lines, warnings } = hocon::read(name, text, source).map_err(Errors)?;
    let mut walk = Walk::new(lines);
    let node = Node { value: &root, path: String::new(), place: root.place };
    let value = kind.read(&node, &mut walk);
    match value {
        Some(value) if walk.errors.is_empty() => {
            // Where the reader of a key knows more, one warning is enough.
            let told = |warning: &Problem| walk.warnings.iter().any(|known| known.key == warning.key);
            let mut warnings: Vec<Problem> = warnings.into_iter().filter(|warning| !told(warning)).collect();
            warnings.append(&mut walk.warnings);
            Ok(Loaded { value, warnings })
        }
        _ => {
            walk.errors.sort_by_key(|problem| problem.line);
            Err(Errors(walk.errors))
        }
    }
}
