//! Lines of the log about clients that are refused, and failed handshakes: reason, address, and no secret.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "node/mqtt_front/mod.rs"]
mod mqtt_front;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use causeway::{
    access::{
        Access, Authorization, DenyAction, Options, Permission, Rule, passwords::Cost, rules::Action,
        rules::TopicPattern,
    },
    config::load_text,
    mqtt::{CertificateFiles, ClientCertificates, TlsOptions},
};
use causeway_protocol::mqtt::{Connect, QoS, ReasonCode, Version};
use mqtt_front::{
    Broker, Client, Seen, broker_with, connect, log,
    pki::{Authority, Issued, tls_listener, tls_to},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        pki_types::ServerName,
        version::{TLS12, TLS13},
    },
};

/// The first of many and then each doubling: those of nine attempts that are logged.
const LOGGED: [(usize, usize); 4] = [(1, 1), (2, 2), (4, 3), (8, 4)];

const ATTEMPTS: usize = 9;

/// A client and the address that the node knows it by.
async fn client(broker: &Broker, version: Version) -> (Client, SocketAddr) {
    let socket = TcpStream::connect(broker.address).await.unwrap();
    let address = socket.local_addr().unwrap();
    (Client::over(socket, version), address)
}

/// Checks that line `number` of those with `words` tells the attempt from `address`, counted `times`.
async fn expect(words: &[&str], number: usize, times: usize, address: SocketAddr) {
    let lines = log::logged(words, number).await;
    assert_eq!(lines.len(), number, "{lines:#?}");
    let line = &lines[number - 1];
    assert!(line.contains(&format!("times={times} ")) || line.ends_with(&format!("times={times}")), "{line}");
    assert!(line.contains(&address.to_string()), "{address} is missing: {line}");
}

#[tokio::test]
async fn refused_logins_are_logged_with_reason_and_address_and_without_the_password() {
    log::collect();
    let folder = tempfile::tempdir().unwrap();
    let text = "authentication.backends = [ { type = built_in_database } ]\n\
                authentication.ban { max_failures = 0, delay = 0 }\n";
    let config = load_text("test", text).unwrap().value;
    let access =
        Access::start(Options { cost: Cost::LEAST, ..config.access_options(folder.path()) }).unwrap();
    access.add_user("ann".into(), b"the-right-secret".to_vec(), false).await.unwrap();
    let broker = broker_with(|options| options.access = access.clone()).await;
    let words = ["client refused: authentication failed", "client_id=\"login-refused\"", "username=\"ann\""];
    for version in [Version::V311, Version::V5] {
        let (mut known, _) = client(&broker, version).await;
        let right = Connect {
            username: Some("ann"),
            password: Some(b"the-right-secret"),
            ..connect(version, "login-taken")
        };
        assert_eq!(known.connect(&right).await.0, ReasonCode::Success);
    }
    for attempt in 1..=ATTEMPTS {
        let version = if attempt % 2 == 0 { Version::V311 } else { Version::V5 };
        let (mut client, address) = client(&broker, version).await;
        let password = format!("the-wrong-secret-{attempt}");
        let wrong = Connect {
            username: Some("ann"),
            password: Some(password.as_bytes()),
            ..connect(version, "login-refused")
        };
        assert_eq!(client.connect(&wrong).await.0, ReasonCode::BadUserNameOrPassword);
        if let Some((_, number)) = LOGGED.iter().find(|(logged, _)| *logged == attempt) {
            expect(&words, *number, attempt, address).await;
        }
    }
    let lines = log::lines(&words);
    assert_eq!(lines.len(), LOGGED.len(), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("reason=BadUserNameOrPassword")), "{lines:#?}");
    assert_eq!(log::lines(&["-secret"]), [""; 0], "no line of the whole process shows a password");
}

#[tokio::test]
async fn denied_publications_are_logged_with_topic_and_address() {
    log::collect();
    let rule = Rule {
        action: Action::All,
        topics: vec![TopicPattern::read("allowed/#").unwrap()],
        ..Rule::new(Permission::Allow)
    };
    let access = Access::with_rules(Authorization {
        rules: Some(vec![rule]),
        no_match: Permission::Deny,
        deny_action: DenyAction::Ignore,
    });
    let broker = broker_with(|options| options.access = access.clone()).await;
    let words = ["publication denied by the authorization rules", "client_id=\"publisher-denied\""];
    for attempt in 1..=ATTEMPTS {
        let (mut client, address) = client(&broker, Version::V5).await;
        let login = Connect {
            username: Some("ann"),
            password: Some(b"publishing-secret"),
            ..connect(Version::V5, "publisher-denied")
        };
        assert_eq!(client.connect(&login).await.0, ReasonCode::Success);
        client.publish("denied/topic", b"payload", QoS::AtLeastOnce, 1).await;
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::NotAuthorized));
        client.publish("allowed/topic", b"payload", QoS::AtLeastOnce, 2).await;
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::NoMatchingSubscribers));
        if let Some((_, number)) = LOGGED.iter().find(|(logged, _)| *logged == attempt) {
            expect(&words, *number, attempt, address).await;
        }
    }
    let lines = log::lines(&words);
    assert_eq!(lines.len(), LOGGED.len(), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("topic=\"denied/topic\"")), "{lines:#?}");
    assert_eq!(log::lines(&["publishing-secret"]), [""; 0]);
}

#[tokio::test]
async fn failed_handshakes_are_logged_with_reason_and_address() {
    log::collect();
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let mut listener = tls_listener(TlsOptions::new(issued.files.clone()));
    listener.name = "handshakes".into();
    let broker = broker_with(|options| options.listeners = vec![listener]).await;
    let words = ["connection closed before MQTT began", "listener=\"ssl:handshakes\""];
    for attempt in 1..=ATTEMPTS {
        // MQTT where TLS is expected.
        let mut socket = TcpStream::connect(broker.address).await.unwrap();
        let address = socket.local_addr().unwrap();
        socket.write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0").await.unwrap();
        let mut alert = Vec::new();
        socket.read_to_end(&mut alert).await.unwrap();
        assert_eq!(alert.len(), 7, "one alert: {alert:?}");
        if let Some((_, number)) = LOGGED.iter().find(|(logged, _)| *logged == attempt) {
            drop(socket);
            expect(&words, *number, attempt, address).await;
        }
        broker.until(|stats| stats.tls_handshakes_failed == attempt as u64).await;
    }
    let lines = log::lines(&words);
    assert_eq!(lines.len(), LOGGED.len(), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("TLS handshake failed: ")), "{lines:#?}");
}

#[tokio::test]
async fn a_record_that_cannot_be_decrypted_ends_its_connection_and_no_other() {
    log::collect();
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    for versions in [&[&TLS12], &[&TLS13]] {
        let listener = tls_listener(TlsOptions::new(issued.files.clone()));
        let broker = broker_with(|options| options.listeners = vec![listener]).await;
        let config = Arc::new(authority.trusting(versions, None));
        let stream = tls_to(broker.address, &config, "localhost").await.unwrap();
        let mut client = Client::over(stream, Version::V5);
        assert_eq!(client.connect(&connect(Version::V5, "c")).await.0, ReasonCode::Success);
        // A second one sends its records past TLS.
        let (mut socket, _) = tls_to(broker.address, &config, "localhost").await.unwrap().into_inner();
        let address = socket.local_addr().unwrap();
        broker.until(|stats| stats.connections == 2 && stats.handshakes_open == 0).await;
        for _ in 0..2 {
            socket.write_all(&[&[23, 3, 3, 0, 64][..], &[7; 64]].concat()).await.unwrap();
        }
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        broker.until(|stats| stats.connections == 1).await;
        assert_eq!(log::lines(&["panicked", &address.to_string()]), [""; 0]);
        client.nothing().await;
    }
}

/// Made by `openssl x509 -req` without extensions; it and its authority hold for a hundred years.
#[tokio::test]
async fn a_client_certificate_of_version_1_is_refused_in_words_that_name_the_remedy() {
    log::collect();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/mqtt_front/certificates"));
    let path = |name: &str| -> PathBuf { folder.join(name) };
    let text = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    let old = Issued {
        certificate: text("version-1.pem"),
        key: text("version-1.key"),
        files: CertificateFiles { certificate: path("version-1.pem"), key: path("version-1.key") },
    };
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let clients = ClientCertificates::Required(path("version-1-authority.pem"));
    let listener = tls_listener(TlsOptions { clients, ..TlsOptions::new(issued.files.clone()) });
    for (name, versions) in [("v1-over-1.2", &[&TLS12]), ("v1-over-1.3", &[&TLS13])] {
        let mut listener = listener.clone();
        listener.name = name.into();
        let broker = broker_with(|options| options.listeners = vec![listener]).await;
        let socket = TcpStream::connect(broker.address).await.unwrap();
        let address = socket.local_addr().unwrap();
        let connector = TlsConnector::from(Arc::new(authority.trusting(versions, Some(&old))));
        let host = ServerName::try_from("localhost").unwrap();
        // With TLS 1.3 a client learns of it with the first bytes it reads.
        if let Ok(mut stream) = connector.connect(host, socket).await {
            stream.read(&mut [0; 16]).await.unwrap_err();
        }
        let words = ["connection closed before MQTT began", &format!("listener=\"ssl:{name}\"")];
        let lines = log::logged(&words, 1).await;
        let [line] = &lines[..] else { panic!("{lines:#?}") };
        assert!(line.contains(&address.to_string()), "{line}");
        assert!(
            line.contains("X.509 version 1") && line.contains("make a certificate of version 3"),
            "{line}"
        );
        assert!(line.contains("openssl x509 -req") && line.contains("-extfile)"), "cut short: {line}");
        assert_eq!(broker.front.stats().tls_handshakes_failed, 1);
    }
}
