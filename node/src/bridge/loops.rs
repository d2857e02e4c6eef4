//! Loops among the bridges of a node, whether the configuration file describes them or they were made at
//! run time.

use std::collections::BTreeMap;

use super::service::{BridgeId, Definition, Kind};
use crate::config::BridgesConfig;
use crate::config::loops::{Loop, Loops};

/// The certain loops among the bridges that there are to be, one line each. Of the possible ones those are
/// logged that `file`, what the configuration file says, does not have.
pub(crate) fn at_start(wanted: &BTreeMap<BridgeId, Definition>, file: &[String]) -> Vec<String> {
    let loops = gathered(wanted.iter()).all();
    let (certain, possible): (Vec<Loop>, Vec<Loop>) = loops.into_iter().partition(|found| found.certain);
    for found in possible.iter().filter(|found| !file.contains(&found.message)) {
        warn(found);
    }
    certain.into_iter().map(|found| found.message).collect()
}

/// The possible loops among the bridges of a configuration file.
pub(crate) fn possible(file: &BridgesConfig) -> Vec<String> {
    let loops = Loops::of(file).all().into_iter();
    loops.filter(|found| !found.certain).map(|found| found.message).collect()
}

/// The certain loops through one of the bridges `changed`, which are new or take the place of those of
/// `others` with their ids; one line each. The possible ones are logged.
pub(super) fn objections<'d>(
    changed: &'d [(BridgeId, Definition)],
    others: impl Iterator<Item = (&'d BridgeId, &'d Definition)>,
) -> Vec<String> {
    let others = others.filter(|(other, _)| !changed.iter().any(|(id, _)| id == *other));
    let all = others.chain(changed.iter().map(|(id, definition)| (id, definition)));
    let ids: Vec<_> = changed.iter().map(|(id, _)| id).collect();
    let (certain, possible): (Vec<Loop>, Vec<Loop>) =
        through(&ids, all).into_iter().partition(|found| found.certain);
    for found in &possible {
        warn(found);
    }
    certain.into_iter().map(|found| found.message).collect()
}

/// Loops through one of the bridges `ids`.
pub(super) fn through<'d>(
    ids: &[&'d BridgeId],
    all: impl Iterator<Item = (&'d BridgeId, &'d Definition)>,
) -> Vec<Loop> {
    let named = |kind| {
        let of_kind = ids.iter().filter(move |id| id.kind == kind);
        of_kind.map(|id| id.name.as_str()).collect::<Vec<_>>()
    };
    gathered(all).through_any(&named(Kind::Producer), &named(Kind::Consumer))
}

fn gathered<'d>(bridges: impl Iterator<Item = (&'d BridgeId, &'d Definition)>) -> Loops<'d> {
    let mut loops = Loops::default();
    for (id, definition) in bridges {
        match definition {
            Definition::Producer(config) => loops.add_producer(&id.name, config),
            Definition::Consumer(config) => loops.add_consumer(&id.name, config),
        }
    }
    loops
}

fn warn(found: &Loop) {
    tracing::warn!("{}", found.message);
}
