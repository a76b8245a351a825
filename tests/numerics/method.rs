//! The formulas: schedule, noise, drawing, per-sample gradients, ranking.

use attrflow::method::influence::{Flips, influence, per_image, rank};
use attrflow::method::noise::{
    Generator, ImageNoise, Noise, Point, batch_noise, derived_seed, drawing_noise,
};
use attrflow::method::sample::{SampleParams, sample, skip_batch};
use attrflow::method::schedule::{BetaSchedule, NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::models::unet::UNet;
use tch::{Device, Kind, Tensor};

use crate::golden::{
    Tensors, assert_close, assert_within, demo, image_noise, load, path, sample_params, tiny,
};

fn schedule(clip_sample: bool, steps_offset: i64) -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig { clip_sample, steps_offset, ..ScheduleConfig::default() })
}

#[test]
fn alphas_cumprod_are_diffusers_to_the_last_bit() {
    let golden = load("method/schedule");
    let scaled = ScheduleConfig {
        beta_schedule: BetaSchedule::ScaledLinear,
        beta_start: 0.00085,
        beta_end: 0.012,
        ..ScheduleConfig::default()
    };
    assert_eq!(schedule(true, 0).alphas_cumprod(), &golden["linear"]);
    assert_close("scaled", NoiseSchedule::new(scaled).alphas_cumprod(), &golden["scaled_linear"]);
}

#[test]
fn alphas_cumprod_fall_from_one_toward_zero() {
    let a = Vec::<f32>::try_from(schedule(true, 0).alphas_cumprod()).unwrap();
    assert!(a.windows(2).all(|pair| pair[0] > pair[1]));
    assert!(a[0] < 1.0 && a[0] > 0.999 && a[999] > 0.0 && a[999] < 1e-4);
}

#[test]
fn noised_latents() {
    let golden = load("method/schedule");
    let found = schedule(true, 0).add_noise(&golden["x0"], &golden["noise"], &golden["timesteps"]);
    assert_close("x_t", &found, &golden["noised"]);
}

#[test]
fn noised_latents_of_unit_variance_keep_it() {
    let normal = |seed| Generator::seeded(seed).normal(&[10, 4, 64, 64], Device::Cpu);
    let timesteps = Tensor::arange_start_step(0, 1000, 100, (Kind::Int64, Device::Cpu));
    let xt = schedule(true, 0).add_noise(&normal(1), &normal(2), &timesteps);
    for variance in Vec::<f32>::try_from(xt.flatten(1, -1).var_dim(1i64, true, false)).unwrap() {
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }
}

#[test]
fn single_steps_back() {
    let golden = load("method/schedule");
    for (clip, name) in [(false, "False"), (true, "True")] {
        for (steps, offset) in [(20, 1), (1000, 0)] {
            let schedule = schedule(clip, offset);
            let timesteps = schedule.timesteps(steps).unwrap();
            assert_eq!(Tensor::from_slice(&timesteps), golden[&format!("timesteps_{steps}")]);
            for i in [0, steps / 2, steps - 1] {
                let noise = NoiseSchedule::draws_noise(timesteps[i]).then(|| &golden["step_noise"]);
                let previous = timesteps.get(i + 1).copied();
                let found = schedule.step(&golden["x0"], &golden["epsilon"], timesteps[i], previous, noise);
                let name = format!("step_{name}_{steps}_{i}");
                assert_close(&name, &found, &golden[&name]);
            }
        }
    }
}

#[test]
fn steps_beyond_the_training_timesteps_are_refused() {
    for steps in [0, 1001] {
        assert!(schedule(true, 0).timesteps(steps).unwrap_err().to_string().starts_with("`steps` is"));
    }
    assert!(schedule(true, 1).timesteps(1000).is_err(), "the offset leads beyond the last timestep");
}

#[test]
fn an_unsupported_schedule_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("scheduler_config.json"), r#"{"prediction_type": "sample"}"#).unwrap();
    let error = NoiseSchedule::load(folder.path()).err().unwrap().to_string();
    assert!(
        error.ends_with(r#"`prediction_type` is "sample", supported: "epsilon", "v_prediction""#),
        "{error}"
    );
}

/// Draws all texts in batches from one stream, optionally only those of the last batch.
fn draw(
    unet: &UNet,
    schedule: &NoiseSchedule,
    golden: &Tensors,
    name: &str,
    params: &SampleParams,
    skip: i64,
) -> Tensor {
    let of = |part: &str| golden[&format!("{name}_{part}")].shallow_clone();
    let (cond, uncond) = (of("cond"), of("uncond").into());
    let (mut draws, mut found) = (Generator::seeded(0), Vec::new());
    for (i, batch) in cond.split(params.batch_size as i64, 0).iter().enumerate() {
        if (i as i64) < skip {
            skip_batch(unet, schedule, params, &mut draws).unwrap();
        } else {
            let batch = batch.shallow_clone().into();
            found.push(sample(unet, schedule, &batch, &uncond, params, &mut draws, 2, &mut |_| ()).unwrap());
        }
    }
    Tensor::cat(&found, 0)
}

#[test]
fn generation_in_two_batches() {
    let (unet, schedule, golden) = (tiny(), schedule(true, 0), load("method/drawings"));
    let params = sample_params(20, 2.0, 3);
    let found = draw(&unet, &schedule, &golden, "tiny", &params, 0);
    assert_close("latents", &found, &golden["tiny_latents"]);
    let last = draw(&unet, &schedule, &golden, "tiny", &params, 1);
    assert_within("the last batch alone", &last, &found.narrow(0, 3, 2), 1e-6);
}

#[test]
fn a_drawing_stops_on_its_way_at_what_it_predicts_there() {
    let (unet, schedule, golden) = (tiny(), schedule(true, 0), load("method/drawings"));
    let expected = &golden["tiny_denoised_at_400"];
    // The step at 400, or the first one below: steps are 50 apart.
    for at in [400, 449] {
        let params = SampleParams { denoised_at: Some(at), ..sample_params(20, 2.0, 3) };
        let last = draw(&unet, &schedule, &golden, "tiny", &params, 1);
        assert_close("on the way", &last, &expected.narrow(0, 3, 2));
    }
    assert!((expected - &golden["tiny_latents"]).abs().max().double_value(&[]) > 0.1);
}

#[test]
fn generation_with_the_demo_model() {
    let schedule = NoiseSchedule::load(&path("data/demo/model/scheduler")).unwrap();
    let (unet, golden) = (demo(), load("method/drawings"));
    let params = sample_params(50, 7.5, 2);
    assert_close("latents", &draw(&unet, &schedule, &golden, "demo", &params, 0), &golden["demo_latents"]);
}

#[test]
fn seeds_are_pinned() {
    // Another value here is other noise in every run: it takes a new version of the stage kinds.
    assert_eq!(derived_seed("image noise", &[7, 2, 250]), 3_374_822_754_418_728_871);
    assert_ne!(derived_seed("fisher", &[1, 2]), derived_seed("fisher", &[2, 1]));
    assert_ne!(derived_seed("fisher", &[1, 2]), derived_seed("unlearn", &[1, 2]));
}

#[test]
fn noise_is_normal_and_repeatable() {
    let noise = batch_noise(5, 3, &[64, 4, 16, 16], 0.0, Device::Cpu);
    assert_eq!(noise, batch_noise(4, 4, &[64, 4, 16, 16], 0.0, Device::Cpu));
    let (mean, deviation) = (noise.mean(None).double_value(&[]), noise.std(true).double_value(&[]));
    assert!(mean.abs() < 0.02 && (deviation - 1.0).abs() < 0.02, "{mean} {deviation}");
}

#[test]
fn image_noise_depends_on_image_and_timestep_alone() {
    let noise = |image, timesteps: &[i64]| image_noise(9, image, timesteps, &[2, 4, 8, 8]);
    let all = noise(3, &[0, 250, 500, 750]);
    assert_eq!(all.size(), [2, 4, 4, 8, 8]);
    assert_eq!(noise(3, &[500]), all.narrow(1, 2, 1));
    assert_ne!(noise(4, &[500]), noise(3, &[500]));
    assert_ne!(all.select(1, 0), all.select(1, 1));
}

#[test]
fn further_draws_are_other_noise_and_the_first_stays() {
    let noise = |points: &[Point]| image_noise(9, 3, points, &[2, 4, 8, 8]);
    let at = |timestep, draw| Point { timestep, draw };
    let found = noise(&[at(250, 0), at(250, 1), at(250, 2), at(500, 1)]);
    assert_eq!(found.narrow(1, 0, 1), image_noise(9, 3, &[250_i64], &[2, 4, 8, 8]));
    for other in 1..4 {
        let covariance = (found.select(1, 0) * found.select(1, other)).mean(None).double_value(&[]);
        // 512 products of independent normal numbers: four standard errors.
        assert!(covariance.abs() < 0.18, "{covariance}");
    }
    assert_eq!(noise(&[at(500, 1)]), found.narrow(1, 3, 1));
    assert_ne!(found.select(1, 1), found.select(1, 3));
}

#[test]
fn noise_by_a_counter_is_pythons_wherever_it_stands() {
    let golden = load("philox");
    let points = [Point { timestep: 250, draw: 0 }, Point { timestep: 500, draw: 1 }];
    let noise = |offset| ImageNoise { noise: Noise::PerImagePhilox, seed: 7, offset };
    let draw = |images: &[usize], points: &[Point], captions, offset| {
        noise(offset).of(images, points, &[captions, 4, 8, 8], Device::Cpu)
    };
    let within = |name: &str, found: &Tensor| {
        let worst = (found - &golden[name]).abs().max().double_value(&[]);
        assert!(worst < 2e-6, "{name}: {worst}");
    };
    let all = draw(&[0, 3], &points, 2, 0.0);
    within("noise", &all);
    within("shifted", &draw(&[0, 3], &points, 2, 0.1));
    within("drawing", &drawing_noise(Noise::PerImagePhilox, 7, 5, 999, &[4, 8, 8]));
    // Of one image at one point, and for fewer captions, the same bits.
    assert_eq!(draw(&[3], &points[1..], 2, 0.0), all.narrow(0, 1, 1).narrow(2, 1, 1));
    assert_eq!(draw(&[0, 3], &points, 1, 0.0), all.narrow(1, 0, 1));
}

#[test]
fn streams_of_two_threads_do_not_mix() {
    let alone = Generator::seeded(1).normal(&[1000], Device::Cpu);
    let wanted = Vec::<f32>::try_from(alone).unwrap();
    let draw = |_| {
        std::thread::spawn(|| {
            let mut draws = Generator::seeded(1);
            let parts: Vec<Tensor> = (0..2).map(|_| draws.normal(&[500], Device::Cpu)).collect();
            Vec::<f32>::try_from(&parts[0]).unwrap()
        })
    };
    for thread in (0..8).map(draw).collect::<Vec<_>>() {
        assert_eq!(thread.join().unwrap()[..16], wanted[..16]);
    }
}

#[test]
fn influence_and_rank() {
    let golden = load("method/influence");
    let vector = |name: &str| Vec::<f32>::try_from(&golden[name]).unwrap();
    let rise = influence(&vector("unlearned"), &vector("pretrained")).unwrap();
    assert_eq!(rise, vector("rise"));
    let found = per_image(&rise, 20, Flips::Max).unwrap();
    assert_eq!(found, vector("influence"));
    assert_eq!(rank(&found).unwrap(), Vec::<i64>::try_from(&golden["rank"]).unwrap());
}

#[test]
fn ties_keep_their_order_and_nan_is_refused() {
    // Zeros of either sign are equal, whichever comes first.
    assert_eq!(rank(&[0.0, 1.0, -0.0, 1.0, 2.0]).unwrap(), [4, 1, 3, 0, 2]);
    assert_eq!(rank(&[-0.0, 1.0, 0.0, -0.0]).unwrap(), [1, 0, 2, 3]);
    // Many of them: an unstable sort too keeps the order of short lists.
    let alternating: Vec<f32> = (0..100).map(|index| (index % 2) as f32).collect();
    let (odd, even) = ((1..100).step_by(2), (0..100).step_by(2));
    assert_eq!(rank(&alternating).unwrap(), odd.chain(even).collect::<Vec<i64>>());
    let error = rank(&[0.0, f32::NAN]).unwrap_err().to_string();
    assert_eq!(error, "the influence of image 1 is NaN");
    assert!(influence(&[1.0], &[1.0, 2.0]).is_err());
    assert!(per_image(&[1.0; 3], 2, Flips::Max).is_err());
    let rises = [1.0, -2.0, 3.0, -1.0];
    assert_eq!(per_image(&rises, 2, Flips::Max).unwrap(), [3.0, -1.0]);
    assert_eq!(per_image(&rises, 2, Flips::Mean).unwrap(), [2.0, -1.5]);
    assert_eq!(per_image(&rises, 4, Flips::Mean).unwrap(), rises);
}

#[test]
fn selections() {
    let matches =
        |selection: &Selection, name: &str| selection.matches(&format!("mid_block.attentions.0.{name}"));
    let blocks = "transformer_blocks.0.";
    let kv = format!("{blocks}attn2.to_k.weight");
    let q = format!("{blocks}attn2.to_q.weight");
    let own = format!("{blocks}attn1.to_v.weight");
    assert!(matches(&Selection::CrossAttnKv, &kv) && !matches(&Selection::CrossAttnKv, &q));
    assert!(!matches(&Selection::CrossAttnKv, &own) && matches(&Selection::CrossAttn, &q));
    assert!(!matches(&Selection::CrossAttn, &own) && matches(&Selection::Attn, &own));
    let patterns: Selection = serde_json::from_str(r#"["ff.net", "norm3"]"#).unwrap();
    assert!(matches(&patterns, "norm3.bias") && !matches(&patterns, &own));
    assert_eq!(serde_json::from_str::<Selection>("\"cross-attn-kv\"").unwrap(), Selection::CrossAttnKv);
    let names = ["conv_in.weight".to_owned()];
    let error = Selection::CrossAttn.of(&names).unwrap_err().to_string();
    assert_eq!(error, "`select` is \"cross-attn\", which no weight of the model has in its name");
}
