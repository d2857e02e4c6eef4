//! Child processes of tests.
//!
//! Invariants:
//! * A [`Process`] that is dropped has ended: it is killed and waited for.
//! * When the test process itself dies without dropping anything (a crash, a timeout's SIGKILL, ctrl-C,
//!   statics at exit), the reaper ends what is left: one small shell per test process that reads from a
//!   pipe what to kill and what to remove, and acts when the pipe closes.
//! * Output is read all the time, so a child never blocks on it; the last [`KEPT_LINES`] lines are kept.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of output kept for each process: enough to explain a failure, and for every message that a test lets
/// a subscriber print.
const KEPT_LINES: usize = 100_000;

/// How often a wait without an event to wait for looks again.
const POLL: Duration = Duration::from_millis(10);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<String>,
    /// Lines that came before the kept ones.
    dropped: usize,
    open_streams: usize,
}

#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Output {
    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        lock(&self.lines).open_streams += 1;
        let output = Arc::clone(self);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                line.clear();
                let mut lines = lock(&output.lines);
                if lines.kept.len() == KEPT_LINES {
                    lines.kept.pop_front();
                    lines.dropped += 1;
                }
                lines.kept.push_back(text);
                drop(lines);
                output.changed.notify_all();
            }
            lock(&output.lines).open_streams -= 1;
            output.changed.notify_all();
        });
    }
}

/// A running child process.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

impl Process {
    /// Starts `command` in a process group of its own. Its standard input is a pipe only if the caller
    /// asked for one in `command`.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        reaper().tell("kill", &child.id().to_string());
        let output = Arc::new(Output::default());
        if let Some(stdout) = child.stdout.take() {
            output.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            output.follow(stderr);
        }
        Ok(Self { name: name.to_owned(), child, output })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's standard input, once, where the command asked for a pipe.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits for a line of output (either stream) from which `find` makes something.
    /// Lines that came before the call count. Fails at `timeout` and when the process has ended.
    pub fn wait_for<T>(&self, timeout: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut lines = lock(&self.output.lines);
        loop {
            let skip = seen.max(lines.dropped) - lines.dropped;
            if let Some(found) = lines.kept.iter().skip(skip).find_map(|line| find(line)) {
                return Ok(found);
            }
            seen = lines.dropped + lines.kept.len();
            if lines.open_streams == 0 {
                drop(lines);
                bail!("{} ended before it said what was waited for:\n{}", self.name, self.tail(30));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                bail!("{} did not say what was waited for within {timeout:?}:\n{}", self.name, self.tail(30));
            }
            lines = self.output.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last lines of output.
    pub fn tail(&self, lines: usize) -> String {
        let all = lock(&self.output.lines);
        let skip = all.kept.len().saturating_sub(lines);
        all.kept.iter().skip(skip).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The kept lines of output that contain a text.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let all = lock(&self.output.lines);
        all.kept.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}:\n{}", self.name, self.tail(30));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) -> Result<()> {
        self.signal("HUP")
    }

    /// Asks it to end (SIGTERM) and waits; what has not ended at `timeout` is killed and is an error.
    pub fn terminate(mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait(timeout)
    }

    /// Ends it at once (SIGKILL) and waits for that.
    pub fn kill(mut self) {
        self.end();
    }

    /// Stops it where it stands (SIGSTOP): it keeps its sockets and answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a paused process go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status()?;
        if !status.success() {
            bail!("cannot send SIG{signal} to {}: it has ended:\n{}", self.name, self.tail(30));
        }
        Ok(())
    }

    fn end(&mut self) {
        // Both fail only where the process has already ended and been waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Told before the wait: from then on the id may belong to somebody else.
        reaper().tell("forget", &self.pid().to_string());
        self.end();
    }
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails, with everything it said, if the exit status is not 0.
    pub fn successful(self) -> Result<Self> {
        if !self.status.success() {
            bail!("{}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr);
        }
        Ok(self)
    }
}

/// Runs a command to its end with `input` on its standard input. At `timeout` it is killed, which is an
/// error that shows what it had said.
pub fn run(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Finished> {
    let what = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
    let id = child.id().to_string();
    reaper().tell("kill", &id);
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // An error here is a closed pipe: what came before it is the output.
                drop(stream.read_to_end(&mut bytes));
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = collect(child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let stderr = collect(child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let feeder = child.stdin.take().map(|mut stdin| {
        let input = input.to_vec();
        // A command that does not read all of its input closes the pipe: its status tells the rest.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let deadline = Instant::now() + timeout;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => std::thread::sleep(POLL),
        }
    };
    reaper().tell("forget", &id);
    if status.is_none() {
        drop(child.kill());
        drop(child.wait());
    }
    if let Some(feeder) = feeder {
        drop(feeder.join());
    }
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    match status {
        Some(status) => Ok(Finished { status, stdout, stderr }),
        None => bail!("still running after {timeout:?}: {what}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"),
    }
}

/// Resident memory of a process in MB, rounded up.
pub fn resident_mb(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("there is no {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kilobytes.div_ceil(1024))
}

/// Removes `directory` with everything in it should this process end without doing so itself.
pub fn remove_at_exit(directory: &Path) {
    reaper().tell("remove", &directory.display().to_string());
}

/// `directory` is gone: nothing is left to remove.
pub(crate) fn removed(directory: &Path) {
    reaper().tell("keep", &directory.display().to_string());
}

/// Unmounts what is mounted at `directory` should this process end without doing so itself.
pub(crate) fn unmount_at_exit(directory: &Path) {
    reaper().tell("unmount", &directory.display().to_string());
}

/// Nothing is mounted at `directory` any more.
pub(crate) fn unmounted(directory: &Path) {
    reaper().tell("unmounted", &directory.display().to_string());
}

struct Reaper {
    /// `None` where the shell could not be started: drops still end everything.
    pipe: Option<Mutex<ChildStdin>>,
}

impl Reaper {
    fn tell(&self, verb: &str, what: &str) {
        if let Some(pipe) = &self.pipe {
            // Fails only where somebody killed the reaper: drops still end everything.
            drop(lock(pipe).write_all(format!("{verb} {what}\n").as_bytes()));
        }
    }
}

const REAPER: &str = r#"
trap '' INT TERM HUP
pids=' ' directories=' ' mounts=' '
while read -r verb what; do
  case $verb in
    kill) pids="$pids$what " ;;
    forget) pids=$(printf %s "$pids" | sed "s| $what | |") ;;
    remove) directories="$directories$what " ;;
    keep) directories=$(printf %s "$directories" | sed "s| $what | |") ;;
    unmount) mounts="$mounts$what " ;;
    unmounted) mounts=$(printf %s "$mounts" | sed "s| $what | |") ;;
  esac
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
for mount in $mounts; do umount -l "$mount" 2>/dev/null; done
for directory in $directories; do rm -rf "$directory"; done
"#;

fn reaper() -> &'static Reaper {
    static REAPER_PROCESS: OnceLock<Reaper> = OnceLock::new();
    REAPER_PROCESS.get_or_init(|| {
        let child = Command::new("sh")
            .args(["-c", REAPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        // The pipe's write end is close-on-exec, so only this process holds it open.
        Reaper { pipe: child.ok().and_then(|mut child| child.stdin.take()).map(Mutex::new) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_line_is_found_whenever_it_comes() {
        let process = Process::spawn("echo", &mut shell("echo one; echo two >&2; exec sleep 60")).unwrap();
        let word = |wanted: &'static str| move |line: &str| (line == wanted).then_some(());
        process.wait_for(SOON, word("two")).unwrap();
        process.wait_for(SOON, word("one")).unwrap();
        let error = process.wait_for(Duration::from_millis(50), word("three")).unwrap_err();
        assert!(error.to_string().contains("did not say"), "{error}");
    }

    #[test]
    fn the_wait_for_a_line_ends_with_the_process() {
        let process = Process::spawn("short", &mut shell("echo why it ended")).unwrap();
        let error = process.wait_for(SOON, |line| (line == "never").then_some(())).unwrap_err();
        assert!(error.to_string().contains("why it ended"), "{error}");
    }

    #[test]
    fn a_dropped_process_has_ended() {
        let process = Process::spawn("sleep", &mut shell("exec sleep 60")).unwrap();
        let pid = process.pid();
        assert!(alive(pid));
        drop(process);
        assert!(!alive(pid));
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_shows_what_it_said() {
        let error =
            run(&mut shell("echo so far; exec sleep 60"), b"", Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("so far"), "{error}");
    }

    #[test]
    fn the_reaper_kills_and_removes_when_its_pipe_closes() {
        let directory = tempfile::tempdir().unwrap().keep();
        let kept = tempfile::tempdir().unwrap();
        let mut child = shell("exec sleep 60").spawn().unwrap();
        let script = format!(
            "kill 999999999\nforget 999999999\nkill {}\nremove {}\nremove {}\nkeep {}\n",
            child.id(),
            directory.display(),
            kept.path().display(),
            kept.path().display()
        );
        run(&mut shell(REAPER), script.as_bytes(), SOON).unwrap().successful().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        assert!(!directory.exists());
        assert!(kept.path().exists());
    }
}
