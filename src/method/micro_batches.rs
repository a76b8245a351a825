//! Retries with smaller batches when memory runs out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Parts of the messages of libtorch's allocators for CUDA and the CPU.
const SIGNS: [&str; 2] = ["out of memory", "can't allocate memory"];

/// The result of `compute`, or `None` if it ran out of memory; other panics are resumed.
///
/// `tch` turns libtorch's exceptions into panics. `compute` must have no side effects that matter.
pub fn catch_oom<T>(compute: impl FnOnce() -> T) -> Option<T> {
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
/// Those of `slice`. If memory does not suffice for one row, it panics.
pub fn in_micro_batches<T, E>(
    count: usize,
    mut micro: usize,
    mut slice: impl FnMut(usize, usize) -> Result<(usize, T), E>,
) -> Result<Vec<T>, E> {
    let (mut row, mut parts) = (0, Vec::new());
    while row < count {
        let most = micro.clamp(1, count - row);
        let part = if most == 1 { Some(slice(row, 1)) } else { catch_oom(|| slice(row, most)) };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows 0 to 10, of which at most `fits` fit into memory at once; a slice takes up to `most`.
    fn run(micro: usize, fits: usize) -> Vec<Vec<usize>> {
        in_micro_batches(10, micro, |row, most| {
            assert!(most <= fits, "CUDA out of memory. Tried to allocate");
            Ok::<_, ()>((most, (row..row + most).collect()))
        })
        .unwrap()
    }

    #[test]
    fn slices_cover_every_row_once() {
        for micro in [0, 1, 3, 10, 99] {
            assert_eq!(run(micro, 99).concat(), (0..10).collect::<Vec<_>>(), "{micro}");
        }
    }

    #[test]
    fn less_memory_means_smaller_slices_and_the_same_rows() {
        assert_eq!(run(8, 3), [vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7], vec![8, 9]]);
    }

    #[test]
    #[should_panic(expected = "out of memory")]
    fn one_row_that_does_not_fit_is_an_error() {
        run(4, 0);
    }

    #[test]
    #[should_panic(expected = "another reason")]
    fn other_panics_go_on() {
        let _ = in_micro_batches(10, 4, |_, _| -> Result<(usize, ()), ()> { panic!("another reason") });
    }

    #[test]
    fn errors_end_the_run() {
        assert_eq!(
            in_micro_batches(10, 4, |row, most| if row > 3 { Err(row) } else { Ok((most, ())) }),
            Err(4)
        );
    }
}
