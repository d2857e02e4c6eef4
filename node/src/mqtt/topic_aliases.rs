//! Topic aliases towards a client that takes them (MQTT-5.0 3.1.2.11.5, 3.3.2.3.4): a topic that was sent
//! before is named by a number.
//!
//! A topic gets an alias as long as one is free. Then the one that was not used for the longest time goes,
//! but not before it has been idle for a while: a client that receives more topics than it has aliases would
//! otherwise get a new alias with each message and save nothing.
//!
//! Invariants:
//! * An alias is in the table only if a packet that sets it is in the buffer: [`TopicAliases::sent`] comes
//!   after the packet.
//! * Bounded by the smaller of what the client takes and what we use (`mqtt.max_topic_alias_out`).

/// Topics as short as this gain nothing: the property takes three bytes.
const SHORT: usize = 4;

/// Publications per alias after which an idle one is taken for another topic.
const IDLE: u64 = 4;

struct Entry {
    topic: Box<str>,
    used: u64,
}

/// Topic aliases of one direction of a connection (MQTT-5.0 3.3.2.3.4).
pub(crate) struct TopicAliases {
    maximum: usize,
    /// Entry 0 is alias 1.
    entries: Vec<Entry>,
    /// Publications so far.
    count: u64,
}

/// How to send a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By its name alone.
    Plain,
    /// By its name, which this alias stands for from now on.
    Set(u16),
    /// By this alias alone.
    Known(u16),
}

impl TopicAliases {
    /// For a client that takes aliases up to `maximum`; `None` where it takes none.
    pub(crate) fn new(maximum: u16) -> Option<Box<Self>> {
        (maximum > 0).then(|| Box::new(Self { maximum: usize::from(maximum), entries: Vec::new(), count: 0 }))
    }

    /// How to send the next publication, which is on `topic`.
    pub(crate) fn name(&mut self, topic: &str) -> Naming {
        if topic.len() <= SHORT {
            return Naming::Plain;
        }
        self.count += 1;
        let alias = |index: usize| u16::try_from(index + 1).unwrap_or(u16::MAX);
        if let Some(index) = self.entries.iter().position(|entry| *entry.topic == *topic) {
            if let Some(entry) = self.entries.get_mut(index) {
                entry.used = self.count;
            }
            return Naming::Known(alias(index));
        }
        if self.entries.len() < self.maximum {
            return Naming::Set(alias(self.entries.len()));
        }
        let oldest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.used);
        match oldest {
            Some((index, entry)) if self.count - entry.used > IDLE * self.maximum as u64 => {
                Naming::Set(alias(index))
            }
            _ => Naming::Plain,
        }
    }

    /// A packet that sets `alias` for `topic` is on its way.
    pub(crate) fn sent(&mut self, alias: u16, topic: &str) {
        let entry = Entry { topic: topic.into(), used: self.count };
        match self.entries.get_mut(usize::from(alias) - 1) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// Bytes of memory.
    pub(crate) fn footprint(&self) -> usize {
        let topics: usize = self.entries.iter().map(|entry| entry.topic.len()).sum();
        topics + self.entries.capacity() * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Against a client that resolves aliases as the standard says, with packets that turn out too large.
    #[test]
    fn the_client_always_finds_the_topic_that_was_meant() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for maximum in [1u16, 2, 5, 20] {
            let mut aliases = TopicAliases::new(maximum).unwrap();
            let mut client = HashMap::new();
            let (mut saved, mut spent) = (0, 0);
            for _ in 0..5000 {
                // A few topics are frequent, many are rare.
                let number =
                    if random.random_bool(0.7) { random.random_range(0..maximum) } else { random.random() };
                let topic = format!("topic/{number}");
                let too_large = random.random_bool(0.1);
                let meant = match aliases.name(&topic) {
                    Naming::Plain => topic.clone(),
                    Naming::Known(alias) => {
                        saved += 1;
                        assert!(alias >= 1 && alias <= maximum, "seed {seed}");
                        client.get(&alias).cloned().unwrap_or_default()
                    }
                    Naming::Set(alias) => {
                        spent += 1;
                        assert!(alias >= 1 && alias <= maximum, "seed {seed}");
                        if too_large {
                            continue;
                        }
                        aliases.sent(alias, &topic);
                        client.insert(alias, topic.clone());
                        topic.clone()
                    }
                };
                assert_eq!(meant, topic, "seed {seed}");
            }
            assert!(saved > 1000 && spent < saved, "{saved} {spent}, seed {seed}");
        }
    }

    #[test]
    fn topics_in_use_keep_their_alias_and_idle_ones_lose_it() {
        let mut aliases = TopicAliases::new(1).unwrap();
        assert_eq!(aliases.name("first"), Naming::Set(1));
        aliases.sent(1, "first");
        assert_eq!(aliases.name("second"), Naming::Plain);
        assert_eq!(aliases.name("first"), Naming::Known(1));
        for _ in 0..4 {
            assert_eq!(aliases.name("second"), Naming::Plain);
        }
        assert_eq!(aliases.name("second"), Naming::Set(1));
        aliases.sent(1, "second");
        assert_eq!(aliases.name("second"), Naming::Known(1));
        assert_eq!(aliases.name("a/b"), Naming::Plain, "shorter than the property");
        assert!(TopicAliases::new(0).is_none());
    }
}
