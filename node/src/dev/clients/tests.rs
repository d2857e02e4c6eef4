//! The clients against a scripted MQTT broker (on our own codec: the other opinion) and the development
//! Kafka.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use causeway_protocol::mqtt::{
    AckKind, ConnAck, Decoded, Decoder, Packet, Publish, QoS, ReasonCode, Role, SubAck, Version, encode_ack,
    encode_publish, topic,
};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{ConsumeArgs, ProduceArgs, PublishArgs, SubscribeArgs, readable};
use crate::dev_kafka::{DevKafka, Options, TopicSpec};

#[derive(Parser)]
struct Line<A: clap::Args> {
    #[command(flatten)]
    args: A,
}

fn parse<A: clap::Args>(line: &[&str]) -> A {
    Line::<A>::try_parse_from([&["client"], line].concat()).unwrap_or_else(|error| panic!("{error}")).args
}

fn refused<A: clap::Args>(line: &[&str]) -> String {
    match Line::<A>::try_parse_from([&["client"], line].concat()) {
        Ok(_) => panic!("{line:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

/// What the broker does when it is not merely polite.
#[derive(Clone, Copy, Default)]
struct Script {
    refuse: Option<ReasonCode>,
    /// Acknowledges this many messages and no more.
    acknowledge: Option<usize>,
    /// Sends this many messages with this QoS to a subscriber.
    messages: u16,
    qos: QoS,
    fail_subscription: bool,
}

/// Serves one client and tells what was published.
async fn broker(script: Script) -> (SocketAddr, JoinHandle<Vec<(String, Vec<u8>, QoS, bool)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut decoder = Decoder::new(Role::Server, 1 << 20);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        let mut published = Vec::new();
        let mut unfinished = VecDeque::new();
        loop {
            let mut done = 0;
            while let Decoded::Packet { packet, consumed } = decoder.decode(&input[done..]).unwrap() {
                done += consumed;
                let may_acknowledge = script.acknowledge.is_none_or(|most| published.len() < most);
                match packet {
                    Packet::Connect(connect) => {
                        assert_eq!(connect.version, Version::V311);
                        decoder.version = Some(Version::V311);
                        let reason = script.refuse.unwrap_or_default();
                        let connack = ConnAck { reason, ..ConnAck::default() };
                        Packet::ConnAck(Box::new(connack)).encode(Version::V311, &mut output).unwrap();
                    }
                    Packet::Publish(publish) => {
                        let identifier = publish.packet_identifier;
                        let kind = match publish.qos {
                            QoS::AtMostOnce => None,
                            QoS::AtLeastOnce => Some(AckKind::PubAck),
                            QoS::ExactlyOnce => Some(AckKind::PubRec),
                        };
                        if let Some(kind) = kind.filter(|_| may_acknowledge) {
                            encode_ack(&mut output, Version::V311, kind, identifier, ReasonCode::Success);
                        }
                        published.push((
                            publish.topic.to_owned(),
                            publish.payload.to_vec(),
                            publish.qos,
                            publish.retain,
                        ));
                    }
                    Packet::PubRel(release) => {
                        let identifier = release.packet_identifier;
                        encode_ack(
                            &mut output,
                            Version::V311,
                            AckKind::PubComp,
                            identifier,
                            ReasonCode::Success,
                        );
                    }
                    Packet::Subscribe(subscribe) => {
                        let reason = if script.fail_subscription {
                            ReasonCode::NotAuthorized
                        } else {
                            ReasonCode::GrantedQoS2
                        };
                        let suback = SubAck {
                            packet_identifier: subscribe.packet_identifier,
                            reasons: subscribe.filters.iter().map(|_| reason).collect(),
                            ..SubAck::default()
                        };
                        Packet::SubAck(suback).encode(Version::V311, &mut output).unwrap();
                        for number in 1..=script.messages {
                            let payload = format!("message {number}");
                            let publish = Publish {
                                qos: script.qos,
                                topic: "from-kafka",
                                packet_identifier: number,
                                payload: payload.as_bytes(),
                                ..Publish::default()
                            };
                            encode_publish(&mut output, Version::V311, &publish).unwrap();
                            unfinished.push_back(number);
                        }
                    }
                    Packet::PubAck(ack) => assert_eq!(unfinished.pop_front(), Some(ack.packet_identifier)),
                    Packet::PubRec(ack) => {
                        let identifier = ack.packet_identifier;
                        // Once more before it is released: it must not be shown twice.
                        let again = Publish {
                            dup: true,
                            qos: QoS::ExactlyOnce,
                            topic: "from-kafka",
                            packet_identifier: identifier,
                            payload: b"again",
                            ..Publish::default()
                        };
                        if unfinished.pop_front() == Some(identifier) {
                            encode_publish(&mut output, Version::V311, &again).unwrap();
                        } else {
                            encode_ack(
                                &mut output,
                                Version::V311,
                                AckKind::PubRel,
                                identifier,
                                ReasonCode::Success,
                            );
                        }
                    }
                    Packet::PubComp(_) => {}
                    Packet::PingReq => Packet::PingResp.encode(Version::V311, &mut output).unwrap(),
                    Packet::Disconnect(_) => return published,
                    other => panic!("{other:?}"),
                }
            }
            let _ = input.split_to(done);
            // A client that has gone away says so by the next read.
            let _ = stream.write_all_buf(&mut output).await;
            if stream.read_buf(&mut input).await.unwrap_or(0) == 0 {
                return published;
            }
        }
    });
    (address, task)
}

fn text(out: Vec<u8>) -> String {
    String::from_utf8(out).unwrap()
}

async fn publish(address: SocketAddr, line: &[&str]) -> Result<String, String> {
    let port = address.port().to_string();
    let mut args: PublishArgs = parse(&[&["--port", &port], line].concat());
    args.timeout = args.timeout.min(Duration::from_secs(5));
    let mut out = Vec::new();
    let result = timeout(Duration::from_secs(20), args.run_to(&mut out)).await.unwrap();
    result.map(|()| text(out)).map_err(|error| format!("{error:#}"))
}

async fn subscribe(address: SocketAddr, line: &[&str]) -> Result<String, String> {
    let port = address.port().to_string();
    let args: SubscribeArgs = parse(&[&["--port", &port], line].concat());
    let mut out = Vec::new();
    let result = timeout(Duration::from_secs(20), args.run_to(&mut out)).await.unwrap();
    result.map(|()| text(out)).map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn every_publish_is_acknowledged_with_every_qos() {
    for (qos, wanted, said) in [
        ("0", QoS::AtMostOnce, "QoS 0 is never acknowledged"),
        ("1", QoS::AtLeastOnce, "250 acknowledged"),
        ("2", QoS::ExactlyOnce, "250 acknowledged"),
    ] {
        let (address, published) = broker(Script::default()).await;
        let out = publish(address, &["--qos", qos, "--count", "250", "-m", "x", "--retain"]).await.unwrap();
        assert_eq!(out, format!("published 250 messages to t/1 with QoS {qos}: {said}\n"));
        let published = published.await.unwrap();
        assert_eq!(published, vec![("t/1".to_owned(), b"x".to_vec(), wanted, true); 250]);
    }
}

#[tokio::test]
async fn a_missing_acknowledgement_is_an_error_that_says_how_many_there_were() {
    let (address, _published) = broker(Script { acknowledge: Some(2), ..Script::default() }).await;
    let error = publish(address, &["--count", "5", "--timeout", "0.3"]).await.unwrap_err();
    assert!(
        error.starts_with("2 of 5 messages to t/1 acknowledged: no acknowledgement for 300ms"),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_broker_one_learns_how_to_start_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for error in [publish(address, &[]).await.unwrap_err(), subscribe(address, &[]).await.unwrap_err()] {
        assert!(error.contains("start `causeway dev`") && error.contains("--port"), "{error}");
    }
    let args: ConsumeArgs = parse(&["--kafka", &address.to_string()]);
    let error = args.run_to(&mut Vec::new()).await.unwrap_err().to_string();
    assert!(error.contains("start `causeway dev`") && error.contains("--kafka"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_explained() {
    let (address, _published) =
        broker(Script { refuse: Some(ReasonCode::NotAuthorized), ..Script::default() }).await;
    let error = publish(address, &[]).await.unwrap_err();
    assert_eq!(error, "the broker refuses the connection: this client is not allowed to connect");
    let (address, _published) = broker(Script { fail_subscription: true, ..Script::default() }).await;
    let error = subscribe(address, &["-t", "secret/#"]).await.unwrap_err();
    assert_eq!(error, "the broker refuses the topic filter `secret/#`");
}

#[tokio::test]
async fn a_subscriber_shows_each_message_once_with_every_qos() {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (address, _published) = broker(Script { messages: 3, qos, ..Script::default() }).await;
        let out = subscribe(address, &["-n", "3", "--qos", "2", "--timeout", "10"]).await.unwrap();
        let number = qos as u8;
        let expected =
            [1, 2, 3].map(|message| format!("from-kafka (QoS {number}): message {message}\n")).concat();
        assert_eq!(out, expected);
    }
}

#[tokio::test]
async fn too_few_messages_in_time_are_an_error_and_any_number_is_not() {
    let script = Script { messages: 2, ..Script::default() };
    let (address, _published) = broker(script).await;
    let error = subscribe(address, &["-n", "3", "--timeout", "0.5"]).await.unwrap_err();
    assert_eq!(error, "only 2 of 3 messages arrived in time");
    let (address, _published) = broker(script).await;
    let out = subscribe(address, &["--timeout", "0.5"]).await.unwrap();
    assert_eq!(out.lines().count(), 2);
}

#[tokio::test]
async fn wrong_topics_are_refused_before_anything_is_sent() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let error = publish(nowhere, &["-t", "t/#"]).await.unwrap_err();
    assert!(error.contains("`t/#` is no topic name"), "{error}");
    let error = subscribe(nowhere, &["-t", "a", "-t", "#/a"]).await.unwrap_err();
    assert!(error.contains("`#/a` is no topic filter"), "{error}");
    assert!(topic::validate_topic_filter("#/a", 128).is_err());
}

#[test]
fn the_command_line_is_checked_and_has_the_defaults_of_the_development_mode() {
    let args: PublishArgs = parse(&[]);
    assert_eq!((args.host.as_str(), args.port, args.topic.as_str(), args.qos), ("127.0.0.1", 1883, "t/1", 1));
    let args: SubscribeArgs = parse(&[]);
    assert_eq!(
        (args.host.as_str(), args.port, &args.topic[..]),
        ("127.0.0.1", 1883, &["from-kafka".to_owned()][..])
    );
    let args: ProduceArgs = parse(&[]);
    assert_eq!((args.kafka.as_str(), args.topic.as_str()), ("127.0.0.1:9092", "testtopic-out"));
    let args: ConsumeArgs = parse(&[]);
    assert_eq!((args.kafka.as_str(), args.topic.as_str()), ("127.0.0.1:9092", "testtopic-in"));
    assert!(refused::<PublishArgs>(&["--qos", "3"]).contains("3 is not in 0..=2"));
    assert!(refused::<PublishArgs>(&["--stdin", "--count", "2"]).contains("cannot be used with"));
    assert!(refused::<SubscribeArgs>(&["--timeout=-1"]).contains("not a number of seconds above 0"));
    assert!(refused::<SubscribeArgs>(&["-n", "0"]).contains("0 is not in 1.."));
    assert!(refused::<ProduceArgs>(&["--header", "name"]).contains("NAME=VALUE"));
}

#[test]
fn a_message_cannot_steer_the_terminal() {
    assert_eq!(readable(b"plain \xC3\xA4"), "plain ä");
    assert_eq!(readable(b"\x1B[2J\n"), "\\u{1b}[2J\\n");
    assert_eq!(readable(b"\xFF\x00"), "0xff00");
    assert_eq!(readable(b""), "");
}

async fn kafka() -> DevKafka {
    let options =
        Options::brokers(1).topic(TopicSpec::new("testtopic-out", 3)).topic(TopicSpec::new("other", 1));
    DevKafka::start(options).await.unwrap()
}

async fn produce(kafka: &DevKafka, line: &[&str]) -> Result<String, String> {
    let args: ProduceArgs = parse(&[&["--kafka", &kafka.bootstrap()], line].concat());
    let mut out = Vec::new();
    args.run_to(&mut out).await.map(|()| text(out)).map_err(|error| format!("{error:#}"))
}

async fn consume(kafka: &DevKafka, line: &[&str]) -> Result<String, String> {
    let args: ConsumeArgs = parse(&[&["--kafka", &kafka.bootstrap()], line].concat());
    let mut out = Vec::new();
    args.run_to(&mut out).await.map(|()| text(out)).map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn what_was_produced_is_consumed_with_key_and_headers() {
    let kafka = kafka().await;
    let line = [
        "--partition",
        "1",
        "-k",
        "device",
        "-m",
        "hot",
        "--header",
        "a=1=2",
        "--header",
        "b=",
        "--count",
        "2",
    ];
    let out = produce(&kafka, &line).await.unwrap();
    assert_eq!(out, "wrote 2 records to testtopic-out: partition 1, offsets 0 to 1\n");
    let line = ["-t", "testtopic-out", "--from-beginning", "-n", "2", "--timeout", "10"];
    let out = consume(&kafka, &line).await.unwrap();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 10, "{out}");
    assert!(lines[0].starts_with("partition 1, offset 0, 2") && lines[0].ends_with(" UTC"), "{out}");
    assert_eq!(
        lines[1..5],
        ["  key:    device", "  header: a = 1=2", "  header: b = ", "  value:  hot"],
        "{out}"
    );
    assert!(lines[5].starts_with("partition 1, offset 1, 2"), "{out}");
    kafka.stop().await;
}

#[tokio::test]
async fn a_key_goes_where_every_kafka_client_puts_it() {
    let kafka = kafka().await;
    // Kafka's murmur2 of "device", its sign cleared, leaves this remainder by 3.
    let out = produce(&kafka, &["-k", "device"]).await.unwrap();
    assert_eq!(out, "wrote 1 record to testtopic-out: partition 0, offset 0\n");
    let without_key = produce(&kafka, &["-t", "other"]).await.unwrap();
    assert_eq!(without_key, "wrote 1 record to other: partition 0, offset 0\n");
    kafka.stop().await;
}

#[tokio::test]
async fn a_topic_or_partition_that_does_not_exist_is_named_with_what_does() {
    let kafka = kafka().await;
    for error in [
        produce(&kafka, &["-t", "nope"]).await.unwrap_err(),
        consume(&kafka, &["-t", "nope"]).await.unwrap_err(),
    ] {
        assert!(
            error.contains("no topic `nope`") && error.contains("testtopic-out") && error.contains("--topic"),
            "{error}"
        );
    }
    let error = produce(&kafka, &["--partition", "7"]).await.unwrap_err();
    assert_eq!(error, "topic `testtopic-out` has no partition 7: it has 0, 1, 2");
    let error = produce(&kafka, &["--header", "a=1", "--header", "a=2"]).await.unwrap_err();
    assert!(error.contains("header `a` is given twice"), "{error}");
    let error = consume(&kafka, &["-t", "other", "-n", "1", "--timeout", "0.3"]).await.unwrap_err();
    assert_eq!(error, "only 0 of 1 record arrived in time");
    kafka.stop().await;
}
