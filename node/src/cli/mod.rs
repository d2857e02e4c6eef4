//! The command line: arguments in, exit code out.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. What a command is asked for goes to standard output;
//! errors, warnings and logs go to standard error, as plain text.

mod buffer;
mod check;
pub mod ctl;
mod doctor;
mod logging;
pub(crate) mod prompt;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::access::passwords::{Cost, PasswordHash};
use crate::dev::{DevArgs, clients};
use crate::dev_kafka;

/// Carries messages between MQTT devices and Apache Kafka, both ways.
#[derive(Debug, Parser)]
#[command(name = "causeway", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node by its configuration file
    Start {
        /// Configuration file (HOCON)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run a node with a development Kafka inside and two bridges, to try it; or one of the small clients
    Dev(Dev),
    /// Check a configuration file: print everything that is wrong with it
    Check {
        /// Configuration file (HOCON)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Walk the way to Kafka of every bridge of a configuration file, and name the step that fails
    Doctor(doctor::Doctor),
    /// Show what can be configured
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Make a line of a password file; the password is asked for, or read from standard input
    Passwd {
        /// Name of the user
        user: String,
    },
    /// Ask a running node: counters, bridges, the node itself
    Ctl(ctl::Ctl),
    /// Look into the disk buffers of bridges
    Buffer {
        #[command(subcommand)]
        what: buffer::BufferCommand,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Dev {
    #[command(flatten)]
    node: DevArgs,
    #[command(subcommand)]
    client: Option<DevCommand>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Publish to MQTT (on the mqttbytes library) and say how many were acknowledged
    Publish(clients::PublishArgs),
    /// Print what arrives on MQTT topics (on the mqttbytes library)
    Subscribe(clients::SubscribeArgs),
    /// Write records to Kafka (on the rskafka library)
    Produce(clients::ProduceArgs),
    /// Print the records of a Kafka topic (on the rskafka library)
    Consume(clients::ConsumeArgs),
    /// Run only the development Kafka
    Kafka(dev_kafka::Args),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a commented configuration file to begin with
    Example,
    /// Print the reference of all keys (Markdown)
    Reference,
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are asked for and no failure; clap prints each where it belongs.
            let code = error.exit_code();
            let printed = error.print();
            return if printed.is_err() {
                ExitCode::FAILURE
            } else {
                ExitCode::from(code.clamp(0, 255) as u8)
            };
        }
    };
    match dispatch(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("causeway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Start { config } => serve::start(&config),
        Command::Dev(Dev { node, client: None }) => serve::dev(node),
        Command::Dev(Dev { client: Some(client), .. }) => {
            let runtime = serve::runtime()?;
            match client {
                DevCommand::Publish(args) => runtime.block_on(args.run())?,
                DevCommand::Subscribe(args) => runtime.block_on(args.run())?,
                DevCommand::Produce(args) => runtime.block_on(args.run())?,
                DevCommand::Consume(args) => runtime.block_on(args.run())?,
                DevCommand::Kafka(args) => runtime.block_on(dev_kafka::run(args))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Buffer { what } => buffer::run(what),
        Command::Check { config } => check::check(&config),
        Command::Config { what: ConfigCommand::Example } => print(&crate::config::example()),
        Command::Config { what: ConfigCommand::Reference } => print(&crate::config::reference()),
        Command::Ctl(ctl) => {
            // One request and its answer: one thread is plenty.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ctl.run())
        }
        Command::Doctor(doctor) => doctor.run(),
        Command::Passwd { user } => {
            if user.is_empty() || user.contains([':', '\n', '\r']) || user.starts_with('#') {
                anyhow::bail!(
                    "a user name in a password file is not empty, begins with no # and has no colon"
                );
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let password = runtime.block_on(prompt::new_password())?;
            let hash = PasswordHash::new(&password, Cost::RECOMMENDED)?;
            print(&format!("{user}:{hash}\n"))
        }
        Command::Version => print(concat!("causeway ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

/// Writes to standard output; a reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
