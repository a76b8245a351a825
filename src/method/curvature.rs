//! What a step is preconditioned with: an estimate of the Fisher information matrix that can be inverted.

use std::collections::BTreeMap;

use attrflow_engine::choice;
use tch::{Kind, Tensor};

use super::damping::Damping;
use super::ekfac::Ekfac;
use super::error::MathError;

choice! {
    /// Which estimate.
    pub enum CurvatureKind {
        /// The diagonal, from `fisher`: as published.
        Diagonal = "diagonal",
        /// Kronecker factors of each linear layer with corrected eigenvalues, from `ekfac`.
        Ekfac = "ekfac",
    }
}

impl CurvatureKind {
    /// The input that has it.
    pub fn port(self) -> &'static str {
        match self {
            CurvatureKind::Diagonal => "fisher",
            CurvatureKind::Ekfac => "ekfac",
        }
    }
}

/// An estimate F of the Fisher information matrix of some parameters.
pub enum Curvature {
    /// Its diagonal by parameter, in float64.
    Diagonal(BTreeMap<String, Tensor>),
    /// See [`Ekfac`].
    Ekfac(Ekfac),
}

impl Curvature {
    /// Refuses an estimate that does not fit these parameters, or whose damped inverse is not finite.
    ///
    /// # Errors
    /// The parameter at fault.
    pub fn check(&self, parameters: &BTreeMap<String, Tensor>, damping: Damping) -> Result<(), MathError> {
        let fisher = match self {
            Curvature::Ekfac(ekfac) => return ekfac.check(parameters, damping),
            Curvature::Diagonal(fisher) => fisher,
        };
        for (name, parameter) in parameters {
            let (parameter, expected) = (name.clone(), parameter.size());
            let Some(values) = fisher.get(name) else { return Err(MathError::NoFisher { parameter }) };
            if values.size() != expected {
                return Err(MathError::FisherShape { parameter, found: values.size(), expected });
            }
            damping.check(name, values)?;
        }
        Ok(())
    }

    /// The inverse of the damped information times a gradient: both by parameter, in float64.
    pub fn solve(&self, gradient: &BTreeMap<String, Tensor>, damping: Damping) -> BTreeMap<String, Tensor> {
        match self {
            Curvature::Ekfac(ekfac) => ekfac.solve(gradient, damping),
            Curvature::Diagonal(fisher) => {
                let of = |(name, gradient): (&String, &Tensor)| {
                    let fisher = damping.add_to(&fisher[name].to_device(gradient.device()));
                    (name.clone(), gradient / fisher)
                };
                gradient.iter().map(of).collect()
            }
        }
    }

    /// The quadratic form of a step without damping, s^T F s: in the unit of the loss, twice how much a step raises the mean loss of
    /// the training set if F is its Hessian.
    pub fn form(&self, step: &BTreeMap<String, Tensor>) -> f64 {
        match self {
            Curvature::Ekfac(ekfac) => ekfac.form(step),
            Curvature::Diagonal(fisher) => {
                let of = |(name, step): (&String, &Tensor)| {
                    let fisher = fisher[name].to_device(step.device()).to_kind(Kind::Double);
                    (fisher * step.square()).sum(Kind::Double).double_value(&[])
                };
                step.iter().map(of).sum()
            }
        }
    }
}
