//! `causeway doctor`: the way to Kafka of the bridges of a configuration file, without a node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::check;
use super::ctl::table_bridges;
use crate::bridge::service::{BridgeId, Definition, Kind};
use crate::config::load_file;
use crate::probe;

/// Walk the way to Kafka of every enabled bridge of a configuration file.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Configuration file (HOCON)
    file: PathBuf,
    /// Only this bridge: its name, or KIND:NAME
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Code 1 where a step fails.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = match load_file(&self.file) {
            Ok(loaded) => loaded,
            Err(errors) => {
                eprint!("{}", check::failure(&errors));
                return Ok(ExitCode::FAILURE);
            }
        };
        eprint!("{}", check::remarks(&loaded));
        let bridges = loaded.value.bridges;
        let producers = bridges.kafka.into_iter().map(|(name, config)| {
            (BridgeId { kind: Kind::Producer, name }, Definition::Producer(Box::new(config)))
        });
        let consumers = bridges.kafka_consumer.into_iter().map(|(name, config)| {
            (BridgeId { kind: Kind::Consumer, name }, Definition::Consumer(Box::new(config)))
        });
        let wanted = |id: &BridgeId, definition: &Definition| match &self.bridge {
            Some(text) => id.name == *text || id.to_string() == *text,
            None => definition.enabled(),
        };
        let bridges: Vec<_> =
            producers.chain(consumers).filter(|(id, definition)| wanted(id, definition)).collect();
        if bridges.is_empty() {
            let what = self.bridge.map_or("enabled bridge".to_owned(), |name| format!("bridge {name:?}"));
            anyhow::bail!("{} has no {what}", self.file.display());
        }
        let runtime = super::serve::runtime()?;
        let walks = runtime.block_on(async {
            let walks = bridges.iter().map(|(id, definition)| async move {
                (id.to_string(), probe::walk(&id.name, definition).await)
            });
            futures_util::future::join_all(walks).await
        });
        let text = if self.json {
            table_bridges::walks_json(&walks)?
        } else {
            walks.iter().map(|(id, steps)| table_bridges::walk(id, steps)).collect::<Vec<_>>().join("\n")
        };
        super::print(&text)?;
        let failed = walks.iter().any(|(_, steps)| probe::has_failed(steps));
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
