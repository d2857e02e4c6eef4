//! Runs the development Kafka alone: `cargo run --example dev_kafka -- --topic greetings:3`.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: causeway::dev_kafka::Args,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    Ok(causeway::dev_kafka::run(Cli::parse().args).await?)
}
