//! In place of `credentials` in a build without the feature `s3`.

use std::sync::Arc;

use object_store::ObjectStore;

use super::{RemoteError, Result};

/// There is none.
pub(super) fn endpoint() -> Option<String> {
    None
}

/// Refused.
pub(super) fn bucket_of(address: &str, _: &str) -> Result<Arc<dyn ObjectStore>> {
    Err(RemoteError::NoBuckets { address: address.to_owned() })
}
