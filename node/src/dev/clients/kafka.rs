//! `causeway dev produce` and `causeway dev consume`, on rskafka.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use causeway_protocol::kafka::partitioner::KeyHash;
use clap::Args;
use rskafka::BackoffConfig;
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::{Record, RecordAndOffset};
use rskafka::topic::Topic;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{CONNECT_TIMEOUT, counted, readable, seconds, show};

/// Time for Kafka to answer, retries included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Records of one produce request.
const BATCH: u64 = 500;
/// Most bytes of one fetch.
const FETCH_BYTES: i32 = 1 << 20;
/// How long a fetch waits for records, in milliseconds.
const FETCH_WAIT_MS: i32 = 500;
/// Records read ahead of the one that is shown.
const READ_AHEAD: usize = 100;

/// Write records to a Kafka topic.
#[derive(Args, Debug, Clone)]
pub struct ProduceArgs {
    /// Address of a Kafka broker.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub kafka: String,
    /// Topic to write to.
    #[arg(long, short, default_value = "testtopic-out")]
    pub topic: String,
    /// Key of the record; none if not given.
    #[arg(long, short)]
    pub key: Option<String>,
    /// Value of the record.
    #[arg(long, short, default_value = r#"{"msg":"Hello MQTT"}"#)]
    pub message: String,
    /// Partition to write to; if not given, the key decides as in Kafka's own clients.
    #[arg(long)]
    pub partition: Option<i32>,
    /// Header of the record as NAME=VALUE; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub header: Vec<(String, String)>,
    /// How many times to write the record.
    #[arg(long, default_value_t = 1)]
    pub count: u64,
}

/// Show the records of a Kafka topic.
#[derive(Args, Debug, Clone)]
pub struct ConsumeArgs {
    /// Address of a Kafka broker.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub kafka: String,
    /// Topic to read.
    #[arg(long, short, default_value = "testtopic-in")]
    pub topic: String,
    /// Show what is in the topic already, too.
    #[arg(long)]
    pub from_beginning: bool,
    /// End after this many records.
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this many seconds: with an error if --count records have not come by then.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

impl ProduceArgs {
    /// Writes the records and says where they are.
    ///
    /// # Errors
    /// No Kafka, no such topic or partition, or a record that Kafka did not take.
    pub async fn run(self) -> Result<()> {
        self.run_to(&mut io::stdout()).await
    }

    pub(super) async fn run_to(self, out: &mut (impl Write + Send)) -> Result<()> {
        let mut headers = BTreeMap::new();
        for (name, value) in &self.header {
            if headers.insert(name.clone(), value.clone().into_bytes()).is_some() {
                bail!("header `{name}` is given twice: this client writes each name once");
            }
        }
        let client = connect(&self.kafka).await?;
        let topic = find(&client, &self.kafka, &self.topic).await?;
        let partition = self.choose_partition(&topic)?;
        let handle = open(&client, &topic.name, partition).await?;
        let mut left = self.count;
        while left > 0 {
            let records = vec![self.record(headers.clone()); left.min(BATCH) as usize];
            left -= records.len() as u64;
            let produce = handle.produce(records, Compression::NoCompression);
            let offsets = answer(&self.kafka, produce).await.with_context(|| {
                format!("Kafka did not take records for partition {partition} of {}", topic.name)
            })?;
            if let (Some(first), Some(last)) = (offsets.first(), offsets.last()) {
                let span = if first == last {
                    format!("offset {first}")
                } else {
                    format!("offsets {first} to {last}")
                };
                let records = counted(offsets.len() as u64, "record");
                show(out, format_args!("wrote {records} to {}: partition {partition}, {span}", topic.name))?;
            }
        }
        Ok(())
    }

    #[expect(clippy::default_trait_access, reason = "the type of the timestamp is rskafka's to choose")]
    fn record(&self, headers: BTreeMap<String, Vec<u8>>) -> Record {
        let mut record = Record {
            key: self.key.clone().map(String::into_bytes),
            value: Some(self.message.clone().into_bytes()),
            headers,
            // The Unix epoch, to which the time since then is added.
            timestamp: Default::default(),
        };
        record.timestamp += SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        record
    }

    fn choose_partition(&self, topic: &Topic) -> Result<i32> {
        let partitions: Vec<_> = topic.partitions.iter().copied().collect();
        if let Some(partition) = self.partition {
            if !topic.partitions.contains(&partition) {
                bail!("topic `{}` has no partition {partition}: it has {}", topic.name, list(&partitions));
            }
            return Ok(partition);
        }
        let count = partitions.len() as u32;
        let index = match &self.key {
            Some(key) => KeyHash::Murmur2.partition(key.as_bytes(), count),
            None => (count > 0).then(|| rand::random_range(0..count)),
        };
        index
            .and_then(|index| partitions.get(index as usize).copied())
            .with_context(|| format!("topic `{}` has no partitions", topic.name))
    }
}

impl ConsumeArgs {
    /// Shows records until there are enough.
    ///
    /// # Errors
    /// No Kafka, no such topic, a record that rskafka cannot read, or too few records in time.
    pub async fn run(self) -> Result<()> {
        self.run_to(&mut io::stdout()).await
    }

    pub(super) async fn run_to(self, out: &mut (impl Write + Send)) -> Result<()> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let client = connect(&self.kafka).await?;
        let topic = find(&client, &self.kafka, &self.topic).await?;
        let (sender, mut records) = mpsc::channel(READ_AHEAD);
        // Dropped at the end, which ends the tasks.
        let mut readers = JoinSet::new();
        for &partition in &topic.partitions {
            let handle = open(&client, &topic.name, partition).await?;
            let at = if self.from_beginning { OffsetAt::Earliest } else { OffsetAt::Latest };
            let start = answer(&self.kafka, handle.get_offset(at))
                .await
                .with_context(|| format!("Kafka does not say where partition {partition} begins"))?;
            readers.spawn(read_partition(handle, start, sender.clone()));
        }
        drop(sender);
        let from = if self.from_beginning {
            "from the beginning"
        } else {
            "new ones only, --from-beginning for all"
        };
        eprintln!(
            "reading {} in {} ({from}); Ctrl-C ends",
            topic.name,
            counted(topic.partitions.len() as u64, "partition")
        );
        let mut received = 0;
        while self.count.is_none_or(|count| received < count) {
            let next = match deadline {
                Some(deadline) => match timeout_at(deadline, records.recv()).await {
                    Ok(next) => next,
                    Err(_) => break,
                },
                None => records.recv().await,
            };
            let Some(next) = next else {
                bail!("all partitions of {} have ended", topic.name);
            };
            let (partition, record) = next?;
            received += 1;
            if !show_record(out, partition, &record)? {
                return Ok(());
            }
        }
        match self.count {
            Some(count) if received < count => {
                bail!("only {received} of {} arrived in time", counted(count, "record"))
            }
            _ => Ok(()),
        }
    }
}

type Shown = Result<(i32, RecordAndOffset)>;

/// Reads a partition until no more of it is wanted.
async fn read_partition(handle: PartitionClient, start: i64, sender: mpsc::Sender<Shown>) {
    let partition = handle.partition();
    let mut offset = start;
    loop {
        let records = match handle.fetch_records(offset, 1..FETCH_BYTES, FETCH_WAIT_MS).await {
            Ok((records, high_watermark)) => {
                if records.is_empty() && high_watermark > offset {
                    // A marker of a transaction, which is not shown.
                    offset += 1;
                }
                records
            }
            Err(error) => {
                let error = anyhow::Error::new(error)
                    .context(format!("rskafka cannot read partition {partition} from offset {offset} on"));
                // An error here means that there is no receiver left for the other.
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        for record in records {
            offset = record.offset + 1;
            if sender.send(Ok((partition, record))).await.is_err() {
                return;
            }
        }
    }
}

fn show_record(out: &mut impl Write, partition: i32, record: &RecordAndOffset) -> io::Result<bool> {
    let RecordAndOffset { record, offset } = record;
    let text =
        |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or_else(|| "null".to_owned(), |bytes| readable(bytes));
    let mut lines = vec![
        format!("partition {partition}, offset {offset}, {}", record.timestamp),
        format!("  key:    {}", text(&record.key)),
    ];
    for (name, value) in &record.headers {
        lines.push(format!("  header: {} = {}", readable(name.as_bytes()), readable(value)));
    }
    lines.push(format!("  value:  {}", text(&record.value)));
    show(out, format_args!("{}", lines.join("\n")))
}

/// A client that gives up instead of trying for ever.
async fn connect(kafka: &str) -> Result<Client> {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(kafka)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => bail!(
            "no Kafka on {kafka}: start `causeway dev` in another terminal, or name a broker with --kafka HOST:PORT"
        ),
        Ok(Err(error)) => return Err(error).with_context(|| format!("cannot connect to Kafka on {kafka}")),
        Err(_) => bail!("no answer from {kafka} within {CONNECT_TIMEOUT:?}: is --kafka right?"),
    }
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(1),
        deadline: Some(ANSWER_TIMEOUT),
        ..BackoffConfig::default()
    };
    let build =
        ClientBuilder::new(vec![kafka.to_owned()]).client_id("causeway-try").backoff_config(backoff).build();
    answer(kafka, build).await
}

/// Waits for an answer, but not for ever.
async fn answer<T>(
    kafka: &str,
    question: impl Future<Output = Result<T, rskafka::client::error::Error>>,
) -> Result<T> {
    let answer = timeout(ANSWER_TIMEOUT, question)
        .await
        .with_context(|| format!("no answer from Kafka on {kafka} within {ANSWER_TIMEOUT:?}"))?;
    answer.with_context(|| format!("Kafka on {kafka} answered with an error"))
}

async fn find(client: &Client, kafka: &str, name: &str) -> Result<Topic> {
    let topics = answer(kafka, client.list_topics()).await?;
    let names: Vec<_> =
        topics.iter().map(|topic| topic.name.clone()).filter(|name| !name.starts_with("__")).collect();
    let found = topics.into_iter().find(|topic| topic.name == name);
    found.with_context(|| {
        let there =
            if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", list(&names)) };
        format!(
            "Kafka on {kafka} has no topic `{name}`: {there}; create it first, or name another with --topic"
        )
    })
}

async fn open(client: &Client, topic: &str, partition: i32) -> Result<PartitionClient> {
    timeout(ANSWER_TIMEOUT, client.partition_client(topic, partition, UnknownTopicHandling::Error))
        .await
        .with_context(|| format!("no leader of partition {partition} of {topic} within {ANSWER_TIMEOUT:?}"))?
        .with_context(|| format!("partition {partition} of {topic} cannot be reached"))
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}
