//! What can go wrong in the method.

use crate::models::weights::config::ModelError;

/// An error of the method: a parameter out of range, or a number that cannot be.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum MathError {
    #[error("`{key}` is {found}: {rule}")]
    Parameter { key: &'static str, found: String, rule: String },
    #[error("{what} has {found} rows, expected {expected}")]
    Rows { what: &'static str, found: usize, expected: String },
    #[error("cannot read rows of the data set")]
    Data(#[source] DataError),
    #[error(
        "the loss of image {image}{} at timestep {timestep} is {value}",
        if *mirrored { " (mirrored)" } else { "" }
    )]
    LossNotFinite { image: usize, mirrored: bool, timestep: i64, value: f64 },
    #[error("the gradient of image {image}{} is not finite", if *mirrored { " (mirrored)" } else { "" })]
    GradientNotFinite { image: usize, mirrored: bool },
    #[error("the vector of {what} is zero, so that it has no cosine with others")]
    NoDirection { what: &'static str },
    #[error(
        "the kernel of the gradients is not positive definite with damping = {damping}: set a larger `damping`"
    )]
    SingularKernel { damping: f64 },
    #[error("the influence of image {image} is {value}")]
    InfluenceNotFinite { image: usize, value: f32 },
    #[error(
        "the rise in loss of image {image}{} at the timestep of place {place} is {value}",
        if *mirrored { " (mirrored)" } else { "" }
    )]
    DifferenceNotFinite { image: usize, mirrored: bool, place: usize, value: f64 },
    #[error("the latents of row {row} are not finite after the step at timestep {timestep}")]
    LatentsNotFinite { row: usize, timestep: i64 },
    #[error("`{parameter}` holds values that are not finite: {what}")]
    ParameterNotFinite { parameter: String, what: &'static str },
    #[error(
        "a step of any length would change the loss of the query by {rise:e} to first order: its gradient is zero or not finite"
    )]
    NoRise { rise: f64 },
    #[error(
        "the Fisher information of `{parameter}` is zero in {zeros} of {count} places, \
         so that the step there is not finite; set {} to continue",
        // A share of a mean of zero is zero.
        if zeros == count { "`damping`" } else { "`damping` or `relative_damping`" }
    )]
    ZeroFisher { parameter: String, zeros: i64, count: i64 },
    #[error(
        "the Fisher information of `{parameter}` is {value} at {index:?}, expected means of squares: finite, and not negative"
    )]
    FisherValue { parameter: String, index: Vec<i64>, value: f64 },
    #[error(
        "the Fisher information has no `{parameter}`, which `select` names: compute it with a `select` that holds it"
    )]
    NoFisher { parameter: String },
    #[error(
        "the Fisher information of `{parameter}` has the shape {found:?}, the parameter has {expected:?}"
    )]
    FisherShape { parameter: String, found: Vec<i64>, expected: Vec<i64> },
    #[error(
        "the eigenvalues of `{layer}` sum to {sum:e}, the squared gradients of the same rows to {trace:e}, expected equal sums: the \
         eigenvectors are not orthogonal"
    )]
    Trace { layer: String, sum: f64, trace: f64 },
    #[error(
        "the eigenvalues of `{layer}` sum to {sum:e}, and its diagonal Fisher information to {trace:e}: there is no factor between them"
    )]
    NoScale { layer: String, sum: f64, trace: f64 },
    #[error(
        "the eigenvectors of `{parameter}` are not orthogonal: products of two of them are off by up to {far:.1e}"
    )]
    NotOrthogonal { parameter: String, far: f64 },
    #[error(
        "`select` chooses the bias of `{layer}` without its weight, and EK-FAC takes both together: choose both or none"
    )]
    BiasAlone { layer: String },
    #[error(
        "{count} of the ids that are left out are not in the data set of {images} images, for instance `{first}`"
    )]
    UnknownIds { count: usize, first: String, images: usize },
    #[error("the unlearned weights of query {query}: {what}")]
    Step { query: usize, what: String },
    #[error("all {images} images are left out: nothing is left to train on")]
    NothingLeft { images: usize },
    #[error("`select` is {selection}, which no weight of the model has in its name")]
    NothingSelected { selection: String },
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Any error of whoever provides the data.
pub type DataError = Box<dyn std::error::Error + Send + Sync>;

impl MathError {
    /// The error for a parameter that breaks a rule.
    pub fn parameter(key: &'static str, found: impl ToString, rule: impl Into<String>) -> MathError {
        MathError::Parameter { key, found: found.to_string(), rule: rule.into() }
    }
}
