//! What subscribers were given against what was acknowledged to devices and what is in Kafka.
//!
//! For each session, and for each group of a shared subscription as one:
//! * *lost*: a message with QoS 1 or 2 on both ways, acknowledged to its device, or in Kafka, and never
//!   delivered.
//! * *twice*: QoS 2 on both ways: delivered more than once. QoS 0: more often than its device sent it (QoS
//!   1), or than lives of the node the device sent it to (QoS 2). QoS 1 may be delivered again; what comes
//!   again without DUP is counted. A record of Kafka may be delivered again, because its offset may be
//!   committed later than it is handed over.
//! * *out of order* (QoS 1 and 2, not for groups): the first delivery of a message comes behind that of a
//!   later one of its device, or of its partition.
//! * *held up*: as lost, but for those who are there, while absentees are away. In a group: what was sent and
//!   acknowledged while a member was there all the time and each absentee was known to be away.
//!
//! A session to which more could have come than its queue takes is owed nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::history::{History, Message};
use super::subscriber::{Origin, Reception, Tastes};
use super::verdict::Verdict;

/// From the end of a connection on, as long may pass until the node treats its session as away.
const GRACE: Duration = Duration::from_millis(300);

/// What the consumer bridge reads of one topic.
#[derive(Debug, Clone)]
pub struct Lane {
    /// MQTT topic.
    pub topic: String,
    /// QoS of its messages.
    pub qos: u8,
    /// Where each partition ended when the devices had stopped.
    pub ends: BTreeMap<i32, i64>,
}

/// What all deliveries are held against.
pub struct Books<'a> {
    /// What devices know.
    pub histories: &'a [History],
    /// What is in Kafka, by the place of its mapping.
    pub lanes: &'a [Lane],
    /// The least that a session's queue took at any time.
    pub queue: u64,
}

/// Messages that one session, or one of several, must have been given.
pub struct Due {
    who: String,
    members: Vec<usize>,
    origins: Vec<Origin>,
}

fn lock(reception: &Mutex<Reception>) -> MutexGuard<'_, Reception> {
    reception.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sessions by themselves, and groups with their members.
fn parties(receptions: &[Mutex<Reception>]) -> Vec<(String, Vec<usize>)> {
    let mut parties: Vec<(String, Vec<usize>)> = Vec::new();
    for (place, reception) in receptions.iter().enumerate() {
        let tastes = lock(reception).tastes.clone();
        let name = tastes.group.map_or(tastes.name, |group| format!("group {group}"));
        match parties.iter_mut().find(|(known, _)| *known == name) {
            Some((_, members)) => members.push(place),
            None => parties.push((name, vec![place])),
        }
    }
    parties
}

impl Books<'_> {
    /// Messages of QoS 1 and 2 that may have been put into the queue of a session with these tastes.
    fn most_to(&self, tastes: &Tastes) -> u64 {
        let takes = |topic: &str, qos: u8| tastes.qos_of(topic).unwrap_or_default().min(qos) > 0;
        let devices =
            self.histories.iter().filter(|history| takes(&history.habits.topic, history.habits.qos));
        let messages = devices
            .flat_map(|history| history.messages.iter().map(|message| history.times_sent(message) as u64));
        let records = self.lanes.iter().filter(|lane| takes(&lane.topic, lane.qos));
        messages.sum::<u64>()
            + records.flat_map(|lane| lane.ends.values()).map(|end| end.unsigned_abs()).sum::<u64>()
    }

    /// What everybody must have been given in the end.
    pub fn due(&self, receptions: &[Mutex<Reception>]) -> Vec<Due> {
        self.due_to(receptions, parties(receptions), |_| true)
    }

    /// What those must be given who are there, while absentees are away.
    pub fn due_to_present(&self, receptions: &[Mutex<Reception>]) -> Vec<Due> {
        let is_absentee = |place: &usize| lock(&receptions[*place]).tastes.is_absentee;
        let mut due = Vec::new();
        for (who, members) in parties(receptions) {
            let (absent, present): (Vec<usize>, Vec<usize>) = members.into_iter().partition(is_absentee);
            if present.is_empty() {
                continue;
            }
            let taken = |message: &Message, history: &History| {
                is_for_present(receptions, &present, &absent, message, history)
            };
            let is_mixed = !absent.is_empty();
            let party = vec![(who, present.clone())];
            due.extend(
                self.due_to(receptions, party, |(history, message)| !is_mixed || taken(message, history)),
            );
        }
        due
    }

    fn due_to(
        &self,
        receptions: &[Mutex<Reception>],
        parties: Vec<(String, Vec<usize>)>,
        counts: impl Fn((&History, &Message)) -> bool,
    ) -> Vec<Due> {
        let mut due = Vec::new();
        for (who, members) in parties {
            let Some(&first) = members.first() else { continue };
            let tastes = lock(&receptions[first]).tastes.clone();
            if self.most_to(&tastes) > self.queue {
                continue;
            }
            let mut origins = Vec::new();
            for history in self.histories {
                if tastes.qos_of(&history.habits.topic).unwrap_or_default().min(history.habits.qos) == 0 {
                    continue;
                }
                for (number, message) in (0..).zip(&history.messages) {
                    if message.is_acknowledged() && counts((history, message)) {
                        origins.push(Origin::Device { number: history.habits.number, message: number });
                    }
                }
            }
            for (topic, lane) in self.lanes.iter().enumerate() {
                if tastes.qos_of(&lane.topic).unwrap_or_default().min(lane.qos) == 0 {
                    continue;
                }
                for (&partition, &end) in &lane.ends {
                    origins.extend((0..end).map(|offset| Origin::Record { topic, partition, offset }));
                }
            }
            due.push(Due { who, members, origins });
        }
        due
    }

    /// Judges all that was delivered; `due` and `held_up` are what is still missing of [`Self::due`], and was
    /// missing of [`Self::due_to_present`].
    pub fn judge(&self, receptions: &[Mutex<Reception>], due: &[Due], held_up: &[Due]) -> Verdict {
        let mut verdict = Verdict::default();
        let receptions: Vec<_> = receptions.iter().map(lock).collect();
        for (missing, is_lost) in
            due.iter().map(|due| (due, true)).chain(held_up.iter().map(|due| (due, false)))
        {
            for origin in &missing.origins {
                let (count, what) = if is_lost {
                    verdict.lost += 1;
                    (verdict.lost, "LOST: never delivered")
                } else {
                    verdict.held_up += 1;
                    (verdict.held_up, "HELD UP: not delivered while others were away")
                };
                verdict.tell(count, || format!("{}: {what}: {}", missing.who, self.tell(*origin)));
            }
        }
        for reception in &receptions {
            verdict.deliveries += reception.deliveries.len() as u64;
            for (at, complaint) in &reception.complaints {
                verdict.complaints += 1;
                let name = &reception.tastes.name;
                verdict.tell(verdict.complaints, || {
                    format!("{:8.3} s  {name} complains: {complaint}", at.as_secs_f64())
                });
            }
            if reception.tastes.group.is_none() {
                self.judge_copies(&mut verdict, &reception.tastes.name, &[reception]);
                if self.most_to(&reception.tastes) <= self.queue {
                    self.judge_order(&mut verdict, reception);
                }
            }
        }
        let groups: HashSet<&str> =
            receptions.iter().filter_map(|reception| reception.tastes.group).collect();
        for group in groups {
            let members: Vec<_> =
                receptions.iter().filter(|reception| reception.tastes.group == Some(group)).collect();
            self.judge_copies(&mut verdict, &format!("group {group}"), &members);
        }
        verdict
    }

    fn message(&self, number: u32, message: u64) -> Option<(&History, &Message)> {
        let history = self.histories.iter().find(|history| history.habits.number == number)?;
        Some((history, history.messages.get(usize::try_from(message).ok()?)?))
    }

    fn judge_copies(&self, verdict: &mut Verdict, who: &str, members: &[&MutexGuard<'_, Reception>]) {
        let mut copies: HashMap<(u32, u64), (usize, usize)> = HashMap::new();
        for reception in members {
            for delivery in &reception.deliveries {
                if let Origin::Device { number, message } = delivery.origin {
                    let (all, first) = copies.entry((number, message)).or_default();
                    *all += 1;
                    *first += usize::from(!delivery.dup);
                }
            }
        }
        let takes_qos = |topic: &str| members.iter().filter_map(|member| member.tastes.qos_of(topic)).min();
        for ((number, message), (all, first)) in copies {
            let origin = Origin::Device { number, message };
            let Some((history, sent)) = self.message(number, message) else {
                verdict.damaged += 1;
                verdict.tell(verdict.damaged, || format!("{who} was given {origin:?}, which nobody sent"));
                continue;
            };
            let Some(qos) = takes_qos(&history.habits.topic) else {
                verdict.damaged += 1;
                verdict
                    .tell(verdict.damaged, || format!("{who} was given {origin:?}, which it does not take"));
                continue;
            };
            let (there, allowed) = match (history.habits.qos, qos) {
                (2, 2) => (all, 1),
                (2, _) => (first, history.lives_sent_to(sent)),
                _ => (first, history.times_sent(sent)),
            };
            // QoS 1 is at least once; that DUP is missing is counted and does not convict.
            if there > allowed && history.habits.qos.min(qos) == 1 {
                verdict.again_as_new += 1;
            } else if there > allowed {
                verdict.twice += 1;
                verdict.tell(verdict.twice, || {
                    let deliveries: Vec<String> =
                        members.iter().flat_map(|member| member.deliveries_of(origin)).collect();
                    format!(
                        "{who}: TWICE: delivered {there} times, where {allowed} may be: {}\n{}",
                        self.tell(origin),
                        deliveries.join("\n")
                    )
                });
            }
        }
    }

    fn judge_order(&self, verdict: &mut Verdict, reception: &Reception) {
        // A partition of a topic, or a device; and the place in it.
        let mut highest: HashMap<(usize, i64), i64> = HashMap::new();
        let mut seen = HashSet::new();
        for delivery in &reception.deliveries {
            // With QoS 0 the first copy of a message that its device sent again may have been dropped.
            if delivery.qos == 0 || !seen.insert(delivery.origin) {
                continue;
            }
            let (line, place) = match delivery.origin {
                Origin::Record { topic, partition, offset } => ((topic, i64::from(partition)), offset),
                Origin::Device { number, message } => {
                    if self.message(number, message).is_some_and(|(_, message)| message.is_unknown()) {
                        continue;
                    }
                    ((usize::MAX, i64::from(number)), message as i64)
                }
            };
            let last = highest.entry(line).or_insert(place);
            if place < *last {
                verdict.out_of_order += 1;
                verdict.tell(verdict.out_of_order, || {
                    format!(
                        "{}: OUT OF ORDER at {:.3} s: first behind {last}: {}",
                        reception.tastes.name,
                        delivery.at.as_secs_f64(),
                        self.tell(delivery.origin)
                    )
                });
            }
            *last = place.max(*last);
        }
    }

    fn tell(&self, origin: Origin) -> String {
        let told = match origin {
            Origin::Device { number, message } => self
                .histories
                .iter()
                .find(|history| history.habits.number == number)
                .map(|history| history.tell(message)),
            Origin::Record { .. } => None,
        };
        told.map_or_else(|| format!("{origin:?}"), |told| format!("\n{told}"))
    }
}

/// Whether a message had to go to a present member of a group, because one was there all the time and no
/// absentee was.
fn is_for_present(
    receptions: &[Mutex<Reception>],
    present: &[usize],
    absent: &[usize],
    message: &Message,
    history: &History,
) -> bool {
    let Some((from, to)) = message.decided(1) else { return false };
    // Sent once: it is known when, and to which life of the node.
    let mut sent_on = message.sent_on();
    let (Some(connection), None) = (sent_on.next(), sent_on.next()) else { return false };
    let Some(life) = history.connections.get(usize::from(connection)).map(|connection| connection.life)
    else {
        return false;
    };
    let is_there = |place: &usize| {
        let reception = lock(&receptions[*place]);
        let mut connections = reception.connections.iter();
        connections.any(|connection| {
            connection.life == life
                && connection.began < from
                && connection.ended.is_none_or(|ended| to < ended)
        })
    };
    let is_away = |place: &usize| {
        let reception = lock(&receptions[*place]);
        let before = reception.connections.iter().rev().find(|connection| connection.tried <= to);
        let has_left = before.is_some_and(|connection| {
            let Some(ended) = connection.ended else { return false };
            ended + GRACE < from && (connection.is_known || connection.life < life)
        });
        has_left && reception.trying.is_none_or(|trying| to < trying)
    };
    present.iter().any(is_there) && absent.iter().all(is_away)
}

/// Waits until nothing is missing any more, `is_done` says so as well, and nothing has come for as long as
/// `quiet`; returns what is missing at `patience`.
pub fn wait_for(
    receptions: &[Mutex<Reception>],
    mut due: Vec<Due>,
    patience: Duration,
    quiet: Duration,
    mut is_done: impl FnMut() -> bool,
) -> Vec<Due> {
    let deadline = Instant::now() + patience;
    let (mut count, mut quiet_since) = (0, Instant::now());
    loop {
        for due in &mut due {
            for member in &due.members {
                let reception = lock(&receptions[*member]);
                due.origins.retain(|origin| !reception.seen.contains(origin));
            }
        }
        due.retain(|due| !due.origins.is_empty());
        let now: usize = receptions.iter().map(|reception| lock(reception).deliveries.len()).sum();
        if now != count {
            (count, quiet_since) = (now, Instant::now());
        }
        let is_complete = due.is_empty() && is_done() && quiet_since.elapsed() >= quiet;
        if is_complete || Instant::now() >= deadline {
            return due;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::device::Habits;
    use crate::faults::history::{Event, What};
    use crate::faults::subscriber::{Attendance, Delivery};
    use crate::mqtt::Version;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A device that sent message N, with QoS 2, in second 10 * N and was answered a second later.
    fn device(messages: u16) -> History {
        let habits = Habits {
            number: 7,
            version: Version::V5,
            qos: 2,
            topic: "r/7".to_owned(),
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
        for number in 0..messages {
            let mut message = Message::new(number + 1, Vec::new());
            for (after, what) in [(0, What::Sent), (1, What::Received)] {
                let at = seconds(u64::from(number) * 10 + after);
                message.events.push(Event { at, connection: 0, what });
            }
            history.messages.push(message);
        }
        history
    }

    fn subscriber(name: &str, qos: u8, group: Option<&'static str>, is_absentee: bool) -> Reception {
        Reception::new(Tastes {
            name: name.to_owned(),
            version: Version::V5,
            filters: vec![("r/#".to_owned(), qos)],
            group,
            is_absentee,
            stays: None,
            away: Duration::ZERO,
            seed: 0,
        })
    }

    fn attend(reception: &mut Reception, from: u64, to: Option<u64>) {
        let (tried, ended) = (seconds(from), to.map(seconds));
        let attendance = Attendance { tried, began: tried, life: 1, ended, is_known: true };
        reception.connections.push(attendance);
    }

    fn deliver(reception: &mut Reception, message: u64, qos: u8, dup: bool) {
        let origin = Origin::Device { number: 7, message };
        reception.deliveries.push(Delivery { at: Duration::ZERO, connection: 0, origin, qos, dup });
        reception.seen.insert(origin);
    }

    fn judged(history: History, receptions: Vec<Reception>, queue: u64) -> Verdict {
        let receptions: Vec<_> = receptions.into_iter().map(Mutex::new).collect();
        let histories = [history];
        let books = Books { histories: &histories, lanes: &[], queue };
        let held_up = books.due_to_present(&receptions);
        let held_up = wait_for(&receptions, held_up, Duration::ZERO, Duration::ZERO, || true);
        let missing = wait_for(&receptions, books.due(&receptions), Duration::ZERO, Duration::ZERO, || true);
        books.judge(&receptions, &missing, &held_up)
    }

    #[test]
    fn a_session_is_owed_what_was_acknowledged_unless_its_queue_may_have_been_too_small() {
        let mut one = subscriber("one", 2, None, true);
        deliver(&mut one, 0, 2, false);
        deliver(&mut one, 2, 2, false);
        let mut history = device(4);
        history.messages[3].events.pop();
        let verdict = judged(history, vec![one], 100);
        assert_eq!((verdict.lost, verdict.twice, verdict.held_up), (1, 0, 0), "{:?}", verdict.told);
        assert_eq!(judged(device(4), vec![subscriber("one", 2, None, true)], 3).lost, 0);
        assert_eq!(judged(device(4), vec![subscriber("one", 0, None, true)], 100).lost, 0, "QoS 0");
    }

    #[test]
    fn qos_2_comes_once_and_qos_1_may_come_again() {
        let twice = |qos, dup| {
            let mut one = subscriber("one", qos, None, false);
            deliver(&mut one, 0, qos, false);
            deliver(&mut one, 0, qos, dup);
            let verdict = judged(device(1), vec![one], 100);
            (verdict.twice, verdict.again_as_new)
        };
        assert_eq!(twice(2, false), (1, 0));
        assert_eq!(twice(1, true), (0, 0));
        assert_eq!(twice(1, false), (0, 1));
        assert_eq!(twice(0, false), (1, 0));
    }

    #[test]
    fn the_first_deliveries_of_a_device_are_in_order() {
        let mut one = subscriber("one", 2, None, false);
        for message in [0, 2, 1] {
            deliver(&mut one, message, 2, false);
        }
        assert_eq!(judged(device(3), vec![one], 100).out_of_order, 1);
    }

    #[test]
    fn a_present_member_gets_what_was_sent_while_the_other_was_away() {
        // Message 0 while both are there, 1 while the second is leaving, 2 and 3 while it is away.
        let group = || {
            let mut here = subscriber("here", 2, Some("g"), false);
            attend(&mut here, 0, None);
            here.connections[0].began = Duration::ZERO;
            let mut away = subscriber("away", 2, Some("g"), true);
            attend(&mut away, 0, Some(10));
            (here, away)
        };
        let (mut here, mut away) = group();
        deliver(&mut here, 2, 2, false);
        for message in [0, 1, 3] {
            deliver(&mut away, message, 2, false);
        }
        let verdict = judged(device(4), vec![here, away], 100);
        assert_eq!((verdict.lost, verdict.held_up), (0, 1), "{:?}", verdict.told);
        let (here, mut away) = group();
        away.trying = Some(seconds(15));
        for message in 0..4 {
            deliver(&mut away, message, 2, false);
        }
        let verdict = judged(device(4), vec![here, away], 100);
        assert_eq!((verdict.lost, verdict.held_up), (0, 0), "it was about to come back");
    }
}
