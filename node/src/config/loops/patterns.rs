//! Whether topics meet where templates and filters stand for many.

use causeway_protocol::mqtt::topic;

use crate::template::{Piece, has_placeholder, pieces};

/// Pairs of template and filter beyond this product of their lengths are not compared: they may meet.
const COMPARED: usize = 1 << 20;

/// Whether what one bridge sends comes to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Never.
    No,
    /// Placeholders decide.
    Maybe,
    /// Whatever the message.
    Surely,
}

/// Whether a producer bridge with this `kafka.topic`, a name or a template of one, writes to `kafka_topic`.
pub(super) fn writes_to(topic: &str, kafka_topic: &str) -> Reach {
    if !has_placeholder(topic) {
        return if topic == kafka_topic { Reach::Surely } else { Reach::No };
    }
    let wanted: Vec<Want> = kafka_topic.bytes().map(Want::Byte).collect();
    if meet(&units(topic), &wanted) { Reach::Maybe } else { Reach::No }
}

/// Whether a topic filter takes what is published to `mqtt_topic`, a topic name or a template of one.
pub(super) fn takes(filter: &str, mqtt_topic: &str) -> Reach {
    if !has_placeholder(mqtt_topic) {
        return if topic::matches(filter, mqtt_topic) { Reach::Surely } else { Reach::No };
    }
    let certain = match pieces(mqtt_topic).first() {
        Some(Piece::Literal(text)) => *text,
        _ => "",
    };
    let is_covered = match certain.rsplit_once('/') {
        // Levels that are complete before the first placeholder, and the filter asks for no others.
        Some((levels, _)) => filter.ends_with('#') && topic::matches(filter, levels),
        None => filter == "#" && !certain.is_empty() && !certain.starts_with('$'),
    };
    if is_covered {
        return Reach::Surely;
    }
    // A filter that begins with a wildcard takes no topic that begins with `$`.
    if certain.starts_with('$') && filter.starts_with(['+', '#']) {
        return Reach::No;
    }
    if meet(&units(mqtt_topic), &wants(filter)) { Reach::Maybe } else { Reach::No }
}

/// A piece of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Byte(u8),
    /// A placeholder: any text, with slashes and without.
    Any,
}

/// A piece of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Byte(u8),
    /// `+`: anything but a slash.
    Level,
    /// `#` at the beginning: anything.
    All,
    /// `/#`: nothing, or a slash and anything.
    Below,
}

fn units(template: &str) -> Vec<Unit> {
    let of_piece = |piece: Piece<'_>| match piece {
        Piece::Literal(text) => text.bytes().map(Unit::Byte).collect(),
        Piece::Placeholder(_) => vec![Unit::Any],
    };
    pieces(template).into_iter().flat_map(of_piece).collect()
}

fn wants(filter: &str) -> Vec<Want> {
    let mut wants = Vec::new();
    for (at, level) in filter.split('/').enumerate() {
        match (at, level) {
            (0, "#") => wants.push(Want::All),
            (_, "#") => wants.push(Want::Below),
            _ => {
                if at > 0 {
                    wants.push(Want::Byte(b'/'));
                }
                match level {
                    "+" => wants.push(Want::Level),
                    text => wants.extend(text.bytes().map(Want::Byte)),
                }
            }
        }
    }
    wants
}

/// Whether there is a text that both describe.
fn meet(template: &[Unit], filter: &[Want]) -> bool {
    let width = filter.len() + 1;
    if template.len().saturating_mul(width) > COMPARED {
        return true;
    }
    let mut seen = vec![false; (template.len() + 1) * width];
    let mut open = vec![(0, 0)];
    while let Some((at, wanted)) = open.pop() {
        match seen.get_mut(at * width + wanted) {
            Some(seen) if !*seen => *seen = true,
            _ => continue,
        }
        match (template.get(at), filter.get(wanted)) {
            (None, None)
            | (_, Some(Want::All))
            | (None | Some(Unit::Any | Unit::Byte(b'/')), Some(Want::Below)) => return true,
            (None, Some(Want::Level)) => open.push((at, wanted + 1)),
            (Some(Unit::Any), None) => open.push((at + 1, wanted)),
            (Some(Unit::Any), Some(Want::Byte(_) | Want::Level)) => {
                open.extend([(at + 1, wanted), (at, wanted + 1)]);
            }
            (Some(Unit::Byte(byte)), Some(Want::Level)) => {
                open.push((at, wanted + 1));
                if *byte != b'/' {
                    open.push((at + 1, wanted));
                }
            }
            (Some(Unit::Byte(byte)), Some(Want::Byte(other))) if byte == other => {
                open.push((at + 1, wanted + 1));
            }
            (None, Some(Want::Byte(_))) | (Some(Unit::Byte(_)), None | Some(Want::Below | Want::Byte(_))) => {
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_a_template_always_sometimes_or_never() {
        for (filter, template, expected) in [
            ("t/#", "t/back", Reach::Surely),
            ("t/#", "u/back", Reach::No),
            ("#", "$x/back", Reach::No),
            ("t/#", "t", Reach::Surely),
            ("t/#", "t/${.key}", Reach::Surely),
            ("t/#", "t/${.key}/down", Reach::Surely),
            ("+/b/#", "a/b/${.key}", Reach::Surely),
            ("#", "a${.key}", Reach::Surely),
            ("#", "${.key}", Reach::Maybe),
            ("#", "${.key}/t", Reach::Maybe),
            ("#", "$a${.key}", Reach::No),
            ("+/x", "$a/${.key}", Reach::No),
            ("$a/#", "$a/${.key}", Reach::Surely),
            ("$a/+", "${.key}", Reach::Maybe),
            ("t/#", "${.key}", Reach::Maybe),
            ("t/#", "t${.key}", Reach::Maybe),
            ("t/#", "u${.key}", Reach::No),
            ("t/#", "${.key}", Reach::Maybe),
            ("t/+/x", "t/${.key}/x", Reach::Maybe),
            ("devices/+/up", "devices/${.key}/down", Reach::No),
            ("devices/+/up", "devices/${.key}/up", Reach::Maybe),
            ("devices/+/up", "devices/${.key}", Reach::Maybe),
            ("+/+", "a/${.key}", Reach::Maybe),
            ("+", "a/${.key}", Reach::No),
            ("t/a", "t/b${.key}", Reach::No),
            ("t/a", "t/a${.key}", Reach::Maybe),
            ("t/a/b", "t/${.key}", Reach::Maybe),
            ("t/a", "u/${.key}", Reach::No),
            ("a/+/c/#", "a/${.key}/d/${.key}", Reach::Maybe),
            ("a/+/c", "a/x${.key}y/c/d", Reach::No),
        ] {
            assert_eq!(takes(filter, template), expected, "{filter} {template}");
        }
    }

    #[test]
    fn a_template_of_a_kafka_topic_gives_a_name_sometimes_or_never() {
        for (template, topic, expected) in [
            ("x", "x", Reach::Surely),
            ("x", "y", Reach::No),
            ("${clientid}", "x", Reach::Maybe),
            ("x${clientid}", "x", Reach::Maybe),
            ("x-${clientid}", "x", Reach::No),
            ("${clientid}-y", "x", Reach::No),
            ("${clientid}-${topic}-x", "a-b-x", Reach::Maybe),
            ("${clientid}-x-${topic}", "a-b-x", Reach::No),
            ("ab${topic}ba", "aba", Reach::No),
        ] {
            assert_eq!(writes_to(template, topic), expected, "{template} {topic}");
        }
    }

    /// Texts of up to three levels from a small alphabet.
    fn texts() -> Vec<String> {
        let levels = ["", "a", "b", "ab"];
        let mut texts: Vec<String> = levels.map(str::to_owned).to_vec();
        let mut last = texts.clone();
        for _ in 0..2 {
            last = last.iter().flat_map(|text| levels.map(|level| format!("{text}/{level}"))).collect();
            texts.extend(last.clone());
        }
        texts
    }

    #[test]
    fn what_a_template_can_give_is_never_said_not_to_be_taken() {
        let filters = ["a", "a/b", "a/#", "#", "+", "+/b", "a/+", "+/+/a", "ab/+/#", "a/+/b", "+/a/#"];
        let templates = ["${k}", "a${k}", "${k}b", "a/${k}", "${k}/a", "a${k}/b", "a/${k}/b", "${k}/a/${j}"];
        let values = texts();
        for filter in filters {
            for template in templates {
                let reach = takes(filter, template);
                let taken: Vec<bool> = values
                    .iter()
                    .flat_map(|value| values.iter().map(move |other| (value, other)))
                    .map(|(value, other)| template.replace("${k}", value).replace("${j}", other))
                    .filter(|name| !name.is_empty())
                    .map(|name| topic::matches(filter, &name))
                    .collect();
                match reach {
                    Reach::No => assert!(!taken.contains(&true), "{filter} {template}"),
                    Reach::Maybe => assert!(taken.contains(&true), "{filter} {template}"),
                    Reach::Surely => assert!(!taken.contains(&false), "{filter} {template}"),
                }
            }
        }
    }
}
