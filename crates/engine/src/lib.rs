//! The engine of attrflow: pipelines, the content-addressed cache, planning, running and provenance.
//!
//! It computes no tensor and prints nothing; the kinds of stages are given to it ([`kind::Registry`]).

pub mod cluster;
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
pub mod remote;
pub mod store;
pub mod worker;
