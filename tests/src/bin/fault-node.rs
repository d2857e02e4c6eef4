//! `tests/faults/run`: a node under faults, for as long as one likes.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use causeway_tests::faults::{Buffer, Kind, Options, Where, run};
use causeway_tests::kafka::versions;

const USAGE: &str = "fault-node [--minutes N] [--seed S] [--episodes N] [--kafka development|VERSION] [--buffer memory|disk|hybrid]
           [--faults none|KIND,KIND..]   KIND: configuration, absence, late-bridge, session-end, way-back
          the seed of each episode is that of the one before and 1";

fn main() -> Result<()> {
    let mut options = Options {
        time: Duration::from_mins(2),
        seed: rand::random_range(0..1_000_000_000),
        episodes: None,
        place: Where::Development,
        buffer: None,
        kinds: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value\n{USAGE}"))?;
        let number =
            || value.replace('_', "").parse::<u64>().with_context(|| format!("{flag} {value} is no number"));
        match (&*flag, &*value) {
            ("--minutes", _) => options.time = Duration::from_mins(number()?),
            ("--seed", _) => options.seed = number()?,
            ("--episodes", _) => options.episodes = Some(u32::try_from(number()?)?),
            ("--kafka", "development") => options.place = Where::Development,
            ("--kafka", _) => {
                let known = versions()?;
                let found = known.iter().find(|version| version.name().starts_with(&value));
                let found =
                    found.with_context(|| format!("Apache Kafka {value} is not here: tests/kafka/fetch"))?;
                options.place = Where::Apache(found.name().to_owned());
            }
            ("--buffer", "memory") => options.buffer = Some(Buffer::Memory),
            ("--buffer", "disk") => options.buffer = Some(Buffer::Disk),
            ("--buffer", "hybrid") => options.buffer = Some(Buffer::Hybrid),
            ("--faults", "none") => options.kinds = Some(Vec::new()),
            ("--faults", _) => {
                let kind = |name| Kind::named(name).with_context(|| format!("no such kind: {name}\n{USAGE}"));
                options.kinds = Some(value.split(',').map(kind).collect::<Result<_>>()?);
            }
            _ => bail!("unknown: {flag} {value}\n{USAGE}"),
        }
    }
    let report = run(&options)?;
    println!("{} episodes on {}: {report}", report.episodes, options.place);
    Ok(())
}
