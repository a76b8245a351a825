//! A page and its pictures in full size, in one archive.

use std::ffi::OsStr;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use image::ExtendedColorType;
use image::ImageEncoder as _;
use image::codecs::png::PngEncoder;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::options::ReportError;
use crate::io::image::{Reading, Transparency, load};

/// A picture beside a page.
#[derive(Debug, Clone)]
pub(super) struct FullSize {
    /// Its path in the archive.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
}

impl FullSize {
    /// The picture of a number. A redacted one is written anew, so it keeps no metadata and no name.
    pub fn new(number: usize, path: &Path, redact: bool) -> Self {
        let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
        let plain = !redact
            && matches!(ending.as_str(), "jpg" | "jpeg" | "png" | "webp" | "gif" | "bmp" | "tif" | "tiff");
        let ending = if plain { &ending } else { "png" };
        Self { name: format!("pictures/{number}.{ending}"), path: path.to_path_buf() }
    }
}

/// Writes a page as `report.html` and its pictures to a zip archive: the same bytes for the same files.
///
/// # Errors
/// A picture that cannot be read any more, or a write that failed.
pub(super) fn write(
    html: &str,
    pictures: &[FullSize],
    redact: bool,
    out: impl Write + Seek,
) -> Result<(), ReportError> {
    let mut zip = ZipWriter::new(out);
    let options =
        SimpleFileOptions::default().last_modified_time(DateTime::default()).unix_permissions(0o644);
    zip.start_file("report.html", options.compression_method(CompressionMethod::Deflated))?;
    zip.write_all(html.as_bytes())?;
    // Pictures are compressed already.
    let options = options.compression_method(CompressionMethod::Stored);
    for picture in pictures {
        zip.start_file(&picture.name, options)?;
        match redact {
            false => _ = std::io::copy(&mut fs_err::File::open(&picture.path)?, &mut zip)?,
            true => zip.write_all(&pixels(&picture.path)?)?,
        }
    }
    zip.finish()?;
    Ok(())
}

/// A picture without its metadata.
fn pixels(path: &Path) -> Result<Vec<u8>, ReportError> {
    let unreadable = |reason: String| ReportError::Picture { path: path.to_path_buf(), reason };
    let reading = Reading { transparency: Transparency::White, orient: true };
    let rgb = load(path, reading).map_err(|error| unreadable(error.to_string()))?.rgb;
    let mut png = Vec::new();
    let written = PngEncoder::new(&mut png).write_image(
        rgb.as_raw(),
        rgb.width(),
        rgb.height(),
        ExtendedColorType::Rgb8,
    );
    written.map_err(|error| unreadable(error.to_string()))?;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::image::save_png;
    use image::{Rgb, RgbImage};
    use std::io::{Cursor, Read};
    use zip::ZipArchive;

    #[test]
    fn a_redacted_picture_keeps_only_its_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Ann at home.PNG");
        let drawn = RgbImage::from_fn(9, 5, |x, y| Rgb([x as u8, y as u8, 7]));
        save_png(&drawn, &path).unwrap();
        fs_err::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"taken by Ann").unwrap();
        let written = |redact| {
            let picture = FullSize::new(3, &path, redact);
            let mut out = Cursor::new(Vec::new());
            write("<html>", &[picture], redact, &mut out).unwrap();
            let mut zip = ZipArchive::new(out).unwrap();
            let mut bytes = Vec::new();
            zip.by_name("pictures/3.png").unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(written(false), fs_err::read(&path).unwrap());
        let redacted = written(true);
        assert!(!redacted.ends_with(b"Ann"));
        assert_eq!(image::load_from_memory(&redacted).unwrap().to_rgb8(), drawn);
    }
}
