use super::super::{Errors, Loaded, Problem, load_text};

fn producer(name: &str, filter: &str, topic: &str, more: &str) -> String {
    format!(
        "bridges.kafka.{name} {{ bootstrap_hosts = \"k:1\", local_topic = \"{filter}\", kafka.topic = \"{topic}\"\n{more} }}\n"
    )
}

fn consumer(name: &str, topic: &str, mqtt_topic: &str, more: &str) -> String {
    format!(
        "bridges.kafka_consumer.{name} {{ bootstrap_hosts = \"k:1\", topic_mapping = \
         [{{ kafka_topic = \"{topic}\", mqtt_topic = \"{mqtt_topic}\" }}]\n{more} }}\n"
    )
}

/// What is said of loops: errors and warnings.
fn said(text: &str) -> (Vec<String>, Vec<String>) {
    let (errors, warnings) = match load_text("c", text) {
        Ok(Loaded { warnings, .. }) => (Vec::new(), warnings),
        Err(Errors(errors)) => (errors, Vec::new()),
    };
    let about = |problems: Vec<Problem>| {
        let shown = problems.iter().map(ToString::to_string);
        shown.filter(|problem| problem.contains("in a loop")).collect::<Vec<_>>()
    };
    (about(errors), about(warnings))
}

/// How many errors and warnings about loops.
fn counts(text: &str) -> (usize, usize) {
    let (errors, warnings) = said(text);
    (errors.len(), warnings.len())
}

#[test]
fn a_certain_loop_is_refused_with_its_way_and_a_remedy() {
    let text = producer("out", "t/#", "x", "") + &consumer("in", "x", "t/back", "");
    let (errors, warnings) = said(&text);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(
        errors,
        [
            "c:3: bridges.kafka_consumer.in.topic_mapping: messages go round in a loop for ever: bridges.kafka_consumer.in \
          -> MQTT topic \"t/back\" -> bridges.kafka.out (local_topic \"t/#\") -> Kafka topic \"x\" -> \
          bridges.kafka_consumer.in; change one of the topics, disable one of the bridges, or set allow_loop = true in one \
          of them if the loop is wanted"
        ]
    );
}

#[test]
fn a_ring_over_several_bridges_is_one_loop() {
    let ring = producer("one", "a/+", "x", "")
        + &consumer("two", "x", "b/1", "")
        + &producer("three", "b/#", "y", "")
        + &consumer("four", "y", "a/1", "");
    let (errors, _) = said(&ring);
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    let way = "bridges.kafka_consumer.four -> MQTT topic \"a/1\" -> bridges.kafka.one (local_topic \"a/+\") -> Kafka topic \"x\" \
               -> bridges.kafka_consumer.two -> MQTT topic \"b/1\" -> bridges.kafka.three (local_topic \"b/#\") -> Kafka topic \
               \"y\" -> bridges.kafka_consumer.four;";
    assert!(error.contains(way), "{error}");
    let broken = ring.replace("a/1", "c/1");
    assert_eq!(counts(&broken), (0, 0));
    for bridge in ["one", "two", "three", "four"] {
        let with = |key: &str| ring.replace(&format!(".{bridge} {{"), &format!(".{bridge} {{ {key},"));
        assert_eq!(counts(&with("allow_loop = true")), (0, 0), "{bridge}");
        assert_eq!(counts(&with("allow_loop = false")), (1, 0), "{bridge}");
        assert_eq!(counts(&with("enable = false")), (0, 0), "{bridge}");
    }
}

#[test]
fn each_loop_is_told_and_an_allowed_one_hides_no_other() {
    let one = producer("p1", "a/#", "x", "") + &consumer("c1", "x", "a/1", "");
    let two = producer("p2", "b/#", "y", "") + &consumer("c2", "y", "b/1", "");
    assert_eq!(counts(&format!("{one}{two}")), (2, 0));
    // Two ways through one producer bridge.
    let other_way = consumer("c3", "x", "a/2", "allow_loop = true");
    assert_eq!(counts(&format!("{one}{other_way}")), (1, 0));
    assert_eq!(counts(&(producer("p1", "a/#", "x", "") + &other_way)), (0, 0));
}

#[test]
fn other_topics_and_other_clusters_are_no_loop() {
    let pair = |filter: &str, mqtt_topic: &str| {
        counts(&(producer("out", filter, "x", "") + &consumer("in", "x", mqtt_topic, "")))
    };
    assert_eq!(pair("t/#", "u/back"), (0, 0));
    assert_eq!(pair("#", "$x/back"), (0, 0));
    assert_eq!(pair("t", "t"), (1, 0));
    let text = producer("out", "t/#", "x", "") + &consumer("in", "x", "t/back", "");
    for (hosts, expected) in [("other:1", 0), ("k", 0), ("k:2", 0), ("other:1,k:1", 1), ("K:1", 1)] {
        assert_eq!(counts(&text.replacen("k:1", hosts, 1)), (expected, 0), "{hosts}");
    }
    // Without a source nothing comes in, and what nobody reads does not come back.
    assert_eq!(counts(&text.replace("local_topic = \"t/#\", ", "")), (0, 0));
    assert_eq!(counts(&(producer("out", "t/#", "y", "") + &consumer("in", "x", "t/back", ""))), (0, 0));
}

#[test]
fn where_a_placeholder_decides_there_is_a_warning() {
    for (filter, topic, mqtt_topic, expected) in [
        ("t/#", "x", "t/${.key}", (1, 0)),
        ("t/#", "x", "${.key}", (0, 1)),
        ("t/+/x", "x", "t/${.key}/x", (0, 1)),
        ("t/+/up", "x", "t/${.key}/down", (0, 0)),
        ("t/#", "${clientid}", "t/back", (0, 1)),
        ("t/#", "y${clientid}", "t/back", (0, 0)),
    ] {
        let text = producer("out", filter, topic, "") + &consumer("in", "x", mqtt_topic, "");
        assert_eq!(counts(&text), expected, "{filter} {topic} {mqtt_topic}");
    }
    // One that is certain is worth more than one that is possible.
    let text = producer("out", "t/#", "x", "")
        + &consumer("in", "x", "${.key}", "")
        + &consumer("certain", "x", "t/back", "");
    assert_eq!(counts(&text), (1, 0));
}

#[test]
fn dead_letters_that_come_back_are_a_possible_loop() {
    let text = |mqtt_topic: &str, more: &str| {
        producer("out", "t/#", "x", "kafka.dead_letter_topic = dead")
            + &consumer("in", "dead", mqtt_topic, more)
    };
    let (errors, warnings) = said(&text("t/again", ""));
    assert_eq!(errors, [""; 0]);
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(
        warning.starts_with("c:3: bridges.kafka_consumer.in.topic_mapping: messages may go round"),
        "{warning}"
    );
    assert!(
        warning.contains("-> dead letters in the Kafka topic \"dead\" -> bridges.kafka_consumer.in;"),
        "{warning}"
    );
    assert_eq!(counts(&text("elsewhere", "")), (0, 0));
    assert_eq!(counts(&text("t/again", "allow_loop = true")), (0, 0));
}
