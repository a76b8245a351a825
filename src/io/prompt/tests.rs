//! Pictures made by hand: PNG with each kind of text chunk, JPEG and WebP with EXIF; damaged and other files.

use std::io::Cursor;

use png::chunk::{ChunkType, eXIf, iTXt, tEXt, zTXt};
use png::text_metadata::{ITXtChunk, TEXtChunk, ZTXtChunk};

use super::*;

const TEXT: &str =
    "a cat, <lora:x:0.8>\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x512";
const GRAPH: &str = r#"{
    "3": {"class_type": "KSampler", "inputs": {"model": ["4", 0], "positive": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["4", 1]}}
}"#;

type Writer<'a> = png::Writer<&'a mut Vec<u8>>;
type Write<'a> = &'a dyn Fn(&mut Writer<'_>);

/// A PNG of a pixel, with what is written before and after it.
fn png(before: impl Fn(&mut Writer<'_>), after: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::new(&mut bytes, 1, 1).write_header().unwrap();
    before(&mut writer);
    writer.write_image_data(&[7]).unwrap();
    after(&mut writer);
    writer.finish().unwrap();
    bytes
}

fn with_chunk(kind: ChunkType, data: &[u8]) -> Vec<u8> {
    png(|writer| writer.write_chunk(kind, data).unwrap(), |_| {})
}

fn with_text(keyword: &str, text: &str) -> Vec<u8> {
    png(|writer| writer.write_text_chunk(&TEXtChunk::new(keyword, text)).unwrap(), |_| {})
}

/// EXIF with one field in the main directory, and one in that of the camera.
fn exif(big_endian: bool, model: &[u8], comment: &[u8]) -> Vec<u8> {
    let short = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let long =
        |value: usize| if big_endian { (value as u32).to_be_bytes() } else { (value as u32).to_le_bytes() };
    let field =
        |tag, kind, count, value| [&short(tag)[..], &short(kind), &long(count), &long(value)].concat();
    let (first, second) = (8, 8 + 2 + 2 * 12 + 4);
    let values = second + 2 + 12 + 4;
    [
        if big_endian { &b"MM\0*"[..] } else { b"II*\0" },
        &long(first),
        &short(2),
        &field(0x0110, 2, model.len(), values),
        &field(0x8769, 4, 1, second),
        &long(0),
        &short(1),
        &field(0x9286, 7, comment.len(), values + model.len()),
        &long(0),
        model,
        comment,
    ]
    .concat()
}

fn unicode(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    [&b"UNICODE\0"[..], &text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()].concat()
}

fn jpeg(exif: &[u8]) -> Vec<u8> {
    let length = (exif.len() as u16 + 8).to_be_bytes();
    let (start, other) = (&b"\xff\xd8\xff\xe0\0\x04JF\xff\xfe\0\x03!"[..], b"\xff\xff\xe1\0\x06http");
    [start, other, &[0xff, 0xe1], &length, b"Exif\0\0", exif, b"\xff\xda\0\x02\x12\x34\xff\xd9"].concat()
}

fn webp(exif: &[u8]) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let padding = &[0][..data.len() % 2];
        [&kind[..], &(data.len() as u32).to_le_bytes(), data, padding].concat()
    };
    let chunks = [chunk(b"VP8X", &[8; 10]), chunk(b"VP8L", &[1; 7]), chunk(b"EXIF", exif)].concat();
    [&b"RIFF"[..], &(chunks.len() as u32 + 4).to_le_bytes(), b"WEBP", &chunks].concat()
}

fn read_bytes(bytes: &[u8]) -> Result<Option<Found>, PromptError> {
    read_from(Path::new("a.png"), Cursor::new(bytes), bytes.len() as u64)
}

/// The message, without the path.
fn refused(bytes: &[u8]) -> String {
    let error = read_bytes(bytes).unwrap_err().to_string();
    error.split_once(": ").unwrap().1.to_owned()
}

#[test]
fn each_kind_of_text_chunk_is_read_before_and_after_the_pixels() {
    let mut packed = ITXtChunk::new("parameters", format!("猫 {TEXT}"));
    packed.compressed = true;
    packed.language_tag = "en".to_owned();
    packed.translated_keyword = "パラメータ".to_owned();
    let (plain, zipped) = (TEXtChunk::new("parameters", TEXT), ZTXtChunk::new("parameters", TEXT));
    let unpacked = ITXtChunk::new("parameters", format!("猫 {TEXT}"));
    let other = TEXtChunk::new("Software", "Parameters");
    let write: [(Write<'_>, &str); 4] = [
        (&|writer| writer.write_text_chunk(&plain).unwrap(), "a cat, <lora:x:0.8>"),
        (&|writer| writer.write_text_chunk(&zipped).unwrap(), "a cat, <lora:x:0.8>"),
        (&|writer| writer.write_text_chunk(&unpacked).unwrap(), "猫 a cat, <lora:x:0.8>"),
        (&|writer| writer.write_text_chunk(&packed).unwrap(), "猫 a cat, <lora:x:0.8>"),
    ];
    for (write, prompt) in write {
        let others = |writer: &mut Writer<'_>| writer.write_text_chunk(&other).unwrap();
        for bytes in [png(write, others), png(others, write), png(write, write)] {
            let found = read_bytes(&[&bytes[..], b"more"].concat()).unwrap().unwrap();
            assert_eq!((found.source, found.prompt.as_str()), (Source::A1111, prompt));
            assert_eq!(found.negative.as_deref(), Some("ugly"));
            assert_eq!((found.settings.len(), found.settings["Size"].as_str()), (4, "512x512"));
            let warning =
                "1 LoRA tag (<lora:x:0.8>) is part of the text: set prompt_syntax = \"a1111\" to strip it";
            assert_eq!(found.warnings, [warning]);
        }
    }
}

#[test]
fn exif_of_jpeg_webp_and_png_is_read_in_either_byte_order() {
    let prompt = "a cat 猫, <lora:x:0.8>";
    let text = TEXT.replace("cat", "cat 猫");
    for big_endian in [true, false] {
        for comment in [
            unicode(&text, u16::to_be_bytes),
            unicode(&text, u16::to_le_bytes),
            [b"ASCII\0\0\0", text.as_bytes()].concat(),
        ] {
            let exif = exif(big_endian, b"a camera\0", &comment);
            let with_start = [b"Exif\0\0", &exif[..]].concat();
            for picture in [jpeg(&exif), webp(&exif), webp(&with_start), with_chunk(eXIf, &exif)] {
                let found = read_bytes(&picture).unwrap().unwrap();
                assert_eq!((found.prompt.as_str(), found.negative.as_deref()), (prompt, Some("ugly")));
            }
        }
    }
}

#[test]
fn a_graph_is_read_from_png_and_exif() {
    let model = format!("prompt:{GRAPH}\0");
    let exif = exif(false, model.as_bytes(), b"ASCII\0\0\0Screenshot");
    for picture in [with_text("prompt", GRAPH), webp(&exif), jpeg(&exif)] {
        let found = read_bytes(&picture).unwrap().unwrap();
        assert_eq!((found.source, found.prompt.as_str()), (Source::ComfyUi, "a dog"));
        assert_eq!(found.warnings, Vec::<String>::new());
    }
    let exif = self::exif(true, b"prompt:{\0", b"");
    let error = refused(&webp(&exif));
    assert!(
        error.starts_with("the EXIF field Model at byte 54 is damaged: its graph is not JSON"),
        "{error}"
    );
}

#[test]
fn written_text_comes_before_the_graph_and_another_one_is_said() {
    let both = |text: &str, graph: &str| {
        let (text, graph) = (TEXtChunk::new("parameters", text), TEXtChunk::new("prompt", graph));
        let bytes = png(
            |writer| {
                writer.write_text_chunk(&graph).unwrap();
                writer.write_text_chunk(&text).unwrap();
            },
            |_| {},
        );
        read_bytes(&bytes).unwrap().unwrap()
    };
    let settings = "Steps: 20, Sampler: x, Seed: 5";
    assert_eq!(both(&format!("a dog\n{settings}"), GRAPH).warnings, Vec::<String>::new());
    assert_eq!(both(&format!("a cat\n{settings}"), "{").prompt, "a cat");
    let found = both(&format!("a cat\n{settings}"), GRAPH);
    assert_eq!((found.source, found.prompt.as_str()), (Source::A1111, "a cat"));
    assert_eq!(found.warnings, ["the ComfyUI graph has another text, which is not taken: \"a dog\""]);
    // JSON of another program.
    assert_eq!(both("{\"sui_image_params\": {}}", GRAPH).source, Source::ComfyUi);
    assert_eq!(both(settings, GRAPH).warnings[1], "the prompt is empty");
}

#[test]
fn two_texts_of_one_keyword_are_listed() {
    let write = |text: &'static str| {
        move |writer: &mut Writer<'_>| writer.write_text_chunk(&TEXtChunk::new("parameters", text)).unwrap()
    };
    assert_eq!(
        refused(&png(write("a cat"), write("a dog"))),
        "2 texts may have made this picture: the chunk tEXt `parameters` at byte 33: \"a cat\"; the \
         chunk tEXt `parameters` at byte 83: \"a dog\"; give the caption yourself"
    );
}

#[test]
fn latin_1_is_read_and_utf_8_in_its_place_too() {
    let read = |text: &[u8]| {
        let bytes = [b"parameters\0", text, b"\nSteps: 1, Sampler: x, Seed: 5"].concat();
        let found = read_bytes(&with_chunk(tEXt, &bytes)).unwrap().unwrap();
        (found.prompt, found.warnings.len())
    };
    assert_eq!(read(b"caf\xe9"), ("café".to_owned(), 0));
    assert_eq!(read("café".as_bytes()), ("café".to_owned(), 1));
}

#[test]
fn damage_is_named_with_its_place() {
    let whole = with_text("parameters", TEXT);
    let mut flipped = whole.clone();
    flipped[60] ^= 1;
    let begins = "the chunk tEXt `parameters` at byte 33 is damaged: CRC error";
    assert!(refused(&flipped).starts_with(begins), "{}", refused(&flipped));
    assert_eq!(
        refused(&whole[..60]),
        "the chunk tEXt `parameters` at byte 33 is damaged: the file is cut off in it"
    );
    assert_eq!(
        refused(&with_chunk(iTXt, b"parameters\0\0\0\0\0a \xff")),
        "the chunk iTXt `parameters` at byte 33 is damaged: its fields or the encoding of its text are not \
         those of its kind"
    );
    assert_eq!(
        refused(&with_chunk(zTXt, b"parameters\0\0no zlib")),
        "the chunk zTXt `parameters` at byte 33 is damaged: its text is damaged or longer than 16777216 bytes"
    );
    // A chunk that does not matter may be damaged; what comes before the end of the file is read.
    assert_eq!(read_bytes(&with_chunk(iTXt, b"Author\0\x07")).unwrap(), None);
    assert!(read_bytes(&whole[..whole.len() - 12]).unwrap().is_some());
    let plain = png(|_| {}, |_| {});
    assert_eq!(
        refused(&plain[..plain.len() - 12]),
        format!(
            "the file at byte {} is damaged: it is cut off in the part that begins there",
            plain.len() - 12
        )
    );
    let comment = unicode(TEXT, u16::to_be_bytes);
    let (exif, broken) =
        (exif(true, b"a camera\0", &comment), exif(true, b"a camera\0", &[&comment[..], b"!"].concat()));
    let jpeg = jpeg(&exif);
    let place = "the segment APP1 at byte 32 is damaged: ";
    assert_eq!(refused(&jpeg[..60]), format!("{place}the file is cut off in it"));
    assert_eq!(
        refused(&jpeg[..14]),
        "the file at byte 13 is damaged: it is cut off in the part that begins there"
    );
    for (bytes, reason) in [
        (&b"XX"[..], "not EXIF: Truncated TIFF header"),
        (b"XX\0*\0\0\0\x08", "not EXIF: Invalid TIFF byte order"),
        (&exif[..exif.len() - 1], "its fields cannot be read: Truncated field value"),
        (&broken, "its comment has an odd number of bytes, expected UTF-16"),
    ] {
        assert_eq!(refused(&self::jpeg(bytes)), format!("{place}{reason}"));
    }
    assert!(
        refused(&webp(&exif)[..80]).starts_with("the chunk EXIF at byte 54 is damaged: the file is cut off")
    );
}

#[test]
fn a_bomb_is_refused() {
    let zeros = |length: usize| {
        let text = "0".repeat(length);
        png(
            |writer| {
                let mut chunk = ITXtChunk::new("prompt", text.clone());
                chunk.compressed = true;
                writer.write_text_chunk(&chunk).unwrap();
                writer.write_text_chunk(&ZTXtChunk::new("parameters", text.clone())).unwrap();
            },
            |_| {},
        )
    };
    let bomb = zeros(chunks::MOST + 1);
    assert!(bomb.len() < 1 << 20);
    let error = refused(&bomb);
    assert!(error.ends_with("its text is damaged or longer than 16777216 bytes"), "{error}");
    // All texts of a picture count together.
    let error = refused(&zeros(chunks::MOST / 2 + 1));
    assert!(error.ends_with("its text is damaged or longer than 8388607 bytes"), "{error}");
    let mut long = with_chunk(tEXt, b"parameters\0a");
    long[33..37].copy_from_slice(&(1_u32 << 30).to_be_bytes());
    assert_eq!(
        refused(&long),
        "the chunk tEXt `parameters` at byte 33 is damaged: it has 1073741836 bytes, expected at most \
         16777216"
    );
}

#[test]
fn other_files_say_nothing() {
    let camera = exif(true, b"a camera\0", b"ASCII\0\0\0a holiday \xff");
    for bytes in [
        &b""[..],
        b"\xff\xd8",
        b"GIF89a and more bytes",
        b"<html>not found</html>",
        &png(|_| {}, |_| {}),
        &with_text("prompt", "a cat"),
        &with_text("parameters2", TEXT),
        &with_text("Parameters", TEXT),
        &jpeg(b""),
        &jpeg(&camera),
        &webp(&camera),
        &with_chunk(eXIf, &camera),
        b"RIFF\x04\0\0\0WEBP",
    ] {
        assert_eq!(read_bytes(bytes).unwrap(), None, "{}", bytes.escape_ascii());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    fs_err::write(&path, with_text("prompt", GRAPH)).unwrap();
    assert_eq!(read(&path).unwrap().unwrap().prompt, "a dog");
    for path in [folder.path().join("none.png"), folder.path().to_owned()] {
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn files_that_are_cut_or_changed_anywhere_do_no_harm() {
    let exif = exif(true, b"prompt:{}\0", &unicode(TEXT, u16::to_be_bytes));
    for whole in [with_text("parameters", TEXT), jpeg(&exif), webp(&exif), with_chunk(eXIf, &exif)] {
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x81;
            for bytes in [&whole[..at], &changed] {
                if let Err(error) = read_bytes(bytes) {
                    assert!(!matches!(error, PromptError::Io(_)), "{error}");
                }
            }
        }
    }
}
