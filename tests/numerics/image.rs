//! Images against Pillow, torchvision's rules and diffusers (`tests/golden/make_image.py`).

use attrflow::io::image;
use image::resize::{Filter, shorter_side};
use image::{center_crop, from_unit, load_rgb};
use tch::Tensor;

use crate::golden;

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

#[test]
fn every_mode_is_read_as_pillow_reads_it() {
    for (key, expected) in golden::load("image") {
        let Some(name) = key.strip_prefix("load/") else { continue };
        let rgb = load_rgb(golden::path("tests/golden/image").join(name)).unwrap();
        assert_eq!([i64::from(rgb.height()), i64::from(rgb.width()), 3], expected.size()[..], "{name}");
        let expected = bytes(&expected);
        if name.ends_with(".jpg") {
            // Decoders differ in how they round, and in how they enlarge the colour planes.
            let difference = rgb.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
            assert!(difference.clone().max().unwrap() <= 3, "{name}: {:?}", difference.max());
        } else {
            assert!(*rgb.as_raw() == expected, "{name}");
        }
    }
}

#[test]
fn resize_and_crop_are_pillows_to_the_byte() {
    let mut compared = 0;
    for (key, expected) in golden::load("image") {
        let parts: Vec<&str> = key.split('/').collect();
        let ["fit", filter, name, size] = parts[..] else { continue };
        let filter = if filter == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        let rgb = load_rgb(golden::path("tests/golden/image").join(name)).unwrap();
        let size = size.parse().unwrap();
        let found = center_crop(&shorter_side(&rgb, size, filter), size).unwrap();
        assert!(*found.as_raw() == bytes(&expected), "{filter:?}: {name} to {size}");
        compared += 1;
    }
    assert_eq!(compared, 16);
}

#[test]
fn eight_bits_are_rounded_as_diffusers_rounds_them() {
    let expected = golden::load("image");
    let chw = Vec::<f32>::try_from(expected["bytes/in"].flatten(0, -1)).unwrap();
    assert!(*from_unit(&chw, 32, 24).as_raw() == bytes(&expected["bytes/out"]));
}
