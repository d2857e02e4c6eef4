//! Sections: objects with known keys, declared once with the `section!` macro.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde_json::{Map, Value as Json};

use super::kind::{FieldDoc, Kind, Secrets};
use super::lines::join;
use super::tree::{Node, Object, Walk, nearest};

/// An object with known keys. Declared with `section!`.
pub(super) trait Section: Clone {
    /// Keys that configurations written for EMQX may carry and that mean nothing here.
    const IGNORED: &'static [&'static str];

    /// Reads the fields; reports every wrong one before it answers `None`.
    fn read_fields(object: &Object<'_>, walk: &mut Walk) -> Option<Self>;

    /// Every key that the section knows.
    fn known_keys() -> Vec<&'static str>;

    /// Rows of the reference page.
    fn docs() -> Vec<FieldDoc>;

    /// The fields as canonical JSON.
    fn json_fields(&self, secrets: Secrets, into: &mut Map<String, Json>);

    /// Checks that concern several fields; `walk` gets what is wrong.
    fn validate(&self, object: &Object<'_>, walk: &mut Walk) {
        let _ = (object, walk);
    }

    /// Reads an object: unknown keys, fields, then [`Section::validate`].
    fn read_object(object: &Object<'_>, walk: &mut Walk) -> Option<Self> {
        let known = Self::known_keys();
        for (key, node) in &object.entries {
            if known.contains(&key.as_str()) {
                continue;
            }
            if Self::IGNORED.contains(&key.as_str()) {
                walk.warn_at(&node.path, node.place, "accepted, has no effect here");
                continue;
            }
            // The value is not shown: it may be a secret under a mistyped key.
            let hint = hint::<Self>(key, &known);
            let allowed = known.join(", ");
            walk.wrong_at::<()>(
                &node.path,
                node.place,
                format!("unknown key{hint}; allowed here: {allowed}"),
            );
        }
        let before = walk.errors.len();
        let section = Self::read_fields(object, walk)?;
        section.validate(object, walk);
        (walk.errors.len() == before).then_some(section)
    }

    /// The section as canonical JSON.
    fn to_json(&self, secrets: Secrets) -> Json {
        let mut map = Map::new();
        self.json_fields(secrets, &mut map);
        Json::Object(map)
    }
}

/// "; did you mean ...?" for an unknown key: the same one deeper down, or a near one here.
fn hint<S: Section>(key: &str, known: &[&str]) -> String {
    let docs = S::docs();
    let deeper = docs.iter().find(|doc| doc.key.rsplit('.').next() == Some(key) && doc.key.contains('.'));
    let near = deeper.map(|doc| doc.key.as_str()).or_else(|| nearest(key, known.iter().copied()));
    near.map_or_else(String::new, |near| format!("; did you mean {near}?"))
}

/// Ties a kind to the type of its field, so that it need not name it.
pub(super) fn kind_of<T, K: Kind<Out = T>>(kind: K) -> K {
    kind
}

/// Declares a section: a struct whose fields carry doc comments (they become the reference) and kinds.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[doc = $doc:literal])* $field:ident : $type:ty => $kind:expr; )*
        }
        $(ignored { $($ignored:literal)* })?
        $(validate $validate:path;)?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl $crate::config::section::Section for $name {
            const IGNORED: &'static [&'static str] = &[$($($ignored),*)?];

            fn read_fields(
                object: &$crate::config::tree::Object<'_>,
                walk: &mut $crate::config::tree::Walk,
            ) -> Option<Self> {
                $( let $field = $crate::config::kind::Kind::field(&$crate::config::section::kind_of::<$type, _>($kind), object, stringify!($field), walk); )*
                Some(Self { $( $field: $field?, )* })
            }

            fn known_keys() -> Vec<&'static str> {
                let mut keys = Vec::new();
                $( keys.extend($crate::config::kind::Kind::keys(&$crate::config::section::kind_of::<$type, _>($kind), stringify!($field))); )*
                keys
            }

            fn docs() -> Vec<$crate::config::kind::FieldDoc> {
                let mut docs = Vec::new();
                $( docs.extend($crate::config::kind::Kind::docs(
                    &$crate::config::section::kind_of::<$type, _>($kind),
                    stringify!($field),
                    concat!($($doc),*).trim(),
                )); )*
                docs
            }

            fn json_fields(
                &self,
                secrets: $crate::config::kind::Secrets,
                into: &mut serde_json::Map<String, serde_json::Value>,
            ) {
                $( $crate::config::kind::Kind::put(&$crate::config::section::kind_of::<$type, _>($kind), stringify!($field), &self.$field, secrets, into); )*
            }

            $(
                fn validate(
                    &self,
                    object: &$crate::config::tree::Object<'_>,
                    walk: &mut $crate::config::tree::Walk,
                ) {
                    $validate(self, object, walk);
                }
            )?
        }
    };
}
pub(crate) use section;

/// Declares a [`Choice`](super::kind_values::Choice): an enum whose values are words.
macro_rules! choices {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[doc = $doc:literal])* $value:ident = $word:literal $(| $also:literal)*; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $doc])* $value, )*
        }

        impl $crate::config::kind_values::Choice for $name {
            const ALL: &'static [(Self, &'static str, &'static [&'static str], &'static str)] =
                &[$( (Self::$value, $word, &[$($also),*], concat!($($doc),*)), )*];
        }
    };
}
pub(crate) use choices;

/// Kind of a nested object; not given, it is an empty one.
pub(super) struct SectionKind<S>(PhantomData<S>);

/// A nested object.
pub(super) fn nested<S: Section>() -> SectionKind<S> {
    SectionKind(PhantomData)
}

impl<S: Section> Kind for SectionKind<S> {
    type Out = S;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<S> {
        let object = walk.object(node)?;
        S::read_object(&object, walk)
    }

    fn missing(&self, object: &Object<'_>, key: &str, walk: &mut Walk) -> Option<S> {
        let empty = Object { entries: Vec::new(), path: join(&object.path, key), place: object.place };
        S::read_object(&empty, walk)
    }

    fn json(&self, value: &S, secrets: Secrets) -> Json {
        value.to_json(secrets)
    }

    fn name(&self) -> String {
        "object".into()
    }

    fn docs(&self, key: &'static str, _: &str) -> Vec<FieldDoc> {
        under(key, S::docs())
    }
}

fn under(prefix: &str, docs: Vec<FieldDoc>) -> Vec<FieldDoc> {
    docs.into_iter().map(|doc| FieldDoc { key: format!("{prefix}.{}", doc.key), ..doc }).collect()
}

/// Kind of fields that stand in the parent object itself.
pub(super) struct Flat<S>(PhantomData<S>);

/// The fields of `S` stand beside the parent's own.
pub(super) fn flat<S: Section>() -> Flat<S> {
    Flat(PhantomData)
}

impl<S: Section> Kind for Flat<S> {
    type Out = S;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<S> {
        let object = walk.object(node)?;
        S::read_fields(&object, walk)
    }

    fn field(&self, object: &Object<'_>, _: &'static str, walk: &mut Walk) -> Option<S> {
        let before = walk.errors.len();
        let section = S::read_fields(object, walk)?;
        section.validate(object, walk);
        (walk.errors.len() == before).then_some(section)
    }

    fn keys(&self, _: &'static str) -> Vec<&'static str> {
        S::known_keys()
    }

    fn json(&self, value: &S, secrets: Secrets) -> Json {
        value.to_json(secrets)
    }

    fn put(&self, _: &str, value: &S, secrets: Secrets, into: &mut Map<String, Json>) {
        value.json_fields(secrets, into);
    }

    fn name(&self) -> String {
        "fields".into()
    }

    fn docs(&self, _: &'static str, _: &str) -> Vec<FieldDoc> {
        S::docs()
    }
}

/// Kind of an object whose keys are names that the user chooses.
pub(super) struct Named<K> {
    kind: K,
    check: fn(&str) -> Result<(), String>,
}

/// Objects by name; `check` says which names are right.
pub(super) fn named<K: Kind>(kind: K, check: fn(&str) -> Result<(), String>) -> Named<K> {
    Named { kind, check }
}

impl<K: Kind> Kind for Named<K> {
    type Out = BTreeMap<String, K::Out>;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out> {
        let object = walk.object(node)?;
        let before = walk.errors.len();
        let mut entries = BTreeMap::new();
        for (name, node) in &object.entries {
            if let Err(message) = (self.check)(name) {
                walk.wrong_at::<()>(&node.path, node.place, message);
            }
            if let Some(value) = self.kind.read(node, walk) {
                entries.insert(name.clone(), value);
            }
        }
        (walk.errors.len() == before).then_some(entries)
    }

    fn missing(&self, _: &Object<'_>, _: &str, _: &mut Walk) -> Option<Self::Out> {
        Some(BTreeMap::new())
    }

    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
        let entries = value.iter().map(|(name, value)| (name.clone(), self.kind.json(value, secrets)));
        Json::Object(entries.collect())
    }

    fn name(&self) -> String {
        "objects by name".into()
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        let mut docs = self.kind.docs("NAME", meaning);
        for doc in &mut docs {
            doc.key = format!("{key}.{}", doc.key);
        }
        docs
    }
}

/// Kind of a list.
pub(super) struct List<K> {
    kind: K,
}

/// A list of values of one kind.
pub(super) fn list<K: Kind>(kind: K) -> List<K> {
    List { kind }
}

impl<K: Kind> Kind for List<K> {
    type Out = Vec<K::Out>;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out> {
        let Some(items) = walk.items(node) else {
            return walk.wrong(node, "a list in brackets is expected here");
        };
        let before = walk.errors.len();
        let values: Vec<K::Out> = items.iter().filter_map(|item| self.kind.read(item, walk)).collect();
        (walk.errors.len() == before).then_some(values)
    }

    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
        value.iter().map(|value| self.kind.json(value, secrets)).collect()
    }

    fn name(&self) -> String {
        format!("list of {}s", self.kind.name())
    }

    fn allowed(&self) -> String {
        self.kind.allowed()
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        let mut docs = self.kind.docs("", meaning);
        let nested = docs.len() > 1;
        for doc in &mut docs {
            doc.key = if nested { format!("{key}[]{}", doc.key) } else { key.to_owned() };
        }
        if nested {
            let own = FieldDoc { key: key.to_owned(), meaning: meaning.to_owned(), ..FieldDoc::default() };
            docs.insert(0, own);
        }
        if let Some(own) = docs.first_mut() {
            own.kind = self.name();
            own.default = self.default_doc();
        }
        docs
    }
}
