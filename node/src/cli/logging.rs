//! Logging as the configuration says: to standard error, level and format from `log`, `RUST_LOG` first.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Choice, LogConfig, LogFormat};

/// Installs the logger of the process. Fails when `RUST_LOG` is set and wrong, or a logger is installed.
pub(super) fn install(config: &LogConfig) -> anyhow::Result<()> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(wanted) if !wanted.is_empty() => {
            EnvFilter::try_new(&wanted).map_err(|error| anyhow::anyhow!("RUST_LOG={wanted}: {error}"))?
        }
        _ => EnvFilter::new(config.level.word()),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
