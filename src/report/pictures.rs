//! The pictures of a page: each once, as small as its three formats allow.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};

use crate::io::image::resize::fitted;
use crate::io::image::{Reading, RgbImage, Transparency, load};

const QUALITY: u8 = 82;
/// Steps from dark to light of a channel, where a drawing has too many for a palette.
const SHADES: [f32; 2] = [63.0, 31.0];
/// Pictures up to this size are drawings in pixels: enlarged, they keep their edges.
const PIXELS: u32 = 48;

/// How a picture is used, which determines its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Query,
    Thumbnail,
}

/// The longer sides of both uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub query: u32,
    pub thumbnail: u32,
}

impl Sizes {
    fn of(self, purpose: Use) -> u32 {
        match purpose {
            Use::Query => self.query,
            Use::Thumbnail => self.thumbnail,
        }
    }
}

/// The files of all pictures, each once.
#[derive(Default)]
pub(super) struct Pictures {
    files: Vec<(PathBuf, Use)>,
    known: HashMap<PathBuf, usize>,
}

impl Pictures {
    /// The number of a picture.
    pub fn add(&mut self, path: &Path, purpose: Use) -> usize {
        if let Some(&number) = self.known.get(path) {
            if purpose == Use::Query {
                self.files[number].1 = purpose;
            }
            return number;
        }
        self.files.push((path.to_path_buf(), purpose));
        self.known.insert(path.to_path_buf(), self.files.len() - 1);
        self.files.len() - 1
    }

    /// Their files, by number.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Reads all, at most as large as they are shown.
    pub fn load(&self, sizes: Sizes) -> Sprite {
        let reading = Reading { transparency: Transparency::White, orient: true };
        let read = |(path, purpose): &(PathBuf, Use)| {
            let rgb = load(path, reading).ok()?.rgb;
            let small = rgb.width().max(rgb.height()) <= PIXELS;
            Some(Picture { rgb: fitted(rgb, sizes.of(*purpose)), purpose: *purpose, pixels: small })
        };
        Sprite { pictures: self.files.par_iter().map(read).collect() }
    }
}

struct Picture {
    rgb: RgbImage,
    purpose: Use,
    pixels: bool,
}

/// The pictures in memory; one that could not be read is `None`.
pub(super) struct Sprite {
    pictures: Vec<Option<Picture>>,
}

/// A picture as the page has it.
#[derive(Debug, Clone)]
pub(super) struct Symbol {
    pub id: usize,
    pub width: u32,
    pub height: u32,
    pub data: String,
    pub pixels: bool,
}

impl Sprite {
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Those of them that are used, and for each number its symbol's: pictures with equal bytes are one.
    pub fn symbols(&self, sizes: Sizes, used: &[bool]) -> (Vec<Symbol>, Vec<Option<usize>>) {
        let numbers: Vec<usize> = (0..self.pictures.len()).collect();
        let encode = |number: &usize| {
            let picture = self.pictures[*number].as_ref().filter(|_| used[*number])?;
            let rgb = fitted(picture.rgb.clone(), sizes.of(picture.purpose));
            let data = data_url(&rgb)?;
            Some(Symbol {
                id: *number,
                width: rgb.width(),
                height: rgb.height(),
                data,
                pixels: picture.pixels,
            })
        };
        let encoded: Vec<Option<Symbol>> = numbers.par_iter().map(encode).collect();
        let (mut symbols, mut first) = (Vec::new(), HashMap::new());
        let mut places = Vec::with_capacity(encoded.len());
        for symbol in encoded {
            places.push(symbol.map(|symbol| {
                let id = *first.entry(symbol.data.clone()).or_insert(symbol.id);
                if id == symbol.id {
                    symbols.push(symbol);
                }
                id
            }));
        }
        (symbols, places)
    }
}

/// The smallest of a JPEG, a PNG and a lossless WebP.
fn data_url(rgb: &RgbImage) -> Option<String> {
    let (width, height) = rgb.dimensions();
    let (mut jpeg, mut png, mut webp) = (Vec::new(), Vec::new(), Vec::new());
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(rgb).ok()?;
    // Photographs have about as many colours as pixels: without loss they are several times larger.
    let colors = all_colors(rgb);
    if colors.len() > 256 && colors.len() * 3 > (width * height) as usize {
        return Some(url("jpeg", &jpeg));
    }
    match few_colors(rgb, colors.len()) {
        Some(drawing) => png = indexed(&drawing)?,
        None => {
            let best = PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive);
            best.write_image(rgb.as_raw(), width, height, ExtendedColorType::Rgb8).ok()?;
        }
    }
    WebPEncoder::new_lossless(&mut webp).encode(rgb.as_raw(), width, height, ExtendedColorType::Rgb8).ok()?;
    let formats = [("jpeg", jpeg), ("png", png), ("webp", webp)];
    let (name, bytes) = formats.into_iter().min_by_key(|(_, bytes)| bytes.len())?;
    Some(url(name, &bytes))
}

/// A drawing with at most 256 colours: as it is, or with its shades rounded, by less than a JPEG changes them.
fn few_colors(rgb: &RgbImage, colors: usize) -> Option<RgbImage> {
    if colors <= 256 {
        return Some(rgb.clone());
    }
    SHADES.into_iter().find_map(|shades| {
        let mut rounded = rgb.clone();
        let round = |value: u8| (f32::from(value) / 255.0 * shades).round() / shades * 255.0;
        rounded.pixels_mut().for_each(|pixel| pixel.0 = pixel.0.map(|value| round(value).round() as u8));
        (all_colors(&rounded).len() <= 256).then_some(rounded)
    })
}

fn all_colors(rgb: &RgbImage) -> BTreeSet<[u8; 3]> {
    rgb.pixels().map(|pixel| pixel.0).collect()
}

/// A PNG with a palette.
fn indexed(rgb: &RgbImage) -> Option<Vec<u8>> {
    let colors = all_colors(rgb);
    let places: HashMap<[u8; 3], u8> = colors.iter().copied().zip(0..=u8::MAX).collect();
    let pixels: Vec<u8> = rgb.pixels().map(|pixel| places[&pixel.0]).collect();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, rgb.width(), rgb.height());
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(colors.iter().flatten().copied().collect::<Vec<u8>>());
    encoder.set_compression(png::Compression::High);
    encoder.set_filter(png::Filter::NoFilter);
    encoder.write_header().ok()?.write_image_data(&pixels).ok()?;
    Some(bytes)
}

fn url(format: &str, bytes: &[u8]) -> String {
    format!("data:image/{format};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::image::save_png;
    use image::Rgb;

    #[test]
    fn a_picture_is_in_it_once_and_small() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let photo =
            RgbImage::from_fn(200, 100, |x, y| Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7 + y * 13) as u8]));
        save_png(&photo, path("a.png")).unwrap();
        save_png(&photo, path("copy.png")).unwrap();
        save_png(&RgbImage::from_pixel(40, 40, Rgb([9; 3])), path("flat.png")).unwrap();
        let mut pictures = Pictures::default();
        let numbers = ["a.png", "a.png", "copy.png", "flat.png", "gone.png"]
            .map(|name| pictures.add(&path(name), Use::Thumbnail));
        assert_eq!(numbers, [0, 0, 1, 2, 3]);
        let sizes = Sizes { query: 192, thumbnail: 96 };
        let sprite = pictures.load(sizes);
        let (symbols, places) = sprite.symbols(sizes, &[true; 4]);
        assert_eq!(places, [Some(0), Some(0), Some(2), None]);
        assert_eq!((symbols[0].width, symbols[0].height), (96, 48));
        assert!(symbols[0].data.starts_with("data:image/jpeg;") && !symbols[0].pixels);
        assert!(!symbols[1].data.starts_with("data:image/jpeg;") && symbols[1].pixels);
        let (few, _) = sprite.symbols(sizes, &[true, false, false, true]);
        assert_eq!(few.len(), 1);
    }
}
