//! Units of configuration values: byte sizes in powers of 1024 and durations.
//!
//! Reading is exact (no floating point, overflow is an error), and what [`show_duration`] and
//! [`ByteSize`]'s `Display` write reads back as the same value.

use std::fmt;
use std::time::Duration;

use crate::mqtt::Rate;

/// A number of bytes. Written `512B`, `896KB`, `1MB`, `2GB` (powers of 1024) or as a bare number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const KB: u64 = 1 << 10;
const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;

impl ByteSize {
    /// `count` times 1024 bytes.
    pub const fn kb(count: u64) -> Self {
        Self(count * KB)
    }

    /// `count` times 1024 * 1024 bytes.
    pub const fn mb(count: u64) -> Self {
        Self(count * MB)
    }

    /// `count` times 1024 * 1024 * 1024 bytes.
    pub const fn gb(count: u64) -> Self {
        Self(count * GB)
    }

    /// The bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The bytes as a length in memory.
    pub const fn as_usize(self) -> usize {
        if self.0 > usize::MAX as u64 { usize::MAX } else { self.0 as usize }
    }

    /// Reads a byte size; the error says what is wrong with `text`.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, unit) = split_number(text);
        let factor = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => KB,
            "mb" => MB,
            "gb" => GB,
            _ => {
                return Err(
                    "not a byte size; write a whole number with B, KB, MB or GB, such as 896KB".into()
                );
            }
        };
        if number.is_empty() {
            return Err("not a byte size; write a whole number with B, KB, MB or GB, such as 896KB".into());
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(factor))
            .map(Self)
            .ok_or_else(|| "too large for a byte size".into())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(GB, "GB"), (MB, "MB"), (KB, "KB")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Unit of a bare number in a duration field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BaseUnit {
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
}

impl BaseUnit {
    const fn millis(self) -> u64 {
        match self {
            Self::Millis => 1,
            Self::Seconds => 1000,
        }
    }

    /// Its name in texts for the user.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Millis => "milliseconds",
            Self::Seconds => "seconds",
        }
    }
}

const NOT_A_DURATION: &str = "not a duration; write a whole number with ms, s, m, h, d or w, such as 500ms or 5s (parts may be joined: 1h30m)";

/// Reads a duration such as `500ms`, `5s` or `1h30m`; a bare number counts in `base`.
pub(super) fn read_duration(text: &str, base: BaseUnit) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(NOT_A_DURATION.into());
    }
    let mut total: u64 = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        let (number, tail) = split_number(rest);
        if number.is_empty() {
            return Err(NOT_A_DURATION.into());
        }
        let tail = tail.trim_start();
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" if parts == 0 && after.is_empty() => base.millis(),
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(NOT_A_DURATION.into()),
        };
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(factor))
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| "too long for a duration".to_owned())?;
        parts += 1;
        rest = after.trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration in the largest unit that fits it exactly; below a millisecond it is cut off.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if millis >= factor && millis.is_multiple_of(factor) || (millis == 0 && unit == "s") {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

/// Reads a number in a span of time: `COUNT`, `COUNT/s`, `COUNT/10s`; `count` reads the first part. None: not
/// a rate.
pub(super) fn read_rate(text: &str, count: impl Fn(&str) -> Result<u64, String>) -> Option<Rate> {
    let (amount, time) = text.trim().split_once('/').unwrap_or((text, "1s"));
    let time = time.trim();
    // `/s` is `/1s`.
    let unit_alone = time.starts_with(|c: char| c.is_ascii_alphabetic());
    let per = if unit_alone {
        read_duration(&format!("1{time}"), BaseUnit::Seconds)
    } else {
        read_duration(time, BaseUnit::Seconds)
    };
    let rate = Rate { count: count(amount.trim()).ok()?, per: per.ok()? };
    (rate.count > 0 && !rate.per.is_zero()).then_some(rate)
}

/// Writes a rate whose count is shown as `count`.
pub(super) fn show_rate(rate: Rate, count: &impl fmt::Display) -> String {
    let time = show_duration(rate.per);
    // `1s` is `s`; `1ms` and the like keep their number.
    format!("{count}/{}", if time == "1s" { "s" } else { &time })
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn what_is_written_reads_back_as_the_same_value() {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            // Few significant bits at any height: reaches every unit and the odd values between.
            let bytes = ByteSize(random.random::<u64>() >> random.random_range(0..64));
            assert_eq!(ByteSize::read(&bytes.to_string()), Ok(bytes), "seed {seed}");
            let exact =
                ByteSize(random.random_range(0..4096_u64) << [0, 10, 20, 30][random.random_range(0..4)]);
            assert_eq!(ByteSize::read(&exact.to_string()), Ok(exact), "seed {seed}");
            let factor = [1, 1000, 60_000, 3_600_000, 86_400_000, 604_800_000][random.random_range(0..6)];
            let duration = Duration::from_millis(random.random_range(0..1_000_000_u64) * factor);
            let base = if random.random() { BaseUnit::Millis } else { BaseUnit::Seconds };
            assert_eq!(read_duration(&show_duration(duration), base), Ok(duration), "seed {seed}");
        }
    }

    #[test]
    fn units_of_bytes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("896KB", 896 * 1024),
            ("1024kb", 1 << 20),
            (" 1 MB ", 1 << 20),
            ("2GB", 2 << 30),
        ] {
            assert_eq!(ByteSize::read(text), Ok(ByteSize(bytes)), "{text}");
        }
        for text in
            ["", "KB", "1.5MB", "-1", "10TB", "10 KiB", "1MB2", "18446744073709551616", "99999999999GB"]
        {
            assert!(ByteSize::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_so_many_in_so_much_time() {
        let count = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        for (text, amount, millis) in [
            ("1000", 1000, 1000),
            ("1000/s", 1000, 1000),
            (" 500 / 10s ", 500, 10_000),
            ("7/m", 7, 60_000),
            ("7/100ms", 7, 100),
            ("7/5", 7, 5000),
        ] {
            let rate = Rate { count: amount, per: Duration::from_millis(millis) };
            assert_eq!(read_rate(text, count), Some(rate), "{text}");
            assert_eq!(read_rate(&show_rate(rate, &amount), count), Some(rate), "{text}");
        }
        for text in ["", "/s", "0", "0/s", "1/0s", "1/", "1//s", "1/parsec", "-1/s", "1.5/s"] {
            assert_eq!(read_rate(text, count), None, "{text}");
        }
        let bytes = |text: &str| ByteSize::read(text).map(ByteSize::bytes);
        assert_eq!(read_rate("100KB/s", bytes), Some(Rate::per_second(100 << 10)));
        assert_eq!(show_rate(Rate::per_second(100 << 10), &ByteSize::kb(100)), "100KB/s");
    }

    #[test]
    fn a_bare_number_counts_in_the_base_unit_of_the_field() {
        assert_eq!(read_duration("3", BaseUnit::Seconds), Ok(Duration::from_secs(3)));
        assert_eq!(read_duration("3", BaseUnit::Millis), Ok(Duration::from_millis(3)));
        assert_eq!(read_duration("1w", BaseUnit::Millis), Ok(Duration::from_hours(168)));
        assert_eq!(read_duration("1h30m", BaseUnit::Millis), Ok(Duration::from_mins(90)));
        assert_eq!(read_duration("2 S", BaseUnit::Millis), Ok(Duration::from_secs(2)));
        for text in
            ["", "s", "1.5s", "-1s", "5 parsecs", "5s3", "3 4", "99999999999999999999s", "9999999999999999w"]
        {
            assert!(read_duration(text, BaseUnit::Millis).is_err(), "{text}");
        }
    }
}
