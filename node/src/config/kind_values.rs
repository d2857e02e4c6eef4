//! Kinds of single values: words, texts, booleans, secrets, and whatever a function reads.

use serde_json::Value as Json;

use super::kind::{Kind, Secrets};
use super::tree::{Node, Object, Walk, nearest};
use crate::secret::{MASK, Secret};

/// A field with a fixed set of words. Declared with `choices!`.
pub trait Choice: Copy + PartialEq + 'static {
    /// Each value, its word, further spellings of it, and its meaning.
    const ALL: &'static [(Self, &'static str, &'static [&'static str], &'static str)];

    /// The word of a value.
    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(value, ..)| *value == self).map_or("", |(_, word, ..)| word)
    }
}

/// Kind of a [`Choice`].
pub(super) struct ChoiceKind<T>(std::marker::PhantomData<T>);

/// One of the words of `T`.
pub(super) fn choice<T: Choice>() -> ChoiceKind<T> {
    ChoiceKind(std::marker::PhantomData)
}

impl<T: Choice> Kind for ChoiceKind<T> {
    type Out = T;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<T> {
        let Some(text) = node.scalar() else {
            return walk.wrong(node, format!("one word is expected; allowed: {}", Self::words()));
        };
        let found = T::ALL.iter().find(|(_, word, also, _)| *word == text || also.contains(&text));
        if let Some((value, ..)) = found {
            return Some(*value);
        }
        let hint = nearest(text, T::ALL.iter().map(|(_, word, ..)| *word))
            .map_or_else(String::new, |near| format!("; did you mean {near}?"));
        walk.wrong(node, format!("not known; allowed: {}{hint}", Self::words()))
    }

    fn json(&self, value: &T, _: Secrets) -> Json {
        value.word().into()
    }

    fn name(&self) -> String {
        "word".into()
    }

    fn allowed(&self) -> String {
        let rows = T::ALL.iter().map(|(_, word, also, meaning)| {
            let also =
                if also.is_empty() { String::new() } else { format!(" (also `{}`)", also.join("`, `")) };
            let meaning = meaning.trim().trim_end_matches('.');
            if meaning.is_empty() { format!("`{word}`{also}") } else { format!("`{word}`{also}: {meaning}") }
        });
        rows.collect::<Vec<_>>().join("; ")
    }

    fn missing(&self, object: &Object<'_>, key: &str, walk: &mut Walk) -> Option<T> {
        let path = super::lines::join(&object.path, key);
        walk.wrong_at(&path, object.place, format!("required and missing; allowed: {}", Self::words()))
    }
}

impl<T: Choice> ChoiceKind<T> {
    fn words() -> String {
        T::ALL.iter().map(|(_, word, ..)| *word).collect::<Vec<_>>().join(", ")
    }
}

/// Kind of text that a function turns into a value.
pub(super) struct Parsed<T> {
    name: &'static str,
    read: fn(&str) -> Result<T, String>,
    show: fn(&T) -> Json,
}

/// A scalar that `read` understands; its error says what is wrong and what would be right.
pub(super) fn parsed<T: Clone>(
    name: &'static str,
    read: fn(&str) -> Result<T, String>,
    show: fn(&T) -> Json,
) -> Parsed<T> {
    Parsed { name, read, show }
}

impl<T> Parsed<T> {
    /// Another name for the kind of value.
    pub(super) fn called(self, name: &'static str) -> Self {
        Self { name, ..self }
    }
}

impl<T: Clone> Kind for Parsed<T> {
    type Out = T;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<T> {
        let Some(text) = node.scalar() else {
            return walk.wrong(node, format!("a single value is expected here ({})", self.name));
        };
        match (self.read)(text) {
            Ok(value) => Some(value),
            Err(message) => walk.wrong(node, message),
        }
    }

    fn json(&self, value: &T, _: Secrets) -> Json {
        (self.show)(value)
    }

    fn name(&self) -> String {
        self.name.into()
    }
}

/// Any text.
pub(super) fn text() -> Parsed<String> {
    parsed("text", |text| Ok(text.to_owned()), |text| text.as_str().into())
}

/// `true` or `false`; HOCON's `on`/`off` and `yes`/`no` are read, too.
pub(super) fn boolean() -> Parsed<bool> {
    parsed(
        "boolean",
        |text| match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Ok(true),
            "false" | "off" | "no" => Ok(false),
            _ => Err("not a boolean; write true or false".into()),
        },
        |value| (*value).into(),
    )
}

/// Kind of a secret.
pub(super) struct SecretKind;

/// A password; or `file://PATH` to read it from a file. Never shown.
pub(super) fn secret() -> SecretKind {
    SecretKind
}

impl Kind for SecretKind {
    type Out = Secret;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Secret> {
        let Some(text) = node.scalar() else {
            return walk.wrong_at(&node.path, node.place, "a text in quotes is expected here");
        };
        let secret = Secret::new(text);
        if secret.is_mask() {
            walk.warn_at(
                &node.path,
                node.place,
                format!(
                    "{MASK} is what is shown in place of a secret, not the secret: authentication will fail"
                ),
            );
        }
        Some(secret)
    }

    fn json(&self, value: &Secret, secrets: Secrets) -> Json {
        match secrets {
            Secrets::Masked => MASK.into(),
            Secrets::Revealed => value.reveal().into(),
        }
    }

    fn name(&self) -> String {
        "secret".into()
    }

    fn allowed(&self) -> String {
        "text, or `file://PATH` to read it from a file".into()
    }
}
