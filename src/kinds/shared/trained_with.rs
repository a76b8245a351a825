//! What a LoRA says of the loss that it was trained with.

use crate::io::lora::Lora;
use crate::method::objective::Objective;

/// The settings that an [`Objective`] has too.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TrainedWith {
    pub snr_gamma: Option<f64>,
    pub noise_offset: Option<f64>,
}

impl TrainedWith {
    /// From the metadata of kohya's scripts; other files say nothing.
    pub fn of(lora: &Lora) -> TrainedWith {
        let training = lora.training();
        let number = |key: &str| training.get(key)?.parse::<f64>().ok().filter(|value| *value > 0.0);
        TrainedWith {
            snr_gamma: number("min_snr_gamma").filter(|gamma| gamma.is_finite()),
            noise_offset: number("noise_offset").filter(|offset| *offset <= 1.0),
        }
    }

    /// Where an objective differs from what the LoRA says, a sentence each.
    pub fn differences(self, objective: &Objective) -> Vec<String> {
        let gamma = (self.snr_gamma, objective.snr_gamma, "snr_gamma", "a min-SNR gamma");
        let offset = Some(objective.noise_offset).filter(|offset| *offset > 0.0);
        let offset = (self.noise_offset, offset, "noise_offset", "a noise offset");
        let differs = |(said, given, key, what): &(Option<f64>, Option<f64>, &str, &str)| {
            let said = said.filter(|said| *given != Some(*said))?;
            let given = given.map_or("is not set".to_owned(), |given| format!("is {given}"));
            Some(format!(
                "the LoRA says that it was trained with {what} of {said}, and `objective.{key}` {given}: losses are those of another \
                 training"
            ))
        };
        [gamma, offset].iter().filter_map(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_that_differs_is_said() {
        let said = TrainedWith { snr_gamma: Some(5.0), noise_offset: Some(0.1) };
        let of = |snr_gamma, noise_offset| said.differences(&Objective { snr_gamma, noise_offset });
        assert_eq!(of(Some(5.0), 0.1), Vec::<String>::new());
        let found = of(Some(1.0), 0.0);
        assert!(found[0].contains("a min-SNR gamma of 5, and `objective.snr_gamma` is 1:"), "{found:?}");
        assert!(
            found[1].contains("a noise offset of 0.1, and `objective.noise_offset` is not set:"),
            "{found:?}"
        );
        // What it does not say cannot differ.
        assert!(
            TrainedWith::default()
                .differences(&Objective { snr_gamma: Some(5.0), noise_offset: 0.1 })
                .is_empty()
        );
    }
}
