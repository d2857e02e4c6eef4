//! `causeway start` and `causeway dev`: the commands that run a node.

use std::path::Path;
use std::process::ExitCode;

use super::{check, logging};
use crate::config::{LogConfig, LogFormat, LogLevel, Problem, load_file};
use crate::dev::{self, DevArgs};
use crate::node;

/// Runs a node by its configuration file until the process is told to end.
pub(super) fn start(path: &Path) -> anyhow::Result<ExitCode> {
    let loaded = match load_file(path) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprint!("{}", check::failure(&errors));
            return Ok(ExitCode::FAILURE);
        }
    };
    logging::install(&loaded.value.log)?;
    for warning in &loaded.warnings {
        let Problem { file, line, key, value: _, message } = warning;
        tracing::warn!(file, line, key, "{message}");
    }
    runtime()?.block_on(node::run(loaded.value))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a node with a development Kafka inside until the process is told to end.
pub(super) fn dev(args: DevArgs) -> anyhow::Result<ExitCode> {
    // The news is on standard output; the log speaks of trouble only.
    logging::install(&LogConfig { level: LogLevel::Warn, format: LogFormat::Text })?;
    runtime()?.block_on(dev::run(args))?;
    Ok(ExitCode::SUCCESS)
}

/// The runtime of everything that carries messages.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("causeway").build()
}
