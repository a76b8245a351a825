//! Images chosen by another method, scored at all timesteps, and the bound on what that loses.

use attrflow::method::error::MathError;
use attrflow::method::successive_halving::{Population, Source, Spec, rescore, upper_bound};

const POPULATION: Population = Population { images: 40, views: 2, timesteps: 4 };

/// The score of image i is i, that of its mirror image less; the sample is the last ones.
struct Falling {
    asked: Vec<usize>,
}

impl Source for Falling {
    fn differences(&mut self, latents: &[usize], timesteps: &[usize]) -> Result<Vec<f64>, MathError> {
        self.asked.extend(latents);
        let of = |latent: usize, t: usize| (latent % 40) as f64 - (latent / 40) as f64 + t as f64 - 1.5;
        Ok(latents.iter().flat_map(|&latent| timesteps.iter().map(move |&t| of(latent, t))).collect())
    }

    fn shuffled(&mut self, count: usize) -> Vec<usize> {
        (0..count).rev().collect()
    }
}

fn spec(top: usize, check: usize) -> Spec {
    Spec { top, confidence: 0.9, keep: 1.0, check }
}

#[test]
fn chosen_images_and_the_sample_are_exact_and_all_others_keep_their_estimate() {
    let mut source = Falling { asked: Vec::new() };
    // Image 39 is the best, and not chosen: the sample finds it.
    let chosen = [38, 2, 37, 36, 3];
    let found = rescore(POPULATION, &spec(3, 6), &chosen, &|latent| -(latent as f64), &mut source).unwrap();
    let exact: Vec<usize> = (0..40).filter(|&image| found.exact[image]).collect();
    // The last six of the 35 that are left: 31 to 35, and 39.
    assert_eq!(exact, [2, 3, 31, 32, 33, 34, 35, 36, 37, 38, 39]);
    for latent in 0..80 {
        let expected = match found.exact[latent % 40] {
            true => (latent % 40) as f64 - (latent / 40) as f64,
            false => -(latent as f64),
        };
        assert!((found.means[latent] - expected).abs() < 1e-12, "{latent}");
    }
    let mut asked = source.asked;
    asked.sort_unstable();
    let both: Vec<usize> = exact.iter().copied().chain(exact.iter().map(|image| image + 40)).collect();
    assert_eq!((asked, found.computed), (both, 11 * 2 * 4));
    let check = &found.check;
    assert_eq!((check.discarded, check.sample, check.found), (35, 6, 1));
    assert_eq!(check.most, upper_bound(35, 6, 1, 0.9));
    assert!(found.rounds.is_empty());
}

#[test]
fn fewer_images_than_are_wanted_are_refused() {
    let mut source = Falling { asked: Vec::new() };
    let error = rescore(POPULATION, &spec(3, 6), &[1, 2], &|_| 0.0, &mut source).unwrap_err();
    insta::assert_snapshot!(error, @"`screened` is 2: must be at least 3");
    // All there are are enough.
    let all: Vec<usize> = (0..40).collect();
    let found = rescore(POPULATION, &spec(50, 6), &all, &|_| 0.0, &mut source).unwrap();
    assert!(found.exact.iter().all(|exact| *exact));
    assert_eq!((found.check.discarded, found.check.recall), (0, 1.0));
}
