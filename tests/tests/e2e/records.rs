//! What the bridges' templates cannot write yet: headers, null keys, null values. Written with the node's own
//! producer, read by rskafka and kcat.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway::flow::{Accepted, WakeList};
use causeway::kafka::client::{Address, Client as Kafka, ClientOptions};
use causeway::kafka::producer::{TopicProducer, TopicProducerOptions};
use causeway_benches::topic;
use causeway_protocol::kafka::batch::{Compression, Header, Record};
use causeway_tests::clients::Client;
use causeway_tests::{block_on, on_every_kafka, process, unique};
use rskafka::client::partition::UnknownTopicHandling;

const SOON: Duration = Duration::from_secs(30);

/// Appends records in one batch and waits until Kafka has them.
fn write(bootstrap: &str, topic: &str, compression: Compression, records: &[Record<'_>]) -> Result<()> {
    let (host, port) = bootstrap.rsplit_once(':').context("HOST:PORT")?;
    let address = Address::new(host, port.parse()?);
    block_on(async {
        let client = Kafka::new(ClientOptions::new(vec![address]));
        let options = TopicProducerOptions { compression, ..TopicProducerOptions::new(topic) };
        let producer = TopicProducer::start(client, options);
        let mut wakes = WakeList::default();
        for record in records {
            ensure!(matches!(producer.append(record, None, &mut wakes), Accepted::Taken), "not taken");
        }
        wakes.wake_all();
        let written = async {
            while producer.ledger().success < records.len() as u64 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, written).await.with_context(|| format!("{:?}", producer.ledger()))?;
        Ok(())
    })
}

fn header<'a>(key: &'a str, value: Option<&'a [u8]>) -> Header<'a> {
    Header { key, value }
}

on_every_kafka! {
    /// rskafka, whose headers are a map, sees each; kcat sees order, duplicates and nulls as well.
    fn headers_nulls_and_timestamps_are_read_as_they_were_written(target) {
        let kafka = target.shared()?;
        let bootstrap = kafka.bootstrap();
        for compression in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let topic = unique("parts");
            kafka.create_topic(&topic, 1)?;
            let headers = [header("a", Some(b"1")), header("empty", Some(b"")), header("z", Some("grün".as_bytes()))];
            let records = [
                Record { timestamp: 1_700_000_000_123, key: None, value: Some(b"no key"), headers: &headers },
                Record { timestamp: 1_600_000_000_000, key: Some(b"k"), value: None, headers: &[] },
                Record { timestamp: 1_700_000_000_124, key: Some(b""), value: Some(b""), headers: &headers[..1] },
            ];
            write(&bootstrap, &topic, compression, &records)?;
            let read = block_on(async {
                let client = topic::client(&bootstrap, SOON).await?;
                let partition = client.partition_client(&topic, 0, UnknownTopicHandling::Retry).await?;
                anyhow::Ok(partition.fetch_records(0, 1..1_000_000, 5_000).await?.0)
            })?;
            assert_eq!(read.len(), records.len(), "{compression:?}");
            for (read, written) in read.iter().zip(&records) {
                assert_eq!(read.record.timestamp.timestamp_millis(), written.timestamp, "{compression:?}");
                assert_eq!(read.record.key.as_deref(), written.key, "{compression:?}");
                assert_eq!(read.record.value.as_deref(), written.value, "{compression:?}");
                let wanted = written.headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()));
                assert!(read.record.headers.clone().into_iter().eq(wanted), "{compression:?}: {:?}", read.record.headers);
            }

            let Some(mut kcat) = Client::Kcat.command()? else { continue };
            let topic = unique("parts");
            kafka.create_topic(&topic, 1)?;
            let headers = [header("x", Some(b"1")), header("n", None), header("x", Some(b"2"))];
            let record = Record { headers: &headers, ..records[0] };
            write(&bootstrap, &topic, compression, &[record, records[1]])?;
            // Lengths of key and value are -1 where they are null.
            kcat.args(["-C", "-b", &bootstrap, "-t", &topic, "-e", "-q", "-f", "%o|%K|%k|%S|%s|%T|%h\n"]);
            let read = process::run(&mut kcat, b"", SOON)?.successful()?;
            let lines: Vec<&str> = read.stdout.lines().collect();
            assert_eq!(
                lines,
                ["0|-1||6|no key|1700000000123|x=1,n=NULL,x=2", "1|1|k|-1||1600000000000|"],
                "{compression:?}"
            );
        }
        Ok(())
    }
}
