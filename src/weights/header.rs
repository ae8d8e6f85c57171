//! The header of one safetensors file: eight bytes of length, little-endian, then JSON that gives type,
//! shape and place of each tensor in the data behind it.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::blob::{Blob, impostor};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::tensor::DType;

/// Most bytes of a header: the limit of the reference implementation (safetensors 0.8, `MAX_HEADER_SIZE`).
const MAX_HEADER: u64 = 100_000_000;

/// Most bytes of a file whose end need not be there: nothing else bounds what its header claims.
const MAX_CLAIMED: u128 = 1 << 40;

/// Bytes that give the length of the header.
pub(super) const PREFIX: u64 = 8;

pub(super) const AGAIN: &str = "the file is damaged or incomplete; download it again";
const WRITER: &str = "the file is damaged, or the program that wrote it is wrong; download it again or save it \
                      anew with the `safetensors` library";

/// The element type of a stored tensor, which smelt may not know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// One that can be read.
    Known(DType),
    /// Any other, as the file calls it, such as `F8_E4M3`.
    Unknown(String),
}

impl StoredType {
    /// The type that a header calls `name`, and the bits of one element if anybody has defined them.
    fn of(name: String) -> (StoredType, Option<usize>) {
        let name_of = de::value::StrDeserializer::<de::value::Error>::new(&name);
        let bits = safetensors::Dtype::deserialize(name_of).ok().map(|dtype| dtype.bitsize());
        let known = match name.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::Bf16,
            "F64" => DType::F64,
            "I64" => DType::I64,
            "I32" => DType::I32,
            "U8" => DType::U8,
            "BOOL" => DType::Bool,
            _ => return (StoredType::Unknown(name), bits),
        };
        (StoredType::Known(known), bits)
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoredType::Known(dtype) => dtype.fmt(f),
            StoredType::Unknown(name) => f.write_str(&shown(name)),
        }
    }
}

/// A tensor of a file.
pub(super) struct Stored {
    pub name: String,
    pub dtype: StoredType,
    pub shape: Vec<usize>,
    /// Where it is in the file, counted from the beginning.
    pub range: Range<usize>,
}

/// Reads and checks the header of a file that messages call `label`: the tensors in the order in which they
/// are stored. Their ranges follow each other without gaps and fill the file to its end; with `cut_off` the file may
/// end anywhere behind the header.
///
/// # Errors
/// `Checkpoint` if anything is wrong with the header or it does not fit the file; `Io` if that cannot be read.
pub(super) fn read(label: &str, blob: &Blob, cut_off: bool) -> Result<Vec<Stored>> {
    let len = blob.len();
    let start = blob.start(512)?;
    // No header begins like this, but lengths that do are conceivable: then a `{` follows.
    if start.get(8) != Some(&b'{')
        && let Some((what, help)) = impostor(&start)
    {
        return Err(broken(format!("`{label}`: expected a safetensors file, found {what}"), help));
    }
    if len == 0 {
        return Err(broken(format!("`{label}` is empty: expected a safetensors file"), AGAIN));
    }
    let Some(prefix) = start.first_chunk::<{ PREFIX as usize }>() else {
        return Err(broken(format!("`{label}` is cut off: expected 8 bytes or more, found {len}"), AGAIN));
    };
    let header_len = u64::from_le_bytes(*prefix);
    if header_len > MAX_HEADER {
        let message = format!(
            "`{label}`: expected a header of at most {MAX_HEADER} bytes, found a length of {header_len}"
        );
        let help = "this is probably not a safetensors file; is the name right, and the download complete?";
        return Err(broken(message, help));
    }
    // The file may have grown since it was asked for its length.
    let found = len.saturating_sub(PREFIX);
    if header_len > found {
        let message = format!("`{label}` is cut off: expected a header of {header_len} bytes, found {found}");
        return Err(broken(message, AGAIN));
    }
    let start = blob.start(PREFIX + header_len)?;
    let text = std::str::from_utf8(start.get(PREFIX as usize..).unwrap_or_default()).map_err(|e| {
        let at = e.valid_up_to();
        let message = format!("`{label}`: expected a header of UTF-8, found other bytes after its byte {at}");
        broken(message, AGAIN)
    })?;
    let tensors = parse(text).map_err(|what| broken(format!("`{label}`: {what}"), WRITER))?;
    place(label, tensors, PREFIX + header_len, len, cut_off)
}

/// Checks that the tensors fill the file, which with `cut_off` may lack its end, and finds where in it they are. `base` is
/// where data begins.
fn place(
    label: &str,
    mut infos: Vec<(String, Info)>,
    base: u64,
    len: u64,
    cut_off: bool,
) -> Result<Vec<Stored>> {
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let wrong = |what: String| broken(format!("`{label}`: {what}"), WRITER);
    let mut tensors: Vec<Stored> = Vec::with_capacity(infos.len());
    let mut end = 0;
    for (name, info) in infos {
        let [from, to] = info.data_offsets.map(|Whole(n)| n);
        let (dtype, bits) = StoredType::of(info.dtype);
        let problem = |what: String| wrong(format!("tensor `{}`: {what}", shown(&name)));
        if to < from {
            return Err(problem(format!("expected offsets that ascend, found [{from}, {to}]")));
        }
        let shape: Option<Vec<usize>> = info.shape.iter().map(|Whole(n)| usize::try_from(*n).ok()).collect();
        let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, d| n.checked_mul(*d)));
        let sizes = || shown(&format!("{:?}", info.shape));
        let (Some(shape), Some(elements)) = (shape, elements) else {
            return Err(problem(format!("expected a shape that fits into memory, found {}", sizes())));
        };
        if let Some(bits) = bits {
            let needed = elements as u128 * bits as u128;
            if needed != u128::from(to - from) * 8 {
                let needed = needed.div_ceil(8);
                let given = to - from;
                return Err(problem(format!(
                    "expected {needed} bytes for {} of {dtype}, found {given} at offsets [{from}, {to}]",
                    sizes()
                )));
            }
        }
        if from != end {
            let before = match tensors.last() {
                Some(last) => format!("right behind `{}`", shown(&last.name)),
                None => "as the first".to_owned(),
            };
            let what = if from < end { "they overlap" } else { "the bytes between belong to no tensor" };
            return Err(problem(format!(
                "expected it at offset {end}, {before}, found it at {from}: {what}"
            )));
        }
        end = to;
        // All offsets are at most `end`, and that is checked against the file below; until then they may be
        // too large to be added to.
        let at = |offset: u64| usize::try_from(base.saturating_add(offset)).unwrap_or(usize::MAX);
        tensors.push(Stored { name, dtype, shape, range: at(from)..at(to) });
    }
    let expected = u128::from(base) + u128::from(end);
    let is_short = u128::from(len) < expected;
    if expected != u128::from(len) && !(cut_off && is_short && expected <= MAX_CLAIMED) {
        let what = if is_short { "cut off" } else { "too long" };
        let message = format!("`{label}` is {what}: expected {expected} bytes, found {len}");
        return Err(broken(message, AGAIN));
    }
    Ok(tensors)
}

/// The tensors that a header lists, in its order; otherwise what is wrong with it.
fn parse(text: &str) -> Result<Vec<(String, Info)>, String> {
    let at = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    let Pairs(tensors) = json
        .deserialize_any(PairsReader { skip: Some("__metadata__"), at: &at, value: PhantomData })
        .and_then(|tensors: Pairs<Object<Info>>| json.end().map(|()| tensors))
        .map_err(|e| match at.take() {
            Some(name) => format!("invalid header, at `{}`: {}", shown(&name), shown(&e.to_string())),
            None => format!("invalid header: {}", shown(&e.to_string())),
        })?;
    match repeated(&tensors) {
        Some(name) => Err(format!("expected each tensor once in the header, found `{}` twice", shown(name))),
        None => Ok(tensors.into_iter().map(|(name, Object(info))| (name, info)).collect()),
    }
}

/// What a header says about a tensor.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<Whole>,
    data_offsets: [Whole; 2],
}

/// A whole number that is not negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Whole(u64);

impl fmt::Debug for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number that is not negative")
            }
            fn visit_u64<E>(self, n: u64) -> Result<Whole, E> {
                Ok(Whole(n))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A struct written as a map, and not as a list, which serde would take as well.
pub(super) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// The entries of a map in their order, repeated keys included, of which other types keep the last only.
pub(super) struct Pairs<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let at = RefCell::new(None);
        deserializer.deserialize_any(PairsReader { skip: None, at: &at, value: PhantomData })
    }
}

/// Reads [`Pairs`] without the values of one key, and keeps in `at` the key whose value is being read.
struct PairsReader<'a, V> {
    skip: Option<&'static str>,
    at: &'a RefCell<Option<String>>,
    value: PhantomData<V>,
}

impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsReader<'_, V> {
    type Value = Pairs<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if Some(key.as_str()) == self.skip {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.at.replace(Some(key));
            let value = map.next_value()?;
            pairs.extend(self.at.take().map(|key| (key, value)));
        }
        Ok(Pairs(pairs))
    }
}

/// A name that occurs twice.
pub(super) fn repeated<V>(pairs: &[(String, V)]) -> Option<&str> {
    let mut seen = HashSet::with_capacity(pairs.len());
    pairs.iter().map(|(name, _)| name.as_str()).find(|name| !seen.insert(*name))
}

/// Text of a file as it may stand in a message: on one line, and not endless.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == 200 {
            return out + "…";
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// An error about a checkpoint, with what to do.
pub(super) fn broken(message: impl Into<String>, help: &str) -> Error {
    Problem::new(message).help(help).into_error(ErrorKind::Checkpoint)
}
