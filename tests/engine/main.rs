//! The engine on toy kinds: no tensor, no worker process.
#![allow(missing_docs, clippy::unwrap_used)]

mod toys;
