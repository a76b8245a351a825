//! A manifest in forms that others can check: signed, as an in-toto statement, as a Workflow Run RO-Crate.

mod crates;
mod outputs;
mod sign;
mod statement;

pub use crates::{Crate, write_crate};
pub use outputs::{Bytes, Output, outputs};
pub use sign::{Key, SignError, Signed, verify};
pub use statement::statement;
