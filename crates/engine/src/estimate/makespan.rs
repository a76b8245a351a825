//! The wall time of a run: its tasks on a number of workers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// A stage's part of the run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Job {
    /// The jobs that it waits for, by index.
    pub after: Vec<usize>,
    /// Tasks that can run in parallel; 0 for a stage that takes no time.
    pub tasks: u64,
    /// Seconds of all tasks together.
    pub seconds: f64,
    /// Seconds of the merge task after them.
    pub merge: f64,
}

/// A time with a total order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Time(f64);

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Seconds from the start of the first to the end of the last job, in the engine's order: the first ready stage's tasks
/// first, a merge before all. Each worker takes `start` seconds before its first task.
pub fn wall(jobs: &[Job], workers: usize, start: f64) -> f64 {
    let mut readers = vec![Vec::new(); jobs.len()];
    let mut waits: Vec<usize> = jobs.iter().map(|job| job.after.len()).collect();
    for (place, job) in jobs.iter().enumerate() {
        for before in &job.after {
            readers[*before].push(place);
        }
    }
    let mut left: Vec<u64> = jobs.iter().map(|job| job.tasks).collect();
    let mut merged = vec![false; jobs.len()];
    let mut queue: VecDeque<(usize, f64)> = VecDeque::new();
    // Stages without work are done as soon as they are ready; the tasks of the others are queued.
    let mut ready: VecDeque<usize> = (0..jobs.len()).filter(|place| waits[*place] == 0).collect();
    let (mut running, mut idle, mut cold, mut now) = (BinaryHeap::new(), workers.max(1), workers.max(1), 0.0);
    loop {
        while let Some(place) = ready.pop_front() {
            let job = &jobs[place];
            if job.tasks > 0 {
                let each = job.seconds / job.tasks as f64;
                queue.extend((0..job.tasks).map(|_| (place, each)));
                continue;
            }
            for reader in &readers[place] {
                waits[*reader] -= 1;
                if waits[*reader] == 0 {
                    ready.push_back(*reader);
                }
            }
        }
        while idle > 0
            && let Some((place, seconds)) = queue.pop_front()
        {
            idle -= 1;
            let before = if cold > 0 { start } else { 0.0 };
            cold = cold.saturating_sub(1);
            running.push(Reverse((Time(now + before + seconds), place)));
        }
        let Some(Reverse((Time(end), place))) = running.pop() else { return now };
        (now, idle) = (end, idle + 1);
        left[place] = left[place].saturating_sub(1);
        if left[place] > 0 {
            continue;
        }
        if jobs[place].merge > 0.0 && !std::mem::replace(&mut merged[place], true) {
            left[place] = 1;
            queue.push_front((place, jobs[place].merge));
            continue;
        }
        for reader in &readers[place] {
            waits[*reader] -= 1;
            if waits[*reader] == 0 {
                ready.push_back(*reader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(after: &[usize], tasks: u64, seconds: f64, merge: f64) -> Job {
        Job { after: after.to_vec(), tasks, seconds, merge }
    }

    #[test]
    fn tasks_share_the_workers() {
        assert_eq!(wall(&[job(&[], 8, 8.0, 0.0)], 1, 0.0), 8.0);
        assert_eq!(wall(&[job(&[], 8, 8.0, 0.0)], 4, 0.0), 2.0);
        assert_eq!(wall(&[job(&[], 8, 8.0, 3.0)], 4, 0.5), 5.5);
        assert_eq!(wall(&[job(&[], 1, 8.0, 0.0)], 4, 0.0), 8.0);
    }

    #[test]
    fn stages_wait_for_what_they_read() {
        // A diamond: the two in the middle run in parallel.
        let jobs = [
            job(&[], 1, 1.0, 0.0),
            job(&[0], 1, 4.0, 0.0),
            job(&[0], 1, 2.0, 0.0),
            job(&[1, 2], 1, 1.0, 0.0),
        ];
        assert_eq!(wall(&jobs, 2, 0.0), 6.0);
        assert_eq!(wall(&jobs, 1, 0.0), 8.0);
    }

    #[test]
    fn a_stage_without_work_takes_no_time() {
        let jobs = [job(&[], 0, 0.0, 0.0), job(&[0], 0, 0.0, 0.0), job(&[1], 2, 2.0, 0.0)];
        assert_eq!(wall(&jobs, 2, 0.25), 1.25);
        assert_eq!(wall(&[], 2, 1.0), 0.0);
    }
}
