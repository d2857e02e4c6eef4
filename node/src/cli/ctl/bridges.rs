//! `causeway ctl bridges ...`.

use std::io::Read;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::json;

use super::table;
use super::table_bridges;
use super::{bridge_json, pretty, show};
use crate::admin::v1_bridges::{BridgeAnswer, BridgeRequest, PARTITIONS_PAGE, ProbeStep, ProbeVerdict, Put};
use crate::admin::{AdminClient, PartitionStats};
use crate::probe::{Step, Verdict, has_failed};

/// Most text that is sent: what a node takes, less what goes around it.
const MOST_TEXT: u64 = 1000 * 1000;

/// Subcommand of `causeway ctl bridges`.
#[derive(Debug, Clone, Subcommand)]
pub enum BridgesCommand {
    /// List them and how they are
    List,
    /// Show everything about one: counters, rates, latency
    Show {
        /// Id of the bridge, such as kafka:NAME, or its name
        bridge: String,
        /// Show its configuration instead, without secrets, as `change` takes it
        #[arg(long)]
        config: bool,
    },
    /// Create bridges from a file with `bridges { .. }` as in a configuration file; all or none
    Create {
        /// The file; - for standard input
        #[arg(value_name = "FILE|-")]
        file: String,
    },
    /// Change bridges, losing nothing that they hold; secrets given as ****** stay as they are
    Change {
        /// The file; - for standard input
        #[arg(value_name = "FILE|-")]
        file: String,
    },
    /// Delete a bridge; one that holds messages stays, unless forced
    Delete {
        /// Id of the bridge, such as kafka:NAME, or its name
        bridge: String,
        /// Delete it with what it holds
        #[arg(long)]
        force: bool,
    },
    /// Start a bridge that was disabled
    Enable {
        /// Id of the bridge, such as kafka:NAME, or its name
        bridge: String,
    },
    /// Stop a bridge until it is enabled again
    Disable {
        /// Id of the bridge, such as kafka:NAME, or its name
        bridge: String,
    },
    /// Start a bridge anew, keeping what it holds
    Restart {
        /// Id of the bridge, such as kafka:NAME, or its name
        bridge: String,
    },
    /// Walk the bridge's way to Kafka and name the step that fails
    Probe {
        /// Id of the bridge, such as kafka:NAME, or its name
        bridge: String,
    },
}

/// Text to print with an exit code of 1.
#[derive(Debug)]
pub(super) struct Found(pub(super) String);

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Found {}

fn text_of(file: &str) -> Result<(String, String)> {
    let mut text = String::new();
    let (name, read) = if file == "-" {
        ("standard input".to_owned(), std::io::stdin().lock().take(MOST_TEXT + 1).read_to_string(&mut text))
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("cannot open {file}"))?;
        (file.to_owned(), opened.take(MOST_TEXT + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > MOST_TEXT {
        bail!("{name} is larger than {MOST_TEXT} bytes; give the bridges in several files");
    }
    Ok((name, text))
}

pub(super) async fn run(client: &mut AdminClient, what: BridgesCommand, json: bool) -> Result<String> {
    match what {
        BridgesCommand::List => {
            let bridges = client.bridges().await?;
            if json { pretty(&bridges) } else { Ok(table::bridges(&bridges)) }
        }
        BridgesCommand::Show { bridge, config } => {
            let BridgeAnswer::Detail(detail) = client.bridge(BridgeRequest::Show { id: bridge }).await?
            else {
                bail!("the node answered something else than the bridge");
            };
            if config {
                let config: serde_json::Value = serde_json::from_str(&detail.config)?;
                return pretty(&config);
            }
            if !json {
                return Ok(table_bridges::detail(&detail));
            }
            let mut value = bridge_json(&detail.stats);
            let measures = detail.measures.iter().map(|measure| {
                let value = match measure.name.as_str() {
                    name if name.starts_with("rate") => json!(table_bridges::rate(measure.value)),
                    _ => json!(measure.value),
                };
                (measure.name.clone(), value)
            });
            if let Some(fields) = value.as_object_mut() {
                fields.insert("measures".into(), measures.collect());
                fields.insert("config".into(), serde_json::from_str(&detail.config)?);
            }
            pretty(&value)
        }
        BridgesCommand::Create { file } => put(client, Put::Create, &file, json).await,
        BridgesCommand::Change { file } => put(client, Put::Change, &file, json).await,
        BridgesCommand::Delete { bridge, force } => {
            let request = BridgeRequest::Delete { id: bridge, force };
            let BridgeAnswer::Deleted(info) = client.bridge(request).await? else {
                bail!("the node answered something else than what became of the bridge");
            };
            if json { pretty(&info) } else { Ok(table_bridges::deleted(&info)) }
        }
        BridgesCommand::Enable { bridge } => show(&client.enable_bridge(bridge, true).await?, json),
        BridgesCommand::Disable { bridge } => show(&client.enable_bridge(bridge, false).await?, json),
        BridgesCommand::Restart { bridge } => show(&client.restart_bridge(bridge).await?, json),
        BridgesCommand::Probe { bridge } => {
            let request = BridgeRequest::Probe { id: bridge.clone() };
            let BridgeAnswer::Probed(steps) = client.bridge(request).await? else {
                bail!("the node answered something else than the steps of a probe");
            };
            let steps: Vec<_> = steps.into_iter().map(step).collect();
            let failed = has_failed(&steps);
            let text = if json {
                table_bridges::walks_json(&[(bridge, steps)])?
            } else {
                table_bridges::walk(&bridge, &steps)
            };
            if failed { Err(Found(text).into()) } else { Ok(text) }
        }
    }
}

fn step(step: ProbeStep) -> Step {
    let ProbeStep { step, about, verdict, found, fix } = step;
    let verdict = match verdict {
        ProbeVerdict::Ok => Verdict::Ok,
        ProbeVerdict::Warn => Verdict::Warn,
        ProbeVerdict::Fail => Verdict::Fail,
    };
    Step { step, about, verdict, found, fix }
}

async fn put(client: &mut AdminClient, how: Put, file: &str, json: bool) -> Result<String> {
    let (source, text) = text_of(file)?;
    let BridgeAnswer::Put { bridges, warnings } =
        client.bridge(BridgeRequest::Put { how, source, text }).await?
    else {
        bail!("the node answered something else than the bridges");
    };
    for warning in warnings {
        eprintln!("{warning}");
    }
    if json { pretty(&bridges) } else { Ok(table::bridges(&bridges)) }
}

/// Gets a bridge's partitions, page by page, up to `limit`; true where there are more.
pub(super) async fn partitions(
    client: &mut AdminClient,
    id: &str,
    limit: u32,
    into: &mut Vec<PartitionStats>,
) -> Result<bool> {
    loop {
        let left = limit.saturating_sub(u32::try_from(into.len()).unwrap_or(u32::MAX));
        if left == 0 {
            return Ok(true);
        }
        let after = into.last().map(|last| (last.topic.clone(), last.partition));
        let limit = left.min(PARTITIONS_PAGE);
        let request = BridgeRequest::Partitions { id: id.to_owned(), after, limit };
        let BridgeAnswer::Partitions(page) = client.bridge(request).await? else {
            bail!("the node answered something else than partitions");
        };
        let nothing = page.partitions.is_empty();
        into.extend(page.partitions);
        if !page.more || nothing {
            return Ok(false);
        }
    }
}
