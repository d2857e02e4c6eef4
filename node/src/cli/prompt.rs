//! Reading a password: from a terminal without showing it, or the first line of standard input.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::access::passwords::LONGEST_PASSWORD;

/// Switches the terminal's echo on again.
struct Silence;

fn stty(setting: &str) -> bool {
    let status = Command::new("stty").arg(setting).stdin(Stdio::inherit()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Silence {
    fn begin() -> Option<Self> {
        stty("-echo").then_some(Self)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        stty("echo");
        eprintln!();
    }
}

fn line() -> Result<Vec<u8>> {
    // One byte more than is allowed, and a line end.
    let mut input = std::io::stdin().lock().take(LONGEST_PASSWORD as u64 + 3);
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line).context("standard input cannot be read")?;
    while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        line.pop();
    }
    match line.len() {
        0 => bail!("the password is empty"),
        length if length > LONGEST_PASSWORD => bail!("the password is longer than {LONGEST_PASSWORD} bytes"),
        _ => Ok(line),
    }
}

fn ask(prompt: &str) -> Result<Vec<u8>> {
    eprint!("{prompt}: ");
    std::io::stderr().flush()?;
    let silence = Silence::begin();
    if silence.is_none() {
        bail!("the terminal cannot be told not to show what is typed (stty); pipe the password in instead");
    }
    line()
}

/// Asks for a new password, on a terminal twice.
pub(crate) async fn new_password() -> Result<Vec<u8>> {
    if !std::io::stdin().is_terminal() {
        return line();
    }
    let asked = tokio::task::spawn_blocking(|| {
        let first = ask("Password")?;
        if ask("Again")? != first {
            bail!("the two are not the same; nothing was changed");
        }
        Ok(first)
    });
    tokio::select! {
        asked = asked => asked?,
        _ = tokio::signal::ctrl_c() => {
            // The thread that reads cannot be interrupted, and must not leave a silent terminal.
            stty("echo");
            eprintln!();
            std::process::exit(130);
        }
    }
}
