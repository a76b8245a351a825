//! Pictures on a terminal: by its graphics protocol, else as half blocks.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use console::Term;
use image::codecs::png::PngEncoder;
use image::imageops::{ColorMap, dither};
use image::{ImageEncoder as _, Rgb, RgbImage, Rgba, RgbaImage};

/// How a terminal shows pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graphics {
    /// Two pixels in each character, by its colours.
    Blocks,
    /// The protocol of kitty and Ghostty.
    Kitty,
    /// Sixel, of foot, WezTerm, Konsole, mlterm, iTerm2.
    Sixel,
}

/// What is between pictures and before them.
const GAP: u32 = 1;
/// Pixels of a character, where the terminal does not say.
const CHARACTER: [u32; 2] = [10, 20];
/// The most bytes of base64 in one command of kitty.
const CHUNK: usize = 4096;

impl Graphics {
    /// What the terminal on standard output can, by the variables that terminals set; `None` where there is none, or no colour.
    ///
    /// The terminal is not asked: one that does not answer would hold up the program.
    pub fn detect() -> Option<Self> {
        let terminal = Term::stdout();
        (terminal.is_term() && console::colors_enabled())
            .then(|| Self::of(|name| std::env::var(name).ok().filter(|value| !value.is_empty())))
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let (term, program) =
            (variable("TERM").unwrap_or_default(), variable("TERM_PROGRAM").unwrap_or_default());
        let set = |names: &[&str]| names.iter().any(|name| variable(name).is_some());
        let is = |names: &[&str]| names.iter().any(|name| term.contains(name) || program == *name);
        match () {
            // Multiplexers keep such commands from the terminal behind them.
            () if set(&["TMUX", "STY"]) => Self::Blocks,
            () if set(&["KITTY_WINDOW_ID"]) || is(&["kitty", "ghostty"]) => Self::Kitty,
            () if set(&["KONSOLE_VERSION"]) || is(&["sixel", "foot", "mlterm", "WezTerm", "iTerm.app"]) => {
                Self::Sixel
            }
            () => Self::Blocks,
        }
    }

    /// Characters from one picture to the next.
    pub fn pitch(self) -> u32 {
        self.width() + GAP
    }

    /// The width of a picture in characters; half blocks have few pixels.
    fn width(self) -> u32 {
        if self == Self::Blocks { 18 } else { 12 }
    }

    /// Pixels of a character.
    fn character(self) -> [u32; 2] {
        if self == Self::Blocks {
            return [1, 2];
        }
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
        let pixels = size
            .map(|size| [u32::from(size.ws_xpixel / size.ws_col), u32::from(size.ws_ypixel / size.ws_row)]);
        pixels.filter(|pixels| !pixels.contains(&0)).unwrap_or(CHARACTER)
    }

    /// Pictures side by side, as text with the terminal's commands. One that is `None` leaves its place empty.
    pub fn row(self, pictures: &[Option<RgbImage>]) -> String {
        let character = self.character();
        let (width, rows) = (self.width(), self.width() / 2);
        let side = (width * character[0]).min(rows * character[1]);
        let mut strip =
            RgbaImage::new(pictures.len() as u32 * self.pitch() * character[0], rows * character[1]);
        for (place, picture) in pictures.iter().enumerate() {
            let Some(picture) = picture else { continue };
            let left = place as u32 * self.pitch() * character[0];
            draw(&mut strip, picture, left, side);
        }
        match self {
            Self::Blocks => blocks(&strip, true_color()),
            Self::Kitty => kitty(&strip, [pictures.len() as u32 * self.pitch(), rows]),
            Self::Sixel => sixel(&strip),
        }
    }
}

/// The picture fitted into a square of `side`.
fn draw(strip: &mut RgbaImage, picture: &RgbImage, left: u32, side: u32) {
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return;
    }
    let fit = |length: u32| (length * side / width.max(height)).max(1);
    let scaled =
        image::imageops::resize(picture, fit(width), fit(height), image::imageops::FilterType::CatmullRom);
    let [x, y] = [left + (side - scaled.width()) / 2, (side - scaled.height()) / 2];
    for (column, row, Rgb([r, g, b])) in scaled.enumerate_pixels() {
        strip.put_pixel(x + column, y + row, Rgba([*r, *g, *b, 255]));
    }
}

/// Whether the terminal says that it has all colours; else it has 256.
fn true_color() -> bool {
    std::env::var("COLORTERM").is_ok_and(|value| value == "truecolor" || value == "24bit")
}

/// Two rows of pixels in each line of text.
fn blocks(strip: &RgbaImage, true_color: bool) -> String {
    let color = |Rgba([r, g, b, _]): &Rgba<u8>| match true_color {
        true => format!("2;{r};{g};{b}"),
        // The cube of six steps for each channel.
        false => {
            let step = |value: &u8| (u32::from(*value) * 5 + 127) / 255;
            format!("5;{}", 16 + 36 * step(r) + 6 * step(g) + step(b))
        }
    };
    let mut text = String::new();
    for row in 0..strip.height() / 2 {
        for column in 0..strip.width() {
            let [above, below] = [0, 1].map(|half| strip.get_pixel(column, 2 * row + half));
            let cell = match [above.0[3] > 0, below.0[3] > 0] {
                [false, false] => " ".to_owned(),
                [true, false] => format!("\u{1b}[38;{}m\u{2580}\u{1b}[0m", color(above)),
                [false, true] => format!("\u{1b}[38;{}m\u{2584}\u{1b}[0m", color(below)),
                [true, true] => {
                    format!("\u{1b}[38;{};48;{}m\u{2580}\u{1b}[0m", color(above), color(below))
                }
            };
            text += &cell;
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

/// A PNG in commands of kitty's graphics protocol, over so many columns and rows.
fn kitty(strip: &RgbaImage, [columns, rows]: [u32; 2]) -> String {
    let mut png = Vec::new();
    let (width, height) = strip.dimensions();
    let form = image::ExtendedColorType::Rgba8;
    if PngEncoder::new(&mut png).write_image(strip, width, height, form).is_err() {
        return String::new();
    }
    let data = STANDARD.encode(png);
    let chunks: Vec<&str> =
        (0..data.len()).step_by(CHUNK).map(|start| &data[start..data.len().min(start + CHUNK)]).collect();
    let mut text = String::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let more = u8::from(number + 1 < chunks.len());
        let keys = if number == 0 { format!("a=T,f=100,q=2,c={columns},r={rows},") } else { String::new() };
        _ = write!(text, "\u{1b}_G{keys}m={more};{chunk}\u{1b}\\");
    }
    text + "\n"
}

/// Six steps of red, seven of green, six of blue: 252 colours.
struct Cube;

const STEPS: [u32; 3] = [6, 7, 6];

impl ColorMap for Cube {
    type Color = Rgb<u8>;

    fn index_of(&self, Rgb(color): &Rgb<u8>) -> usize {
        let steps = color.iter().zip(STEPS);
        steps.fold(0, |index, (value, steps)| index * steps + (u32::from(*value) * (steps - 1) + 127) / 255)
            as usize
    }

    fn map_color(&self, color: &mut Rgb<u8>) {
        let mut index = self.index_of(color) as u32;
        for (value, steps) in color.0.iter_mut().zip(STEPS).rev() {
            *value = (index % steps * 255 / (steps - 1)) as u8;
            index /= steps;
        }
    }
}

/// The picture as sixels: bands of six rows, colour by colour.
fn sixel(strip: &RgbaImage) -> String {
    let (width, height) = strip.dimensions();
    let mut rgb = RgbImage::from_fn(width, height, |x, y| {
        let Rgba([r, g, b, _]) = *strip.get_pixel(x, y);
        Rgb([r, g, b])
    });
    dither(&mut rgb, &Cube);
    // The second 1: pixels that no colour has keep the background.
    let mut text = format!("\u{1b}P0;1q\"1;1;{width};{height}");
    for index in 0..STEPS.iter().product::<u32>() {
        let [red, green, blue] =
            [index / (STEPS[1] * STEPS[2]), index / STEPS[2] % STEPS[1], index % STEPS[2]];
        let percent = |value: u32, steps: u32| value * 100 / (steps - 1);
        let [r, g, b] = [percent(red, STEPS[0]), percent(green, STEPS[1]), percent(blue, STEPS[2])];
        _ = write!(text, "#{index};2;{r};{g};{b}");
    }
    for top in (0..height).step_by(6) {
        let mut bits: std::collections::BTreeMap<usize, Vec<u8>> = std::collections::BTreeMap::new();
        for y in top..height.min(top + 6) {
            for x in (0..width).filter(|x| strip.get_pixel(*x, y).0[3] > 0) {
                let color = Cube.index_of(rgb.get_pixel(x, y));
                bits.entry(color).or_insert_with(|| vec![0; width as usize])[x as usize] |= 1 << (y - top);
            }
        }
        for (color, columns) in &bits {
            _ = write!(text, "#{color}");
            for run in columns.chunk_by(|a, b| a == b) {
                let sixel = char::from(63 + run[0]);
                match run.len() {
                    1..=3 => text.extend(std::iter::repeat_n(sixel, run.len())),
                    length => _ = write!(text, "!{length}{sixel}"),
                }
            }
            text.push('$');
        }
        text.push('-');
    }
    text + "\u{1b}\\\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip() -> RgbaImage {
        let mut strip = RgbaImage::new(3, 2);
        strip.put_pixel(0, 0, Rgba([255, 0, 0, 255]));
        strip.put_pixel(0, 1, Rgba([0, 0, 255, 255]));
        strip.put_pixel(1, 1, Rgba([0, 255, 0, 255]));
        strip
    }

    #[test]
    fn terminals_are_known_by_their_variables() {
        let of = |set: &[(&str, &str)]| {
            Graphics::of(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[("TERM", "xterm-256color")]), Graphics::Blocks);
        assert_eq!(of(&[("TERM", "xterm-kitty")]), Graphics::Kitty);
        assert_eq!(of(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/tmux")]), Graphics::Blocks);
        assert_eq!(of(&[("TERM", "foot")]), Graphics::Sixel);
        assert_eq!(of(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "WezTerm")]), Graphics::Sixel);
    }

    #[test]
    fn half_blocks_have_two_pixels_each() {
        let red_over_blue = "\u{1b}[38;2;255;0;0;48;2;0;0;255m\u{2580}\u{1b}[0m";
        let green_below = "\u{1b}[38;2;0;255;0m\u{2584}\u{1b}[0m";
        assert_eq!(blocks(&strip(), true), format!("{red_over_blue}{green_below}\n"));
        assert!(blocks(&strip(), false).starts_with("\u{1b}[38;5;196;48;5;21m"));
    }

    #[test]
    fn kitty_gets_the_bytes_of_a_png_in_chunks() {
        let noise =
            RgbaImage::from_fn(90, 90, |x, y| Rgba([(x * y) as u8, (x ^ y) as u8, (x * 7) as u8, 255]));
        let text = kitty(&noise, [9, 4]);
        let parts: Vec<&str> = text.trim_end().split("\u{1b}\\").filter(|part| !part.is_empty()).collect();
        assert!(parts.len() > 1 && parts[0].starts_with("\u{1b}_Ga=T,f=100,q=2,c=9,r=4,m=1;"));
        let data: String = parts.iter().map(|part| part.split_once(';').unwrap().1).collect();
        let png = STANDARD.decode(data).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgba8(), noise);
        assert!(parts.iter().all(|part| part.split_once(';').unwrap().1.len() <= CHUNK));
        assert!(parts.last().unwrap().starts_with("\u{1b}_Gm=0;"));
    }

    #[test]
    fn sixels_are_the_bits_of_a_band() {
        let text = sixel(&strip());
        assert!(text.starts_with("\u{1b}P0;1q\"1;1;3;2#0;2;0;0;0") && text.ends_with("-\u{1b}\\\n"));
        // Blue is the last step of its channel alone; a bit for the second row, then two empty columns.
        for band in ["#210@??$", "#5A??$", "#36?A?$"] {
            assert!(text.contains(band), "{band} in {text}");
        }
    }

    #[test]
    fn a_row_has_a_place_for_each_picture() {
        let red = RgbImage::from_pixel(4, 4, Rgb([255, 0, 0]));
        let text = Graphics::Blocks.row(&[Some(red), None, Some(RgbImage::new(0, 0))]);
        assert_eq!(text.lines().count(), 9);
        assert!(text.lines().all(|line| line.matches('\u{2580}').count() == 18));
    }
}
