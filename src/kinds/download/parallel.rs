//! Runs many tasks on a few threads, with progress reported on the calling thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

enum Message<R> {
    Progress(usize, u64),
    Done(usize, R),
}

/// Runs the task of an index; the closure reports progress.
type Work<'w, R> = dyn Fn(usize, &dyn Fn(u64)) -> R + Sync + 'w;

/// Runs tasks `0..count` on up to `threads` threads, starting them in order; returns the results in order.
pub(super) fn parallel_for<R: Send>(
    count: usize,
    threads: usize,
    work: &Work<'_, R>,
    on_progress: &mut dyn FnMut(usize, u64),
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let (sender, messages) = mpsc::channel();
    let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    // The receiver lives until all threads have ended.
                    let result = work(index, &|done| drop(sender.send(Message::Progress(index, done))));
                    let _ = sender.send(Message::Done(index, result));
                }
            });
        }
        drop(sender);
        for message in messages {
            match message {
                Message::Progress(index, done) => on_progress(index, done),
                Message::Done(index, result) => results[index] = Some(result),
            }
        }
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_whichever_task_ends_first() {
        let barrier = std::sync::Barrier::new(3);
        let mut progress = Vec::new();
        let work = |index: usize, report: &dyn Fn(u64)| {
            // Waits for three parallel tasks.
            barrier.wait();
            report(index as u64 * 10);
            index * 2
        };
        let results = parallel_for(6, 3, &work, &mut |index, done| progress.push((index, done)));
        assert_eq!(results, [0, 2, 4, 6, 8, 10]);
        progress.sort_unstable();
        assert_eq!(progress, (0..6).map(|index| (index, index as u64 * 10)).collect::<Vec<_>>());
        assert!(parallel_for(0, 4, &|_, _| (), &mut |_, _| ()).is_empty());
    }
}
