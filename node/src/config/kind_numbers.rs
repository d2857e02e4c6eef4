//! Kinds with an order: whole numbers, durations and byte sizes, each within a range.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value as Json;

use super::kind::{Kind, Secrets};
use super::tree::{Node, Walk};
use super::units::{BaseUnit, ByteSize, read_duration, show_duration};

/// Longest duration that can be configured: what fits a 32-bit count of milliseconds.
const LONGEST: Duration = Duration::from_hours(49 * 24);

/// Largest byte size that can be configured, so that sums of sizes do not overflow: 1 PB.
const LARGEST: ByteSize = ByteSize::gb(1 << 20);

#[derive(Clone, Copy, PartialEq)]
enum Told {
    Nothing,
    Least,
    Both,
}

/// Kind of an ordered value within a range.
pub(super) struct Ranged<T> {
    name: String,
    range: RangeInclusive<T>,
    /// Part of the range worth a word.
    told: Told,
    read: fn(&str) -> Result<T, String>,
    show: fn(&T) -> String,
    json: fn(&T) -> Json,
}

impl<T: PartialOrd> Ranged<T> {
    /// Narrows the range.
    pub(super) fn within(mut self, range: RangeInclusive<T>) -> Self {
        self.range = range;
        self.told = Told::Both;
        self
    }
}

impl<T: PartialOrd + Clone> Ranged<T> {
    /// Narrows the range from below.
    pub(super) fn at_least(mut self, least: T) -> Self {
        self.range = least..=self.range.end().clone();
        self.told = Told::Least;
        self
    }
}

impl<T: PartialOrd + Clone> Kind for Ranged<T> {
    type Out = T;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<T> {
        let Some(text) = node.scalar() else {
            return walk.wrong(node, format!("a single value is expected here ({})", self.name));
        };
        match (self.read)(text.trim()) {
            Ok(value) if self.range.contains(&value) => Some(value),
            Ok(_) => {
                let range =
                    format!("{} to {}", (self.show)(self.range.start()), (self.show)(self.range.end()));
                walk.wrong(node, format!("out of range; allowed: {range}"))
            }
            Err(message) if self.told == Told::Both => {
                walk.wrong(node, format!("{message}; allowed: {}", self.limits()))
            }
            Err(message) => walk.wrong(node, message),
        }
    }

    fn json(&self, value: &T, _: Secrets) -> Json {
        (self.json)(value)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn allowed(&self) -> String {
        if self.told == Told::Nothing { String::new() } else { self.limits() }
    }
}

impl<T> Ranged<T> {
    fn limits(&self) -> String {
        let least = (self.show)(self.range.start());
        if self.told == Told::Least {
            format!("at least {least}")
        } else {
            format!("{least} to {}", (self.show)(self.range.end()))
        }
    }
}

/// A whole number in `range`.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> Ranged<T>
where
    T: TryFrom<u64> + Into<Json> + Copy + Display,
{
    Ranged {
        name: "number".into(),
        range,
        told: Told::Both,
        read: |text| {
            let number = text.parse::<u64>().map_err(|_| not_a_number(text))?;
            T::try_from(number).map_err(|_| "out of range".to_owned())
        },
        show: ToString::to_string,
        json: |value| (*value).into(),
    }
}

fn not_a_number(text: &str) -> String {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if number { "out of range".into() } else { "not a whole number".into() }
}

/// A duration; a bare number is milliseconds.
pub(super) fn millis() -> Ranged<Duration> {
    duration(BaseUnit::Millis, |text| read_duration(text, BaseUnit::Millis))
}

/// A duration; a bare number is seconds.
pub(super) fn seconds() -> Ranged<Duration> {
    duration(BaseUnit::Seconds, |text| read_duration(text, BaseUnit::Seconds))
}

fn duration(base: BaseUnit, read: fn(&str) -> Result<Duration, String>) -> Ranged<Duration> {
    Ranged {
        name: format!("duration ({})", base.name()),
        range: Duration::ZERO..=LONGEST,
        told: Told::Nothing,
        read,
        show: |value| show_duration(*value),
        json: |value| show_duration(*value).into(),
    }
}

/// A byte size; a bare number is bytes.
pub(super) fn bytes() -> Ranged<ByteSize> {
    Ranged {
        name: "byte size".into(),
        range: ByteSize(0)..=LARGEST,
        told: Told::Nothing,
        read: ByteSize::read,
        show: ToString::to_string,
        json: |value| value.to_string().into(),
    }
}
