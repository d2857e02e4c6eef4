//! The user guide's "Test the Bridge", with the guide's own topics, and both ways.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use causeway_tests::broker::Broker;
use causeway_tests::clients::Client;
use causeway_tests::kafka::{Tool, console_consume, console_produce, run_tool};
use causeway_tests::node::Node;
use causeway_tests::oracle::Oracle;
use causeway_tests::process::{self, Process};
use causeway_tests::{eventually, need, on_every_kafka};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// The guide's producer bridge and its topic mapping, without what only an encrypted cluster needs.
fn bridges(bootstrap: &str) -> String {
    format!(
        r#"
        bridges.kafka.kproducer {{
          bootstrap_hosts = "{bootstrap}"
          connect_timeout = "5s"
          enable = true
          mqtt_topic = "t/#"
          kafka {{
            buffer {{ memory_overload_protection = true, mode = "memory", per_partition_limit = "2GB" }}
            compression = "no_compression"
            max_batch_bytes = "896KB"
            max_inflight = 10
            message {{ key = "${{.clientid}}", timestamp = "${{.timestamp}}", value = "${{.}}" }}
            partition_count_refresh_interval = "60s"
            partition_strategy = "random"
            required_acks = "all_isr"
            topic = "testtopic-in"
          }}
          metadata_request_timeout = "5s"
          min_metadata_refresh_interval = "3s"
          socket_opts {{ nodelay = true, recbuf = "1024KB", sndbuf = "1024KB" }}
        }}
        bridges.kafka_consumer.my_consumer {{
          bootstrap_hosts = "{bootstrap}"
          connect_timeout = 5s
          kafka {{ max_batch_bytes = 896KB, offset_commit_interval_seconds = 3, offset_reset_policy = earliest }}
          topic_mapping = [
            {{ kafka_topic = "testtopic-out", mqtt_topic = "from-kafka", qos = 1, payload_template = "${{.}}" }}
          ]
          key_encoding_mode = none
          value_encoding_mode = none
        }}
        "#
    )
}

fn create_topics(kafka: &Broker) -> Result<()> {
    for topic in ["testtopic-in", "testtopic-out"] {
        match kafka.tools()? {
            // As the guide does it.
            Some(tools) => {
                run_tool(&tools, Tool::Topics, &kafka.bootstrap(), &["--create", "--topic", topic], b"")?
                    .successful()?;
            }
            None => kafka.create_topic(topic, 1)?,
        }
    }
    Ok(())
}

fn publish(mut command: Command, arguments: &[&str]) -> Result<()> {
    process::run(command.args(arguments), b"", SOON)?.successful()?;
    Ok(())
}

on_every_kafka! {
    /// P1. `mqttx pub -i emqx_c -t t/1 -m '{ "msg": "Hello Kafka" }'` and its way into `testtopic-in`, then
    /// the way from `testtopic-out` to a subscriber.
    fn the_guides_test_of_the_bridge(target) {
        let kafka = target.shared()?;
        create_topics(&kafka)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), "testtopic-in")?;
        let node = Node::start(&bridges(&kafka.bootstrap()))?;
        let hello = r#"{ "msg": "Hello Kafka" }"#;
        let server = ["-h", "127.0.0.1", "-p", node.mqtt_port()];

        let mut clients = Vec::new();
        if let Some(mut mqtt_js) = Client::MqttJs.command()? {
            mqtt_js.arg("pub");
            clients.push(("emqx_c", mqtt_js));
        }
        if let Some(mosquitto) = Client::MosquittoPub.command()? {
            clients.push(("mosquitto", mosquitto));
        }
        let ids: Vec<&str> = clients.iter().map(|(id, _)| *id).collect();
        for (id, command) in clients {
            publish(command, &[&["-i", id, "-t", "t/1", "-q", "1", "-m", hello], &server[..]].concat())?;
        }
        oracle.wait_for(ids.len() as u64, SOON)?;

        if let Some(tools) = kafka.tools()? {
            let lines = console_consume(&tools, &kafka.bootstrap(), "testtopic-in", ids.len())?;
            for (line, id) in lines.iter().zip(&ids) {
                let record: Value = serde_json::from_str(line).with_context(|| line.clone())?;
                assert_eq!(record["payload"], hello, "{line}");
                assert_eq!(record["topic"], "t/1", "{line}");
                assert_eq!(record["clientid"], *id, "{line}");
                assert_eq!(record["qos"], 1, "{line}");
            }
        }
        let books = node.settled("kafka:kproducer", SOON)?;
        assert_eq!((books.matched, books.success), (ids.len() as u64, ids.len() as u64), "{books:?}");

        let (Some(mut subscriber), Some(tools)) = (Client::MosquittoSub.command()?, kafka.tools()?) else {
            return Ok(());
        };
        subscriber.args(server).args(["-t", "from-kafka", "-q", "1", "-d"]);
        let subscriber = Process::spawn("mosquitto_sub", &mut subscriber)?;
        subscriber.wait_for(SOON, |line| line.contains("SUBACK").then_some(()))?;
        console_produce(&tools, &kafka.bootstrap(), "testtopic-out", &["key:value"], Some(":"))?;
        let line = subscriber.wait_for(SOON, |line| line.starts_with("{\"value\"").then(|| line.to_owned()))?;
        let message: Value = serde_json::from_str(&line)?;
        let keys: Vec<&String> = message.as_object().context("an object")?.keys().collect();
        assert_eq!(keys, ["value", "ts_type", "ts", "topic", "offset", "key", "headers"], "{line}");
        assert_eq!(message["value"], "value");
        assert_eq!(message["ts_type"], "create");
        assert_eq!(message["topic"], "testtopic-out");
        assert_eq!(message["offset"], 0);
        assert_eq!(message["key"], "key");
        assert_eq!(message["headers"], serde_json::json!({}));
        eventually(SOON, || {
            let books = node.ledger("kafka_consumer:my_consumer")?;
            need(books.received == 1 && books.success == 1, || format!("{books:?}"))
        })?;
        node.check_books()
    }
}
