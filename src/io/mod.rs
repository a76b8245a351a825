//! Files and formats. Knows nothing of tensors on a device.
