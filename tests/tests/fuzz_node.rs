//! Damaged packets and sessions against a running node, in short: see `causeway_tests::fuzz` and
//! `tests/fuzz/run`.

use std::time::Duration;

use anyhow::Result;
use causeway_tests::fuzz::{Options, run};
use causeway_tests::{full, say};

#[test]
fn damaged_packets_and_sessions_leave_a_node_as_it_was() -> Result<()> {
    let (packets, sessions, seconds) = if full() { (1_000_000, 10_000, 150) } else { (20_000, 300, 30) };
    let time = Duration::from_secs(seconds);
    let report = run(&Options { packets, sessions, seed: 20_26, time, ..Options::default() })?;
    say(&format!("fuzz of a running node: {report}"));
    Ok(())
}
