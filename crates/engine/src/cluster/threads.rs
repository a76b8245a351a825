//! The threads of a run on a cluster: signs of life, workers that said hello, questions to the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::bucket::log_on_node;
use super::error::SlurmError;
use super::folder::{AttemptFolder, Lease, LeaseState};
use super::jobs::JobLine;
use super::pool::{Notice, Shared, State, Submitted};
use crate::worker::cancel::CancelMode;
use crate::worker::protocol::Facts;

/// Writes a sign of life.
pub(super) fn beat(shared: &Shared, beat: u64, state: LeaseState) -> std::io::Result<()> {
    let host = Facts::of_machine("", crate::kind::Device::Cpu).host;
    let lease = Lease { epoch: shared.epoch, beat, host, pid: std::process::id(), state };
    shared.folder.write_lease(&lease)
}

/// Gives signs of life, and stops the run if another took it over.
pub(super) fn keep_lease(shared: &Shared) {
    let every = Duration::from_secs_f64(shared.config.waits.heartbeat);
    let (mut count, mut last) = (0, Instant::now());
    while !shared.state().over {
        if last.elapsed() >= every {
            (count, last) = (count + 1, Instant::now());
            if shared.folder.lease().is_ok_and(|lease| lease.epoch > shared.epoch) {
                shared.warn("another process took this run over; this one ends".into());
                shared.cancel.request(CancelMode::Kill);
                return;
            }
            if let Err(error) = beat(shared, count, LeaseState::Running) {
                shared.warn(format!("no sign of life could be written: {error}"));
            }
        }
        if let Some(mode) = shared.folder.cancel_request().filter(|mode| shared.cancel.mode() < Some(*mode)) {
            shared.warn("`attrflow cancel` asks this run to end".into());
            shared.cancel.request(mode);
        }
        std::thread::sleep(every.min(Duration::from_millis(100)));
    }
}

/// Finds workers that said hello.
pub(super) fn find_workers(shared: &Shared) {
    let every = Duration::from_secs_f64(shared.config.waits.poll.min(0.25));
    let mut known = BTreeSet::new();
    // Of those that an earlier run left, only a sign of life tells which are alive.
    let mut inherited: BTreeMap<String, u64> = BTreeMap::new();
    let size = |folder: &AttemptFolder| fs_err::metadata(folder.outbox()).map_or(0, |found| found.len());
    if shared.epoch > 1 {
        let left = fs_err::read_dir(shared.folder.workers()).into_iter().flatten().flatten();
        let left = left.map(|entry| AttemptFolder::at(entry.path()));
        inherited.extend(left.map(|folder| (folder.name(), size(&folder))));
    }
    while !shared.state().over {
        for entry in fs_err::read_dir(shared.folder.workers()).into_iter().flatten().flatten() {
            let folder = AttemptFolder::at(entry.path());
            let name = folder.name();
            if known.contains(&name) {
                continue;
            }
            let Ok(hello) = folder.hello() else { continue };
            if inherited.get(&name).is_some_and(|before| *before == size(&folder)) {
                continue;
            }
            known.insert(name);
            shared.welcome(folder, hello);
        }
        std::thread::sleep(every);
    }
}

/// Asks the scheduler for workers, and after them: one question at a time.
pub(super) fn ask_scheduler(shared: &Shared) {
    let waits = &shared.config.waits;
    let shortest = Duration::from_secs_f64(waits.squeue);
    let (mut every, mut last) = (shortest, Instant::now());
    // An earlier run of this folder left jobs.
    let (mut must_look, mut cancelled, mut absent) = (shared.epoch > 1, None, false);
    let mut told = BTreeMap::new();
    while !shared.state().over {
        let mode = shared.cancel.mode();
        if mode == Some(CancelMode::Kill)
            && let Some(bucket) = &shared.bucket
        {
            bucket.stop();
        }
        if mode.is_some() && mode != cancelled {
            // If it does not answer, the end of the run asks again.
            let _ = shared.scheduler.cancel(mode == Some(CancelMode::Drain));
            cancelled = mode;
        }
        let mut trouble = None;
        if mode.is_none() && !must_look {
            for pool in 0..shared.pools.len() {
                let asked = Instant::now();
                match submit(shared, pool) {
                    Ok(false) => {}
                    Ok(true) => std::thread::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed())),
                    Err(SlurmError::Refused(why)) => refused(shared, pool, &why),
                    Err(SlurmError::Absent(why)) => {
                        // It may have taken the job: before another is submitted, this one is looked for.
                        (must_look, trouble) = (true, Some(why));
                    }
                }
            }
        }
        let submitted = !shared.state().submitted.is_empty();
        if must_look || (submitted && last.elapsed() >= every) {
            let begun = Instant::now();
            match shared.scheduler.queue() {
                Ok(lines) => {
                    must_look = false;
                    take_lines(shared, lines, &mut told);
                }
                Err(error) => trouble = Some(error.to_string()),
            }
            last = Instant::now();
            // A scheduler that is slow is asked less often.
            every = (begun.elapsed() * 10).clamp(shortest, shortest * 10);
        }
        match trouble {
            Some(why) => {
                if !std::mem::replace(&mut absent, true) {
                    shared.warn(format!("the scheduler does not answer ({why}); what runs goes on"));
                }
                std::thread::sleep(shortest.min(Duration::from_secs(5)));
            }
            None if submitted => absent = false,
            None => {}
        }
        let state = shared.state();
        if !state.over {
            drop(shared.wake.wait_timeout(state, Duration::from_millis(100)));
        }
    }
}

/// Takes note of a refused submission. While others of the pool serve, it is tried again later: some limits pass.
fn refused(shared: &Shared, pool: usize, why: &str) {
    const LATER: Duration = Duration::from_secs(60);
    let mut state = shared.state();
    let busy = state.busy.get(&pool).copied().unwrap_or(0);
    if busy == 0 && state.serving(pool) == 0 {
        state.failed.insert(pool, format!("sbatch: {why}"));
    } else {
        state.not_before.insert(pool, Instant::now() + LATER);
    }
    drop(state);
    shared.wake.notify_all();
    if busy > 0 {
        shared.warn(format!("sbatch: {why}; what serves goes on, and more is asked for in a minute"));
    }
}

/// Submits what a pool lacks; returns whether anything was submitted.
fn submit(shared: &Shared, pool: usize) -> Result<bool, SlurmError> {
    let (count, exclude) = {
        let state = shared.state();
        let late = state.not_before.get(&pool).is_some_and(|time| Instant::now() < *time);
        if late || state.failed.contains_key(&pool) {
            return Ok(false);
        }
        let wanted = state.wanted(pool).min(shared.pools[pool].most);
        (wanted.saturating_sub(state.serving(pool)), state.excluded_of(pool))
    };
    if count == 0 {
        return Ok(false);
    }
    let at = Instant::now();
    let array = shared.scheduler.submit(&shared.pools[pool].name, count as u32, &exclude)?;
    let mut state = shared.state();
    state.submitted.push(Submitted { array, pool, count, at });
    Ok(true)
}

/// Takes what the scheduler says of all tasks, and tells of changes.
fn take_lines(shared: &Shared, lines: Vec<JobLine>, told: &mut BTreeMap<usize, (usize, usize, String)>) {
    let mut state = shared.state();
    state.looked = Some(Instant::now());
    let mut found: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for line in &lines {
        let Some(pool) = state.pool_of(line, shared) else { continue };
        let task: usize = line.id.1.parse().unwrap_or(0);
        let (_, count) = found.entry(&line.id.0).or_insert((pool, 0));
        *count = (*count).max(task + 1);
    }
    // A submission that was not answered may have been taken.
    for (array, (pool, count)) in found {
        if !state.submitted.iter().any(|submitted| submitted.array == array) {
            state.submitted.push(Submitted { array: array.to_owned(), pool, count, at: Instant::now() });
        }
    }
    let mut notices = Vec::new();
    for (pool, info) in shared.pools.iter().enumerate() {
        let of_pool =
            || lines.iter().filter(|line| state.pool_of(line, shared) == Some(pool) && !line.is_over());
        let running = of_pool().filter(|line| line.is_running()).count();
        let waiting: Vec<&JobLine> = of_pool().filter(|line| !line.is_running()).collect();
        let reason = waiting.first().map(|line| line.reason.clone()).unwrap_or_default();
        let now = (running, waiting.len(), reason);
        if told.get(&pool) != Some(&now) {
            let (running, pending, reason) = now.clone();
            notices.push(Notice::Pool { pool: info.name.clone(), running, pending, reason });
            told.insert(pool, now);
        }
        note_silent_ends(shared, &mut state, pool, &lines);
    }
    let longest = Duration::from_secs_f64(shared.config.waits.gone);
    let now = Instant::now();
    let greeted: BTreeSet<_> = state.newest.keys().cloned().collect();
    let quiet = |line: &&JobLine| line.is_running() && !greeted.contains(&line.id);
    let quiet: BTreeMap<_, _> = lines
        .iter()
        .filter(quiet)
        .map(|line| (line.id.clone(), state.silent.get(&line.id).copied().unwrap_or(now)))
        .collect();
    // One whose launch was lost would be waited for as long as the scheduler believes in it.
    let lost = quiet.iter().filter(|(_, since)| since.elapsed() > longest);
    let lost: Vec<_> = lost.map(|(id, _)| id.clone()).collect();
    state.spent.extend(lost);
    state.silent = quiet;
    state.lines = lines.into_iter().map(|line| (line.id.clone(), line)).collect();
    drop(state);
    shared.wake.notify_all();
    notices.into_iter().for_each(|notice| (shared.notice)(notice));
}

/// Counts tasks that ended before they said hello: a fault of the script, or of nodes, must not be repeated for ever.
fn note_silent_ends(shared: &Shared, state: &mut State, pool: usize, lines: &[JobLine]) {
    const MOST: usize = 3;
    let of_pool: Vec<&JobLine> =
        lines.iter().filter(|line| line.is_over() && state.pool_of(line, shared) == Some(pool)).collect();
    for line in of_pool {
        if state.newest.contains_key(&line.id)
            || !state.spent.insert(line.id.clone())
            || line.state == "CANCELLED"
        {
            continue;
        }
        let count = state.silent_ends.entry(pool).or_insert(0);
        *count += 1;
        let count = *count;
        let wait = Duration::from_secs(1 << count.min(6));
        state.not_before.insert(pool, Instant::now() + wait);
        if count >= MOST && state.busy.get(&pool).copied().unwrap_or(0) == 0 {
            let (array, task) = &line.id;
            let log = match &shared.bucket {
                Some(_) => {
                    format!("its log is {} there", log_on_node(&shared.folder.name(), array, task).display())
                }
                None => {
                    let log = shared.folder.log().join(format!("{array}_{task}.log"));
                    let text = fs_err::read_to_string(&log).unwrap_or_default();
                    let last: Vec<&str> = text.trim().lines().rev().take(5).collect();
                    let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
                    format!("{} ends with: {last}", log.display())
                }
            };
            let message = format!(
                "{count} workers of pool `{}` ended before they could serve; the last, {array}_{task}: {}; {log}",
                shared.pools[pool].name,
                line.describe()
            );
            state.failed.insert(pool, message);
        }
    }
}
