//! What arrived against what was acknowledged.
//!
//! A [`Judge`] is fed everything that arrived, each partition in its order, and then compares with the
//! places that were acknowledged. Nothing is sampled: every payload is checked in full.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::stamp::Stamp;

/// A set of sequence numbers, dense from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    words: Vec<u64>,
    count: u64,
}

impl Places {
    /// Adds one; false if it was there.
    pub fn insert(&mut self, place: u64) -> bool {
        let (word, bit) = ((place / 64) as usize, 1 << (place % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    /// Whether it is there.
    pub fn contains(&self, place: u64) -> bool {
        self.words.get((place / 64) as usize).is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u64 * 64 + bit)
        })
    }
}

impl Extend<u64> for Places {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, places: T) {
        for place in places {
            self.insert(place);
        }
    }
}

/// What one client published.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Number of the client.
    pub client: u32,
    /// Messages sent at least once (places 0 up to this, from the first sequence on).
    pub sent: u64,
    /// Places that were acknowledged.
    pub acknowledged: Places,
    /// Connections made after the first one.
    pub reconnects: u64,
}

#[derive(Debug, Default)]
struct Seen {
    places: Places,
    highest: Option<u64>,
    partition: Option<i32>,
}

/// How many examples of each kind of trouble are kept.
const EXAMPLES: usize = 5;

/// Takes in what arrived.
#[derive(Debug, Default)]
pub struct Judge {
    clients: HashMap<u32, Seen>,
    key_prefix: Option<String>,
    verdict: Verdict,
}

/// What came of it. All counts are messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Arrived, everything counted.
    pub arrived: u64,
    /// Acknowledged and not there.
    pub lost: u64,
    /// There more than once (each further time counts).
    pub duplicates: u64,
    /// First came after a later one of the same client.
    pub out_of_order: u64,
    /// In another partition than the client's first one.
    pub astray: u64,
    /// Not what was sent, or with another key.
    pub damaged: u64,
    /// There, and never acknowledged (the answer was lost, or the publisher stopped before it).
    pub unacknowledged: u64,
    /// Some of each trouble, for people.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Everything once, whole and in order.
    pub fn is_perfect(&self) -> bool {
        self.is_whole() && self.duplicates == 0
    }

    /// Nothing lost, damaged, astray or out of order; duplicates are allowed (publishers that resend).
    pub fn is_whole(&self) -> bool {
        self.lost == 0 && self.damaged == 0 && self.astray == 0 && self.out_of_order == 0
    }

    fn example(&mut self, count: u64, text: impl FnOnce() -> String) {
        if count <= EXAMPLES as u64 {
            self.examples.push(text());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} arrived: {} lost, {} twice, {} out of order, {} astray, {} damaged, {} unacknowledged",
            self.arrived,
            self.lost,
            self.duplicates,
            self.out_of_order,
            self.astray,
            self.damaged,
            self.unacknowledged
        )?;
        self.examples.iter().try_for_each(|example| write!(out, "\n  {example}"))
    }
}

impl Judge {
    /// A judge that does not look at keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// A judge that wants each record's key to be `prefix` and the client's number.
    pub fn with_keys(prefix: &str) -> Self {
        Self { key_prefix: Some(prefix.to_owned()), ..Self::default() }
    }

    /// Takes in one message. Those of a partition come in its order.
    pub fn take(&mut self, partition: i32, key: Option<&[u8]>, payload: &[u8]) {
        let verdict = &mut self.verdict;
        verdict.arrived += 1;
        let Some(Stamp { client, sequence, .. }) = Stamp::read(payload) else {
            verdict.damaged += 1;
            let text = || format!("not a payload of ours: {:?}", String::from_utf8_lossy(payload));
            verdict.example(verdict.damaged, text);
            return;
        };
        if let Some(prefix) = &self.key_prefix
            && key != Some(format!("{prefix}{client}").as_bytes())
        {
            verdict.damaged += 1;
            verdict.example(verdict.damaged, || {
                format!("client {client} message {sequence} has key {:?}", key.map(String::from_utf8_lossy))
            });
        }
        let seen = self.clients.entry(client).or_default();
        let home = *seen.partition.get_or_insert(partition);
        if home != partition {
            verdict.astray += 1;
            let text = || {
                format!("client {client} message {sequence} is in partition {partition}, others in {home}")
            };
            verdict.example(verdict.astray, text);
        }
        if !seen.places.insert(sequence) {
            verdict.duplicates += 1;
            verdict.example(verdict.duplicates, || format!("client {client} message {sequence} came again"));
        } else if let Some(highest) = seen.highest
            && sequence < highest
        {
            verdict.out_of_order += 1;
            let text = || format!("client {client} message {sequence} first came after {highest}");
            verdict.example(verdict.out_of_order, text);
        }
        seen.highest = seen.highest.max(Some(sequence));
    }

    /// Messages of all clients that arrived at least once.
    pub fn distinct(&self) -> u64 {
        self.clients.values().map(|seen| seen.places.len()).sum()
    }

    /// Compares with what was acknowledged.
    pub fn judge(mut self, published: &[Published]) -> Verdict {
        let mut acknowledged_and_there = 0;
        for client in published {
            let seen = self.clients.get(&client.client);
            for place in client.acknowledged.iter() {
                if seen.is_some_and(|seen| seen.places.contains(place)) {
                    acknowledged_and_there += 1;
                } else {
                    self.verdict.lost += 1;
                    let text = || {
                        format!("client {} message {place} was acknowledged and is missing", client.client)
                    };
                    self.verdict.example(self.verdict.lost, text);
                }
            }
        }
        self.verdict.unacknowledged = self.distinct() - acknowledged_and_there;
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(client: u32, sequence: u64) -> Vec<u8> {
        let mut payload = Vec::new();
        Stamp { client, sequence, sent: 5 }.append(64, &mut payload);
        payload
    }

    fn published(client: u32, places: std::ops::Range<u64>) -> Published {
        let mut acknowledged = Places::default();
        for place in places.clone() {
            assert!(acknowledged.insert(place));
        }
        Published { client, sent: places.end, acknowledged, reconnects: 0 }
    }

    #[test]
    fn everything_once_and_in_order_is_perfect() {
        let mut judge = Judge::with_keys("c");
        for sequence in 0..200 {
            judge.take(0, Some(b"c1"), &payload(1, sequence));
            judge.take(1, Some(b"c2"), &payload(2, sequence));
        }
        let verdict = judge.judge(&[published(1, 0..200), published(2, 0..200)]);
        assert!(verdict.is_perfect(), "{verdict}");
        assert_eq!(verdict.arrived, 400);
    }

    #[test]
    fn each_trouble_is_told_from_the_others() {
        let mut judge = Judge::with_keys("c");
        for sequence in [0, 1, 3, 2, 3] {
            judge.take(0, Some(b"c1"), &payload(1, sequence));
        }
        judge.take(2, Some(b"c1"), &payload(1, 6));
        judge.take(0, Some(b"c2"), &payload(1, 7));
        judge.take(0, Some(b"c1"), b"something else");
        let verdict = judge.judge(&[published(1, 0..6)]);
        assert_eq!(verdict.arrived, 8);
        assert_eq!(verdict.lost, 2);
        assert_eq!(verdict.duplicates, 1);
        assert_eq!(verdict.out_of_order, 1);
        assert_eq!(verdict.astray, 1);
        assert_eq!(verdict.damaged, 2);
        assert_eq!(verdict.unacknowledged, 2);
        assert!(!verdict.is_whole());
        assert!(
            verdict.to_string().contains("client 1 message 4 was acknowledged and is missing"),
            "{verdict}"
        );
    }

    #[test]
    fn places_count_what_was_new() {
        let mut places = Places::default();
        assert!(places.is_empty());
        assert!(places.insert(700));
        assert!(places.insert(3));
        assert!(!places.insert(700));
        assert_eq!(places.len(), 2);
        assert_eq!(places.iter().collect::<Vec<_>>(), [3, 700]);
        assert!(places.contains(3) && !places.contains(4) && !places.contains(100_000));
    }
}
