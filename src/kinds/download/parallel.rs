//! Work of many parts on a few threads, with progress heard on the thread that asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

enum Said<R> {
    Progress(usize, u64),
    Done(usize, R),
}

/// Does the part of an index, and says how far it has come.
type Work<'w, R> = dyn Fn(usize, &dyn Fn(u64)) -> R + Sync + 'w;

/// Does parts `0..count` on up to `threads` threads, in order of their begin; the results are in order too.
pub(super) fn at_once<R: Send>(
    count: usize,
    threads: usize,
    work: &Work<'_, R>,
    heard: &mut dyn FnMut(usize, u64),
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let (say, said) = mpsc::channel();
    let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            let (say, next) = (say.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    // The receiver lives until all threads have ended.
                    let result = work(index, &|done| drop(say.send(Said::Progress(index, done))));
                    let _ = say.send(Said::Done(index, result));
                }
            });
        }
        drop(say);
        for said in said {
            match said {
                Said::Progress(index, done) => heard(index, done),
                Said::Done(index, result) => results[index] = Some(result),
            }
        }
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whichever_part_was_first() {
        let barrier = std::sync::Barrier::new(3);
        let mut heard = Vec::new();
        let work = |index: usize, say: &dyn Fn(u64)| {
            // Three at once, or this never ends.
            barrier.wait();
            say(index as u64 * 10);
            index * 2
        };
        let results = at_once(6, 3, &work, &mut |index, done| heard.push((index, done)));
        assert_eq!(results, [0, 2, 4, 6, 8, 10]);
        heard.sort_unstable();
        assert_eq!(heard, (0..6).map(|index| (index, index as u64 * 10)).collect::<Vec<_>>());
        assert!(at_once(0, 4, &|_, _| (), &mut |_, _| ()).is_empty());
    }
}
