//! Access over the wire: who gets in, what a client may do there, and the exact reason codes of each version.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod mqtt_front;

use std::sync::Arc;

use causeway::access::{
    Access, Authorization, DenyAction, Permission, Rule, rules::Action, rules::TopicPattern,
};
use causeway_protocol::mqtt::{AckKind, Connect, Packet, QoS, ReasonCode, Version, Will};
use mqtt_front::*;

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
