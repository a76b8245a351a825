//! Complete and undamaged files only: decoders of images fill what is missing with gray, and say nothing.

use std::io::{self, Read as _};

use flate2::read::ZlibDecoder;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, GrayImage, RgbImage};

/// The first bytes of a JPEG, and of a PNG.
pub(super) const JPEG: &[u8] = b"\xff\xd8\xff";
pub(super) const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Decodes a JPEG: gray stays gray, all other colours become RGB. Its orientation is returned, not applied.
///
/// # Errors
/// What is damaged or missing.
pub(super) fn decode_jpeg(bytes: &[u8]) -> Result<(DynamicImage, Orientation), String> {
    if !jpeg_ends(bytes) {
        return Err("the file is cut off".into());
    }
    let options = |color| {
        let most = usize::from(u16::MAX);
        DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(most)
            .set_max_height(most)
            .jpeg_set_out_colorspace(color)
    };
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::RGB));
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    expect_size(width as u64, height as u64)?;
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    if gray {
        decoder.set_options(options(ColorSpace::Luma));
    }
    let pixels = decoder.decode().map_err(|error| error.to_string())?;
    let size = (width as u32, height as u32);
    let image = match gray {
        true => GrayImage::from_raw(size.0, size.1, pixels).map(DynamicImage::ImageLuma8),
        false => RgbImage::from_raw(size.0, size.1, pixels).map(DynamicImage::ImageRgb8),
    };
    let turned = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let image = image.ok_or("its pixels do not fit its size")?;
    Ok((image, turned.unwrap_or(Orientation::NoTransforms)))
}

/// Refuses an image with more pixels than Pillow takes: what is said to be so large is a mistake, or meant to fill the memory.
pub(super) fn expect_size(width: u64, height: u64) -> Result<(), String> {
    const MOST: u64 = 2 * 89_478_485;
    match width.saturating_mul(height) {
        0..=MOST => Ok(()),
        _ => Err(format!("it has {width} x {height} pixels, expected at most {MOST}")),
    }
}

/// Whether a JPEG has its last marker, whatever comes after it.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2) {
        match (mark, kind) {
            // In a scan: any byte, a stuffed 0xff, a restart marker.
            (..=0xfe, _) | (_, 0xff) => at += 1,
            (_, 0 | 1 | 0xd0..=0xd7) => at += 2,
            (_, 0xd9) => return true,
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
        }
    }
    false
}

/// What is damaged or missing of a PNG, by the checksums of its chunks and of its pixels, which the decoder does not verify; what
/// comes after the last chunk does not count.
///
/// # Errors
/// The chunk.
pub(super) fn check_png(bytes: &[u8]) -> Result<(), String> {
    let (mut rest, mut pixels) = (bytes.get(PNG.len()..).unwrap_or_default(), Vec::new());
    loop {
        let cut = || "the file is cut off".to_owned();
        let (length, chunk) = rest.split_first_chunk().ok_or_else(cut)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (chunk, end) = chunk.split_at_checked(length.saturating_add(4)).ok_or_else(cut)?;
        let (sum, end) = end.split_first_chunk().ok_or_else(cut)?;
        if crc32fast::hash(chunk) != u32::from_be_bytes(*sum) {
            return Err(format!("the checksum of its chunk {} is wrong", chunk[..4].escape_ascii()));
        }
        if let Some(part) = chunk.strip_prefix(b"IDAT") {
            pixels.extend_from_slice(part);
        }
        if chunk.starts_with(b"IEND") {
            // More bytes than the largest image has; a damaged stream may go on for long.
            const MOST: u64 = 1 << 31;
            let mut pixels = ZlibDecoder::new(pixels.as_slice()).take(MOST);
            return match io::copy(&mut pixels, &mut io::sink()) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("its compressed pixels are damaged: {error}")),
            };
        }
        rest = end;
    }
}
