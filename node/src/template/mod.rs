//! Templates: `${.clientid}/${payload.x}` compiled once, rendered per message.
//!
//! A template is compiled against a [`Scope`], the set of names that a kind of message has, so that
//! rendering looks up no name and parses no text. Rules, the same for every template:
//!
//! * `${name}`, `${.name}`, `${a.b.c}`; leading dots are ignored; `${.}` is the whole environment as JSON.
//! * A name that is missing renders as nothing. An object or array renders as compact JSON.
//! * A step into a text decodes it as JSON first; a text that is not JSON has no members, and the scope is
//!   told of it.
//! * An integer renders digit by digit as it stands, a fraction with up to 10 decimals.
//! * Everything outside placeholders is literal, an unterminated `${` included.
//!
//! Nothing fails while rendering; [`Template::render_whole`] tells where something was missing.

pub mod json;
pub(crate) mod json_text;
pub mod publish;
pub mod record;

use std::borrow::Cow;

use json_text::NotJson;

/// A resolved name's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Absent: renders as nothing, in JSON as `null`.
    Missing,
    /// Text or bytes, as they are.
    Bytes(&'a [u8]),
    /// An integer.
    Int(i64),
    /// A boolean.
    Bool(bool),
    /// Text that had to be made: a JSON string with its escapes resolved.
    Text(Vec<u8>),
    /// A JSON value other than a string, as it stands: valid, with or without white space.
    Json(Cow<'a, [u8]>),
}

/// A top-level name of one kind of message, resolved when the template is compiled.
pub trait Slot: Copy + PartialEq + std::fmt::Debug {
    /// The slot of a name; `None` for a name that messages of this kind never have.
    fn named(name: &str) -> Option<Self>;
}

/// The environment of one message: the values of the names a template may use.
pub trait Scope {
    /// Its names.
    type Slot: Slot;

    /// The value of a slot.
    fn value(&self, slot: Self::Slot) -> Value<'_>;

    /// A member of an object slot, for scopes that can find it without building the object.
    fn member(&self, slot: Self::Slot, key: &str) -> Option<Value<'_>> {
        let _ = (slot, key);
        None
    }

    /// Visits the members of an object slot (or of a member of it) in order, lent; false where this scope
    /// knows no better way than to build the object. Duplicate names are visited where the value that is
    /// named has them.
    fn members<'s>(
        &'s self,
        slot: Self::Slot,
        path: &[Box<str>],
        visit: &mut dyn FnMut(&'s str, Value<'s>),
    ) -> bool {
        let _ = (slot, path, visit);
        false
    }

    /// Notes that a template asked for a member of a slot whose text is not JSON.
    fn note_not_json(&self, slot: Self::Slot) {
        let _ = slot;
    }

    /// Appends the whole environment as one JSON object.
    fn write_whole(&self, out: &mut Vec<u8>);
}

/// A compiled template.
#[derive(Debug)]
pub struct Template<N: Slot> {
    segments: Vec<Segment<N>>,
}

#[derive(Debug, PartialEq)]
enum Segment<N> {
    Literal(Box<[u8]>),
    Whole,
    Name {
        slot: N,
        path: Box<[Box<str>]>,
    },
    /// A name this scope never has.
    Absent,
}

/// A piece of template text before it is bound to a scope.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Literal text.
    Literal(&'a str),
    /// Text between `${` and `}`.
    Placeholder(&'a str),
}

/// Cuts template text into pieces; never fails.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start + 2..].find('}') else { break };
        if start > 0 {
            pieces.push(Piece::Literal(&rest[..start]));
        }
        pieces.push(Piece::Placeholder(&rest[start + 2..start + 2 + length]));
        rest = &rest[start + 2 + length + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest));
    }
    pieces
}

/// True where the text has at least one placeholder.
pub fn has_placeholder(text: &str) -> bool {
    pieces(text).iter().any(|piece| matches!(piece, Piece::Placeholder(_)))
}

/// True where the text is exactly one placeholder and nothing else.
pub fn is_lone_placeholder(text: &str) -> bool {
    matches!(pieces(text).as_slice(), [Piece::Placeholder(_)])
}

impl<N: Slot> Template<N> {
    /// Compiles template text.
    pub fn compile(text: &str) -> Self {
        let segments = pieces(text)
            .into_iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Segment::Literal(text.as_bytes().into()),
                Piece::Placeholder(name) => Self::placeholder(name.trim()),
            })
            .collect();
        Self { segments }
    }

    fn placeholder(name: &str) -> Segment<N> {
        let name = name.trim_start_matches('.');
        if name.is_empty() {
            return Segment::Whole;
        }
        let mut steps = name.split('.');
        match steps.next().and_then(N::named) {
            Some(slot) => Segment::Name { slot, path: steps.map(Into::into).collect() },
            None => Segment::Absent,
        }
    }

    /// The names that this kind of message never has, for a warning when a bridge is set up.
    pub fn unknown_names(text: &str) -> Vec<String> {
        pieces(text)
            .into_iter()
            .filter_map(|piece| match piece {
                Piece::Placeholder(name) if matches!(Self::placeholder(name.trim()), Segment::Absent) => {
                    Some(name.trim().trim_start_matches('.').to_owned())
                }
                _ => None,
            })
            .collect()
    }

    /// True where the template is the empty text.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Appends the rendered text.
    pub fn render<S: Scope<Slot = N>>(&self, scope: &S, out: &mut Vec<u8>) {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => out.extend_from_slice(text),
                Segment::Whole => scope.write_whole(out),
                Segment::Name { slot, path } => write_value(&resolve(scope, *slot, path), out),
                Segment::Absent => {}
            }
        }
    }

    /// As [`Self::render`]; false, with what was written so far, where a placeholder has no value (or
    /// `null`).
    pub fn render_whole<S: Scope<Slot = N>>(&self, scope: &S, out: &mut Vec<u8>) -> bool {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => out.extend_from_slice(text),
                Segment::Whole => scope.write_whole(out),
                Segment::Name { slot, path } => match resolve(scope, *slot, path) {
                    Value::Missing => return false,
                    Value::Json(json) if json_text::is_null(&json) => return false,
                    value => write_value(&value, out),
                },
                Segment::Absent => return false,
            }
        }
        true
    }

    /// The text, where there is no placeholder in it.
    pub fn constant(&self) -> Option<&[u8]> {
        match self.segments.as_slice() {
            [] => Some(b""),
            [Segment::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The value of the first placeholder; for templates that are one placeholder and nothing else.
    pub fn value<'a, S: Scope<Slot = N>>(&'a self, scope: &'a S) -> Value<'a> {
        match self.segments.first() {
            Some(Segment::Name { slot, path }) => resolve(scope, *slot, path),
            Some(Segment::Whole) => {
                let mut text = Vec::new();
                scope.write_whole(&mut text);
                Value::Json(Cow::Owned(text))
            }
            Some(Segment::Literal(_) | Segment::Absent) | None => Value::Missing,
        }
    }

    /// Visits the members of the first placeholder's value, lent: see [`Scope::members`].
    pub fn members<'a, S: Scope<Slot = N>>(
        &self,
        scope: &'a S,
        visit: &mut dyn FnMut(&'a str, Value<'a>),
    ) -> bool {
        match self.segments.first() {
            Some(Segment::Name { slot, path }) => scope.members(*slot, path, visit),
            _ => false,
        }
    }

    /// The rendered text without copying where it is a constant or one text value of the message, else
    /// rendered into `scratch`, which is cleared first.
    pub fn render_or_borrow<'a, S: Scope<Slot = N>>(
        &'a self,
        scope: &'a S,
        scratch: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        match self.segments.as_slice() {
            [] => return b"",
            [Segment::Literal(text)] => return text,
            [Segment::Name { slot, path }] => {
                let value = resolve(scope, *slot, path);
                if let Value::Bytes(bytes) = value {
                    return bytes;
                }
                scratch.clear();
                write_value(&value, scratch);
            }
            _ => {
                scratch.clear();
                self.render(scope, scratch);
            }
        }
        scratch
    }

    /// The integer that the template renders to; of a number with a fraction the integer below it.
    pub fn integer<S: Scope<Slot = N>>(&self, scope: &S, scratch: &mut Vec<u8>) -> Option<i64> {
        if let [Segment::Name { slot, path }] = self.segments.as_slice()
            && path.is_empty()
            && let Value::Int(value) = scope.value(*slot)
        {
            return Some(value);
        }
        let text = self.render_or_borrow(scope, scratch);
        let text = std::str::from_utf8(text).ok()?.trim();
        text.parse().ok().or_else(|| floor(text))
    }
}

/// The integer below a number that is written with a fraction or an exponent, if it is in the range of an
/// `i64`.
fn floor(text: &str) -> Option<i64> {
    // 2^63, the first double beyond the range.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if !text.contains(['.', 'e', 'E']) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    (-BEYOND..BEYOND).contains(&number).then(|| number.floor() as i64)
}

fn resolve<'a, S: Scope>(scope: &'a S, slot: S::Slot, path: &[Box<str>]) -> Value<'a> {
    let Some((first, rest)) = path.split_first() else { return scope.value(slot) };
    if let Some(member) = scope.member(slot, first) {
        return drill(member, rest).unwrap_or(Value::Missing);
    }
    drill(scope.value(slot), path).unwrap_or_else(|NotJson| {
        scope.note_not_json(slot);
        Value::Missing
    })
}

/// Follows a path; an error where the value is a text that is not JSON.
fn drill<'a>(value: Value<'a>, path: &[Box<str>]) -> Result<Value<'a>, NotJson> {
    let Some((first, rest)) = path.split_first() else { return Ok(value) };
    let text = match value {
        Value::Json(text) => text,
        Value::Bytes(text) => Cow::Borrowed(text),
        Value::Text(text) => Cow::Owned(text),
        Value::Missing | Value::Int(_) | Value::Bool(_) => return Ok(Value::Missing),
    };
    let mut current = member(&text, first)?;
    for step in rest {
        // A text further inside that is not JSON has no members.
        current = current.and_then(|value| member(&value, step).unwrap_or(None));
    }
    Ok(current.map_or(Value::Missing, from_json))
}

/// The member of an object, or of an object that stands as JSON text in a string.
fn member<'a>(text: &Cow<'a, [u8]>, name: &str) -> Result<Option<Cow<'a, [u8]>>, NotJson> {
    let found = match text {
        Cow::Borrowed(text) => json_text::member(text, name)?.map(Cow::Borrowed),
        Cow::Owned(text) => json_text::member(text, name)?.map(|value| Cow::Owned(value.to_vec())),
    };
    if found.is_some() {
        return Ok(found);
    }
    let Some(inner) = json_text::string(json_text::document(text)?) else { return Ok(None) };
    // Not JSON inside a string: a text without members.
    let value = json_text::member(&inner, name).unwrap_or(None);
    Ok(value.map(|value| Cow::Owned(value.to_vec())))
}

/// A JSON value as templates have it: a string is its text.
fn from_json(value: Cow<'_, [u8]>) -> Value<'_> {
    match value {
        Cow::Borrowed(value) => match json_text::string(value) {
            Some(Cow::Borrowed(text)) => Value::Bytes(text),
            Some(Cow::Owned(text)) => Value::Text(text),
            None => Value::Json(Cow::Borrowed(value)),
        },
        Cow::Owned(value) => match json_text::string(&value) {
            Some(text) => Value::Text(text.into_owned()),
            None => Value::Json(Cow::Owned(value)),
        },
    }
}

fn write_value(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Missing => {}
        Value::Bytes(bytes) => out.extend_from_slice(bytes),
        Value::Text(text) => out.extend_from_slice(text),
        Value::Int(value) => json::write_int(out, *value),
        Value::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Value::Json(json) => match json.first() {
            Some(b'{' | b'[') => json_text::write_compact(json, out),
            Some(b'0'..=b'9' | b'-') => write_number(json, out),
            _ => out.extend_from_slice(json),
        },
    }
}

/// Integers as they stand; fractions with up to 10 decimals, trailing zeros cut, at least one decimal. A
/// number that a double cannot hold stays as it stands: its digits may be what tells two devices apart.
fn write_number(number: &[u8], out: &mut Vec<u8>) {
    // 2^53: beyond it a double holds not every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let has_exponent = number.iter().any(|byte| matches!(byte, b'e' | b'E'));
    let float = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok()).filter(|float| {
        (has_exponent || number.contains(&b'.')) && float.is_finite() && (has_exponent || float.abs() < EXACT)
    });
    let Some(float) = float else {
        out.extend_from_slice(number);
        return;
    };
    let text = format!("{float:.10}");
    let cut = text.trim_end_matches('0');
    out.extend_from_slice(cut.as_bytes());
    if cut.ends_with('.') {
        out.push(b'0');
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::Value as Json;

    use super::*;

    struct Env(Json, Cell<u32>);

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Name(&'static str);

    impl Slot for Name {
        fn named(name: &str) -> Option<Self> {
            ["payload", "n", "object", "flag"].into_iter().find(|known| *known == name).map(Self)
        }
    }

    impl Scope for Env {
        type Slot = Name;

        fn value(&self, slot: Name) -> Value<'_> {
            match self.0.get(slot.0) {
                None => Value::Missing,
                Some(Json::String(text)) => Value::Bytes(text.as_bytes()),
                Some(Json::Bool(value)) => Value::Bool(*value),
                Some(Json::Number(n)) if n.is_i64() => Value::Int(n.as_i64().unwrap()),
                Some(other) => Value::Json(Cow::Owned(other.to_string().into_bytes())),
            }
        }

        fn note_not_json(&self, _: Name) {
            self.1.set(self.1.get() + 1);
        }

        fn write_whole(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.to_string().as_bytes());
        }
    }

    fn render(template: &str, env: &str) -> String {
        let env = Env(serde_json::from_str(env).unwrap(), Cell::new(0));
        let mut out = Vec::new();
        Template::<Name>::compile(template).render(&env, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn placeholders_render_as_the_rules_say() {
        let env = r#"{"payload":"{\"a\":{\"b\":\"{\\\"c\\\":7}\"},\"f\":3.14159265358979,\"one\":1.0,\"l\":[104,105],\"z\":null,\"t\":true}","n":-5,"flag":true,"object":{"k":"v"}}"#;
        for (template, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${n}", "-5"),
            ("${.n}", "-5"),
            ("${..n}|${ n }", "-5|-5"),
            ("a${n}b${n}c", "a-5b-5c"),
            ("${unknown}", ""),
            ("x${unknown.deep}y", "xy"),
            ("${flag}", "true"),
            ("${object}", r#"{"k":"v"}"#),
            ("${object.k}", "v"),
            ("${object.missing}", ""),
            ("${object.k.deeper}", ""),
            ("${payload.a.b.c}", "7"),
            ("${payload.a}", r#"{"b":"{\"c\":7}"}"#),
            ("${payload.f}", "3.1415926536"),
            ("${payload.one}", "1.0"),
            ("${payload.l}", "[104,105]"),
            ("${payload.z}", "null"),
            ("${payload.t}", "true"),
            ("${payload.none}", ""),
            ("open ${n", "open ${n"),
            ("$n {n} $", "$n {n} $"),
            ("${n}${", "-5${"),
        ] {
            assert_eq!(render(template, env), expected, "{template}");
        }
        assert_eq!(render("${payload.x}", r#"{"payload":"not json"}"#), "");
        assert_eq!(render("${.}", r#"{"n":1}"#), r#"{"n":1}"#);
        assert_eq!(render("${}", r#"{"n":1}"#), r#"{"n":1}"#);
    }

    #[test]
    fn a_lone_text_value_is_borrowed_and_an_integer_is_found() {
        let env = Env(serde_json::json!({"payload": "raw", "n": 12}), Cell::new(0));
        let mut scratch = b"old".to_vec();
        assert_eq!(Template::<Name>::compile("${payload}").render_or_borrow(&env, &mut scratch), b"raw");
        assert_eq!(scratch, b"old", "nothing was copied");
        assert_eq!(Template::<Name>::compile("${n}!").render_or_borrow(&env, &mut scratch), b"12!");
        assert_eq!(Template::<Name>::compile("${n}").integer(&env, &mut scratch), Some(12));
        assert_eq!(Template::<Name>::compile("123").integer(&env, &mut scratch), Some(123));
        assert_eq!(Template::<Name>::compile("${n}5").integer(&env, &mut scratch), Some(125));
        assert_eq!(Template::<Name>::compile("${payload}").integer(&env, &mut scratch), None);
        assert_eq!(Template::<Name>::compile("${missing}").integer(&env, &mut scratch), None);
    }

    #[test]
    fn unknown_names_are_reported_for_a_warning() {
        assert_eq!(Template::<Name>::unknown_names("${.cleintid} ${n} ${x.y}"), ["cleintid", "x.y"]);
        assert!(is_lone_placeholder("${n}") && !is_lone_placeholder("a${n}") && !is_lone_placeholder("n"));
    }

    fn of_payload(template: &str, payload: &str) -> (String, u32) {
        let env = Env(serde_json::json!({ "payload": payload }), Cell::new(0));
        let mut out = Vec::new();
        Template::<Name>::compile(template).render(&env, &mut out);
        (String::from_utf8(out).unwrap(), env.1.get())
    }

    #[test]
    fn numbers_keep_their_digits() {
        for (number, expected) in [
            ("89490200001234567890", "89490200001234567890"),
            ("-89490200001234567891", "-89490200001234567891"),
            ("18446744073709551615", "18446744073709551615"),
            (
                "123456789012345678901234567890123456789012345678901234567890",
                "123456789012345678901234567890123456789012345678901234567890",
            ),
            ("1e400", "1e400"),
            ("-1E+400", "-1E+400"),
            ("12345678901234567890.5", "12345678901234567890.5"),
            ("9007199254740993.0", "9007199254740993.0"),
            ("1.50", "1.5"),
            ("3.14159265358979", "3.1415926536"),
            ("1e3", "1000.0"),
            ("1.7E12", "1700000000000.0"),
            ("0", "0"),
            ("NaN", "NaN"),
            ("-Infinity", "-Infinity"),
        ] {
            let payload =
                format!(r#"{{"n": {number} , "o": {{"a":[{number}]}}, "t": "{{\"n\":{number}}}"}}"#);
            assert_eq!(
                of_payload("${payload.n}|${payload.t.n}", &payload),
                (format!("{expected}|{expected}"), 0)
            );
            let inside = if number.contains(['N', 'I']) { "null" } else { number };
            assert_eq!(of_payload("${payload.o}", &payload), (format!(r#"{{"a":[{inside}]}}"#), 0));
        }
    }

    #[test]
    fn what_can_be_read_of_a_text_is_read_and_a_text_that_is_no_json_is_noted() {
        for payload in [
            r#"{"id":"m1","v":1e400}"#,
            r#"{"id":"m1","v":"\ud800"}"#,
            "\u{FEFF}{\"id\":\"m1\"}",
            "{\"id\":\"m1\"}\0\0",
            r#""{\"id\":\"m1\"}""#,
            r#"{"id":"m\u0031"}"#,
        ] {
            assert_eq!(of_payload("${payload.id}", payload), ("m1".to_owned(), 0), "{payload}");
        }
        for payload in ["", "plain", r#"{"id":"m1""#, r#"{"id":"m1"} {"id":"m2"}"#] {
            assert_eq!(of_payload("<${payload.id}>", payload), ("<>".to_owned(), 1), "{payload}");
            assert_eq!(
                of_payload("${payload}", payload),
                (payload.to_owned(), 0),
                "nothing of it was asked for"
            );
        }
        // JSON without that member, and a text further inside that is not JSON, are nothing to note.
        for payload in ["[]", "12", r#"{"a":1}"#, r#""plain""#, r#"{"id":null}"#] {
            assert_eq!(of_payload("${payload.x.y}", payload), (String::new(), 0), "{payload}");
        }
        assert_eq!(of_payload("${payload.a.b}", r#"{"a":"plain"}"#), (String::new(), 0));
        assert_eq!(of_payload("${payload.a.b}", r#"{"a":"{\"b\":[1, 2]}"}"#), ("[1,2]".to_owned(), 0));
    }

    #[test]
    fn a_member_that_is_a_plain_text_is_borrowed() {
        let env = Env(serde_json::json!({"payload": "{\"id\": \"m1\", \"e\": \"a\\nb\"}"}), Cell::new(0));
        let mut scratch = b"old".to_vec();
        assert_eq!(Template::<Name>::compile("${payload.id}").render_or_borrow(&env, &mut scratch), b"m1");
        assert_eq!(scratch, b"old", "nothing was copied");
        assert_eq!(Template::<Name>::compile("${payload.e}").render_or_borrow(&env, &mut scratch), b"a\nb");
    }
}
