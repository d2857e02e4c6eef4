//! MQTT and Kafka clients that other people wrote, as commands.
//!
//! mosquitto_pub, mosquitto_sub and kcat come from the system, the others from `tests/clients/fetch`. With
//! `CAUSEWAY_REQUIRE_CLIENTS=1` a missing one is a failure; without it the test says what it leaves out.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use crate::say;

/// A client program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the program of its name")]
pub enum Client {
    MosquittoPub,
    MosquittoSub,
    Kcat,
    /// The command line of mqtt.js, on which MQTTX is built.
    MqttJs,
    /// Python with paho-mqtt, aiomqtt and confluent-kafka.
    Python,
}

impl Client {
    fn command_and_source(self) -> Result<(Vec<PathBuf>, &'static str)> {
        let cache = cache()?;
        let fetched = "tests/clients/fetch";
        Ok(match self {
            Self::MosquittoPub => (vec!["mosquitto_pub".into()], "apt-get install mosquitto-clients"),
            // Into a pipe it would keep its lines to itself until it has many.
            Self::MosquittoSub => (
                vec!["stdbuf".into(), "-oL".into(), "mosquitto_sub".into()],
                "apt-get install mosquitto-clients",
            ),
            Self::Kcat => (vec!["kcat".into()], "apt-get install kcat"),
            Self::MqttJs => {
                (vec!["node".into(), cache.join("node/node_modules/mqtt/build/bin/mqtt.js")], fetched)
            }
            Self::Python => (vec![cache.join("python/bin/python")], fetched),
        })
    }

    /// The command without arguments; `None`, and a line on standard error, if it is not there.
    pub fn command(self) -> Result<Option<Command>> {
        let (words, source) = self.command_and_source()?;
        if !words.iter().filter(|word| !word.starts_with("-oL")).all(is_there) {
            let text = format!("{self:?} is not there: get it with {source}");
            if std::env::var_os("CAUSEWAY_REQUIRE_CLIENTS").is_some_and(|value| value == "1") {
                bail!("CAUSEWAY_REQUIRE_CLIENTS=1 and {text}");
            }
            say(&format!("left out: {text}"));
            return Ok(None);
        }
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().ok_or_else(|| anyhow!("a command has a first word"))?);
        command.args(words);
        Ok(Some(command))
    }
}

/// A path is there, or a bare name is on the search path.
fn is_there(word: &PathBuf) -> bool {
    if word.components().count() > 1 {
        return word.exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(word).exists())
}

fn cache() -> Result<PathBuf> {
    let directory = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    directory("CAUSEWAY_CLIENTS_CACHE")
        .or_else(|| directory("XDG_CACHE_HOME").map(|cache| cache.join("causeway/clients")))
        .or_else(|| directory("HOME").map(|home| home.join(".cache/causeway/clients")))
        .ok_or_else(|| anyhow!("none of CAUSEWAY_CLIENTS_CACHE, XDG_CACHE_HOME and HOME is set"))
}
