//! Where keys stand in configuration text.
//!
//! The HOCON library gives a value tree without positions. [`LineIndex`] comes from a scan of the same
//! text that knows just enough of the grammar to follow keys, braces, brackets, quotes and comments. It
//! is for messages only: a key that the scan does not find is shown with its parent's line, and the scan
//! accepts any text without failing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A file and a line in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    file: u16,
    /// Counted from 1; 0 where it is not known.
    pub line: u32,
}

/// The place of every key path, the last one where a key is given several times.
#[derive(Debug, Default)]
pub(super) struct LineIndex {
    files: Vec<String>,
    places: HashMap<String, Place>,
    reaches_out: Option<(Place, &'static str)>,
}

/// Includes inside includes beyond this are left to the parser's own limit.
const INCLUDE_DEPTH: usize = 16;

/// Appends a key to a path, quoted where it would not read as one plain key.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let dot = if path.is_empty() { "" } else { "." };
    if plain { format!("{path}{dot}{key}") } else { format!("{path}{dot}{key:?}") }
}

impl LineIndex {
    /// Scans `text`, which the messages call `name`; includes are followed from the folder `base`.
    pub(super) fn scan(name: &str, text: &str, base: Option<&Path>) -> Self {
        let mut index = Self::default();
        index.scan_file(name, text, "", base, 0);
        index
    }

    /// Where the key path stands.
    pub(super) fn get(&self, path: &str) -> Option<Place> {
        self.places.get(path).copied()
    }

    /// Name of the file of a place.
    pub(super) fn file(&self, place: Place) -> &str {
        self.files.get(usize::from(place.file)).map_or("", String::as_str)
    }

    /// The first place where the text asks for something outside itself or repeats itself (a small text
    /// can become a huge one that way), and what to tell the user about it.
    pub(super) fn reaches_out(&self) -> Option<(Place, &'static str)> {
        self.reaches_out
    }

    fn scan_file(&mut self, name: &str, text: &str, prefix: &str, base: Option<&Path>, depth: usize) {
        let file = self.files.len().min(usize::from(u16::MAX)) as u16;
        self.files.push(name.to_owned());
        let mut scan = Scan { index: self, file, stack: vec![Frame::object(prefix)], included: Vec::new() };
        scan.run(text);
        let included = scan.included;
        for (prefix, target) in included {
            let Some(base) = base.filter(|_| depth < INCLUDE_DEPTH) else { continue };
            let mut path: PathBuf = base.join(target);
            if !path.exists() {
                path.set_extension("conf");
            }
            // Unreadable or missing: the parser reports it, or ignores it as HOCON allows.
            if let Ok(text) = std::fs::read_to_string(&path) {
                let base = path.parent().map(Path::to_path_buf);
                self.scan_file(&path.display().to_string(), &text, &prefix, base.as_deref(), depth + 1);
            }
        }
    }
}

#[derive(Debug)]
enum Token<'a> {
    Open,
    Close,
    OpenList,
    CloseList,
    Comma,
    /// `=`, `:` or `+=`.
    Assign,
    NewLine,
    Blank,
    Quoted(&'a str),
    Bare(&'a str),
}

struct Frame {
    path: String,
    kind: FrameKind,
}

enum FrameKind {
    /// Between a `{` and its `}`; `key` collects the segments of the key being read.
    Object {
        key: Vec<String>,
        /// The last segment was quoted or ended by a dot.
        closed: bool,
        state: KeyState,
        include: bool,
    },
    List {
        index: usize,
        begun: bool,
    },
}

#[derive(PartialEq, Clone, Copy)]
enum KeyState {
    Key,
    BeforeValue,
    Value,
}

impl Frame {
    fn object(path: &str) -> Self {
        let kind = FrameKind::Object { key: Vec::new(), closed: true, state: KeyState::Key, include: false };
        Self { path: path.to_owned(), kind }
    }

    fn list(path: &str) -> Self {
        Self { path: path.to_owned(), kind: FrameKind::List { index: 0, begun: false } }
    }
}

struct Scan<'i> {
    index: &'i mut LineIndex,
    file: u16,
    stack: Vec<Frame>,
    included: Vec<(String, String)>,
}

impl Scan<'_> {
    fn run(&mut self, text: &str) {
        let mut line = 1;
        let mut rest = text;
        while let Some((token, after)) = next_token(rest) {
            self.take(&token, line);
            line += rest.get(..rest.len() - after.len()).map_or(0, |t| t.matches('\n').count()) as u32;
            rest = after;
        }
    }

    fn take(&mut self, token: &Token<'_>, line: u32) {
        let place = Place { file: self.file, line };
        if matches!(token, Token::Bare(text) if text.starts_with("${")) {
            let message =
                "`${` outside quotes is not possible here; write a template in quotes, as \"${.payload}\"";
            self.index.reaches_out.get_or_insert((place, message));
        }
        let Some(frame) = self.stack.last_mut() else { return };
        match &mut frame.kind {
            FrameKind::Object { key, closed, state, include } => match (*state, token) {
                (_, Token::Close) => {
                    self.close();
                }
                (KeyState::Key, Token::Assign | Token::Open) if !key.is_empty() => {
                    let mut path = frame.path.clone();
                    let segments = std::mem::take(key);
                    let last = segments.len() - 1;
                    for (at, segment) in segments.iter().enumerate() {
                        path = join(&path, segment.trim_end());
                        if at == last {
                            self.index.places.insert(path.clone(), place);
                        } else {
                            self.index.places.entry(path.clone()).or_insert(place);
                        }
                    }
                    *closed = true;
                    *state = KeyState::BeforeValue;
                    // The path of the value stays at hand for what opens next.
                    *key = vec![path.clone()];
                    if matches!(token, Token::Open) {
                        *state = KeyState::Value;
                        self.stack.push(Frame::object(&path));
                    }
                }
                // The braces around the whole file.
                (KeyState::Key, Token::Open) => {
                    let path = frame.path.clone();
                    self.stack.push(Frame::object(&path));
                }
                (KeyState::Key, Token::Quoted(text)) if *include => {
                    let target = ((*text).to_owned(), frame.path.clone());
                    key.clear();
                    *include = false;
                    self.index.reaches_out.get_or_insert((place, "include is not possible here"));
                    self.included.push((target.1, target.0));
                }
                (KeyState::Key, Token::Quoted(text)) => {
                    key.push(unescape(text));
                    *closed = true;
                }
                (KeyState::Key, Token::Bare(text)) => {
                    if key.is_empty() && *text == "include" {
                        *include = true;
                    }
                    for (at, piece) in text.split('.').enumerate() {
                        if at > 0 {
                            *closed = true;
                        }
                        if piece.is_empty() {
                            continue;
                        }
                        match key.last_mut() {
                            Some(last) if !*closed => last.push_str(piece),
                            _ => key.push(piece.to_owned()),
                        }
                        *closed = false;
                    }
                    if text.ends_with('.') {
                        *closed = true;
                    }
                }
                (KeyState::Key, Token::Blank) => {
                    if let Some(last) = key.last_mut().filter(|_| !*closed) {
                        last.push(' ');
                    }
                }
                (KeyState::Key, Token::NewLine | Token::Comma) => {
                    key.clear();
                    *closed = true;
                    *include = false;
                }
                (KeyState::BeforeValue | KeyState::Value, Token::Open | Token::OpenList) => {
                    let path = key.first().cloned().unwrap_or_default();
                    *state = KeyState::Value;
                    let list = matches!(token, Token::OpenList);
                    self.stack.push(if list { Frame::list(&path) } else { Frame::object(&path) });
                }
                (KeyState::Value, Token::NewLine)
                | (KeyState::BeforeValue | KeyState::Value, Token::Comma) => {
                    key.clear();
                    *state = KeyState::Key;
                }
                (KeyState::BeforeValue, Token::Quoted(_) | Token::Bare(_)) => *state = KeyState::Value,
                _ => {}
            },
            FrameKind::List { index, begun } => match token {
                Token::CloseList => self.close(),
                Token::Comma | Token::NewLine => {
                    if *begun {
                        *index += 1;
                        *begun = false;
                    }
                }
                Token::Blank => {}
                _ => {
                    let path = format!("{}[{index}]", frame.path);
                    if !*begun {
                        self.index.places.insert(path.clone(), place);
                    }
                    *begun = true;
                    match token {
                        Token::Open => self.stack.push(Frame::object(&path)),
                        Token::OpenList => self.stack.push(Frame::list(&path)),
                        _ => {}
                    }
                }
            },
        }
    }

    fn close(&mut self) {
        if self.stack.len() > 1 {
            self.stack.pop();
        }
    }
}

/// The next token and the text behind it.
fn next_token(text: &str) -> Option<(Token<'_>, &str)> {
    let first = text.chars().next()?;
    let behind = |n: usize| text.get(n..).unwrap_or("");
    Some(match first {
        '{' => (Token::Open, behind(1)),
        '}' => (Token::Close, behind(1)),
        '[' => (Token::OpenList, behind(1)),
        ']' => (Token::CloseList, behind(1)),
        ',' => (Token::Comma, behind(1)),
        '=' | ':' => (Token::Assign, behind(1)),
        '\n' => (Token::NewLine, behind(1)),
        '+' if text.starts_with("+=") => (Token::Assign, behind(2)),
        '"' if text.starts_with("\"\"\"") => {
            let body = behind(3);
            let end = body.find("\"\"\"").unwrap_or(body.len());
            // Quotes in excess of three belong to the text.
            let close = body.get(end..).map_or(0, |t| t.len() - t.trim_start_matches('"').len());
            (Token::Quoted(body.get(..end).unwrap_or("")), body.get(end + close..).unwrap_or(""))
        }
        '"' => {
            let body = behind(1);
            let mut escaped = false;
            let end = body.find(|c| {
                let ends = (c == '"' && !escaped) || c == '\n';
                escaped = c == '\\' && !escaped;
                ends
            });
            let end = end.unwrap_or(body.len());
            let after = body.get(end..).unwrap_or("");
            (Token::Quoted(body.get(..end).unwrap_or("")), after.strip_prefix('"').unwrap_or(after))
        }
        '#' => (Token::Blank, comment_end(text)),
        '/' if text.starts_with("//") => (Token::Blank, comment_end(text)),
        '$' if text.starts_with("${") => {
            let end = text.find(['}', '\n']).unwrap_or(text.len());
            let after = behind(end);
            (Token::Bare(text.get(..end).unwrap_or("")), after.strip_prefix('}').unwrap_or(after))
        }
        c if c.is_whitespace() || c == '\u{feff}' => {
            let after =
                text.trim_start_matches(|c: char| (c.is_whitespace() && c != '\n') || c == '\u{feff}');
            (Token::Blank, after)
        }
        _ => {
            let mut end = text.len();
            for (at, c) in text.char_indices() {
                let comment = c == '#' || (c == '/' && text.get(at..).is_some_and(|t| t.starts_with("//")));
                let assign = c == '+' && text.get(at..).is_some_and(|t| t.starts_with("+="));
                if at > 0 && (c.is_whitespace() || "{}[],=:\"$".contains(c) || comment || assign) {
                    end = at;
                    break;
                }
            }
            (Token::Bare(text.get(..end).unwrap_or("")), behind(end))
        }
    })
}

fn comment_end(text: &str) -> &str {
    text.get(text.find('\n').unwrap_or(text.len())..).unwrap_or("")
}

/// A quoted key as the parser will name it; JSON's escapes, or the text itself where they are wrong.
fn unescape(text: &str) -> String {
    serde_json::from_str(&format!("\"{text}\"")).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, path: &str) -> u32 {
        LineIndex::scan("t", text, None).get(path).unwrap_or_default().line
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
            ("last.h", 17),
            ("\"spaced key\"", 18),
        ] {
            assert_eq!(line(text, path), expected, "{path}");
        }
    }

    #[test]
    fn json_is_scanned_too() {
        let text = "{\n \"a\": {\"b\": [1,\n 2]},\n \"c\": null\n}";
        assert_eq!([line(text, "a"), line(text, "a.b"), line(text, "a.b[1]"), line(text, "c")], [2, 2, 3, 4]);
    }

    #[test]
    fn an_included_file_has_its_own_name_and_lines() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("more.conf"), "\n\nx = 1").unwrap();
        let index = LineIndex::scan("main", "a {\n include \"more.conf\"\n}\n", Some(folder.path()));
        let place = index.get("a.x").unwrap();
        assert_eq!(
            index.reaches_out().map(|(place, what)| (place.line, what)),
            Some((2, "include is not possible here"))
        );
        assert_eq!(place.line, 3);
        assert!(index.file(place).ends_with("more.conf"));
        let wrapped = LineIndex::scan("main", "include required(file(\"more.conf\"))\n", Some(folder.path()));
        assert_eq!(wrapped.get("x").unwrap().line, 3);
    }

    #[test]
    fn any_text_is_scanned_to_its_end() {
        let alphabet = [
            "{", "}", "[", "]", "\"", "\"\"\"", "a", ".", "=", ":", "+=", "\n", "#", "//", "${", " ", "é",
            "\\", ",",
        ];
        let seed: u64 = rand::random();
        let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        for _ in 0..5000 {
            let text: String = (0..40)
                .map(|_| alphabet[rand::RngExt::random_range(&mut random, 0..alphabet.len())])
                .collect();
            let found = std::panic::catch_unwind(|| LineIndex::scan("t", &text, None).places.len());
            assert!(found.is_ok(), "seed {seed}: {text:?}");
        }
    }
}
