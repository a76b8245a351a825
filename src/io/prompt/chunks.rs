//! Where pictures keep texts: text chunks of a PNG, and EXIF in a PNG, JPEG or WebP. Pixels are passed over.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use png::{DecodeOptions, Decoded, StreamingDecoder};

use super::error::{Candidate, PromptError};

/// The most bytes of text, unpacked, that are taken from one picture; also the most bytes of EXIF.
pub(super) const MOST: usize = 16 << 20;

/// The keywords of the text chunks that are read.
const KEYWORDS: [&str; 2] = ["parameters", "prompt"];

/// The first bytes of a PNG of one pixel: after them, the decoder takes any other chunk.
const PNG_START: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55";

/// What stands before EXIF in a JPEG, and wrongly in some WebP.
const EXIF_START: &[u8] = b"Exif\0\0";

/// A text, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub value: String,
    pub part: String,
    pub at: u64,
}

/// EXIF, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exif {
    pub bytes: Vec<u8>,
    part: &'static str,
    at: u64,
}

/// The parts of a picture that may say what made it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub parameters: Option<Text>,
    pub prompt: Option<Text>,
    pub exif: Option<Exif>,
    pub warnings: Vec<String>,
}

impl Exif {
    pub(super) fn damaged(&self, path: &Path, reason: String) -> PromptError {
        damaged(path, self.part, self.at, reason)
    }

    pub(super) fn text(&self, part: &str, value: String) -> Text {
        Text { value, part: part.to_owned(), at: self.at }
    }
}

pub(super) fn damaged(
    path: &Path,
    part: impl Into<String>,
    at: u64,
    reason: impl Into<String>,
) -> PromptError {
    PromptError::Damaged { path: path.into(), part: part.into(), at, reason: reason.into() }
}

/// Reads the metadata of a PNG, JPEG or WebP of this length; of any other file, none. Messages name the path.
pub(super) fn read(path: &Path, file: impl Read + Seek, length: u64) -> Result<Metadata, PromptError> {
    let mut picture = Picture { path, length, file };
    match picture.array::<12>(0)? {
        Some([0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..]) => picture.png(),
        Some([0xff, 0xd8, 0xff, ..]) => picture.jpeg(),
        Some([b'R', b'I', b'F', b'F', a, b, c, d, b'W', b'E', b'B', b'P']) => {
            picture.webp(u32::from_le_bytes([a, b, c, d]))
        }
        _ => Ok(Metadata::default()),
    }
}

struct Picture<'a, F> {
    path: &'a Path,
    file: F,
    length: u64,
}

impl<F: Read + Seek> Picture<'_, F> {
    /// These bytes, or none if the file ends before.
    fn bytes(&mut self, at: u64, count: u64) -> io::Result<Option<Vec<u8>>> {
        if at.saturating_add(count) > self.length {
            return Ok(None);
        }
        self.file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        self.file.by_ref().take(count).read_to_end(&mut bytes)?;
        Ok(Some(bytes).filter(|bytes| bytes.len() as u64 == count))
    }

    fn array<const N: usize>(&mut self, at: u64) -> io::Result<Option<[u8; N]>> {
        Ok(self.bytes(at, N as u64)?.and_then(|bytes| bytes.try_into().ok()))
    }

    /// All bytes of a part that may hold the text.
    fn part(&mut self, part: &str, at: u64, count: u64) -> Result<Vec<u8>, PromptError> {
        if count > MOST as u64 {
            return Err(damaged(
                self.path,
                part,
                at,
                format!("it has {count} bytes, expected at most {MOST}"),
            ));
        }
        self.bytes(at, count)?.ok_or_else(|| damaged(self.path, part, at, "the file is cut off in it"))
    }

    /// What was found before the file ended too early. If that is nothing, something may be missing.
    fn cut_off(&self, found: Metadata, at: u64) -> Result<Metadata, PromptError> {
        match found {
            Metadata { parameters: None, prompt: None, exif: None, .. } => {
                Err(damaged(self.path, "the file", at, "it is cut off in the part that begins there"))
            }
            found => Ok(found),
        }
    }

    fn png(&mut self) -> Result<Metadata, PromptError> {
        let (mut found, mut at, mut left) = (Metadata::default(), 8, MOST);
        loop {
            let Some([a, b, c, d, kind @ ..]) = self.array::<8>(at)? else { return self.cut_off(found, at) };
            let size = u64::from(u32::from_be_bytes([a, b, c, d]));
            match &kind {
                b"tEXt" | b"zTXt" | b"iTXt" => {
                    if let Some(keyword) = self.keyword(at + 8, size)? {
                        let part = format!("the chunk {} `{keyword}`", kind.escape_ascii());
                        let chunk = self.part(&part, at, size + 12)?;
                        let (value, utf8) =
                            decoded(&chunk, left).map_err(|reason| damaged(self.path, &*part, at, reason))?;
                        left -= value.len().min(left);
                        if utf8 {
                            found
                                .warnings
                                .push(format!("{part} is read as UTF-8, though its kind holds Latin-1"));
                        }
                        let place =
                            if keyword == KEYWORDS[0] { &mut found.parameters } else { &mut found.prompt };
                        self.keep(place, Text { value, part, at })?;
                    }
                }
                b"eXIf" => {
                    let (part, start) = ("the chunk eXIf", at + 8);
                    found.exif = Some(Exif { bytes: self.part(part, start, size)?, part, at: start });
                }
                b"IEND" => return Ok(found),
                _ => {}
            }
            if at + size + 12 > self.length {
                return self.cut_off(found, at);
            }
            at += size + 12;
        }
    }

    /// The keyword of a text chunk, if it is one that is read.
    fn keyword(&mut self, at: u64, size: u64) -> io::Result<Option<&'static str>> {
        let longest = KEYWORDS.map(str::len).into_iter().max().unwrap_or_default() as u64 + 1;
        let bytes =
            self.bytes(at, size.min(longest).min(self.length.saturating_sub(at)))?.unwrap_or_default();
        let begins = |keyword: &&str| {
            bytes.strip_prefix(keyword.as_bytes()).is_some_and(|rest| rest.starts_with(b"\0"))
        };
        Ok(KEYWORDS.into_iter().find(begins))
    }

    /// Keeps a text. Another one of the same keyword must be equal.
    fn keep(&self, place: &mut Option<Text>, text: Text) -> Result<(), PromptError> {
        match place {
            Some(first) if first.value != text.value => {
                let candidate = |text: &Text| Candidate {
                    place: format!("{} at byte {}", text.part, text.at),
                    text: text.value.clone(),
                };
                Err(PromptError::Several {
                    path: self.path.into(),
                    candidates: vec![candidate(first), candidate(&text)],
                })
            }
            _ => {
                place.get_or_insert(text);
                Ok(())
            }
        }
    }

    fn jpeg(&mut self) -> Result<Metadata, PromptError> {
        let (mut found, mut at) = (Metadata::default(), 2);
        loop {
            let kind = match self.array(at)? {
                Some([0xff, kind]) => kind,
                Some(_) => return Err(damaged(self.path, "the file", at, "expected a segment there")),
                None => return self.cut_off(found, at),
            };
            match kind {
                // A byte between segments; a marker without a segment.
                0xff => at += 1,
                0x01 | 0xd0..=0xd7 => at += 2,
                // The pixels, the end: EXIF comes before them.
                0xda | 0xd9 => return Ok(found),
                _ => {
                    let Some(size) = self.array(at + 2)? else { return self.cut_off(found, at) };
                    let (part, size) = ("the segment APP1", u64::from(u16::from_be_bytes(size)));
                    let start = self.array::<6>(at + 4)?;
                    if kind == 0xe1 && size >= 8 && start.is_some_and(|start| start == *EXIF_START) {
                        let bytes = self.part(part, at + 10, size - 8)?;
                        found.exif = Some(Exif { bytes, part, at: at + 10 });
                        return Ok(found);
                    }
                    at += 2 + size.max(2);
                }
            }
        }
    }

    fn webp(&mut self, size: u32) -> Result<Metadata, PromptError> {
        let (mut found, mut at, end) = (Metadata::default(), 12, u64::from(size) + 8);
        while at < end {
            let Some([kind @ .., a, b, c, d]) = self.array::<8>(at)? else { return self.cut_off(found, at) };
            let size = u64::from(u32::from_le_bytes([a, b, c, d]));
            if kind == *b"EXIF" {
                let part = "the chunk EXIF";
                let mut bytes = self.part(part, at + 8, size)?;
                if bytes.starts_with(EXIF_START) {
                    bytes.drain(..EXIF_START.len());
                }
                found.exif = Some(Exif { bytes, part, at: at + 8 });
                return Ok(found);
            }
            at += 8 + size + size % 2;
        }
        Ok(found)
    }
}

/// The text of a chunk, given from its length to its checksum, and whether it is UTF-8 in place of Latin-1.
///
/// # Errors
/// What is wrong, in words.
fn decoded(chunk: &[u8], left: usize) -> Result<(String, bool), String> {
    let too_long = || format!("its text is damaged or longer than {left} bytes");
    let mut options = DecodeOptions::default();
    options.set_skip_ancillary_crc_failures(false);
    let mut decoder = StreamingDecoder::new_with_options(options);
    for mut rest in [PNG_START, chunk] {
        while !rest.is_empty() {
            let (used, event) = decoder.update(rest, None).map_err(|error| error.to_string())?;
            if let Decoded::BadAncillaryChunk(_) = event {
                return Err("its fields or the encoding of its text are not those of its kind".into());
            }
            rest = &rest[used..];
        }
    }
    let info = decoder.info().cloned().unwrap_or_default();
    if let Some(mut text) = info.utf8_text.into_iter().next() {
        text.decompress_text_with_limit(left).map_err(|_| too_long())?;
        return Ok((text.get_text().map_err(|error| error.to_string())?, false));
    }
    let text = match (
        info.uncompressed_latin1_text.into_iter().next(),
        info.compressed_latin1_text.into_iter().next(),
    ) {
        (Some(text), _) => text.text,
        (None, Some(mut text)) => {
            text.decompress_text_with_limit(left).map_err(|_| too_long())?;
            text.get_text().map_err(|error| error.to_string())?
        }
        (None, None) => return Err("it holds no text".into()),
    };
    if text.is_ascii() {
        return Ok((text, false));
    }
    // Some programs write UTF-8 here. What is valid as such was hardly meant to be Latin-1.
    match String::from_utf8(text.chars().map(|letter| letter as u8).collect()) {
        Ok(text) => Ok((text, true)),
        Err(_) => Ok((text, false)),
    }
}
