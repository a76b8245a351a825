//! The texts in EXIF: the comment that AUTOMATIC1111's program writes, and the graph that ComfyUI writes.

use ::exif::{In, Reader, Tag, Value};

use super::chunks::Exif;

/// The texts of interest, not yet interpreted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub comment: Option<Comment>,
    pub graph: Option<String>,
}

/// The field `UserComment`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Comment {
    pub text: String,
    /// Why it is damaged, with `U+FFFD` where it is. Cameras write comments too, which need not be valid.
    pub broken: Option<String>,
}

/// The codes that begin a comment.
const UNICODE: &[u8] = b"UNICODE\0";
const ASCII: &[u8] = b"ASCII\0\0\0";
const JIS: &[u8] = b"JIS\0\0\0\0\0";
const UNDEFINED: &[u8] = &[0; 8];

/// ComfyUI writes this before its graph.
const GRAPH: &[u8] = b"prompt:";

/// Reads the fields.
///
/// # Errors
/// What is wrong, in words. Damage elsewhere than in a comment does not count.
pub(super) fn fields(exif: &Exif) -> Result<Fields, String> {
    if exif.bytes.is_empty() {
        return Ok(Fields::default());
    }
    let mut errors = Vec::new();
    let read = Reader::new()
        .continue_on_error(true)
        .read_raw(exif.bytes.clone())
        .or_else(|error| error.distill_partial_result(|all| errors = all))
        .map_err(|error| format!("not EXIF: {error}"))?;
    let value = |tag| read.get_field(tag, In::PRIMARY).map(|field| &field.value);
    let comment = match value(Tag::UserComment) {
        Some(Value::Undefined(bytes, _) | Value::Byte(bytes)) => comment(bytes, read.little_endian()),
        Some(Value::Ascii(texts)) => texts.first().and_then(|bytes| comment(bytes, false)),
        _ => None,
    };
    let graph = match value(Tag::Model) {
        Some(Value::Ascii(texts)) => texts.first().and_then(|bytes| bytes.strip_prefix(GRAPH)),
        _ => None,
    };
    let begins_comment = |bytes: &[u8]| bytes == UNICODE || bytes.starts_with(GRAPH);
    match errors.first() {
        Some(error) if comment.is_none() && graph.is_none() && read.buf().windows(8).any(begins_comment) => {
            Err(format!("its fields cannot be read: {error}"))
        }
        _ => Ok(Fields { comment, graph: graph.map(|bytes| String::from_utf8_lossy(bytes).into_owned()) }),
    }
}

/// Decodes a comment; `little_endian` is the byte order of the other fields.
fn comment(bytes: &[u8], little_endian: bool) -> Option<Comment> {
    if bytes.starts_with(JIS) {
        return None;
    }
    let comment = match bytes.strip_prefix(UNICODE) {
        // Before EXIF 3.0 this is UTF-16, in which a space or a letter of English has a zero byte.
        Some(text) if text.contains(&0) => utf16(text, little_endian),
        Some(text) => utf8(text).filter(|text| text.broken.is_none()).or_else(|| utf16(text, little_endian)),
        None => utf8([ASCII, UNDEFINED].iter().find_map(|code| bytes.strip_prefix(*code)).unwrap_or(bytes)),
    };
    comment.filter(|comment| !comment.text.is_empty())
}

fn trimmed(text: &str) -> String {
    text.trim_start_matches('\u{feff}').trim_end_matches('\0').to_owned()
}

fn utf8(bytes: &[u8]) -> Option<Comment> {
    let broken = std::str::from_utf8(bytes).err().map(|error| {
        let at = error.valid_up_to();
        format!("byte {at} of its comment, {:#04x}, is not UTF-8", bytes.get(at).copied().unwrap_or_default())
    });
    Some(Comment { text: trimmed(&String::from_utf8_lossy(bytes)), broken })
}

/// Decodes UTF-16. Neither the standard nor practice fixes the byte order. A mark decides, or else the order
/// in which more letters are ASCII, or else the order of the other fields.
fn utf16(bytes: &[u8], little_endian: bool) -> Option<Comment> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let ascii =
        |read: fn([u8; 2]) -> u16| pairs.iter().filter(|pair| (1..0x80).contains(&read(**pair))).count();
    let (little, big) = (ascii(u16::from_le_bytes), ascii(u16::from_be_bytes));
    let little_endian = match pairs.first() {
        Some([0xff, 0xfe]) => true,
        Some([0xfe, 0xff]) => false,
        _ if little == big => little_endian,
        _ => little > big,
    };
    let units = pairs.iter().map(|pair| match little_endian {
        true => u16::from_le_bytes(*pair),
        false => u16::from_be_bytes(*pair),
    });
    let (mut text, mut broken) = (String::new(), None);
    if rest.iter().any(|byte| *byte != 0) {
        broken = Some("its comment has an odd number of bytes, expected UTF-16".to_owned());
    }
    for letter in char::decode_utf16(units) {
        text.push(letter.unwrap_or_else(|error| {
            let unit = error.unpaired_surrogate();
            broken.get_or_insert_with(|| format!("its comment has {unit:#06x} alone, which is not UTF-16"));
            char::REPLACEMENT_CHARACTER
        }));
    }
    Some(Comment { text: trimmed(&text), broken })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a cat 猫\nSteps: 20, Sampler: Euler, Seed: 1";

    fn units(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn comments_are_decoded_by_code_and_content() {
        let (be, le) = (u16::to_be_bytes, u16::to_le_bytes);
        let plain = TEXT.replace('猫', "x");
        let table: [(&str, &[u8], Vec<u8>, &str); 10] = [
            ("UTF-16 BE", UNICODE, units(TEXT, be), TEXT),
            ("UTF-16 LE", UNICODE, units(TEXT, le), TEXT),
            ("BE with a mark", UNICODE, units(&format!("\u{feff}{TEXT}"), be), TEXT),
            ("LE with a mark", UNICODE, units("\u{feff}猫", le), "猫"),
            ("zeros at the end", UNICODE, [units(TEXT, le), vec![0; 3]].concat(), TEXT),
            ("UTF-8 as in EXIF 3.0", UNICODE, TEXT.into(), TEXT),
            ("ASCII", ASCII, plain.clone().into(), &plain),
            ("UTF-8 in place of ASCII", ASCII, TEXT.into(), TEXT),
            ("undefined", UNDEFINED, TEXT.into(), TEXT),
            ("no code", b"", TEXT.into(), TEXT),
        ];
        for (what, code, bytes, expected) in table {
            for little_endian in [false, true] {
                let found = comment(&[code, &bytes].concat(), little_endian).unwrap();
                assert_eq!(found, Comment { text: expected.into(), broken: None }, "{what}, {little_endian}");
            }
        }
    }

    #[test]
    fn the_order_of_the_fields_decides_where_the_text_does_not() {
        // Not UTF-8, and no letter is ASCII in either order.
        let bytes = [UNICODE, &[0x73, 0x2b, 0x82, 0x72]].concat();
        assert_eq!(comment(&bytes, false).unwrap().text, "\u{732b}\u{8272}");
        assert_eq!(comment(&bytes, true).unwrap().text, "\u{2b73}\u{7282}");
    }

    #[test]
    fn broken_comments_are_read_as_far_as_they_go() {
        let table: [(&[u8], &str); 3] = [
            (b"ASCII\0\0\0Steps\xff", "byte 5 of its comment, 0xff, is not UTF-8"),
            (b"UNICODE\0\0a\0b\x07", "its comment has an odd number of bytes, expected UTF-16"),
            (b"UNICODE\0\0a\xd8\x01\0b", "its comment has 0xd801 alone, which is not UTF-16"),
        ];
        for (bytes, expected) in table {
            assert_eq!(comment(bytes, false).unwrap().broken.as_deref(), Some(expected));
        }
        assert_eq!(comment(b"JIS\0\0\0\0\0abc", false), None);
        assert_eq!(comment(&[0; 12], false), None);
    }
}
