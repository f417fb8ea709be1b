//! JSON as templates see it: objects keep the order of their keys, for models have been taught schemas in the order in which people
//! write them; and as they write it, in Python's way (`json.dumps` with `ensure_ascii=False`, as in `transformers`).

use std::borrow::Cow;
use std::fmt;
use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::ser::{Formatter, PrettyFormatter};

/// Widest indentation of a template's JSON, in spaces.
const MAX_INDENT: usize = 16;

/// A JSON value. Of its texts and keys those that are borrowed are this program's words, and those that are owned a client's.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// A text.
    Text(Cow<'static, str>),
    /// A list.
    List(Vec<Json>),
    /// An object: keys in the order in which they came.
    Object(Vec<(Cow<'static, str>, Json)>),
}

impl Json {
    /// Parses a client's JSON.
    ///
    /// # Errors
    /// It is not JSON, or nested too deeply.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// An object of these fields.
    pub fn object(fields: impl IntoIterator<Item = (&'static str, Json)>) -> Self {
        Self::Object(fields.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect())
    }

    /// The same with all of a client's texts, keys included, as `change` makes them.
    pub(super) fn with_texts(&self, change: &impl Fn(&str) -> String) -> Self {
        match self {
            Self::Text(Cow::Owned(text)) => Self::Text(Cow::Owned(change(text))),
            Self::List(items) => Self::List(items.iter().map(|item| item.with_texts(change)).collect()),
            Self::Object(fields) => {
                let key = |key: &Cow<'static, str>| match key {
                    Cow::Owned(key) => Cow::Owned(change(key)),
                    ours => ours.clone(),
                };
                Self::Object(fields.iter().map(|(name, value)| (key(name), value.with_texts(change))).collect())
            }
            other => other.clone(),
        }
    }

    /// Shows `look` all texts, keys included.
    pub(super) fn each_text(&self, look: &mut impl FnMut(&str)) {
        match self {
            Self::Text(text) => look(text),
            Self::List(items) => items.iter().for_each(|item| item.each_text(look)),
            Self::Object(fields) => fields.iter().for_each(|(key, value)| {
                look(key);
                value.each_text(look);
            }),
            Self::Null | Self::Bool(_) | Self::Number(_) => {}
        }
    }
}

impl From<&'static str> for Json {
    /// Words of ours.
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Json {
    /// A client's.
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(text.to_owned().into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            fields.push((Cow::Owned(key), value));
        }
        Ok(Json::Object(fields))
    }
}

/// The filter `tojson`, with `transformers`' arguments of which templates use `indent`; unlike Jinja's own it escapes nothing for HTML.
pub(super) fn to_json(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Always what we do.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let mut text = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Python)),
        Some(width) => {
            let indent = " ".repeat(width.min(MAX_INDENT));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        }
    };
    let failed = |_| Error::new(ErrorKind::BadSerialization, "tojson");
    written.map_err(failed)?;
    String::from_utf8(text).map(Value::from).map_err(|_| Error::new(ErrorKind::BadSerialization, "tojson"))
}

/// Spaces after commas and colons.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
