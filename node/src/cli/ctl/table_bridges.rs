//! Output of `causeway ctl bridges` and `causeway doctor`.

use std::fmt::Write as _;

use serde_json::json;

use super::table::{Align, Table, plain, stats};
use crate::admin::v1::Counter;
use crate::admin::v1_bridges::{BridgeDetail, DeletedInfo};
use crate::probe::{Step, Verdict, has_failed};

/// The steps of a walk, and what it came to.
pub(crate) fn walk(bridge: &str, steps: &[Step]) -> String {
    let row = |step: &Step| {
        let verdict = match step.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        vec![verdict.to_owned(), plain(&step.step), plain(&step.about), plain(&step.found)]
    };
    let columns = ["RESULT", "STEP", "OF", "FOUND"].map(|heading| (heading, Align::Left)).into();
    let mut out = format!("{}\n", plain(bridge));
    out.push_str(&Table { columns, rows: steps.iter().map(row).collect() }.render());
    let fixes: Vec<_> = steps.iter().filter_map(|step| Some((step, step.fix.as_ref()?))).collect();
    if !fixes.is_empty() {
        out.push('\n');
    }
    for (step, fix) in fixes {
        let _ = writeln!(out, "{} of {}: {}", plain(&step.step), plain(&step.about), plain(fix));
    }
    let end =
        if has_failed(steps) { "the bridge cannot work like this" } else { "nothing stands in its way" };
    let _ = writeln!(out, "\n{}: {end}", plain(bridge));
    out
}

/// The same as JSON.
pub(crate) fn walks_json(walks: &[(String, Vec<Step>)]) -> anyhow::Result<String> {
    let walk =
        |(id, steps): &(String, Vec<Step>)| json!({ "bridge": id, "ok": !has_failed(steps), "steps": steps });
    let all: Vec<_> = walks.iter().map(walk).collect();
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

/// Records that went with a bridge.
pub(super) fn deleted(info: &DeletedInfo) -> String {
    let id = plain(&info.id);
    if info.records == 0 {
        return format!("bridge {id} deleted, it held nothing\n");
    }
    format!(
        "bridge {id} deleted with {} records ({} bytes waited): {} dropped (dropped.resource_stopped), {} failed, whose publishers are told\n",
        info.records, info.bytes, info.dropped, info.failed
    )
}

/// Thousandths as a decimal number.
pub(super) fn rate(thousandths: u64) -> f64 {
    // Rates are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let rate = thousandths as f64 / 1000.0;
    rate
}

/// Everything about a bridge.
pub(super) fn detail(detail: &BridgeDetail) -> String {
    let mut out = stats(std::slice::from_ref(&detail.stats), &[]);
    out.push('\n');
    for Counter { name, value } in &detail.measures {
        let _ = match name.as_str() {
            rate_name if rate_name.starts_with("rate") => {
                writeln!(out, "{rate_name:<16} {:.1}/s", rate(*value))
            }
            "partitions" | "latency.batches" => writeln!(out, "{name:<16} {value}"),
            // Microseconds.
            _ => writeln!(out, "{:<16} {:.1} ms", plain(name), rate(*value)),
        };
    }
    out
}
