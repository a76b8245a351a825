//! The engine.

pub mod config;
pub mod estimate;
pub mod exec;
pub mod explain;
pub mod identity;
pub mod kind;
pub mod maintenance;
pub mod pipeline;
pub mod plan;
pub mod provenance;
pub mod store;
pub mod worker;
