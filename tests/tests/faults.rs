//! The judge: see `causeway_tests::faults` and `tests/faults/run`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use causeway_tests::broker::Target;
use causeway_tests::faults::{Options, Where, run};
use causeway_tests::{full, say};

/// Both need the machine.
static ONE: Mutex<()> = Mutex::new(());

fn judge(place: &Where, time: Duration) -> Result<()> {
    let _one_at_a_time = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = std::env::var("CAUSEWAY_SEED")
        .ok()
        .map_or(Ok(rand::random_range(0..1_000_000_000)), |seed| seed.parse())?;
    let report =
        run(&Options { time, seed, episodes: None, place: place.clone(), buffer: None, kinds: None })?;
    say(&format!("judge on Kafka {place}, from seed {seed}: {} episodes, {report}", report.episodes));
    Ok(())
}

#[test]
fn what_is_acknowledged_is_in_the_development_kafka_once_and_in_order() -> Result<()> {
    judge(&Where::Development, if full() { Duration::from_mins(5) } else { Duration::from_secs(10) })
}

#[test]
fn what_is_acknowledged_is_in_three_brokers_of_apache_kafka_once_and_in_order() -> Result<()> {
    if !full() {
        say("judge: Apache Kafka only with CAUSEWAY_FULL=1");
        return Ok(());
    }
    for (series, time) in [("4", Duration::from_mins(3)), ("3.9", Duration::from_mins(1))] {
        if let Some(Target::Apache(version)) = Target::apache(series)? {
            judge(&Where::Apache(version.name().to_owned()), time)?;
        }
    }
    Ok(())
}
