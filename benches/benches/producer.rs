//! What a record costs on its way out: from `append` to Kafka's acknowledgement.
//!
//! The development Kafka runs in a process of its own (this program again), so that the CPU time counted is
//! the producer's alone. For a real Kafka: `KAFKA=host:port TOPIC=name cargo bench -p causeway-benches
//! --bench producer`.
//!
//! Load: publishers (one thread each) append records of 100 bytes with tickets, in read batches of 64 whose
//! wake-ups are owed at their end, as connections do; unlimited (all CPU there is) and paced.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use causeway::flow::{Accepted, AckSink, Outcome, SequenceRange, Ticket, WakeList};
use causeway::kafka::client::{Address, Client, ClientOptions};
use causeway::kafka::producer::{
    NodeMemory, Partitioner, Status, TopicProducer, TopicProducerHandle, TopicProducerOptions,
};
use causeway_benches::cpu;
use causeway_protocol::kafka::batch::{Compression, Record};

const PARTITIONS: i32 = 6;
const READ_BATCH: u64 = 64;

#[derive(Default)]
struct Publisher {
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

impl AckSink for Publisher {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        let count = ranges.iter().map(|range| u64::from(range.count)).sum();
        let counter = if outcome == Outcome::Success { &self.acknowledged } else { &self.failed };
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// One publisher: `records` of them, at most `rate` a second, over 100 keys.
fn publish(producer: &TopicProducerHandle, records: u64, rate: Option<u64>, name: usize) -> u64 {
    let publisher = Arc::new(Publisher::default());
    let sink: Arc<dyn AckSink> = publisher.clone();
    let keys: Vec<String> = (0..100).map(|key| format!("device-{name:02}-{key:04}")).collect();
    let value = [b'x'; 100 - 14];
    let start = Instant::now();
    let mut sequence = 0;
    while sequence < records {
        let mut wakes = WakeList::default();
        for _ in 0..READ_BATCH.min(records - sequence) {
            let key = &keys[sequence as usize % keys.len()];
            let record = Record {
                timestamp: 1_700_000_000_000,
                key: Some(key.as_bytes()),
                value: Some(&value),
                headers: &[],
            };
            let ticket = Ticket::new(sink.clone(), sequence);
            match producer.append(&record, Some(&ticket), &mut wakes) {
                Accepted::Taken => sequence += 1,
                _ => break,
            }
        }
        drop(wakes);
        let acknowledged = publisher.acknowledged.load(Ordering::Relaxed);
        // What a connection may have unacknowledged.
        if sequence - acknowledged > 50_000 {
            std::thread::sleep(Duration::from_micros(200));
        }
        if let Some(rate) = rate {
            let due = start + Duration::from_secs_f64(sequence as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    while publisher.acknowledged.load(Ordering::Relaxed) + publisher.failed.load(Ordering::Relaxed) < records
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    publisher.failed.load(Ordering::Relaxed)
}

async fn measure(
    bootstrap: &str,
    topic: &str,
    what: &str,
    options: TopicProducerOptions,
    (publishers, records, rate): (usize, u64, Option<u64>),
) -> anyhow::Result<()> {
    let (host, port) = bootstrap.rsplit_once(':').context("KAFKA is HOST:PORT")?;
    let client = Client::new(ClientOptions::new(vec![Address::new(host, port.parse()?)]));
    let producer =
        Arc::new(TopicProducer::start(client, TopicProducerOptions { topic: topic.into(), ..options }));
    producer.status().wait_for(|status| *status == Status::Connected).await?;
    let before = cpu::process();
    let start = Instant::now();
    let threads: Vec<_> = (0..publishers)
        .map(|name| {
            let producer = producer.clone();
            let each = records / publishers as u64;
            std::thread::spawn(move || {
                publish(&producer, each, rate.map(|rate| rate / publishers as u64), name)
            })
        })
        .collect();
    for thread in threads {
        let failed = tokio::task::spawn_blocking(move || thread.join()).await?;
        ensure!(failed.ok() == Some(0), "records failed");
    }
    let took = start.elapsed();
    let cpu = cpu::process().saturating_sub(before);
    let ledger = producer.ledger();
    ensure!(ledger.imbalance() == 0, "{ledger:?}");
    let millions = records as f64 / 1e6;
    println!(
        "{what:<44} {:>9.0} records/s   {:>6.3} CPU s per million   retried {}",
        records as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() / millions,
        ledger.retried,
    );
    Ok(())
}

/// The other process: serves until its standard input ends.
async fn serve() -> anyhow::Result<()> {
    let options = Options { retention_bytes: 256 << 20, ..Options::default() };
    let kafka = DevKafka::start(options.topic(TopicSpec::new("bench", PARTITIONS))).await?;
    println!("{}", kafka.bootstrap());
    tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await??;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--serve") {
        return serve().await;
    }
    if arguments.iter().any(|argument| argument == "--test") {
        return Ok(());
    }
    let topic = std::env::var("TOPIC").unwrap_or_else(|_| "bench".to_owned());
    let mut child = None;
    let bootstrap = if let Ok(kafka) = std::env::var("KAFKA") {
        kafka
    } else {
        let mut serving = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = serving.stdout.take().context("its output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        child = Some(serving);
        line.trim().to_owned()
    };
    // As in a node, where all bridges share a bound.
    let memory = NodeMemory::new(1 << 30);
    let keyed = TopicProducerOptions { memory: Some(memory), ..TopicProducerOptions::new("") };
    let random = TopicProducerOptions { partitioner: Partitioner::Random, ..keyed.clone() };
    let million = 1_000_000;
    for (what, options, load) in [
        ("keyed, 1 publisher, unlimited", &keyed, (1, 4 * million, None)),
        ("keyed, 4 publishers, unlimited", &keyed, (4, 4 * million, None)),
        ("random, 4 publishers, unlimited", &random, (4, 4 * million, None)),
        ("keyed, 4 publishers, 200,000/s", &keyed, (4, million, Some(200_000))),
        ("keyed, 4 publishers, 50,000/s", &keyed, (4, million / 4, Some(50_000))),
        ("keyed, 4 publishers, 5,000/s", &keyed, (4, million / 40, Some(5_000))),
    ] {
        measure(&bootstrap, &topic, what, options.clone(), load).await?;
    }
    for compression in [Compression::Snappy, Compression::Lz4, Compression::Zstd, Compression::Gzip] {
        let options = TopicProducerOptions { compression, ..keyed.clone() };
        let what = format!("keyed, 4 publishers, unlimited, {compression:?}");
        measure(&bootstrap, &topic, &what, options, (4, 2 * million, None)).await?;
    }
    if let Some(mut serving) = child {
        drop(serving.stdin.take());
        serving.wait()?;
    }
    Ok(())
}
