//! Tables of messages, and the effects of each.

use super::*;
use crate::exec::state_messages::RunError;
use crate::identity::digest::Digest;
use crate::kind::Unit;
use crate::plan::ResolvedInputs;
use crate::store::{Artifact, PART, StoreError};
use crate::worker::protocol::Usage;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const APART: usize = 3;

/// Stages `a`, `b` after it, `c` after `b`, and one apart.
fn state() -> RunState {
    let names = ["a", "b", "c", "apart"].map(str::to_owned).to_vec();
    RunState::new(names, vec![vec![B], vec![C], vec![], vec![]], &[A, B, C, APART])
}

fn recipe() -> Recipe {
    let (kind, inputs) = ("toy".to_owned(), BTreeMap::new());
    Recipe { kind, version: 1, params: serde_json::Value::Null, inputs, numerics: None, unit: None }
}

fn entry(seconds: f64) -> Box<Entry> {
    let part = Artifact { digest: Digest([7; 32]), size: 1, folder: true };
    let outputs = [(PART.to_owned(), part)].into();
    Box::new(Entry { recipe: recipe(), outputs, seconds, adopted: None, check: None })
}

fn units(count: usize) -> Vec<Unit> {
    let unit = |n: usize| Unit { name: format!("u{n}"), range: n.into(), steps: 10 };
    (0..count).map(unit).collect()
}

/// A stage that runs, of whose units these are in the cache.
fn work(units: Units, cached: &[usize]) -> Decision {
    let count = units.list().len();
    let entries = (0..count).map(|unit| cached.contains(&unit).then(|| *entry(1.0))).collect();
    let recipes = vec![recipe(); count];
    let work = Work::new(recipe(), ResolvedInputs::default(), false, units, (recipes, entries));
    Decision::Run(Box::new(work), Reason::First)
}

fn placed(stage: usize, took: Option<f64>) -> Message {
    Message::Placed(stage, entry(1.0), took, BTreeMap::new())
}

fn done(stage: usize, unit: usize) -> Message {
    Message::Done(stage, Some(unit), entry(1.0), Some(2.0))
}

fn failed(stage: usize, unit: Option<usize>) -> Message {
    Message::Failed(stage, unit, "broken".into())
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Emit(Event::StageStarted { stage, units, units_cached, steps, .. }) => {
            format!("{stage} starts: {units_cached} of {units} units cached, {steps} steps")
        }
        Effect::Emit(Event::StageCached { stage, .. }) => format!("{stage} is cached"),
        Effect::Emit(Event::UnitStarted { stage, unit }) => format!("{stage} {unit:?} starts"),
        Effect::Emit(Event::Progress { stage, done, total, .. }) => format!("{stage} at {done} of {total}"),
        Effect::Emit(Event::UnitFinished { stage, unit, seconds }) => {
            format!("{stage} {unit} done in {seconds}")
        }
        Effect::Emit(Event::StageFinished { stage, seconds, .. }) => format!("{stage} done in {seconds}"),
        Effect::Emit(Event::StageFailed { stage, unit, error }) => {
            format!("{stage} {unit:?} failed: {error}")
        }
        Effect::Emit(Event::StageBlocked { stage, by }) => format!("{stage} blocked by {by}"),
        Effect::Emit(Event::Log { message, .. }) => message.clone(),
        Effect::Emit(event) => format!("{event:?}"),
        Effect::Place(stage, _, took) => format!("place {stage} {took:?}"),
        Effect::Abort(error) => format!("abort: {error}"),
        other => format!("{other:?}"),
    }
}

/// Sends messages, and compares what follows from each.
fn check<const N: usize>(state: &mut RunState, table: [(Message, &[&str]); N]) {
    for (row, (message, expected)) in table.into_iter().enumerate() {
        let effects: Vec<String> = state.transition(message).iter().map(show).collect();
        assert_eq!(effects, expected, "row {row}");
    }
}

/// Decides all stages: `a` runs with two units of three missing, `apart` is one piece, the others are pending.
fn begun(units: Units) -> RunState {
    let mut state = state();
    state.transition(Message::Begin);
    for (stage, decision) in [
        (A, work(units, &[0])),
        (B, Decision::Pending),
        (C, Decision::Pending),
        (APART, work(Units::Whole, &[])),
    ] {
        state.transition(Message::Decided(stage, decision));
    }
    state
}

fn running() -> RunState {
    begun(Units::Independent(units(3)))
}

#[test]
fn each_stage_is_decided_once_in_order() {
    let mut state = state();
    check(
        &mut state,
        [
            (Message::Begin, &["Decide(0)"]),
            (Message::Decided(A, Decision::Cached(entry(1.0))), &["place 0 None"]),
            (placed(A, None), &["a is cached", "Decide(1)"]),
            (
                Message::Decided(B, work(Units::Independent(units(3)), &[1])),
                &["b starts: 1 of 3 units cached, 20 steps", "Enqueue(1, Units([0, 2]))", "Decide(2)"],
            ),
            (Message::Decided(C, Decision::Pending), &["Decide(3)"]),
            (
                Message::Decided(APART, work(Units::Whole, &[])),
                &["apart starts: 0 of 1 units cached, 0 steps", "Enqueue(3, Whole)"],
            ),
        ],
    );
    assert!(state.busy() && state.entry(A).is_some() && state.entry(B).is_none());
}

#[test]
fn units_that_are_done_out_of_order() {
    let mut state = running();
    let progress = Reply::Progress { task: 0, done: 5, total: 10, note: None };
    check(
        &mut state,
        [
            (Message::Started(A, Some(2)), &["a Some(\"u2\") starts"]),
            (Message::Reply(A, Some(1), progress.clone()), &["a at 5 of 20"]),
            (done(A, 2), &["a at 15 of 20", "a u2 done in 2"]),
            (done(A, 1), &["a at 20 of 20", "a u1 done in 2", "Enqueue(0, Merge)"]),
            (Message::Started(A, None), &["a None starts"]),
            // A merge has no steps of its own.
            (Message::Reply(A, None, progress), &[]),
            (Message::Reply(A, None, Reply::Done(Usage::default())), &[]),
            (Message::Done(A, None, entry(1.0), Some(3.0)), &["place 0 Some(3.0)"]),
            (placed(A, Some(3.0)), &["a done in 7", "Decide(1)"]),
            (Message::Decided(B, Decision::Cached(entry(1.0))), &["place 1 None"]),
            (placed(B, None), &["b is cached", "Decide(2)"]),
            (
                Message::Decided(C, work(Units::Independent(units(1)), &[0])),
                &["c starts: 1 of 1 units cached, 0 steps", "Enqueue(2, Merge)"],
            ),
        ],
    );
    let StageState::Done(_, Some(tally)) = &state.stages[A] else { panic!("it ran") };
    assert_eq!(*tally, Tally { units_run: 2, units_cached: 1, seconds: 7.0 });
}

#[test]
fn a_chain_queues_the_next_unit() {
    let mut state = begun(Units::Chain(units(4)));
    check(
        &mut state,
        [
            (done(A, 1), &["a at 10 of 30", "a u1 done in 2", "Enqueue(0, Units([2]))"]),
            // Another run, or an earlier one, had computed it.
            (
                Message::Done(A, Some(2), entry(1.0), None),
                &["a at 20 of 30", "a u2 done in 0", "Enqueue(0, Units([3]))"],
            ),
            (done(A, 3), &["a at 30 of 30", "a u3 done in 2", "Enqueue(0, Merge)"]),
        ],
    );
    let StageState::Running(work) = &state.stages[A] else { panic!("it runs") };
    assert_eq!(work.tally, Tally { units_run: 2, units_cached: 2, seconds: 4.0 });
    let mut state = begun(Units::Chain(units(3)));
    check(&mut state, [(Message::Stop, &["ClearQueue"]), (done(A, 1), &["a at 10 of 20", "a u1 done in 2"])]);
}

#[test]
fn a_unit_that_fails_while_another_finishes() {
    let mut state = running();
    check(
        &mut state,
        [
            (
                failed(A, Some(1)),
                &["CancelStage(0)", "a Some(\"u1\") failed: broken", "b blocked by a", "c blocked by a"],
            ),
            (Message::Dropped(0), &[]),
            (done(A, 2), &[]),
            (Message::Done(APART, None, entry(1.0), Some(1.0)), &["place 3 Some(1.0)"]),
            (placed(APART, Some(1.0)), &["apart done in 1"]),
        ],
    );
    let StageState::Failed(partial, error) = &state.stages[A] else { panic!("it failed") };
    assert_eq!((partial.tally.units_run, partial.tally.units_cached, error.as_str()), (1, 1, "broken"));
    assert!(partial.recipe.is_some() && !state.busy());
}

#[test]
fn two_failures_of_one_stage_are_reported_once() {
    let mut state = running();
    check(
        &mut state,
        [
            (
                failed(A, Some(1)),
                &["CancelStage(0)", "a Some(\"u1\") failed: broken", "b blocked by a", "c blocked by a"],
            ),
            (failed(A, Some(2)), &["CancelStage(0)"]),
            (Message::Started(A, Some(2)), &["a None starts"]),
        ],
    );
}

#[test]
fn a_stage_that_cannot_start_blocks_its_dependents() {
    let mut state = state();
    let fail = |recipe| Decision::Fail(recipe, "no input".into());
    check(
        &mut state,
        [
            (Message::Begin, &["Decide(0)"]),
            (Message::Decided(A, Decision::Pending), &["Decide(1)"]),
            (
                Message::Decided(B, fail(Some(Box::new(recipe())))),
                &[
                    "CancelStage(1)",
                    "b None failed: no input",
                    "c blocked by b",
                    // `c` is not asked about.
                    "Decide(3)",
                ],
            ),
            (Message::Decided(APART, fail(None)), &["CancelStage(3)", "apart None failed: no input"]),
        ],
    );
    let with_recipe = [B, APART].map(|stage| match &state.stages[stage] {
        StageState::Failed(partial, _) => partial.recipe.is_some(),
        _ => panic!("it failed"),
    });
    assert_eq!(with_recipe, [true, false]);
    assert!(!state.busy());
}

#[test]
fn a_stage_that_another_run_finished_meanwhile_is_cached() {
    let mut state = running();
    check(
        &mut state,
        [
            (Message::Done(APART, None, entry(1.0), None), &["place 3 None"]),
            (placed(APART, None), &["apart is cached"]),
            (done(A, 1), &["a at 10 of 20", "a u1 done in 2"]),
            (
                Message::Done(A, Some(2), entry(1.0), None),
                &["a at 20 of 20", "a u2 done in 0", "Enqueue(0, Merge)"],
            ),
            (Message::Done(A, None, entry(1.0), None), &["place 0 None"]),
            // A part of it was computed here.
            (placed(A, None), &["a done in 2", "Decide(1)"]),
        ],
    );
    let StageState::Done(_, Some(tally)) = &state.stages[A] else { panic!("it ran") };
    assert_eq!((tally.units_run, tally.units_cached), (1, 2));
}

#[test]
fn a_stop_lets_running_units_finish_and_begins_nothing() {
    let mut state = running();
    check(
        &mut state,
        [
            (Message::Stop, &["ClearQueue"]),
            (Message::Dropped(1), &[]),
            (done(A, 1), &["a at 10 of 20", "a u1 done in 2"]),
            (Message::Done(APART, None, entry(1.0), Some(1.0)), &["place 3 Some(1.0)"]),
            (placed(APART, Some(1.0)), &["apart done in 1"]),
        ],
    );
    assert!(state.stopped() && !state.busy());
    state.transition(Message::End);
    let interrupted = |stage: usize| match &state.stages[stage] {
        StageState::Interrupted(partial) => (partial.recipe.is_some(), partial.tally.units_run),
        _ => panic!("it was interrupted"),
    };
    assert_eq!([A, B, C].map(interrupted), [(true, 1), (false, 0), (false, 0)]);
    assert!(matches!(state.stages[APART], StageState::Done(..)));
}

#[test]
fn a_stop_that_kills_fails_nothing() {
    let mut state = running();
    check(
        &mut state,
        [
            (Message::Stop, &["ClearQueue"]),
            (Message::Dropped(0), &[]),
            // The tasks that were killed.
            (Message::Dropped(1), &[]),
            (Message::Dropped(1), &[]),
            (Message::Dropped(1), &[]),
            (Message::End, &[]),
        ],
    );
    assert!(!state.busy());
    assert!(state.stages.iter().all(|stage| matches!(stage, StageState::Interrupted(_))));
}

#[test]
fn a_stop_before_all_is_decided() {
    let mut state = state();
    check(
        &mut state,
        [
            (Message::Begin, &["Decide(0)"]),
            (Message::Stop, &["ClearQueue"]),
            (Message::Decided(A, work(Units::Whole, &[])), &["a starts: 0 of 1 units cached, 0 steps"]),
        ],
    );
    assert!(!state.busy());
}

#[test]
fn a_broken_store_ends_the_run() {
    let error = RunError::Store(StoreError::MissingOutput("x".into()));
    let text = format!("abort: {error}");
    check(
        &mut running(),
        [
            (Message::Broken(error), &[text.as_str()]),
            (Message::Broken(RunError::Worker("another libtorch".into())), &["abort: another libtorch"]),
        ],
    );
}

#[test]
fn a_lock_that_is_waited_for_is_reported_once_a_minute() {
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    check(
        &mut running(),
        [
            (Message::LockWait(A, Some(1), at(0)), &["waiting for another run that computes `a`, u1"]),
            (Message::LockWait(APART, None, at(1)), &[]),
            (Message::LockWait(A, Some(1), at(59)), &[]),
            (Message::LockWait(APART, None, at(60)), &["waiting for another run that computes `apart`"]),
            (Message::LockWait(A, Some(1), at(119)), &[]),
            (Message::LockWait(A, Some(1), at(120)), &["waiting for another run that computes `a`, u1"]),
        ],
    );
}
