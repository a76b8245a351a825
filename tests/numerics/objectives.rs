//! Training objectives beyond the plain one against diffusers, and unlearning by a wanted rise.

use attrflow::method::curvature::Curvature;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::noise::Generator;
use attrflow::method::objective::Objective;
use attrflow::method::schedule::{BetaSchedule, NoiseSchedule, Prediction, ScheduleConfig, Spacing};
use attrflow::method::selection::Selection;
use attrflow::method::unlearn::{UnlearnParams, Unlearning};
use attrflow::models::unet::UNet;
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, assert_close, assert_within, load, path, tiny};

const OFFSET: f64 = 0.1;

fn config(name: &str) -> ScheduleConfig {
    let (zero, v) = (name == "zero", name != "epsilon");
    ScheduleConfig {
        beta_schedule: BetaSchedule::ScaledLinear,
        beta_start: 0.00085,
        beta_end: 0.012,
        clip_sample: false,
        prediction_type: if v { Prediction::V } else { Prediction::Epsilon },
        rescale_betas_zero_snr: zero,
        timestep_spacing: if zero { Spacing::Trailing } else { Spacing::Leading },
        ..ScheduleConfig::default()
    }
}

fn objective() -> Objective {
    Objective { snr_gamma: Some(5.0), noise_offset: OFFSET }
}

fn rows(inputs: &Tensors, noise: &Tensor, timesteps: &Tensor) -> DenoisingRows {
    DenoisingRows {
        latents: inputs["sample"].shallow_clone(),
        noise: noise.shallow_clone(),
        timesteps: timesteps.shallow_clone(),
        conditioning: inputs["texts"].shallow_clone().into(),
    }
}

#[test]
fn losses_of_every_objective_are_diffusers() {
    let (golden, inputs) = (load("objectives"), load("lora/expected"));
    let unet = UNet::load(&path("tests/golden/lora/unet"), Device::Cpu).unwrap();
    let losses = |schedule: &NoiseSchedule, noise: &Tensor, timesteps: &Tensor| {
        tch::no_grad(|| rows(&inputs, noise, timesteps).losses(&unet, schedule))
    };
    let (noise, timesteps) = (&inputs["noise"], &inputs["timesteps"]);
    for name in ["epsilon", "v", "zero"] {
        let plain = NoiseSchedule::new(config(name));
        assert_close(name, plain.alphas_cumprod(), &golden[&format!("{name}/alphas_cumprod")]);
        assert_close(name, &losses(&plain, noise, timesteps), &golden[&format!("{name}/loss")]);
        let weighted = plain.with_objective(&objective());
        assert_close(name, &losses(&weighted, noise, timesteps), &golden[&format!("{name}/weighted")]);
        let shifted = losses(&weighted, &golden["offset"], timesteps);
        assert_close(name, &shifted, &golden[&format!("{name}/shifted")]);
    }
    let last = NoiseSchedule::new(config("zero")).with_objective(&objective());
    let found = losses(&last, noise, &Tensor::from_slice(&[999i64, 999]));
    assert_eq!(found, golden["zero/last"]);
    assert_eq!(found, Tensor::zeros([2], (Kind::Float, Device::Cpu)));
}

#[test]
fn the_offset_of_noise_is_drawn_after_it() {
    let golden = load("objectives");
    let size = golden["offset"].size();
    let found = Generator::seeded(77).noise(&size, OFFSET, Device::Cpu);
    assert_close("offset", &found, &golden["offset"]);
    let plain = Generator::seeded(77).normal(&size, Device::Cpu);
    assert_eq!(Generator::seeded(77).noise(&size, 0.0, Device::Cpu), plain);
    // One number for all pixels of a channel.
    let shift: Tensor = found - plain;
    assert!(shift.flatten(2, 3).std_dim(2, false, false).max().double_value(&[]) < 1e-6);
}

#[test]
fn drawings_of_v_predictions_step_as_diffusers_does() {
    let (golden, inputs) = (load("objectives"), load("lora/expected"));
    for name in ["epsilon", "v", "zero"] {
        let schedule = NoiseSchedule::new(config(name));
        let timesteps = schedule.timesteps(20).unwrap();
        assert_eq!(timesteps, Vec::<i64>::try_from(&golden[&format!("{name}/timesteps")]).unwrap());
        for step in [0, 10, 19] {
            let t = timesteps[step];
            let noise = NoiseSchedule::draws_noise(t).then(|| &golden["step_noise"]);
            let next = timesteps.get(step + 1).copied();
            let found = schedule.step(&inputs["sample"], &inputs["noise"], t, next, noise);
            assert_within(name, &found, &golden[&format!("{name}/step_{step}")], 2e-5);
        }
    }
}

#[test]
fn a_scheduler_that_leaves_nothing_to_see_needs_v_predictions() {
    let folder = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        fs_err::write(folder.path().join("scheduler_config.json"), text).unwrap();
        NoiseSchedule::load(folder.path()).map(drop).map_err(|error| error.to_string())
    };
    let error = load(r#"{"rescale_betas_zero_snr": true}"#).unwrap_err();
    assert!(
        error.contains("`rescale_betas_zero_snr` is true, supported: false with prediction_type"),
        "{error}"
    );
    assert_eq!(load(r#"{"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}"#), Ok(()));
}

#[test]
fn a_wanted_rise_sets_the_learning_rate() {
    let (case, schedule) = (load("unet/conv/case"), NoiseSchedule::new(ScheduleConfig::default()));
    let (latent, text) = (case["xt"].get(0), case["text"].narrow(0, 0, 1).into());
    let run = |lr: Option<f64>, rise: Option<f64>, steps: usize, measure: bool| {
        let mut unet = tiny();
        let params =
            UnlearnParams { lr, rise, steps, grad_accum_steps: 2, batch_size: 5, ..UnlearnParams::default() };
        let mut unlearning = Unlearning::new(&mut unet, &schedule, &latent, &text, &params, 10).unwrap();
        let loss = |unlearning: &Unlearning<'_>| measure.then(|| unlearning.query_loss().unwrap());
        let before = loss(&unlearning);
        let fisher = unlearning.changed().into_iter();
        let ones = |tensor: Tensor| tensor.ones_like().to_kind(Kind::Double) * 1e-3;
        let fisher = fisher.map(|(name, tensor)| (name, ones(tensor))).collect();
        let changed = unlearning.run(&Curvature::Diagonal(fisher), 10, &mut |_| ()).unwrap();
        let rises = before.zip(loss(&unlearning));
        let rises = rises.map(|(before, after)| (unlearning.predicted_rise() / before, after / before - 1.0));
        (rises, unlearning.lr(), changed)
    };
    // In two steps, so that each has a learning rate of its own.
    let (rises, lr, _) = run(None, Some(0.02), 2, true);
    let (predicted, found) = rises.unwrap();
    assert!((predicted / 0.02 - 1.0).abs() < 1e-9, "{predicted}");
    assert!((0.01..0.04).contains(&found), "{found}");
    let (_, half, changed) = run(None, Some(0.01), 1, false);
    assert!(half != lr);
    let (.., again) = run(Some(half), None, 1, false);
    assert!(changed.iter().all(|(name, tensor)| tensor.equal(&again[name])));
}

#[test]
fn a_step_is_damped_by_a_share_of_the_mean() {
    let (golden, case) = (load("objectives"), load("unet/conv/case"));
    let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let params = UnlearnParams {
        lr: Some(0.3),
        grad_accum_steps: 3,
        damping: 1e-4,
        relative_damping: Some(0.05),
        select: Selection::Patterns(vec![name.to_owned()]),
        ..UnlearnParams::default()
    };
    let (mut unet, schedule) = (tiny(), NoiseSchedule::new(ScheduleConfig::default()));
    let (latent, text) = (case["xt"].get(0), case["text"].narrow(0, 0, 1).into());
    let mut unlearning = Unlearning::new(&mut unet, &schedule, &latent, &text, &params, 10).unwrap();
    let of = |part: &str| [(name.to_owned(), golden[&format!("damped/{part}")].shallow_clone())].into();
    unlearning.apply(&of("gradient"), &Curvature::Diagonal(of("fisher")), 7).unwrap();
    assert_within(name, &unlearning.changed()[name], &golden["damped/moved"], 1e-6);
}
