//! `causeway-bench`: the load generator.
//!
//! Each scenario prints what it did and measured for people, or with `--json` as one JSON object, and
//! ends with a non-zero status when a message was lost, doubled, damaged or out of order.

mod compare;
mod connect;
mod kafka_out;
mod load;
mod loads;
mod report;
mod server;
mod soak;
mod stored;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// Load generator for Causeway, and for any MQTT broker.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
    /// Threads of the generator.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
    /// Process id of the server: its CPU time and memory are measured. May be given several times; they are
    /// added up.
    #[arg(long, global = true)]
    server_pid: Vec<u32>,
}

#[derive(Subcommand)]
enum Scenario {
    /// Publish through a producer bridge and read the Kafka topic back.
    MqttToKafka(load::MqttToKafka),
    /// Publish to subscribers: fan-in (one subscriber), fan-out (one publisher) or between.
    MqttToMqtt(load::MqttToMqtt),
    /// Open connections, and hold them idle.
    Connect(connect::Connect),
    /// Open and close connections as fast as the server takes them.
    Churn(connect::Churn),
    /// Load a broker with a mixture for minutes and watch its memory, which must stay flat.
    Soak(soak::Soak),
    /// Start a node that has many stored sessions with messages: how long it takes, and its memory then.
    StoredSessions(stored::StoredSessions),
    /// Put the same loads on several brokers, each started for it, and print a table.
    Brokers(compare::Brokers),
    /// Put the same messages into Kafka through several systems, each started for it, and print a table.
    KafkaOut(kafka_out::KafkaOut),
    /// Produce with librdkafka alone.
    #[cfg(feature = "rdkafka")]
    Produce(kafka_out::produce::Produce),
    /// Forward from a broker to Kafka with librdkafka.
    #[cfg(feature = "rdkafka")]
    Forward(kafka_out::forward::Forward),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut builder = match cli.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = builder.enable_all().build()?;
    let report = runtime.block_on(async {
        match &cli.scenario {
            Scenario::MqttToKafka(scenario) => load::mqtt_to_kafka(scenario, &cli.server_pid).await.map(Some),
            Scenario::MqttToMqtt(scenario) => load::mqtt_to_mqtt(scenario, &cli.server_pid).await.map(Some),
            Scenario::Connect(scenario) => connect::connect(scenario, &cli.server_pid).await.map(Some),
            Scenario::Churn(scenario) => connect::churn_connections(scenario, &cli.server_pid).map(Some),
            Scenario::Soak(scenario) => soak::soak(scenario, &cli.server_pid).await.map(|()| None),
            Scenario::StoredSessions(scenario) => stored::stored_sessions(scenario).await.map(Some),
            Scenario::Brokers(scenario) => compare::compare(scenario, cli.json).await.map(|()| None),
            Scenario::KafkaOut(scenario) => kafka_out::kafka_out(scenario).await.map(|()| None),
            #[cfg(feature = "rdkafka")]
            Scenario::Produce(scenario) => kafka_out::produce::produce(scenario).await.map(Some),
            #[cfg(feature = "rdkafka")]
            Scenario::Forward(scenario) => kafka_out::forward::forward(scenario).await.map(|()| None),
        }
    })?;
    let Some(report) = report else { return Ok(()) };
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report::print(&report);
    }
    if !report.is_good() {
        bail!("not every message came once, whole and in order: see the check above");
    }
    Ok(())
}
