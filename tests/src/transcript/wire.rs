//! Protobuf messages without their schema, for people to read and byte for byte the same when written again.
//!
//! In JSON, a message is a list of its fields, `[number, value]`, in the order in which they came: a number is a
//! varint, a string is text, a list is a message, and the rest says what it is. Whether bytes are a message or text
//! cannot be known: they are shown as what they look like.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

/// Messages within messages that are looked into.
const DEPTH_MAX: usize = 32;

/// A message as the bytes that it was.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message(pub Vec<u8>);

impl Message {
    /// The same message with every text in it changed by `change`.
    #[must_use]
    pub fn with_texts(&self, change: &impl Fn(&str) -> String) -> Self {
        let Some(mut fields) = fields(&self.0, DEPTH_MAX) else { return self.clone() };
        change_texts(&mut fields, change);
        Self(encode(&fields))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", to_json(&self.0))
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_json(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        let bytes = from_json(&json).ok_or_else(|| D::Error::custom(format!("no message: {json}")))?;
        Ok(Self(bytes))
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Field {
    number: u64,
    value: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Text(String),
    Message(Vec<Field>),
    Bytes(Vec<u8>),
}

fn to_json(bytes: &[u8]) -> Json {
    fields(bytes, DEPTH_MAX).map_or_else(|| json!({ "bytes": hex(bytes) }), |fields| list(&fields))
}

fn list(fields: &[Field]) -> Json {
    let value = |value: &Value| match value {
        Value::Varint(number) => json!(number),
        Value::Fixed64(bytes) => json!({ "fixed64": hex(bytes) }),
        Value::Fixed32(bytes) => json!({ "fixed32": hex(bytes) }),
        Value::Text(text) => json!(text),
        Value::Message(fields) => list(fields),
        Value::Bytes(bytes) => json!({ "bytes": hex(bytes) }),
    };
    fields.iter().map(|field| json!([field.number, value(&field.value)])).collect()
}

fn from_json(json: &Json) -> Option<Vec<u8>> {
    match json {
        Json::Object(object) => from_hex(object.get("bytes")?.as_str()?),
        json => Some(encode(&from_list(json)?)),
    }
}

fn from_list(json: &Json) -> Option<Vec<Field>> {
    let field = |json: &Json| {
        let [number, value] = json.as_array()?.as_slice() else { return None };
        Some(Field { number: number.as_u64()?, value: value_of(value)? })
    };
    json.as_array()?.iter().map(field).collect()
}

fn value_of(json: &Json) -> Option<Value> {
    let bytes = |object: &Map<String, Json>, name| from_hex(object.get(name)?.as_str()?);
    match json {
        Json::Number(number) => Some(Value::Varint(number.as_u64()?)),
        Json::String(text) => Some(Value::Text(text.clone())),
        Json::Array(_) => Some(Value::Message(from_list(json)?)),
        Json::Object(object) => bytes(object, "bytes")
            .map(Value::Bytes)
            .or_else(|| Some(Value::Fixed64(bytes(object, "fixed64")?.try_into().ok()?)))
            .or_else(|| Some(Value::Fixed32(bytes(object, "fixed32")?.try_into().ok()?))),
        Json::Null | Json::Bool(_) => None,
    }
}

/// The fields of a message; nothing if it is none, or if they would not become the same bytes again.
fn fields(bytes: &[u8], depth_max: usize) -> Option<Vec<Field>> {
    let mut left = bytes;
    let mut fields = Vec::new();
    while !left.is_empty() {
        let key = varint(&mut left)?;
        let number = key >> 3;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut left)?),
            1 => Value::Fixed64(take(&mut left, 8)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(varint(&mut left)?).ok()?;
                delimited(take(&mut left, length)?, depth_max)
            }
            5 => Value::Fixed32(take(&mut left, 4)?.try_into().ok()?),
            _ => return None,
        };
        if number == 0 {
            return None;
        }
        fields.push(Field { number, value });
    }
    (encode(&fields) == bytes).then_some(fields)
}

fn delimited(bytes: &[u8], depth_max: usize) -> Value {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(char::is_control)
    {
        return Value::Text(text.to_owned());
    }
    match depth_max.checked_sub(1).and_then(|depth_max| fields(bytes, depth_max)) {
        Some(fields) => Value::Message(fields),
        None => Value::Bytes(bytes.to_vec()),
    }
}

fn change_texts(fields: &mut [Field], change: &impl Fn(&str) -> String) {
    for field in fields {
        match &mut field.value {
            Value::Text(text) => *text = change(text),
            Value::Message(fields) => change_texts(fields, change),
            Value::Varint(_) | Value::Fixed64(_) | Value::Fixed32(_) | Value::Bytes(_) => {}
        }
    }
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value } in fields {
        let (kind, content) = match value {
            Value::Varint(value) => {
                push_varint(&mut bytes, number << 3);
                push_varint(&mut bytes, *value);
                continue;
            }
            Value::Fixed64(content) => (1, content.to_vec()),
            Value::Fixed32(content) => (5, content.to_vec()),
            Value::Text(text) => (2, text.clone().into_bytes()),
            Value::Message(fields) => (2, encode(fields)),
            Value::Bytes(content) => (2, content.clone()),
        };
        push_varint(&mut bytes, number << 3 | kind);
        if kind == 2 {
            push_varint(&mut bytes, content.len() as u64);
        }
        bytes.extend(content);
    }
    bytes
}

fn take<'a>(left: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = left.split_at_checked(count)?;
    *left = rest;
    Some(taken)
}

fn varint(left: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(left, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).expect("seven bits"));
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16).expect("half a byte");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use longshore_proto::{Message as _, reapi};

    use super::*;

    fn again(message: &Message) -> Message {
        serde_json::from_str(&serde_json::to_string(message).unwrap()).unwrap()
    }

    // What is replayed is what was recorded, whatever it was.
    #[test]
    fn every_byte_comes_back() {
        let digest = reapi::Digest { hash: "ab".repeat(32), size_bytes: -1 };
        let action = reapi::Action {
            command_digest: Some(digest),
            salt: vec![0, 255, 1],
            do_not_cache: true,
            ..Default::default()
        };
        let encoded = action.encode_to_vec();
        let samples =
            [Vec::new(), vec![0xff], vec![0x08, 0x80, 0x00], vec![0x0d, 1, 2, 3, 4], encoded.clone()];
        for bytes in samples {
            assert_eq!(again(&Message(bytes.clone())).0, bytes);
        }
        let text = serde_json::to_string(&Message(encoded)).unwrap();
        assert!(text.contains(&"ab".repeat(32)), "{text}");
    }

    #[test]
    fn texts_are_changed_wherever_they_are() {
        let digest = reapi::Digest { hash: "here".to_owned(), size_bytes: 1 };
        let action = reapi::Action { command_digest: Some(digest), ..Default::default() };
        let changed = Message(action.encode_to_vec()).with_texts(&|text| text.replace("here", "elsewhere"));
        let changed = reapi::Action::decode(changed.0.as_slice()).unwrap();
        assert_eq!(changed.command_digest.unwrap().hash, "elsewhere");
    }
}
