//! Each fused step against libtorch's own operations.

use super::*;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Numbers of a fixed stream, with the channels lying together.
fn image(size: [i64; 4], salt: f64) -> Tensor {
    let [b, c, h, w] = size;
    numbers(&[b, h, w, c], salt).permute([0, 3, 1, 2])
}

fn numbers(size: &[i64], salt: f64) -> Tensor {
    let count = size.iter().product::<i64>();
    let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * (1.0 + salt);
    ((&angles * 0.7).sin() * 1.3 + (angles * angles_step(salt)).cos()).to_kind(Kind::Float).view(size)
}

fn angles_step(salt: f64) -> f64 {
    0.013 + salt / 7.0
}

fn close(found: &Tensor, expected: &Tensor) {
    within(found, expected, 2e-6);
}

fn within(found: &Tensor, expected: &Tensor, allowed: f64) {
    let scale = expected.abs().max().double_value(&[]);
    let worst = (found - expected).abs().max().double_value(&[]);
    assert!(worst <= allowed * scale, "{worst} of {scale}");
}

#[test]
fn group_norm_is_libtorchs() {
    let (weight, bias) = (numbers(&[48], 0.1), numbers(&[48], 0.2));
    let (a, b) = (image([5, 32, 4, 3], 0.3), image([5, 16, 4, 3], 0.4));
    let x = ConcatInput { first: &a, second: Some(&b) };
    for rows in [1, 5] {
        let shift = numbers(&[rows, 48], 0.5);
        for (shift, silu) in [(Some(&shift), true), (None, false)] {
            let norm = GroupNorm { weight: &weight, bias: &bias, groups: 16, eps: 1e-5, shift, silu };
            let found = group_norm(&norm, &x).unwrap();
            let shifted = match shift {
                Some(shift) => x.cat() + shift.expand([5, 48], false).unsqueeze(-1).unsqueeze(-1),
                None => x.cat(),
            };
            let expected = shifted.group_norm(16, Some(&weight), Some(&bias), 1e-5, true);
            close(&found, &if silu { expected.silu() } else { expected });
            assert!(lies_together(&found));
        }
    }
}

#[test]
fn layer_norm_adds_the_branch_and_normalises() {
    let (weight, bias, more) = (numbers(&[40], 0.1), numbers(&[40], 0.2), numbers(&[40], 0.6));
    let (x, branch) = (numbers(&[3, 7, 40], 0.3), numbers(&[3, 7, 40], 0.4));
    let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5, branch_bias: Some(&more) };
    let sum = &x + &branch + &more;
    let found = layer_norm(&norm, &x, Some(&branch)).unwrap();
    close(&x, &sum);
    close(&found, &sum.layer_norm([40], Some(&weight), Some(&bias), 1e-5, true));
    let alone = layer_norm(&LayerNorm { branch_bias: None, ..norm }, &branch, None).unwrap();
    close(&alone, &branch.layer_norm([40], Some(&weight), Some(&bias), 1e-5, true));
}

#[test]
fn gated_gelu_and_add_are_libtorchs() {
    let both = numbers(&[3, 5, 48], 0.3) * 3.0;
    let halves = both.chunk(2, -1);
    close(&gated_gelu(&both).unwrap(), &(&halves[0] * halves[1].gelu("none")));
    let (x, y, bias) = (image([2, 24, 3, 3], 0.1), image([2, 24, 3, 3], 0.2), numbers(&[24], 0.3));
    let expected = &x + &y + bias.view([1, 24, 1, 1]);
    add(&x, &bias, &y).unwrap();
    close(&y, &expected);
}

#[test]
fn convolutions_are_libtorchs() {
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    for (rows, inputs, outputs, height, width) in
        [(16, 16, 32, 8, 8), (70, 32, 16, 8, 12), (4, 48, 48, 16, 16), (65, 16, 16, 4, 4)]
    {
        let x = image([rows, inputs, height, width], 0.1);
        let weight = numbers(&[outputs, inputs, 3, 3], 0.2);
        let mut channels_last = image([outputs, inputs, 3, 3], 0.2);
        channels_last.copy_(&weight);
        let bias = numbers(&[outputs], 0.3);
        let expected = x.conv2d(&weight, Some(&bias), [1, 1], [1, 1], [1, 1], 1);
        let filters = Filters::default();
        // Tiles of 4 x 4 outputs round two to three times as much as a direct convolution.
        within(&filters.convolve(&x, &channels_last, &bias, 0).unwrap(), &expected, 4e-6);
        let twice = filters.convolve(&x, &(&channels_last * 2.0), &bias, 1).unwrap();
        let shift = bias.view([1, outputs, 1, 1]);
        within(&(twice - &shift), &((expected - &shift) * 2.0), 4e-6);
        // The way back, with a gradient that lies otherwise; new weights take new filters.
        let gradient = numbers(&[rows, outputs, height, width], 0.4);
        for (version, factor) in [(2, 1.0), (3, 2.0)] {
            let weight = &channels_last * factor;
            let back = |y: Tensor, x: Tensor| {
                Tensor::run_backward(&[&(y * &gradient).sum(Kind::Float)], &[&x], false, false)
            };
            let (own, plain) =
                (x.detach().copy().set_requires_grad(true), x.detach().copy().set_requires_grad(true));
            let found = back(filters.convolve(&own, &weight, &bias, version).unwrap(), own);
            let expected = back(plain.conv2d(&weight, Some(&bias), [1, 1], [1, 1], [1, 1], 1), plain);
            within(&found[0], &expected[0], 4e-6);
        }
    }
    // Transformed filters of the first would take too much memory, and would be read for too few tiles of the second.
    for (rows, channels) in [(16, 512), (15, 16)] {
        let (x, weight) = (image([rows, channels, 8, 8], 0.1), image([channels, channels, 3, 3], 0.2));
        assert!(Filters::default().convolve(&x, &weight, &numbers(&[channels], 0.3), 0).is_none(), "{rows}");
    }
    tch::set_num_threads(threads);
}

#[test]
fn the_smallest_images_are_one_product() {
    let (mut weight, bias) = (image([24, 16, 3, 3], 0.2), numbers(&[24], 0.3));
    let x = image([64, 16, 2, 2], 0.1).set_requires_grad(true);
    let matrix = Matrix::default();
    for version in 0..2 {
        let expected = x.conv2d(&weight, Some(&bias), [1, 1], [1, 1], [1, 1], 1);
        let found = matrix.convolve(&x, &weight, &bias, version).unwrap();
        within(&found.detach(), &expected.detach(), 2e-6);
        let gradient = |y: &Tensor| {
            let sum = (y * numbers(&[64, 24, 2, 2], 0.4)).sum(Kind::Float);
            Tensor::run_backward(&[&sum], &[&x], false, false).remove(0)
        };
        within(&gradient(&found), &gradient(&expected), 2e-6);
        weight *= 2.0;
    }
    assert!(matrix.convolve(&x.narrow(0, 0, 63), &weight, &bias, 2).is_none());
    assert!(matrix.convolve(&image([64, 16, 4, 2], 0.1), &weight, &bias, 2).is_none());
}

#[test]
fn what_needs_a_graph_or_lies_otherwise_is_left_to_libtorch() {
    let (weight, bias) = (Tensor::ones([8], CPU), Tensor::zeros([8], CPU));
    let norm = GroupNorm { weight: &weight, bias: &bias, groups: 2, eps: 1e-5, shift: None, silu: true };
    let x = Tensor::ones([2, 8, 2, 2], CPU);
    assert!(group_norm(&norm, &ConcatInput { first: &x, second: None }).is_none(), "channels lie apart");
    let x = image([2, 8, 2, 2], 0.1).set_requires_grad(true);
    assert!(group_norm(&norm, &ConcatInput { first: &x, second: None }).is_none(), "a gradient is wanted");
    let x = image([2, 8, 2, 2], 0.1).to_kind(Kind::Double);
    assert!(group_norm(&norm, &ConcatInput { first: &x, second: None }).is_none(), "another type");
}
