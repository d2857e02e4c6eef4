//! The ground the other scenarios stand on: the Kafkas themselves, other people's clients against them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_tests::broker::Broker;
use causeway_tests::kafka::{console_consume, console_produce};
use causeway_tests::oracle::Oracle;
use causeway_tests::{on_every_kafka, unique};

const SOON: Duration = Duration::from_secs(30);

fn values(oracle: &Oracle, count: u64) -> Result<Vec<String>> {
    let records = oracle.wait_for(count, SOON)?;
    Ok(records
        .iter()
        .map(|(_, record)| {
            String::from_utf8_lossy(record.record.value.as_deref().unwrap_or_default()).into_owned()
        })
        .collect())
}

on_every_kafka! {
    /// Kafka's own console tools write, rskafka reads, and the console consumer reads the same.
    fn console_tools_and_rskafka_agree(target) {
        let kafka = target.shared()?;
        let Some(tools) = kafka.tools()? else { return Ok(()) };
        let topic = unique("ground");
        kafka.create_topic(&topic, 1)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        console_produce(&tools, &kafka.bootstrap(), &topic, &["k1:one", "k2:two"], Some(":"))?;
        assert_eq!(values(&oracle, 2)?, ["one", "two"]);
        let records = oracle.records()?;
        let (_, first) = records.first().context("a first record")?;
        assert_eq!(first.record.key.as_deref(), Some(&b"k1"[..]));
        assert_eq!(console_consume(&tools, &kafka.bootstrap(), &topic, 2)?, ["one", "two"]);
        Ok(())
    }

    /// A Kafka that is taken away comes back on the same port with what it had.
    fn a_kafka_comes_back_with_its_records(target) {
        let mut kafka: Broker = target.own()?;
        let topic = unique("ground");
        kafka.create_topic(&topic, 2)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let Some(tools) = kafka.tools()? else { return Ok(()) };
        console_produce(&tools, &kafka.bootstrap(), &topic, &["before"], None)?;
        oracle.wait_for(1, SOON)?;
        let address = kafka.bootstrap();
        kafka.stop()?;
        ensure!(std::net::TcpStream::connect(&address).is_err(), "somebody still listens on {address}");
        kafka.start_again()?;
        assert_eq!(kafka.bootstrap(), address);
        assert_eq!(values(&oracle, 1)?, ["before"]);
        Ok(())
    }
}
