//! The sections beside listeners, bridges and MQTT: the node itself, logging, the admin link.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::address::read_bind;
use super::kind::Kind;
use super::kind_numbers::{bytes, seconds};
use super::kind_values::{Parsed, boolean, choice, parsed};
use super::section::{choices, nested, section};
use super::units::ByteSize;
use crate::mqtt;

section! {
    /// Who this node is and where it keeps its data.
    pub struct NodeConfig {
        /// Name of this node. It shows in `${node}` and in Kafka's own tools as part of the client id; two
        /// nodes of one cluster need different names.
        name: String => parsed("text", read_node_name, |name| name.as_str().into())
            .allowing("letters, digits, `.`, `_`, `-`; at most 128")
            .or_else(host_name, "name of the host");
        /// Folder for everything that this node keeps. Relative paths count from where the node is started.
        data_dir: PathBuf => path().or(PathBuf::from("data"));
        /// Bytes that all producer bridges together may hold in memory for Kafka, 32 bytes a message counted
        /// for the books. Beyond it each bridge drops its oldest QoS 0 messages for new ones, and publishers
        /// of QoS 1 and 2 have to wait. Every partition with something to send may hold 64 KiB all the same.
        max_buffer_memory: ByteSize => bytes().at_least(ByteSize::mb(1))
            .or_else(|| ByteSize(mqtt::half_of_memory()), "half of the machine's memory, or the container's");
    }
}

section! {
    /// Looking after the machine.
    pub struct SysmonConfig {
        /// The operating system.
        os: SysmonOsConfig => nested();
    }
}

section! {
    /// Looking after the operating system.
    pub struct SysmonOsConfig {
        /// Use of memory at which it counts as short: bridges with `buffer.memory_overload_protection` then
        /// drop their oldest QoS 0 messages for new ones. The machine's use, or that of the container where
        /// it has a limit.
        sysmem_high_watermark: u8 => parsed("percentage", read_percentage, |share| format!("{share}%").into())
            .allowing("`1%` to `100%`, or a share of 1 as `0.7`").or(70);
        /// How often it is looked at.
        mem_check_interval: Duration => seconds().at_least(Duration::from_millis(10)).or(Duration::from_secs(1));
    }
    ignored { "cpu_check_interval" "cpu_high_watermark" "cpu_low_watermark" "procmem_high_watermark" }
}

fn read_percentage(text: &str) -> Result<u8, String> {
    let share = match text.trim().strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().ok(),
        None => text.trim().parse::<f64>().ok().filter(|share| *share <= 1.0).map(|share| share * 100.0),
    };
    share
        .map(f64::round)
        .filter(|share| (1.0..=100.0).contains(share))
        .map(|share| share as u8)
        .ok_or_else(|| "a percentage from 1% to 100% is expected, such as 70%".to_owned())
}

choices! {
    /// How much is logged.
    pub enum LogLevel {
        /// Faults that stop something from working.
        Error = "error";
        /// Faults that leave something working less well than it should.
        Warn = "warn" | "warning";
        /// Rare events that matter.
        Info = "info" | "notice";
        /// Details that help to find a fault.
        Debug = "debug";
        /// Everything.
        Trace = "trace";
    }
}

choices! {
    /// How a log line looks.
    pub enum LogFormat {
        /// For people.
        Text = "text";
        /// One JSON object a line.
        Json = "json";
    }
}

section! {
    /// Logging, to standard error.
    pub struct LogConfig {
        /// How much is logged. The environment variable `RUST_LOG` overrides it and can choose by module.
        level: LogLevel => choice().or(LogLevel::Info);
        /// How a line looks.
        format: LogFormat => choice().or(LogFormat::Text);
    }
}

section! {
    /// The link that `causeway ctl` uses.
    pub struct AdminConfig {
        /// Whether the link is opened.
        enable: bool => boolean().or(true);
        /// Address and port. The link trusts who can reach it, so only loopback addresses are allowed.
        bind: SocketAddr => bind().check(is_loopback).or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081));
    }
}

pub(super) fn bind() -> Parsed<SocketAddr> {
    parsed("address", read_bind, |address| address.to_string().into())
}

fn is_loopback(address: &SocketAddr) -> Result<(), String> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err("the admin link trusts who can reach it: only a loopback address is allowed, such as 127.0.0.1:8081"
        .into())
}

fn path() -> Parsed<PathBuf> {
    parsed(
        "path",
        |text| if text.is_empty() { Err("empty; write a folder".into()) } else { Ok(PathBuf::from(text)) },
        |path| path.display().to_string().into(),
    )
}

fn read_node_name(name: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 128 || !name.chars().all(legal) {
        return Err("not a node name; write letters, digits, `.`, `_` or `-`, at most 128 of them".into());
    }
    Ok(name.to_owned())
}

/// The name of the host as far as it is a legal node name, or `causeway`.
fn host_name() -> String {
    let raw = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"));
    raw.ok().and_then(|name| read_node_name(name.trim()).ok()).unwrap_or_else(|| "causeway".into())
}

/// How many files this process may hold open, where the system tells; every connection takes one.
pub fn open_files_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
