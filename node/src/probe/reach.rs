//! From the configured hosts to every broker: names, ports, TLS, login, advertised listeners.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use tokio::time::timeout;

use super::{Notes, Verdict};
use crate::bridge::service::Definition;
use crate::dial;
use crate::kafka::client::{Address, Authentication, BrokerConnection, ClientOptions, Error};
use crate::template::has_placeholder;

/// From this version of Metadata on the broker tells what we may do with a topic (KIP-430).
const TELLS_RIGHTS: i16 = 8;

/// Topics that the bridge needs, its dead-letter topic included.
pub(super) fn topics(definition: &Definition) -> BTreeSet<&str> {
    match definition {
        Definition::Producer(config) => {
            let topic = Some(config.kafka.topic.as_str()).filter(|topic| !has_placeholder(topic));
            topic.into_iter().chain(config.kafka.dead_letter_topic.as_deref()).collect()
        }
        Definition::Consumer(config) => {
            config.topic_mapping.iter().map(|mapping| mapping.kafka_topic.as_str()).collect()
        }
    }
}

/// Tries the configured hosts; a connection to one that works.
pub(super) async fn bootstrap(options: &ClientOptions, notes: &Notes) -> Option<Arc<BrokerConnection>> {
    let mut found = None;
    let before = notes.0.lock().len();
    for address in &options.bootstrap {
        if let Some(connection) = connect(address, options, notes).await {
            found.get_or_insert(connection);
        }
    }
    if found.is_some() {
        // One host is enough to begin with.
        for step in notes.0.lock().iter_mut().skip(before).filter(|step| step.verdict == Verdict::Fail) {
            step.verdict = Verdict::Warn;
        }
    }
    found
}

/// Every step from a name to a broker that has let us in.
async fn connect(address: &Address, options: &ClientOptions, notes: &Notes) -> Option<Arc<BrokerConnection>> {
    let about = address.to_string();
    let limit = options.connect_timeout;
    let resolved = match timeout(limit, dial::resolve(&address.host, address.port)).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => {
            let fix = "check the spelling of the host, and that this machine can resolve it";
            notes.fail("dns", &about, error.to_string(), fix);
            return None;
        }
        Err(_) => {
            let fix = "check the name servers of this machine";
            notes.fail("dns", &about, format!("no answer within {limit:?}"), fix);
            return None;
        }
    };
    let addresses: Vec<_> = resolved.iter().map(|address| address.ip().to_string()).collect();
    notes.ok("dns", &about, addresses.join(", "));
    let dialled = dial::dial(&address.host, address.port, resolved, limit, tokio::net::TcpStream::connect);
    let failed = match timeout(limit, dialled).await {
        Ok(Ok(stream)) => {
            let peer = stream.peer_addr().map(|peer| format!(" at {}", peer.ip()));
            notes.ok("tcp", &about, format!("the port is open{}", peer.unwrap_or_default()));
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("{}: no answer within {limit:?}", addresses.join(", "))),
    };
    if let Some(failed) = failed {
        let fix = "is Kafka running there, is the port right, does a firewall let it through?";
        notes.fail("tcp", &about, failed, fix);
        return None;
    }
    let logs_in = !matches!(options.authentication, Authentication::None);
    match timeout(limit + Duration::from_secs(1), BrokerConnection::connect(address, options)).await {
        Ok(Ok(connection)) => {
            if options.tls.is_some() {
                notes.ok("tls", &about, "the broker's certificate is accepted");
            }
            if logs_in {
                notes.ok("login", &about, format!("logged in with {}", options.authentication.mechanism()));
            }
            Some(connection)
        }
        Ok(Err(error)) => {
            let (step, fix) = explain(&error, options.tls.is_some());
            if step == "login" && options.tls.is_some() {
                notes.ok("tls", &about, "the broker's certificate is accepted");
            }
            notes.fail(step, &about, error.to_string(), fix);
            None
        }
        Err(_) => {
            let fix = "is this a Kafka port? TLS set on one side only looks like this, too";
            notes.fail("kafka", &about, format!("no answer within {limit:?}"), fix);
            None
        }
    }
}

/// Remedy for a TLS error that is told in these words.
fn mend_tls(reason: &str) -> &'static str {
    // The first that fits.
    const WORDS: [(&str, &str); 8] = [
        ("ssl.enable = false", "set ssl.enable = false, or take the port that speaks TLS"),
        ("expired", "renew the broker's certificate"),
        ("not valid yet", "set the clock of this machine right, or wait"),
        (
            "set ssl.cacertfile",
            "set ssl.cacertfile to the certificate of the authority that signed the broker's certificate",
        ),
        (
            "subjectAltName",
            "have the broker's certificate made for the host name that bootstrap_hosts and advertised.listeners use",
        ),
        (
            "ssl.server_name_indication",
            "use a name of the broker's certificate in bootstrap_hosts and advertised.listeners, or set \
             ssl.server_name_indication to one",
        ),
        (
            "ssl.certfile",
            "set ssl.certfile and ssl.keyfile to a certificate whose authority is in the broker's truststore",
        ),
        (
            "ssl.versions",
            "allow a version and cipher suite that the broker knows in ssl.versions and ssl.ciphers",
        ),
    ];
    let known = WORDS.iter().find(|(word, _)| reason.contains(word));
    known.map_or(
        "see ssl.cacertfile, ssl.verify and ssl.versions, and the certificate of the broker",
        |(_, fix)| fix,
    )
}

/// Which step an error belongs to, and what to do about it.
fn explain(error: &Error, tls: bool) -> (&'static str, &'static str) {
    match error {
        Error::Tls { reason, .. } => ("tls", mend_tls(reason)),
        // Kafka's way to refuse a certificate of ours with TLS 1.3.
        Error::Disconnected { reason, .. } if tls && reason.contains("certificate") => {
            ("tls", mend_tls(reason))
        }
        Error::SpeaksTls { .. } => ("tls", "set ssl.enable = true, or take the port without TLS"),
        Error::Authentication { reason, .. } if reason.contains("authentication = none") => {
            ("login", "set authentication = none, or take the port of the SASL listener")
        }
        Error::Authentication { .. } => {
            ("login", "check authentication: mechanism, user name and password as Kafka knows them")
        }
        Error::Timeout { what, .. } if what.contains("TLS") => {
            ("tls", "does this port speak TLS? If not, set ssl.enable = false")
        }
        Error::Timeout { what, .. } if what.contains("login") => ("login", "look into the log of the broker"),
        Error::UnsupportedVersion { .. } => ("kafka", "Kafka 0.11 or newer is needed"),
        _ if tls => ("kafka", "is this a Kafka port with TLS?"),
        _ => ("kafka", "is this a Kafka port, and one without TLS?"),
    }
}

/// Asks for the cluster's brokers and the bridge's topics, and tries every broker where it says that it is.
pub(super) async fn cluster(
    broker: &Arc<BrokerConnection>,
    definition: &Definition,
    options: &ClientOptions,
    notes: &Notes,
) -> Option<MetadataResponse> {
    let about = broker.address().to_string();
    let tells = broker.version::<MetadataRequest>().is_ok_and(|version| version >= TELLS_RIGHTS);
    let names = topics(definition).into_iter().map(|topic| {
        let name = TopicName(StrBytes::from_string(topic.to_owned()));
        MetadataRequestTopic::default().with_name(Some(name))
    });
    let request = MetadataRequest::default()
        .with_topics(Some(names.collect()))
        .with_allow_auto_topic_creation(false)
        .with_include_topic_authorized_operations(tells);
    let cluster = match broker.call_within(&request, Some(options.metadata_request_timeout)).await {
        Ok(cluster) => cluster,
        // A broker closes connections that should have logged in.
        Err(error @ Error::Disconnected { .. }) if matches!(options.authentication, Authentication::None) => {
            let fix = "the listener seems to want a login: set authentication, or take another port";
            notes.fail("login", &about, error.to_string(), fix);
            return None;
        }
        Err(error) => {
            notes.fail("brokers", &about, error.to_string(), "look into the log of the broker");
            return None;
        }
    };
    let addresses: Vec<Address> = cluster
        .brokers
        .iter()
        .filter_map(|broker| Some(Address::new(&*broker.host, u16::try_from(broker.port).ok()?)))
        .collect();
    let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() {
        notes.fail("brokers", &about, "the cluster names no broker", "look into the log of the broker");
        return None;
    }
    let others: Vec<_> = addresses.iter().filter(|address| *address != broker.address()).collect();
    let before = notes.0.lock().len();
    for address in others {
        connect(address, options, notes).await;
    }
    let unreachable = notes.0.lock().iter().skip(before).any(|step| step.verdict == Verdict::Fail);
    if unreachable {
        notes.fail(
            "brokers",
            &about,
            format!("the brokers say that they are at {}, and not all can be reached there", list.join(", ")),
            "advertised.listeners of each broker must be an address that this machine can reach",
        );
    } else {
        notes.ok("brokers", &about, format!("{} of {} reached: {}", list.len(), list.len(), list.join(", ")));
    }
    Some(cluster)
}
