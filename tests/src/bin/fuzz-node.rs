//! `tests/fuzz/run`: damaged packets and sessions against a running node, for as long as one likes.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use causeway_tests::fuzz::{Options, run};

const USAGE: &str = "fuzz-node [--packets N] [--sessions N] [--seed S] [--workers N] [--seconds N]
          [--only-stream N] [--only-session N]   one connection of the run with this seed";

fn main() -> Result<()> {
    let mut options = Options { seed: rand::random_range(0..1_000_000), ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut number = || -> Result<u64> {
            let text = arguments.next().with_context(|| format!("{flag} needs a number\n{USAGE}"))?;
            text.replace('_', "").parse().with_context(|| format!("{flag} {text} is no number"))
        };
        match flag.as_str() {
            "--packets" => options.packets = number()?,
            "--sessions" => options.sessions = number()?,
            "--seed" => options.seed = number()?,
            "--workers" => options.workers = usize::try_from(number()?)?.max(1),
            "--seconds" => options.time = Duration::from_secs(number()?),
            "--only-stream" => options.only_stream = Some(number()?),
            "--only-session" => options.only_session = Some(number()?),
            _ => bail!("unknown: {flag}\n{USAGE}"),
        }
    }
    println!("seed {}", options.seed);
    println!("fuzz of a running node: {}", run(&options)?);
    Ok(())
}
