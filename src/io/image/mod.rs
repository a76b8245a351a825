//! Images in 8-bit RGB: read, crop, convert to and from the VAE's range, write.
//!
//! For PNG, equal to Pillow, torchvision and diffusers byte for byte. JPEG decoders may round differently, so that a
//! JPEG's pixels may differ from libjpeg's by a level or two.

mod canvas;
pub mod chart;
mod complete;
pub mod contact_sheet;
pub mod resize;
mod text;

use std::io;
use std::path::{Path, PathBuf};

pub use ::image::RgbImage;
use ::image::codecs::jpeg::JpegEncoder;
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageBuffer, ImageDecoder as _, ImageReader, Pixel, Rgb};

use super::mistaken::mistaken;

/// Why an image could not be read, written or cropped.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no picture of a format that is read, or are damaged.
    #[error("{}: not a readable image: {reason}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The error of the decoder.
        reason: String,
    },
    /// The image could not be written.
    #[error("{}: the image cannot be written: {source}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The error of the encoder.
        source: ::image::ImageError,
    },
    /// The crop is larger than the image.
    #[error("crop of {size}x{size} pixels from an image of {width}x{height}")]
    Crop {
        /// Side of the requested square.
        size: u32,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
    },
}

/// What transparent pixels become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transparency {
    /// Their colour, whatever it is: alpha is dropped without blending.
    Drop,
    /// A blend with white.
    White,
}

/// How images are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What transparent pixels become.
    pub transparency: Transparency,
    /// Whether the EXIF orientation is applied.
    pub orient: bool,
}

impl Reading {
    /// As Pillow's `Image.open(path).convert("RGB")`.
    pub const PILLOW: Self = Self { transparency: Transparency::Drop, orient: false };
}

/// An image as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its pixels.
    pub rgb: RgbImage,
    /// Whether it has pixels that are not opaque.
    pub transparent: bool,
    /// Whether its EXIF orientation is not the usual one.
    pub turned: bool,
}

/// Reads a picture, detected by content, as RGB; see [`Reading::PILLOW`].
pub fn load_rgb(path: impl AsRef<Path>) -> Result<RgbImage, ImageError> {
    Ok(load(path, Reading::PILLOW)?.rgb)
}

/// Reads a PNG, JPEG, WebP, BMP or TIFF, or a GIF's first frame, detected by content, as RGB.
///
/// Grayscale is repeated, a palette applied, 16 bits reduced to eight. A file that is cut off or damaged is refused.
pub fn load(path: impl AsRef<Path>, reading: Reading) -> Result<Loaded, ImageError> {
    let path = path.as_ref();
    let decode = |reason| ImageError::Decode { path: path.into(), reason };
    let bytes = fs_err::read(path)?;
    if bytes.starts_with(complete::PNG) {
        complete::check_png(&bytes).map_err(decode)?;
    }
    let (mut image, orientation) = match bytes.starts_with(complete::JPEG) {
        true => complete::decode_jpeg(&bytes).map_err(decode)?,
        false => decode_other(&bytes).map_err(decode)?,
    };
    let turned = orientation != Orientation::NoTransforms;
    if turned && reading.orient {
        image.apply_orientation(orientation);
    }
    let transparent = is_transparent(&image);
    if transparent && reading.transparency == Transparency::White {
        image = DynamicImage::ImageRgb8(on_white(&image));
    }
    // The library rounds 16 bits to 8. Pillow keeps the upper byte, but clamps grayscale to 255.
    let upper = |value: u16| (value >> 8) as u8;
    let rgb = match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        DynamicImage::ImageLuma16(deep) => repack(&deep, |[gray]| [gray.min(255) as u8; 3]),
        DynamicImage::ImageLumaA16(deep) => repack(&deep, |[gray, _]| [upper(gray); 3]),
        DynamicImage::ImageRgb16(deep) => repack(&deep, |rgb| rgb.map(upper)),
        DynamicImage::ImageRgba16(deep) => repack(&deep, |[r, g, b, _]| [r, g, b].map(upper)),
        other => other.into_rgb8(),
    };
    Ok(Loaded { rgb, transparent, turned })
}

/// Width and height of a picture, from its header; of a PNG, also all checksums are verified.
///
/// # Errors
/// Why it is none.
pub fn dimensions(bytes: &[u8]) -> Result<[u32; 2], String> {
    if bytes.starts_with(complete::PNG) {
        complete::check_png(bytes)?;
    }
    let read = || {
        let reader = ImageReader::new(io::Cursor::new(bytes)).with_guessed_format()?;
        ::image::ImageResult::Ok(reader.into_decoder()?.dimensions())
    };
    match read() {
        Ok((width, height)) => Ok([width, height]),
        Err(error) => {
            Err(mistaken(bytes).map_or_else(|| error.to_string(), |found| format!("it is {found}")))
        }
    }
}

/// Decodes a file that is no JPEG.
fn decode_other(bytes: &[u8]) -> Result<(DynamicImage, Orientation), String> {
    let read = || -> ::image::ImageResult<_> {
        let mut decoder = ImageReader::new(io::Cursor::new(bytes)).with_guessed_format()?.into_decoder()?;
        let (width, height) = decoder.dimensions();
        complete::expect_size(width.into(), height.into()).map_err(io::Error::other)?;
        let orientation = decoder.orientation()?;
        Ok((DynamicImage::from_decoder(decoder)?, orientation))
    };
    read().map_err(|error| {
        let instead = mistaken(bytes).filter(|_| !bytes.starts_with(complete::PNG));
        instead.map_or_else(|| error.to_string(), |found| format!("it is {found}"))
    })
}

fn is_transparent(image: &DynamicImage) -> bool {
    match image {
        DynamicImage::ImageLumaA8(image) => image.pixels().any(|pixel| pixel.0[1] < u8::MAX),
        DynamicImage::ImageRgba8(image) => image.pixels().any(|pixel| pixel.0[3] < u8::MAX),
        DynamicImage::ImageLumaA16(image) => image.pixels().any(|pixel| pixel.0[1] < u16::MAX),
        DynamicImage::ImageRgba16(image) => image.pixels().any(|pixel| pixel.0[3] < u16::MAX),
        _ => false,
    }
}

/// The image on a white ground.
fn on_white(image: &DynamicImage) -> RgbImage {
    let image = image.to_rgba8();
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0;
        Rgb([red, green, blue].map(|value| blend(value, alpha)))
    })
}

/// Converts pixels with `N` channels of 16 bits.
fn repack<P: Pixel<Subpixel = u16>, const N: usize>(
    deep: &ImageBuffer<P, Vec<u16>>,
    convert: impl Fn([u16; N]) -> [u8; 3],
) -> RgbImage {
    let (pixels, _) = deep.as_raw().as_chunks::<N>();
    let mut out = RgbImage::new(deep.width(), deep.height());
    for (to, from) in out.pixels_mut().zip(pixels) {
        to.0 = convert(*from);
    }
    out
}

/// Crops a square from the center; an odd margin is split as by torchvision's `CenterCrop`.
pub fn center_crop(rgb: &RgbImage, size: u32) -> Result<RgbImage, ImageError> {
    let [top, left] = crop_offset(rgb, size)?;
    Ok(::image::imageops::crop_imm(rgb, left, top, size, size).to_image())
}

/// Top and left of that square.
pub fn crop_offset(rgb: &RgbImage, size: u32) -> Result<[u32; 2], ImageError> {
    let (width, height) = rgb.dimensions();
    if width < size || height < size {
        return Err(ImageError::Crop { size, width, height });
    }
    // Python rounds halves to even: a margin of 1 starts at 0, one of 3 at 2.
    let begin = |length: u32| (f64::from(length - size) / 2.0).round_ties_even() as u32;
    Ok([begin(height), begin(width)])
}

/// The largest square at the centre; of an odd margin, the smaller half is at the beginning, as in transformers.
pub fn center_square(rgb: &RgbImage) -> RgbImage {
    let (width, height) = rgb.dimensions();
    let side = width.min(height);
    ::image::imageops::crop_imm(rgb, (width - side) / 2, (height - side) / 2, side, side).to_image()
}

/// Values in [-1, 1] of shape `[3, H, W]`, flipped horizontally if `flip`.
pub fn to_unit(rgb: &RgbImage, flip: bool) -> Vec<f32> {
    let unit = |value: u8| (f32::from(value) / 255.0 - 0.5) / 0.5;
    let mut out = Vec::with_capacity(rgb.as_raw().len());
    for channel in 0..3 {
        for row in rgb.rows() {
            let row = row.map(|pixel| unit(pixel.0[channel]));
            if flip { out.extend(row.rev()) } else { out.extend(row) }
        }
    }
    out
}

/// The inverse of [`to_unit`], for `[3, height, width]` values that may lie outside [-1, 1].
///
/// # Panics
/// If there are not `3 * height * width` values.
pub fn from_unit(chw: &[f32], width: u32, height: u32) -> RgbImage {
    let plane = width as usize * height as usize;
    assert_eq!(chw.len(), 3 * plane, "values of an image of 3 x {height} x {width}");
    let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    RgbImage::from_fn(width, height, |x, y| {
        let at = (y * width + x) as usize;
        Rgb([chw[at], chw[at + plane], chw[at + 2 * plane]].map(byte))
    })
}

/// Writes a PNG. Equal pixels give equal bytes.
pub fn save_png(rgb: &RgbImage, path: impl AsRef<Path>) -> Result<(), ImageError> {
    let path = path.as_ref();
    let mut bytes = io::Cursor::new(Vec::new());
    rgb.write_to(&mut bytes, ::image::ImageFormat::Png)
        .map_err(|source| ImageError::Encode { path: path.into(), source })?;
    Ok(fs_err::write(path, bytes.into_inner())?)
}

/// Writes a JPEG of quality 90.
pub fn save_jpeg(rgb: &RgbImage, path: impl AsRef<Path>) -> Result<(), ImageError> {
    const QUALITY: u8 = 90;
    let path = path.as_ref();
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode_image(rgb)
        .map_err(|source| ImageError::Encode { path: path.into(), source })?;
    Ok(fs_err::write(path, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, (3 * x + 7 * y) as u8]))
    }

    #[test]
    fn a_png_is_read_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        save_png(&ramp(30, 20), &path).unwrap();
        assert_eq!(load_rgb(&path).unwrap(), ramp(30, 20));
    }

    #[test]
    fn a_jpeg_is_read_nearly_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        // Smooth, as far as the 8 bits of its first channels go.
        let rgb = RgbImage::from_fn(64, 48, |x, y| Rgb([2 * x as u8, 3 * y as u8, (x + y) as u8]));
        save_jpeg(&rgb, &path).unwrap();
        let back = load_rgb(&path).unwrap();
        assert_eq!(back.dimensions(), (64, 48));
        let errors = rgb.as_raw().iter().zip(back.as_raw()).map(|(a, b)| u32::from(a.abs_diff(*b)));
        assert!(errors.clone().max().unwrap() < 40 && errors.sum::<u32>() < 5 * 3 * 64 * 48);
    }

    #[test]
    fn unit_range_is_inverted_and_flipped() {
        let rgb = ramp(16, 256);
        let chw = to_unit(&rgb, false);
        assert_eq!((chw[0], chw[16 * 256 + 255 * 16]), (-1.0, 1.0)); // red of (0, 0), green of (0, 255)
        assert_eq!(from_unit(&chw, 16, 256), rgb);
        let mirrored = from_unit(&to_unit(&rgb, true), 16, 256);
        assert_eq!(mirrored, ::image::imageops::flip_horizontal(&rgb));
        assert_eq!(from_unit(&[-3.0, 9.0, 0.0], 1, 1).as_raw(), &[0, 255, 128]);
    }

    #[test]
    fn odd_margins_are_split_as_in_python() {
        assert_eq!(center_crop(&ramp(11, 10), 10).unwrap()[(0, 0)].0[0], 0);
        assert_eq!(center_crop(&ramp(13, 10), 10).unwrap()[(0, 0)].0[0], 2);
        assert_eq!(center_crop(&ramp(10, 14), 10).unwrap()[(0, 0)].0[1], 2);
        let error = center_crop(&ramp(10, 9), 10).unwrap_err().to_string();
        assert_eq!(error, "crop of 10x10 pixels from an image of 10x9");
    }

    #[test]
    fn a_file_that_is_cut_off_or_damaged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (png, jpeg) = (folder.path().join("a.png"), folder.path().join("a.jpg"));
        let rgb = RgbImage::from_fn(48, 40, |x, y| Rgb([(x * 5) as u8, (y * 6) as u8, (x * y) as u8]));
        save_png(&rgb, &png).unwrap();
        save_jpeg(&rgb, &jpeg).unwrap();
        let refused = |path: &Path, bytes: &[u8]| {
            fs_err::write(path, bytes).unwrap();
            load_rgb(path).is_err_and(|error| error.to_string().starts_with(&format!("{}: ", path.display())))
        };
        for path in [png, jpeg] {
            let whole = fs_err::read(&path).unwrap();
            for length in 0..whole.len() {
                assert!(refused(&path, &whole[..length]), "{}: {length} of {}", path.display(), whole.len());
            }
            // Bytes after the end are none of the image's.
            fs_err::write(&path, [&whole[..], b"more"].concat()).unwrap();
            load_rgb(&path).unwrap();
            let mut damaged = whole.clone();
            let middle = whole.len() * 3 / 4;
            damaged[middle..middle + 2].copy_from_slice(b"\xff\xc4");
            assert!(refused(&path, &damaged), "{}", path.display());
        }
    }

    #[test]
    fn every_flipped_bit_of_a_png_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        save_png(&ramp(5, 4), &path).unwrap();
        let plain = fs_err::read(&path).unwrap();
        // A chunk of text after the header, which no decoder needs.
        let text = b"tEXtAuthor\0somebody";
        let chunk = [&(text.len() as u32 - 4).to_be_bytes(), &text[..], &crc32fast::hash(text).to_be_bytes()]
            .concat();
        let whole = [&plain[..33], &chunk, &plain[33..]].concat();
        fs_err::write(&path, &whole).unwrap();
        load_rgb(&path).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << (place % 8);
            fs_err::write(&path, &damaged).unwrap();
            assert!(load_rgb(&path).is_err(), "byte {place} of {}", whole.len());
        }
        // A checksum of the pixels that is wrong, in a chunk with the right one.
        let data = plain.windows(4).position(|found| found == b"IDAT").unwrap();
        let length = u32::from_be_bytes(*plain[data - 4..].first_chunk().unwrap()) as usize;
        let mut other = plain.clone();
        other[data + 4 + length - 1] ^= 1;
        let sum = crc32fast::hash(&other[data..data + 4 + length]);
        other[data + 4 + length..][..4].copy_from_slice(&sum.to_be_bytes());
        fs_err::write(&path, other).unwrap();
        let error = load_rgb(&path).unwrap_err().to_string();
        assert!(error.contains("its compressed pixels are damaged"), "{error}");
        let author = whole.iter().position(|&byte| byte == b'A').unwrap();
        fs_err::write(&path, [&whole[..author], b"a", &whole[author + 1..]].concat()).unwrap();
        let error = load_rgb(&path).unwrap_err().to_string();
        assert!(error.ends_with("the checksum of its chunk tEXt is wrong"), "{error}");
    }

    #[test]
    fn transparency_and_orientation_are_seen_and_applied_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let half = ::image::RgbaImage::from_fn(4, 2, |x, _| {
            ::image::Rgba([0, 100, 200, if x == 0 { 0 } else { 255 }])
        });
        half.save(&path).unwrap();
        let white = Reading { transparency: Transparency::White, orient: true };
        let dropped = load(&path, Reading::PILLOW).unwrap();
        assert_eq!(
            (dropped.transparent, dropped.turned, dropped.rgb[(0, 0)].0),
            (true, false, [0, 100, 200])
        );
        let blended = load(&path, white).unwrap().rgb;
        assert_eq!((blended[(0, 0)].0, blended[(1, 0)].0), ([255; 3], [0, 100, 200]));
        // A JPEG of 16 x 8 with the EXIF orientation 6: turned by 90 degrees it is 8 x 16.
        let jpeg = folder.path().join("a.jpg");
        save_jpeg(&ramp(16, 8), &jpeg).unwrap();
        let plain = fs_err::read(&jpeg).unwrap();
        let exif = [&b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"[..]].concat();
        let length = (exif.len() as u16 + 2).to_be_bytes();
        fs_err::write(&jpeg, [&plain[..2], &[0xff, 0xe1], &length, &exif, &plain[2..]].concat()).unwrap();
        let ignored = load(&jpeg, Reading::PILLOW).unwrap();
        assert_eq!((ignored.turned, ignored.rgb.dimensions()), (true, (16, 8)));
        assert_eq!(load(&jpeg, white).unwrap().rgb.dimensions(), (8, 16));
    }

    #[test]
    fn an_invalid_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs_err::write(&path, "<html>not found</html>").unwrap();
        let error = load_rgb(&path).unwrap_err().to_string();
        assert!(error.contains("a.png: not a readable image"), "{error}");
    }
}
