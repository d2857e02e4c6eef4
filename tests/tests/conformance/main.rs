//! MQTT 3.1, 3.1.1 and 5.0, section by section: exact bytes to the real binary, exact packets and reason
//! codes back.
//!
//! Every case is a test of this target and names the section and statement that it holds the server to. They
//! share no code with the node: see `causeway_tests::mqtt`. What is covered and where we deviate on purpose
//! is in `docs/mqtt-conformance.md`.
//!
//! ```text
//! cargo test -p causeway-tests --test conformance -- [WORDS]      cases whose title contains WORDS
//! ... -- --list                                                   their titles
//! ... -- --table                                                  the table of the document
//! CAUSEWAY_CONFORMANCE_ADDRESS=HOST:PORT ...                      another server
//! CAUSEWAY_CONFORMANCE_LENIENT=1 ...                              and however it ends connections is well
//! ```

mod acknowledgements;
mod authentication;
mod connect;
mod data;
mod delivery;
mod disconnect;
mod framing;
mod header;
mod limits;
mod mqtt31;
mod properties;
mod publish;
mod retained;
mod sessions;
mod shared;
mod subscribe;
mod suite;
mod topics;
mod unsubscribe;
mod websocket;
mod will;

use std::process::ExitCode;
use std::time::Instant;

use suite::{Instances, Suite};

/// Fewer cases than this are not the suite.
const AT_LEAST: usize = 400;

/// Begin and end of the table in the document.
const MARKS: [&str; 2] = ["<!-- begin of the table of cases -->\n", "<!-- end of the table of cases -->"];

fn suite() -> Suite {
    let mut suite = Suite::new();
    data::cases(&mut suite);
    header::cases(&mut suite);
    properties::cases(&mut suite);
    connect::cases(&mut suite);
    will::cases(&mut suite);
    publish::cases(&mut suite);
    acknowledgements::cases(&mut suite);
    subscribe::cases(&mut suite);
    unsubscribe::cases(&mut suite);
    disconnect::cases(&mut suite);
    sessions::cases(&mut suite);
    retained::cases(&mut suite);
    topics::cases(&mut suite);
    shared::cases(&mut suite);
    delivery::cases(&mut suite);
    framing::cases(&mut suite);
    limits::cases(&mut suite);
    mqtt31::cases(&mut suite);
    authentication::cases(&mut suite);
    websocket::cases(&mut suite);
    suite.repeat_over_other_transports();
    suite
}

/// What is wrong with the suite itself.
fn faults(suite: &Suite) -> Vec<String> {
    let mut faults: Vec<String> = suite::doubled(&suite.cases)
        .into_iter()
        .map(|title| format!("two cases are called `{title}`"))
        .collect();
    if suite.cases.len() < AT_LEAST {
        faults.push(format!("only {} cases, at least {AT_LEAST} are wanted", suite.cases.len()));
    }
    let document = include_str!("../../../docs/mqtt-conformance.md");
    let shown = document.split_once(MARKS[0]).and_then(|(_, rest)| rest.split_once(MARKS[1]));
    if shown.is_none_or(|(shown, _)| shown != suite::table(&suite.cases)) {
        faults.push("the table in docs/mqtt-conformance.md is not that of the suite: see --table".to_owned());
    }
    faults
}

fn main() -> ExitCode {
    let (mut words, mut list, mut table) = (Vec::new(), false, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--list" => list = true,
            "--table" => table = true,
            // What `cargo test` hands to every target means nothing here.
            flag if flag.starts_with('-') => {}
            word => words.push(word.to_owned()),
        }
    }
    let mut suite = suite();
    if table {
        print!("{}", suite::table(&suite.cases));
        return ExitCode::SUCCESS;
    }
    let faults = if words.is_empty() { faults(&suite) } else { Vec::new() };
    suite.cases.retain(|case| words.iter().all(|word| case.title().contains(word.as_str())));
    if list {
        for case in &suite.cases {
            println!("{}: test", case.title());
        }
        return ExitCode::SUCCESS;
    }
    let foreign = std::env::var("CAUSEWAY_CONFORMANCE_ADDRESS").ok().filter(|address| !address.is_empty());
    println!("\nrunning {} tests", suite.cases.len());
    let started = Instant::now();
    let lenient = foreign.is_some() && std::env::var_os("CAUSEWAY_CONFORMANCE_LENIENT").is_some();
    let instances = match Instances::new(foreign, lenient) {
        Ok(instances) => instances,
        Err(error) => {
            println!("no certificates for the nodes: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let foreign = instances.is_foreign();
    let outcome = suite::run(&suite.cases, &instances);
    let mut failed = outcome.failed;
    if let Err(error) = instances.stop() {
        failed.push(("the end of the nodes".to_owned(), format!("{error:#}")));
    }
    if !foreign {
        failed.extend(faults.into_iter().map(|fault| ("the suite itself".to_owned(), fault)));
    }
    failed.sort();
    if !failed.is_empty() {
        println!("\nfailures:\n");
        for (title, why) in &failed {
            println!("---- {title}\n{why}\n");
        }
        println!("failures:");
        for (title, _) in &failed {
            println!("    {title}");
        }
    }
    if let Some((took, title)) = outcome.slowest {
        println!("\nslowest: {:.1} s, {title}", took.as_secs_f32());
    }
    println!("\nMQTT conformance: {} of {} cases passed", outcome.passed, suite.cases.len());
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; {} left out; finished in {:.2}s\n",
        outcome.passed,
        failed.len(),
        outcome.left_out,
        started.elapsed().as_secs_f32()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
