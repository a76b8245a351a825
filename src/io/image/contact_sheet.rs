//! The picture of an influence: the query, and below it the most influential training images.

use ::image::imageops::{self, FilterType};
use ::image::{Rgb, RgbImage};

use super::canvas::{Canvas, Color, Outline};
use super::text::Style;
use crate::io::words::digits;

const MARGIN: u32 = 48;
const GAP: u32 = 32;
/// Side of a training image's square, in pixels.
const CELL: u32 = 288;
/// Side of the query's square.
const QUERY: u32 = 384;
const COLUMNS: usize = 5;
/// The least width of the sheet in columns, so that the heading fits.
const MIN_COLUMNS: usize = 3;
/// Between a picture and the text below it.
const BELOW: u32 = 8;
/// The height of an error bar.
const STRIP: u32 = 36;
/// Between the ends of its axis and the sides of the picture above it.
const INSET: f32 = 8.0;
/// The width of a label of the axis.
const LABEL: f32 = 90.0;
/// The most lines of the title.
const MAX_TITLE: usize = 3;
/// The most lines of a warning or the legend.
const MAX_NOTE: usize = 4;
/// The most lines of a caption.
const MAX_CAPTION: usize = 4;

const DARK: Color = [24; 3];
const SOFT: Color = [104; 3];
const FAINT: Color = [208; 3];
const WARNING: Color = [176, 32, 32];
const BAR: Color = [0, 114, 178];

const TITLE: Style = Style { size: 38, bold: true, color: DARK };
const NOTE: Style = Style { size: 22, bold: false, color: WARNING };
const LEGEND: Style = Style { size: 20, bold: false, color: SOFT };
const RANK: Style = Style { size: 26, bold: true, color: DARK };
const PLAIN: Style = Style { size: 21, bold: false, color: DARK };
const DETAIL: Style = Style { size: 20, bold: false, color: SOFT };
const SMALL: Style = Style { size: 18, bold: false, color: SOFT };
/// Of an empty line, which parts what does not belong together.
const SPACE: Style = Style { size: 8, bold: false, color: SOFT };

/// One training image with the text below it.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The image, of any size.
    pub image: RgbImage,
    /// 1 for the most influential.
    pub rank: usize,
    /// Its influence.
    pub score: f32,
    /// The bounds of the interval of its influence.
    pub interval: Option<[f32; 2]>,
    /// How sure score and rank are, in lines that fit.
    pub details: Vec<String>,
    /// What it shows; a long one is cut.
    pub caption: String,
    /// Its file; a long name loses its middle.
    pub file: String,
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
    let width = across(cells.len().clamp(MIN_COLUMNS, COLUMNS)) + 2 * MARGIN;
    let axis = Axis::of(cells);
    let left = MARGIN + QUERY + GAP + GAP / 2;
    let beside = heading_lines(heading, width - MARGIN - left);
    let below: Vec<Lines> = cells.iter().map(Cell::lines).collect();
    let key = axis.map_or(0, |_| GAP / 2 + STRIP + SMALL.line_height());
    let top = QUERY.max(height(&beside) + key);
    let rows = below.chunks(COLUMNS).map(|row| row.iter().map(|lines| height(lines)).max().unwrap_or(0));
    let strip = axis.map_or(0, |_| STRIP);
    let rows: Vec<u32> = rows.map(|text| CELL + BELOW + RANK.line_height() + strip + text).collect();
    let grid: u32 = rows.iter().map(|row| row + GAP).sum();
    let mut sheet = Canvas::white(width, MARGIN + top + GAP + grid + MARGIN);

    sheet.picture(query, [MARGIN, MARGIN + (top - QUERY) / 2], QUERY);
    let y = sheet.lines(&beside, [left, MARGIN + (top - height(&beside) - key) / 2]);
    if let Some(axis) = axis {
        sheet.key(axis, [left, y + GAP / 2]);
    }
    let mut y = MARGIN + top + GAP;
    sheet.fill(&Outline::rectangle([MARGIN as f32, y as f32], [(width - 2 * MARGIN) as f32, 2.0]), FAINT);
    y += GAP;
    for ((cells, texts), height) in cells.chunks(COLUMNS).zip(below.chunks(COLUMNS)).zip(rows) {
        for (column, (cell, lines)) in cells.iter().zip(texts).enumerate() {
            sheet.cell(cell, lines, axis, [MARGIN + column as u32 * (CELL + GAP), y]);
        }
        y += height + GAP;
    }
    sheet.0
}

fn across(columns: usize) -> u32 {
    columns as u32 * (CELL + GAP) - GAP
}

/// A number with its sign and some digits, with signs of minus that are as wide as those of plus.
fn number(value: f32, significant: usize) -> String {
    let sign = if value < 0.0 { "" } else { "+" };
    (sign.to_owned() + &digits(value.into(), significant)).replace('-', "\u{2212}")
}

/// Lines of text, one below the other.
type Lines = Vec<(String, Style)>;

fn height(lines: &[(String, Style)]) -> u32 {
    lines.iter().map(|(_, style)| style.line_height()).sum()
}

/// A text as lines, with some space below it.
fn paragraph(text: &str, style: Style, width: u32, most: usize) -> Lines {
    let mut lines: Lines =
        style.wrap(text, width as f32, most).into_iter().map(|line| (line, style)).collect();
    if !lines.is_empty() {
        lines.push((String::new(), SPACE));
    }
    lines
}

fn heading_lines(Heading { title, notes, legend }: Heading<'_>, width: u32) -> Lines {
    let mut lines = paragraph(title, TITLE, width, MAX_TITLE);
    lines.extend(notes.iter().flat_map(|note| paragraph(note, NOTE, width, MAX_NOTE)));
    lines.extend(paragraph(legend, LEGEND, width, MAX_NOTE));
    lines
}

impl Cell {
    /// The lines below its error bar.
    fn lines(&self) -> Lines {
        let mut lines: Lines = self.details.iter().map(|detail| (detail.clone(), DETAIL)).collect();
        lines.push((String::new(), SPACE));
        lines.extend(paragraph(&self.caption, PLAIN, CELL, MAX_CAPTION));
        lines.push((SMALL.elide(&self.file, CELL as f32), SMALL));
        lines
    }
}

/// The axis of all error bars: it has the intervals and zero.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    low: f32,
    high: f32,
}

impl Axis {
    /// `None` if there is no interval.
    fn of(cells: &[Cell]) -> Option<Self> {
        let bounds = cells.iter().filter_map(|cell| Some([cell.score, cell.interval?[0], cell.interval?[1]]));
        let bounds: Vec<f32> = bounds.flatten().filter(|bound| bound.is_finite()).collect();
        let fold = |pick: fn(f32, f32) -> f32| bounds.iter().copied().fold(0.0, pick);
        let axis = Self { low: fold(f32::min), high: fold(f32::max) };
        (axis.low < axis.high).then_some(axis)
    }

    /// Where a value lies, from the left side of the picture.
    fn place(self, value: f32) -> f32 {
        let share = (value.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        INSET + share * (CELL as f32 - 2.0 * INSET)
    }
}

impl Canvas {
    fn cell(&mut self, cell: &Cell, lines: &Lines, axis: Option<Axis>, [x, y]: [u32; 2]) {
        self.picture(&cell.image, [x, y], CELL);
        let mut y = y + CELL + BELOW;
        let base = (y + RANK.size) as f32;
        self.text(&format!("{}.", cell.rank), [x as f32, base], RANK);
        self.text_before(&number(cell.score, 4), [(x + CELL) as f32, base], RANK);
        y += RANK.line_height();
        if let Some(axis) = axis {
            self.axis(axis, [x, y]);
            if let Some(interval) = cell.interval {
                self.error_bar(axis, cell.score, interval, [x, y]);
            }
            y += STRIP;
        }
        self.lines(lines, [x, y]);
    }

    /// Draws lines of text; returns where they end.
    fn lines(&mut self, lines: &Lines, [x, mut y]: [u32; 2]) -> u32 {
        for (line, style) in lines {
            self.text(line, [x as f32, (y + style.size) as f32], *style);
            y += style.line_height();
        }
        y
    }

    /// What the axis of the error bars says: its ends and zero.
    fn key(&mut self, axis: Axis, [x, y]: [u32; 2]) {
        self.axis(axis, [x, y]);
        let base = (y + STRIP + SMALL.size) as f32;
        let (x, zero) = (x as f32, axis.place(0.0));
        self.text_around("0", [x + zero, base], SMALL);
        // Not over the zero.
        if zero > LABEL {
            self.text(&number(axis.low, 2), [x, base], SMALL);
        }
        if CELL as f32 - zero > LABEL {
            self.text_before(&number(axis.high, 2), [x + CELL as f32, base], SMALL);
        }
    }

    /// The axis of an error bar with its mark at zero.
    fn axis(&mut self, axis: Axis, [x, y]: [u32; 2]) {
        let (x, y) = (x as f32, y as f32);
        let middle = y + (STRIP / 2) as f32;
        self.fill(&Outline::rectangle([x, middle - 1.0], [CELL as f32, 2.0]), FAINT);
        let zero = x + axis.place(0.0).round();
        self.fill(&Outline::rectangle([zero - 1.0, y + 4.0], [2.0, STRIP as f32 - 8.0]), SOFT);
    }

    fn error_bar(&mut self, axis: Axis, score: f32, interval: [f32; 2], [x, y]: [u32; 2]) {
        let (x, middle) = (x as f32, (y + STRIP / 2) as f32);
        let [low, high] = interval.map(|bound| x + axis.place(bound));
        self.fill(&Outline::line([low, middle], [high, middle], 4.0), BAR);
        for end in [low, high] {
            self.fill(&Outline::line([end, middle - 8.0], [end, middle + 8.0], 3.0), BAR);
        }
        let at = [x + axis.place(score), middle];
        self.fill(&Outline::circle(at, 9.0), [255; 3]);
        self.fill(&Outline::circle(at, 7.0), BAR);
    }

    /// Fits the image into a square of `side`, with a frame, since many images have white borders.
    fn picture(&mut self, image: &RgbImage, [x, y]: [u32; 2], side: u32) {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return;
        }
        let room = side - 2;
        let fit = |length: u32| (length * room / width.max(height)).max(1);
        let scaled = imageops::resize(image, fit(width), fit(height), FilterType::CatmullRom);
        let (left, top) = (x + (side - scaled.width()) / 2, y + (side - scaled.height()) / 2);
        let framed = RgbImage::from_pixel(scaled.width() + 2, scaled.height() + 2, Rgb(FAINT));
        imageops::replace(&mut self.0, &framed, i64::from(left) - 1, i64::from(top) - 1);
        imageops::replace(&mut self.0, &scaled, left.into(), top.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> RgbImage {
        RgbImage::from_pixel(8, 4, Rgb([200, 0, 0]))
    }

    fn cell(caption: &str, interval: Option<[f32; 2]>) -> Cell {
        Cell {
            image: image(),
            rank: 1,
            score: 0.5,
            interval,
            details: Vec::new(),
            caption: caption.into(),
            file: "000000000009.jpg".into(),
        }
    }

    #[test]
    fn a_sheet_grows_with_its_cells() {
        let sheet =
            |cells: &[Cell]| contact_sheet(&image(), Heading { title: "a", ..Heading::default() }, cells);
        let [empty, one, many] = [0, 1, 11].map(|count| sheet(&vec![cell("short", None); count]));
        assert_eq!(empty.width(), one.width());
        assert_eq!(many.width(), across(COLUMNS) + 2 * MARGIN);
        let row = one.height() - empty.height();
        assert_eq!(many.height() - empty.height(), 3 * row, "eleven cells are three rows");
        let long = sheet(&[cell(&"long ".repeat(99), None)]);
        assert_eq!(long.height() - one.height(), (MAX_CAPTION as u32 - 1) * PLAIN.line_height());
        assert_eq!(sheet(&[cell("short", Some([0.4, 0.6]))]).height(), one.height() + STRIP);
        assert_eq!(one[(MARGIN + QUERY / 2, MARGIN + QUERY / 2)], Rgb([200, 0, 0]));
    }

    #[test]
    fn error_bars_share_an_axis_with_zero() {
        let cells = [cell("", Some([0.25, 0.75])), cell("", None), cell("", Some([-0.25, f32::INFINITY]))];
        let axis = Axis::of(&cells).unwrap();
        assert_eq!(axis, Axis { low: -0.25, high: 0.75 });
        assert_eq!(axis.place(0.25), CELL as f32 / 2.0);
        assert_eq!(axis.place(f32::INFINITY), CELL as f32 - INSET);
        assert_eq!(Axis::of(&cells[..1]).unwrap().low, 0.0);
        assert_eq!((Axis::of(&cells[1..2]), Axis::of(&[])), (None, None));

        let sheet = contact_sheet(&image(), Heading::default(), &cells);
        let y = MARGIN + QUERY + 2 * GAP + CELL + BELOW + RANK.line_height() + STRIP / 2;
        let at =
            |column: u32, value: f32| sheet[(MARGIN + column * (CELL + GAP) + axis.place(value) as u32, y)];
        assert_eq!((at(0, 0.5), at(0, 0.3), at(2, 0.6)), (Rgb(BAR), Rgb(BAR), Rgb(BAR)));
        assert_eq!((at(0, 0.1), at(1, 0.5), at(2, 0.0)), (Rgb(FAINT), Rgb(FAINT), Rgb(BAR)));
    }

    #[test]
    fn extreme_shapes_are_drawn() {
        for (width, height) in [(1, 1), (1, 900), (900, 1), (0, 0)] {
            let words = "word ".repeat(500);
            let heading = Heading { title: &words, notes: &[words.clone(), words.clone()], legend: &words };
            contact_sheet(&RgbImage::new(width, height), heading, &[cell(&words, Some([f32::NAN; 2]))]);
        }
    }

    #[test]
    fn the_same_bytes_on_every_machine() {
        let cells = [
            cell("caf\u{e9} \u{2192} \u{4f60}\u{597d}", Some([0.25, 0.75])),
            cell("\u{445}\u{43b}\u{435}\u{431} \u{1f600}", Some([-0.25, 0.5])),
        ];
        let heading = Heading { title: "Title", notes: &["A warning".into()], legend: "What is what" };
        let sheet = contact_sheet(&image(), heading, &cells);
        assert_eq!(
            blake3::hash(sheet.as_raw()).to_hex().as_str(),
            "0dd3dc7b2124ac7ff3c74cfc2604dc84b296554a11f03978a417b5ca004983db"
        );
    }
}
