//! `causeway buffer`: looks into a disk buffer, of a node that runs or not, and changes nothing.
//!
//! Where the node runs, the end of its last file may be in the middle of a write: that is no damage, and is
//! not reported as such.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::bridge::disk_buffer::FOLDER;
use crate::kafka::buffer::TopicPartition;
use crate::kafka::buffer::disk::Directory;
use crate::kafka::buffer::log::{FileReport, Found, survey};

/// Subcommand of `causeway buffer`.
#[derive(Debug, Subcommand)]
pub(super) enum BufferCommand {
    /// List waiting records by topic and partition; of all buffers where DIR is a data directory
    Ls(Target),
    /// Print the records that wait, oldest first
    Show {
        #[command(flatten)]
        target: Target,
        /// Most records printed
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Read every file and check it; exit code 1 if something is damaged
    Verify(Target),
}

/// Which buffer, and how it is printed.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The directory of a buffer, or the data directory of a node
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

struct Survey {
    path: PathBuf,
    files: Vec<FileReport>,
    found: Found,
}

pub(super) fn run(command: BufferCommand) -> anyhow::Result<ExitCode> {
    match command {
        BufferCommand::Ls(target) => ls(&target),
        BufferCommand::Show { target, limit } => show(&target, limit),
        BufferCommand::Verify(target) => verify(&target),
    }
}

fn surveys(dir: &Path) -> anyhow::Result<Vec<Survey>> {
    let folder = dir.join(FOLDER);
    let mut paths = vec![dir.to_owned()];
    if folder.is_dir() {
        paths = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        paths.sort();
    }
    paths.into_iter().map(look).collect()
}

fn look(path: PathBuf) -> anyhow::Result<Survey> {
    let mut directory = Directory::look(&path).with_context(|| path.display().to_string())?;
    // A node that runs may remove a file between the list and the look.
    let mut surveyed = survey(&mut directory);
    for _ in 0..5 {
        match &surveyed {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => surveyed = survey(&mut directory),
            _ => break,
        }
    }
    let (files, found) = surveyed.with_context(|| path.display().to_string())?;
    Ok(Survey { path, files, found })
}

/// Records and sealed batches by topic and partition.
fn places(found: &Found) -> BTreeMap<TopicPartition, (u64, usize)> {
    let mut places: BTreeMap<TopicPartition, (u64, usize)> = BTreeMap::new();
    for (place, records) in found.places() {
        places.entry(place).or_default().0 = records;
    }
    for (place, seals) in &found.seals {
        places.entry(place.clone()).or_default().1 = seals.len();
    }
    places
}

fn ls(target: &Target) -> anyhow::Result<ExitCode> {
    let surveys = surveys(&target.dir)?;
    let (mut text, mut list) = (String::new(), Vec::new());
    for survey in &surveys {
        let bytes: u64 = survey.files.iter().map(|file| file.bytes).sum();
        let (records, files) = (survey.found.records(), survey.files.len());
        writeln!(text, "{}: {records} records wait, {files} files, {bytes} bytes", survey.path.display())?;
        let mut rows = Vec::new();
        for (TopicPartition { topic, partition }, (records, batches)) in places(&survey.found) {
            let at = if partition < 0 { "not known yet".to_owned() } else { partition.to_string() };
            writeln!(text, "  topic {topic}, partition {at}: {records} records, {batches} batches sealed")?;
            rows.push(json!({ "topic": &*topic, "partition": partition, "records": records, "sealed_batches": batches }));
        }
        list.push(json!({ "path": survey.path, "records": records, "files": files, "bytes": bytes, "places": rows }));
    }
    if surveys.is_empty() {
        text.push_str("no disk buffers\n");
    }
    print(target, &text, &list)?;
    Ok(ExitCode::SUCCESS)
}

fn show(target: &Target, limit: usize) -> anyhow::Result<ExitCode> {
    let (mut text, mut list) = (String::new(), Vec::new());
    for survey in surveys(&target.dir)? {
        let (lines, rows) = read(survey, limit.saturating_sub(list.len()))?;
        text.push_str(&lines);
        list.extend(rows);
    }
    print(target, &text, &list)?;
    Ok(ExitCode::SUCCESS)
}

/// The first records of a buffer, as lines and as JSON.
fn read(mut survey: Survey, limit: usize) -> anyhow::Result<(String, Vec<Value>)> {
    let context = survey.path.display().to_string();
    // A node that runs may send what was found, and remove its file.
    for _ in 0..5 {
        match shown(&survey, limit) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => survey = look(survey.path)?,
            shown => return shown.context(context),
        }
    }
    shown(&survey, limit).context(context)
}

fn shown(survey: &Survey, limit: usize) -> std::io::Result<(String, Vec<Value>)> {
    let (mut text, mut list) = (String::new(), Vec::new());
    survey.found.for_each(&mut Directory::look(&survey.path)?, |number, place, record| {
        if list.len() >= limit {
            return ControlFlow::Break(());
        }
        let shown = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let (key, value) = (shown(record.key), shown(record.value));
        let words =
            |text: &Option<String>| text.as_ref().map_or("null".to_owned(), |text| format!("{text:?}"));
        let _ = writeln!(
            text,
            "{number} {}/{} {} key {} value {}",
            place.topic,
            place.partition,
            record.timestamp,
            words(&key),
            words(&value)
        );
        list.push(json!({
            "number": number, "topic": &*place.topic, "partition": place.partition,
            "timestamp": record.timestamp, "key": key, "value": value,
        }));
        ControlFlow::Continue(())
    })?;
    Ok((text, list))
}

fn verify(target: &Target) -> anyhow::Result<ExitCode> {
    let (mut text, mut list, mut damaged) = (String::new(), Vec::new(), false);
    for survey in surveys(&target.dir)? {
        for file in &survey.files {
            let path = survey.path.join(&file.name);
            let mut problems = Vec::new();
            if let Some(header) = file.header {
                problems.push(format!("its header cannot be used ({header:?})"));
            }
            for gap in &file.damage {
                problems.push(format!("{} bytes at offset {} cannot be read", gap.len, gap.offset));
            }
            damaged |= !problems.is_empty();
            for problem in &problems {
                writeln!(text, "{}: {problem}", path.display())?;
            }
            list.push(json!({
                "file": path, "bytes": file.bytes, "entries": file.entries, "records": file.records,
                "torn_bytes": file.torn, "problems": problems,
            }));
        }
        let (records, lost) = (survey.found.records(), survey.found.lost);
        if lost > 0 {
            writeln!(text, "{}: {lost} record numbers are missing", survey.path.display())?;
        }
        writeln!(text, "{}: {records} records can be read", survey.path.display())?;
    }
    if damaged {
        text.push_str(
            "Copy the directory away before anything else. Then start the node: it sends what can be read, keeps a copy \
             of a damaged file as damaged-*, and says what is missing. Check the disk.\n",
        );
    }
    print(target, &text, &list)?;
    Ok(if damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(target: &Target, text: &str, list: &[Value]) -> anyhow::Result<()> {
    if target.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(list)?))?;
    } else {
        super::print(text)?;
    }
    Ok(())
}
