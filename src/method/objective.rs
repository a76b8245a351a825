//! What a model was trained to minimise, where that is more than the plain error of its prediction.

use attrflow_engine::config::param::Validate;
use attrflow_engine::params;

params! {
    /// The training loss beyond what the scheduler's file says: a model's losses are those that it was trained with.
    pub struct Objective {
        /// gamma of the min-SNR weight (Hang et al. 2023, arXiv 2303.09556): a row's loss is weighed by min(SNR, gamma) / SNR, with
        /// `v_prediction` by min(SNR, gamma) / (SNR + 1). Without it, all timesteps weigh alike.
        snr_gamma: Option<f64> = None,
        /// Added to the noise, times one standard normal number a channel, as some trainings do for darker and brighter images.
        noise_offset: f64 [0.0..=1.0] = 0.0,
    }
}

impl Validate for Objective {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let wrong = self.snr_gamma.filter(|gamma| *gamma <= 0.0);
        let fault = |gamma| ("snr_gamma", format!("`snr_gamma` is {gamma}, expected a number above 0"));
        wrong.map(fault).into_iter().collect()
    }
}

impl Objective {
    /// Whether it is the plain one, which every model had before there was a choice.
    pub fn is_plain(&self) -> bool {
        *self == Objective::default()
    }
}
