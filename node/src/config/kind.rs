//! Kinds: how one field is read, checked, written back and described.
//!
//! A field of a section is declared once, with a kind. The reader, the canonical JSON and the reference
//! page all come from that kind, so they cannot disagree.

use serde_json::{Map, Value as Json};

use super::tree::{Node, Object, Walk};

/// Treatment of secrets in canonical JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// They become [`MASK`](super::MASK): for people, logs and API answers.
    Masked,
    /// They are written out: for storage that is protected as the configuration file is.
    Revealed,
}

/// One row of the reference page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldDoc {
    /// Key path under the section; `NAME` and `[]` stand for what the user names or numbers.
    pub key: String,
    /// Kind of value.
    pub kind: String,
    /// Default where the key is not given.
    pub default: DefaultDoc,
    /// Allowed values; empty where every value of the kind is.
    pub allowed: String,
    /// Meaning.
    pub meaning: String,
}

/// Default where a key is not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DefaultDoc {
    /// It has to be given.
    #[default]
    Required,
    /// Nothing.
    Unset,
    /// This value, as canonical JSON.
    Value(Json),
    /// A default described in these words.
    Described(String),
}

impl std::fmt::Display for DefaultDoc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Required => f.write_str("required"),
            Self::Unset => f.write_str("unset"),
            Self::Value(Json::String(text)) if !text.is_empty() => f.write_str(text),
            Self::Value(value) => write!(f, "{value}"),
            Self::Described(text) => f.write_str(text),
        }
    }
}

/// How a field is read, checked, written back and described.
pub(super) trait Kind: Sized {
    /// The field's type.
    type Out: Clone;

    /// Reads a value; `None` after reporting what is wrong with it.
    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out>;

    /// The value of a field that is not given; `None` after reporting that it has to be.
    fn missing(&self, object: &Object<'_>, key: &str, walk: &mut Walk) -> Option<Self::Out> {
        let allowed = self.allowed();
        let expected = if allowed.is_empty() { self.name() } else { format!("{}: {allowed}", self.name()) };
        walk.wrong_at(
            &super::lines::join(&object.path, key),
            object.place,
            format!("required and missing ({expected})"),
        )
    }

    /// Reads the field `key` of `object`.
    fn field(&self, object: &Object<'_>, key: &'static str, walk: &mut Walk) -> Option<Self::Out> {
        let mut given = self.keys(key).into_iter().filter_map(|key| object.get(key));
        let Some(node) = given.next() else { return self.missing(object, key, walk) };
        if let Some(second) = given.next() {
            return walk.wrong(second, format!("the same as {}; give one of the two", node.path));
        }
        self.read(node, walk)
    }

    /// The keys the field may be given as, the usual one first.
    fn keys(&self, key: &'static str) -> Vec<&'static str> {
        vec![key]
    }

    /// The value as canonical JSON; `Null` leaves the key out.
    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json;

    /// Puts the field into a section's JSON.
    fn put(&self, key: &str, value: &Self::Out, secrets: Secrets, into: &mut Map<String, Json>) {
        let json = self.json(value, secrets);
        if !json.is_null() {
            into.insert(key.to_owned(), json);
        }
    }

    /// Kind of value for the reference page: `text`, `duration`.
    fn name(&self) -> String;

    /// Allowed values, for the reference page and messages.
    fn allowed(&self) -> String {
        String::new()
    }

    /// The default for the reference page.
    fn default_doc(&self) -> DefaultDoc {
        DefaultDoc::Required
    }

    /// Rows of the reference page.
    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        vec![FieldDoc {
            key: key.to_owned(),
            kind: self.name(),
            default: self.default_doc(),
            allowed: self.allowed(),
            meaning: meaning.to_owned(),
        }]
    }

    /// Gives a default.
    fn or(self, default: Self::Out) -> Or<Self> {
        let doc = DefaultDoc::Value(self.json(&default, Secrets::Masked));
        Or { kind: self, default, doc }
    }

    /// Gives a default that depends on the machine, with its description.
    fn or_else(self, default: impl FnOnce() -> Self::Out, text: &str) -> Or<Self> {
        Or { kind: self, default: default(), doc: DefaultDoc::Described(text.to_owned()) }
    }

    /// Makes the field optional.
    fn optional(self) -> Optional<Self> {
        Optional { kind: self }
    }

    /// Accepts a word for "none of these values", such as `infinity`; it is the default, too.
    fn or_word(self, word: &'static str) -> OrWord<Self> {
        OrWord { kind: self, word }
    }

    /// Accepts further spellings of the key; giving two of them is an error.
    fn also(self, keys: &'static [&'static str]) -> Also<Self> {
        Also { kind: self, keys }
    }

    /// Adds a check; its error says what is wrong and what would be right.
    fn check(self, check: fn(&Self::Out) -> Result<(), String>) -> Checked<Self> {
        Checked { kind: self, check }
    }

    /// Adds advice about values that work, but hardly as meant.
    fn advise(self, advice: fn(&Self::Out) -> Option<String>) -> Advised<Self> {
        Advised { kind: self, advice }
    }

    /// Says what is allowed in words.
    fn allowing(self, allowed: &'static str) -> Allowing<Self> {
        Allowing { kind: self, allowed }
    }

    /// Marks a field that is accepted because others have it, and never has an effect.
    fn without_effect(self, why: &'static str) -> WithoutEffect<Self> {
        WithoutEffect { kind: self, why }
    }
}

/// The rows of the inner kind with what the outer one says about the field itself.
fn relabel<K: Kind>(mut docs: Vec<FieldDoc>, key: &str, outer: &K) -> Vec<FieldDoc> {
    if let Some(own) = docs.iter_mut().find(|doc| doc.key == key) {
        own.kind = outer.name();
        own.default = outer.default_doc();
        own.allowed = outer.allowed();
    }
    docs
}

/// Forwards what a combinator does not change.
macro_rules! forward {
    ($($method:ident)*) => { $(forward!(@ $method);)* };
    (@ missing) => {
        fn missing(&self, object: &Object<'_>, key: &str, walk: &mut Walk) -> Option<Self::Out> {
            self.kind.missing(object, key, walk)
        }
    };
    (@ keys) => {
        fn keys(&self, key: &'static str) -> Vec<&'static str> {
            self.kind.keys(key)
        }
    };
    (@ json) => {
        fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
            self.kind.json(value, secrets)
        }
    };
    (@ name) => {
        fn name(&self) -> String {
            self.kind.name()
        }
    };
    (@ allowed) => {
        fn allowed(&self) -> String {
            self.kind.allowed()
        }
    };
    (@ docs) => {
        fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
            relabel(self.kind.docs(key, meaning), key, self)
        }
    };
    (@ default_doc) => {
        fn default_doc(&self) -> DefaultDoc {
            self.kind.default_doc()
        }
    };
}

/// See [`Kind::or`].
pub(super) struct Or<K: Kind> {
    kind: K,
    default: K::Out,
    doc: DefaultDoc,
}

impl<K: Kind> Kind for Or<K> {
    type Out = K::Out;
    forward!(keys json name allowed docs);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<K::Out> {
        self.kind.read(node, walk)
    }

    fn missing(&self, _: &Object<'_>, _: &str, _: &mut Walk) -> Option<K::Out> {
        Some(self.default.clone())
    }

    fn default_doc(&self) -> DefaultDoc {
        self.doc.clone()
    }
}

/// See [`Kind::optional`].
pub(super) struct Optional<K> {
    kind: K,
}

impl<K: Kind> Kind for Optional<K> {
    type Out = Option<K::Out>;
    forward!(keys name allowed docs);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out> {
        self.kind.read(node, walk).map(Some)
    }

    fn missing(&self, _: &Object<'_>, _: &str, _: &mut Walk) -> Option<Self::Out> {
        Some(None)
    }

    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
        value.as_ref().map_or(Json::Null, |value| self.kind.json(value, secrets))
    }

    fn default_doc(&self) -> DefaultDoc {
        DefaultDoc::Unset
    }
}

/// See [`Kind::or_word`].
pub(super) struct OrWord<K> {
    kind: K,
    word: &'static str,
}

impl<K: Kind> Kind for OrWord<K> {
    type Out = Option<K::Out>;
    forward!(keys docs);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out> {
        if node.scalar() == Some(self.word) { Some(None) } else { self.kind.read(node, walk).map(Some) }
    }

    fn missing(&self, _: &Object<'_>, _: &str, _: &mut Walk) -> Option<Self::Out> {
        Some(None)
    }

    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
        value.as_ref().map_or_else(|| self.word.into(), |value| self.kind.json(value, secrets))
    }

    fn name(&self) -> String {
        format!("{} or `{}`", self.kind.name(), self.word)
    }

    fn allowed(&self) -> String {
        self.kind.allowed()
    }

    fn default_doc(&self) -> DefaultDoc {
        DefaultDoc::Value(self.word.into())
    }
}

/// See [`Kind::also`].
pub(super) struct Also<K> {
    kind: K,
    keys: &'static [&'static str],
}

impl<K: Kind> Kind for Also<K> {
    type Out = K::Out;
    forward!(missing json name allowed default_doc);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<K::Out> {
        self.kind.read(node, walk)
    }

    fn keys(&self, key: &'static str) -> Vec<&'static str> {
        let mut keys = self.kind.keys(key);
        keys.extend(self.keys);
        keys
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        let mut docs = self.kind.docs(key, meaning);
        if let Some(doc) = docs.iter_mut().find(|doc| doc.key == key) {
            let also: Vec<String> = self.keys.iter().map(|key| format!("`{key}`")).collect();
            doc.meaning = format!("{} Also spelled {}.", doc.meaning, also.join(", "));
        }
        docs
    }
}

/// See [`Kind::check`].
pub(super) struct Checked<K: Kind> {
    kind: K,
    check: fn(&K::Out) -> Result<(), String>,
}

impl<K: Kind> Kind for Checked<K> {
    type Out = K::Out;
    forward!(missing keys json name allowed default_doc docs);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<K::Out> {
        let value = self.kind.read(node, walk)?;
        match (self.check)(&value) {
            Ok(()) => Some(value),
            Err(message) => walk.wrong(node, message),
        }
    }
}

/// See [`Kind::advise`].
pub(super) struct Advised<K: Kind> {
    kind: K,
    advice: fn(&K::Out) -> Option<String>,
}

impl<K: Kind> Kind for Advised<K> {
    type Out = K::Out;
    forward!(missing keys json name allowed default_doc docs);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<K::Out> {
        let value = self.kind.read(node, walk)?;
        if let Some(advice) = (self.advice)(&value) {
            walk.warn(node, advice);
        }
        Some(value)
    }
}

/// See [`Kind::allowing`].
pub(super) struct Allowing<K> {
    kind: K,
    allowed: &'static str,
}

impl<K: Kind> Kind for Allowing<K> {
    type Out = K::Out;
    forward!(missing keys json name default_doc docs);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<K::Out> {
        self.kind.read(node, walk)
    }

    fn allowed(&self) -> String {
        self.allowed.into()
    }
}

/// See [`Kind::without_effect`].
pub(super) struct WithoutEffect<K: Kind> {
    kind: K,
    why: &'static str,
}

impl<K: Kind> Kind for WithoutEffect<K> {
    type Out = K::Out;
    forward!(missing keys json name allowed default_doc);

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<K::Out> {
        let value = self.kind.read(node, walk)?;
        walk.warn_at(&node.path, node.place, format!("has no effect: {}", self.why));
        Some(value)
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        let mut docs = self.kind.docs(key, meaning);
        for doc in &mut docs {
            doc.meaning = format!("{} Has no effect: {}.", doc.meaning, self.why);
        }
        docs
    }
}
