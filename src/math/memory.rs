//! Going on with less when the device's memory runs out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What libtorch's allocators of CUDA and of the CPU say.
const SIGNS: [&str; 2] = ["out of memory", "can't allocate memory"];

/// What `compute` returns, or nothing if it ran out of memory; other panics go on.
///
/// `tch` turns libtorch's exceptions into panics. What `compute` did so far must not matter.
pub fn unless_exhausted<T>(compute: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(value) => Some(value),
        Err(panic) if exhausted(panic.as_ref()) => None,
        Err(panic) => resume_unwind(panic),
    }
}

fn exhausted(panic: &(dyn Any + Send)) -> bool {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.is_some_and(|text| SIGNS.iter().any(|sign| text.contains(sign)))
}

/// Computes rows 0 to `count` in slices of at most `micro` rows, halving `micro` when memory runs out.
///
/// `slice` gets a first row and the most rows it may take, and returns how many it took with their value.
///
/// # Errors
/// Those of `slice`. Memory that does not suffice for one row is a panic.
pub fn in_slices<T, E>(
    count: usize,
    mut micro: usize,
    mut slice: impl FnMut(usize, usize) -> Result<(usize, T), E>,
) -> Result<Vec<T>, E> {
    let (mut row, mut parts) = (0, Vec::new());
    while row < count {
        let most = micro.clamp(1, count - row);
        let part = if most == 1 { Some(slice(row, 1)) } else { unless_exhausted(|| slice(row, most)) };
        match part {
            Some(part) => {
                let (taken, value) = part?;
                row += taken;
                parts.push(value);
            }
            None => {
                micro = most / 2;
                tracing::warn!(rows = micro, "out of memory: going on with fewer rows at once");
            }
        }
    }
    Ok(parts)
}
