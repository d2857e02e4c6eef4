//! How the server is reached, in the words of the command line.

use std::path::PathBuf;

use anyhow::Result;
use causeway_benches::load::endpoint::Endpoint;
use clap::Args;

#[derive(Args, Clone)]
pub(crate) struct Server {
    /// The MQTT side: [tcp://|tls://|ws://|wss://]HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: String,
    /// Certificates to trust (PEM), for tls:// and wss://. The server's has to be for localhost.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// User name, where the server wants one; with churn {n} counts the connections.
    #[arg(long, requires = "password")]
    username: Option<String>,
    /// The password that goes with it, or a token.
    #[arg(long, requires = "username")]
    password: Option<String>,
}

impl Server {
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        let login = self.username.clone().zip(self.password.clone());
        Ok(Endpoint { login, ..Endpoint::parse(&self.broker, self.ca.as_deref())? })
    }
}
