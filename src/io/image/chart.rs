//! Charts of lines, points and text, as PNG and as SVG from one description.

use std::fmt::Write as _;
use std::path::Path;

pub use super::canvas::Color;
use super::canvas::{Canvas, Outline};
use super::text::Style;
use super::{ImageError, save_png};
use crate::io::xml::escaped;

/// The pixels of a PNG for each of the chart, so that it is sharp on a dense screen.
const SCALE: u32 = 2;

/// The size of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Font {
    /// Of the title.
    Title,
    /// Of headings.
    Bold,
    /// Of all else.
    Plain,
}

impl Font {
    /// Room for the width of a character, on average, and for the height of a line, in pixels.
    pub fn size(self) -> [i32; 2] {
        match self {
            Self::Title => [10, 23],
            Self::Bold | Self::Plain => [7, 16],
        }
    }

    /// How far below the top of a line its letters stand.
    fn baseline(self) -> i32 {
        match self {
            Self::Title => 16,
            Self::Bold | Self::Plain => 11,
        }
    }

    fn style(self, color: Color) -> Style {
        let size = if self == Self::Title { 18 } else { 12 };
        Style { size: size * SCALE, bold: self != Self::Plain, color }
    }
}

/// Where a text stands: its place is its left end, its middle, or its right end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The left end.
    Start,
    /// The middle.
    Middle,
    /// The right end.
    End,
}

#[derive(Debug, Clone)]
enum Shape {
    Line { from: [i32; 2], to: [i32; 2], width: u32, color: Color },
    Dot { at: [i32; 2], radius: u32, color: Color },
    Bar { at: [i32; 2], size: [u32; 2], color: Color },
    Text { at: [i32; 2], text: String, font: Font, anchor: Anchor, color: Color },
}

/// A chart under construction. Places are pixels from the left upper corner.
#[derive(Debug, Clone)]
pub struct Chart {
    size: [u32; 2],
    title: String,
    shapes: Vec<Shape>,
}

impl Chart {
    /// An empty chart of a width and height; the title is for those who cannot see it.
    pub fn new(size: [u32; 2], title: &str) -> Self {
        Self { size, title: title.to_owned(), shapes: Vec::new() }
    }

    /// A straight line.
    pub fn line(&mut self, from: [i32; 2], to: [i32; 2], width: u32, color: Color) {
        self.shapes.push(Shape::Line { from, to, width, color });
    }

    /// A filled circle.
    pub fn dot(&mut self, at: [i32; 2], radius: u32, color: Color) {
        self.shapes.push(Shape::Dot { at, radius, color });
    }

    /// A filled rectangle; `at` is its left upper corner.
    pub fn bar(&mut self, at: [i32; 2], size: [u32; 2], color: Color) {
        self.shapes.push(Shape::Bar { at, size, color });
    }

    /// A line of text; the place is at the top of it.
    pub fn text(&mut self, at: [i32; 2], text: &str, font: Font, anchor: Anchor, color: Color) {
        self.shapes.push(Shape::Text { at, text: text.to_owned(), font, anchor, color });
    }

    /// Writes it as PNG, with two pixels for each of the chart.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_png(&self, path: &Path) -> Result<(), ImageError> {
        let [width, height] = self.size;
        let mut canvas = Canvas::white(width * SCALE, height * SCALE);
        self.shapes.iter().for_each(|shape| canvas.shape(shape));
        save_png(&canvas.0, path)
    }

    /// The chart as SVG.
    pub fn svg(&self) -> String {
        let [width, height] = self.size;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\">\n<title>{}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            escaped(&self.title)
        );
        // Writing to a text cannot fail.
        self.shapes.iter().for_each(|shape| _ = element(&mut out, shape));
        out + "</svg>\n"
    }
}

fn hex([red, green, blue]: Color) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn element(out: &mut String, shape: &Shape) -> std::fmt::Result {
    match shape {
        Shape::Line { from: [x1, y1], to: [x2, y2], width, color } => writeln!(
            out,
            "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"{}\" stroke-width=\"{width}\"/>",
            hex(*color)
        ),
        Shape::Dot { at: [x, y], radius, color } => {
            writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{}\"/>", hex(*color))
        }
        Shape::Bar { at: [x, y], size: [width, height], color } => writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{}\"/>",
            hex(*color)
        ),
        Shape::Text { at: [x, y], text, font, anchor, color } => {
            let weight = if *font == Font::Plain { "normal" } else { "bold" };
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let size = font.baseline();
            let (y, fill, text) = (y + size, hex(*color), escaped(text));
            writeln!(
                out,
                "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" font-weight=\"{weight}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{text}</text>"
            )
        }
    }
}

impl Canvas {
    fn shape(&mut self, shape: &Shape) {
        let scale = SCALE as f32;
        let place = |at: &[i32; 2]| at.map(|length| length as f32 * scale);
        match shape {
            Shape::Line { from, to, width, color } => {
                self.fill(&Outline::line(place(from), place(to), *width as f32 * scale), *color);
            }
            Shape::Dot { at, radius, color } => {
                self.fill(&Outline::circle(place(at), *radius as f32 * scale), *color);
            }
            Shape::Bar { at, size, color } => {
                let size = size.map(|length| length as f32 * scale);
                self.fill(&Outline::rectangle(place(at), size), *color);
            }
            Shape::Text { at: [x, y], text, font, anchor, color } => {
                let (at, style) = (place(&[*x, y + font.baseline()]), font.style(*color));
                match anchor {
                    Anchor::Start => self.text(text, at, style),
                    Anchor::Middle => self.text_around(text, at, style),
                    Anchor::End => self.text_before(text, at, style),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ::image::Rgb;

    use super::*;

    #[test]
    fn both_forms_have_every_shape() {
        let mut chart = Chart::new([60, 40], "a <chart>");
        chart.line([0, 0], [9, 0], 1, [1, 2, 3]);
        chart.dot([20, 20], 3, [200, 0, 0]);
        chart.bar([30, 30], [5, 5], [0, 200, 0]);
        chart.text([59, 10], "a & b", Font::Plain, Anchor::End, [0; 3]);
        let svg = chart.svg();
        for part in
            ["<title>a &lt;chart&gt;</title>", "#010203", "r=\"3\"", "width=\"5\"", ">a &amp; b</text>"]
        {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chart.png");
        chart.save_png(&file).unwrap();
        let found = super::super::load_rgb(&file).unwrap();
        assert_eq!(found.dimensions(), (120, 80));
        for (at, color) in
            [((10, 0), [1, 2, 3]), ((40, 40), [200, 0, 0]), ((68, 68), [0, 200, 0]), ((4, 60), [255; 3])]
        {
            assert_eq!(found[at], Rgb(color), "{at:?}");
        }
        let dark = found.enumerate_pixels().filter(|(x, y, pixel)| *x > 48 && *y < 52 && pixel.0[0] < 60);
        assert!(dark.count() > 40, "no text");
    }
}
