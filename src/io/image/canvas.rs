//! A picture to draw on. Edges are smooth, and the same input gives the same file on every machine: all arithmetic is
//! that of IEEE's 32-bit numbers, without the functions that mathematical libraries compute differently.

use ::image::{Rgb, RgbImage};
use ab_glyph_rasterizer::{Rasterizer, point};

/// A color: red, green, blue.
pub type Color = [u8; 3];

/// A place in pixels: to the right, and down.
pub(super) type Place = [f32; 2];

/// The longest outline that is drawn, in pixels: a longer one is far outside of any picture.
const LONGEST: f32 = 32_768.0;
/// The tangent of 22.5 degrees: where the control point of an eighth of a circle lies.
const EIGHTH: f32 = 0.414_213_56;
/// The sine of 45 degrees.
const DIAGONAL: f32 = 0.707_106_77;

/// Closed lines around an area; the inside is left of or right of all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Outline {
    curves: Vec<[Place; 3]>,
    start: Place,
    at: Place,
}

impl Outline {
    /// A circle.
    pub fn circle([x, y]: Place, radius: f32) -> Self {
        let mut outline = Self::default();
        let corner = |[dx, dy]: Place| [x + radius * dx, y + radius * dy];
        outline.start(corner([1.0, 0.0]));
        let turns: [fn(Place) -> Place; 4] =
            [|place| place, |[x, y]| [-y, x], |[x, y]| [-x, -y], |[x, y]| [y, -x]];
        for turn in turns {
            outline.curve(corner(turn([1.0, EIGHTH])), corner(turn([DIAGONAL, DIAGONAL])));
            outline.curve(corner(turn([EIGHTH, 1.0])), corner(turn([0.0, 1.0])));
        }
        outline
    }

    /// A straight line of some width.
    pub fn line(from: Place, to: Place, width: f32) -> Self {
        let [dx, dy] = [to[0] - from[0], to[1] - from[1]];
        let length = (dx * dx + dy * dy).sqrt();
        let mut outline = Self::default();
        if length > 0.0 {
            let [x, y] = [-dy, dx].map(|across| across * width / (2.0 * length));
            outline.start([from[0] + x, from[1] + y]);
            outline.to([to[0] + x, to[1] + y]);
            outline.to([to[0] - x, to[1] - y]);
            outline.to([from[0] - x, from[1] - y]);
            outline.close();
        }
        outline
    }

    /// A rectangle; `at` is its left upper corner.
    pub fn rectangle([x, y]: Place, [width, height]: Place) -> Self {
        let middle = y + height / 2.0;
        Self::line([x, middle], [x + width, middle], height)
    }

    /// Begins a closed line.
    pub fn start(&mut self, at: Place) {
        (self.start, self.at) = (at, at);
    }

    /// A straight part of it.
    pub fn to(&mut self, to: Place) {
        self.curve(self.at, to);
    }

    /// A curved part, by a quadratic Bézier curve.
    pub fn curve(&mut self, control: Place, to: Place) {
        self.curves.push([self.at, control, to]);
        self.at = to;
    }

    /// Closes it.
    pub fn close(&mut self) {
        self.to(self.start);
    }

    /// It around another place, larger by a factor.
    pub fn placed(mut self, [x, y]: Place, factor: f32) -> Self {
        for place in self.curves.iter_mut().flatten() {
            *place = [x + factor * place[0], y + factor * place[1]];
        }
        self
    }

    /// The least and the greatest place.
    fn bounds(&self) -> [Place; 2] {
        let places = self.curves.iter().flatten();
        places.fold([[f32::INFINITY; 2], [f32::NEG_INFINITY; 2]], |[low, high], place| {
            [[low[0].min(place[0]), low[1].min(place[1])], [high[0].max(place[0]), high[1].max(place[1])]]
        })
    }
}

/// The picture under construction; what lies outside of it is not drawn.
pub(super) struct Canvas(pub RgbImage);

impl Canvas {
    /// A white one.
    pub fn white(width: u32, height: u32) -> Self {
        Self(RgbImage::from_pixel(width, height, Rgb([255; 3])))
    }

    /// Fills an area.
    pub fn fill(&mut self, outline: &Outline, color: Color) {
        let [low, high] = outline.bounds();
        let [left, top] = low.map(f32::floor);
        let [width, height] = [high[0].ceil() - left, high[1].ceil() - top];
        let outside = high.iter().any(|edge| *edge < 0.0)
            || left > self.0.width() as f32
            || top > self.0.height() as f32;
        // Also false for what is no number.
        let fits = |length: f32| (0.0..=LONGEST).contains(&length);
        if outside || !fits(width) || !fits(height) {
            return;
        }
        let mut area = Rasterizer::new(width as usize, height as usize);
        for curve in &outline.curves {
            let [from, control, to] = curve.map(|[x, y]| point(x - left, y - top));
            if from == control {
                area.draw_line(from, to);
            } else {
                area.draw_quad(from, control, to);
            }
        }
        let [left, top] = [left as i64, top as i64];
        area.for_each_pixel_2d(|x, y, covered| {
            self.blend([left + i64::from(x), top + i64::from(y)], covered, color);
        });
    }

    /// Paints a share of a pixel.
    fn blend(&mut self, [x, y]: [i64; 2], covered: f32, color: Color) {
        let share = (covered.clamp(0.0, 1.0) * 255.0 + 0.5) as u32;
        let inside = u32::try_from(x).ok().zip(u32::try_from(y).ok());
        let Some(pixel) = inside.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) else { return };
        for (old, new) in pixel.0.iter_mut().zip(color) {
            *old = ((u32::from(*old) * (255 - share) + u32::from(new) * share + 127) / 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink(outline: &Outline) -> f64 {
        let mut canvas = Canvas::white(40, 40);
        canvas.fill(outline, [0; 3]);
        canvas.0.pixels().map(|pixel| f64::from(255 - pixel.0[0]) / 255.0).sum()
    }

    #[test]
    fn areas_are_as_large_as_they_should_be() {
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.01 * expected, "{found}");
        near(ink(&Outline::rectangle([3.5, 4.25], [10.0, 3.0])), 30.0);
        near(ink(&Outline::circle([20.0, 20.0], 10.0)), std::f64::consts::PI * 100.0);
        near(ink(&Outline::line([5.0, 5.0], [29.0, 37.0], 2.0)), 80.0);
        near(ink(&Outline::rectangle([-5.0, -5.0], [10.0, 10.0])), 25.0);
        near(ink(&Outline::rectangle([0.0, 0.0], [1.0, 1.0]).placed([5.5, 5.5], 3.0)), 9.0);
    }

    #[test]
    fn what_is_outside_is_not_drawn() {
        for place in [f32::NAN, f32::INFINITY, -1e30, 1e30, -90.0, 90.0] {
            assert_eq!(ink(&Outline::circle([place, 5.0], 5.0)), 0.0, "{place}");
            assert_eq!(ink(&Outline::line([5.0, place], [9.0, place], 5.0)), 0.0, "{place}");
        }
        assert_eq!(ink(&Outline::circle([5.0, 5.0], f32::INFINITY)), 0.0);
        assert_eq!(ink(&Outline::line([5.0, 5.0], [5.0, 5.0], 3.0)), 0.0);
        assert_eq!(ink(&Outline::default()), 0.0);
    }
}
