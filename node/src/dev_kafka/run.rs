//! The development Kafka as a program of its own: `causeway dev kafka`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{DevKafka, Error, Options, Sasl, Tls, TopicSpec};

/// Runs only the development Kafka, until ctrl-C. For development and tests, never for data that matters.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on; given several times, each is a broker of its own.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bind: Vec<SocketAddr>,
    /// Topic that exists from the start, as NAME or NAME:PARTITIONS; may be given several times.
    #[arg(long, value_name = "NAME[:PARTITIONS]", value_parser = parse_topic)]
    pub topic: Vec<TopicSpec>,
    /// Directory that keeps topics, records and committed offsets. Without it all is in memory.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Do not create topics that clients ask for.
    #[arg(long)]
    pub no_auto_create: bool,
    /// Partitions of topics that are created without a number.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub default_partitions: i32,
    /// User that clients have to authenticate as (PLAIN or SCRAM); may be given several times.
    #[arg(long, value_name = "NAME:PASSWORD", value_parser = parse_user)]
    pub user: Vec<(String, String)>,
    /// File with the certificate (PEM); with it all listeners speak TLS.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// File with the key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// File with authorities (PEM); clients need a certificate that one of them signed.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_authorities: Option<PathBuf>,
}

impl Args {
    fn tls(&self) -> Result<Option<Tls>, Error> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .map(|text| crate::byte_order_mark::skip(&text).to_owned())
                .map_err(|error| Error::Tls(format!("cannot read {}: {error}", path.display())))
        };
        let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) else { return Ok(None) };
        Ok(Some(Tls {
            certificate: read(certificate)?,
            key: read(key)?,
            client_authorities: self.tls_client_authorities.as_ref().map(read).transpose()?,
            only_tls12: false,
        }))
    }
}

fn parse_user(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()));
    parts.filter(|(name, _)| !name.is_empty()).ok_or_else(|| "a user is given as NAME:PASSWORD".to_owned())
}

fn parse_topic(text: &str) -> Result<TopicSpec, String> {
    match text.rsplit_once(':') {
        None => Ok(TopicSpec::new(text, 1)),
        Some((name, partitions)) => match partitions.parse() {
            Ok(partitions) if partitions >= 1 => Ok(TopicSpec::new(name, partitions)),
            _ => Err(format!("the number of partitions {partitions:?} must be 1 or more")),
        },
    }
}

impl From<Args> for Options {
    fn from(args: Args) -> Self {
        Self {
            bind: args.bind,
            data_dir: args.data_dir,
            topics: args.topic,
            auto_create: !args.no_auto_create,
            default_partitions: args.default_partitions,
            sasl: (!args.user.is_empty())
                .then(|| Sasl { users: args.user.into_iter().collect(), session_lifetime: None }),
            ..Self::default()
        }
    }
}

/// Why `causeway dev kafka` ended badly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] Error),
    /// Ctrl-C cannot be waited for.
    #[error("cannot wait for ctrl-c: {0}")]
    Signal(#[from] std::io::Error),
}

/// Runs until ctrl-C.
pub async fn run(args: Args) -> Result<(), RunError> {
    let tls = args.tls()?;
    let kafka = DevKafka::start(Options { tls, ..args.into() }).await?;
    println!("development Kafka: bootstrap {}; ctrl-C ends it", kafka.bootstrap());
    tokio::signal::ctrl_c().await?;
    kafka.stop().await;
    Ok(())
}
