//! What is in Kafka against what was acknowledged.
//!
//! For each bridge and device:
//! * *lost*: acknowledged (PUBACK, PUBREC) and not there, unless the bridge may have been disabled when the
//!   node decided where the message goes.
//! * *twice*: QoS 1: more copies than the device sent; QoS 2: more than one. Where the death of the node may
//!   double (a buffer in memory), one copy for each of its lives that the device sent PUBLISH to.
//! * *out of order* (keyed bridges): the first copy of a message comes behind that of a later one; or the
//!   numbers fall more often than the device connected again, which are the only moments at which it goes
//!   back. A message may come late if the bridge may have been disabled when the node took one of its copies.
//! * *astray* (keyed bridges): not in the partition of the device's first record.
//! * *damaged*: not a payload that was sent, or not under the device's key.
//!
//! And for each device: *open*: never answered although the faults had stopped. What subscribers were given
//! is judged in [`super::deliveries`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use causeway_benches::stamp::Stamp;

use super::history::{Complaint, History, Message};

/// How many offenders of each kind are told with their history.
const TOLD: usize = 3;

/// A record as an independent client read it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Vec<u8>,
}

/// A bridge as the verdict has to know it.
#[derive(Debug, Clone)]
pub struct Law {
    /// Name of the bridge.
    pub bridge: String,
    /// Whether a device takes part.
    pub takes: fn(topic: &str) -> bool,
    /// Order and place follow from the key.
    pub is_keyed: bool,
    /// The death of the node may double a QoS 2 message: a buffer in memory.
    pub may_double_by_death: bool,
    /// Order is not judged: the buffer changed, and each has an order of its own.
    pub may_reorder: bool,
    /// When it was disabled.
    pub off: Vec<(Duration, Duration)>,
}

impl Law {
    /// Whether the node may have let a message pass by because the bridge was disabled.
    fn may_pass_by(&self, history: &History, message: &Message) -> bool {
        history
            .decided(message)
            .is_some_and(|(from, to)| self.off.iter().any(|off| off.0 <= to && from <= off.1))
    }

    /// Whether any PUBLISH of a message may have passed by because the bridge was disabled, also one that was
    /// not answered: what the device sent behind it may then be in Kafka before it.
    fn may_have_missed(&self, history: &History, message: &Message) -> bool {
        let mut copies = history.undecided(message);
        copies.any(|(from, to)| self.off.iter().any(|off| off.0 <= to && from <= off.1))
    }
}

/// Counts and explanations. All counts are messages.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Messages sent at least once, counted for every bridge that takes them.
    pub sent: u64,
    /// Of those acknowledged.
    pub acknowledged: u64,
    /// Records in Kafka.
    pub found: u64,
    /// Records beyond the first of a message, of which the device had sent it again, or by a death that
    /// allows it.
    pub repeated: u64,
    /// See the module.
    pub lost: u64,
    /// See the module.
    pub twice: u64,
    /// See the module.
    pub out_of_order: u64,
    /// See the module.
    pub astray: u64,
    /// See the module.
    pub damaged: u64,
    /// See the module.
    pub open: u64,
    /// What devices complained of.
    pub complaints: u64,
    /// Bridges whose books say something else than Kafka, or that something was given up.
    pub books: u64,
    /// Deliveries to subscribers.
    pub deliveries: u64,
    /// Messages of QoS 1 that a subscriber was given again without DUP, though their device had not sent them
    /// again.
    pub again_as_new: u64,
    /// Messages that subscribers were not given while others were away.
    pub held_up: u64,
    /// The first offenders with their histories.
    pub told: Vec<String>,
}

impl Verdict {
    /// Whether nothing at all is wrong.
    pub fn is_innocent(&self) -> bool {
        let wrong = [self.lost, self.twice, self.out_of_order, self.astray, self.damaged];
        wrong.iter().chain(&[self.open, self.complaints, self.books, self.held_up]).all(|count| *count == 0)
    }

    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.found += other.found;
        self.repeated += other.repeated;
        self.lost += other.lost;
        self.twice += other.twice;
        self.out_of_order += other.out_of_order;
        self.astray += other.astray;
        self.damaged += other.damaged;
        self.open += other.open;
        self.complaints += other.complaints;
        self.books += other.books;
        self.deliveries += other.deliveries;
        self.again_as_new += other.again_as_new;
        self.held_up += other.held_up;
        self.told.extend(other.told);
    }

    pub(super) fn tell(&mut self, count: u64, text: impl FnOnce() -> String) {
        if count <= TOLD as u64 {
            self.told.push(text());
        }
    }

    /// Judges one bridge by all of its topic's records, each partition in its order.
    pub fn of(law: &Law, histories: &[History], records: &[Found]) -> Self {
        let mut verdict = Self { found: records.len() as u64, ..Self::default() };
        let mut by_device: BTreeMap<u32, Vec<(&Found, u64)>> = BTreeMap::new();
        for record in records {
            let stamp = Stamp::read(&record.value);
            let device = stamp.and_then(|stamp| {
                let device = histories.iter().find(|history| history.habits.number == stamp.client)?;
                let was_sent = (stamp.sequence as usize) < device.messages.len();
                let key = record.key.as_deref() == Some(device.habits.name().as_bytes());
                (was_sent && key && (law.takes)(&device.habits.topic)).then_some(stamp)
            });
            if let Some(stamp) = device {
                by_device.entry(stamp.client).or_default().push((record, stamp.sequence));
            } else {
                verdict.damaged += 1;
                verdict.tell(verdict.damaged, || {
                    format!(
                        "{}: partition {} offset {} holds what nobody sent there: {:?} {:?}",
                        law.bridge,
                        record.partition,
                        record.offset,
                        record.key.as_deref().map(String::from_utf8_lossy),
                        String::from_utf8_lossy(&record.value[..record.value.len().min(60)])
                    )
                });
            }
        }
        for history in histories.iter().filter(|history| (law.takes)(&history.habits.topic)) {
            let there = by_device.remove(&history.habits.number).unwrap_or_default();
            verdict.judge_device(law, history, &there);
        }
        verdict
    }

    fn judge_device(&mut self, law: &Law, history: &History, there: &[(&Found, u64)]) {
        let mut copies: BTreeMap<u64, Vec<&Found>> = BTreeMap::new();
        for (record, number) in there {
            copies.entry(*number).or_default().push(record);
        }
        let places = |number: u64| {
            let found = copies.get(&number).map_or(&[][..], Vec::as_slice);
            let place = |found: &&Found| format!("partition {} offset {}", found.partition, found.offset);
            match found {
                [] => "nowhere".to_owned(),
                found => found.iter().map(place).collect::<Vec<_>>().join(", "),
            }
        };
        let tell = |number: u64, what: &str| {
            format!("{}: {what}; in Kafka: {}\n{}", law.bridge, places(number), history.tell(number))
        };
        for (number, message) in (0..).zip(&history.messages) {
            let there = copies.get(&number).map_or(0, Vec::len);
            self.sent += 1;
            let acknowledged = message.is_acknowledged();
            self.acknowledged += u64::from(acknowledged);
            if acknowledged && there == 0 && !law.may_pass_by(history, message) {
                self.lost += 1;
                self.tell(self.lost, || tell(number, "LOST, though it was acknowledged"));
            }
            let allowed = match (history.habits.qos, law.may_double_by_death) {
                (1, _) => history.times_sent(message),
                (_, true) => history.lives_sent_to(message),
                (_, false) => 1,
            };
            if there > allowed {
                self.twice += 1;
                self.tell(self.twice, || {
                    tell(number, &format!("TWICE: {there} copies, where {allowed} may be"))
                });
            }
            self.repeated += there.saturating_sub(1) as u64;
        }
        if law.is_keyed && !law.may_reorder {
            self.judge_order(law, history, there, &tell);
        }
    }

    fn judge_order(
        &mut self,
        law: &Law,
        history: &History,
        there: &[(&Found, u64)],
        tell: &impl Fn(u64, &str) -> String,
    ) {
        let home = there.first().map(|(record, _)| record.partition);
        let (mut highest, mut before, mut falls) = (None, None, 0);
        let mut seen = HashSet::new();
        let is_known = |number: u64| !history.messages[number as usize].is_unknown();
        for &(record, number) in there.iter().filter(|(_, number)| is_known(*number)) {
            if Some(record.partition) != home {
                self.astray += 1;
                self.tell(self.astray, || tell(number, &format!("ASTRAY: its key lives in {home:?}")));
                continue;
            }
            let is_first =
                seen.insert(number) && !law.may_have_missed(history, &history.messages[number as usize]);
            if is_first && highest.is_some_and(|highest| number < highest) {
                self.out_of_order += 1;
                self.tell(self.out_of_order, || {
                    tell(
                        number,
                        &format!("OUT OF ORDER: first behind message {}", highest.unwrap_or_default()),
                    )
                });
            }
            if before.is_some_and(|before| number <= before) {
                falls += 1;
                if falls == history.connections.len() {
                    self.out_of_order += 1;
                    self.tell(self.out_of_order, || {
                        let times = history.connections.len() - 1;
                        tell(
                            number,
                            &format!("OUT OF ORDER: back for the {falls}th time, with {times} reconnects"),
                        )
                    });
                }
            }
            before = Some(number);
            highest = highest.max(Some(number));
        }
    }

    /// What devices were left with, and what they saw.
    /// What is refused because of a bridge that is disabled may be refused.
    pub fn of_devices(laws: &[Law], histories: &[History]) -> Self {
        let may_be_refused = |history: &History, number: u64| {
            let message = usize::try_from(number).ok().and_then(|place| history.messages.get(place));
            let takers = laws.iter().filter(|law| (law.takes)(&history.habits.topic));
            let mut off = takers.map(|law| message.is_some_and(|message| law.may_pass_by(history, message)));
            off.any(|off| off)
        };
        let mut verdict = Self::default();
        for history in histories {
            for (number, message) in (0..).zip(&history.messages) {
                if !message.is_done() {
                    verdict.open += 1;
                    verdict.tell(verdict.open, || {
                        format!("OPEN: never done although the faults had stopped\n{}", history.tell(number))
                    });
                }
            }
            for (at, complaint) in &history.complaints {
                if matches!(*complaint, Complaint::Refused { message, .. } if may_be_refused(history, message))
                {
                    continue;
                }
                verdict.complaints += 1;
                verdict.tell(verdict.complaints, || {
                    format!("{:8.3} s  {} complains: {complaint}", at.as_secs_f64(), history.habits.name())
                });
            }
        }
        verdict
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} sent, {} acknowledged, {} in Kafka ({} of them repetitions that may be): {} lost, {} twice, {} out of order",
            self.sent,
            self.acknowledged,
            self.found,
            self.repeated.saturating_sub(self.twice),
            self.lost,
            self.twice,
            self.out_of_order
        )?;
        let rest = [
            (self.astray, "astray"),
            (self.damaged, "damaged"),
            (self.open, "open"),
            (self.complaints, "complaints"),
            (self.books, "books that are wrong"),
            (self.held_up, "held up by others that were away"),
            (self.deliveries, "deliveries to subscribers"),
            (self.again_as_new, "of them again and without DUP"),
        ];
        rest.iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, what)| write!(out, ", {count} {what}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::faults::device::Habits;
    use crate::faults::history::{Complaint, Event, Message, What};
    use crate::mqtt::Version;

    const KEYED: Law = Law {
        bridge: String::new(),
        takes: |_| true,
        is_keyed: true,
        may_double_by_death: false,
        may_reorder: false,
        off: Vec::new(),
    };

    /// A device whose first connection sent 0 to 3, and whose second one, to the next life of the node, 2 and
    /// 3 again.
    fn device(qos: u8) -> History {
        let habits = Habits {
            number: 7,
            version: Version::V5,
            qos,
            topic: "t".to_owned(),
            window: 4,
            pause: Duration::ZERO,
            stays: None,
            identifiers: 10,
            releases_late: false,
            ends_sessions: false,
            seed: 0,
        };
        let mut history = History::new(habits);
        history.connected(Duration::ZERO, 1);
        history.connected(Duration::from_secs(1), 2);
        let told = if qos == 1 { What::Acknowledged } else { What::Received };
        for number in 0..4 {
            let mut message = Message::new(number + 1, Vec::new());
            let mut note = |connection, what| {
                message.events.push(Event { at: Duration::ZERO, connection, what });
            };
            note(0, What::Sent);
            if number >= 2 {
                note(1, What::SentAgain);
            }
            note(u16::from(number >= 2), told);
            if qos == 2 {
                note(1, What::Completed(0));
            }
            history.messages.push(message);
        }
        history
    }

    fn records(numbers: &[u64]) -> Vec<Found> {
        let record = |(offset, &sequence): (i64, &u64)| {
            let mut value = Vec::new();
            Stamp { client: 7, sequence, sent: 1 }.append(50, &mut value);
            Found { partition: 0, offset, key: Some(b"device-7".to_vec()), value }
        };
        (0..).zip(numbers).map(record).collect()
    }

    fn judged(law: &Law, qos: u8, numbers: &[u64]) -> (u64, u64, u64) {
        let verdict = Verdict::of(law, &[device(qos)], &records(numbers));
        assert_eq!(verdict.damaged, 0, "{:?}", verdict.told);
        (verdict.lost, verdict.twice, verdict.out_of_order)
    }

    #[test]
    fn what_a_device_sent_again_may_be_there_again_with_qos_1() {
        assert_eq!(judged(&KEYED, 1, &[0, 1, 2, 3]), (0, 0, 0));
        assert_eq!(judged(&KEYED, 1, &[0, 1, 2, 3, 2, 3]), (0, 0, 0));
        assert_eq!(judged(&KEYED, 1, &[0, 1, 2, 2, 3]), (0, 0, 0));
        assert_eq!(judged(&KEYED, 1, &[0, 1, 1, 2, 3]), (0, 1, 0), "1 was sent once");
    }

    #[test]
    fn qos_2_is_there_once_unless_a_death_may_double_it() {
        assert_eq!(judged(&KEYED, 2, &[0, 1, 2, 3]), (0, 0, 0));
        assert_eq!(judged(&KEYED, 2, &[0, 1, 2, 2, 3]), (0, 1, 0));
        let memory = Law { may_double_by_death: true, ..KEYED };
        assert_eq!(judged(&memory, 2, &[0, 1, 2, 2, 3]), (0, 0, 0));
        assert_eq!(judged(&memory, 2, &[0, 0, 1, 2, 3]), (0, 1, 0), "0 saw one life");
        let mut same_life = device(2);
        same_life.connections[1].life = 1;
        let verdict = Verdict::of(&memory, &[same_life], &records(&[0, 1, 2, 2, 3]));
        assert_eq!(verdict.twice, 1, "the node did not die");
    }

    #[test]
    fn a_loss_is_told_with_its_history() {
        let verdict = Verdict::of(&KEYED, &[device(1)], &records(&[0, 2, 3]));
        assert_eq!((verdict.lost, verdict.twice, verdict.out_of_order), (1, 0, 0));
        assert!(
            verdict.told[0].contains("PUBACK") && verdict.told[0].contains("nowhere"),
            "{:?}",
            verdict.told
        );
        let mut unanswered = device(1);
        unanswered.messages[1].events.pop();
        let verdict = Verdict::of(&KEYED, std::slice::from_ref(&unanswered), &records(&[0, 2, 3]));
        assert_eq!(verdict.lost, 0, "never acknowledged");
        assert_eq!(Verdict::of_devices(&[], &[unanswered]).open, 1);
    }

    #[test]
    fn the_order_of_a_key_falls_with_reconnects_only() {
        assert_eq!(judged(&KEYED, 1, &[0, 2, 1, 3]), (0, 0, 1), "1 first comes behind 2");
        assert_eq!(judged(&KEYED, 1, &[0, 1, 2, 3, 3, 2]), (0, 0, 1), "back twice with one reconnect");
        let anyhow = Law { is_keyed: false, ..KEYED };
        assert_eq!(judged(&anyhow, 1, &[3, 2, 1, 0]), (0, 0, 0));
    }

    #[test]
    fn a_message_that_met_a_disabled_bridge_may_come_late_and_no_other() {
        let told = |off: (u64, u64)| {
            let off = vec![(Duration::from_millis(off.0), Duration::from_millis(off.1))];
            let mut device = device(1);
            device.connections[0].ended = Some((Duration::from_millis(500), "cut".to_owned()));
            // 2 is sent on both connections and is in Kafka behind 3.
            for event in &mut device.messages[2].events {
                event.at = Duration::from_millis(if event.connection == 0 { 100 } else { 1500 });
            }
            Verdict::of(&Law { off, ..KEYED }, &[device], &records(&[0, 1, 3, 2])).out_of_order
        };
        assert_eq!(told((200, 300)), 0, "disabled while the first copy was under way");
        assert_eq!(told((600, 700)), 1, "the connection of the first copy had ended");
        assert_eq!(told((10, 90)), 1, "enabled again before it was sent");
    }

    #[test]
    fn a_message_that_may_have_been_held_since_the_bridge_was_disabled_may_pass_by() {
        let lost = |life: u32| {
            let off = vec![(Duration::from_millis(50), Duration::from_millis(150))];
            let mut device = device(1);
            device.connections[1].life = life;
            // Sent while the bridge was disabled, repeated when it was enabled again, and answered then.
            for event in &mut device.messages[3].events {
                event.at = Duration::from_millis(if event.connection == 0 { 100 } else { 1500 });
            }
            Verdict::of(&Law { off, ..KEYED }, &[device], &records(&[0, 1, 2])).lost
        };
        assert_eq!(lost(1), 0, "the node may have held it");
        assert_eq!(lost(2), 1, "what the node had held died with it");
    }

    #[test]
    fn strangers_wrong_keys_and_other_partitions_are_seen() {
        let mut found = records(&[0, 1, 2, 3, 4]);
        found[1].partition = 1;
        found[2].key = None;
        let verdict = Verdict::of(&KEYED, &[device(1)], &found);
        assert_eq!((verdict.damaged, verdict.astray), (2, 1), "4 was never sent, 2 has no key");
        let mut device = device(1);
        device.complaints.push((Duration::ZERO, Complaint::SessionLost));
        assert!(!Verdict::of_devices(&[], &[device]).is_innocent());
    }
}
