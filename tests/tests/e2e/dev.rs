//! The first thing that anybody does: `causeway dev` and what it says to try.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::kafka::free_ports;
use causeway_tests::node::{binary, causeway};
use causeway_tests::process::Process;

const SOON: Duration = Duration::from_secs(30);

/// A running `causeway dev` and how its clients reach it.
struct Dev {
    process: Process,
    mqtt_port: String,
    kafka: String,
    admin: String,
    websocket: String,
}

impl Dev {
    fn start() -> Result<Self> {
        let ports = free_ports::<4>()?.map(|port| port.to_string());
        let mut command = Command::new(binary()?);
        command.args(["dev", "--mqtt-port", &ports[0], "--kafka-port", &ports[1], "--admin-port", &ports[2]]);
        command.args(["--websocket-port", &ports[3]]);
        let process = Process::spawn("causeway dev", &mut command)?;
        process.wait_for(SOON, |line| line.contains("causeway dev is running").then_some(()))?;
        let [mqtt_port, kafka, admin, websocket] = ports;
        Ok(Self {
            process,
            mqtt_port,
            websocket,
            kafka: format!("127.0.0.1:{kafka}"),
            admin: format!("127.0.0.1:{admin}"),
        })
    }
}

#[test]
fn dev_opens_a_websocket_or_says_that_its_port_is_taken() -> Result<()> {
    let dev = Dev::start()?;
    let url = format!("ws://127.0.0.1:{}/mqtt", dev.websocket);
    dev.process.wait_for(SOON, |line| line.contains(&url).then_some(()))?;
    let socket = std::net::TcpStream::connect(format!("127.0.0.1:{}", dev.websocket));
    ensure!(socket.is_ok(), "{socket:?}");

    let [mqtt, kafka, admin] = free_ports::<3>()?.map(|port| port.to_string());
    let mut command = Command::new(binary()?);
    command.args(["dev", "--mqtt-port", &mqtt, "--kafka-port", &kafka, "--admin-port", &admin]);
    // The port that the first one has.
    let second = Process::spawn("causeway dev", command.args(["--websocket-port", &dev.websocket]))?;
    let said = format!("not opened, port {} is taken", dev.websocket);
    second.wait_for(SOON, |line| line.contains(&said).then_some(()))
}

#[test]
fn dev_carries_both_ways_with_its_own_clients_and_counts_it() -> Result<()> {
    let dev = Dev::start()?;
    let message = r#"{ "msg": "Hello Kafka" }"#;
    let published =
        causeway(&["dev", "publish", "-t", "t/1", "-m", message, "--count", "3", "--port", &dev.mqtt_port])?
            .successful()?;
    ensure!(published.stdout.contains('3'), "{}", published.stdout);
    let consumed = causeway(&[
        "dev",
        "consume",
        "--from-beginning",
        "-n",
        "3",
        "--timeout",
        "20",
        "--kafka",
        &dev.kafka,
    ])?
    .successful()?;
    ensure!(consumed.stdout.matches("Hello Kafka").count() == 3, "{}", consumed.stdout);

    let mut subscribe = Command::new(binary()?);
    subscribe.args(["dev", "subscribe", "-n", "1", "--timeout", "25", "--port", &dev.mqtt_port]);
    let subscriber = Process::spawn("subscribe", &mut subscribe)?;
    subscriber.wait_for(SOON, |line| line.contains("from-kafka").then_some(()))?;
    causeway(&["dev", "produce", "-m", "Hello devices", "--kafka", &dev.kafka])?.successful()?;
    subscriber.wait_for(SOON, |line| line.contains("Hello devices").then_some(()))?;

    let stats = causeway(&["ctl", "stats", "--admin", &dev.admin])?.successful()?;
    ensure!(stats.stdout.contains("holds for every row"), "{}", stats.stdout);
    ensure!(dev.process.terminate(SOON)?.success(), "an orderly end");
    Ok(())
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_changes_it() -> Result<()> {
    let dev = Dev::start()?;
    let kafka_port = dev.kafka.rsplit_once(':').map_or("", |(_, port)| port);
    let [free, other] = free_ports::<2>()?.map(|port| port.to_string());
    for (taken, arguments) in [
        ("--mqtt-port", ["--mqtt-port", &dev.mqtt_port, "--kafka-port", &free, "--admin-port", &other]),
        ("--kafka-port", ["--mqtt-port", &free, "--kafka-port", kafka_port, "--admin-port", &other]),
    ] {
        let refused = causeway(&[&["dev"][..], &arguments[..]].concat())?;
        ensure!(!refused.status.success() && refused.stderr.contains(taken), "{}", refused.stderr);
    }
    Ok(())
}
