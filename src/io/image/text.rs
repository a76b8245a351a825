//! Text in pictures, drawn in fonts that are part of the program, so that it looks the same on every machine.
//!
//! Noto Sans has the letters that stand one after another from left to right: Latin, Greek, Cyrillic. Other characters are
//! boxes with the digits of their code points.

use std::sync::LazyLock;

use icu_normalizer::ComposingNormalizerBorrowed;
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use super::canvas::{Canvas, Color, Outline, Place};

/// The fonts, in the order in which they are asked for a character; bold text begins with the first, other text with the
/// second.
static FONTS: LazyLock<Vec<Face<'static>>> = LazyLock::new(|| {
    let files: [&[u8]; 4] = [
        include_bytes!("fonts/NotoSans-Bold.ttf"),
        include_bytes!("fonts/NotoSans-Regular.ttf"),
        include_bytes!("fonts/NotoSansMath-Regular.ttf"),
        include_bytes!("fonts/NotoSansSymbols2-Regular.ttf"),
    ];
    files.iter().flat_map(|file| Face::parse(file, 0)).collect()
});
/// Lengths in all fonts are in thousandths of the size.
const UNITS: f32 = 1000.0;
/// The most characters in a row that are shown as boxes; of more, their number is shown.
const MOST_BOXES: usize = 8;
/// The most marks on one letter that are drawn.
const MOST_MARKS: usize = 2;

/// How text looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// The height of a line without its leading, in pixels.
    pub size: u32,
    pub bold: bool,
    pub color: Color,
}

impl Style {
    /// From one line to the next, in pixels.
    pub const fn line_height(self) -> u32 {
        self.size * 27 / 20
    }

    /// The width of a legible text, in pixels.
    fn width(self, text: &str) -> f32 {
        text.chars().map(|character| self.advance(character)).sum()
    }

    fn advance(self, character: char) -> f32 {
        let units = match glyph(character, self.bold) {
            Some((font, glyph)) => font.glyph_hor_advance(glyph).unwrap_or(0).into(),
            None => Digits::of(character).width(),
        };
        units * self.size as f32 / UNITS
    }

    /// The lines of a text, broken at spaces so that they fit; the last of `most` ends in dots if more follow.
    pub fn wrap(self, text: &str, width: f32, most: usize) -> Vec<String> {
        let (mut lines, mut line) = (Vec::new(), String::new());
        for word in legible(text).split_whitespace() {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if self.width(&longer) <= width {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(line);
            }
            line = word.to_owned();
            // A word longer than a line is cut where the line ends.
            while lines.len() <= most && self.width(&line) > width {
                let rest = line.split_off(self.fitting(&line, width));
                lines.push(std::mem::replace(&mut line, rest));
            }
            if lines.len() > most {
                break;
            }
        }
        if !line.is_empty() {
            lines.push(line);
        }
        if lines.len() > most {
            lines.truncate(most);
            if let Some(last) = lines.last_mut() {
                last.truncate(self.fitting(last, width - self.width("…")));
                *last = format!("{}…", last.trim_end());
            }
        }
        lines
    }

    /// A text on one line; if it does not fit, without its middle.
    pub fn elide(self, text: &str, width: f32) -> String {
        let text = legible(text);
        if self.width(&text) <= width {
            return text;
        }
        let room = width - self.width("…");
        // The end tells more: the number of a file and its extension.
        let mut tail = 0.0;
        let rest = text.char_indices().rev().take_while(|(_, character)| {
            tail += self.advance(*character);
            tail <= 0.6 * room
        });
        let end = &text[rest.last().map_or(text.len(), |(at, _)| at)..];
        let start = &text[..self.fitting(&text, room - self.width(end))];
        format!("{}…{}", start.trim_end(), end.trim_start())
    }

    /// How many bytes of a text fit; one character at least.
    fn fitting(self, text: &str, width: f32) -> usize {
        let mut sum = 0.0;
        let over = text.char_indices().find(|(at, character)| {
            sum += self.advance(*character);
            *at > 0 && sum > width
        });
        over.map_or(text.len(), |(at, _)| at)
    }
}

/// The first font that has a character, and where.
fn glyph(character: char, bold: bool) -> Option<(&'static Face<'static>, GlyphId)> {
    FONTS.iter().skip(usize::from(!bold)).find_map(|font| Some((font, font.glyph_index(character)?)))
}

/// Whether a character is drawn over the one before it.
fn is_mark(character: char) -> bool {
    glyph(character, false).is_some_and(|(font, glyph)| font.glyph_hor_advance(glyph) == Some(0))
}

/// Whether nothing is to be drawn for a character: it joins, parts or varies others. Not among them are marks of
/// direction: text is drawn in its order, and they would change it.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}'
            | '\u{2060}'..='\u{2065}'
            | '\u{206a}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A text as it is drawn: on one line, its marks joined with their letters, without what cannot be seen. Of many
/// characters in a row that no font has, the first are kept, and the number of the others is told.
fn legible(text: &str) -> String {
    let visible: String = text.chars().filter(|character| !is_invisible(*character)).collect();
    let mut out = String::with_capacity(visible.len());
    let (mut boxes, mut hidden, mut marks, mut space) = (0, 0, 0, false);
    for character in ComposingNormalizerBorrowed::new_nfc().normalize(&visible).chars() {
        if character.is_whitespace() || character.is_control() {
            space = true;
            continue;
        }
        let missing = glyph(character, false).is_none();
        if missing && boxes == MOST_BOXES {
            hidden += 1;
            continue;
        }
        boxes = if missing { boxes + 1 } else { 0 };
        marks = if is_mark(character) { marks + 1 } else { 0 };
        out += &more(std::mem::take(&mut hidden));
        if std::mem::take(&mut space) {
            out.push(' ');
        }
        if marks <= MOST_MARKS {
            out.push(character);
        }
    }
    out + &more(hidden)
}

/// The number of the boxes that are not shown.
fn more(hidden: usize) -> String {
    if hidden > 0 { format!("(+{hidden})") } else { String::new() }
}

/// The hexadecimal digits of a character in a box, in two rows.
struct Digits {
    digits: String,
    columns: usize,
}

/// Lengths are in thousandths of the size of the text.
impl Digits {
    const COLUMN: f32 = 320.0;
    const PAD: f32 = 100.0;
    const APART: f32 = 55.0;
    const STROKE: f32 = 50.0;
    /// The size of the digits, and where their rows stand below the line.
    const SIZE: f32 = 460.0;
    const ROWS: [f32; 2] = [-430.0, 80.0];
    const TOP: f32 = -890.0;
    const BOTTOM: f32 = 210.0;

    fn of(character: char) -> Self {
        let code = u32::from(character);
        let columns = if code > 0xffff { 3 } else { 2 };
        Self { digits: format!("{code:0width$X}", width = 2 * columns), columns }
    }

    /// The width with the space around the box.
    fn width(&self) -> f32 {
        self.columns as f32 * Self::COLUMN + 2.0 * (Self::PAD + Self::APART)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        self.start([x, -y]);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.to([x, -y]);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.curve([x1, -y1], [x, -y]);
    }

    /// TrueType's outlines have none.
    fn curve_to(&mut self, _: f32, _: f32, _: f32, _: f32, x: f32, y: f32) {
        self.to([x, -y]);
    }

    fn close(&mut self) {
        self.close();
    }
}

impl Canvas {
    /// Draws a text from the left end of its base line.
    pub fn text(&mut self, text: &str, [x, y]: Place, style: Style) {
        let mut x = x;
        for character in legible(text).chars() {
            match glyph(character, style.bold) {
                Some((font, glyph)) => self.glyph(font, glyph, [x, y], style.size as f32, style.color),
                None => self.digits(&Digits::of(character), [x, y], style),
            }
            x += style.advance(character);
        }
    }

    /// Draws a text up to the right end of its base line.
    pub fn text_before(&mut self, text: &str, [x, y]: Place, style: Style) {
        self.text(text, [x - style.width(&legible(text)), y], style);
    }

    /// Draws a text around the middle of its base line.
    pub fn text_around(&mut self, text: &str, [x, y]: Place, style: Style) {
        self.text(text, [x - style.width(&legible(text)) / 2.0, y], style);
    }

    fn glyph(&mut self, font: &Face<'_>, glyph: GlyphId, at: Place, size: f32, color: Color) {
        let mut outline = Outline::default();
        font.outline_glyph(glyph, &mut outline);
        self.fill(&outline.placed(at, size / UNITS), color);
    }

    fn digits(&mut self, digits: &Digits, [x, y]: Place, style: Style) {
        let factor = style.size as f32 / UNITS;
        let (left, right) = (Digits::APART, digits.width() - Digits::APART);
        let (top, bottom) = (Digits::TOP, Digits::BOTTOM);
        for (inset, color) in [(0.0, style.color), (Digits::STROKE, [255; 3])] {
            let size = [right - left - 2.0 * inset, bottom - top - 2.0 * inset];
            let area = Outline::rectangle([left + inset, top + inset], size);
            self.fill(&area.placed([x, y], factor), color);
        }
        for (place, digit) in digits.digits.chars().enumerate() {
            let Some((font, glyph)) = glyph(digit, true) else { continue };
            let size = Digits::SIZE * factor;
            let wide = f32::from(font.glyph_hor_advance(glyph).unwrap_or(0)) * Digits::SIZE / UNITS;
            let (row, column) = (place / digits.columns, place % digits.columns);
            let middle = left + Digits::PAD + (column as f32 + 0.5) * Digits::COLUMN;
            let at = [x + (middle - wide / 2.0) * factor, y + Digits::ROWS[row] * factor];
            self.glyph(font, glyph, at, size, style.color);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style { size: 20, bold: false, color: [0; 3] };

    fn drawn(text: &str, style: Style) -> Vec<u8> {
        let mut canvas = Canvas::white(400, 30);
        canvas.text(text, [5.0, 22.0], style);
        canvas.0.into_raw()
    }

    #[test]
    fn the_fonts_have_what_is_written_most() {
        assert_eq!(FONTS.len(), 4);
        for font in FONTS.iter() {
            assert_eq!(f32::from(font.units_per_em()), UNITS);
        }
        for character in "AZaz09 ~ÀÿĀſƀɏΑωАяѢảỹ–—‘’“”…•€₹№™←→≈≤±×÷−√∞★♥✓\u{fffd}".chars()
        {
            assert!(glyph(character, false).is_some() && glyph(character, true).is_some(), "{character}");
        }
        for character in "你あ한אبनก\u{1f600}\u{202e}\u{200f}\u{e000}".chars() {
            assert!(glyph(character, false).is_none(), "{character}");
        }
    }

    #[test]
    fn what_cannot_be_seen_leaves_no_trace() {
        for (text, expected) in [
            ("a\n\tb \u{a0} c\u{0}d", "a b c d"),
            ("cafe\u{301}", "café"),
            ("a\u{200b}b\u{ad}c\u{feff}d\u{fe0f}e\u{200d}", "abcde"),
            ("a\u{202e}b", "a\u{202e}b"),
            ("Z\u{302}\u{303}\u{304}\u{305}algo", "\u{1e90}\u{303}\u{304}algo"),
            (" ", ""),
            ("", ""),
        ] {
            assert_eq!(legible(text), expected, "{text:?}");
        }
    }

    #[test]
    fn many_boxes_are_counted() {
        for (text, expected) in [
            ("你好你好你好你好", "你好你好你好你好"),
            ("你好你好你好你好你", "你好你好你好你好(+1)"),
            ("你好 你好 你好你好 你好 cat 你", "你好 你好 你好你好(+2) cat 你"),
            ("你好你好你好你好你好.jpg", "你好你好你好你好(+2).jpg"),
        ] {
            assert_eq!(legible(text), expected, "{text:?}");
            assert_eq!(legible(expected), expected, "twice: {text:?}");
        }
    }

    #[test]
    fn other_scripts_are_marked_each_by_its_own_mark() {
        let blank = drawn("", STYLE);
        let texts = ["?", "你", "好", "ب", "א", "\u{1f600}", "\u{1f601}", "\u{202e}"];
        let drawn = texts.map(|text| drawn(text, STYLE));
        for (place, one) in drawn.iter().enumerate() {
            assert!(*one != blank && !drawn[..place].contains(one), "{}", texts[place]);
        }
        assert!(STYLE.advance('\u{1f600}') > STYLE.advance('你') && STYLE.advance('你') > 15.0);
    }

    #[test]
    fn text_is_wrapped_and_cut() {
        let wrapped = |text: &str, most: usize| STYLE.wrap(text, 100.0, most);
        assert_eq!(wrapped("a red apple on a table", 9), ["a red", "apple on a", "table"]);
        assert_eq!(wrapped("a red apple on a table", 1), ["a red…"]);
        assert_eq!(wrapped("incomprehensibilities", 9), ["incompre", "hensibiliti", "es"]);
        assert_eq!(wrapped("", 9), [""; 0]);
        let long = "word ".repeat(100_000) + &"w".repeat(100_000);
        for most in [1, 4] {
            let lines = wrapped(&long, most);
            assert!(lines.len() == most && lines.iter().all(|line| STYLE.width(line) <= 100.0), "{lines:?}");
        }
        // Narrower than a letter: nothing hangs.
        assert_eq!(STYLE.wrap("abc", 1.0, 2), ["a", "b…"]);
    }

    #[test]
    fn a_long_name_loses_its_middle() {
        let elided = |text: &str| STYLE.elide(text, 180.0);
        assert_eq!(elided("000000000009.jpg"), "000000000009.jpg");
        assert_eq!(elided("train2014/COCO_train2014_000000000009.jpg"), "train20…00009.jpg");
        assert!(STYLE.width(&elided(&"照".repeat(999))) <= 180.0);
        assert_eq!(STYLE.elide("abc", 1.0), "a…");
    }
}
