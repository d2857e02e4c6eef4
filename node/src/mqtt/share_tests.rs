//! Groups by hand, and by seeds against what the strategies promise.

use causeway_protocol::mqtt::QoS;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    flow::mailbox::Capacity,
    mqtt::{
        inbox::{
            Inbox, Mail,
            tests::{connected, rules},
        },
        publication::{Via, tests::publication},
    },
};

fn member(group: &Arc<Group>, id: u64, items: usize) -> RouteSubscriber {
    let rules = rules(Capacity { bytes: 1 << 20, items }, Arc::default());
    RouteSubscriber {
        inbox: connected(Inbox::new(id, &format!("c{id}"), &Arc::new(rules), None)),
        via: Some(Arc::new(Via {
            identifiers: [id as u32].into_iter().collect(),
            group: Arc::downgrade(group),
            share: None,
        })),
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
    }
}

fn group(members: u64) -> (Arc<Group>, Vec<RouteSubscriber>) {
    let group = Group::new("g");
    let members: Vec<_> = (1..=members).map(|id| member(&group, id, 100)).collect();
    for member in &members {
        assert!(group.join(member.clone()));
    }
    (group, members)
}

fn choice(strategy: ShareStrategy) -> Choice<'static> {
    Choice { strategy, publisher: "p", topic: "t" }
}

fn chosen(group: &Group, choice: &Choice<'_>) -> u64 {
    let members = group.picture();
    group.choose(&members, choice).map_or(0, |at| members[at].inbox.id())
}

#[test]
fn round_robin_gives_everybody_the_same() {
    let (group, _) = group(3);
    let order: Vec<_> = (0..6).map(|_| chosen(&group, &choice(ShareStrategy::RoundRobin))).collect();
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn those_who_are_away_are_left_out_and_the_others_share_evenly() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for strategy in [ShareStrategy::RoundRobin, ShareStrategy::Random] {
        for count in [2u64, 10, 100] {
            let (group, members) = group(count);
            let mut connected = Vec::new();
            for member in &members {
                if random.random_bool(0.5) {
                    member.inbox.detach();
                } else {
                    connected.push(member.inbox.id());
                }
            }
            let mut shares = std::collections::HashMap::new();
            for _ in 0..1000 * count {
                *shares.entry(chosen(&group, &choice(strategy))).or_insert(0u64) += 1;
            }
            if connected.is_empty() {
                assert_eq!(shares.into_keys().collect::<Vec<_>>(), [1], "the oldest, seed {seed}");
                continue;
            }
            let fair = 1000 * count / connected.len() as u64;
            for id in &connected {
                let share = shares.remove(id).unwrap_or(0);
                assert!(share > fair / 2 && share < fair * 2, "{id}: {share} of {fair}, seed {seed}");
            }
            assert!(shares.is_empty(), "somebody who is away was chosen, seed {seed}");
        }
    }
}

#[test]
fn sticky_stays_with_one_until_it_goes_and_stays_with_the_next() {
    let (group, members) = group(3);
    let sticky = || chosen(&group, &choice(ShareStrategy::Sticky));
    assert_eq!([sticky(), sticky()], [1, 1]);
    members[0].inbox.detach();
    assert_eq!([sticky(), sticky()], [2, 2]);
    members[0].inbox.attach();
    assert_eq!(sticky(), 2, "who comes back does not take it away again");
    assert!(group.leave(2));
    assert_eq!(sticky(), 1);
}

#[test]
fn a_hash_keeps_a_publisher_or_a_topic_with_one_member() {
    let (group, members) = group(10);
    let by = |strategy, publisher: &str, topic: &str| chosen(&group, &Choice { strategy, publisher, topic });
    for (strategy, vary_topic) in [(ShareStrategy::HashClientId, true), (ShareStrategy::HashTopic, false)] {
        let all = |key: &str| -> std::collections::HashSet<u64> {
            let other = |number: u32| number.to_string();
            (0..50)
                .map(|n| if vary_topic { by(strategy, key, &other(n)) } else { by(strategy, &other(n), key) })
                .collect()
        };
        let spread: std::collections::HashSet<u64> = (0..300)
            .map(|key| {
                let chosen = all(&key.to_string());
                assert_eq!(chosen.len(), 1);
                chosen.into_iter().next().unwrap_or(0)
            })
            .collect();
        assert_eq!(spread.len(), 10, "three hundred keys reach all ten");
        let before = all("k");
        let id = before.iter().next().copied().unwrap_or(0);
        members[id as usize - 1].inbox.detach();
        let while_away = all("k");
        assert!(while_away.len() == 1 && !while_away.contains(&id));
        members[id as usize - 1].inbox.attach();
        assert_eq!(all("k"), before);
    }
}

fn delivered(member: &RouteSubscriber) -> Vec<(u8, Vec<u32>)> {
    let mails = member.inbox.take();
    let delivery = |mail: &Mail| match mail {
        Mail::Delivery(delivery) => (delivery.publication.payload()[0], delivery.identifiers().to_vec()),
        _ => panic!("only deliveries"),
    };
    mails.iter().map(delivery).collect()
}

fn offer(member: &RouteSubscriber, number: u8, qos: QoS) {
    let publication = Arc::new(publication("t", &[number], qos, false));
    member.inbox.offer(member.delivery(&publication, None));
}

#[test]
fn what_a_full_member_cannot_take_goes_to_one_with_room() {
    let group = Group::new("g");
    let (small, large) = (member(&group, 1, 2), member(&group, 2, 3));
    group.join(small.clone());
    group.join(large.clone());
    for number in 0..5 {
        offer(&small, number, if number == 3 { QoS::AtMostOnce } else { QoS::AtLeastOnce });
    }
    let (left, dropped) = (small.inbox.filling().dropped, large.inbox.filling().dropped);
    assert_eq!((left, dropped), (0, 0));
    // Nobody has room now: the one whose turn it was loses.
    offer(&small, 9, QoS::AtLeastOnce);
    assert_eq!((small.inbox.filling().dropped, large.inbox.filling().dropped), (1, 0));
    assert_eq!(delivered(&small), [(0, vec![1]), (1, vec![1])]);
    assert_eq!(delivered(&large), [(2, vec![2]), (3, vec![2]), (4, vec![2])]);
}

#[test]
fn what_reaches_a_session_that_is_over_goes_to_another() {
    let (group, members) = group(3);
    members[1].inbox.end();
    offer(&members[1], 7, QoS::AtMostOnce);
    let got: Vec<_> = members.iter().flat_map(delivered).collect();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].0, 7);
    // A connected member is preferred, and one that is away keeps QoS 1.
    members[2].inbox.detach();
    for number in 0..3 {
        offer(&members[1], number, QoS::AtLeastOnce);
    }
    assert_eq!(delivered(&members[0]).len(), 3);
    members[0].inbox.detach();
    offer(&members[1], 9, QoS::AtLeastOnce);
    offer(&members[1], 9, QoS::AtMostOnce);
    assert_eq!(members.iter().map(|member| delivered(member).len()).sum::<usize>(), 1);
    assert!(group.leave(1) && group.leave(3) && !group.leave(3));
}
