//! Reads a Kafka topic back with rskafka, which shares no code with our client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rskafka::BackoffConfig;
use rskafka::client::partition::{OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::RecordAndOffset;
use tokio::time::Instant;

/// Bytes asked for in one fetch.
const FETCH_BYTES: i32 = 4 << 20;

/// The partitions of one topic.
pub struct Topic {
    name: String,
    partitions: BTreeMap<i32, Arc<PartitionClient>>,
}

/// An rskafka client that gives up after `patience` instead of never.
pub async fn client(bootstrap: &str, patience: Duration) -> Result<Client> {
    connect(bootstrap, patience, None).await
}

/// The same, that logs in with SASL/PLAIN as (user, password).
pub async fn client_as(bootstrap: &str, login: (&str, &str), patience: Duration) -> Result<Client> {
    let credentials = Credentials::new(login.0.to_owned(), login.1.to_owned());
    connect(bootstrap, patience, Some(SaslConfig::Plain(credentials))).await
}

async fn connect(bootstrap: &str, patience: Duration, login: Option<SaslConfig>) -> Result<Client> {
    let backoff_config = BackoffConfig {
        init_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(1),
        deadline: Some(patience),
        ..BackoffConfig::default()
    };
    let mut builder =
        ClientBuilder::new(bootstrap.split(',').map(str::to_owned).collect()).backoff_config(backoff_config);
    if let Some(login) = login {
        builder = builder.sasl_config(login);
    }
    tokio::time::timeout(patience, builder.build())
        .await
        .with_context(|| format!("no Kafka at {bootstrap} within {patience:?}"))?
        .with_context(|| format!("no Kafka at {bootstrap}"))
}

impl Topic {
    /// Opens a topic that exists.
    pub async fn open(bootstrap: &str, name: &str) -> Result<Self> {
        Self::open_with(&client(bootstrap, Duration::from_secs(30)).await?, name).await
    }

    /// Opens a topic that exists, through this client.
    pub async fn open_with(client: &Client, name: &str) -> Result<Self> {
        let topics = client.list_topics().await?;
        let Some(topic) = topics.into_iter().find(|topic| topic.name == name) else {
            bail!("Kafka has no topic {name}");
        };
        let mut partitions = BTreeMap::new();
        for partition in topic.partitions {
            let handling = UnknownTopicHandling::Retry;
            partitions.insert(partition, Arc::new(client.partition_client(name, partition, handling).await?));
        }
        Ok(Self { name: name.to_owned(), partitions })
    }

    /// Numbers of the partitions.
    pub fn partitions(&self) -> impl Iterator<Item = i32> {
        self.partitions.keys().copied()
    }

    /// Client of one partition.
    pub fn partition(&self, partition: i32) -> Result<&Arc<PartitionClient>> {
        self.partitions
            .get(&partition)
            .with_context(|| format!("topic {} has no partition {partition}", self.name))
    }

    /// Where each partition ends now.
    pub async fn ends(&self) -> Result<BTreeMap<i32, i64>> {
        let mut ends = BTreeMap::new();
        for (&number, partition) in &self.partitions {
            ends.insert(number, partition.get_offset(OffsetAt::Latest).await?);
        }
        Ok(ends)
    }

    /// Records in the topic now, counted from `start` (a partition that is not in it counts from 0).
    pub async fn len_from(&self, start: &BTreeMap<i32, i64>) -> Result<u64> {
        let ends = self.ends().await?;
        Ok(ends.iter().map(|(number, end)| (end - start.get(number).unwrap_or(&0)).max(0) as u64).sum())
    }

    /// Waits until at least `count` records are in the topic, counted from `start`; says how many.
    pub async fn wait_for(&self, start: &BTreeMap<i32, i64>, count: u64, patience: Duration) -> Result<u64> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.len_from(start).await?;
            if now >= count {
                return Ok(now);
            }
            if Instant::now() >= deadline {
                bail!("topic {} holds {now} new records after {patience:?}, not {count}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Gives every record from `start` to the end of now to `take`, partition after partition.
    pub async fn read(
        &self,
        start: &BTreeMap<i32, i64>,
        mut take: impl FnMut(i32, RecordAndOffset),
    ) -> Result<()> {
        for (&number, partition) in &self.partitions {
            let mut offset = start.get(&number).copied().unwrap_or(0);
            let end = partition.get_offset(OffsetAt::Latest).await?;
            while offset < end {
                let (records, _) = partition.fetch_records(offset, 1..FETCH_BYTES, 1000).await?;
                let Some(last) = records.last() else {
                    bail!("topic {} partition {number} gives nothing at {offset} of {end}", self.name);
                };
                offset = last.offset + 1;
                for record in records {
                    take(number, record);
                }
            }
        }
        Ok(())
    }
}
