//! Normal numbers by place, the same on a CPU and on a GPU: the source is `philox.cuh`, which the C++ compiler takes here.

use rayon::prelude::*;

/// The source for a GPU, whose kernel is `philox_normals`. It is to be compiled without fused multiply-adds.
pub const SOURCE: &str = include_str!("philox.cuh");

/// Where a row's numbers are: three words. The fourth counts four numbers of the row at a time.
pub type Place = [u32; 3];

unsafe extern "C" {
    fn attrflow_philox_normals(out: *mut f32, count: u64, place: *const u32, key: *const u32);
    fn attrflow_philox_words(place: *const u32, key: *const u32, out: *mut u32);
    fn attrflow_philox_transform(words: *const u32, out: *mut f32);
}

/// Fills rows of one length, one for each place: side by side if `parallel`.
///
/// # Panics
/// If `out` does not have as many rows as there are places.
pub fn normals(key: [u32; 2], places: &[Place], parallel: bool, out: &mut [f32]) {
    let Some(count) = out.len().checked_div(places.len()).filter(|count| *count > 0) else {
        assert!(out.is_empty(), "numbers without a place");
        return;
    };
    assert_eq!(out.len(), count * places.len(), "rows of one length");
    let fill = |(row, place): (&mut [f32], &Place)| {
        // SAFETY: the row has so many numbers, and place and key so many words as the function reads.
        unsafe { attrflow_philox_normals(row.as_mut_ptr(), row.len() as u64, place.as_ptr(), key.as_ptr()) }
    };
    if parallel {
        out.par_chunks_mut(count).zip(places).for_each(fill);
    } else {
        out.chunks_mut(count).zip(places).for_each(fill);
    }
}

/// The 128 bits of one place by Philox4x32-10.
pub fn words(place: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut out = [0; 4];
    // SAFETY: all arrays have the sizes that the function reads and writes.
    unsafe { attrflow_philox_words(place.as_ptr(), key.as_ptr(), out.as_mut_ptr()) };
    out
}

/// The four normal numbers of 128 bits.
pub fn transform(words: [u32; 4]) -> [f32; 4] {
    let mut out = [0.0; 4];
    // SAFETY: all arrays have the sizes that the function reads and writes.
    unsafe { attrflow_philox_transform(words.as_ptr(), out.as_mut_ptr()) };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that its authors publish with Random123.
    #[test]
    fn bits_are_philoxs() {
        assert_eq!(words([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(words([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let found = words(pi, [0xa409_3822, 0x299f_31d0]);
        assert_eq!(found, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn numbers_are_those_of_the_transform_in_float64() {
        let ends = [0, 1, 2, 255, 1 << 29, (1 << 29) - 1, 1 << 30, 1 << 31, !0 - 128, !0 - 127, !0];
        let drawn = (0..20_000).flat_map(|place| words([place, 1, 2, 3], [4, 5]));
        let all: Vec<u32> = ends.into_iter().chain(drawn).collect();
        let mut worst: f64 = 0.0;
        for pair in all.windows(2) {
            let [a, b] = [pair[0], pair[1]];
            // Uniform numbers in float32 as they are drawn; everything after them in float64.
            let u = f64::from((a as f32 + 0.5) * 2f32.powi(-32));
            let (length, angle) =
                ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * f64::from(b) / 2f64.powi(32));
            let found = transform([a, b, b, a]);
            for (found, expected) in [(found[0], length * angle.cos()), (found[1], length * angle.sin())] {
                worst = worst.max((f64::from(found) - expected).abs());
            }
        }
        assert!(worst < 2e-6, "{worst}");
    }

    #[test]
    fn rows_are_where_their_places_say() {
        let mut all = vec![0.0; 3 * 10];
        let places = [[7, 8, 9], [7, 8, 10], [6, 8, 9]];
        normals([1, 2], &places, true, &mut all);
        for (place, row) in places.iter().zip(all.chunks(10)) {
            let mut alone = vec![0.0; 10];
            normals([1, 2], &[*place], false, &mut alone);
            assert_eq!(row, alone);
            // A longer row begins with the same numbers.
            let mut longer = vec![0.0; 13];
            normals([1, 2], &[*place], false, &mut longer);
            assert_eq!(row, &longer[..10]);
            let second = transform(words([1, place[0], place[1], place[2]], [1, 2]));
            assert_eq!(row[4..8], second);
        }
        normals([1, 2], &[], false, &mut []);
    }

    #[test]
    fn numbers_are_normal() {
        let mut drawn = vec![0.0; 1 << 20];
        normals([3, 4], &[[0, 0, 0]], false, &mut drawn);
        let count = drawn.len() as f64;
        let moment = |power: i32| drawn.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / count;
        // Four standard errors of each.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = 4.0 * (variance / count as f64).sqrt();
            assert!((moment(power) - expected).abs() < error, "{power}: {}", moment(power));
        }
        let beyond = drawn.iter().filter(|x| x.abs() > 3.0).count() as f64 / count;
        assert!((beyond - 0.002_699_8).abs() < 4.0 * (0.0027f64 / count).sqrt(), "{beyond}");
        let beside =
            drawn.windows(2).map(|pair| f64::from(pair[0]) * f64::from(pair[1])).sum::<f64>() / count;
        assert!(beside.abs() < 4.0 / count.sqrt(), "{beside}");
    }
}
