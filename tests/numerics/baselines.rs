//! Projected gradients and the scores of baselines against Python (`tests/golden/make_baselines.py`).

use std::collections::BTreeMap;

use attrflow::method::baseline::{Form, Vectors, cosine, dot, trak};
use attrflow::method::data::DataSet;
use attrflow::method::ekfac::{ACTIVATION, Eigenbasis, GRADIENT, TEXTS};
use attrflow::method::error::MathError;
use attrflow::method::gradients::{GradientOf, GradientsParams};
use attrflow::method::loss::LossPass;
use attrflow::method::noise::{Generator, Noise};
use attrflow::method::projection::{Map, Projection, Projector};
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, assert_close, assert_within, load, loss_params, tiny};

fn params(of: GradientOf, select: Selection) -> GradientsParams {
    GradientsParams {
        loss: loss_params(Noise::PerImage, 0, [2, 2], 7),
        of,
        select,
        projection: Projection::Kronecker,
        projection_dim: 4096,
        seed: 0,
        shared_noise: of == GradientOf::Output,
        timestep: None,
    }
}

/// The matrices of a set of golden numbers, by parameter.
fn given(golden: &Tensors, set: &str) -> Projector {
    let mut maps = BTreeMap::new();
    for (key, matrix) in golden {
        let Some((side, name)) = key.strip_prefix(set).and_then(|rest| rest[1..].split_once('.')) else {
            continue;
        };
        let rows = matrix.size()[0] as usize;
        match side {
            "dense" => maps.insert(name.to_owned(), (Map::Dense(matrix.shallow_clone()), rows)),
            "outputs" => {
                let inputs = golden[&format!("{set}/inputs.{name}")].shallow_clone();
                let width = rows * inputs.size()[0] as usize;
                maps.insert(name.to_owned(), (Map::Kronecker(matrix.shallow_clone(), inputs), width))
            }
            _ => None,
        };
    }
    Projector::new(maps)
}

/// The gradients of latents of the golden set.
fn gradients(
    params: &GradientsParams,
    projector: &Projector,
    images: &[usize],
    micro_batch: usize,
) -> Result<Tensor, MathError> {
    let (unet, golden) = (tiny(), load("method/losses"));
    let schedule = NoiseSchedule::new(ScheduleConfig::default());
    let (latents, texts) = (golden["latents"].shallow_clone(), golden["texts"].flatten(0, 1));
    let data = DataSet::new(&latents, &texts, 3)?;
    LossPass::new(&unet, &schedule, data, &params.loss, micro_batch)?
        .mean_gradients(images, params, projector)
}

fn all() -> Vec<usize> {
    (0..10).collect()
}

fn vectors(rows: &Tensor) -> Vectors<'_> {
    Vectors { rows, map: |rows| rows.flatten(1, -1), device: Device::Cpu }
}

fn layers() -> Selection {
    Selection::Patterns(["down_blocks.0.resnets.0.", "mid_block.attentions.0."].map(str::to_owned).to_vec())
}

#[test]
fn projected_gradients_are_those_of_whole_matrices() {
    let golden = load("baselines");
    for (set, of, select) in [
        ("loss", GradientOf::Loss, Selection::CrossAttnKv),
        ("output", GradientOf::Output, Selection::CrossAttnKv),
        ("dense", GradientOf::Loss, Selection::CrossAttnKv),
        ("layers", GradientOf::Loss, layers()),
    ] {
        let found = gradients(&params(of, select), &given(&golden, set), &all(), 64).unwrap();
        assert_close(set, &found, &golden[&format!("{set}/projected")]);
    }
}

#[test]
fn whole_gradients_are_kept_by_ascending_name() {
    let params =
        GradientsParams { projection: Projection::None, ..params(GradientOf::Loss, Selection::CrossAttnKv) };
    let projector = drawn(&params, 4096, 0);
    assert_close("whole", &gradients(&params, &projector, &all(), 64).unwrap(), &load("baselines")["whole"]);
}

#[test]
fn gradients_at_one_timestep_are_means_over_draws() {
    let mut params =
        GradientsParams { projection: Projection::None, ..params(GradientOf::Loss, Selection::CrossAttnKv) };
    params.loss.time_samples = 1;
    params.loss.draws = 2;
    params.timestep = Some(400);
    let projector = drawn(&params, 4096, 0);
    let expected = &load("baselines")["journey"];
    assert_close("journey", &gradients(&params, &projector, &all(), 64).unwrap(), expected);
    assert_within("a row at a time", &gradients(&params, &projector, &all(), 1).unwrap(), expected, 2e-5);
}

/// The projection of the selected parameters of the tiny network.
fn drawn(params: &GradientsParams, dim: usize, seed: u32) -> Projector {
    Projector::drawn(&shapes(&params.select), params.projection, dim, seed, Device::Cpu).unwrap()
}

fn shapes(select: &Selection) -> BTreeMap<String, Vec<usize>> {
    let unet = tiny();
    let selected = unet.parameters().iter().filter(|(name, _)| select.matches(name));
    let shape = |weight: &Tensor| weight.size().into_iter().map(|length| length as usize).collect();
    selected.map(|(name, weight)| (name.clone(), shape(weight))).collect()
}

/// Orthogonal matrices that stand for the eigenvectors of keys' and values' layers: one for the texts, one for each layer's outputs.
fn eigenvectors() -> BTreeMap<String, Tensor> {
    let orthogonal = |size: i64, seed: i64| {
        let draw = Generator::seeded(seed).normal(&[size, size], Device::Cpu);
        Tensor::linalg_qr(&draw, "reduced").0
    };
    let mut vectors = BTreeMap::from([(format!("{TEXTS}.{ACTIVATION}"), orthogonal(12, 0))]);
    for (place, (name, weight)) in tiny().parameters().iter().enumerate() {
        if Selection::CrossAttnKv.matches(name) {
            let layer = name.strip_suffix(".weight").unwrap();
            vectors.insert(format!("{layer}.{GRADIENT}"), orthogonal(weight.size()[0], place as i64 + 1));
        }
    }
    vectors
}

/// The projection onto such a basis.
fn leading(dim: usize, vectors: BTreeMap<String, Tensor>) -> Result<Projector, MathError> {
    Projector::leading(&shapes(&Selection::CrossAttnKv), dim, &Eigenbasis::new(vectors, Device::Cpu))
}

#[test]
fn a_whole_eigenbasis_keeps_products_and_its_first_vectors_are_kept_first() {
    let params = params(GradientOf::Loss, Selection::CrossAttnKv);
    let whole = &load("baselines")["whole"];
    let found = gradients(&params, &leading(1 << 20, eigenvectors()).unwrap(), &all(), 64).unwrap();
    assert_eq!(found.size(), whole.size());
    assert_within("products", &found.matmul(&found.tr()), &whole.matmul(&whole.tr()), 1e-5);

    let names = shapes(&Selection::CrossAttnKv);
    let projector = leading(6 * names.len(), eigenvectors()).unwrap(); // 2 x 3 of each matrix
    let found = gradients(&params, &projector, &all(), 64).unwrap();
    let (vectors, mut start, mut parts) = (eigenvectors(), 0, Vec::new());
    for (name, shape) in &names {
        let length = shape.iter().product::<usize>() as i64;
        let own = whole.narrow(1, start, length).view([10, shape[0] as i64, -1]);
        start += length;
        let outputs = &vectors[&format!("{}.{GRADIENT}", name.strip_suffix(".weight").unwrap())];
        let inputs = &vectors[&format!("{TEXTS}.{ACTIVATION}")];
        parts.push(outputs.narrow(1, 0, 2).tr().matmul(&own).matmul(&inputs.narrow(1, 0, 3)).flatten(1, -1));
    }
    assert_within("the first vectors", &found, &Tensor::cat(&parts, 1), 1e-5);

    let mut other = eigenvectors();
    let name = other.keys().next().unwrap().clone();
    other.remove(&name);
    let error = leading(64, other).err().unwrap().to_string();
    assert!(error.starts_with("the Fisher information has no `"), "{error}");
}

#[test]
fn neither_the_micro_batch_nor_other_images_change_a_gradient() {
    let golden = load("baselines");
    for (set, select) in [("loss", Selection::CrossAttnKv), ("layers", layers())] {
        let (params, projector) = (params(GradientOf::Loss, select), given(&golden, set));
        let expected = &golden[&format!("{set}/projected")];
        // A part of a pair's timesteps; a pair; one and a half images.
        for micro_batch in [1, 2, 6] {
            let found = gradients(&params, &projector, &[7, 2, 3], micro_batch).unwrap();
            let some = expected.index_select(0, &Tensor::from_slice(&[7i64, 2, 3]));
            assert_within(&format!("{micro_batch} rows"), &found, &some, 2e-5);
        }
    }
}

#[test]
fn noise_is_each_images_own_or_one_for_all() {
    let golden = load("baselines");
    let projector = given(&golden, "loss");
    let own = params(GradientOf::Loss, Selection::CrossAttnKv);
    let shared = GradientsParams { shared_noise: true, ..own.clone() };
    let [own, shared] = [own, shared].map(|params| gradients(&params, &projector, &all(), 64).unwrap());
    // Shared noise is that of image 0 for its first caption alone.
    assert!((&own - &shared).abs().amax([1i64].as_slice(), false).min().double_value(&[]) > 1e-6);
}

#[test]
fn noise_by_the_batch_and_values_that_are_not_finite_are_refused() {
    let golden = load("baselines");
    let projector = given(&golden, "loss");
    let mut by_batch = params(GradientOf::Loss, Selection::CrossAttnKv);
    by_batch.loss = loss_params(Noise::PerBatch, 4, [2, 2], 7);
    let error = gradients(&by_batch, &projector, &all(), 64).unwrap_err().to_string();
    assert!(error.contains("must be \"per_image\""), "{error}");
    // A gradient that overflows although the loss does not.
    let mut matrices = BTreeMap::new();
    for (key, matrix) in &golden {
        if let Some(name) = key.strip_prefix("dense/dense.") {
            matrices.insert(name.to_owned(), (Map::Dense(matrix * 1e38 * 1e38), matrix.size()[0] as usize));
        }
    }
    let own = params(GradientOf::Loss, Selection::CrossAttnKv);
    let error = gradients(&own, &Projector::new(matrices), &[8], 64).unwrap_err().to_string();
    assert_eq!(error, "the gradient of image 3 (mirrored) is not finite");
}

/// Inner products of projected gradients are those of whole ones, on average over seeds.
#[test]
fn a_drawn_projection_keeps_inner_products() {
    let whole = load("baselines")["whole"].to_kind(Kind::Double);
    let expected = (whole.get(0) * whole.get(5)).sum(None).double_value(&[]);
    let scale = (whole.get(0).norm() * whole.get(5).norm()).double_value(&[]);
    for projection in [Projection::Kronecker, Projection::Dense] {
        let params = GradientsParams { projection, ..params(GradientOf::Loss, Selection::CrossAttnKv) };
        let mut estimates = Vec::new();
        for seed in 0..16 {
            let projector = drawn(&params, 4096, seed);
            assert!(projector.width() <= 4096 && projector.width() > 4000, "{}", projector.width());
            let found = gradients(&params, &projector, &[0, 5], 64).unwrap().to_kind(Kind::Double);
            estimates.push((found.get(0) * found.get(1)).sum(None).double_value(&[]) / scale);
        }
        let (expected, count) = (expected / scale, estimates.len() as f64);
        let mean = estimates.iter().sum::<f64>() / count;
        let variance = estimates.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let error = (variance / count).sqrt();
        println!("{projection:?}: {mean:.3} ± {error:.3}, expected {expected:.3}");
        // Four standard errors, which are small enough that another scale of the matrices would be seen.
        assert!(error < 0.1 && (mean - expected).abs() < 4.0 * error, "{projection:?}: {mean} {expected}");
        assert_ne!(estimates[0], estimates[1]);
    }
}

#[test]
fn scores_by_the_kernel_are_those_of_an_inverse() {
    let golden = load("baselines");
    for (method, set) in [("trak", "loss"), ("d_trak", "output")] {
        let stored = &golden[&format!("{set}/projected")];
        let query = vectors(stored).vector(3).unwrap();
        for damping in [0.1, 1.0] {
            let expected = &golden[&format!("{method}/{damping:.1}")];
            for form in [None, Some(Form::Primal), Some(Form::Dual)] {
                let found = trak(&vectors(stored), &query, damping, form).unwrap();
                assert_close(&format!("{method} {form:?}"), &Tensor::from_slice(&found), expected);
            }
            // The kernel has no unit: gradients of another scale give the same scores.
            let larger = stored * 50.0;
            let query = vectors(&larger).vector(3).unwrap();
            let found = trak(&vectors(&larger), &query, damping, None).unwrap();
            assert_close("scaled", &Tensor::from_slice(&found), expected);
        }
    }
    let many = &golden["many"];
    let query = vectors(many).vector(5).unwrap();
    for form in [None, Some(Form::Dual)] {
        let found = trak(&vectors(many), &query, 0.1, form).unwrap();
        assert_close("more vectors than numbers", &Tensor::from_slice(&found), &golden["many/0.1"]);
    }
}

#[test]
fn products_and_cosines_are_torchs() {
    let golden = load("baselines");
    let many = &golden["many"];
    let (vectors, query) = (vectors(many), vectors(many).vector(5).unwrap());
    let found = cosine(&vectors, &query, Some(&vectors.mean().unwrap())).unwrap();
    assert_close("cosine", &Tensor::from_slice(&found), &golden["many/cosine"]);
    assert!((found[5] - 1.0).abs() < 1e-6);
    let found = dot(&vectors, &query).unwrap();
    assert_close("dot", &Tensor::from_slice(&found), &golden["many/dot"]);
}

#[test]
fn vectors_without_a_direction_and_singular_kernels_are_named() {
    let rows = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 0.0, 2.0, 0.0]).view([3, 2]);
    let zero = Tensor::zeros([2], (Kind::Double, Device::Cpu));
    let error = cosine(&vectors(&rows), &zero, None).unwrap_err().to_string();
    assert_eq!(error, "the vector of the query is zero, so that it has no cosine with others");
    let query = vectors(&rows).vector(0).unwrap();
    let found = cosine(&vectors(&rows), &query, None).unwrap();
    assert!((found[0] - 1.0).abs() < 1e-6 && found[1] == 0.0, "{found:?}");
    let error = trak(&vectors(&rows), &query, 0.0, None).unwrap_err().to_string();
    assert!(error.contains("not positive definite with damping = 0"), "{error}");
    assert!(trak(&vectors(&rows), &query, 0.1, None).is_ok());
    let nothing = rows.zeros_like();
    let error = trak(&vectors(&nothing), &query, 0.1, None).unwrap_err().to_string();
    assert!(error.contains("every training image"), "{error}");
}
