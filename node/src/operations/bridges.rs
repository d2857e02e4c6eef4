//! The admin operations on single bridges.

use std::fmt::Write as _;

use super::node::{NodeAdmin, stats};
use crate::admin::v1_bridges::{
    BridgeAnswer, BridgeDetail, BridgeRequest, DeletedInfo, PARTITIONS_PAGE, PartitionsPage, ProbeStep,
    ProbeVerdict, Put,
};
use crate::admin::{AdminError, Counter, PartitionStats};
use crate::bridge::service::{Apply, BridgeId, BridgePartition, Definition, Row};
use crate::config::{self, Secrets};

impl NodeAdmin {
    /// Carries out a request about single bridges.
    pub(super) async fn on_bridges(&self, request: BridgeRequest) -> Result<BridgeAnswer, AdminError> {
        match request {
            BridgeRequest::Put { how, source, text } => self.put(how, &source, &text).await,
            BridgeRequest::Delete { id, force } => {
                let id = self.id(&id)?;
                let deleted = self.bridges.delete(id.clone(), force).await.map_err(|e| self.error(e))?;
                Ok(BridgeAnswer::Deleted(DeletedInfo {
                    id: id.to_string(),
                    records: deleted.records,
                    bytes: deleted.bytes,
                    dropped: deleted.dropped,
                    failed: deleted.failed,
                }))
            }
            BridgeRequest::Show { id } => {
                let id = self.id(&id)?;
                let row = self.bridges.row(&id).map_err(|error| self.error(error))?;
                let definition = self.bridges.definition(&id).map_err(|error| self.error(error))?;
                let measures = measures(&row);
                let config = described(&id, &definition);
                Ok(BridgeAnswer::Detail(Box::new(BridgeDetail {
                    stats: stats(row, false),
                    config,
                    measures,
                })))
            }
            BridgeRequest::Partitions { id, after, limit } => {
                let id = self.id(&id)?;
                let row = self.bridges.row(&id).map_err(|error| self.error(error))?;
                Ok(BridgeAnswer::Partitions(page(row.places, after.as_ref(), limit)))
            }
            BridgeRequest::Probe { id } => {
                let id = self.id(&id)?;
                let definition = self.bridges.definition(&id).map_err(|error| self.error(error))?;
                Ok(BridgeAnswer::Probed(
                    crate::probe::walk(&id.name, &definition).await.into_iter().map(step).collect(),
                ))
            }
        }
    }

    async fn put(&self, how: Put, source: &str, text: &str) -> Result<BridgeAnswer, AdminError> {
        let loaded = config::parse_bridges(source, text).map_err(AdminError::failed)?;
        let mut warnings: Vec<_> =
            loaded.warnings.iter().map(|problem| format!("warning: {problem}")).collect();
        let producers = loaded.value.kafka.into_iter();
        let producers = producers.map(|(name, config)| (name, Definition::Producer(Box::new(config))));
        let consumers = loaded.value.kafka_consumer.into_iter();
        let consumers = consumers.map(|(name, config)| (name, Definition::Consumer(Box::new(config))));
        let bridges: Vec<_> = producers.chain(consumers).collect();
        let ids: Vec<_> = bridges
            .iter()
            .map(|(name, definition)| BridgeId { kind: definition.kind(), name: name.clone() })
            .collect();
        let how = match how {
            Put::Create => Apply::Create,
            Put::Change => Apply::Change,
        };
        self.bridges.apply(how, bridges).await.map_err(|error| self.error(error))?;
        // Those within the text are told already.
        let told = |found: &String| loaded.warnings.iter().any(|problem| problem.message == *found);
        let loops = self.bridges.possible_loops(&ids).into_iter().filter(|found| !told(found));
        warnings.extend(loops.map(|found| format!("warning: {found}")));
        let bridges = ids.iter().map(|id| self.info_of(id)).collect::<Result<_, _>>()?;
        Ok(BridgeAnswer::Put { bridges, warnings })
    }
}

/// `bridges { .. }` with one bridge, secrets masked.
fn described(id: &BridgeId, definition: &Definition) -> String {
    let config = definition.canonical_json(Secrets::Masked);
    let mut text = serde_json::json!({ "bridges": { id.kind.name(): { &id.name: config } } }).to_string();
    let _ = writeln!(text);
    text
}

fn step(step: crate::probe::Step) -> ProbeStep {
    let crate::probe::Step { step, about, verdict, found, fix } = step;
    let verdict = match verdict {
        crate::probe::Verdict::Ok => ProbeVerdict::Ok,
        crate::probe::Verdict::Warn => ProbeVerdict::Warn,
        crate::probe::Verdict::Fail => ProbeVerdict::Fail,
    };
    ProbeStep { step, about, verdict, found, fix }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn measures(row: &Row) -> Vec<Counter> {
    let mut all = vec![
        ("rate", row.rates.now),
        ("rate_last1m", row.rates.last_1m),
        ("rate_last5m", row.rates.last_5m),
        ("rate_max", row.rates.max),
        ("partitions", row.places.len() as u64),
        ("oldest_waiting", row.oldest.map_or(0, micros)),
    ];
    if let Some(latency) = &row.latency {
        all.extend([
            ("latency.batches", latency.batches),
            ("latency.p50", micros(latency.p50)),
            ("latency.p95", micros(latency.p95)),
            ("latency.p99", micros(latency.p99)),
            ("latency.max", micros(latency.max)),
        ]);
    }
    all.into_iter().map(|(name, value)| Counter { name: name.to_owned(), value }).collect()
}

/// Partitions by topic and number, behind `after`.
fn page(mut places: Vec<BridgePartition>, after: Option<&(String, i32)>, limit: u32) -> PartitionsPage {
    places.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    let behind = |place: &BridgePartition| {
        after.is_none_or(|(topic, partition)| (&place.topic, place.partition) > (topic, *partition))
    };
    let mut left = places.into_iter().filter(behind);
    let limit = limit.min(PARTITIONS_PAGE) as usize;
    let partitions = left.by_ref().take(limit).map(|place| PartitionStats {
        topic: place.topic,
        partition: place.partition,
        counters: place.ledger.into(),
    });
    let partitions = partitions.collect();
    PartitionsPage { partitions, more: left.next().is_some() }
}
