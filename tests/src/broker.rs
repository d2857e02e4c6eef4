//! One face for the development Kafka and the releases of Apache Kafka.
//!
//! Most tests share a Kafka with the others of their process and use topics of their own
//! ([`Target::shared`]); a test that stops it or breaks it takes its own ([`Target::own`]).

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use causeway::dev_kafka::{DevKafka, Faults, Options, Sasl, TopicSpec};
use causeway_benches::topic;

use crate::kafka::{self, RealKafka, Version};
use crate::{block_on, node, runtime, say};

/// A Kafka that tests run against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one inside Causeway.
    Development,
    /// A release of Apache Kafka.
    Apache(Version),
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Development => out.write_str("the development Kafka"),
            Self::Apache(version) => write!(out, "Apache Kafka {version}"),
        }
    }
}

impl Target {
    /// The development Kafka and every release of Apache Kafka that is there; see [`kafka::versions`].
    pub fn all() -> Result<Vec<Self>> {
        let mut all = vec![Self::Development];
        all.extend(kafka::versions()?.into_iter().map(Self::Apache));
        Ok(all)
    }

    /// The release whose number begins with `series`, such as `3.9`. `None`, and a line on standard error, if
    /// it is not there; an error, if it has to be.
    pub fn apache(series: &str) -> Result<Option<Self>> {
        let begins = |name: &str| name.strip_prefix(series).is_some_and(|rest| rest.starts_with('.'));
        let Some(name) = kafka::known_versions().find(|name| begins(name)) else {
            bail!("tests/kafka/versions has no release {series}");
        };
        let found = kafka::versions()?.into_iter().find(|version| version.name() == name);
        if found.is_none() {
            say(&format!("not run on Apache Kafka {name}: get it with tests/kafka/fetch {name}"));
        }
        Ok(found.map(Self::Apache))
    }

    /// A Kafka of this kind that other tests use at the same time.
    pub fn shared(&self) -> Result<Arc<Broker>> {
        type Shared = Mutex<Vec<(Target, Arc<Broker>)>>;
        static SHARED: OnceLock<Shared> = OnceLock::new();
        // Held while one starts: two tests that want the same one must not start two.
        let mut shared = SHARED.get_or_init(Shared::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, broker)) = shared.iter().find(|(target, _)| target == self) {
            return Ok(Arc::clone(broker));
        }
        let broker = Arc::new(self.own()?);
        shared.push((self.clone(), Arc::clone(&broker)));
        Ok(broker)
    }

    /// A Kafka of this kind with one partition of `topic`, and `HOST:PORT` of its listener that wants
    /// SASL/PLAIN with [`kafka::SASL_USER`].
    pub fn with_login(&self, topic: &str) -> Result<(Arc<Broker>, String)> {
        match self {
            // Whoever connects to the development Kafka has to log in, or nobody: one for this alone.
            Self::Development => {
                let (user, password) = kafka::SASL_USER;
                let options = Options { sasl: Some(Sasl::user(user, password)), ..Options::default() };
                let kafka = block_on(DevKafka::start(options.topic(TopicSpec::new(topic, 1))))?;
                let bootstrap = kafka.bootstrap();
                Ok((Arc::new(Broker::Development(kafka)), bootstrap))
            }
            Self::Apache(_) => {
                let broker = self.shared()?;
                broker.create_topic(topic, 1)?;
                let bootstrap = match &*broker {
                    Broker::Apache(kafka) => kafka.sasl_bootstrap(),
                    Broker::Development(kafka) => kafka.bootstrap(),
                };
                Ok((broker, bootstrap))
            }
        }
    }

    /// A fresh Kafka of this kind for one test alone.
    pub fn own(&self) -> Result<Broker> {
        Ok(match self {
            Self::Development => {
                let options = Options { auto_create: false, ..Options::default() };
                Broker::Development(block_on(DevKafka::start(options))?)
            }
            Self::Apache(version) => Broker::Apache(Box::new(RealKafka::start(version)?)),
        })
    }
}

/// A running Kafka.
pub enum Broker {
    /// The one inside Causeway, inside this process.
    Development(DevKafka),
    /// A release of Apache Kafka.
    Apache(Box<RealKafka>),
}

impl Broker {
    /// `HOST:PORT`.
    pub fn bootstrap(&self) -> String {
        match self {
            Self::Development(kafka) => kafka.bootstrap(),
            Self::Apache(kafka) => kafka.bootstrap(),
        }
    }

    /// Faults on command: the development Kafka only.
    pub fn faults(&self) -> Option<Faults> {
        match self {
            Self::Development(kafka) => Some(kafka.faults()),
            Self::Apache(_) => None,
        }
    }

    /// Creates a topic and waits until it can be used.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        let partitions = i32::try_from(partitions)?;
        if let Self::Development(kafka) = self {
            kafka.create_topic(&TopicSpec::new(name, partitions))?;
            return Ok(());
        }
        let patience = Duration::from_secs(30);
        block_on(async {
            let client = topic::client(&self.bootstrap(), patience).await?;
            let controller = client.controller_client()?;
            let timeout = i32::try_from(patience.as_millis())?;
            controller.create_topic(name, partitions, 1, timeout).await?;
            // The controller knows it; the broker does when it has a leader.
            let topic = async {
                loop {
                    match topic::Topic::open(&self.bootstrap(), name).await {
                        Ok(topic) => return topic.ends().await,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            };
            tokio::time::timeout(patience, topic).await??;
            anyhow::Ok(())
        })
        .with_context(|| format!("cannot create topic {name}"))
    }

    /// Takes it away: connections end, nobody listens.
    pub fn stop(&mut self) -> Result<()> {
        match self {
            Self::Development(kafka) => Ok(block_on(kafka.faults().pause_broker(1))?),
            Self::Apache(kafka) => kafka.stop(),
        }
    }

    /// Brings it back, on the same port and with its data.
    pub fn start_again(&mut self) -> Result<()> {
        match self {
            Self::Development(kafka) => Ok(block_on(kafka.faults().resume_broker(1))?),
            Self::Apache(kafka) => kafka.restart(),
        }
    }

    /// The release whose command-line tools fit: its own, and the newest one for the development Kafka.
    /// `None` if no release is there.
    pub fn tools(&self) -> Result<Option<Version>> {
        Ok(match self {
            Self::Development(_) => kafka::versions()?.pop(),
            Self::Apache(kafka) => Some(kafka.version().clone()),
        })
    }
}

/// Runs a scenario on one target and says so. `None` is a target that is not there.
pub fn run(name: &str, target: Option<Target>, scenario: impl FnOnce(&Target) -> Result<()>) -> Result<()> {
    let Some(target) = target else {
        return Ok(());
    };
    say(&format!("{name}: on {target}"));
    // Things that are dropped in the scenario may need the runtime.
    let _guard = runtime().enter();
    node::take_logs();
    let result = scenario(&target).with_context(|| format!("{name}, on {target}"));
    if result.is_err() {
        for log in node::take_logs() {
            say(&log);
        }
    }
    result
}

/// Makes of each scenario, a function of a [`Target`], one test for the development Kafka and one for each
/// release of Apache Kafka, in a module of its name.
#[macro_export]
macro_rules! on_every_kafka {
    ($($(#[doc = $doc:literal])* fn $name:ident($target:ident) $body:block)*) => {$(
        $(#[doc = $doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn scenario($target: &$crate::broker::Target) -> anyhow::Result<()> $body

            #[test]
            fn on_the_development_kafka() -> anyhow::Result<()> {
                let target = Some($crate::broker::Target::Development);
                $crate::broker::run(stringify!($name), target, scenario)
            }

            #[test]
            fn on_apache_kafka_3_3() -> anyhow::Result<()> {
                $crate::broker::run(stringify!($name), $crate::broker::Target::apache("3.3")?, scenario)
            }

            #[test]
            fn on_apache_kafka_3_9() -> anyhow::Result<()> {
                $crate::broker::run(stringify!($name), $crate::broker::Target::apache("3.9")?, scenario)
            }

            #[test]
            fn on_apache_kafka_4() -> anyhow::Result<()> {
                $crate::broker::run(stringify!($name), $crate::broker::Target::apache("4")?, scenario)
            }
        }
    )*};
}
