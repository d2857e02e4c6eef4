//! Definitions into values: replaces substitutions and merges repeated definitions of a key.
//!
//! Evaluation is lazy: a path is followed through definitions without evaluating the keys beside it, so that
//! objects may refer to their own other keys. A key that is asked for while one of its definitions is being
//! evaluated stands for its earlier definitions (`path = ${path} more`); with none, the substitution goes
//! round in a circle and is refused. Every other recursion ends at a bound.

use std::ptr;

use indexmap::IndexMap;

use super::lexer::Reference;
use super::parser::{Expression, Fields, Layer, Slot, Substitution};
use super::{Data, Fault, MAX_DEPTH, Value};
use crate::config::lines::{SourceLine, join};

/// Maximum nesting of values and substitutions.
const MAX_LEVELS: usize = 2 * MAX_DEPTH;

/// Maximum number of steps for a whole configuration; a hundred thousand keys take less than a tenth of it.
/// Without a bound, substitutions that each name the one before them twice would take exponential time.
const MAX_STEPS: usize = 10_000_000;

/// Bytes of text that count as one step.
const STEP_BYTES: usize = 64;

/// Whether earlier definitions of a key still count.
#[derive(PartialEq, Clone, Copy)]
enum Flow {
    /// They do: no value was found so far, or only objects, which are merged with earlier ones.
    On,
    /// They do not: the value that was found replaces them.
    Hidden,
}

/// Evaluates all keys.
///
/// # Errors
/// All substitutions that name nothing, or the bound that was reached.
pub(super) fn resolve(
    fields: &Fields,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Value, Vec<Fault>> {
    let mut resolver = Resolver {
        root: fields,
        environment,
        active: Vec::new(),
        references: Vec::new(),
        level: 0,
        steps: 0,
        circle: false,
        faults: Vec::new(),
    };
    let place = SourceLine::default();
    let entries = resolver.object(fields, place).map_err(|fault| vec![fault])?;
    if resolver.faults.is_empty() {
        Ok(Value { data: Data::Object(entries), place })
    } else {
        Err(resolver.faults)
    }
}

struct Resolver<'r> {
    root: &'r Fields,
    environment: &'r dyn Fn(&str) -> Option<String>,
    /// The keys being evaluated, each with the number of its definition.
    active: Vec<(&'r Slot, usize)>,
    /// The substitutions being followed, each with the path that is asked for.
    references: Vec<(&'r Substitution, Vec<String>)>,
    level: usize,
    steps: usize,
    /// A key was asked for while it was being evaluated.
    circle: bool,
    faults: Vec<Fault>,
}

impl<'r> Resolver<'r> {
    fn object(&mut self, fields: &'r Fields, place: SourceLine) -> Result<IndexMap<String, Value>, Fault> {
        self.enter(place)?;
        let mut entries = IndexMap::with_capacity(fields.slots.len());
        for (key, slot) in &fields.slots {
            let mut found = Vec::new();
            self.slot(slot, &[], &mut found)?;
            if let Some(value) = merged(found) {
                entries.insert(key.clone(), value);
            }
        }
        self.level -= 1;
        Ok(entries)
    }

    /// Finds `rest` under a key; `found` gets what is defined there, the latest first.
    fn slot(&mut self, slot: &'r Slot, rest: &[String], found: &mut Vec<Value>) -> Result<Flow, Fault> {
        let mut known = slot.layers.len();
        if rest.is_empty() {
            let evaluated = self.active.iter().filter(|(active, _)| ptr::eq(*active, slot));
            if let Some(first) = evaluated.map(|(_, at)| *at).min() {
                self.circle = true;
                known = first;
            }
        }
        self.layers(slot, known, rest, found)
    }

    fn layers(
        &mut self,
        slot: &'r Slot,
        known: usize,
        rest: &[String],
        found: &mut Vec<Value>,
    ) -> Result<Flow, Fault> {
        for (at, layer) in slot.layers.iter().enumerate().take(known).rev() {
            let before = found.len();
            if rest.is_empty() {
                self.active.push((slot, at));
            }
            let flow = self.expression(&layer.expression, layer.place, rest, found)?;
            if rest.is_empty() {
                self.active.pop();
                for value in found.iter_mut().skip(before) {
                    value.place = layer.place;
                }
            }
            if flow == Flow::Hidden {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn expression(
        &mut self,
        expression: &'r Expression,
        place: SourceLine,
        rest: &[String],
        found: &mut Vec<Value>,
    ) -> Result<Flow, Fault> {
        self.step(1, place)?;
        let data = match (expression, rest) {
            (Expression::Object(fields), [key, rest @ ..]) => {
                let Some(slot) = fields.slots.get(key) else { return Ok(Flow::On) };
                self.enter(place)?;
                let flow = self.slot(slot, rest, found)?;
                self.level -= 1;
                return Ok(flow);
            }
            (Expression::Join(parts), [_, ..]) => {
                for part in parts.iter().rev() {
                    if self.expression(part, place, rest, found)? == Flow::Hidden {
                        return Ok(Flow::Hidden);
                    }
                }
                return Ok(Flow::On);
            }
            (Expression::Reference(substitution), _) => {
                return self.reference(substitution, rest, found);
            }
            (Expression::Space(_), [_, ..]) => return Ok(Flow::On),
            // A value that is no object has nothing under it, and hides what an earlier object had.
            (_, [_, ..]) => return Ok(Flow::Hidden),
            (Expression::Object(fields), []) => Data::Object(self.object(fields, place)?),
            (Expression::Join(parts), []) => match self.join(parts, place)? {
                Some(data) => data,
                None => return Ok(Flow::On),
            },
            (Expression::Append(substitution, added), []) => {
                let mut items = self.previous(substitution.as_ref(), place)?;
                items.extend(self.list(added)?);
                Data::List(items)
            }
            (Expression::List(items), []) => Data::List(self.list(items)?),
            (Expression::Text { text, quoted }, []) => {
                self.step(text.len() / STEP_BYTES, place)?;
                Data::Text { text: text.clone(), quoted: *quoted }
            }
            (Expression::Space(text), []) => Data::Text { text: text.clone(), quoted: true },
            (Expression::Null, []) => Data::Null,
        };
        Ok(found_one(found, Value { data, place }))
    }

    fn list(&mut self, items: &'r [Layer]) -> Result<Vec<Value>, Fault> {
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            self.enter(item.place)?;
            let mut found = Vec::new();
            self.expression(&item.expression, item.place, &[], &mut found)?;
            self.level -= 1;
            values.extend(merged(found).map(|value| Value { place: item.place, ..value }));
        }
        Ok(values)
    }

    /// The parts of a value as one: texts in a row, lists in a row, or objects merged.
    fn join(&mut self, parts: &'r [Expression], place: SourceLine) -> Result<Option<Data>, Fault> {
        self.enter(place)?;
        let mut whole: Option<Data> = None;
        // White space counts between two texts only.
        let mut space = "";
        for part in parts {
            if let Expression::Space(text) = part {
                space = text;
                continue;
            }
            let mut found = Vec::new();
            self.expression(part, place, &[], &mut found)?;
            let Some(part) = merged(found) else { continue };
            whole = Some(match (whole, part.data) {
                (None, data) => data,
                (Some(Data::Object(earlier)), Data::Object(later)) => Data::Object(over(earlier, later)),
                (Some(Data::List(mut earlier)), Data::List(later)) => {
                    earlier.extend(later);
                    Data::List(earlier)
                }
                (Some(Data::Text { .. } | Data::Null), Data::Object(_) | Data::List(_))
                | (Some(Data::Object(_) | Data::List(_)), _) => {
                    let message = "syntax error: an object, a list and a text cannot be joined to one value; a comma, a new line or quotes are missing";
                    return Err(Fault { place, message: message.to_owned() });
                }
                (Some(earlier), later) => {
                    let (mut text, later) = (text_of(earlier), text_of(later));
                    self.step((text.len() + later.len()) / STEP_BYTES, place)?;
                    text.push_str(space);
                    text.push_str(&later);
                    Data::Text { text, quoted: true }
                }
            });
            space = "";
        }
        self.level -= 1;
        Ok(whole)
    }

    /// The elements that `+=` adds to: those of the earlier definitions of the key being evaluated.
    fn previous(
        &mut self,
        substitution: Option<&'r Substitution>,
        place: SourceLine,
    ) -> Result<Vec<Value>, Fault> {
        self.enter(place)?;
        let mut found = Vec::new();
        if let Some((slot, at)) = self.active.last().copied() {
            self.layers(slot, at, &[], &mut found)?;
        }
        if let (true, Some(substitution)) = (found.is_empty(), substitution) {
            self.reference(substitution, &[], &mut found)?;
        }
        self.level -= 1;
        match merged(found).map(|value| value.data) {
            None | Some(Data::Null) => Ok(Vec::new()),
            Some(Data::List(items)) => Ok(items),
            Some(_) => {
                let message = "syntax error: `+=` adds to a list, and this key has no list; write `=`";
                Err(Fault { place, message: message.to_owned() })
            }
        }
    }

    fn reference(
        &mut self,
        substitution: &'r Substitution,
        rest: &[String],
        found: &mut Vec<Value>,
    ) -> Result<Flow, Fault> {
        let Substitution { reference, prefix, place } = substitution;
        let path: Vec<String> = reference.path.iter().chain(rest).cloned().collect();
        let again =
            |(known, asked): &(&Substitution, Vec<String>)| ptr::eq(*known, substitution) && *asked == path;
        if self.references.iter().any(again) {
            self.circle = true;
            return Ok(Flow::On);
        }
        self.enter(*place)?;
        let circle = std::mem::replace(&mut self.circle, false);
        self.references.push((substitution, path.clone()));
        let mut value = None;
        if !prefix.is_empty() {
            let within: Vec<String> = prefix.iter().chain(&path).cloned().collect();
            value = self.lookup(&within, *place)?;
        }
        if value.is_none() {
            value = self.lookup(&path, *place)?;
        }
        self.references.pop();
        self.level -= 1;
        if value.is_none() && rest.is_empty() {
            value = self.variable(reference, *place);
            if value.is_none() && !reference.optional {
                self.unresolved(substitution);
            }
        }
        self.circle |= circle;
        Ok(value.map_or(Flow::On, |value| found_one(found, value)))
    }

    fn lookup(&mut self, path: &[String], place: SourceLine) -> Result<Option<Value>, Fault> {
        let Some((key, rest)) = path.split_first() else { return Ok(None) };
        let Some(slot) = self.root.slots.get(key) else { return Ok(None) };
        self.step(path.len(), place)?;
        let mut found = Vec::new();
        self.slot(slot, rest, &mut found)?;
        Ok(merged(found))
    }

    /// The value of an environment variable, or the list of those with a number behind their names.
    fn variable(&self, reference: &Reference, place: SourceLine) -> Option<Value> {
        let name = reference.path.join(".");
        let text = |text| Value { data: Data::Text { text, quoted: true }, place };
        if !reference.list {
            return (self.environment)(&name).map(text);
        }
        let items: Vec<Value> =
            (0..).map_while(|at| (self.environment)(&format!("{name}_{at}"))).map(text).collect();
        (!items.is_empty()).then_some(Value { data: Data::List(items), place })
    }

    fn unresolved(&mut self, substitution: &Substitution) {
        let path = substitution.reference.path.iter().fold(String::new(), |path, key| join(&path, key));
        let message = if self.circle {
            format!("syntax error: could not resolve ${{{path}}}: it refers to itself in a circle")
        } else {
            format!(
                "syntax error: could not resolve ${{{path}}}: neither a key nor an environment variable has this name; a template has to stand in quotes, as \"${{.payload}}\""
            )
        };
        let fault = Fault { place: substitution.place, message };
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    fn enter(&mut self, place: SourceLine) -> Result<(), Fault> {
        self.level += 1;
        if self.level > MAX_LEVELS {
            let message = format!(
                "syntax error: values and substitutions are nested deeper than {MAX_LEVELS} levels; do substitutions refer to one another in a circle?"
            );
            return Err(Fault { place, message });
        }
        Ok(())
    }

    fn step(&mut self, steps: usize, place: SourceLine) -> Result<(), Fault> {
        self.steps += steps;
        if self.steps > MAX_STEPS {
            let message = "syntax error: the substitutions make the configuration too large; do they repeat one another?";
            return Err(Fault { place, message: message.to_owned() });
        }
        Ok(())
    }
}

fn found_one(found: &mut Vec<Value>, value: Value) -> Flow {
    let flow = if matches!(value.data, Data::Object(_)) { Flow::On } else { Flow::Hidden };
    found.push(value);
    flow
}

/// One value of definitions, the latest first.
fn merged(found: Vec<Value>) -> Option<Value> {
    found.into_iter().rev().reduce(|earlier, later| match (earlier.data, later.data) {
        (Data::Object(earlier), Data::Object(entries)) => {
            Value { data: Data::Object(over(earlier, entries)), place: later.place }
        }
        (_, data) => Value { data, place: later.place },
    })
}

/// `later` over `earlier`: objects in both are merged, other values replaced.
fn over(mut earlier: IndexMap<String, Value>, later: IndexMap<String, Value>) -> IndexMap<String, Value> {
    for (key, value) in later {
        match (earlier.get_mut(&key), value) {
            (
                Some(Value { data: Data::Object(below), place }),
                Value { data: Data::Object(above), place: above_place },
            ) => {
                *below = over(std::mem::take(below), above);
                *place = above_place;
            }
            (Some(below), value) => *below = value,
            (None, value) => {
                earlier.insert(key, value);
            }
        }
    }
    earlier
}

fn text_of(data: Data) -> String {
    match data {
        Data::Text { text, .. } => text,
        _ => "null".to_owned(),
    }
}
