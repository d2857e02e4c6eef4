//! The log of the test process, as text.

use std::{
    io::{Result, Write},
    sync::LazyLock,
    time::Duration,
};

use parking_lot::Mutex;

use super::PATIENCE;

static TEXT: Mutex<String> = Mutex::new(String::new());

static INSTALLED: LazyLock<()> = LazyLock::new(|| {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_ansi(false)
        .with_writer(|| Writer)
        .init();
});

struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        TEXT.lock().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Collects, from now on, what any thread of the process logs at `info` and above. Call it before a front
/// starts.
pub fn collect() {
    LazyLock::force(&INSTALLED);
}

/// Lines that contain all of `words`, of every test of the process: name something that only one test has.
pub fn lines(words: &[&str]) -> Vec<String> {
    let text = TEXT.lock();
    text.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect()
}

/// Waits until so many lines contain all of `words`.
pub async fn logged(words: &[&str], count: usize) -> Vec<String> {
    let wait = async {
        while lines(words).len() < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "{count} lines with {words:?} in {}", *TEXT.lock());
    lines(words)
}
