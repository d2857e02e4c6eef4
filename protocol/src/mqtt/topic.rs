//! Topic names and topic filters (MQTT-5.0 4.7) and shared subscriptions (4.8.2).
//!
//! Everything here walks its input once, level by level, without recursion and without allocation, so
//! that no input makes it slow or deep.

use memchr::{memchr, memchr_iter, memchr3};

/// The longest topic name or filter in bytes (MQTT-5.0 4.7.3).
pub const MAX_TOPIC_LENGTH: usize = 65_535;

/// Default limit for the number of levels of a topic name or filter.
pub const DEFAULT_MAX_LEVELS: u16 = 128;

/// The separator of topic levels (MQTT-5.0 4.7.1.1).
pub const LEVEL_SEPARATOR: char = '/';

const SHARED_PREFIX: &str = "$share/";

/// Why a topic name or filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// No character at all (MQTT-4.7.3-1).
    #[error("topic is empty: at least one character is needed")]
    Empty,
    /// Longer than a string can be (MQTT-4.7.3-3).
    #[error("topic of {0} bytes is too long: at most 65535")]
    TooLong(usize),
    /// The null character (MQTT-4.7.3-2).
    #[error("topic contains U+0000, which no topic may")]
    Null,
    /// `+` or `#` in a topic name (MQTT-4.7.0-1).
    #[error("topic name contains the wildcard `{0}`, which only a topic filter may")]
    Wildcard(char),
    /// More levels than this server takes.
    #[error("topic has {levels} levels: at most {maximum}")]
    TooManyLevels {
        /// Levels found.
        levels: usize,
        /// Levels allowed.
        maximum: u16,
    },
    /// `#` that is not the whole last level (MQTT-4.7.1-1).
    #[error("`#` must be the whole last level of a topic filter, as in `a/#`")]
    MisplacedMultiLevel,
    /// `+` that is not a whole level (MQTT-4.7.1-2).
    #[error("`+` must be a whole level of a topic filter, as in `a/+/b`")]
    MisplacedSingleLevel,
    /// `$share/` without a share name and filter (MQTT-4.8.2-1, MQTT-4.8.2-2).
    #[error("shared subscription must be `$share/NAME/FILTER`, NAME without `/`, `+` and `#`")]
    MalformedShare,
}

/// Checks a topic name (MQTT-5.0 4.7.3) and its number of levels.
#[inline]
pub fn validate_topic_name(topic: &str, max_levels: u16) -> Result<(), TopicError> {
    check_common(topic, max_levels)?;
    match memchr3(0, b'+', b'#', topic.as_bytes()) {
        None => Ok(()),
        Some(at) => Err(match topic.as_bytes().get(at) {
            Some(b'+') => TopicError::Wildcard('+'),
            Some(b'#') => TopicError::Wildcard('#'),
            _ => TopicError::Null,
        }),
    }
}

/// Checks a topic filter (MQTT-5.0 4.7.1, 4.7.3) and its number of levels. A `$share/` prefix is looked
/// at as ordinary levels: see [`validate_subscription`].
pub fn validate_topic_filter(filter: &str, max_levels: u16) -> Result<(), TopicError> {
    check_common(filter, max_levels)?;
    let bytes = filter.as_bytes();
    if memchr(0, bytes).is_some() {
        return Err(TopicError::Null);
    }
    if memchr::memchr2(b'+', b'#', bytes).is_none() {
        return Ok(());
    }
    let mut levels = bytes.split(|&byte| byte == b'/').peekable();
    while let Some(level) = levels.next() {
        match level {
            b"#" if levels.peek().is_none() => {}
            b"+" => {}
            _ if memchr(b'#', level).is_some() => return Err(TopicError::MisplacedMultiLevel),
            _ if memchr(b'+', level).is_some() => return Err(TopicError::MisplacedSingleLevel),
            _ => {}
        }
    }
    Ok(())
}

/// Checks what an MQTT 5 client subscribes to: a topic filter, or a well-formed shared subscription
/// whose filter keeps the level limit (MQTT-5.0 4.8.2).
pub fn validate_subscription(filter: &str, max_levels: u16) -> Result<(), TopicError> {
    if !is_shared(filter) {
        return validate_topic_filter(filter, max_levels);
    }
    if filter.len() > MAX_TOPIC_LENGTH {
        return Err(TopicError::TooLong(filter.len()));
    }
    let (group, shared) = parse_shared(filter).ok_or(TopicError::MalformedShare)?;
    if memchr(0, group.as_bytes()).is_some() {
        return Err(TopicError::Null);
    }
    validate_topic_filter(shared, max_levels)
}

#[inline]
fn check_common(topic: &str, max_levels: u16) -> Result<(), TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    // A topic of n bytes has at most n + 1 levels: short ones need no count.
    if topic.len() >= usize::from(max_levels) {
        check_long(topic, max_levels)?;
    }
    Ok(())
}

fn check_long(topic: &str, max_levels: u16) -> Result<(), TopicError> {
    if topic.len() > MAX_TOPIC_LENGTH {
        return Err(TopicError::TooLong(topic.len()));
    }
    let levels = level_count(topic);
    if levels > usize::from(max_levels) {
        return Err(TopicError::TooManyLevels { levels, maximum: max_levels });
    }
    Ok(())
}

/// The number of levels, at least 1: `a/b` has two, `/` has two empty ones (MQTT-5.0 4.7.1.1).
pub fn level_count(topic: &str) -> usize {
    memchr_iter(b'/', topic.as_bytes()).count() + 1
}

/// Whether a (valid) filter holds a wildcard.
pub fn has_wildcard(filter: &str) -> bool {
    memchr::memchr2(b'+', b'#', filter.as_bytes()).is_some()
}

/// Whether a valid topic filter matches a valid topic name (MQTT-5.0 4.7.1). A leading wildcard does not
/// match a topic that starts with `$` (MQTT-4.7.2-1). `filter` is without its `$share/NAME/`.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split(LEVEL_SEPARATOR);
    for wanted in filter.split(LEVEL_SEPARATOR) {
        if wanted == "#" {
            // Also the level above: `a/#` matches `a`.
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether this filter claims to be a shared subscription: well-formed or not.
pub fn is_shared(filter: &str) -> bool {
    filter.starts_with(SHARED_PREFIX)
}

/// Share name and topic filter of a shared subscription `$share/NAME/FILTER` (MQTT-5.0 4.8.2). `None`
/// for any other filter and where name or filter are missing or the name holds a wildcard. The filter
/// part is not validated here.
pub fn parse_shared(filter: &str) -> Option<(&str, &str)> {
    let (group, shared) = filter.strip_prefix(SHARED_PREFIX)?.split_once(LEVEL_SEPARATOR)?;
    let well_formed = !group.is_empty() && !shared.is_empty() && !has_wildcard(group);
    well_formed.then_some((group, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_matches_what_the_standard_says() {
        // MQTT-5.0 4.7.1.2, 4.7.1.3, 4.7.2 and what follows from them.
        let cases = [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/tennis/player1/#", "sport/tennis/player10", false),
            ("sport/#", "sport", true),
            ("sport/#", "sports", false),
            ("#", "sport", true),
            ("#", "/", true),
            ("#", "a/b/c", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("+/+/#", "a", false),
            ("+/+/#", "a/b", true),
            ("+/tennis/#", "sport/tennis", true),
            ("#", "$SYS/x", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/#", "$SYS", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("/#", "$SYS", false),
            ("a/+", "a/$b", true),
            ("ACCOUNTS", "Accounts", false),
            ("a", "a", true),
            ("a", "a/", false),
            ("a/", "a", false),
            ("//", "//", true),
            ("+/+/+", "//", true),
            ("a//b", "a/b", false),
            ("größe/+", "größe/1", true),
            ("+", "℃", true),
            ("℃/#", "℃", true),
        ];
        for (filter, topic, expected) in cases {
            validate_topic_filter(filter, 128).unwrap();
            validate_topic_name(topic, 128).unwrap();
            assert_eq!(matches(filter, topic), expected, "{filter} and {topic}");
        }
    }

    /// Matching said again, backwards from what a wildcard stands for.
    fn matches_by_definition(filter: &[&str], topic: &[&str]) -> bool {
        match (filter.split_first(), topic.split_first()) {
            (Some((&"#", _)), _) | (None, None) => true,
            (Some((&wanted, filter)), Some((&level, topic))) => {
                (wanted == "+" || wanted == level) && matches_by_definition(filter, topic)
            }
            _ => false,
        }
    }

    #[test]
    fn every_small_filter_matches_by_definition() {
        let levels = ["", "a", "b", "$x"];
        let wildcards = ["", "a", "b", "$x", "+", "#"];
        let all = |from: &[&'static str]| {
            let mut lists: Vec<Vec<&str>> = vec![vec![]];
            let mut done = Vec::new();
            for _ in 0..3 {
                lists = lists
                    .iter()
                    .flat_map(|list| from.iter().map(|level| [&list[..], &[*level]].concat()))
                    .collect();
                done.extend(lists.clone());
            }
            done
        };
        let (mut matching, mut total) = (0, 0);
        for filter in all(&wildcards) {
            let text = filter.join("/");
            let legal = !text.is_empty() && !filter[..filter.len() - 1].contains(&"#");
            assert_eq!(validate_topic_filter(&text, 128).is_ok(), legal, "{text}");
            if !legal {
                continue;
            }
            for topic in all(&levels) {
                let name = topic.join("/");
                if name.is_empty() {
                    continue;
                }
                let hidden = name.starts_with('$') && text.starts_with(['+', '#']);
                let expected = !hidden && matches_by_definition(&filter, &topic);
                assert_eq!(matches(&text, &name), expected, "{text} and {name}");
                total += 1;
                matching += u32::from(expected);
            }
        }
        assert!(total > 10_000 && matching > 500, "{matching} of {total}");
    }

    #[test]
    fn names_and_filters_are_refused_for_what_is_wrong_with_them() {
        let deep = "/".repeat(128);
        let long = "x".repeat(65_536);
        let too_deep = TopicError::TooManyLevels { levels: 129, maximum: 128 };
        let names = [
            ("", TopicError::Empty),
            ("a/+", TopicError::Wildcard('+')),
            ("a#", TopicError::Wildcard('#')),
            ("a\0#", TopicError::Null),
            (&deep, too_deep),
            (&long, TopicError::TooLong(65_536)),
        ];
        for (name, error) in names {
            assert_eq!(validate_topic_name(name, 128), Err(error), "{name:.20}");
        }
        let filters = [
            ("", TopicError::Empty),
            ("a/#/b", TopicError::MisplacedMultiLevel),
            ("#a", TopicError::MisplacedMultiLevel),
            ("a/b#", TopicError::MisplacedMultiLevel),
            ("a+/b", TopicError::MisplacedSingleLevel),
            ("+a", TopicError::MisplacedSingleLevel),
            ("a\0", TopicError::Null),
            (&deep, too_deep),
            (&long, TopicError::TooLong(65_536)),
        ];
        for (filter, error) in filters {
            assert_eq!(validate_topic_filter(filter, 128), Err(error), "{filter:.20}");
        }
        assert_eq!(validate_topic_name(&deep[1..], 128), Ok(()));
        assert_eq!(validate_topic_filter(&deep[1..], 128), Ok(()));
        assert_eq!(validate_topic_name("a/b", 1), Err(TopicError::TooManyLevels { levels: 2, maximum: 1 }));
    }

    #[test]
    fn a_shared_subscription_is_taken_apart() {
        assert_eq!(parse_shared("$share/group/a/+/#"), Some(("group", "a/+/#")));
        assert_eq!(parse_shared("$share/g//"), Some(("g", "/")));
        for not_shared in
            ["a", "$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$sharex/g/a"]
        {
            assert_eq!(parse_shared(not_shared), None, "{not_shared}");
        }
        assert_eq!(validate_subscription("$share/g/a/#", 128), Ok(()));
        assert_eq!(validate_subscription("$share/g", 128), Err(TopicError::MalformedShare));
        assert_eq!(validate_subscription("$share/g/#/a", 128), Err(TopicError::MisplacedMultiLevel));
        assert_eq!(validate_subscription("$SYS/#", 128), Ok(()));
        assert!(is_shared("$share/") && !is_shared("$share"));
    }

    #[test]
    fn a_filter_of_slashes_only_costs_what_its_length_does() {
        let deep = "/".repeat(65_535);
        assert!(matches(&deep, &deep));
        assert!(matches(&("+/".repeat(32_767) + "#"), &deep));
        assert_eq!(level_count(&deep), 65_536);
    }
}
