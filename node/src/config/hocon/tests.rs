//! Accepted and refused forms of HOCON, and random texts against the bounds and an independent reader.

use std::fmt::Write as _;
use std::panic::catch_unwind;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value as Json, json};

use super::*;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "T" => "envtopic",
        "N" => "5",
        "HASH" => "a#b",
        "EMPTY" => "",
        "L_0" => "a",
        "L_1" => "b",
        _ => return None,
    };
    Some(value.to_owned())
}

fn read_file(text: &str) -> Result<Document, Vec<Problem>> {
    read_with("t", text, Source::File(Path::new("/nonexistent")), &environment)
}

/// The tree with every scalar as a text.
fn plain(value: &Value) -> Json {
    match &value.data {
        Data::Null => Json::Null,
        Data::Text { text, .. } => Json::from(text.as_str()),
        Data::List(items) => items.iter().map(plain).collect(),
        Data::Object(entries) => entries.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
    }
}

fn tree(text: &str) -> Json {
    let document = read_file(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
    plain(&document.root)
}

fn refusal(text: &str) -> String {
    match read_file(text) {
        Ok(document) => panic!("{text:?} is read as {}", plain(&document.root)),
        Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

/// Expected result of a form.
enum Reading {
    /// As the specification says.
    Is(Json),
    /// As the specification says, with a warning that has this in it.
    Warns(Json, &'static str),
    /// Against the specification or not: refused with a message that has this in it.
    Refused(&'static str),
}
use Reading::{Is, Refused, Warns};

/// Forms in which people write HOCON: the text, what the specification says of it, what comes of it.
fn forms() -> Vec<(&'static str, &'static str, Reading)> {
    let x = || json!({"a": "x"});
    vec![
        // The text as a whole.
        ("", "an empty object", Is(json!({}))),
        ("# nothing\n", "an empty object", Is(json!({}))),
        ("\u{feff}a = x", "a byte order mark is skipped", Is(x())),
        ("a = x\r\nb = y\r\n", "a carriage return is white space", Is(json!({"a": "x", "b": "y"}))),
        ("{\ra = x\r}", "a carriage return alone is no new line", Is(x())),
        ("a\u{a0}=\u{a0}x\t", "Unicode spaces are white space", Is(x())),
        (
            r#"{"a": {"b": [1, "2", true, null]}}"#,
            "JSON is HOCON",
            Is(json!({"a": {"b": ["1", "2", "true", null]}})),
        ),
        ("a : { b : x }", "a colon is an equals sign", Is(json!({"a": {"b": "x"}}))),
        ("a { b = x }", "none of both is needed before a brace", Is(json!({"a": {"b": "x"}}))),
        ("a\n{ b = x }", "undecided; the implementation in Java reads it", Is(json!({"a": {"b": "x"}}))),
        ("a = x }", "an error", Refused("t:1: syntax error: this `}` closes nothing")),
        ("a { b = x } }\nc = y", "an error", Refused("t:1: syntax error: this `}` closes nothing")),
        ("{ a = x } }", "an error", Refused("this `}` closes nothing")),
        (
            "{ a = x }\nb = y",
            "an error",
            Refused("t:2: syntax error: the `{` of line 1 is closed before this"),
        ),
        ("{ a = x } { b = y }", "an error", Refused("the `{` of line 1 is closed before this")),
        ("a = x ]", "an error", Refused("this `]` closes nothing")),
        ("a = [ x }", "an error", Refused("close that with `]` first")),
        ("a {\n b = x ]\n}", "an error", Refused("t:2: syntax error: a `]` while the `{` of line 1 is open")),
        (
            "\n a {\n b = x\n",
            "an error",
            Refused("t:2: syntax error: expected }: the `{` of line 2 is not closed"),
        ),
        ("a = [ x\n", "an error", Refused("the `[` of line 1 is not closed")),
        ("[ 1 ]", "a list; of no use here", Refused("keys and values are expected, not a list")),
        ("a = x\0", "undecided", Refused("cannot stand outside quotes")),
        // Keys.
        ("a.b = x, a.c = y", "paths", Is(json!({"a": {"b": "x", "c": "y"}}))),
        (r#""a"."b" = x"#, "parts in quotes", Is(json!({"a": {"b": "x"}}))),
        (r#""a.b" = x"#, "a dot in quotes is none", Is(json!({"a.b": "x"}))),
        ("größe = x, 1 = y", "any character that is not reserved", Is(json!({"größe": "x", "1": "y"}))),
        ("my key = x", "white space in a key belongs to it", Is(json!({"my key": "x"}))),
        ("a..b = x", "an error", Refused("a part of this key is empty")),
        ("a. = x", "an error", Refused("a part of this key is empty")),
        ("a = x, A = y", "case counts", Is(json!({"a": "x", "A": "y"}))),
        ("a = x, a = y", "the later counts", Warns(json!({"a": "y"}), "line 1 gives this key, too")),
        ("a { b = x }, a { c = y }", "objects are merged", Is(json!({"a": {"b": "x", "c": "y"}}))),
        ("a { b = x }, a = null, a { c = y }", "null hides what is before", Is(json!({"a": {"c": "y"}}))),
        ("a = x, a = null", "null is a value", Is(json!({"a": null}))),
        (
            "a b\nc = d",
            "an error",
            Refused("t:1: syntax error: `=` or `{` is missing behind the key \"a b\""),
        ),
        ("a =\n", "an error", Refused("the value of a is missing")),
        ("a = , b = x", "an error", Refused("the value of a is missing")),
        ("= x", "an error", Refused("a key is expected here")),
        // Separators.
        ("a { b = x, },", "a comma at the end is none", Is(json!({"a": {"b": "x"}}))),
        ("a = [x,]", "a comma at the end is none", Is(json!({"a": ["x"]}))),
        ("a = [x,,y]", "an error", Refused("an element is missing before this comma")),
        ("a = [,x]", "an error", Refused("an element is missing before this comma")),
        ("a = x,, b = y", "an error", Refused("a key and a value are missing before this comma")),
        ("a = x,\nb = y", "a comma and a new line", Is(json!({"a": "x", "b": "y"}))),
        ("a = [\n x\n y\n]", "a new line is a comma", Is(json!({"a": ["x", "y"]}))),
        ("a = x b = y", "an error", Refused("a second `=` or `:` in the value of a")),
        ("a { b = x } c = y", "an error", Refused("a second `=` or `:` in the value of a")),
        // Values without quotes.
        ("a = x y  z ", "spaces within are kept", Is(json!({"a": "x y  z"}))),
        (
            "a = 1e5, b = 0123, c = true, d = 1.50",
            "numbers; as they are written here",
            Is(json!({"a": "1e5", "b": "0123", "c": "true", "d": "1.50"})),
        ),
        ("a = 1e+5", "a number", Is(json!({"a": "1e+5"}))),
        ("a = null", "null", Is(json!({"a": null}))),
        ("a = host:9092", "an error; read as it looks, without spaces", Is(json!({"a": "host:9092"}))),
        ("a = YWI=\nb = 1", "an error; read as it looks, without spaces", Is(json!({"a": "YWI=", "b": "1"}))),
        ("a = x: y", "an error", Refused("a second `=` or `:` in the value of a")),
        ("a = t/#\n", "a comment begins", Warns(json!({"a": "t/"}), "the value ends before `#`")),
        ("a = MQtt#123\n", "a comment begins", Warns(json!({"a": "MQtt"}), "the value ends before `#`")),
        ("a = x//y\n", "a comment begins", Warns(json!({"a": "x"}), "the value ends before `//`")),
        ("a = x # y\n", "a comment begins", Is(x())),
        (
            "a { b = t/# }\n",
            "an error",
            Refused("`#` begins a comment in line 1: write a value that contains it in double quotes"),
        ),
        ("a = x$y", "an error", Refused("`$` cannot stand outside quotes")),
        ("a = x@y", "an error", Refused("`@` cannot stand outside quotes")),
        ("a = x\\y", "an error", Refused("`\\` cannot stand outside quotes")),
        ("a = x+y", "an error", Refused("`+` cannot stand outside quotes")),
        ("a = 'x'", "a single quote is a character", Is(json!({"a": "'x'"}))),
        ("a = -x", "an error; read as it looks", Is(json!({"a": "-x"}))),
        // Values in quotes.
        (r#"a = "\u20ac\ud83d\ude00\n\/""#, "escapes of JSON", Is(json!({"a": "\u{20ac}\u{1f600}\n/"}))),
        (r#"a = "\ud800""#, "undecided", Refused("half of a surrogate pair")),
        (r#"a = "\ud800\u0041""#, "undecided", Refused("half of a surrogate pair")),
        (r#"a = "\q""#, "an error", Refused("not an escape")),
        (r#"a = "\u12""#, "an error", Refused("`\\u` needs four hexadecimal digits")),
        ("a = \"x\ny\"", "an error", Refused("t:1: the quote that opens here is not closed")),
        ("a = \"x", "an error", Refused("the quote that opens here is not closed")),
        (r#"a = """x"y\n""" "#, "no escapes between three quotes", Is(json!({"a": "x\"y\\n"}))),
        (r#"a = """x""""""#, "quotes beyond three belong to the text", Is(json!({"a": "x\"\""}))),
        ("a = \"\"\"x\ny\"\"\"\nb = [", "new lines are kept", Refused("t:3: syntax error: expected ]")),
        ("a = \"\"\"x", "an error", Refused("the quotes `\"\"\"` that open here are not closed")),
        (r#"a = "x" y "z""#, "parts are joined", Is(json!({"a": "x y z"}))),
        // Lists and objects as values.
        ("a = [x] [y, z]", "lists are joined", Is(json!({"a": ["x", "y", "z"]}))),
        ("a = {b = x} {c = y}", "objects are merged", Is(json!({"a": {"b": "x", "c": "y"}}))),
        (
            "a = [{b = x} {c = y}]",
            "one merged object; looks like two",
            Refused("a comma or a new line is missing between two elements of a;"),
        ),
        (
            "a = [{b = x}{c = y}]",
            "one merged object; looks like two",
            Refused("a comma or a new line is missing"),
        ),
        ("a = [[x] [y]]", "one joined list; looks like two", Refused("a comma or a new line is missing")),
        (r#"a = ["x" "y"]"#, "one joined text; looks like two", Refused("a comma or a new line is missing")),
        ("a = [x y]", "one joined text; looks like two", Refused("a comma or a new line is missing")),
        ("a = [{b = x}\n{c = y}]", "two elements", Is(json!({"a": [{"b": "x"}, {"c": "y"}]}))),
        ("a = [x] y", "an error", Refused("cannot be joined")),
        ("a = x, a += y", "an error", Refused("`+=` adds to a list")),
        ("a = [x], a += y", "added to the list", Is(json!({"a": ["x", "y"]}))),
        ("a += y", "a list of one", Is(json!({"a": ["y"]}))),
        ("l = [{ a = [x], a += y }]", "undecided", Is(json!({"l": [{"a": ["x", "y"]}]}))),
        // Substitutions.
        ("a = ${b}, b = x", "a later key counts, too", Is(json!({"a": "x", "b": "x"}))),
        ("a = x, a = ${?NOWHERE}", "nothing is put there", Is(x())),
        ("a = ${?NOWHERE}", "no key", Is(json!({}))),
        (
            "a = ${NOWHERE}",
            "an error",
            Refused(
                "t:1: syntax error: could not resolve ${NOWHERE}: neither a key nor an environment variable",
            ),
        ),
        (
            "a = ${T}, b = ${N}, c = ${EMPTY}",
            "environment variables",
            Is(json!({"a": "envtopic", "b": "5", "c": ""})),
        ),
        ("a = pre-${T}-post", "parts are joined", Is(json!({"a": "pre-envtopic-post"}))),
        (r#"a = "pre "${T}"#, "parts are joined", Is(json!({"a": "pre envtopic"}))),
        (r#"a = "${T}""#, "no substitution in quotes", Is(json!({"a": "${T}"}))),
        ("a = ${HASH}", "a variable is not read as HOCON", Is(json!({"a": "a#b"}))),
        ("a = ${L[]}", "a list of variables", Is(json!({"a": ["a", "b"]}))),
        ("a = [x], a = ${a} [y]", "the value before", Is(json!({"a": ["x", "y"]}))),
        ("a = x, a = ${a}y", "the value before", Is(json!({"a": "xy"}))),
        (
            "c { b = x }, a = ${c} { d = y }",
            "objects are merged",
            Is(json!({"c": {"b": "x"}, "a": {"b": "x", "d": "y"}})),
        ),
        ("a { b = 1, c = ${a.b} }", "a key beside it", Is(json!({"a": {"b": "1", "c": "1"}}))),
        (
            "a { b = ${c.d}, e = 1 }, c { d = 2, f = ${a.e} }",
            "no circle",
            Is(json!({"a": {"b": "2", "e": "1"}, "c": {"d": "2", "f": "1"}})),
        ),
        (
            "c.b = 1, a = ${c} { b = ${a.b}x }",
            "the value before",
            Is(json!({"c": {"b": "1"}, "a": {"b": "1x"}})),
        ),
        (
            "a = { b { z = 1 } }, a = ${c}, a { b { y = 1 } }, c.b = 5",
            "what is between hides",
            Is(json!({"a": {"b": {"y": "1"}}, "c": {"b": "5"}})),
        ),
        ("a = ${b}, b = ${a}", "an error", Refused("it refers to itself in a circle")),
        ("a = ${a}", "an error", Refused("it refers to itself in a circle")),
        ("a { b = ${a} }", "an error", Refused("it refers to itself in a circle")),
        ("a = ${a.b}", "an error", Refused("circle")),
        ("a = ${.payload}", "an error", Refused("a template has to stand in quotes")),
        ("a = ${payload}", "an error", Refused("a template has to stand in quotes")),
        ("a = ${T", "an error", Refused("the `${` that opens here is not closed")),
        // Includes that name nothing.
        (
            "include \"nope.conf\"\na = x",
            "ignored",
            Warns(x(), "there is no file /nonexistent/nope.conf, and nothing is included"),
        ),
        ("include \"*.conf\"\na = x", "ignored", Warns(x(), "`*` has no meaning here")),
        ("include required(\"nope.conf\")", "an error", Refused("it is required here")),
        ("include url(\"http://h/x\")", "a file from the network", Refused("only files can be included")),
        ("include nope", "an error", Refused("a file name in quotes is expected")),
        ("include = x", "an error; read as it looks", Is(json!({"include": "x"}))),
    ]
}

#[test]
fn the_forms_that_people_write_are_read_as_they_look_or_refused() {
    for (text, specification, expected) in forms() {
        match expected {
            Is(expected) => {
                let document = read_file(text).unwrap_or_else(|problems| panic!("{text:?}: {problems:?}"));
                assert_eq!(plain(&document.root), expected, "{text:?}: {specification}");
                assert_eq!(document.warnings, [], "{text:?}");
            }
            Warns(expected, warning) => {
                let document = read_file(text).unwrap();
                assert_eq!(plain(&document.root), expected, "{text:?}: {specification}");
                let [shown] = document.warnings.as_slice() else {
                    panic!("{text:?}: {:?}", document.warnings)
                };
                assert!(shown.message.contains(warning), "{text:?}: {shown}");
                assert_eq!(shown.line, 1);
            }
            Refused(message) => {
                let shown = refusal(text);
                assert!(shown.contains(message), "{text:?} ({specification}): {shown}");
                assert!(shown.starts_with("t:"), "{text:?}: {shown}");
            }
        }
    }
}

#[test]
fn no_text_is_nested_too_deep_for_the_stack() {
    let repeated = |text: &str, times: usize| text.repeat(times);
    let mut chain = String::new();
    for at in 0..5000 {
        let _ = writeln!(chain, "a{at} = ${{a{}}}", at + 1);
    }
    for text in [
        format!("a{} = 1", repeated(".b", 400)),
        format!("a{} = 1", repeated(".b", 100_000)),
        format!("a {}", repeated("{ b ", 100_000)),
        format!("a {} {}", repeated("{ b ", 3000), repeated("}", 3000)),
        format!("a = {}", repeated("[", 100_000)),
        format!("a = {}{}", repeated("[", 5000), repeated("]", 5000)),
        format!("a = {}", repeated("[{b=", 5000)),
        format!("{chain}a5000 = 1"),
        format!("a = [{}]", repeated("${a}", 5000)),
        format!("a = 1\n{}", repeated("a = ${a} x\n", 5000)),
        "a = ${a.x}\n".to_owned(),
        "a = ${a.x} { x = ${a} }\n".to_owned(),
        "a = ${b} { c = ${b} }, b = ${a} { c = ${a} }\n".to_owned(),
    ] {
        let shown = refusal(&text);
        assert!(shown.contains("nested deeper") || shown.contains("circle"), "{shown}");
    }
    assert_eq!(
        tree(&format!("a{} = 1", repeated(".b", MAX_DEPTH - 1)))["a"]["b"]["b"]["b"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
    let many = repeated("a += { b = 1 }\n", 20_000);
    assert_eq!(tree(&many)["a"].as_array().unwrap().len(), 20_000);
}

#[test]
fn substitutions_that_repeat_one_another_end_at_a_bound() {
    let mut text = format!("a0 = {}\n", "x".repeat(1000));
    for at in 0..40 {
        let _ = writeln!(text, "a{} = ${{a{at}}}${{a{at}}}", at + 1);
    }
    assert!(refusal(&text).contains("too large"));
}

#[test]
fn a_text_from_elsewhere_reaches_nothing() {
    for (text, message) in [
        ("a = 1\n include \"x\"", "t:2: include is not possible here"),
        ("a = [{ include file(\"x\") }]", "t:1: include is not possible here"),
        ("a = 1\n\nb = ${PATH}", "t:3: `${` outside quotes is not possible here"),
        ("a = [x, {b = ${?PATH}}]", "t:1: `${` outside quotes is not possible here"),
    ] {
        let problems = read("t", text, Source::Text).unwrap_err();
        assert!(problems[0].to_string().starts_with(message), "{problems:?}");
    }
}

#[test]
fn a_key_that_is_given_twice_is_warned_about_with_both_lines() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.conf"), "b = 1\nc.d = 1\n").unwrap();
    let warnings = |text: &str| -> Vec<String> {
        let document = read_with("t", text, Source::File(folder.path()), &environment).unwrap();
        document.warnings.iter().map(ToString::to_string).collect()
    };
    for (text, expected) in [
        ("a = 1\nb = 2\na = 3", "t:3: a: line 1 gives this key, too"),
        ("a = 1, a = 1", "t:1: a: line 1 gives this key, too"),
        ("x {\n a.b = \"1\"\n a { c = 1 }\n\n a.b = 2 }", "t:5: x.a.b: line 2 gives this key, too"),
        ("x = [1, { a = 1\n a = null, a = 2\n a = 3 }]", "t:3: x[1].a: line 2 gives this key, too"),
    ] {
        let warnings = warnings(text);
        assert!(matches!(&warnings[..], [warning] if warning.starts_with(expected)), "{text}: {warnings:?}");
    }
    // Overrides that are meant: another file, the environment, objects and lists that are added to.
    for text in [
        "include \"other.conf\"\nb = 2, c.d = 2",
        "b = 2, c { d = 2 }\ninclude \"other.conf\"",
        "a = 1\na = ${?HOME}",
        "a = 1\na = ${a} more",
        "a { b = 1 }\na { c = 2 }",
        "a = [1]\na += 2",
        "a = [{ b = 1 }, { b = 2 }]",
    ] {
        assert_eq!(warnings(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn included_files_are_read_as_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    write("plain.conf", "\u{feff}b = x\n");
    write("sub/outer.conf", "include \"inner.conf\"\n");
    write("sub/inner.conf", "b = x, c = ${b}, d = ${top}\n");
    write("json.json", r#"{"b": "x"}"#);
    write("stray.conf", "b = x }\nc = y\n");
    write("list.conf", "[1]");
    write("self.conf", "\ninclude \"self.conf\"\n");
    write("props.properties", "a=b\n");
    std::fs::write(folder.path().join("latin.conf"), b"b = gr\xfc\xdf\n").unwrap();
    let read = |text: &str| read_with("main", text, Source::File(folder.path()), &environment);
    let good = |text: &str| plain(&read(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}")).root);
    for form in ["\"plain.conf\"", "\"plain\"", "required(\"plain.conf\")", "\"json.json\"", "\"json\""] {
        assert_eq!(good(&format!("a {{ include {form} }}")), json!({"a": {"b": "x"}}), "{form}");
    }
    let absolute = folder.path().join("plain.conf").display().to_string();
    for form in [format!("file({absolute:?})"), format!("required( file({absolute:?}) )")] {
        assert_eq!(
            good(&format!("a {{ include {form}, c = y }}")),
            json!({"a": {"b": "x", "c": "y"}}),
            "{form}"
        );
    }
    // Paths of an included file count from where it is included, and then from the whole.
    assert_eq!(
        good("top = t\na { include \"sub/outer.conf\" }\na.b = z"),
        json!({"top": "t", "a": {"b": "z", "c": "z", "d": "t"}})
    );
    for (text, message) in [
        ("a { include \"stray.conf\" }", "stray.conf:1: syntax error: this `}` closes nothing"),
        ("a { include \"list.conf\" }", "list.conf:1: syntax error: keys and values are expected"),
        ("\ninclude \"self.conf\"", "self.conf:2: syntax error: "),
        ("include \"props.properties\"", "main:1: syntax error: "),
        ("\na = 1, include \"sub\"", "main:2: syntax error: "),
        ("include \"latin.conf\"", "main:1: syntax error: "),
    ] {
        let shown = read(text).unwrap_err()[0].to_string();
        assert!(shown.contains(message), "{text}: {shown}");
    }
    let document = read("x = 1\na { include \"plain.conf\" }").unwrap();
    let place = document.lines.get("a.b").unwrap();
    assert!(document.lines.file(place).ends_with("plain.conf"));
    assert_eq!(place.line, 1);
}

#[test]
fn keys_are_found_through_dots_braces_lists_and_comments() {
    let text = r#"# a = 1
a.b { // x { y
  c = "}"   # "
  d : [
    { e = 1 }   # 5
    { e = 2,
      f = 3 }
    7, 8
  ]
}
"q.r"."s" = 1
a { c = 2, g = ${a.b.c} text }
text = """
x = 1
"""
last +=
  { h = 1 }
spaced key = 2
"#;
    let document = read_file(text).unwrap();
    for (path, expected) in [
        ("a.b", 2),
        ("a.b.c", 3),
        ("a.b.d", 4),
        ("a.b.d[0]", 5),
        ("a.b.d[0].e", 5),
        ("a.b.d[1].e", 6),
        ("a.b.d[1].f", 7),
        ("a.b.d[3]", 8),
        ("\"q.r\".s", 11),
        ("a", 12),
        ("a.c", 12),
        ("a.g", 12),
        ("text", 13),
        ("x", 0),
        ("last", 16),
        ("last[0].h", 17),
        ("\"spaced key\"", 18),
    ] {
        assert_eq!(document.lines.get(path).unwrap_or_default().line, expected, "{path}");
    }
    let json = "{\n \"a\": {\"b\": [1,\n 2]},\n \"c\": null\n}";
    let lines = read_file(json).unwrap().lines;
    let line = |path| lines.get(path).unwrap_or_default().line;
    assert_eq!([line("a"), line("a.b"), line("a.b[1]"), line("c")], [2, 2, 3, 4]);
}

#[test]
fn messages_show_no_value() {
    for text in [
        "password = tiger tiger = tiger",
        "password = \"tiger",
        "password = \"tiger\\q\"",
        "password = tiger$tiger",
        "password = tiger [tiger]",
        "password = [tiger tiger]",
        "password = tiger }",
        "password = { tiger",
    ] {
        let shown = refusal(text);
        let value = shown.replace("key password.tiger", "").replace("behind the key tiger", "");
        assert!(!value.contains("tiger") || text.contains("{ tiger"), "{text}: {shown}");
    }
    let document = read_file("password = tiger#tail\n").unwrap();
    assert!(!document.warnings[0].to_string().contains("tail"), "{:?}", document.warnings);
}

/// The tree of the other reader, with every scalar as a text; none if it refuses the text.
fn second_opinion(text: &str) -> Option<Json> {
    fn plain(value: &::hocon::HoconValue) -> Json {
        match value {
            ::hocon::HoconValue::Object(entries) => {
                entries.iter().map(|(key, value)| (key.clone(), plain(value))).collect()
            }
            ::hocon::HoconValue::Array(items) => items.iter().map(plain).collect(),
            value if value.is_null() => Json::Null,
            ::hocon::HoconValue::Scalar(scalar) => Json::from(scalar.raw.as_str()),
            _ => Json::from("?"),
        }
    }
    let config = ::hocon::parse(text).ok()?;
    let quoted = |key: &str| format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
    Some(
        config
            .keys()
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), plain(config.get(&quoted(key))?))))
            .collect(),
    )
}

/// The text outside comments, and whether its braces and brackets match; by a scan of its own.
fn scanned(text: &str) -> (String, bool) {
    let (mut outside, mut open, mut matches) = (String::new(), Vec::new(), true);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        match c {
            '#' => length = rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("//") => length = rest.find('\n').unwrap_or(rest.len()),
            '"' => {
                let mut escaped = false;
                let end = rest.char_indices().skip(1).find(|(_, c)| {
                    let ends = *c == '"' && !escaped;
                    escaped = *c == '\\' && !escaped;
                    ends
                });
                length = end.map_or(rest.len(), |(at, _)| at + 1);
                outside.push_str(&rest[..length]);
            }
            _ => {
                match c {
                    '{' | '[' => open.push(c),
                    '}' => matches &= open.pop() == Some('{'),
                    ']' => matches &= open.pop() == Some('['),
                    _ => {}
                }
                outside.push(c);
            }
        }
        rest = &rest[length..];
    }
    (outside, matches && open.is_empty())
}

/// A text of unique words in which most things are right, and some edits that make most of them wrong.
fn mutated(random: &mut StdRng) -> String {
    fn object(random: &mut StdRng, words: &mut u32, depth: u32, into: &mut Vec<String>) {
        for _ in 0..random.random_range(1..4) {
            word(random, words, into);
            if random.random_bool(0.2) {
                into.push(".".into());
                word(random, words, into);
            }
            into.push([" = ", "=", " : ", " += "][random.random_range(0..4)].into());
            value(random, words, depth, into);
            into.push([", ", "\n", " # c\n", "\n\n"][random.random_range(0..4)].into());
        }
    }
    fn word(random: &mut StdRng, words: &mut u32, into: &mut Vec<String>) {
        *words += 1;
        into.push(if random.random_bool(0.3) { format!("\"w{words}w\"") } else { format!("w{words}w") });
    }
    fn value(random: &mut StdRng, words: &mut u32, depth: u32, into: &mut Vec<String>) {
        match random.random_range(0..6) {
            0 if depth < 4 => {
                into.push("{ ".into());
                object(random, words, depth + 1, into);
                into.push("}".into());
            }
            1 if depth < 4 => {
                into.push("[".into());
                for _ in 0..random.random_range(1..4) {
                    value(random, words, depth + 1, into);
                    into.push([", ", "\n"][random.random_range(0..2)].into());
                }
                into.push("]".into());
            }
            2 => {
                word(random, words, into);
                into.push(" ".into());
                word(random, words, into);
            }
            _ => word(random, words, into),
        }
    }
    const EDITS: &[&str] = &[
        "{", "}", "[", "]", "\"", ".", "=", ":", "+=", "\n", "#", "//", " ", ",", "\u{e9}", "\\", "null",
        "\"\"", "\t", "-", "1e+5", "$", "\r", "\u{feff}",
    ];
    let (mut pieces, mut words) = (Vec::new(), 0);
    object(random, &mut words, 0, &mut pieces);
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..pieces.len());
        if random.random_bool(0.4) && pieces.len() > 1 {
            pieces.remove(at);
        } else {
            pieces.insert(at, EDITS[random.random_range(0..EDITS.len())].into());
        }
    }
    pieces.concat()
}

#[test]
fn whatever_is_read_is_read_to_its_end() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut read_texts, mut agreed) = (0, 0);
    for _ in 0..6000 {
        let text = mutated(&mut random);
        let said = format!("seed {seed}: {text:?}");
        let Ok(result) = catch_unwind(|| read_file(&text).map(|document| plain(&document.root))) else {
            panic!("{said}")
        };
        let Ok(tree) = result else { continue };
        read_texts += 1;
        let (outside, balanced) = scanned(&text);
        assert!(balanced, "{said} is read as {tree}");
        // Every word is unique, so that no later definition hides one. What is added behind is seen.
        let shown = tree.to_string();
        let words = outside
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| word.starts_with('w') && word.len() > 2);
        for word in words {
            assert!(shown.contains(word), "{said}: {word} is missing in {shown}");
        }
        if !outside.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}').starts_with('{') {
            let more =
                read_file(&format!("{text}\nbehind = everything\n")).map(|document| plain(&document.root));
            assert_eq!(
                more.as_ref().ok().and_then(|tree| tree["behind"].as_str()),
                Some("everything"),
                "{said}"
            );
        }
        if let Some(other) = second_opinion(&text) {
            assert_eq!(tree, other, "{said}");
            agreed += 1;
        }
    }
    assert!(read_texts > 1000 && agreed > 1000, "seed {seed}: {read_texts} read, {agreed} agreed");
}

#[test]
fn any_text_is_read_or_refused() {
    let alphabet = [
        "{", "}", "[", "]", "\"", "\"\"\"", "a", "b", ".", "=", ":", "+=", "\n", "#", "//", "${a}",
        "${?b.a}", "${", " ", "\u{e9}", "\\", ",", "include ", "\"x\"", "a.b", "a = ", "b {", "\\ud83d",
    ];
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut read_texts = 0;
    for _ in 0..20_000 {
        let length = random.random_range(1..30);
        let text: String = (0..length).map(|_| alphabet[random.random_range(0..alphabet.len())]).collect();
        let outcome = catch_unwind(|| (read_file(&text).is_ok(), read("t", &text, Source::Text).is_ok()));
        let Ok((read, _)) = outcome else { panic!("seed {seed}: {text:?}") };
        read_texts += u32::from(read);
        if read && !text.contains("\"\"\"") && !text.contains("${") {
            assert!(scanned(&text).1, "seed {seed}: {text:?}");
        }
    }
    assert!(read_texts > 20, "seed {seed}: {read_texts}");
}
