//! The key-value metadata of a GGUF file, with getters that check types.

use std::collections::BTreeMap;

use super::GgufError;
use super::value::{Array, Number, Value};
use crate::checkpoint::CheckpointError;

/// The metadata of a GGUF file (of a split model, its first file).
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    file: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Metadata that stand in `file`, which errors will name.
    pub(crate) fn new(file: &str, values: BTreeMap<String, Value>) -> Self {
        Self { file: file.to_owned(), values }
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All values by key: what a [`GgufWriter`](super::GgufWriter) takes.
    pub const fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// The text under `key`; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn string(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        self.typed(key, "string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The integer under `key`, stored in whatever integer type; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`], also when it is out of range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.typed(key, "u32", |value| match value {
            Value::Number(number) => u32::try_from(number.as_integer()?).ok(),
            _ => None,
        })
    }

    /// The floating-point number under `key`, an f64 rounded to f32; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        self.typed(key, "f32", |value| match value {
            Value::Number(number) => number.as_f64().map(|value| value as f32),
            _ => None,
        })
    }

    /// The truth value under `key`; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key, "bool", |value| match value {
            Value::Number(number) => number.as_bool(),
            _ => None,
        })
    }

    /// The array of texts under `key`; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, CheckpointError> {
        self.typed(key, "array of strings", |value| match value {
            Value::Array(Array::Strings(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// The array of f32 (or f64, rounded) under `key`; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        self.typed(key, "array of f32", |value| numbers(value, |number| number.as_f64().map(|value| value as f32)))
    }

    /// The array of integers under `key`, stored in whatever integer type; `None` when the key is absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`], also when one is out of range.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, CheckpointError> {
        self.typed(key, "array of i32", |value| numbers(value, |number| i32::try_from(number.as_integer()?).ok()))
    }

    /// `value`, got under `key`, which must be there.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`].
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, CheckpointError> {
        value.ok_or_else(|| self.error(GgufError::MissingKey { key: key.to_owned() }))
    }

    /// `error`, with the file's name.
    pub(crate) fn error(&self, error: GgufError) -> CheckpointError {
        CheckpointError::Gguf { file: self.file.clone(), error }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        get: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || {
            let found = match value {
                Value::Number(number) => format!("{} {}", number.ty().name(), number.text()),
                other => other.type_name().to_owned(),
            };
            self.error(GgufError::WrongType { key: key.to_owned(), expected, found })
        };
        get(value).map(Some).ok_or_else(wrong)
    }
}

fn numbers<T>(value: &Value, convert: impl Fn(Number) -> Option<T>) -> Option<Vec<T>> {
    match value {
        Value::Array(Array::Numbers { ty, bytes }) => {
            bytes.chunks_exact(ty.bytes()).map(|bytes| convert(Number::read(*ty, bytes))).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::NumberType;
    use super::*;

    fn metadata() -> Metadata {
        let number = |ty, bytes: &[u8]| Value::Number(Number::read(ty, bytes));
        let values = [
            ("text", Value::from("hello")),
            ("u32", Value::from(7)),
            ("i8", number(NumberType::I8, &[0xff])),
            ("u64", number(NumberType::U64, &(1u64 << 32).to_le_bytes())),
            ("f32", Value::from(0.5f32)),
            ("bool", Value::from(true)),
            ("texts", Value::from(vec!["a".to_owned(), "b".to_owned()])),
            ("f32s", Value::from(&[1.0f32, -2.0][..])),
            ("i32s", Value::from(&[1, -2][..])),
            ("nested", Value::Array(Array::Arrays(vec![Array::Strings(vec![])]))),
        ];
        Metadata::new("m.gguf", values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    #[test]
    fn getters_give_values_of_their_types() {
        let m = metadata();
        assert_eq!(m.string("text").unwrap(), Some("hello"));
        assert_eq!(m.u32("u32").unwrap(), Some(7));
        assert_eq!(m.f32("f32").unwrap(), Some(0.5));
        assert_eq!(m.bool("bool").unwrap(), Some(true));
        assert_eq!(m.strings("texts").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(m.f32s("f32s").unwrap().unwrap(), [1.0, -2.0]);
        assert_eq!(m.i32s("i32s").unwrap().unwrap(), [1, -2]);
        assert_eq!((m.string("no").unwrap(), m.u32("no").unwrap(), m.i32s("no").unwrap()), (None, None, None));
    }

    #[test]
    fn other_types_are_refused_and_named() {
        let m = metadata();
        let wrong = |result: Result<(), CheckpointError>| result.unwrap_err().to_string();
        assert_eq!(wrong(m.u32("i8").map(drop)), "m.gguf: key i8: u32 expected, i8 -1 found");
        assert_eq!(wrong(m.u32("u64").map(drop)), "m.gguf: key u64: u32 expected, u64 4294967296 found");
        assert_eq!(wrong(m.u32("f32").map(drop)), "m.gguf: key f32: u32 expected, f32 0.5 found");
        assert_eq!(wrong(m.f32("u32").map(drop)), "m.gguf: key u32: f32 expected, u32 7 found");
        assert_eq!(wrong(m.string("bool").map(drop)), "m.gguf: key bool: string expected, bool true found");
        assert_eq!(wrong(m.bool("text").map(drop)), "m.gguf: key text: bool expected, string found");
        assert_eq!(
            wrong(m.strings("nested").map(drop)),
            "m.gguf: key nested: array of strings expected, array of arrays found"
        );
        assert!(m.f32s("i32s").is_err() && m.i32s("f32s").is_err() && m.i32s("texts").is_err());
        assert_eq!(wrong(m.required::<()>("no", None)), "m.gguf: key no is missing");
    }
}
