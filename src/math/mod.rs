//! The method: formulas on tensors.
