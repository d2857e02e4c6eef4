//! The try-it clients: `causeway dev publish`, `subscribe`, `produce` and `consume`.
//!
//! They are built on `mqttbytes` and `rskafka` and not on this crate's own codec and client, so that what
//! they show is a second opinion: a message that one of them wrote and another one reads went through
//! nothing of ours but the service itself.
//!
//! Received messages go to standard output, remarks to standard error. They end
//! with an error when less happened than was asked for.

mod kafka;
mod link;
mod publish;
mod subscribe;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

pub use kafka::{ConsumeArgs, ProduceArgs};
pub use publish::PublishArgs;
pub use subscribe::SubscribeArgs;

/// Time to open a connection: everything runs on this machine or near it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes as a person reads them: text as it is, with control characters escaped so that no message can
/// steer the terminal; anything else as hexadecimal digits.
fn readable(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        let mut digits = String::with_capacity(2 + 2 * bytes.len());
        digits.push_str("0x");
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        return digits;
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Writes a line of what was received. `false` when there is no reader any more, as behind `| head`.
fn show(out: &mut impl Write, line: std::fmt::Arguments<'_>) -> io::Result<bool> {
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// `1 message`, `2 messages`.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A timeout given in seconds on the command line.
fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| format!("`{text}` is not a number of seconds above 0, such as 10 or 0.5"))
}
