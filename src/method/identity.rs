//! What is hashed of parameters.

use serde::Serialize;
use serde_json::{Value as Json, json};

/// All keys of parameters, without those that came later where they are at their default: results from before there was such a key
/// stay valid. `later` says of each whether it is.
pub fn hashed(params: &impl Serialize, later: &[(&str, bool)]) -> Json {
    let mut hashed = json!(params);
    if let Some(keys) = hashed.as_object_mut() {
        keys.retain(|key, _| !later.contains(&(key, true)));
    }
    hashed
}
