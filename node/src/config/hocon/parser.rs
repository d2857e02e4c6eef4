//! Tokens into definitions by key, in the order of the text. Includes are followed here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::lexer::{Lexer, Reference, Token};
use super::{Fault, MAX_DEPTH, Remark, Source};
use crate::config::lines::{LineIndex, SourceLine, join};

/// Maximum number of files of one configuration, included ones among them.
const MAX_FILES: usize = 1000;

/// A value as it is written, before substitutions are replaced.
#[derive(Debug)]
pub(super) enum Expression {
    /// `null`.
    Null,
    /// A text, number or boolean.
    Text { text: String, quoted: bool },
    /// White space between two parts of a value.
    Space(String),
    /// A list.
    List(Vec<Layer>),
    /// An object.
    Object(Fields),
    /// Parts that become one text, list or object.
    Join(Vec<Expression>),
    /// A substitution.
    Reference(Substitution),
    /// `+=`: elements that are added to the list that the key has already. Without an earlier definition in
    /// the same object, the substitution finds that list.
    Append(Option<Substitution>, Vec<Layer>),
}

/// A substitution and where it stands.
#[derive(Debug)]
pub(super) struct Substitution {
    /// The path that it names.
    pub reference: Reference,
    /// Key path at which its file is included; the path is looked up below it first.
    pub prefix: Vec<String>,
    /// Where it stands.
    pub place: SourceLine,
}

/// One definition of a key, or an element of a list.
#[derive(Debug)]
pub(super) struct Layer {
    /// The value.
    pub expression: Expression,
    /// Where the key stands, or the element.
    pub place: SourceLine,
}

/// All definitions of a key, in the order of the text.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// A later definition replaces an earlier one; two objects are merged.
    pub layers: Vec<Layer>,
}

/// The keys of an object.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// The definitions of each.
    pub slots: IndexMap<String, Slot>,
}

impl Expression {
    /// Whether it contains no substitution.
    fn is_literal(&self) -> bool {
        match self {
            Self::Null | Self::Text { .. } | Self::Space(_) => true,
            Self::Reference(_) | Self::Append(..) => false,
            Self::List(items) => items.iter().all(|item| item.expression.is_literal()),
            Self::Join(parts) => parts.iter().all(Self::is_literal),
            Self::Object(fields) => {
                fields.slots.values().flat_map(|slot| &slot.layers).all(|layer| layer.expression.is_literal())
            }
        }
    }
}

impl Slot {
    fn push(&mut self, layer: Layer) {
        match (layer.expression, self.layers.last_mut()) {
            (Expression::Object(new), Some(Layer { expression: Expression::Object(known), place })) => {
                *place = layer.place;
                known.merge(new);
            }
            // Repeated `+=` extends one list, so that the resolver does not recurse once for each.
            (
                Expression::Append(_, mut added),
                Some(Layer { expression: Expression::List(known) | Expression::Append(_, known), place }),
            ) if added.iter().all(|item| item.expression.is_literal()) => {
                *place = layer.place;
                known.append(&mut added);
            }
            (expression, _) => {
                // A text or `null` replaces all earlier definitions, so that none of them is asked for any
                // more.
                if matches!(expression, Expression::Null | Expression::Text { .. }) {
                    self.layers.clear();
                }
                self.layers.push(Layer { expression, place: layer.place });
            }
        }
    }

    /// The object that takes definitions of keys below this one; a new one where the last definition is no
    /// object.
    fn object(&mut self, place: SourceLine) -> Option<&mut Fields> {
        if !matches!(self.layers.last(), Some(Layer { expression: Expression::Object(_), .. })) {
            self.layers.push(Layer { expression: Expression::Object(Fields::default()), place });
        }
        match self.layers.last_mut() {
            Some(Layer { expression: Expression::Object(fields), .. }) => Some(fields),
            _ => None,
        }
    }
}

impl Fields {
    fn define(&mut self, path: Vec<String>, layer: Layer) {
        let mut fields = self;
        let mut path = path.into_iter().peekable();
        while let Some(key) = path.next() {
            let slot = fields.slots.entry(key).or_default();
            if path.peek().is_none() {
                slot.push(layer);
                return;
            }
            let Some(next) = slot.object(layer.place) else { return };
            fields = next;
        }
    }

    /// Place of the last definition of a key path, if that is a text, number or boolean.
    fn text_at(&self, path: &[String]) -> Option<SourceLine> {
        let (key, rest) = path.split_first()?;
        match (self.slots.get(key)?.layers.last()?, rest) {
            (Layer { expression: Expression::Text { .. }, place }, []) => Some(*place),
            (Layer { expression: Expression::Object(fields), .. }, [_, ..]) => fields.text_at(rest),
            _ => None,
        }
    }

    fn merge(&mut self, other: Fields) {
        for (key, slot) in other.slots {
            let known = self.slots.entry(key).or_default();
            for layer in slot.layers {
                known.push(layer);
            }
        }
    }
}

/// Reads a text and what it includes.
pub(super) fn parse(
    name: &str,
    text: &str,
    source: Source<'_>,
    lines: &mut LineIndex,
    remarks: &mut Vec<Remark>,
) -> Result<Fields, Fault> {
    let file = lines.add_file(name);
    let base = match source {
        Source::File(folder) => Some(folder.to_path_buf()),
        Source::Text => None,
    };
    // An include of the file itself is a circle, too.
    let open = base.iter().filter_map(|_| Path::new(name).canonicalize().ok()).collect();
    let mut files = Files { lines, remarks, open };
    let lexer = Lexer::new(text, file, base.is_some())?;
    Parser { lexer, files: &mut files, base, prefix: Some(Vec::new()), depth: 0 }.whole()
}

/// State that all files of a configuration share.
struct Files<'f> {
    lines: &'f mut LineIndex,
    remarks: &'f mut Vec<Remark>,
    /// The files being read, each included by the one before it.
    open: Vec<PathBuf>,
}

struct Parser<'t, 'f, 'g> {
    lexer: Lexer<'t>,
    files: &'g mut Files<'f>,
    /// The folder of includes; none where the text may reach nothing outside itself.
    base: Option<PathBuf>,
    /// The path at which this file is included; none within a list.
    prefix: Option<Vec<String>>,
    depth: usize,
}

/// Where a value or an object stands.
#[derive(Clone, Copy)]
struct Scope<'p> {
    /// The key path; none within a list, whose elements have no path.
    path: Option<&'p [String]>,
    /// The key path for messages.
    shown: &'p str,
}

impl Parser<'_, '_, '_> {
    fn whole(mut self) -> Result<Fields, Fault> {
        self.skip_lines()?;
        let path = self.prefix.clone();
        let shown = path.iter().flatten().fold(String::new(), |path, key| join(&path, key));
        let scope = Scope { path: path.as_deref(), shown: &shown };
        match self.lexer.peek() {
            Token::OpenList => {
                Err(self.lexer.fault("syntax error: keys and values are expected, not a list"))
            }
            Token::Open => {
                let opened = self.lexer.place().line;
                self.lexer.advance()?;
                let fields = self.fields(Some(opened), scope)?;
                self.skip_lines()?;
                match self.lexer.peek() {
                    Token::End => Ok(fields),
                    Token::Close => Err(self.stray_brace()),
                    _ => Err(self.lexer.fault(format!(
                        "syntax error: the `{{` of line {opened} is closed before this; put everything in between these braces, or leave them out"
                    ))),
                }
            }
            _ => self.fields(None, scope),
        }
    }

    /// The keys and values up to the `}` for the `{` of line `opened`, or to the end of the text.
    fn fields(&mut self, opened: Option<u32>, scope: Scope<'_>) -> Result<Fields, Fault> {
        let mut fields = Fields::default();
        loop {
            self.skip_lines()?;
            match (self.lexer.peek(), opened) {
                (Token::End, None) => return Ok(fields),
                (Token::End, Some(line)) => return Err(self.unclosed('{', line)),
                (Token::Close, Some(_)) => {
                    self.lexer.advance()?;
                    return Ok(fields);
                }
                (Token::Close, None) => return Err(self.stray_brace()),
                (Token::CloseList, _) => return Err(self.stray_bracket(opened)),
                (Token::Bare("include"), _) => {
                    let place = self.lexer.place();
                    self.lexer.advance()?;
                    self.skip_space()?;
                    let target = match self.lexer.peek() {
                        Token::Equals | Token::Colon | Token::Append | Token::Open => None,
                        _ => Some(self.include_target(place)?),
                    };
                    match target {
                        Some(target) => fields.merge(self.include(&target, place, scope)?),
                        None => self.field(&mut fields, vec!["include".to_owned()], place, scope)?,
                    }
                }
                (Token::Bare(_) | Token::Quoted(_), _) => {
                    let place = self.lexer.place();
                    let key = self.key()?;
                    self.field(&mut fields, key, place, scope)?;
                }
                (Token::Comma, _) => {
                    return Err(self
                        .lexer
                        .fault("syntax error: a key and a value are missing before this comma"));
                }
                _ => {
                    return Err(self
                        .lexer
                        .fault("syntax error: a key is expected here, as in `key = value`"));
                }
            }
            self.separator()?;
        }
    }

    /// Reads the comma or the line end between two keys.
    fn separator(&mut self) -> Result<(), Fault> {
        self.skip_space()?;
        match self.lexer.peek() {
            Token::Comma => self.lexer.advance(),
            Token::NewLine | Token::Close | Token::CloseList | Token::End => Ok(()),
            _ => Err(self.lexer.fault("syntax error: a comma or a new line is missing before this")),
        }
    }

    /// A key path: parts in quotes or without, separated by dots. White space within it belongs to it.
    fn key(&mut self) -> Result<Vec<String>, Fault> {
        const EMPTY: &str =
            "syntax error: a part of this key is empty; write an empty part in quotes, as in a.\"\".b";
        let mut path = Vec::new();
        let mut part: Option<String> = None;
        let mut space = "";
        loop {
            if matches!(self.lexer.peek(), Token::Bare(_) | Token::Quoted(_)) && !space.is_empty() {
                part.get_or_insert_default().push_str(space);
                space = "";
            }
            match self.lexer.peek() {
                Token::Bare(text) => {
                    for (at, piece) in text.split('.').enumerate() {
                        if at > 0 {
                            path.push(part.take().ok_or_else(|| self.lexer.fault(EMPTY))?);
                        }
                        if !piece.is_empty() {
                            part.get_or_insert_default().push_str(piece);
                        }
                    }
                }
                Token::Quoted(text) => part.get_or_insert_default().push_str(text),
                Token::Space(text) => space = *text,
                _ => break,
            }
            self.lexer.advance()?;
        }
        path.push(part.ok_or_else(|| self.lexer.fault(EMPTY))?);
        Ok(path)
    }

    /// Reads the value behind a key and adds the definition to `fields`.
    fn field(
        &mut self,
        fields: &mut Fields,
        key: Vec<String>,
        place: SourceLine,
        scope: Scope<'_>,
    ) -> Result<(), Fault> {
        let levels = key.len();
        self.descend(levels)?;
        let shown = key.iter().fold(scope.shown.to_owned(), |path, part| join(&path, part));
        let path = scope.path.map(|path| path.iter().chain(&key).cloned().collect::<Vec<_>>());
        let within = Scope { path: path.as_deref(), shown: &shown };
        // A brace on the next line belongs to the key, too.
        self.skip_lines()?;
        let appends = *self.lexer.peek() == Token::Append;
        match self.lexer.peek() {
            Token::Equals | Token::Colon | Token::Append => {
                self.lexer.advance()?;
                self.skip_lines()?;
            }
            Token::Open => {}
            _ => {
                let message = format!("syntax error: `=` or `{{` is missing behind the key {shown}");
                return Err(Fault { place, message });
            }
        }
        let begins = self.lexer.place();
        let Some(value) = self.value(within, None)? else {
            let message = format!("syntax error: the value of {shown} is missing; an empty text is \"\"");
            return Err(Fault { place, message });
        };
        let expression = if appends {
            let previous = path.as_ref().map(|path| Substitution {
                reference: Reference { path: path.clone(), optional: true, list: false },
                prefix: Vec::new(),
                place: begins,
            });
            Expression::Append(previous, vec![Layer { expression: value, place: begins }])
        } else {
            value
        };
        self.depth -= levels;
        if matches!(expression, Expression::Text { .. })
            && let Some(hidden) = fields.text_at(&key).filter(|hidden| hidden.file == place.file)
        {
            let message = format!(
                "line {} gives this key, too, and has no effect: the later value counts; remove one of the two",
                hidden.line
            );
            self.files.remarks.push(Remark { place, key: shown, message });
        }
        fields.define(key, Layer { expression, place });
        Ok(())
    }

    /// A value: its parts up to the end of the line, a comma or a closing brace; none if there is no part.
    ///
    /// In a list, whose key path is `list`, two parts that are written out are two elements without a comma.
    fn value(&mut self, scope: Scope<'_>, list: Option<&str>) -> Result<Option<Expression>, Fault> {
        let mut parts = Vec::new();
        let mut spaced = false;
        loop {
            let place = self.lexer.place();
            let part = match self.lexer.peek() {
                Token::NewLine | Token::Comma | Token::Close | Token::CloseList | Token::End => break,
                Token::Space(text) => {
                    let text = (*text).to_owned();
                    self.lexer.advance()?;
                    spaced = !parts.is_empty();
                    if spaced {
                        parts.push(Expression::Space(text));
                    }
                    continue;
                }
                // Within text as in host:9092 and YWJj=.
                sign @ (Token::Equals | Token::Colon)
                    if !spaced
                        && matches!(parts.last(), Some(Expression::Text { quoted: false, .. }))
                        && !self.lexer.space_follows() =>
                {
                    let text = if *sign == Token::Equals { "=" } else { ":" };
                    self.lexer.advance()?;
                    Expression::Text { text: text.to_owned(), quoted: false }
                }
                Token::Equals | Token::Colon | Token::Append => {
                    return Err(self.lexer.fault(format!(
                        "syntax error: a second `=` or `:` in the value of {}; begin a new line for the next key, or write the value in double quotes",
                        scope.shown
                    )));
                }
                Token::Bare(text) => {
                    let text = (*text).to_owned();
                    self.lexer.advance()?;
                    Expression::Text { text, quoted: false }
                }
                Token::Quoted(text) => {
                    let text = text.clone();
                    self.lexer.advance()?;
                    Expression::Text { text, quoted: true }
                }
                Token::Reference(reference) => {
                    let reference = reference.clone();
                    self.lexer.advance()?;
                    let prefix = self.prefix.clone().unwrap_or_default();
                    Expression::Reference(Substitution { reference, prefix, place })
                }
                Token::Open => {
                    self.lexer.advance()?;
                    self.descend(1)?;
                    let fields = self.fields(Some(place.line), scope)?;
                    self.depth -= 1;
                    Expression::Object(fields)
                }
                Token::OpenList => {
                    self.lexer.advance()?;
                    self.descend(1)?;
                    let items = self.list(place.line, scope)?;
                    self.depth -= 1;
                    Expression::List(items)
                }
            };
            if let Some(list) = list
                && parts
                    .iter()
                    .rev()
                    .find(|part| !matches!(part, Expression::Space(_)))
                    .is_some_and(|before| both_nested(before, &part) || (spaced && both_text(before, &part)))
            {
                let message = format!(
                    "syntax error: a comma or a new line is missing between two elements of {list}; a text with spaces has to stand in quotes"
                );
                return Err(Fault { place, message });
            }
            parts.push(part);
        }
        if matches!(parts.last(), Some(Expression::Space(_))) {
            parts.pop();
        }
        self.remark_on_comment(scope);
        Ok(joined(parts))
    }

    /// Remarks on a comment of this line that begins directly behind unquoted text.
    fn remark_on_comment(&mut self, scope: Scope<'_>) {
        let line = self.lexer.place().line;
        if let Some((at, sign)) = self.lexer.glued_comment().filter(|(at, _)| *at == line) {
            let place = SourceLine { line: at, ..self.lexer.place() };
            let message = format!(
                "the value ends before `{sign}`, which begins a comment; if it belongs to the value, write the value in double quotes"
            );
            if !self.files.remarks.iter().any(|remark| remark.place == place) {
                self.files.remarks.push(Remark { place, key: scope.shown.to_owned(), message });
            }
        }
    }

    /// The elements up to the `]` for the `[` of line `opened`.
    fn list(&mut self, opened: u32, scope: Scope<'_>) -> Result<Vec<Layer>, Fault> {
        let mut items = Vec::new();
        loop {
            self.skip_lines()?;
            let place = self.lexer.place();
            match self.lexer.peek() {
                Token::CloseList => {
                    self.lexer.advance()?;
                    return Ok(items);
                }
                Token::End => return Err(self.unclosed('[', opened)),
                Token::Close => {
                    return Err(self.lexer.fault(format!(
                        "syntax error: a `}}` while the `[` of line {opened} is open; close that with `]` first"
                    )));
                }
                Token::Comma => {
                    return Err(self.lexer.fault("syntax error: an element is missing before this comma"));
                }
                _ => {}
            }
            let shown = format!("{}[{}]", scope.shown, items.len());
            let within = Scope { path: None, shown: &shown };
            if let Some(expression) = self.value(within, Some(scope.shown))? {
                items.push(Layer { expression, place });
            }
            self.skip_lines()?;
            if *self.lexer.peek() == Token::Comma {
                self.lexer.advance()?;
            }
        }
    }

    /// Reads the target of an `include`, its closing parentheses included.
    fn include_target(&mut self, place: SourceLine) -> Result<Target, Fault> {
        let wrong = |message: &str| Fault { place, message: format!("syntax error: {message}") };
        let mut head = String::new();
        while let Token::Bare(text) = self.lexer.peek() {
            head.push_str(text);
            self.lexer.advance()?;
            self.skip_space()?;
        }
        let (required, file) = match head.as_str() {
            "" => (false, false),
            "file(" => (false, true),
            "required(" => (true, false),
            "required(file(" => (true, true),
            _ => {
                let message = if ["url(", "classpath(", "package("].iter().any(|word| head.contains(word)) {
                    "only files can be included; save it as a file and name that: include \"file.conf\""
                } else {
                    "a file name in quotes is expected behind `include`, as in include \"bridges.conf\""
                };
                return Err(wrong(message));
            }
        };
        let Token::Quoted(name) = self.lexer.peek() else {
            return Err(wrong(
                "the file name behind `include` has to stand in quotes, as in include \"bridges.conf\"",
            ));
        };
        let name = name.clone();
        self.lexer.advance()?;
        let mut open = head.matches('(').count();
        while open > 0 {
            self.skip_space()?;
            let closes = match self.lexer.peek() {
                Token::Bare(text) if text.bytes().all(|b| b == b')') => text.len(),
                _ => 0,
            };
            if closes == 0 || closes > open {
                return Err(wrong("the parentheses behind `include` are not closed"));
            }
            open -= closes;
            self.lexer.advance()?;
        }
        if self.base.is_none() {
            return Err(Fault { place, message: "include is not possible here".to_owned() });
        }
        Ok(Target { name, required, file })
    }

    /// The keys of an included file.
    fn include(&mut self, target: &Target, place: SourceLine, scope: Scope<'_>) -> Result<Fields, Fault> {
        let wrong = |message: String| Fault { place, message: format!("syntax error: {message}") };
        // As in the specification: a name in file(..) counts from the working directory.
        let base = if target.file { Path::new("") } else { self.base.as_deref().unwrap_or(Path::new("")) };
        let path = base.join(&target.name);
        let candidates = if path.extension().is_some() {
            vec![path.clone()]
        } else {
            vec![path.clone(), path.with_extension("json"), path.with_extension("conf")]
        };
        let found: Vec<&PathBuf> = candidates.iter().filter(|path| path.exists()).collect();
        if found.is_empty() {
            let message = format!("there is no file {}", path.display());
            if target.required {
                return Err(wrong(format!("{message}; it is required here")));
            }
            let message = if target.name.contains('*') {
                format!(
                    "{message}, and nothing is included: `*` has no meaning here, include each file by its name"
                )
            } else {
                format!(
                    "{message}, and nothing is included; write include required(..) to make that an error"
                )
            };
            self.files.remarks.push(Remark { place, key: scope.shown.to_owned(), message });
        }
        let mut fields = Fields::default();
        for path in found {
            let name = path.display();
            if path.is_dir() {
                return Err(wrong(format!("{name} is a folder; include each of its files by its name")));
            }
            if path.extension().is_some_and(|extension| extension == "properties") {
                return Err(wrong(format!(
                    "{name}: property files are not read; write it as HOCON, in a .conf file"
                )));
            }
            let real = path.canonicalize().map_err(|error| wrong(format!("cannot read {name}: {error}")))?;
            if self.files.open.contains(&real) {
                return Err(wrong(format!("{name} includes itself, directly or through another file")));
            }
            if self.files.lines.files() >= MAX_FILES {
                return Err(wrong(format!("more than {MAX_FILES} files are included")));
            }
            let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => wrong(format!("{name} is not a text file in UTF-8")),
                _ => wrong(format!("cannot read {name}: {error}")),
            })?;
            let file = self.files.lines.add_file(&name.to_string());
            self.files.open.push(real);
            let lexer = Lexer::new(&text, file, true)?;
            let base = Some(path.parent().map(Path::to_path_buf).unwrap_or_default());
            let prefix = scope.path.map(<[String]>::to_vec);
            let inner = Parser { lexer, files: &mut *self.files, base, prefix, depth: self.depth };
            fields.merge(inner.whole()?);
            self.files.open.pop();
        }
        Ok(fields)
    }

    fn descend(&mut self, levels: usize) -> Result<(), Fault> {
        self.depth += levels;
        if self.depth > MAX_DEPTH {
            return Err(self.lexer.fault(format!(
                "syntax error: keys, braces and brackets are nested deeper than {MAX_DEPTH} levels"
            )));
        }
        Ok(())
    }

    fn skip_space(&mut self) -> Result<(), Fault> {
        while matches!(self.lexer.peek(), Token::Space(_)) {
            self.lexer.advance()?;
        }
        Ok(())
    }

    fn skip_lines(&mut self) -> Result<(), Fault> {
        while matches!(self.lexer.peek(), Token::Space(_) | Token::NewLine) {
            self.lexer.advance()?;
        }
        Ok(())
    }

    fn stray_brace(&self) -> Fault {
        self.lexer.fault(
            "syntax error: this `}` closes nothing; remove it, or one before it that closes a section too early",
        )
    }

    fn stray_bracket(&self, opened: Option<u32>) -> Fault {
        self.lexer.fault(match opened {
            Some(line) => format!(
                "syntax error: a `]` while the `{{` of line {line} is open; close that with `}}` first"
            ),
            None => "syntax error: this `]` closes nothing; remove it".to_owned(),
        })
    }

    fn unclosed(&self, sign: char, line: u32) -> Fault {
        let closing = if sign == '{' { '}' } else { ']' };
        let mut message =
            format!("syntax error: expected {closing}: the `{sign}` of line {line} is not closed");
        if let Some((at, comment)) = self.lexer.glued_comment() {
            let _ = write!(
                message,
                "; `{comment}` begins a comment in line {at}: write a value that contains it in double quotes"
            );
        }
        Fault { place: SourceLine { line, ..self.lexer.place() }, message }
    }
}

/// Target of an `include`.
struct Target {
    name: String,
    required: bool,
    file: bool,
}

fn both_text(one: &Expression, other: &Expression) -> bool {
    let text = |e: &Expression| matches!(e, Expression::Text { .. });
    text(one) && text(other)
}

fn both_nested(one: &Expression, other: &Expression) -> bool {
    let nested = |e: &Expression| matches!(e, Expression::Object(_) | Expression::List(_));
    nested(one) && nested(other)
}

/// The parts of a value as one expression.
fn joined(mut parts: Vec<Expression>) -> Option<Expression> {
    if parts.iter().all(|part| matches!(part, Expression::Text { .. } | Expression::Space(_)))
        && parts.len() > 1
    {
        let mut whole = String::new();
        for part in &parts {
            if let Expression::Text { text, .. } | Expression::Space(text) = part {
                whole.push_str(text);
            }
        }
        return Some(Expression::Text { text: whole, quoted: true });
    }
    if parts.len() > 1 {
        return Some(Expression::Join(parts));
    }
    Some(match parts.pop()? {
        Expression::Text { text, quoted: false } if text == "null" => Expression::Null,
        part => part,
    })
}
