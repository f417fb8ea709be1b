//! The values of GGUF metadata, exactly as stored: a file's metadata can be written again to the same bytes.
//!
//! Source: the GGUF specification in ggml's repository, `docs/gguf.md`, `gguf_metadata_value_type`.

/// A metadata value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number or a truth value.
    Number(Number),
    /// A text.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// An array's values. The type of an empty one is kept too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Array {
    /// Numbers or truth values, side by side as in the file (little endian).
    Numbers {
        /// The type of each.
        ty: NumberType,
        /// A whole number of values of that type.
        bytes: Vec<u8>,
    },
    /// Texts.
    Strings(Vec<String>),
    /// Arrays, whose types may differ.
    Arrays(Vec<Array>),
}

/// The types of fixed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all")]
pub enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

/// The number in files of a string's type.
pub(crate) const STRING: u32 = 8;
/// The number in files of an array's type.
pub(crate) const ARRAY: u32 = 9;

impl NumberType {
    const ALL: [Self; 11] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with the number `id` in files.
    pub(crate) fn of_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// Its number in files.
    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::U8 => 0,
            Self::I8 => 1,
            Self::U16 => 2,
            Self::I16 => 3,
            Self::U32 => 4,
            Self::I32 => 5,
            Self::F32 => 6,
            Self::Bool => 7,
            Self::U64 => 10,
            Self::I64 => 11,
            Self::F64 => 12,
        }
    }

    /// Bytes of one.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Its name, as errors spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// A number or a truth value, with its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    ty: NumberType,
    /// Its bytes in the file, little endian, above them zeros.
    bits: u64,
}

impl Number {
    /// The number whose bytes in a file are the first of `bytes`.
    pub(crate) fn read(ty: NumberType, bytes: &[u8]) -> Self {
        let mut whole = [0; 8];
        for (to, from) in whole.iter_mut().zip(bytes.iter().take(ty.bytes())) {
            *to = *from;
        }
        Self { ty, bits: u64::from_le_bytes(whole) }
    }

    /// Its bytes in a file.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bits.to_le_bytes()[..self.ty.bytes()]);
    }

    /// Its type.
    pub const fn ty(self) -> NumberType {
        self.ty
    }

    /// Its value; `None` when it is no integer.
    pub const fn as_integer(self) -> Option<i128> {
        match self.ty {
            NumberType::U8 | NumberType::U16 | NumberType::U32 | NumberType::U64 => Some(self.bits as i128),
            NumberType::I8 => Some(self.bits as i8 as i128),
            NumberType::I16 => Some(self.bits as i16 as i128),
            NumberType::I32 => Some(self.bits as i32 as i128),
            NumberType::I64 => Some(self.bits as i64 as i128),
            NumberType::F32 | NumberType::F64 | NumberType::Bool => None,
        }
    }

    /// Its value, exactly; `None` when it is no floating-point number.
    pub const fn as_f64(self) -> Option<f64> {
        match self.ty {
            NumberType::F32 => Some(f32::from_bits(self.bits as u32) as f64),
            NumberType::F64 => Some(f64::from_bits(self.bits)),
            _ => None,
        }
    }

    /// Its value; `None` when it is no truth value.
    pub const fn as_bool(self) -> Option<bool> {
        match self.ty {
            NumberType::Bool => Some(self.bits != 0),
            _ => None,
        }
    }

    /// Its value in decimal.
    pub(crate) fn text(self) -> String {
        let integer = self.as_integer().map(|value| value.to_string());
        let float = self.as_f64().map(|value| value.to_string());
        integer.or(float).unwrap_or_else(|| (self.bits != 0).to_string())
    }
}

impl Value {
    /// Its type, as errors spell it.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Number(number) => number.ty.name(),
            Self::String(_) => "string",
            Self::Array(Array::Strings(_)) => "array of strings",
            Self::Array(Array::Numbers { .. }) => "array of numbers",
            Self::Array(Array::Arrays(_)) => "array of arrays",
        }
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Number(Number::read(NumberType::U32, &value.to_le_bytes()))
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::Number(Number::read(NumberType::F32, &value.to_le_bytes()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Number(Number::read(NumberType::Bool, &[u8::from(value)]))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Self::Array(Array::Strings(values))
    }
}

impl From<&[f32]> for Value {
    fn from(values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::Array(Array::Numbers { ty: NumberType::F32, bytes })
    }
}

impl From<&[i32]> for Value {
    fn from(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::Array(Array::Numbers { ty: NumberType::I32, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_signs_and_bytes() {
        for ty in NumberType::ALL {
            assert_eq!(NumberType::of_id(ty.id()), Some(ty));
            let ones = Number::read(ty, &[0xff; 8]);
            let expected = match ty {
                NumberType::U8 => Some(255),
                NumberType::U16 => Some(65_535),
                NumberType::U32 => Some(i128::from(u32::MAX)),
                NumberType::U64 => Some(i128::from(u64::MAX)),
                NumberType::I8 | NumberType::I16 | NumberType::I32 | NumberType::I64 => Some(-1),
                NumberType::F32 | NumberType::F64 | NumberType::Bool => None,
            };
            assert_eq!(ones.as_integer(), expected, "{}", ty.name());
            let mut written = Vec::new();
            ones.write(&mut written);
            assert_eq!(written, vec![0xff; ty.bytes()]);
        }
        assert_eq!(Number::read(NumberType::F32, &1.5f32.to_le_bytes()).as_f64(), Some(1.5));
        assert_eq!(Number::read(NumberType::F64, &1e300f64.to_le_bytes()).as_f64(), Some(1e300));
        assert_eq!(Number::read(NumberType::Bool, &[1]).as_bool(), Some(true));
        assert_eq!(Number::read(NumberType::U8, &[1]).as_bool(), None);
        assert_eq!(NumberType::of_id(STRING).or(NumberType::of_id(ARRAY)).or(NumberType::of_id(13)), None);
    }
}
