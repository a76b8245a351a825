//! Linear maps by the library that is faster on this processor.
//!
//! libtorch leaves products in float32 to MKL, which uses AVX-512 on Intel's processors alone. oneDNN, to which libtorch leaves
//! convolutions, uses it on others too: there, a linear map is computed as a convolution with a window of 1 x 1.

use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

/// Positions of an image, of all images, and a side of the weight, below which there is nothing to gain.
const LEAST: [i64; 3] = [64, 4096, 64];

/// `x w^T + b` over the last dimension: x [.., I], `weight` [O, I], `bias` [O].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    static FASTER: LazyLock<bool> = LazyLock::new(others_with_avx512);
    let served = x.device() == Device::Cpu
        && [x, weight].iter().all(|tensor| tensor.kind() == Kind::Float && tensor.is_contiguous())
        && !weight.requires_grad()
        && x.size3().is_ok_and(|(rows, positions, inputs)| {
            positions >= LEAST[0] && rows * positions >= LEAST[1] && inputs.min(weight.size()[0]) >= LEAST[2]
        });
    if served && *FASTER { as_convolution(x, weight, bias) } else { x.linear(weight, bias) }
}

/// The same for x [B, S, I], as images of S x 1.
fn as_convolution(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let images = x.unsqueeze(2).permute([0, 3, 1, 2]); // [B, I, S, 1], channels last
    let window = weight.unsqueeze(-1).unsqueeze(-1);
    images.conv2d(&window, bias, [1, 1], [0, 0], [1, 1], 1).permute([0, 2, 3, 1]).squeeze_dim(2)
}

/// Whether the processor has AVX-512 and is not Intel's.
fn others_with_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        // SAFETY: every processor of this architecture has the instruction.
        #[allow(unused_unsafe, reason = "it is safe in later releases of Rust")]
        let maker = unsafe { __cpuid(0) };
        let name = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
        is_x86_feature_detected!("avx512f") && name.as_flattened() != b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With and without a bias and a gradient.
    #[test]
    fn a_convolution_is_a_linear_map() {
        let numbers = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let (weight, bias) = (numbers(&[24, 40]), numbers(&[24]));
        for (rows, positions) in [(1, 1), (3, 7), (16, 1)] {
            for bias in [None, Some(&bias)] {
                let x = numbers(&[rows, positions, 40]);
                let gradient = numbers(&[rows, positions, 24]);
                let run = |map: &dyn Fn(&Tensor) -> Tensor| {
                    let x = x.copy().set_requires_grad(true);
                    let y = map(&x);
                    let back =
                        Tensor::run_backward(&[&(&y * &gradient).sum(Kind::Float)], &[&x], false, false);
                    (y.detach(), back[0].shallow_clone())
                };
                let (found, expected) =
                    (run(&|x| as_convolution(x, &weight, bias)), run(&|x| x.linear(&weight, bias)));
                assert!(found.0.is_contiguous() && found.0.size() == expected.0.size());
                for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                    let far = ((found - &expected).abs().max() / expected.abs().max()).double_value(&[]);
                    assert!(far <= 1e-6, "{rows} x {positions}: {far}");
                }
            }
        }
    }
}
