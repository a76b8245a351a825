//! Networks, named as their checkpoints name them.
