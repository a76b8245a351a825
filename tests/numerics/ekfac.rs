//! EK-FAC and the sampled Fisher information, against explicit gradients of single rows and against kronfluence.

use std::collections::BTreeMap;

use attrflow::method::curvature::Curvature;
use attrflow::method::damping::Damping;
use attrflow::method::data::DataSet;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::ekfac::{
    Eigenbasis, Ekfac, GRADIENT, LAMBDA, check_traces, covariance, covariances, eigenvectors, of_texts,
};
use attrflow::method::fisher::{FisherParams, FisherPass, FisherType, of_rows, squares};
use attrflow::method::layer_gradients::Quantity;
use attrflow::method::objective::Objective;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::models::tape::{LayerRecord, Op};
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, assert_within, error, load, tiny};

const DAMPING: Damping = Damping { absolute: 0.0, relative: 0.1 };

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default())
}

fn params() -> FisherParams {
    FisherParams {
        epochs: 2,
        batch_size: 4,
        seed: 3,
        select: Selection::CrossAttn,
        ..FisherParams::default()
    }
}

/// The mean over the golden rows of what a function of [`FisherPass`] sums.
fn mean(
    golden: &Tensors,
    params: &FisherParams,
    contract: attrflow::method::fisher::Contraction<'_>,
) -> BTreeMap<String, Tensor> {
    let (unet, schedule, texts) = (tiny(), schedule(), golden["texts"].flatten(0, 1));
    let data = DataSet::new(&golden["latents"], &texts, 3).unwrap();
    // Slices of three rows of a batch of four.
    let pass = FisherPass { unet: &unet, schedule: &schedule, data, params, micro_batch: 3, joined: 1 };
    pass.sum(0..params.batches(10), contract, &mut |_| ()).unwrap().mean()
}

fn basis(golden: &Tensors) -> Eigenbasis {
    let mut sums = mean(golden, &params(), &|found| Ok(covariances(found)));
    sums.insert(of_texts(), covariance(&golden["texts"]));
    Eigenbasis::new(eigenvectors(&sums).unwrap(), Device::Cpu)
}

/// The layers of the cross attention that the golden file has.
fn layers(golden: &Tensors) -> Vec<String> {
    golden.keys().filter_map(|name| Some(name.strip_suffix(".trace")?.to_owned())).collect()
}

/// A golden matrix [O, I] of a layer as weight and bias.
fn apart(golden: &Tensors, layer: &str, end: &str) -> Vec<(String, Tensor)> {
    let matrix = &golden[&format!("{layer}.{end}")];
    match layer.ends_with("to_out.0") {
        false => vec![(format!("{layer}.weight"), matrix.shallow_clone())],
        true => {
            let inputs = matrix.size()[1] - 1;
            let [weight, bias] = ["weight", "bias"].map(|end| format!("{layer}.{end}"));
            vec![(weight, matrix.narrow(1, 0, inputs)), (bias, matrix.select(1, inputs))]
        }
    }
}

#[test]
fn the_step_is_that_of_explicit_gradients() {
    let golden = load("ekfac/tiny");
    assert_eq!(layers(&golden).len() % 4, 0, "queries, keys, values and outputs");
    let covariances = mean(&golden, &params(), &|found| Ok(covariances(found)));
    let basis = basis(&golden);
    let mut means = mean(&golden, &params(), &|found| basis.squares(found));
    for layer in layers(&golden) {
        let found = &covariances[&format!("{layer}.gradient_covariance")];
        assert_within(&layer, found, &golden[&format!("{layer}.covariance")], 1e-5);
        let trace = means[&format!("{layer}.trace")].shallow_clone();
        assert_within(&layer, &trace, &golden[&format!("{layer}.trace")], 1e-5);
    }
    let difference = check_traces(&mut means).unwrap();
    assert!(difference < 1e-5, "{difference}");
    let all = basis.into_tensors().into_iter().chain(means).collect();
    let curvature = Curvature::Ekfac(Ekfac::new(all, Device::Cpu));
    let of = |end| layers(&golden).iter().flat_map(|layer| apart(&golden, layer, end)).collect();
    let (gradient, expected): (BTreeMap<_, _>, BTreeMap<String, Tensor>) = (of("gradient"), of("step"));
    curvature.check(&gradient, DAMPING).unwrap();
    let step = curvature.solve(&gradient, DAMPING);
    assert!(step.keys().eq(expected.keys()));
    for (name, step) in &step {
        assert_within(name, step, &expected[name], 1e-4);
    }
    let form = Tensor::from(curvature.form(&step));
    assert_within("the quadratic form", &form, &golden["form"], 1e-4);
    let norm = |steps: &BTreeMap<String, Tensor>| {
        steps.values().map(|x| x.square().sum(Kind::Double).double_value(&[])).sum::<f64>()
    };
    // Without the off-diagonal part, it is another step: the test would not pass with the diagonal.
    let diagonal: BTreeMap<_, _> = mean(&golden, &params(), &squares);
    let diagonal = Curvature::Diagonal(diagonal).solve(&gradient, DAMPING);
    assert!((norm(&diagonal) / norm(&step) - 1.0).abs() > 0.05);
}

#[test]
fn keys_and_values_share_the_covariance_of_the_texts() {
    let tensors = basis(&load("ekfac/tiny")).into_tensors();
    let activations: Vec<&String> =
        tensors.keys().filter(|name| name.ends_with("activation_eigenvectors")).collect();
    assert!(activations.iter().any(|name| name.as_str() == "text_embeddings.activation_eigenvectors"));
    assert!(
        activations.iter().all(|name| !name.contains("to_k") && !name.contains("to_v")),
        "{activations:?}"
    );
    assert!(activations.iter().any(|name| name.contains("to_q")));
}

#[test]
fn a_basis_that_is_not_orthogonal_is_seen_by_the_trace() {
    let golden = load("ekfac/tiny");
    let mut tensors = basis(&golden).into_tensors();
    let name = tensors.keys().find(|name| name.ends_with(GRADIENT)).unwrap().clone();
    let wrong = &tensors[&name] * 1.01;
    tensors.insert(name.clone(), wrong);
    let wrong = Eigenbasis::new(tensors, Device::Cpu);
    let mut means = mean(&golden, &params(), &|found| wrong.squares(found));
    let error = check_traces(&mut means).unwrap_err().to_string();
    let layer = name.strip_suffix(".gradient_eigenvectors").unwrap();
    assert!(error.starts_with(&format!("the eigenvalues of `{layer}` sum to ")), "{error}");
}

/// Layers that read the same texts may have eigenvectors of their own: each is rotated by its own.
#[test]
fn every_layer_is_rotated_by_its_own_eigenvectors() {
    let golden = load("ekfac/tiny");
    let mut tensors = basis(&golden).into_tensors();
    let texts = tensors["text_embeddings.activation_eigenvectors"].shallow_clone();
    let shared = basis(&golden);
    let expected = mean(&golden, &params(), &|found| shared.squares(found));
    let layer = layers(&golden).into_iter().rfind(|layer| layer.ends_with("to_v")).unwrap();
    // The same vectors in another order.
    tensors.insert(format!("{layer}.activation_eigenvectors"), texts.flip([1]).contiguous());
    let own = Eigenbasis::new(tensors, Device::Cpu);
    let found = mean(&golden, &params(), &|found| own.squares(found));
    for other in layers(&golden) {
        let name = format!("{other}.{LAMBDA}");
        let expected =
            if other == layer { expected[&name].flip([1]) } else { expected[&name].shallow_clone() };
        assert_within(&other, &found[&name], &expected, 1e-5);
    }
}

/// Squares of gradients of losses with drawn errors, by the same draws.
#[test]
fn the_sampled_information_is_that_of_explicit_gradients() {
    let golden = load("ekfac/tiny");
    let sampled = FisherParams { fisher_type: FisherType::Sampled, ..params() };
    let found = mean(&golden, &sampled, &squares);
    for layer in layers(&golden) {
        for (name, expected) in apart(&golden, &layer, "sampled") {
            assert_within(&name, &found[&name], &expected, 1e-5);
        }
    }
    let empirical = mean(&golden, &params(), &squares);
    let name = format!("{}.weight", layers(&golden)[0]);
    assert!(error(&empirical[&name], &found[&name]) > 0.1);
}

/// With one-hot draws in turn, the sum of the squares is the Gauss-Newton matrix itself; the row's loss is weighed by min-SNR.
#[test]
fn the_sampled_information_is_the_gauss_newton_matrix() {
    let golden = load("ekfac/gauss_newton");
    let objective = Objective { snr_gamma: Some(0.5), ..Objective::default() };
    let schedule = schedule().with_objective(&objective);
    let count = golden["x0"].numel() as i64;
    let repeat = |x: &Tensor| {
        let mut shape = vec![1; x.dim()];
        shape[0] = count;
        x.repeat(shape.as_slice())
    };
    let unet = tiny();
    let rows = DenoisingRows {
        latents: repeat(&golden["x0"]),
        noise: repeat(&golden["noise"]),
        timesteps: Tensor::full([count], 400, (Kind::Int64, Device::Cpu)),
        conditioning: unet.conditioning(repeat(&golden["text"])),
    };
    let draws = Tensor::eye(count, (Kind::Float, Device::Cpu)).view_as(&rows.latents);
    let quantity = Quantity::Sampled(&draws);
    let found =
        of_rows(&unet, &schedule, &rows, &Selection::CrossAttnKv, &quantity, |row| row, &squares).unwrap();
    for (name, found) in &found {
        assert_within(name, found, &golden[name], 1e-5);
    }
}

/// Covariances, eigenvalues and the corrected eigenvalues that kronfluence fits to a small model, one layer with a bias.
#[test]
fn factors_are_those_of_kronfluence() {
    let golden = load("ekfac/kronfluence");
    let records: Vec<(LayerRecord, Tensor)> = ["0", "2"]
        .map(|layer| {
            let [input, gradient] =
                ["input", "output_gradient"].map(|end| golden[&format!("{layer}.{end}")].shallow_clone());
            let output = gradient.shallow_clone();
            let (bias, layer) = (layer == "0", layer.to_owned());
            (LayerRecord { layer, op: Op::Linear, weight: true, bias, input, output }, gradient)
        })
        .into();
    let rows = 40.0;
    let sums = covariances(&records);
    let vectors = eigenvectors(&sums).unwrap();
    for layer in ["0", "2"] {
        for kind in ["activation", "gradient"] {
            let vectors = vectors[&format!("{layer}.{kind}_eigenvectors")].to_kind(Kind::Double);
            let sum = &sums[&format!("{layer}.{kind}_covariance")];
            // Theirs are means over tokens, by rising eigenvalue.
            let values = vectors.transpose(0, 1).matmul(sum).matmul(&vectors) / (rows * 3.0);
            let expected = golden[&format!("{layer}.{kind}_eigenvalues")].flip([0]);
            assert_within(layer, &values.diagonal(0, 0, 1), &expected, 1e-5);
        }
    }
    let basis = Eigenbasis::new(vectors, Device::Cpu);
    let found = basis.squares(&records).unwrap();
    for layer in ["0", "2"] {
        assert_eq!(golden[&format!("{layer}.num_lambda_processed")].int64_value(&[0]), 40);
        let expected = golden[&format!("{layer}.{LAMBDA}")].flip([0, 1]);
        assert_within(layer, &found[&format!("{layer}.{LAMBDA}")], &expected, 1e-4);
    }
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let golden = load("ekfac/tiny");
    let basis = basis(&golden);
    let means = mean(&golden, &params(), &|found| basis.squares(found));
    let all: BTreeMap<String, Tensor> = basis.into_tensors().into_iter().chain(means).collect();
    let layer = layers(&golden).into_iter().find(|layer| layer.ends_with("to_k")).unwrap();
    let parameter = format!("{layer}.weight");
    let parameters: BTreeMap<_, _> =
        [(parameter.clone(), golden[&format!("{layer}.gradient")].shallow_clone())].into();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), damping: f64| {
        let mut changed: BTreeMap<_, _> = all.iter().map(|(name, x)| (name.clone(), x.copy())).collect();
        change(&mut changed);
        let curvature = Curvature::Ekfac(Ekfac::new(changed, Device::Cpu));
        let error = curvature.check(&parameters, Damping { absolute: 0.0, relative: damping });
        error.err().map_or("nothing".to_owned(), |error| error.to_string()).replace(&layer, "LAYER")
    };
    let lambda = format!("{layer}.{LAMBDA}");
    let refusals = [
        refused(&|_| (), 0.0),
        refused(&|all| drop(all.remove(&lambda)), 0.1),
        refused(&|all| drop(all.insert(lambda.clone(), all[&lambda].narrow(1, 1, 3))), 0.1),
        refused(&|all| drop(all[&lambda].get(0).fill_(f64::NAN)), 0.1),
        refused(&|all| drop(all[&lambda].get(0).fill_(-1.0)), 0.1),
        refused(&|all| drop(all[&lambda].get(0).fill_(0.0)), 0.0),
        refused(&|all| drop(all[&format!("{layer}.{GRADIENT}")].get(0).fill_(f64::INFINITY)), 0.1),
        refused(&|all| drop(all[&format!("{layer}.{GRADIENT}")].get(0).fill_(0.0)), 0.1),
    ];
    insta::assert_snapshot!(refusals.join("\n"), @r"
    nothing
    the Fisher information has no `LAYER.weight`, which `select` names: compute it with a `select` that holds it
    the Fisher information of `LAYER.weight` has the shape [8, 3], the parameter has [8, 12]
    the Fisher information of `LAYER.weight` is NaN at [0, 0], expected means of squares: finite, and not negative
    the Fisher information of `LAYER.weight` is -1 at [0, 0], expected means of squares: finite, and not negative
    the Fisher information of `LAYER.weight` is zero in 12 of 96 places, so that the step there is not finite; set `damping` or `relative_damping` to continue
    `LAYER.weight` holds values that are not finite: its eigenvectors
    the eigenvectors of `LAYER.weight` are not orthogonal: products of two of them are off by up to 6.0e-1
    ");
}
