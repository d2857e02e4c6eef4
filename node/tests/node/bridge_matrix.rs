//! Every way into Kafka with every way to publish and to choose a partition.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use crate::bridge_support::*;
use causeway::dev_kafka::{DevKafka, Options, Sasl, Tls, TopicSpec};
use causeway::flow::Outcome;
use causeway_protocol::kafka::partitioner::KeyHash;
use rcgen::generate_simple_self_signed;

const USER: (&str, &str) = ("a bridge", "pass,word=");

fn tls() -> Tls {
    let own = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    Tls { certificate: own.cert.pem(), key: own.signing_key.serialize_pem(), ..Tls::default() }
}

/// P3, P20. Kerberos is in `tests/tests/kerberos.rs`, all of it on Apache Kafka in
/// `tests/tests/e2e/security.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn every_login_transport_mode_and_strategy_carries_records() {
    const PARTITIONS: i32 = 4;
    for over_tls in [false, true] {
        for mechanism in [None, Some("plain"), Some("scram_sha_256"), Some("scram_sha_512")] {
            let options = Options {
                sasl: mechanism.map(|_| Sasl::user(USER.0, USER.1)),
                tls: over_tls.then(tls),
                auto_create: false,
                ..Options::default()
            };
            let kafka = DevKafka::start(options.topic(TopicSpec::new("in", PARTITIONS))).await.unwrap();
            let login = mechanism.map_or("authentication = none".to_owned(), |mechanism| {
                let (user, password) = USER;
                format!("authentication {{ mechanism = {mechanism}, username = \"{user}\", password = \"{password}\" }}")
            });
            let more = format!("{login}\nssl.enable = {over_tls}");
            let mut published = 0;
            for mode in ["", "query_mode = async", "query_mode = sync"] {
                for (strategy, hash) in [
                    ("random", None),
                    ("key_dispatch", Some(KeyHash::Murmur2)),
                    ("key_dispatch_phash2", Some(KeyHash::Phash2)),
                ] {
                    let case = format!("{mechanism:?}, TLS {over_tls}, {mode}, {strategy}");
                    let settings = format!(
                        "topic = in, partition_strategy = {strategy}\n{mode}\n\
                         message {{ key = \"${{topic}}\", value = \"${{payload}}\" }}"
                    );
                    let node = Node::start_with(&kafka.bootstrap(), &more, &settings).await;
                    for key in ["t/a", "t/b", "t/c"] {
                        assert_eq!(node.publish(key, case.as_bytes()).await, Outcome::Success, "{case}");
                    }
                    published += 3;
                    until("all are written", || node.ledger().success == 3).await;
                    let all = read(&kafka, "in", PARTITIONS);
                    assert_eq!(all.len(), published, "{case}");
                    let ours: Vec<_> =
                        all.iter().filter(|read| read.value.as_deref() == Some(&*case)).collect();
                    assert_eq!(ours.len(), 3, "{case}");
                    for read in ours {
                        let key = read.key.as_deref().unwrap();
                        let wanted = hash.and_then(|hash| hash.partition(key.as_bytes(), PARTITIONS as u32));
                        assert!(wanted.is_none_or(|wanted| wanted == read.partition as u32), "{case}: {key}");
                    }
                    node.stop().await;
                }
            }
            kafka.stop().await;
        }
    }
}
