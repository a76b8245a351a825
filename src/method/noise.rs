//! All random numbers: the only place that seeds a generator.
//!
//! libtorch's default generators belong to the process, so drawing is a critical section: a [`Generator`] holds a
//! lock from its seeding to its end, and no other thread can take numbers from its stream. Seeding the default
//! generator and drawing gives the stream of a fresh `torch.Generator` with that seed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::models::kernels::{self, Place};
use attrflow_engine::choice;
use tch::{Device, Kind, Tensor};

static GENERATOR: Mutex<()> = Mutex::new(());

/// The hash that turns names and numbers into seeds; another version here would be other noise everywhere.
const CONTEXT: &str = "attrflow 2026-01-01 seeds v1";

choice! {
    /// Where an image's noise comes from.
    pub enum Noise {
        /// One draw for all images of a batch, as published: the batch size changes every number.
        PerBatch = "per_batch",
        /// Draws of its own for each image and timestep: no batching or choice of images or timesteps changes a number.
        PerImage = "per_image",
        /// The same by a generator that counts (Philox), so that a GPU can draw it too: other numbers than `per_image`.
        PerImagePhilox = "per_image_philox",
    }
}

impl Noise {
    /// Whether each image has noise of its own.
    pub fn by_image(self) -> bool {
        self != Noise::PerBatch
    }
}

/// A seeded stream of random numbers; the process has one at a time, so a thread that holds one must not ask for
/// another.
pub struct Generator(#[allow(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Generator {
    /// Waits until no other stream is drawn from, then starts one: those of a CPU and a CUDA generator differ.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn seeded(seed: i64) -> Generator {
        // A panic while drawing left nothing half-done that the seeding below doesn't reset.
        let lock = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        tch::manual_seed(seed);
        Generator(lock)
    }

    /// Standard normal numbers from the generator of `device`, float32.
    pub fn normal(&mut self, shape: &[i64], device: Device) -> Tensor {
        Tensor::randn(shape, (Kind::Float, device))
    }

    /// Standard normal noise [.., C, H, W], and `offset` times a number for each channel, which is drawn after it.
    pub fn noise(&mut self, shape: &[i64], offset: f64, device: Device) -> Tensor {
        let noise = self.normal(shape, device);
        if offset == 0.0 {
            return noise;
        }
        let channels = [&shape[..shape.len() - 2], &[1, 1]].concat();
        noise + self.normal(&channels, device) * offset
    }

    /// Uniform numbers between two bounds from the CPU's generator, float32.
    pub fn uniform(&mut self, low: f64, high: f64, shape: &[i64]) -> Tensor {
        Tensor::rand(shape, (Kind::Float, Device::Cpu)) * (high - low) + low
    }

    /// `count` uniform integers from 0 to `high` - 1 from the CPU's generator: [count] int64.
    pub fn randint(&mut self, high: i64, count: i64) -> Tensor {
        Tensor::randint(high, [count], (Kind::Int64, Device::Cpu))
    }

    /// The integers from 0 to `n` - 1 in random order from the CPU's generator: [n] int64.
    pub fn permutation(&mut self, n: i64) -> Tensor {
        Tensor::randperm(n, (Kind::Int64, Device::Cpu))
    }
}

/// A seed for one `purpose` and place, independent of the seeds of all others.
///
/// Never negative: Python's `torch.manual_seed` shifts negative seeds by one. (The CPU's generator, a Mersenne
/// twister, uses the low 32 bits only: among millions of places, a few share their numbers.)
pub fn derived_seed(purpose: &str, place: &[i64]) -> i64 {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&(purpose.len() as u64).to_le_bytes()).update(purpose.as_bytes());
    for number in place {
        hasher.update(&number.to_le_bytes());
    }
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    i64::from_le_bytes(bytes) & i64::MAX
}

/// The noise of batch `batch` of noise per batch, with this offset: a draw of its whole shape, seeded `seed + batch`.
pub fn batch_noise(seed: i64, batch: usize, shape: &[i64], offset: f64, device: Device) -> Tensor {
    Generator::seeded(seed.wrapping_add(batch as i64)).noise(shape, offset, device)
}

/// Where the noise of an image is drawn: a timestep, and which of its draws. A timestep alone is its first draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The timestep.
    pub timestep: i64,
    /// The draw, from 0.
    pub draw: usize,
}

impl From<i64> for Point {
    fn from(timestep: i64) -> Self {
        Self { timestep, draw: 0 }
    }
}

impl Point {
    /// The seed of an image's noise. The first draw's does not depend on how many there are.
    fn seed(self, seed: i64, image: usize) -> i64 {
        match self.draw {
            0 => derived_seed("image noise", &[seed, image as i64, self.timestep]),
            draw => derived_seed("further image noise", &[seed, image as i64, self.timestep, draw as i64]),
        }
    }
}

/// How the noise of images is drawn, where each has its own.
#[derive(Debug, Clone, Copy)]
pub struct ImageNoise {
    /// By which generator: `PerImage` or `PerImagePhilox`.
    pub noise: Noise,
    /// Its seed.
    pub seed: i64,
    /// How much of a number for each channel is added.
    pub offset: f64,
}

impl ImageNoise {
    /// The noise of some images: [images, captions, points, C, H, W] on `device`, for `shape` [captions, C, H, W].
    ///
    /// It is the same noise on all devices. That of `PerImage` is drawn by the CPU.
    pub fn of(
        &self,
        images: &[usize],
        points: &[impl Copy + Into<Point>],
        shape: &[i64],
        device: Device,
    ) -> Tensor {
        let points: Vec<Point> = points.iter().map(|&point| point.into()).collect();
        if self.noise == Noise::PerImagePhilox {
            let place = |&image: &usize| {
                points.iter().map(move |point| [image as u32, point.timestep as u32, point.draw as u32])
            };
            let places: Vec<Place> = images.iter().flat_map(place).collect();
            let channels = [&shape[..shape.len() - 2], &[1, 1]].concat();
            let all = [images.len() as i64, points.len() as i64];
            let draw = |purpose: &str, shape: &[i64]| {
                let drawn = philox(purpose, self.seed, &places, shape, device);
                drawn.view([&all[..], shape].concat().as_slice()).transpose(1, 2)
            };
            let noise = draw("philox image noise", shape);
            return match self.offset {
                0.0 => noise.contiguous(),
                offset => noise + draw("philox noise offset", &channels) * offset,
            };
        }
        let draw = |&image: &usize| {
            let draw = |point: &Point| {
                Generator::seeded(point.seed(self.seed, image)).noise(shape, self.offset, Device::Cpu)
            };
            Tensor::stack(&points.iter().map(draw).collect::<Vec<_>>(), 1)
        };
        Tensor::stack(&images.iter().map(draw).collect::<Vec<_>>(), 0).to_device(device)
    }
}

/// Philox's numbers of some places for one purpose: [places, numbers of `shape`].
fn philox(purpose: &str, seed: i64, places: &[Place], shape: &[i64], device: Device) -> Tensor {
    let key = derived_seed(purpose, &[seed]) as u64;
    let count = shape.iter().product::<i64>() as usize;
    kernels::philox_normals([key as u32, (key >> 32) as u32], places, count, device)
}

/// The noise of a drawing, where each has its own: that of place `place` at a timestep, [C, H, W] for `shape`, on the CPU.
pub fn drawing_noise(noise: Noise, seed: i64, place: usize, timestep: i64, shape: &[i64]) -> Tensor {
    if noise == Noise::PerImagePhilox {
        let place = [place as u32, timestep as u32, 0];
        return philox("philox drawing", seed, &[place], shape, Device::Cpu).view(shape);
    }
    let seed = derived_seed("drawing", &[seed, place as i64, timestep]);
    Generator::seeded(seed).normal(shape, Device::Cpu)
}
