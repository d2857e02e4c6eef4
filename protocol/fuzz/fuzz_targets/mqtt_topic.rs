//! Topic names and filters of any shape: no panic, and what is said about a filter fits together.
//!
//! `cargo +nightly fuzz run mqtt_topic` in `protocol/`. A line feed parts filter and topic.

#![no_main]

use causeway_protocol::mqtt::topic;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (filter, name) = input.split_once('\n').unwrap_or((input, input));
    let legal_filter = topic::validate_topic_filter(filter, topic::DEFAULT_MAX_LEVELS).is_ok();
    let legal_name = topic::validate_topic_name(name, topic::DEFAULT_MAX_LEVELS).is_ok();
    let matches = topic::matches(filter, name);
    if legal_filter && legal_name {
        if !topic::has_wildcard(filter) {
            assert_eq!(matches, filter == name);
        }
        assert_eq!(topic::matches("#", name), !name.starts_with('$'));
        assert!(topic::matches(name, name));
    }
    if let Some((group, shared)) = topic::parse_shared(filter) {
        assert_eq!(format!("$share/{group}/{shared}"), filter);
        assert!(!group.is_empty() && !group.contains(['/', '+', '#']));
    }
    if topic::validate_subscription(filter, topic::DEFAULT_MAX_LEVELS).is_ok() {
        assert_eq!(topic::is_shared(filter), topic::parse_shared(filter).is_some());
    }
});
