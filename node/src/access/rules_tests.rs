use super::*;

fn who<'a>(client_id: &'a str, username: Option<&'a str>) -> Who<'a> {
    Who { client_id, username, address: Some("10.1.2.3".parse().unwrap()), listener: "default" }
}

fn rule(permission: Permission, action: Action, topics: &[&str]) -> Rule {
    let topics = topics.iter().map(|topic| TopicPattern::read(topic).unwrap()).collect();
    Rule { action, topics, ..Rule::new(permission) }
}

fn allow(topics: &[&str]) -> Rule {
    rule(Permission::Allow, Action::All, topics)
}

fn deny(topics: &[&str]) -> Rule {
    rule(Permission::Deny, Action::All, topics)
}

fn publish(rules: &RuleSet, who: &Who<'_>, topic: &str) -> Allowed {
    let mut decided = Decided::nothing();
    rules.publish(who, topic, &mut decided);
    decided.or(Permission::Deny)
}

fn may_publish(rules: &RuleSet, who: &Who<'_>, topic: &str) -> bool {
    publish(rules, who, topic) == Allowed::ALL
}

fn may_subscribe(rules: &RuleSet, who: &Who<'_>, filter: &str) -> bool {
    rules.subscribe(who, filter, QoS::AtMostOnce) == Some(Permission::Allow)
}

#[test]
fn the_first_rule_that_fits_decides() {
    let rules = RuleSet::new(vec![deny(&["t/secret/#"]), allow(&["t/#"]), deny(&["t/late"])]);
    let who = who("c", None);
    assert!(may_publish(&rules, &who, "t/a"));
    assert!(may_publish(&rules, &who, "t/late"));
    assert!(!may_publish(&rules, &who, "t/secret/a"));
    assert!(!may_publish(&rules, &who, "other"), "no rule fits, and the default is to deny");
    assert_eq!(rules.subscribe(&who, "other", QoS::AtMostOnce), None);
}

#[test]
fn a_subscription_needs_a_rule_that_covers_it_and_none_that_keeps_a_part_of_it() {
    let rules = RuleSet::new(vec![deny(&["t/secret/#"]), allow(&["t/#"])]);
    let who = who("c", None);
    for (filter, expected) in
        [("t/a", true), ("t/a/+", true), ("t/#", false), ("t/+/x", false), ("t/+", false), ("#", false)]
    {
        assert_eq!(may_subscribe(&rules, &who, filter), expected, "{filter}");
    }
    let rules = RuleSet::new(vec![allow(&["t/+"])]);
    assert!(may_subscribe(&rules, &who, "t/+") && !may_subscribe(&rules, &who, "t/#"));
}

#[test]
fn eq_takes_a_filter_by_the_letter() {
    let rules = RuleSet::new(vec![deny(&["eq #", "eq t/+"]), allow(&[])]);
    let who = who("c", None);
    assert!(!may_subscribe(&rules, &who, "#") && !may_subscribe(&rules, &who, "t/+"));
    assert!(may_subscribe(&rules, &who, "t/#") && may_subscribe(&rules, &who, "t/a"));
    assert!(may_publish(&rules, &who, "t/a"));
    let rules = RuleSet::new(vec![allow(&["eq t/${clientid}"])]);
    assert!(may_publish(&rules, &who, "t/c") && !may_publish(&rules, &who, "t/d"));
}

#[test]
fn placeholders_stand_for_the_client() {
    let rules = RuleSet::new(vec![allow(&["up/${username}/${clientid}", "down/${clientid}/#"])]);
    let me = who("c1", Some("ann"));
    assert!(may_publish(&rules, &me, "up/ann/c1") && may_subscribe(&rules, &me, "down/c1/+"));
    assert!(!may_publish(&rules, &me, "up/ann/c2") && !may_subscribe(&rules, &me, "down/+/x"));
    assert!(!may_publish(&rules, &who("c1", None), "up//c1"), "without a user name there is no such topic");
}

#[test]
fn what_a_client_calls_itself_never_widens_a_rule() {
    let rules =
        RuleSet::new(vec![allow(&["t/${clientid}", "t/${clientid}/#", "${clientid}/#", "x-${username}/#"])]);
    for name in ["+", "#", "a/b", "a+", "/", "", "+/#"] {
        let who = who(name, Some(name));
        for topic in ["t/a", "t/a/b", "t/b", "a/b", "t/", "x-a/b", "x-/b"] {
            assert!(!may_publish(&rules, &who, topic), "{name:?} publishes {topic}");
        }
        for filter in ["t/+", "t/#", "#", "t/a/b", "+/#"] {
            assert!(!may_subscribe(&rules, &who, filter), "{name:?} subscribes {filter}");
        }
    }
    assert!(!may_subscribe(&rules, &who("$SYS", None), "$SYS/#"));
    assert!(may_subscribe(&rules, &who("$SYS", None), "t/$SYS/a"));
}

#[test]
fn a_name_that_looks_like_a_placeholder_is_taken_by_the_letter() {
    let rules = RuleSet::new(vec![allow(&["c/${clientid}", "u/${username}/#", "${username}/${clientid}/x"])]);
    let crossed = who("${username}", Some("${clientid}"));
    assert!(
        may_publish(&rules, &crossed, "c/${username}") && may_subscribe(&rules, &crossed, "u/${clientid}/#")
    );
    // A topic that would begin with `$` through a name is not for that client.
    for topic in [
        "${clientid}/${username}/x",
        "c/${clientid}",
        "u/${username}/x",
        "${username}/${clientid}/x",
        "c/",
        "u//x",
    ] {
        assert!(!may_publish(&rules, &crossed, topic), "{topic}");
    }
    let posing = who("${username}", Some("ann"));
    assert!(!may_publish(&rules, &posing, "c/ann") && !may_publish(&rules, &posing, "ann/ann/x"));
    let posing = who("meter", Some("${clientid}"));
    assert!(!may_subscribe(&rules, &posing, "u/meter/#") && !may_publish(&rules, &posing, "meter/meter/x"));
    let denied = RuleSet::new(vec![deny(&["own/${clientid}/#"]), allow(&["own/#"])]);
    assert!(
        !may_publish(&denied, &crossed, "own/${username}/x") && may_publish(&denied, &crossed, "own/ann/x")
    );
}

#[test]
fn a_wild_name_does_not_escape_a_deny_rule() {
    let rules = RuleSet::new(vec![deny(&["own/${clientid}/#"]), allow(&[])]);
    for name in ["a", "+", "a/b"] {
        let who = who(name, None);
        let topic = format!("own/{}/x", if name == "+" { "any" } else { name });
        assert!(!may_publish(&rules, &who, &topic), "{name}");
        assert!(!may_subscribe(&rules, &who, &topic) && !may_subscribe(&rules, &who, "own/#"), "{name}");
    }
}

#[test]
fn a_rule_is_for_those_it_names() {
    let mut named = allow(&["n"]);
    named.usernames = vec!["ann".into(), "bob".into()];
    let mut client = allow(&["c"]);
    client.client_ids = vec!["c1".into()];
    let mut network = allow(&["a"]);
    network.networks = vec![Network::read("10.1.0.0/16").unwrap()];
    let mut listener = allow(&["l"]);
    listener.listeners = vec!["default".into()];
    let mut both = allow(&["b"]);
    both.usernames = vec!["ann".into()];
    both.client_ids = vec!["c1".into()];
    let rules = RuleSet::new(vec![named, client, network, listener, both]);
    let topics = |who: &Who<'_>| -> String {
        ["n", "c", "a", "l", "b"].into_iter().filter(|topic| may_publish(&rules, who, topic)).collect()
    };
    assert_eq!(topics(&who("c1", Some("ann"))), "ncalb");
    assert_eq!(topics(&who("c2", Some("ann"))), "nal");
    assert_eq!(topics(&who("c1", Some("eve"))), "cal");
    assert_eq!(topics(&who("c1", None)), "cal");
    let away = Who { address: Some("10.2.0.1".parse().unwrap()), listener: "tls", ..who("c2", None) };
    assert_eq!(topics(&away), "");
}

#[test]
fn order_holds_between_rules_that_name_somebody_and_those_that_do_not() {
    let mut ann = allow(&["t"]);
    ann.usernames = vec!["ann".into()];
    let mut c1 = deny(&["t"]);
    c1.client_ids = vec!["c1".into()];
    let first = RuleSet::new(vec![ann.clone(), c1.clone(), deny(&[])]);
    let last = RuleSet::new(vec![c1, deny(&["t"]), ann]);
    let who = who("c1", Some("ann"));
    assert!(may_publish(&first, &who, "t") && !may_publish(&last, &who, "t"));
}

#[test]
fn qos_and_retain_narrow_a_rule() {
    let mut low = rule(Permission::Allow, Action::Publish, &["t"]);
    (low.qos, low.retain) = (0b011, Some(false));
    let mut kept = rule(Permission::Allow, Action::Publish, &["t"]);
    (kept.qos, kept.retain) = (0b010, Some(true));
    let rules = RuleSet::new(vec![low, kept]);
    let allowed = publish(&rules, &who("c", None), "t");
    let levels = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    let plain = levels.map(|qos| allowed.contains(qos, false));
    let retained = levels.map(|qos| allowed.contains(qos, true));
    assert_eq!((plain, retained), ([true, true, false], [false, true, false]));

    let mut sub = rule(Permission::Allow, Action::Subscribe, &["t"]);
    sub.qos = 0b001;
    let rules = RuleSet::new(vec![sub]);
    assert!(may_subscribe(&rules, &who("c", None), "t"));
    assert_eq!(rules.subscribe(&who("c", None), "t", QoS::AtLeastOnce), None);
    assert!(!may_publish(&rules, &who("c", None), "t"));
}

#[test]
fn networks_are_read_with_care() {
    let contains =
        |network: &str, address: &str| Network::read(network).unwrap().contains(address.parse().unwrap());
    assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
    assert!(contains("10.0.0.7", "10.0.0.7") && contains("0.0.0.0/0", "1.2.3.4"));
    assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"), "an IPv4 client of an IPv6 listener");
    assert!(contains("fd00::/8", "fd12::1") && !contains("::/0", "1.2.3.4"));
    for wrong in ["", "10.0.0", "10.0.0.0/33", "10.0.0.1/8", "fd00::/129", "host", "10.0.0.0/x"] {
        assert!(Network::read(wrong).is_err(), "{wrong}");
    }
    assert!(Network::read("10.0.0.1/8").unwrap_err().contains("10.0.0.0/8"));
}

#[test]
fn topic_filters_of_rules_are_read_with_care() {
    for right in ["#", "a/+/b", "eq #", "${clientid}", "a-${username}/#", "$SYS/#"] {
        assert_eq!(TopicPattern::read(right).unwrap().to_string(), right);
    }
    for (wrong, why) in [
        ("", "empty"),
        ("a/#/b", "last level"),
        ("a+", "whole level"),
        ("${client}/x", "${client}"),
        ("$share/g/t", "$share"),
    ] {
        let error = TopicPattern::read(wrong).unwrap_err();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

#[test]
fn a_thousand_random_rule_sets_never_let_a_filter_reach_a_forbidden_topic() {
    use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let filters = ["#", "a/#", "a/+", "+/b", "a/b", "a", "+/+/c", "$x/#", "a/b/c", "${clientid}/#", "+"];
    let topics = ["a", "b", "a/b", "a/c", "c/b", "a/b/c", "$x/a", "b/c/c", "c"];
    for _ in 0..1000 {
        let rules = (0..random.random_range(1..5))
            .map(|_| {
                let topics: Vec<&str> = (0..2).filter_map(|_| filters.choose(&mut random).copied()).collect();
                rule(if random.random() { Permission::Allow } else { Permission::Deny }, Action::All, &topics)
            })
            .collect();
        let rules = RuleSet::new(rules);
        let who = who(["a", "+", "c"].choose(&mut random).unwrap(), None);
        for filter in ["#", "a/#", "+/b", "a/+", "a/b", "+/+/c", "$x/#", "+", "c/#"] {
            if may_subscribe(&rules, &who, filter) {
                for topic in topics.iter().filter(|topic| topic::matches(filter, topic)) {
                    assert!(
                        may_publish(&rules, &who, topic),
                        "seed {seed}: {filter} reaches {topic}: {rules:?}"
                    );
                }
            }
        }
    }
}
