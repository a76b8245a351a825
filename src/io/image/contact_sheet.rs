//! The picture of an influence: the query, and below it the most influential training images.

use ::image::imageops::{self, FilterType};
use ::image::{Rgb, RgbImage};
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X12, FONT_7X13_BOLD, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{Drawable, Point};
use embedded_graphics::text::{Baseline, Text};

use super::canvas::Canvas;

const MARGIN: u32 = 24;
const GAP: u32 = 16;
/// Side of a training image's square, in pixels.
const CELL: u32 = 144;
/// Side of the query's square.
const QUERY: u32 = 192;
const COLUMNS: usize = 5;
/// The least width of the sheet in columns, so that the heading fits.
const MIN_COLUMNS: usize = 3;
/// The most lines of text below a cell, without its title.
const MAX_LINES: usize = 6;
/// The most lines of the heading.
const MAX_HEADING: usize = 6;
/// The most lines of the notes below it.
const MAX_NOTES: usize = 7;
/// The most lines of the legend below them.
const MAX_LEGEND: usize = 4;

const FRAME: Rgb<u8> = Rgb([208, 208, 208]);
const DARK: Rgb888 = Rgb888::new(24, 24, 24);
const WARNING: Rgb888 = Rgb888::new(176, 32, 32);
const SOFT: Rgb888 = Rgb888::new(96, 96, 96);

/// One training image with the text below it.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The image, of any size.
    pub image: RgbImage,
    /// A short line in bold, such as rank and score.
    pub title: String,
    /// Further lines, such as captions; long ones are wrapped, too many are cut.
    pub lines: Vec<String>,
}

/// The text beside the query.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heading<'a> {
    /// A title.
    pub title: &'a str,
    /// Warnings, in red.
    pub notes: &'a [String],
    /// What the text below the cells means.
    pub legend: &'a str,
}

/// Draws the query with its heading above a grid of cells, in their order.
pub fn contact_sheet(query: &RgbImage, heading: Heading<'_>, cells: &[Cell]) -> RgbImage {
    let columns = cells.len().min(COLUMNS);
    let width = across(columns.max(MIN_COLUMNS)) + 2 * MARGIN;
    let texts: Vec<Vec<String>> =
        cells.iter().map(|cell| wrap(&cell.lines, CELL, &FONT_6X12, MAX_LINES)).collect();
    let row_heights: Vec<u32> = texts.chunks(COLUMNS).map(row_height).collect();
    let top = MARGIN + QUERY + GAP;
    let grid: u32 = row_heights.iter().map(|height| height + GAP).sum();
    let mut sheet = Canvas::white(width, top + grid + MARGIN);

    sheet.picture(query, MARGIN, MARGIN, QUERY);
    sheet.heading(heading, width);
    sheet.line(top, width);
    let mut y = top + GAP + 1;
    for ((row, texts), height) in cells.chunks(COLUMNS).zip(texts.chunks(COLUMNS)).zip(row_heights) {
        for (column, (cell, text)) in row.iter().zip(texts).enumerate() {
            sheet.cell(cell, text, MARGIN + column as u32 * (CELL + GAP), y);
        }
        y += height + GAP;
    }
    sheet.0
}

fn across(columns: usize) -> u32 {
    columns as u32 * (CELL + GAP) - GAP
}

fn row_height(texts: &[Vec<String>]) -> u32 {
    let lines = texts.iter().map(Vec::len).max().unwrap_or(0);
    CELL + 6 + line_height(&FONT_7X13_BOLD) + lines as u32 * line_height(&FONT_6X12)
}

fn line_height(font: &MonoFont<'_>) -> u32 {
    font.character_size.height + 1
}

impl Canvas {
    fn cell(&mut self, cell: &Cell, text: &[String], x: u32, y: u32) {
        self.picture(&cell.image, x, y, CELL);
        let mut y = y + CELL + 6;
        let title = [cell.title.clone()];
        for line in wrap(&title, CELL, &FONT_7X13_BOLD, 1) {
            self.text(&line, x, y, &FONT_7X13_BOLD, DARK);
        }
        y += line_height(&FONT_7X13_BOLD);
        for line in text {
            self.text(line, x, y, &FONT_6X12, SOFT);
            y += line_height(&FONT_6X12);
        }
    }

    /// The title, and notes and legend below it, are right of the query, vertically centered.
    fn heading(&mut self, Heading { title, notes, legend }: Heading<'_>, width: u32) {
        let x = MARGIN + QUERY + GAP + GAP / 2;
        let most = match (notes.is_empty(), legend.is_empty()) {
            (true, true) => MAX_HEADING,
            (true, false) => MAX_HEADING / 2,
            (false, _) => MAX_HEADING / 3,
        };
        let lines = wrap(&[title.to_owned()], width - MARGIN - x, &FONT_10X20, most);
        let notes = wrap(notes, width - MARGIN - x, &FONT_6X12, MAX_NOTES);
        let legend = wrap(&[legend.to_owned()], width - MARGIN - x, &FONT_6X12, MAX_LEGEND);
        let height = lines.len() as u32 * (line_height(&FONT_10X20) + 3)
            + (notes.len() + legend.len()) as u32 * line_height(&FONT_6X12);
        let mut y = MARGIN + (QUERY - height) / 2;
        for line in lines {
            self.text(&line, x, y, &FONT_10X20, DARK);
            y += line_height(&FONT_10X20) + 3;
        }
        for line in notes {
            self.text(&line, x, y, &FONT_6X12, WARNING);
            y += line_height(&FONT_6X12);
        }
        for line in legend {
            self.text(&line, x, y, &FONT_6X12, SOFT);
            y += line_height(&FONT_6X12);
        }
    }

    /// Fits the image into a square of `side`, with a frame, since many images have white borders.
    fn picture(&mut self, image: &RgbImage, x: u32, y: u32, side: u32) {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return;
        }
        let room = side - 2;
        let fit = |length: u32| (length * room / width.max(height)).max(1);
        let scaled = imageops::resize(image, fit(width), fit(height), FilterType::CatmullRom);
        let (left, top) = (x + (side - scaled.width()) / 2, y + (side - scaled.height()) / 2);
        let framed = RgbImage::from_pixel(scaled.width() + 2, scaled.height() + 2, FRAME);
        imageops::replace(&mut self.0, &framed, i64::from(left) - 1, i64::from(top) - 1);
        imageops::replace(&mut self.0, &scaled, left.into(), top.into());
    }

    fn line(&mut self, y: u32, width: u32) {
        for x in MARGIN..width - MARGIN {
            self.0.put_pixel(x, y, FRAME);
        }
    }

    fn text(&mut self, text: &str, x: u32, y: u32, font: &MonoFont<'_>, color: Rgb888) {
        let style = MonoTextStyle::new(font, color);
        let at = Point::new(x as i32, y as i32);
        let Ok(_) = Text::with_baseline(text, at, style, Baseline::Top).draw(self);
    }
}

/// Breaks lines at spaces so that they fit `width` pixels; the last of `max` lines ends in dots if more follow.
fn wrap(lines: &[String], width: u32, font: &MonoFont<'_>, max: usize) -> Vec<String> {
    let room = (width / font.character_size.width) as usize;
    let mut out: Vec<String> = Vec::new();
    for line in lines {
        let mut current = String::new();
        for word in latin(line).split_whitespace() {
            if !current.is_empty() && current.chars().count() + 1 + word.chars().count() > room {
                out.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
            // A word longer than a line is cut where the line ends.
            while current.chars().count() > room {
                let rest = current.chars().skip(room).collect();
                out.push(std::mem::replace(&mut current, rest).chars().take(room).collect());
            }
        }
        if !current.is_empty() {
            out.push(current);
        }
    }
    if out.len() > max {
        out.truncate(max);
        if let Some(last) = out.last_mut() {
            let kept: String = last.chars().take(room.saturating_sub(3)).collect();
            *last = format!("{}...", kept.trim_end());
        }
    }
    out
}

/// Replaces characters that the Latin 1 fonts lack.
fn latin(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{2018}' | '\u{2019}' => out.push('\''),
            '\u{201c}' | '\u{201d}' => out.push('"'),
            '\u{2010}'..='\u{2015}' | '\u{2212}' => out.push('-'),
            '\u{2026}' => out.push_str("..."),
            _ if character.is_whitespace() || character.is_control() => out.push(' '),
            '\0'..='\u{ff}' => out.push(character),
            _ => out.push('?'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(text: &str, max: usize) -> Vec<String> {
        wrap(&[text.to_owned()], 60, &FONT_6X12, max) // ten characters a line
    }

    #[test]
    fn text_is_wrapped_and_cut() {
        assert_eq!(wrapped("a red apple on a table", 9), ["a red", "apple on a", "table"]);
        assert_eq!(wrapped("a red apple on a table", 2), ["a red", "apple o..."]);
        assert_eq!(wrapped("incomprehensibilities", 9), ["incomprehe", "nsibilitie", "s"]);
        assert_eq!(wrapped("", 9), [""; 0]);
        assert_eq!(wrapped("\u{201c}caf\u{e9}\u{201d}\n\u{4f60}", 9), ["\"caf\u{e9}\" ?"]);
    }

    #[test]
    fn a_sheet_grows_with_its_cells() {
        let image = RgbImage::from_pixel(8, 4, Rgb([200, 0, 0]));
        let cell = |lines: usize| Cell {
            image: image.clone(),
            title: "#1 +0.5".into(),
            lines: vec!["a caption".into(); lines],
        };
        let heading = Heading { title: "a heading", ..Heading::default() };
        let empty = contact_sheet(&image, Heading::default(), &[]);
        let one = contact_sheet(&image, heading, &[cell(1)]);
        let many = contact_sheet(&image, heading, &vec![cell(1); 11]);
        assert_eq!(empty.width(), one.width());
        assert!(empty.height() < one.height() && one.height() < many.height());
        assert_eq!(many.width(), across(COLUMNS) + 2 * MARGIN);
        let row = one.height() - empty.height();
        assert_eq!(many.height() - empty.height(), 3 * row, "eleven cells are three rows");
        assert_eq!(contact_sheet(&image, heading, &[cell(9)]).height(), one.height() + 5 * 13);
        assert_eq!(one[(MARGIN + QUERY / 2, MARGIN + QUERY / 2)], Rgb([200, 0, 0]));
    }

    #[test]
    fn extreme_shapes_are_drawn() {
        for (width, height) in [(1, 1), (1, 900), (900, 1), (0, 0)] {
            let words = "word ".repeat(500);
            let heading = Heading { title: &words, notes: std::slice::from_ref(&words), legend: &words };
            contact_sheet(&RgbImage::new(width, height), heading, &[]);
        }
    }
}
