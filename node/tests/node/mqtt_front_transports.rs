//! MQTT over TLS, WebSocket and behind the PROXY protocol, on real sockets; and what keeps many slow or
//! unfinished clients from hurting others.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::mqtt_front::{
    Broker, Client, PATIENCE, Seen, broker_with, connect, pki,
    pki::{Authority, BOTH, Issued, tls_listener, tls_to, websocket_over, ws_listener},
    published,
};
use causeway::{
    flow::{Accepted, Message, MessageSink, Outcome, Ticket, WakeList},
    mqtt::{
        CertificateFiles, CertificateUsername, ClientCertificates, Front, ListenerOptions, Options, Rate,
        RetainedLimits, Router, TlsError, TlsOptions, check_tls,
    },
};
use causeway_protocol::mqtt::{Connect, QoS, ReasonCode, Version};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};

/// Who published, as sinks see it.
#[derive(Default)]
struct Origins(Mutex<Vec<(Option<String>, Option<SocketAddr>)>>);

impl MessageSink for Origins {
    fn accept(&self, message: &Message<'_>, _: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        let origin = message.origin;
        self.0.lock().push((origin.username.as_deref().map(str::to_owned), origin.peer));
        Accepted::Done(Outcome::Success)
    }
}

/// A broker with these listeners.
async fn broker(listeners: Vec<ListenerOptions>) -> Broker {
    broker_with(|options| {
        options.listeners = listeners;
        options.certificate_poll = Duration::from_millis(20);
    })
    .await
}

fn origins(broker: &Broker) -> Arc<Origins> {
    let origins = Arc::new(Origins::default());
    broker.router.add_sink("who", origins.clone());
    origins
}

/// Who a client is to the rest of the node: its user name and address.
async fn who(
    client: &mut Client,
    origins: &Origins,
    username: Option<&str>,
) -> (Option<String>, Option<SocketAddr>) {
    let connect = Connect { username, ..connect(client.version, "who") };
    assert_eq!(client.connect(&connect).await.0, ReasonCode::Success);
    client.publish("who", b"", QoS::AtLeastOnce, 1).await;
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    origins.0.lock().pop().unwrap()
}

/// Subscribes, sends itself small and large messages, and is disconnected by nobody.
async fn talks(client: &mut Client) {
    assert_eq!(client.connect(&connect(client.version, "talks")).await.0, ReasonCode::Success);
    assert_eq!(client.subscribe("echo", QoS::AtMostOnce).await, [ReasonCode::Success]);
    for size in [0, 1, 1000, 16_384, 20_000, 300_000] {
        let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
        for _ in 0..3 {
            client.publish("echo", &payload, QoS::AtMostOnce, 0).await;
        }
        for _ in 0..3 {
            assert_eq!(client.next().await, published("echo", &payload));
        }
    }
    client.nothing().await;
}

fn arc(config: ClientConfig) -> Arc<ClientConfig> {
    Arc::new(config)
}

#[tokio::test]
async fn every_kind_of_key_serves_both_versions_of_tls() {
    let authority = Authority::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/mqtt_front/certificates");
    let fixture = |certificate: &str, key: &str| {
        let file = |name: &str| format!("{folder}/{name}").into();
        let files = CertificateFiles { certificate: file(certificate), key: file(key) };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&files.certificate).unwrap()).unwrap();
        (files, roots)
    };
    let made = |name: &str, algorithm| {
        let issued = authority.server_with(name, &["localhost"], algorithm, |_| {});
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.file()).unwrap()).unwrap();
        (issued.files, roots)
    };
    let keys = [
        fixture("rsa.pem", "rsa-pkcs8.key"),
        fixture("rsa.pem", "rsa-pkcs1.key"),
        fixture("ec.pem", "ec-sec1.key"),
        made("p256", &rcgen::PKCS_ECDSA_P256_SHA256),
        made("p384", &rcgen::PKCS_ECDSA_P384_SHA384),
        made("ed25519", &rcgen::PKCS_ED25519),
    ];
    for (files, roots) in keys {
        let broker = broker(vec![tls_listener(TlsOptions::new(files))]).await;
        for version in [&TLS12, &TLS13] {
            let config = arc(pki::client_config(roots.clone(), &[version], None));
            let stream = tls_to(broker.address, &config, "localhost").await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            let mqtt = if version.version == TLS12.version { Version::V311 } else { Version::V5 };
            talks(&mut Client::over(stream, mqtt)).await;
        }
        assert_eq!(broker.front.stats().tls_handshakes_failed, 0);
        broker.front.stop().await;
    }
}

#[tokio::test]
async fn a_version_that_is_not_configured_is_not_spoken() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let tls = TlsOptions { tls12: false, ..TlsOptions::new(issued.files.clone()) };
    let broker = broker(vec![tls_listener(tls)]).await;
    let old = arc(authority.trusting(&[&TLS12], None));
    let error = tls_to(broker.address, &old, "localhost").await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "the alert says why: {error}");
    broker.until(|stats| stats.tls_handshakes_failed == 1 && stats.connections == 0).await;
    tls_to(broker.address, &arc(authority.trusting(&[&TLS13], None)), "localhost").await.unwrap();
}

#[tokio::test]
async fn a_client_without_the_certificate_that_is_required_is_refused() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let issued = authority.server("server", &["localhost"]);
    let clients = ClientCertificates::Required(authority.file());
    let tls = TlsOptions { clients, ..TlsOptions::new(issued.files.clone()) };
    let listener =
        ListenerOptions { certificate_username: CertificateUsername::CommonName, ..tls_listener(tls) };
    let broker = broker(vec![listener]).await;
    let origins = origins(&broker);
    let (own, other) = (authority.client("meter-17"), strangers.client("meter-17"));
    for versions in [&[&TLS12], &[&TLS13]] {
        for wrong in [None, Some(&other)] {
            let config = arc(authority.trusting(versions, wrong));
            // With TLS 1.3 a client learns of it with the first bytes it reads.
            if let Ok(mut stream) = tls_to(broker.address, &config, "localhost").await {
                let error = stream.read(&mut [0; 16]).await.unwrap_err();
                assert!(error.to_string().contains("alert"), "{error}");
            }
        }
        let config = arc(authority.trusting(versions, Some(&own)));
        let stream = tls_to(broker.address, &config, "localhost").await.unwrap();
        let mut client = Client::over(stream, Version::V5);
        assert_eq!(who(&mut client, &origins, Some("liar")).await.0.as_deref(), Some("meter-17"));
    }
    let stats = broker.front.stats();
    assert_eq!((stats.tls_handshakes_failed, stats.handshakes_failed), (4, 4));
}

#[tokio::test]
async fn a_certificate_that_is_optional_gives_a_name_to_those_who_have_one() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let issued = authority.server("server", &["localhost"]);
    let clients = ClientCertificates::Optional(authority.file());
    let tls = TlsOptions { clients, ..TlsOptions::new(issued.files.clone()) };
    let listener =
        ListenerOptions { certificate_username: CertificateUsername::Subject, ..tls_listener(tls) };
    let broker = broker(vec![listener]).await;
    let origins = origins(&broker);
    let own = authority.client("meter-17");
    for (shown, username) in [(None, "somebody"), (Some(&own), "O=Test, CN=meter-17")] {
        let stream =
            tls_to(broker.address, &arc(authority.trusting(BOTH, shown)), "localhost").await.unwrap();
        let mut client = Client::over(stream, Version::V311);
        assert_eq!(who(&mut client, &origins, Some("somebody")).await.0.as_deref(), Some(username));
    }
    let stranger = strangers.client("meter-17");
    let config = arc(authority.trusting(&[&TLS12], Some(&stranger)));
    assert!(tls_to(broker.address, &config, "localhost").await.is_err());
}

/// The certificate that is served for a host.
async fn served(broker: &Broker, config: &Arc<ClientConfig>, host: &'static str) -> CertificateDer<'static> {
    let stream = tls_to(broker.address, config, host).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_host_it_names() {
    let authority = Authority::new();
    let default = authority.server("default", &["localhost", "first.example"]);
    let exact = authority.server("exact", &["mqtt.example"]);
    let wildcard = authority.server("wildcard", &["*.devices.example"]);
    let further = vec![exact.files.clone(), wildcard.files.clone()];
    let tls = TlsOptions { further, ..TlsOptions::new(default.files.clone()) };
    let broker = broker(vec![tls_listener(tls)]).await;
    let config = arc(authority.trusting(BOTH, None));
    let cases: [(&str, &Issued); 5] = [
        ("localhost", &default),
        ("first.example", &default),
        ("mqtt.example", &exact),
        ("MQTT.Example", &exact),
        ("a.devices.example", &wildcard),
    ];
    for (host, expected) in cases {
        assert_eq!(served(&broker, &config, host).await, expected.der(), "{host}");
    }
    // A name that nobody has gets the default, which does not fit it.
    for host in ["a.b.devices.example", "other.example"] {
        let error = tls_to(broker.address, &config, host).await.unwrap_err().to_string();
        assert!(error.contains("not valid for name"), "{host}: {error}");
    }
}

#[tokio::test]
async fn certificates_are_replaced_under_live_connections() {
    let authority = Authority::new();
    let first = authority.server("server", &["localhost"]);
    let files = first.files.clone();
    let broker = broker(vec![tls_listener(TlsOptions::new(files.clone()))]).await;
    let config = arc(authority.trusting(BOTH, None));
    assert_eq!(served(&broker, &config, "localhost").await, first.der());
    let mut living = Client::over(tls_to(broker.address, &config, "localhost").await.unwrap(), Version::V5);
    talks(&mut living).await;

    let second = authority.server("second", &["localhost"]);
    second.write(&files);
    broker.until(|stats| stats.certificates_reloaded == 1).await;
    assert_eq!(served(&broker, &config, "localhost").await, second.der());
    living.nothing().await;

    // Half of a pair, garbage, nothing: each is refused, and the last good one goes on.
    let third = authority.server("third", &["localhost"]);
    let damage: [&dyn Fn(); 3] = [
        &|| std::fs::write(&files.certificate, &third.certificate).unwrap(),
        &|| std::fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nAAAA").unwrap(),
        &|| std::fs::remove_file(&files.certificate).unwrap(),
    ];
    for (done, damage) in damage.iter().enumerate() {
        damage();
        broker.until(|stats| stats.certificates_refused == done as u64 + 1).await;
        assert_eq!(served(&broker, &config, "localhost").await, second.der());
    }
    living.nothing().await;

    third.write(&files);
    broker.until(|stats| stats.certificates_reloaded == 2).await;
    assert_eq!(served(&broker, &config, "localhost").await, third.der());
    living.nothing().await;
}

#[tokio::test]
async fn certificates_are_read_again_at_once_when_it_is_asked_for() {
    let authority = Authority::new();
    let first = authority.server("server", &["localhost"]);
    let broker = broker_with(|options| {
        options.listeners = vec![tls_listener(TlsOptions::new(first.files.clone()))];
        options.certificate_poll = Duration::from_hours(1);
    })
    .await;
    let second = authority.server("second", &["localhost"]);
    second.write(&first.files);
    let config = arc(authority.trusting(BOTH, None));
    assert_eq!(served(&broker, &config, "localhost").await, first.der());
    broker.front.reload_certificates();
    broker.until(|stats| stats.certificates_reloaded == 1).await;
    assert_eq!(served(&broker, &config, "localhost").await, second.der());
}

#[tokio::test]
async fn a_session_of_tls_is_resumed_until_certificates_change() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let own = authority.client("meter-17");
    let clients = ClientCertificates::Required(authority.file());
    let tls = TlsOptions { clients, ..TlsOptions::new(issued.files.clone()) };
    let listener =
        ListenerOptions { certificate_username: CertificateUsername::CommonName, ..tls_listener(tls) };
    let broker = broker(vec![listener]).await;
    let origins = origins(&broker);
    let (old, new) =
        (arc(authority.trusting(&[&TLS12], Some(&own))), arc(authority.trusting(&[&TLS13], Some(&own))));
    for round in 1..=2 {
        for config in [&old, &new] {
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let stream = tls_to(broker.address, config, "localhost").await.unwrap();
                let kind = stream.get_ref().1.handshake_kind();
                assert_eq!(kind, Some(expected), "round {round}");
                // A ticket carries the certificate that was proved; reading takes in the ticket.
                let mut client = Client::over(stream, Version::V5);
                assert_eq!(who(&mut client, &origins, None).await.0.as_deref(), Some("meter-17"));
            }
        }
        broker.front.reload_certificates();
        broker.until(|stats| stats.certificates_reloaded == round).await;
    }
}

#[tokio::test]
async fn the_reason_of_a_close_arrives_before_the_goodbye_of_each_transport() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let tls = || Some(TlsOptions::new(issued.files.clone()));
    let broker = broker(vec![
        ListenerOptions { tls: tls(), ..ListenerOptions::new("a", "127.0.0.1:0".parse().unwrap()) },
        ListenerOptions { ..ws_listener() },
        ListenerOptions { tls: tls(), ..ws_listener() },
    ])
    .await;
    let addresses = broker.front.addresses();
    let config = arc(authority.trusting(BOTH, None));
    let to = |at: usize| tls_to(addresses[at], &config, "localhost");
    let plain = TcpStream::connect(addresses[1]).await.unwrap();
    let mut clients = [
        Client::over(to(0).await.unwrap(), Version::V5),
        Client::over(websocket_over(plain).await, Version::V5),
        Client::over(websocket_over(to(2).await.unwrap()).await, Version::V5),
    ];
    for client in &mut clients {
        talks(client).await;
        // A second CONNECT is a protocol error; the bytes behind it must not make a reset of the close.
        for _ in 0..100 {
            client.send(&causeway_protocol::mqtt::Packet::Connect(Box::new(connect(Version::V5, "x")))).await;
        }
        assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ProtocolError));
        // rustls' client calls an end without close_notify an error, and the WebSocket's checks its close
        // frame.
        let end = timeout(PATIENCE, client.socket.read(&mut [0; 16])).await.unwrap();
        assert_eq!(end.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_stop_is_told_over_every_transport() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let secure = ListenerOptions { tls: Some(TlsOptions::new(issued.files.clone())), ..ws_listener() };
    let broker = broker(vec![secure]).await;
    let config = arc(authority.trusting(BOTH, None));
    let stream = tls_to(broker.address, &config, "localhost").await.unwrap();
    let mut client = Client::over(websocket_over(stream).await, Version::V5);
    talks(&mut client).await;
    // One in the middle of its handshake does not hold the stop up.
    let _half_open = TcpStream::connect(broker.address).await.unwrap();
    broker.until(|stats| stats.handshakes_open == 1).await;
    let started = Instant::now();
    let stop = tokio::spawn(broker.front.stop());
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ServerShuttingDown));
    assert_eq!(client.next().await, Seen::Closed);
    stop.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

const CONNECT: &[u8] = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03raw";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";
const PINGREQ: &[u8] = b"\xC0\x00";
const PINGRESP: &[u8] = b"\xD0\x00";

/// A frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0xA1, 0xB2, 0xC3, 0xD4];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0xFE);
            frame.extend((length as u16).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}

/// A WebSocket whose request is answered, as a raw socket.
async fn raw_websocket(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    socket
}

/// Bytes that come next, exactly.
async fn expect(socket: &mut TcpStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    timeout(PATIENCE, socket.read_exact(&mut read)).await.expect("an answer").expect("an answer");
    assert_eq!(read, expected);
}

/// The rest until the server closes.
async fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("an end").expect("an orderly end");
    rest
}

#[tokio::test]
async fn packets_may_span_frames_and_frames_may_hold_many_packets() {
    let broker = broker(vec![ws_listener()]).await;
    let mut socket = raw_websocket(broker.address).await;
    // CONNECT byte by byte, each in a frame of its own, some of them fragments of one message, some empty.
    for (at, byte) in CONNECT.iter().enumerate() {
        let first = match at % 4 {
            0 => 0x02,
            3 => 0x80,
            _ => 0x00,
        };
        // The last one ends its message wherever it falls.
        let first = if at == CONNECT.len() - 1 { first | 0x80 } else { first };
        socket.write_all(&frame(first, &[*byte])).await.unwrap();
    }
    expect(&mut socket, &[&[0x82, 4], CONNACK].concat()).await;
    // Many packets in one frame are answered in one.
    socket.write_all(&frame(0x82, &PINGREQ.repeat(40))).await.unwrap();
    expect(&mut socket, &[&[0x82, 80][..], &PINGRESP.repeat(40)].concat()).await;
    // A frame that comes byte by byte, with a packet and a half in it.
    for byte in frame(0x82, &[PINGREQ, &PINGREQ[..1]].concat()) {
        socket.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    expect(&mut socket, &[&[0x82, 2], PINGRESP].concat()).await;
    socket.write_all(&frame(0x82, &[])).await.unwrap();
    socket.write_all(&frame(0x82, &PINGREQ[1..])).await.unwrap();
    expect(&mut socket, &[&[0x82, 2], PINGRESP].concat()).await;
}

#[tokio::test]
async fn frames_that_come_with_the_request_are_not_lost() {
    let broker = broker(vec![ws_listener()]).await;
    let mut socket = TcpStream::connect(broker.address).await.unwrap();
    socket.write_all(&[REQUEST, &frame(0x82, CONNECT), &frame(0x82, PINGREQ)].concat()).await.unwrap();
    socket.shutdown().await.unwrap();
    let answer = rest(&mut socket).await;
    let expected = [&[0x82, 6][..], CONNACK, PINGRESP].concat();
    let contains = |needle: &[u8]| answer.windows(needle.len()).any(|window| window == needle);
    assert!(contains(&expected), "{answer:02X?}");
}

#[tokio::test]
async fn pings_are_answered_and_closes_too() {
    let broker = broker(vec![ws_listener()]).await;
    let mut socket = raw_websocket(broker.address).await;
    socket.write_all(&frame(0x89, b"before")).await.unwrap();
    expect(&mut socket, b"\x8A\x06before").await;
    socket.write_all(&frame(0x82, CONNECT)).await.unwrap();
    expect(&mut socket, &[&[0x82, 4], CONNACK].concat()).await;
    // A ping inside a message, and a pong that nobody asked for.
    let message = [frame(0x02, PINGREQ), frame(0x8A, b"x"), frame(0x89, b""), frame(0x80, PINGREQ)].concat();
    socket.write_all(&message).await.unwrap();
    let mut answers = [0; 8];
    socket.read_exact(&mut answers).await.unwrap();
    let pong = answers.windows(2).position(|two| two == [0x8A, 0]).expect("a pong");
    assert!(pong == 0 || pong == 6, "between frames: {answers:02X?}");
    // Its own code comes back, and then the end.
    socket.write_all(&frame(0x88, &4321_u16.to_be_bytes())).await.unwrap();
    assert_eq!(rest(&mut socket).await, [&[0x88, 2][..], &4321_u16.to_be_bytes()].concat());
    broker.until(|stats| stats.connections == 0).await;
}

#[tokio::test]
async fn frames_against_the_rules_end_the_connection_with_their_code() {
    let broker = broker(vec![ws_listener()]).await;
    let unmasked = [&[0x82, PINGREQ.len() as u8], PINGREQ].concat();
    let cases = [
        (frame(0x81, b"text"), 1003_u16),
        (unmasked, 1002),
        (frame(0xC2, PINGREQ), 1002),
        (frame(0x83, PINGREQ), 1002),
        (frame(0x80, PINGREQ), 1002),
        (frame(0x89, &[0; 126]), 1002),
        ([frame(0x02, PINGREQ), frame(0x82, PINGREQ)].concat(), 1002),
    ];
    for connected in [false, true] {
        for (input, code) in &cases {
            let mut socket = raw_websocket(broker.address).await;
            if connected {
                socket.write_all(&frame(0x82, CONNECT)).await.unwrap();
                expect(&mut socket, &[&[0x82, 4], CONNACK].concat()).await;
            }
            // What follows is not looked at, and does not make a reset of the close.
            socket.write_all(&[input, &frame(0x82, &PINGREQ.repeat(60))[..]].concat()).await.unwrap();
            let rest = rest(&mut socket).await;
            let close = [&[0x88, 2][..], &code.to_be_bytes()].concat();
            assert!(rest.ends_with(&close), "{input:02X?}: {rest:02X?}");
        }
    }
    broker.until(|stats| stats.connections == 0).await;
}

#[tokio::test]
async fn a_request_for_something_else_is_refused_in_words() {
    let broker = broker(vec![ws_listener()]).await;
    for (from, to, status) in [
        ("/mqtt", "/chat", "404 Not Found"),
        ("Sec-WebSocket-Protocol: mqtt\r\n", "", "400 Bad Request"),
        ("Upgrade: websocket\r\n", "", "426 Upgrade Required"),
    ] {
        let mut socket = TcpStream::connect(broker.address).await.unwrap();
        let request = String::from_utf8(REQUEST.to_vec()).unwrap().replace(from, to);
        socket.write_all(request.as_bytes()).await.unwrap();
        let answer = String::from_utf8(rest(&mut socket).await).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    broker.until(|stats| stats.websocket_handshakes_failed == 3 && stats.connections == 0).await;
}

#[tokio::test]
async fn mqtt_is_the_same_over_a_websocket_of_another_hand() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let secure = ListenerOptions { tls: Some(TlsOptions::new(issued.files.clone())), ..ws_listener() };
    let broker = broker(vec![ws_listener(), secure]).await;
    let addresses = broker.front.addresses();
    let plain = TcpStream::connect(addresses[0]).await.unwrap();
    talks(&mut Client::over(websocket_over(plain).await, Version::V311)).await;
    let config = arc(authority.trusting(BOTH, None));
    let tls = tls_to(addresses[1], &config, "localhost").await.unwrap();
    talks(&mut Client::over(websocket_over(tls).await, Version::V5)).await;
    let ids: Vec<&str> = broker.front.listeners().iter().map(causeway::mqtt::Listener::id).collect();
    assert_eq!(ids, ["ws:ws", "wss:ws"]);
}

fn behind_proxy(listener: ListenerOptions) -> ListenerOptions {
    ListenerOptions { proxy_protocol: Some(Duration::from_millis(500)), ..listener }
}

#[tokio::test]
async fn a_proxy_tells_the_address_of_its_client_before_anything_else() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let plain = ListenerOptions::new("plain", "127.0.0.1:0".parse().unwrap());
    let broker = broker(vec![
        behind_proxy(plain),
        behind_proxy(tls_listener(TlsOptions::new(issued.files.clone()))),
        behind_proxy(ws_listener()),
    ])
    .await;
    let origins = origins(&broker);
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 1883\r\n";
    let told: SocketAddr = "192.0.2.7:12345".parse().unwrap();
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x07\x0A\0\0\x01\x30\x39\x07\x5B";
    for (at, address) in broker.front.addresses().into_iter().enumerate() {
        for header in [&header[..], v2] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(header).await.unwrap();
            let mut client = match at {
                0 => Client::over(socket, Version::V5),
                1 => {
                    let config = arc(authority.trusting(BOTH, None));
                    let connector = tokio_rustls::TlsConnector::from(config);
                    let name = "localhost".try_into().unwrap();
                    Client::over(connector.connect(name, socket).await.unwrap(), Version::V5)
                }
                _ => Client::over(websocket_over(socket).await, Version::V5),
            };
            assert_eq!(who(&mut client, &origins, None).await.1, Some(told));
        }
    }
    // The proxy's own connection keeps its address.
    let mut socket = TcpStream::connect(broker.address).await.unwrap();
    let own = socket.local_addr().unwrap();
    socket.write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0").await.unwrap();
    assert_eq!(who(&mut Client::over(socket, Version::V5), &origins, None).await.1, Some(own));
}

#[tokio::test]
async fn a_connection_without_the_header_is_refused() {
    let listener = behind_proxy(ListenerOptions::new("plain", "127.0.0.1:0".parse().unwrap()));
    let broker = broker(vec![listener]).await;
    let mut socket = TcpStream::connect(broker.address).await.unwrap();
    socket.write_all(CONNECT).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"");
    broker.until(|stats| stats.proxy_headers_refused == 1 && stats.handshakes_failed == 1).await;
    // Half a header is waited for, and not for ever.
    let mut slow = TcpStream::connect(broker.address).await.unwrap();
    slow.write_all(b"PROXY TCP4").await.unwrap();
    let started = Instant::now();
    assert_eq!(rest(&mut slow).await, b"");
    assert!(started.elapsed() >= Duration::from_millis(400));
    broker.until(|stats| stats.handshakes_timed_out == 1 && stats.handshakes_open == 0).await;
}

#[tokio::test]
async fn a_name_that_the_proxy_has_verified_takes_the_place_of_the_user_name() {
    let plain = ListenerOptions::new("plain", "127.0.0.1:0".parse().unwrap());
    let listener =
        ListenerOptions { certificate_username: CertificateUsername::CommonName, ..behind_proxy(plain) };
    let broker = broker(vec![listener]).await;
    let origins = origins(&broker);
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0\xC0\0\x02\x07\x0A\0\0\x01\x30\x39\x07\x5B".to_vec();
    header.extend(b"\x20\0\x0B\x07\0\0\0\0\x22\0\x03m17");
    header[15] = (header.len() - 16) as u8;
    let mut socket = TcpStream::connect(broker.address).await.unwrap();
    socket.write_all(&header).await.unwrap();
    let seen = who(&mut Client::over(socket, Version::V5), &origins, Some("liar")).await;
    assert_eq!(seen.0.as_deref(), Some("m17"));
}

#[tokio::test]
async fn a_client_over_its_message_rate_is_read_later_and_loses_nothing() {
    let listener = ListenerOptions {
        messages_rate: Some(Rate { count: 20, per: Duration::from_millis(500) }),
        ..ListenerOptions::new("slow", "127.0.0.1:0".parse().unwrap())
    };
    let broker = broker(vec![listener]).await;
    let mut client = Client::open(broker.address, Version::V5).await;
    let mut other = broker.client(Version::V5, "other").await;
    // One second of silence would end it, if it were heard: it says nothing more for longer than 1.5 s.
    let short = Connect { keep_alive: 1, ..connect(Version::V5, "fast") };
    assert_eq!(client.connect(&short).await.0, ReasonCode::Success);
    assert_eq!(other.subscribe("t", QoS::AtMostOnce).await, [ReasonCode::Success]);
    let started = Instant::now();
    for number in 0..100_u8 {
        client.publish("t", &[number], QoS::AtMostOnce, 0).await;
    }
    for number in 0..100_u8 {
        assert_eq!(other.next().await, published("t", &[number]));
    }
    let took = started.elapsed();
    // 20 at once, the other 80 at 40 a second.
    assert!(took >= Duration::from_millis(1900), "{took:?}");
    client.nothing().await;
    let stats = broker.front.stats();
    assert!(stats.paused_messages_rate > 0);
    assert_eq!((stats.keep_alive_timeouts, stats.received_qos0), (0, 100));
}

#[tokio::test]
async fn a_client_over_its_byte_rate_is_read_later_and_loses_nothing() {
    let listener = ListenerOptions {
        bytes_rate: Some(Rate::per_second(20_000)),
        ..ListenerOptions::new("slow", "127.0.0.1:0".parse().unwrap())
    };
    let broker = broker(vec![listener]).await;
    let mut client = broker.client(Version::V311, "fast").await;
    let started = Instant::now();
    for identifier in 1..=50 {
        client.publish("t", &[0; 992], QoS::AtLeastOnce, identifier).await;
    }
    for identifier in 1..=50 {
        assert_eq!(client.next().await, Seen::Ack("PUBACK", identifier, ReasonCode::Success));
    }
    // 20,000 of 50,000 bytes at once.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1400), "{took:?}");
    assert!(broker.front.stats().paused_bytes_rate > 0);
}

#[tokio::test]
async fn connections_over_the_rate_of_a_listener_wait_and_get_in() {
    let listener = ListenerOptions {
        max_conn_rate: Some(Rate { count: 10, per: Duration::from_millis(500) }),
        ..ListenerOptions::new("slow", "127.0.0.1:0".parse().unwrap())
    };
    let broker = broker(vec![listener]).await;
    let started = Instant::now();
    let mut clients = Vec::new();
    for number in 0..40 {
        clients.push(broker.client(Version::V311, &format!("c{number}")).await);
    }
    let took = started.elapsed();
    // 10 at once (and one an acceptor), the others at 20 a second.
    assert!(took >= Duration::from_millis(1300), "{took:?}");
    let stats = broker.front.stats();
    assert!(stats.accepts_delayed > 0);
    assert_eq!((stats.connections, stats.connections_refused), (40, 0));
}

#[tokio::test]
async fn who_does_not_finish_a_handshake_is_cut_off_in_time() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let in_time = |listener| ListenerOptions { handshake_timeout: Duration::from_millis(400), ..listener };
    let secure = ListenerOptions { tls: Some(TlsOptions::new(issued.files.clone())), ..ws_listener() };
    let broker = broker(vec![
        in_time(tls_listener(TlsOptions::new(issued.files.clone()))),
        in_time(ws_listener()),
        in_time(secure),
    ])
    .await;
    let addresses = broker.front.addresses();
    let started = Instant::now();
    let mut open = Vec::new();
    for address in &addresses {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    // One that has done its TLS and then says nothing.
    let config = arc(authority.trusting(BOTH, None));
    let silent = tls_to(addresses[2], &config, "localhost").await.unwrap();
    broker.until(|stats| stats.handshakes_open == 4).await;
    for socket in &mut open {
        assert_eq!(rest(socket).await, b"");
    }
    assert!(started.elapsed() >= Duration::from_millis(400));
    broker.until(|stats| stats.handshakes_timed_out == 4 && stats.connections == 0).await;
    drop(silent);
    assert_eq!(broker.front.stats().handshakes_failed, 4);
}

#[tokio::test]
async fn beyond_the_limit_the_oldest_handshake_gives_way_to_the_newest() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let tls = tls_listener(TlsOptions::new(issued.files.clone()));
    let broker = broker(vec![ListenerOptions { max_handshakes: 50, ..tls }]).await;
    let mut half_open = Vec::new();
    for _ in 0..200 {
        half_open.push(TcpStream::connect(broker.address).await.unwrap());
    }
    broker.until(|stats| stats.handshakes_displaced == 150 && stats.handshakes_open == 50).await;
    let config = arc(authority.trusting(BOTH, None));
    talks(&mut Client::over(tls_to(broker.address, &config, "localhost").await.unwrap(), Version::V5)).await;
    assert_eq!(broker.front.stats().handshakes_displaced, 151);
}

/// Asks a connected client for a PINGRESP until `done`; how long each took, in order of length.
async fn latencies(client: &mut Client, mut done: impl FnMut() -> bool) -> Vec<Duration> {
    let mut all = Vec::new();
    while !done() {
        let started = Instant::now();
        client.nothing().await;
        all.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_and_slow_clients_leave_the_latency_of_others_alone() {
    let authority = Authority::new();
    let issued = authority.server("server", &["localhost"]);
    let broker = broker(vec![
        ListenerOptions::new("tcp", "127.0.0.1:0".parse().unwrap()),
        tls_listener(TlsOptions::new(issued.files.clone())),
        ws_listener(),
    ])
    .await;
    let addresses = broker.front.addresses();
    let mut client = broker.client(Version::V5, "bystander").await;
    let calm = latencies(&mut client, {
        let until = Instant::now() + Duration::from_millis(500);
        move || Instant::now() >= until
    })
    .await;

    // 2,000 sockets that say nothing, over all listeners.
    let mut half_open = Vec::new();
    for number in 0..2000 {
        half_open.push(TcpStream::connect(addresses[number % 3]).await.unwrap());
    }
    broker.until(|stats| stats.connections == 2001).await;
    // 300 clients that send the first bytes of a good beginning one by one, without end.
    let hello = {
        let mut client = tokio_rustls::rustls::ClientConnection::new(
            arc(authority.trusting(BOTH, None)),
            "localhost".try_into().unwrap(),
        )
        .unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut dribblers = Vec::new();
    for number in 0..300 {
        let (address, stopped) = (addresses[number % 3], stopped.clone());
        let bytes = [CONNECT.to_vec(), hello.clone(), REQUEST.to_vec()][number % 3].clone();
        dribblers.push(tokio::spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.set_nodelay(true).unwrap();
            for byte in bytes.iter().take(bytes.len() - 1) {
                if *stopped.borrow() || socket.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }
    let flooded = latencies(&mut client, {
        let until = Instant::now() + Duration::from_secs(2);
        move || Instant::now() >= until
    })
    .await;
    stop.send(true).unwrap();
    for dribbler in dribblers {
        dribbler.await.unwrap();
    }
    let middle = |all: &[Duration]| all[all.len() / 2];
    let high = |all: &[Duration]| all[all.len() * 99 / 100];
    println!(
        "calm: {:?} / {:?}, flooded: {:?} / {:?}",
        middle(&calm),
        high(&calm),
        middle(&flooded),
        high(&flooded)
    );
    // Far above what it is, far below what a queue behind two thousand others would be.
    let (usual, rare) = (Duration::from_millis(20), Duration::from_millis(250));
    assert!(middle(&flooded) < usual.max(middle(&calm) * 20), "{:?}", middle(&flooded));
    assert!(high(&flooded) < rare.max(high(&calm) * 20), "{:?}", high(&flooded));
    drop(half_open);
    broker.until(|stats| stats.connections == 1).await;
}

type Change<'c> = &'c dyn Fn(&mut TlsOptions);

#[test]
fn wrong_certificate_files_are_named_with_what_to_do() {
    let authority = Authority::new();
    let good = authority.server("good", &["localhost"]);
    let other = authority.server("other", &["localhost"]);
    let file = |name: &str, text: &str| {
        let path = authority.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let with = |change: &dyn Fn(&mut TlsOptions)| {
        let mut tls = TlsOptions::new(good.files.clone());
        change(&mut tls);
        let options = Options { listeners: vec![tls_listener(tls)], ..Options::default() };
        let (errors, warnings) = check_tls(&options);
        let text = |all: Vec<TlsError>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        (text(errors), text(warnings))
    };
    assert_eq!(with(&|_| {}), (String::new(), String::new()));
    let encrypted =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/mqtt_front/certificates/ec-encrypted.key");
    let cases: [(Change<'_>, &str, &str); 9] = [
        (&|tls| tls.certificate.certificate = "/none.pem".into(), "/none.pem", "there is no such file"),
        (&|tls| tls.certificate.key = "/none.key".into(), "/none.key", "there is no such file"),
        (&|tls| tls.certificate.certificate = file("text", "hello"), "text", "no certificate in it"),
        (&|tls| tls.certificate.certificate = good.files.key.clone(), "good.key", "no certificate in it"),
        (&|tls| tls.certificate.key = good.files.certificate.clone(), "good.pem", "no private key in it"),
        (&|tls| tls.certificate.key = other.files.key.clone(), "other.key", "does not belong to"),
        (&|tls| tls.certificate.key = encrypted.into(), "ec-encrypted.key", "openssl pkey"),
        (&|tls| tls.clients = ClientCertificates::Required("/none.ca".into()), "/none.ca", "no such file"),
        (&|tls| tls.ciphers = vec!["RC4-MD5".into()], "ciphers", "allowed: TLS_AES_256_GCM_SHA384"),
    ];
    for (change, name, problem) in cases {
        let (errors, _) = with(change);
        assert!(errors.starts_with("listener ssl:tls: "), "{errors}");
        assert!(errors.contains(name) && errors.contains(problem), "{name}: {errors}");
    }
    let damaged = file("damaged", &good.certificate.replace("\nMI", "\nAA"));
    let (errors, _) = with(&|tls| tls.certificate.certificate = damaged.clone());
    assert!(errors.contains("damaged"), "{errors}");

    let dated = |name: &str, from, to| {
        let change = |params: &mut rcgen::CertificateParams| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        };
        authority.server_with(name, &["localhost"], &rcgen::PKCS_ECDSA_P256_SHA256, change)
    };
    for (issued, words) in
        [(dated("old", 2001, 2002), "expired on"), (dated("future", 2080, 2090), "is not valid before")]
    {
        let (errors, warnings) = with(&|tls| tls.certificate = issued.files.clone());
        assert_eq!(errors, "");
        assert!(warnings.contains(words) && warnings.contains(".pem"), "{warnings}");
    }
    let (errors, warnings) = with(&|tls| {
        tls.ciphers =
            vec!["ECDHE-ECDSA-AES128-GCM-SHA256".into(), "TLS_AES_128_GCM_SHA256".into(), "X".into()];
    });
    assert_eq!(errors, "");
    assert!(warnings.contains("X is not supported"), "{warnings}");
}

#[tokio::test]
async fn a_front_with_wrong_certificates_does_not_start() {
    let files = CertificateFiles { certificate: "/none.pem".into(), key: "/none.key".into() };
    let options = Options { listeners: vec![tls_listener(TlsOptions::new(files))], ..Options::default() };
    let router = Router::new(RetainedLimits::default());
    let error = Front::start(options, router).await.err().expect("an error");
    assert_eq!(error.to_string(), "listener ssl:tls: /none.pem: there is no such file");
}
