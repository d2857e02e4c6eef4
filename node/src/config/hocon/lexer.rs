//! Tokens of HOCON text.

use super::Fault;
use crate::byte_order_mark;
use crate::config::lines::SourceLine;

/// A token. Comments are skipped and give no token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token<'t> {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `[`
    OpenList,
    /// `]`
    CloseList,
    /// `,`
    Comma,
    /// `=`
    Equals,
    /// `:`
    Colon,
    /// `+=`
    Append,
    /// The end of a line.
    NewLine,
    /// White space within a line, as it stands.
    Space(&'t str),
    /// Text in quotes, with the escapes replaced.
    Quoted(String),
    /// Text without quotes.
    Bare(&'t str),
    /// `${..}`
    Reference(Reference),
    /// The end of the text.
    End,
}

/// A substitution: `${path}`, `${?path}`, `${VARIABLE[]}`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reference {
    /// The key path.
    pub path: Vec<String>,
    /// `${?path}`: an unknown path gives no value instead of an error.
    pub optional: bool,
    /// `${VARIABLE[]}`: a list from the environment variables `VARIABLE_0`, `VARIABLE_1` and so on.
    pub list: bool,
}

/// Reads tokens, looking one ahead.
pub(super) struct Lexer<'t> {
    file: u16,
    /// Whether substitutions (`${..}`) are allowed.
    references: bool,
    /// The text behind the token at hand.
    rest: &'t str,
    line: u32,
    /// The line of `ahead`.
    ahead_line: u32,
    ahead: Token<'t>,
    /// The last line on which a comment begins directly behind unquoted text, and how it begins.
    glued: Option<(u32, &'static str)>,
}

impl<'t> Lexer<'t> {
    /// Reads the first token.
    pub(super) fn new(text: &'t str, file: u16, references: bool) -> Result<Self, Fault> {
        let text = byte_order_mark::skip(text);
        let mut lexer =
            Self { file, references, rest: text, line: 1, ahead_line: 1, ahead: Token::NewLine, glued: None };
        lexer.advance()?;
        Ok(lexer)
    }

    /// The token at hand.
    pub(super) fn peek(&self) -> &Token<'t> {
        &self.ahead
    }

    /// Where the token at hand begins.
    pub(super) fn place(&self) -> SourceLine {
        SourceLine { file: self.file, line: self.ahead_line }
    }

    /// Whether white space follows the token at hand.
    pub(super) fn space_follows(&self) -> bool {
        self.rest.starts_with(|c| c != '\n' && is_space(c))
    }

    /// The last comment so far that begins directly behind unquoted text: its line, `#` or `//`.
    pub(super) fn glued_comment(&self) -> Option<(u32, &'static str)> {
        self.glued
    }

    /// A fault at the token at hand.
    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault { place: self.place(), message: message.into() }
    }

    /// Goes on to the next token.
    pub(super) fn advance(&mut self) -> Result<(), Fault> {
        let was_bare = matches!(self.ahead, Token::Bare(_));
        if let Some(sign) = ["#", "//"].into_iter().find(|sign| self.rest.starts_with(sign)) {
            if was_bare {
                self.glued = Some((self.line, sign));
            }
            self.rest = self.rest.find('\n').and_then(|end| self.rest.get(end..)).unwrap_or("");
        }
        self.ahead_line = self.line;
        let Some(first) = self.rest.chars().next() else {
            self.ahead = Token::End;
            return Ok(());
        };
        self.ahead = match first {
            '{' => self.symbol(1, Token::Open),
            '}' => self.symbol(1, Token::Close),
            '[' => self.symbol(1, Token::OpenList),
            ']' => self.symbol(1, Token::CloseList),
            ',' => self.symbol(1, Token::Comma),
            '=' => self.symbol(1, Token::Equals),
            ':' => self.symbol(1, Token::Colon),
            '+' if self.rest.starts_with("+=") => self.symbol(2, Token::Append),
            '\n' => {
                self.line += 1;
                self.symbol(1, Token::NewLine)
            }
            '"' if self.rest.starts_with("\"\"\"") => self.long_text()?,
            '"' => {
                self.skip(1);
                Token::Quoted(self.quoted()?)
            }
            '$' if self.rest.starts_with("${") => self.reference()?,
            c if is_space(c) => {
                let end = self.rest.find(|c| c == '\n' || !is_space(c)).unwrap_or(self.rest.len());
                Token::Space(self.skip(end))
            }
            _ => self.bare()?,
        };
        Ok(())
    }

    fn symbol(&mut self, length: usize, token: Token<'t>) -> Token<'t> {
        self.skip(length);
        token
    }

    /// Passes over `length` bytes and returns them.
    fn skip(&mut self, length: usize) -> &'t str {
        let (passed, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.rest = rest;
        passed
    }

    /// `"""text"""`; of more than three quotes at the end the last three count.
    fn long_text(&mut self) -> Result<Token<'t>, Fault> {
        self.skip(3);
        let Some(end) = self.rest.find("\"\"\"") else {
            return Err(self.fault("the quotes `\"\"\"` that open here are not closed"));
        };
        let behind = self.rest.get(end..).unwrap_or("");
        let quotes = behind.len() - behind.trim_start_matches('"').len();
        let text = self.skip(end + quotes - 3);
        self.skip(3);
        self.line += text.matches('\n').count() as u32;
        Ok(Token::Quoted(text.to_owned()))
    }

    /// The rest of a text in quotes behind the first quote.
    fn quoted(&mut self) -> Result<String, Fault> {
        const OPEN: &str = "the quote that opens here is not closed on its line; a text of several lines takes \"\"\" at both ends";
        let mut text = String::new();
        loop {
            let end = self.rest.find(['"', '\\', '\n']).ok_or_else(|| self.fault(OPEN))?;
            text.push_str(self.skip(end));
            match self.skip(1) {
                "\"" => return Ok(text),
                "\\" => text.push(self.escape()?),
                _ => return Err(self.fault(OPEN)),
            }
        }
    }

    /// The character of an escape, behind its backslash.
    fn escape(&mut self) -> Result<char, Fault> {
        let Some(c) = self.rest.chars().next() else {
            return Err(self.fault("the text ends in the middle of a quoted text"));
        };
        self.skip(c.len_utf8());
        Ok(match c {
            '"' | '\\' | '/' => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.unit()?;
                let low = (0xd800..0xdc00).contains(&first) && self.rest.starts_with("\\u");
                let units = if low {
                    self.skip(2);
                    vec![first, self.unit()?]
                } else {
                    vec![first]
                };
                match char::decode_utf16(units).collect::<Result<Vec<_>, _>>().as_deref() {
                    Ok([character]) => *character,
                    _ => {
                        return Err(self.fault(
                            "`\\u` names half of a surrogate pair; write both halves, or the character itself",
                        ));
                    }
                }
            }
            _ => {
                return Err(self.fault(
                    "not an escape: a backslash in quotes is written `\\\\`; others are \\\" \\/ \\b \\f \\n \\r \\t \\uXXXX",
                ));
            }
        })
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u16, Fault> {
        let digits = self.rest.get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or_else(|| self.fault("`\\u` needs four hexadecimal digits, as in \\u00fc"))?;
        self.skip(4);
        Ok(unit)
    }

    /// `${path}`, `${?path}` or either with `[]` behind the path.
    fn reference(&mut self) -> Result<Token<'t>, Fault> {
        const TEMPLATE: &str = "a template has to stand in quotes, as \"${.payload}\"";
        let wrong = |lexer: &Self, what: &str| lexer.fault(format!("syntax error: {what}; {TEMPLATE}"));
        if !self.references {
            return Err(self.fault(
                "`${` outside quotes is not possible here; write a template in quotes, as \"${.payload}\"",
            ));
        }
        self.skip(2);
        let optional = self.rest.starts_with('?');
        if optional {
            self.skip(1);
        }
        let (mut path, mut list) = (Vec::new(), false);
        let mut segment: Option<String> = None;
        let mut space = "";
        loop {
            let Some(c) = self.rest.chars().next() else {
                return Err(wrong(self, "the `${` that opens here is not closed"));
            };
            match c {
                '}' | '.' => {
                    self.skip(1);
                    space = "";
                    match segment.take() {
                        Some(done) => path.push(done),
                        None => return Err(wrong(self, "a key is missing in the path of `${..}`")),
                    }
                    if c == '}' {
                        return Ok(Token::Reference(Reference { path, optional, list }));
                    }
                }
                '[' if self.rest.starts_with("[]}") && segment.is_some() => {
                    self.skip(2);
                    list = true;
                }
                '\n' => return Err(wrong(self, "the `${` that opens here is not closed on its line")),
                c if is_space(c) => {
                    let end = self.rest.find(|c| c == '\n' || !is_space(c)).unwrap_or(self.rest.len());
                    space = self.skip(end);
                }
                '"' => {
                    self.skip(1);
                    let quoted = self.quoted()?;
                    let segment = segment.get_or_insert_default();
                    if !segment.is_empty() {
                        segment.push_str(space);
                    }
                    segment.push_str(&quoted);
                }
                c if is_reserved(c) || c.is_control() => {
                    return Err(wrong(self, "the path of `${..}` is a key path, as in ${node.name}"));
                }
                _ => {
                    let ends = |c: char| is_space(c) || is_reserved(c) || c.is_control() || c == '.';
                    let end = self.rest.find(ends).unwrap_or(self.rest.len());
                    let text = self.skip(end);
                    let segment = segment.get_or_insert_default();
                    if !segment.is_empty() {
                        segment.push_str(space);
                    }
                    segment.push_str(text);
                }
            }
        }
    }

    /// Text without quotes.
    fn bare(&mut self) -> Result<Token<'t>, Fault> {
        let mut end = 0;
        for (at, c) in self.rest.char_indices() {
            let here = self.rest.get(at..).unwrap_or("");
            let before = self.rest.get(..at).unwrap_or("");
            let exponent = c == '+' && is_mantissa(before);
            if is_space(c) || here.starts_with("//") || (!exponent && (is_reserved(c) || c.is_control())) {
                break;
            }
            end = at + c.len_utf8();
        }
        if end == 0 {
            let c = self.rest.chars().next().unwrap_or_default();
            let shown = if c.is_control() { c.escape_unicode().to_string() } else { c.to_string() };
            return Err(self.fault(format!(
                "syntax error: `{shown}` cannot stand outside quotes; write the whole value in double quotes"
            )));
        }
        Ok(Token::Bare(self.skip(end)))
    }
}

/// White space of the specification, line ends among it.
fn is_space(c: char) -> bool {
    c.is_whitespace() && c != '\u{85}' || matches!(c, '\u{1c}'..='\u{1f}' | '\u{feff}')
}

/// Characters that text without quotes may not have.
fn is_reserved(c: char) -> bool {
    "$\"{}[]:=,+#`^?!@*&\\".contains(c)
}

/// The part of a number before the sign of its exponent, as in `1.5e`.
fn is_mantissa(text: &str) -> bool {
    let Some(number) = text.strip_suffix(['e', 'E']) else { return false };
    number.ends_with(|c: char| c.is_ascii_digit()) && number.parse::<f64>().is_ok()
}
