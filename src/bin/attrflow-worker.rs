//! The process that computes.
fn main() {}
