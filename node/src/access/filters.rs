//! Pure functions on topic filters, by which subscriptions are judged.
//!
//! Both walk their inputs once, level by level, and know that a leading wildcard does not match a topic that
//! starts with `$` (MQTT-4.7.2-1). The empty topic counts, although no client can name it: `/#` and `+`
//! overlap, which is harmless. The filters must be valid and without `$share/NAME/`.

/// Whether every topic that `wanted` matches is matched by `rule`, too.
pub(super) fn covers(rule: &str, wanted: &str) -> bool {
    if wanted.starts_with('$') && rule.starts_with(['+', '#']) {
        return false;
    }
    // Every topic has a first level, so these two match the same ones.
    if (rule, wanted) == ("+/#", "#") {
        return true;
    }
    let mut wanted = wanted.split('/');
    for level in rule.split('/') {
        match (level, wanted.next()) {
            // Also the level above: `a/#` covers `a`.
            ("#", _) => return true,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) => {}
            (literal, Some(level)) if literal == level => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

/// Whether there is a topic that both match.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let wild = |filter: &str| filter.starts_with(['+', '#']);
    if (one.starts_with('$') && wild(other)) || (other.starts_with('$') && wild(one)) {
        return false;
    }
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    loop {
        match (ones.next(), others.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use causeway_protocol::mqtt::topic::{matches, validate_topic_filter};
    use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

    use super::*;

    #[test]
    fn a_filter_covers_what_it_matches_and_no_more() {
        let cases = [
            ("a/#", "a", true),
            ("a/#", "a/#", true),
            ("a/#", "a/+/b", true),
            ("a/#", "#", false),
            ("a/+", "a/b", true),
            ("a/+", "a/+", true),
            ("a/+", "a/#", false),
            ("a/+/#", "a/#", false),
            ("a/b", "a/+", false),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
            ("#", "a/b", true),
            ("#", "#", true),
            ("#", "$SYS/#", false),
            ("+/#", "$SYS/#", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("+/#", "#", true),
            ("+/+/#", "#", false),
            ("+", "", true),
            ("a//b", "a//b", true),
            ("a/+/b", "a//b", true),
        ];
        for (rule, wanted, expected) in cases {
            assert_eq!(covers(rule, wanted), expected, "{rule} covers {wanted}");
        }
    }

    #[test]
    fn filters_overlap_where_one_topic_matches_both() {
        let cases = [
            ("secret/#", "#", true),
            ("secret/#", "+/x", true),
            ("secret/#", "+", true),
            ("secret/+", "+", false),
            ("a/+/c", "a/b/+", true),
            ("a/b", "a/c", false),
            ("$SYS/#", "#", false),
            ("$SYS/#", "+/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
        ];
        for (one, other, expected) in cases {
            assert_eq!(overlap(one, other), expected, "{one} and {other}");
            assert_eq!(overlap(other, one), expected, "{other} and {one}");
        }
    }

    const LEVELS: [&str; 7] = ["a", "b", "", "$x", "+", "+", "#"];

    fn filter(random: &mut StdRng) -> String {
        loop {
            let count = random.random_range(1..=4);
            let levels: Vec<&str> = (0..count).filter_map(|_| LEVELS.choose(random).copied()).collect();
            let filter = levels.join("/");
            if validate_topic_filter(&filter, 128).is_ok() {
                return filter;
            }
        }
    }

    /// Every topic of up to five levels over the letters above, and one letter that no filter names.
    fn topics() -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut last: Vec<String> = vec![];
        for _ in 0..5 {
            let words = ["a", "b", "", "$x", "z"];
            last = if last.is_empty() {
                words.iter().map(|word| (*word).to_owned()).collect()
            } else {
                last.iter().flat_map(|head| words.map(|word| format!("{head}/{word}"))).collect()
            };
            all.extend(last.iter().cloned());
        }
        all
    }

    #[test]
    fn both_functions_agree_with_matching_every_topic() {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let topics = topics();
        let (mut covered, mut overlapping) = (0, 0);
        for _ in 0..1500 {
            let (rule, wanted) = (filter(&mut random), filter(&mut random));
            let both: Vec<bool> = topics
                .iter()
                .filter(|topic| matches(&wanted, topic))
                .map(|topic| matches(&rule, topic))
                .collect();
            assert_eq!(
                covers(&rule, &wanted),
                both.iter().all(|hit| *hit),
                "seed {seed}: {rule} covers {wanted}"
            );
            assert_eq!(
                overlap(&rule, &wanted),
                both.iter().any(|hit| *hit),
                "seed {seed}: {rule} and {wanted}"
            );
            covered += usize::from(covers(&rule, &wanted));
            overlapping += usize::from(overlap(&rule, &wanted));
        }
        assert!(covered > 50 && overlapping > 150, "seed {seed}: {covered} covered, {overlapping} overlap");
    }
}
