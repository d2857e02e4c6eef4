//! Access over the wire: who gets in, what a client may do there, and the exact reason codes of each version.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::mqtt_front::*;
use base64::Engine;
use bytes::BytesMut;
use causeway::access::passwords::Cost;
use causeway::access::{
    Access, Authorization, DenyAction, Options, Permission, Rule, SCRAM_SHA_256, rules::Action,
    rules::TopicPattern,
};
use causeway::config::load_text;
use causeway_protocol::mqtt::{
    AckKind, Auth, Connect, Disconnect, Packet, QoS, ReasonCode, Subscribe, SubscribeFilter,
    SubscriptionOptions, Version, Will,
};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

fn rule(permission: Permission, action: Action, topics: &[&str]) -> Rule {
    let topics = topics.iter().map(|topic| TopicPattern::read(topic).unwrap()).collect();
    Rule { action, topics, ..Rule::new(permission) }
}

fn allow(topics: &[&str]) -> Rule {
    rule(Permission::Allow, Action::All, topics)
}

/// Nothing is allowed but what the rules say.
async fn broker_with_rules(rules: Vec<Rule>, deny_action: DenyAction) -> (Broker, Arc<Access>) {
    let access =
        Access::with_rules(Authorization { rules: Some(rules), no_match: Permission::Deny, deny_action });
    let broker = broker_with(|options| options.access = access.clone()).await;
    (broker, access)
}

fn success_of(version: Version, reason: ReasonCode) -> ReasonCode {
    if version == Version::V5 { reason } else { ReasonCode::Success }
}

#[tokio::test]
async fn a_denied_publication_has_no_effect_and_is_answered_as_the_version_allows() {
    for version in VERSIONS {
        let rules = vec![rule(Permission::Deny, Action::Publish, &["no/#"]), allow(&["#"])];
        let (broker, _) = broker_with_rules(rules, DenyAction::Ignore).await;
        let sink = Arc::new(Sink::default());
        broker.router.add_sink("#", sink.clone());
        let mut watcher = broker.client(version, "watcher").await;
        assert_eq!(watcher.subscribe("#", QoS::ExactlyOnce).await, [ReasonCode::GrantedQoS2]);
        let mut client = broker.client(version, "client").await;
        let denied = success_of(version, ReasonCode::NotAuthorized);

        client.publish("no/a", b"0", QoS::AtMostOnce, 0).await;
        client.publish("no/a", b"1", QoS::AtLeastOnce, 1).await;
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, denied));
        client.publish("no/a", b"2", QoS::ExactlyOnce, 2).await;
        assert_eq!(client.next().await, Seen::Ack("PUBREC", 2, denied));
        if version != Version::V5 {
            client.ack(AckKind::PubRel, 2).await;
            assert_eq!(client.next().await, Seen::Ack("PUBCOMP", 2, ReasonCode::Success));
        }
        let mut retained = publish("no/kept", b"r", QoS::AtLeastOnce, 3);
        retained.retain = true;
        client.send(&Packet::Publish(retained)).await;
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 3, denied));

        client.publish("yes", b"y", QoS::AtMostOnce, 0).await;
        assert_eq!(watcher.next().await, published("yes", b"y"), "the first thing that arrives");
        sink.has(1).await;
        assert_eq!(sink.len(), 1);
        let stats = broker.front.stats();
        assert_eq!((stats.retained_messages, stats.failed_in_sink), (0, 0));
        assert_eq!(stats.denied_publishes, 4);
    }
}

#[tokio::test]
async fn a_denied_qos_2_publication_frees_its_identifier() {
    let (broker, _) = broker_with_rules(vec![allow(&["yes"])], DenyAction::Ignore).await;
    let mut client = broker.client(Version::V5, "client").await;
    client.publish("no", b"x", QoS::ExactlyOnce, 7).await;
    assert_eq!(client.next().await, Seen::Ack("PUBREC", 7, ReasonCode::NotAuthorized));
    client.publish("yes", b"x", QoS::ExactlyOnce, 7).await;
    assert_eq!(client.next().await, Seen::Ack("PUBREC", 7, ReasonCode::NoMatchingSubscribers));
}

#[tokio::test]
async fn a_denied_publication_ends_the_connection_where_the_rules_say_so() {
    for version in VERSIONS {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let (broker, _) = broker_with_rules(vec![allow(&["yes"])], DenyAction::Disconnect).await;
            let mut client = broker.client(version, "client").await;
            client.publish("no", b"x", qos, u16::from(qos != QoS::AtMostOnce)).await;
            if version == Version::V5 {
                assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::NotAuthorized));
            }
            assert_eq!(client.next().await, Seen::Closed);
        }
    }
}

#[tokio::test]
async fn a_subscription_is_granted_only_where_a_rule_covers_it() {
    for version in VERSIONS {
        let rules = vec![rule(Permission::Allow, Action::Subscribe, &["t/${clientid}/#", "s/+"])];
        let (broker, _) = broker_with_rules(rules, DenyAction::Ignore).await;
        let mut client = broker.client(version, "me").await;
        let denied =
            if version == Version::V5 { ReasonCode::NotAuthorized } else { ReasonCode::UnspecifiedError };
        for filter in ["t/me/a", "t/me/#", "t/me", "s/+", "s/a"] {
            assert_eq!(client.subscribe(filter, QoS::AtMostOnce).await, [ReasonCode::Success], "{filter}");
        }
        for filter in ["#", "t/#", "t/+/a", "t/you/a", "s/#", "+/+", "$SYS/#"] {
            assert_eq!(client.subscribe(filter, QoS::AtMostOnce).await, [denied], "{filter}");
        }
        if version == Version::V5 {
            assert_eq!(client.subscribe("$share/g/#", QoS::AtMostOnce).await, [denied]);
        }
        client.publish("t/me/a", b"x", QoS::AtLeastOnce, 1).await;
        let publish_denied = success_of(version, ReasonCode::NotAuthorized);
        assert_eq!(
            client.next().await,
            Seen::Ack("PUBACK", 1, publish_denied),
            "subscribing is not publishing"
        );
        assert!(broker.front.stats().denied_subscribes >= 7);
    }
}

#[tokio::test]
async fn the_name_of_a_group_neither_widens_nor_narrows_a_rule() {
    let rules = vec![rule(Permission::Allow, Action::Subscribe, &["t/${clientid}/#"])];
    let (broker, _) = broker_with_rules(rules, DenyAction::Ignore).await;
    for filter in ["$share/${clientid}/t/me/a", "$share/you/t/me/+", "$share/$SYS/t/me/#", "$share/t/t/me/a"]
    {
        let mut client = broker.client(Version::V5, "me").await;
        assert_eq!(client.subscribe(filter, QoS::AtMostOnce).await, [ReasonCode::Success], "{filter}");
    }
    for filter in [
        "$share/t/me/a",
        "$share/me/t/you/a",
        "$share/t/#",
        "$share/g/t/${clientid}/a",
        "$share/g/$share/g/t/me/a",
        "$share/g/$SYS/#",
    ] {
        let mut client = broker.client(Version::V5, "me").await;
        assert_eq!(client.subscribe(filter, QoS::AtMostOnce).await, [ReasonCode::NotAuthorized], "{filter}");
    }
    // A group's name is no filter.
    for filter in ["$share/+/t/me/a", "$share/#/t/me/a", "$share//t/me/a", "$share/t+/t/me/a"] {
        let mut client = broker.client(Version::V5, "me").await;
        let options = SubscriptionOptions::default();
        client
            .send(&Packet::Subscribe(Subscribe {
                packet_identifier: 1,
                filters: vec![SubscribeFilter { filter, options }],
                ..Subscribe::default()
            }))
            .await;
        assert!(matches!(client.next().await, Seen::Disconnect(_)), "{filter}");
        assert_eq!(client.next().await, Seen::Closed, "{filter}");
    }
    broker.until(|stats| stats.subscriptions == 0).await;
}

#[tokio::test]
async fn a_client_id_with_wildcards_widens_no_rule() {
    for name in ["+", "#", "a/b"] {
        let (broker, _) = broker_with_rules(vec![allow(&["t/${clientid}"])], DenyAction::Ignore).await;
        let mut client = broker.client(Version::V5, name).await;
        for filter in ["t/+", "t/#", "t/a/b", "t/a"] {
            let reasons = client.subscribe(filter, QoS::AtMostOnce).await;
            assert_eq!(reasons, [ReasonCode::NotAuthorized], "{name} {filter}");
        }
        client.publish("t/a/b", b"x", QoS::AtLeastOnce, 1).await;
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::NotAuthorized));
    }
}

#[tokio::test]
async fn a_will_that_is_not_allowed_is_refused_with_its_connect() {
    let mut plain = rule(Permission::Allow, Action::Publish, &["w"]);
    plain.retain = Some(false);
    for version in VERSIONS {
        let (broker, _) = broker_with_rules(vec![plain.clone()], DenyAction::Ignore).await;
        for (topic, retain, reason) in [
            ("w", false, ReasonCode::Success),
            ("w", true, ReasonCode::NotAuthorized),
            ("x", false, ReasonCode::NotAuthorized),
        ] {
            let mut client = Client::open(broker.address, version).await;
            let will = Some(Will { retain, ..will(topic, b"gone") });
            let answer = client.connect(&Connect { will, ..connect(version, "client") }).await;
            assert_eq!(answer, (reason, false), "{version:?} {topic} {retain}");
        }
    }
}

#[tokio::test]
async fn new_rules_are_in_force_for_publishers_that_are_connected() {
    let (broker, access) = broker_with_rules(vec![allow(&["t"])], DenyAction::Ignore).await;
    let mut client = broker.client(Version::V5, "client").await;
    let mut reason = async |identifier| {
        client.publish("t", b"x", QoS::AtLeastOnce, identifier).await;
        match client.next().await {
            Seen::Ack("PUBACK", _, reason) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason(1).await, ReasonCode::NoMatchingSubscribers);
    access.replace_rules(vec![]);
    assert_eq!(reason(2).await, ReasonCode::NotAuthorized);
    access.replace_rules(vec![allow(&["t"])]);
    assert_eq!(reason(3).await, ReasonCode::NoMatchingSubscribers);
}

#[tokio::test]
async fn an_authentication_method_that_nobody_knows_is_refused() {
    let broker = broker().await;
    let mut client = Client::open(broker.address, Version::V5).await;
    let wanted = Connect { authentication_method: Some("GS2-KRB5"), ..connect(Version::V5, "c") };
    assert_eq!(client.connect(&wanted).await.0, ReasonCode::BadAuthenticationMethod);
    assert_eq!(client.next().await, Seen::Closed);
}

const DATABASE: &str =
    "authentication.backends = [ { type = built_in_database, scram = true, scram_iterations = 4096 } ]\n";
const NO_BANS: &str = "authentication.ban { max_failures = 0, delay = 0 }\n";

/// A broker with access from configuration text and the users `ann` and `root` with the password `right`.
async fn configured(text: &str, folder: &Path) -> (Broker, Arc<Access>) {
    let config = load_text("test", text).unwrap().value;
    let access = Access::start(Options { cost: Cost::LEAST, ..config.access_options(folder) }).unwrap();
    for name in ["ann", "root"] {
        // Only where there is a database.
        let _ = access.add_user(name.into(), b"right".to_vec(), name == "root").await;
    }
    let broker = broker_with(|options| options.access = access.clone()).await;
    (broker, access)
}

fn login<'a>(version: Version, username: &'a str, password: &'a str) -> Connect<'a> {
    Connect { username: Some(username), password: Some(password.as_bytes()), ..connect(version, "c") }
}

async fn answer(broker: &Broker, connect: &Connect<'_>) -> ReasonCode {
    let mut client = Client::open(broker.address, connect.version).await;
    client.connect(connect).await.0
}

#[tokio::test]
async fn each_version_is_told_in_its_own_words_that_it_may_not_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(&format!("{DATABASE}{NO_BANS}"), folder.path()).await;
    for version in VERSIONS {
        // MQTT-3.1.1 3.2.2.3: return codes 4 and 5; MQTT-5.0 3.2.2.2: 0x86 and 0x87.
        assert_eq!(answer(&broker, &login(version, "ann", "right")).await, ReasonCode::Success);
        assert_eq!(answer(&broker, &login(version, "ann", "wrong")).await, ReasonCode::BadUserNameOrPassword);
        assert_eq!(answer(&broker, &login(version, "eve", "right")).await, ReasonCode::BadUserNameOrPassword);
        assert_eq!(answer(&broker, &connect(version, "c")).await, ReasonCode::NotAuthorized);
    }
    let stats = broker.front.stats();
    assert_eq!((stats.authentication_failed, stats.sessions_taken_over), (9, 0));
}

#[tokio::test]
async fn what_was_sent_behind_a_connect_is_read_when_the_password_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(&format!("{DATABASE}{NO_BANS}"), folder.path()).await;
    let mut client = Client::open(broker.address, Version::V5).await;
    let mut bytes = BytesMut::new();
    Packet::Connect(Box::new(login(Version::V5, "ann", "right"))).encode(Version::V5, &mut bytes).unwrap();
    let filters = vec![SubscribeFilter { filter: "t", options: SubscriptionOptions::default() }];
    let subscribe = Subscribe { packet_identifier: 1, filters, ..Subscribe::default() };
    Packet::Subscribe(subscribe).encode(Version::V5, &mut bytes).unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client.socket, &bytes).await.unwrap();
    assert_eq!(client.next().await, Seen::ConnAck(ReasonCode::Success, false));
    assert_eq!(client.next().await, Seen::SubAck(vec![ReasonCode::Success]));
}

#[tokio::test]
async fn a_banned_address_is_told_once_and_then_closed_unread() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{DATABASE} authentication.ban {{ max_failures = 3, delay = 200ms }}");
    let (broker, access) = configured(&text, folder.path()).await;
    let wrong = login(Version::V5, "ann", "wrong");
    let started = Instant::now();
    assert_eq!(answer(&broker, &wrong).await, ReasonCode::BadUserNameOrPassword);
    assert_eq!(answer(&broker, &wrong).await, ReasonCode::BadUserNameOrPassword);
    assert!(started.elapsed() >= Duration::from_millis(200), "the second answer came late");
    let mut waiting = Client::open(broker.address, Version::V5).await;
    assert_eq!(answer(&broker, &wrong).await, ReasonCode::Banned);
    assert_eq!(waiting.connect(&login(Version::V5, "ann", "right")).await.0, ReasonCode::Banned);
    let mut late = Client::open(broker.address, Version::V5).await;
    assert_eq!(late.next().await, Seen::Closed, "without a CONNECT");
    assert_eq!(broker.front.stats().connections_banned, 1);
    assert_eq!(access.clear_bans(None), 1);
    assert_eq!(answer(&broker, &login(Version::V5, "ann", "right")).await, ReasonCode::Success);
}

#[tokio::test]
async fn beyond_the_bound_of_checks_a_client_is_told_that_the_server_is_busy() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{DATABASE}{NO_BANS} authentication.password_checks {{ max_concurrent = 1, max_waiting = 0, remember = 0 }}"
    );
    let config = load_text("test", &text).unwrap().value;
    // Hashes as slow as in earnest, so that two are under way at one time.
    let access = Access::start(config.access_options(folder.path())).unwrap();
    access.add_user("ann".into(), b"right".to_vec(), false).await.unwrap();
    let broker = broker_with(|options| options.access = access.clone()).await;
    let names: Vec<String> = (0..8).map(|number| format!("nobody-{number}")).collect();
    let connects = names.iter().map(|name| login(Version::V5, name, "x"));
    let attempts: Vec<_> = connects.collect();
    let answers =
        futures_util::future::join_all(attempts.iter().map(|connect| answer(&broker, connect))).await;
    let busy = answers.iter().filter(|reason| **reason == ReasonCode::ServerBusy).count();
    assert!((1..8).contains(&busy), "{answers:?}");
    assert_eq!(broker.front.stats().authentication_busy as usize, busy);
    assert_eq!(answer(&broker, &login(Version::V311, "ann", "right")).await, ReasonCode::Success);
}

fn token(claims: &str) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let base64 = base64::prelude::BASE64_URL_SAFE_NO_PAD;
    let message = format!("{}.{}", base64.encode(r#"{"alg":"HS256"}"#), base64.encode(claims));
    let mut mac =
        <Hmac<sha2::Sha256> as KeyInit>::new_from_slice(b"a secret of thirty-two bytes, ok").unwrap();
    mac.update(message.as_bytes());
    format!("{message}.{}", base64.encode(mac.finalize().into_bytes()))
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

const TOKENS: &str = r#"authentication.backends = [ {
  type = jwt, secret = "a secret of thirty-two bytes, ok", leeway = 0, verify_claims { sub = "${username}" }
} ]
"#;

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(&format!("{TOKENS}{NO_BANS}"), folder.path()).await;
    let short = token(&format!(r#"{{"sub":"ann","exp":{}}}"#, unix_now() + 2));
    for version in VERSIONS {
        let mut client = Client::open(broker.address, version).await;
        assert_eq!(client.connect(&login(version, "ann", &short)).await.0, ReasonCode::Success);
        if version == Version::V5 {
            assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::MaximumConnectTime));
        }
        assert_eq!(client.next().await, Seen::Closed);
        if version != Version::V5 {
            break;
        }
    }
    assert_eq!(
        answer(&broker, &login(Version::V5, "eve", &token(r#"{"sub":"ann"}"#))).await,
        ReasonCode::BadUserNameOrPassword
    );
    assert_eq!(
        answer(&broker, &login(Version::V5, "ann", &short)).await,
        ReasonCode::BadUserNameOrPassword,
        "expired"
    );
}

#[tokio::test]
async fn a_token_brings_its_own_rules() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(TOKENS, folder.path()).await;
    let mut client = Client::open(broker.address, Version::V5).await;
    let own = token(r#"{"sub":"ann","acl":{"pub":["up/${clientid}"],"sub":["down/${clientid}/#"]}}"#);
    assert_eq!(client.connect(&login(Version::V5, "ann", &own)).await.0, ReasonCode::Success);
    assert_eq!(client.subscribe("down/c/+", QoS::AtMostOnce).await, [ReasonCode::Success]);
    assert_eq!(client.subscribe("up/c", QoS::AtMostOnce).await, [ReasonCode::NotAuthorized]);
    client.publish("up/c", b"x", QoS::AtLeastOnce, 1).await;
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::NoMatchingSubscribers));
    client.publish("up/d", b"x", QoS::AtLeastOnce, 2).await;
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::NotAuthorized));
}

/// What a SCRAM client computes (RFC 5802 3).
fn scram_client(password: &str, first: &str, challenge: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};
    let base64 = base64::prelude::BASE64_STANDARD;
    let challenge = std::str::from_utf8(challenge).unwrap();
    let hmac = |key: &[u8], message: &[u8]| -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().into()
    };
    let field = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
    let salt = base64.decode(field("s=")).unwrap();
    let salted =
        pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, field("i=").parse().unwrap());
    let client_key = hmac(&salted, b"Client Key");
    let without_proof = format!("c=biws,r={}", field("r="));
    let signed = format!("{},{challenge},{without_proof}", first.strip_prefix("n,,").unwrap());
    let signature = hmac(&Sha256::digest(client_key), signed.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
    format!("{without_proof},p={}", base64.encode(proof))
}

fn auth<'a>(reason: ReasonCode, method: &'a str, data: &'a [u8]) -> Packet<'a> {
    let (method, data) = (Some(method), Some(data));
    Packet::Auth(Auth { reason, authentication_method: method, authentication_data: data, ..Auth::default() })
}

fn scram(first: &str) -> Connect<'_> {
    Connect {
        authentication_method: Some(SCRAM_SHA_256),
        authentication_data: Some(first.as_bytes()),
        ..connect(Version::V5, "c")
    }
}

/// Begins the exchange; the server's challenge.
async fn challenged(client: &mut Client, first: &str) -> Vec<u8> {
    client.send(&Packet::Connect(Box::new(scram(first)))).await;
    match client.next().await {
        Seen::Auth(ReasonCode::ContinueAuthentication, Some(method), data) if method == SCRAM_SHA_256 => data,
        other => panic!("no challenge: {other:?}"),
    }
}

/// A client that came in with SCRAM.
async fn with_scram(broker: &Broker, first: &str) -> Client {
    let mut client = Client::open(broker.address, Version::V5).await;
    let challenge = challenged(&mut client, first).await;
    let last = scram_client("right", first, &challenge);
    client.send(&auth(ReasonCode::ContinueAuthentication, SCRAM_SHA_256, last.as_bytes())).await;
    assert_eq!(client.next().await, Seen::ConnAck(ReasonCode::Success, false));
    client
}

#[tokio::test]
async fn scram_leads_in_and_the_server_proves_itself_in_connack() {
    let folder = tempfile::tempdir().unwrap();
    let rules = r#"authorization { no_match = deny, rules = [ { permission = allow, username = ann, topics = "t" } ] }"#;
    let (broker, _) = configured(&format!("{DATABASE}{NO_BANS}{rules}"), folder.path()).await;
    let mut client = with_scram(&broker, "n,,n=ann,r=abc").await;
    let (method, word) = client.last_word.clone().unwrap();
    assert!(method == SCRAM_SHA_256 && word.starts_with(b"v="));
    assert_eq!(client.subscribe("t", QoS::AtMostOnce).await, [ReasonCode::Success], "it is ann");
    assert_eq!(client.subscribe("u", QoS::AtMostOnce).await, [ReasonCode::NotAuthorized]);
}

#[tokio::test]
async fn a_scram_exchange_that_goes_wrong_ends_with_the_reason_of_the_standard() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(&format!("{DATABASE}{NO_BANS}"), folder.path()).await;
    let first = "n,,n=ann,r=abc";
    let go_on = ReasonCode::ContinueAuthentication;
    // Wrong password; somebody whom nobody knows.
    for (first, password) in [(first, "wrong"), ("n,,n=eve,r=abc", "right")] {
        let mut client = Client::open(broker.address, Version::V5).await;
        let challenge = challenged(&mut client, first).await;
        let last = scram_client(password, first, &challenge);
        client.send(&auth(go_on, SCRAM_SHA_256, last.as_bytes())).await;
        assert_eq!(client.next().await, Seen::ConnAck(ReasonCode::NotAuthorized, false));
        assert_eq!(client.next().await, Seen::Closed);
    }
    // Data that are no SCRAM.
    assert_eq!(answer(&broker, &scram("hello")).await, ReasonCode::NotAuthorized);
    // Another method in the middle (MQTT-4.12.0-5), authenticating again too early, something else than AUTH.
    let disconnect = Packet::Disconnect(Disconnect::default());
    for (packet, expected) in [
        (auth(go_on, "SCRAM-SHA-1", b"x"), Some(ReasonCode::ProtocolError)),
        (auth(ReasonCode::ReAuthenticate, SCRAM_SHA_256, b"x"), Some(ReasonCode::ProtocolError)),
        (Packet::PingReq, Some(ReasonCode::ProtocolError)),
        (disconnect, None),
    ] {
        let mut client = Client::open(broker.address, Version::V5).await;
        challenged(&mut client, first).await;
        client.send(&packet).await;
        if let Some(reason) = expected {
            assert_eq!(client.next().await, Seen::ConnAck(reason, false), "{packet:?}");
        }
        assert_eq!(client.next().await, Seen::Closed, "{packet:?}");
    }
    assert_eq!(broker.front.stats().sessions, 0);
}

#[tokio::test]
async fn an_exchange_that_stops_half_way_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_text("test", DATABASE).unwrap().value;
    let access =
        Access::start(Options { cost: Cost::LEAST, ..config.access_options(folder.path()) }).unwrap();
    let broker = broker_with(|options| {
        options.access = access;
        options.connect_timeout = Duration::from_millis(200);
    })
    .await;
    let mut client = Client::open(broker.address, Version::V5).await;
    challenged(&mut client, "n,,n=ann,r=abc").await;
    assert_eq!(client.next().await, Seen::ConnAck(ReasonCode::NotAuthorized, false));
    assert_eq!(client.next().await, Seen::Closed);
}

#[tokio::test]
async fn a_client_authenticates_again_while_its_session_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(&format!("{DATABASE}{NO_BANS}"), folder.path()).await;
    let first = "n,,n=ann,r=def";
    let mut client = with_scram(&broker, "n,,n=ann,r=abc").await;
    client.send(&auth(ReasonCode::ReAuthenticate, SCRAM_SHA_256, first.as_bytes())).await;
    let Seen::Auth(ReasonCode::ContinueAuthentication, _, challenge) = client.next().await else { panic!() };
    // Other packets go on in between (MQTT-5.0 4.12.1).
    assert_eq!(client.subscribe("t", QoS::AtMostOnce).await, [ReasonCode::Success]);
    let last = scram_client("right", first, &challenge);
    client.send(&auth(ReasonCode::ContinueAuthentication, SCRAM_SHA_256, last.as_bytes())).await;
    let Seen::Auth(ReasonCode::Success, Some(method), word) = client.next().await else { panic!() };
    assert!(method == SCRAM_SHA_256 && word.starts_with(b"v="));
    client.nothing().await;
}

#[tokio::test]
async fn authenticating_again_wrongly_ends_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _) = configured(&format!("{DATABASE}{NO_BANS}"), folder.path()).await;
    let again = ReasonCode::ReAuthenticate;
    let first = b"n,,n=ann,r=def";
    // Another method (MQTT-4.12.1-1), an answer to nothing.
    for packet in
        [auth(again, "SCRAM-SHA-1", first), auth(ReasonCode::ContinueAuthentication, SCRAM_SHA_256, first)]
    {
        let mut client = with_scram(&broker, "n,,n=ann,r=abc").await;
        client.send(&packet).await;
        assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ProtocolError));
        assert_eq!(client.next().await, Seen::Closed);
    }
    // A wrong proof; the right one of another user.
    for (user, password) in [("ann", "wrong"), ("root", "right")] {
        let first = format!("n,,n={user},r=def");
        let mut client = with_scram(&broker, "n,,n=ann,r=abc").await;
        client.send(&auth(again, SCRAM_SHA_256, first.as_bytes())).await;
        let Seen::Auth(_, _, challenge) = client.next().await else { panic!() };
        let last = scram_client(password, &first, &challenge);
        client.send(&auth(ReasonCode::ContinueAuthentication, SCRAM_SHA_256, last.as_bytes())).await;
        assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::NotAuthorized), "{user}");
        assert_eq!(client.next().await, Seen::Closed);
    }
    // No method was agreed on (MQTT-4.12.0-6).
    let mut client = Client::open(broker.address, Version::V5).await;
    assert_eq!(client.connect(&login(Version::V5, "ann", "right")).await.0, ReasonCode::Success);
    client.send(&auth(again, SCRAM_SHA_256, first)).await;
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ProtocolError));
}

#[tokio::test]
async fn a_resumed_session_keeps_only_what_its_user_may_subscribe_to_now() {
    let folder = tempfile::tempdir().unwrap();
    let rules =
        r#"authorization { no_match = deny, rules = [ { permission = allow, topics = ["a", "b"] } ] }"#;
    let (broker, access) = configured(&format!("{DATABASE}{NO_BANS}{rules}"), folder.path()).await;
    let mut ann = Client::open(broker.address, Version::V5).await;
    assert_eq!(ann.connect(&lasting("ann", "c")).await, (ReasonCode::Success, false));
    for filter in ["a", "b"] {
        assert_eq!(ann.subscribe(filter, QoS::AtMostOnce).await, [ReasonCode::Success]);
    }
    access.replace_rules(vec![allow(&["b"])]);
    let mut again = Client::open(broker.address, Version::V5).await;
    assert_eq!(again.connect(&lasting("ann", "c")).await, (ReasonCode::Success, true));
    let mut root = Client::open(broker.address, Version::V5).await;
    root.connect(&Connect { client_id: "root", ..login(Version::V5, "root", "right") }).await;
    root.publish("a", b"not any more", QoS::AtMostOnce, 0).await;
    root.publish("b", b"still", QoS::AtMostOnce, 0).await;
    assert_eq!(again.next().await, published("b", b"still"));
    assert_eq!(broker.front.stats().subscriptions, 1);
}

/// A login for a session that lasts; every password is `right`.
fn lasting<'a>(user: &'a str, client_id: &'a str) -> Connect<'a> {
    Connect { username: Some(user), password: Some(b"right"), ..persistent(Version::V5, client_id) }
}

#[tokio::test]
async fn the_session_of_a_user_is_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_text("test", &format!("{DATABASE}{NO_BANS}")).unwrap().value;
    let access =
        Access::start(Options { cost: Cost::LEAST, ..config.access_options(folder.path()) }).unwrap();
    for name in ["ann", "eve"] {
        access.add_user(name.into(), b"right".to_vec(), false).await.unwrap();
    }
    let sessions = folder.path().join("sessions.redb");
    let start = async || {
        let (access, sessions) = (access.clone(), sessions.clone());
        broker_with(|options| (options.access, options.session_store) = (access, Some(sessions))).await
    };
    let broker = start().await;
    let mut ann = Client::open(broker.address, Version::V5).await;
    assert_eq!(ann.connect(&lasting("ann", "c")).await, (ReasonCode::Success, false));
    ann.subscribe("t", QoS::AtLeastOnce).await;
    // Neither her live connection nor, later, what waits for her, before and after a restart.
    let mut broker = broker;
    for round in 0..3 {
        for version in [Version::V5, Version::V311] {
            for connect in [Connect { version, ..lasting("eve", "c") }, login(version, "eve", "right")] {
                assert_eq!(answer(&broker, &connect).await, ReasonCode::ClientIdentifierNotValid, "{round}");
            }
        }
        match round {
            0 => {
                ann.nothing().await;
                drop(ann);
                broker.until(|stats| stats.connections == 0).await;
                ann = Client::open(broker.address, Version::V5).await;
                let mut eve = Client::open(broker.address, Version::V5).await;
                eve.connect(&Connect { client_id: "eve", ..login(Version::V5, "eve", "right") }).await;
                eve.publish("t", b"for ann", QoS::AtLeastOnce, 1).await;
                assert_eq!(eve.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
            }
            1 => {
                tokio::time::timeout(PATIENCE, broker.front.stop()).await.unwrap();
                broker = start().await;
                ann = Client::open(broker.address, Version::V5).await;
            }
            _ => {}
        }
    }
    assert_eq!(ann.connect(&lasting("ann", "c")).await, (ReasonCode::Success, true));
    assert!(matches!(ann.next().await, Seen::Publish { payload, .. } if payload == b"for ann"));
    broker.front.stop().await;
}

#[tokio::test]
async fn the_connections_of_a_user_end_with_it_and_with_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, access) = configured(&format!("{DATABASE}{NO_BANS}"), folder.path()).await;
    let mut root = Client::open(broker.address, Version::V5).await;
    root.connect(&Connect { client_id: "root", ..login(Version::V5, "root", "right") }).await;
    for delete in [false, true] {
        let mut connected = Vec::new();
        for version in [Version::V5, Version::V311] {
            let client_id = format!("{version:?}");
            let mut client = Client::open(broker.address, version).await;
            let connect = Connect { client_id: &client_id, ..login(version, "ann", "right") };
            assert_eq!(client.connect(&connect).await.0, ReasonCode::Success);
            connected.push(client);
        }
        if delete {
            access.delete_user("ann".into()).await.unwrap();
        } else {
            access.set_password("ann".into(), b"right".to_vec()).await.unwrap();
        }
        for mut client in connected {
            if client.version == Version::V5 {
                assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::AdministrativeAction));
            }
            assert_eq!(client.next().await, Seen::Closed);
        }
        root.nothing().await;
    }
    assert_eq!(answer(&broker, &login(Version::V5, "ann", "right")).await, ReasonCode::BadUserNameOrPassword);
}

#[tokio::test]
async fn a_user_that_is_deleted_on_its_way_in_does_not_stay() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_text("test", &format!("{DATABASE}{NO_BANS}")).unwrap().value;
    // Hashes as slow as in earnest: the user goes while its password is looked at.
    let access = Access::start(config.access_options(folder.path())).unwrap();
    access.add_user("ann".into(), b"right".to_vec(), false).await.unwrap();
    let broker = broker_with(|options| options.access = access.clone()).await;
    let mut client = Client::open(broker.address, Version::V5).await;
    let connect = login(Version::V5, "ann", "right");
    let deletes = async {
        broker.until(|stats| stats.bytes_received > 0).await;
        // In line behind the check.
        access.delete_user("ann".into()).await.unwrap();
    };
    let (answer, ()) = tokio::join!(client.connect(&connect), deletes);
    if answer.0 == ReasonCode::Success {
        assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::AdministrativeAction));
    }
    assert_eq!(broker.front.stats().sessions, 0);
}
