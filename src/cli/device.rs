//! `--device`: where to compute.

use super::failure::Failure;
use attrflow_engine::kind::Device;
use attrflow_engine::worker::protocol::DeviceClass;

/// Reads a device list; all of one class, since the class is hashed. `auto` is what the workers compute on.
pub(super) fn devices(text: &str, auto: DeviceClass) -> Result<Vec<Device>, Failure> {
    if text == "auto" {
        return Ok(match auto {
            DeviceClass::Cpu => vec![Device::Cpu],
            DeviceClass::Cuda => vec![Device::Cuda(0)],
        });
    }
    let mut devices = Vec::new();
    for part in text.split(',') {
        devices.push(match part.trim() {
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda(0),
            part => match part.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
                Some(index) => Device::Cuda(index),
                None => {
                    let form = "expected auto, cpu, cuda, or a list such as cuda:0,cuda:1";
                    return Err(Failure::Usage(format!("unknown device `{part}`: {form}")));
                }
            },
        });
    }
    if let Some(twice) = (1..devices.len()).find(|&index| devices[..index].contains(&devices[index])) {
        let name = text.split(',').nth(twice).unwrap_or_default();
        return Err(Failure::Usage(format!("`{text}` lists `{}` twice", name.trim())));
    }
    if devices.contains(&Device::Cpu) && devices.len() > 1 {
        return Err(Failure::Usage(format!("`{text}` mixes the CPU and other devices: choose one class")));
    }
    Ok(devices)
}
