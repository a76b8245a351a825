//! The worker's loop: tasks in on standard input, replies out on standard output.

use std::any::Any;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::iterator::Signals;
use tracing_subscriber::layer::{Context as LayerContext, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::signals::stopping;
use crate::kind::{Computation, Context, Step, describe};
use crate::worker::protocol::{Facts, Reply, TaskBatch, Usage, WorkerConfig, reset_peak_memory};

/// Says what this worker is and serves tasks until standard input ends, which is when the run is gone.
///
/// With a device that could not be `prepared`, every task fails for that reason. `device_memory`: the bytes in use.
pub fn serve(
    computations: &[Computation],
    setting: &WorkerConfig,
    facts: Facts,
    prepared: Result<(), String>,
    device_memory: &dyn Fn() -> u64,
) {
    serve_tasks(computations, setting, facts, prepared, device_memory, || {});
}

/// The same, with `on_disconnect` called before the process ends: when the run is gone, or on a signal that ends it.
pub fn serve_until(computations: &[Computation], setting: &WorkerConfig, facts: Facts, on_disconnect: fn()) {
    // What ends this process while it can still do something must not leave a command behind.
    if let Ok(mut signals) = Signals::new(stopping()) {
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                on_disconnect();
                std::process::exit(1);
            }
        });
    }
    serve_tasks(computations, setting, facts, Ok(()), &|| 0, on_disconnect);
}

fn serve_tasks(
    computations: &[Computation],
    setting: &WorkerConfig,
    facts: Facts,
    prepared: Result<(), String>,
    device_memory: &dyn Fn() -> u64,
    on_disconnect: fn(),
) {
    say(&Reply::Hello(Facts { trouble: prepared.as_ref().err().cloned(), ..facts }));
    tracing_subscriber::registry().with(EnvFilter::new(&setting.log)).with(ToRun).init();
    // The run shows the message; a trace of it on the terminal would only break the progress lines.
    std::panic::set_hook(Box::new(|panic| tracing::debug!("{panic}")));
    // Whatever is being computed, nobody will take it.
    let end = move || {
        on_disconnect();
        std::process::exit(0);
    };
    std::thread::spawn(move || {
        wait_for_hang_up();
        end();
    });
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let reply = match (&prepared, serde_json::from_str(&line)) {
            (Err(error), _) => Reply::Failed { error: error.clone() },
            (_, Ok(batch)) => perform(&batch, computations, setting, device_memory),
            (_, Err(error)) => Reply::Failed { error: format!("invalid task message: {error}") },
        };
        say(&reply);
    }
    end();
}

/// Waits until nobody can write to standard input any more, whatever is left in it. What has no writer, such as a file, has an end
/// that is read.
fn wait_for_hang_up() {
    let input = std::io::stdin();
    loop {
        // A hang-up is told also to those who ask for nothing.
        let mut ends = [PollFd::new(&input, PollFlags::empty())];
        match poll(&mut ends, None) {
            Ok(_) if !ends[0].revents().is_empty() => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::park(),
        }
    }
}

fn perform(
    batch: &TaskBatch,
    computations: &[Computation],
    setting: &WorkerConfig,
    device_memory: &dyn Fn() -> u64,
) -> Reply {
    let Some(computation) = computations.iter().find(|computation| computation.kind.name == batch.kind)
    else {
        return Reply::Failed { error: format!("this worker does not know the stage kind `{}`", batch.kind) };
    };
    let last = Mutex::new(None::<Instant>);
    let progress = |task: usize, done: u64, total: u64, note: Option<&str>| {
        // Ten lines a second are enough for any eye.
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() > Duration::from_millis(100)) {
            *last = Some(Instant::now());
            say(&Reply::Progress { task, done, total, note: note.map(str::to_owned) });
        }
    };
    if computation.kind.libtorch {
        reset_peak_memory();
    }
    let usage = Usage::start(device_memory);
    let finished =
        |tasks: &[usize]| say(&Reply::Finished { tasks: tasks.to_vec(), files: Vec::new(), usage: usage() });
    let WorkerConfig { device, micro_batch, ref downloads, ref trials, threads, .. } = *setting;
    tracing::debug!(
        "{}: begins on {device:?} with {threads} threads and {micro_batch} rows at once",
        batch.kind
    );
    let cx = Context::new(device, micro_batch, (downloads, trials), &progress, &finished);
    let result = catch_unwind(AssertUnwindSafe(|| run(batch, computation, &cx)));
    let usage = usage();
    tracing::debug!("{}: ended after {:.3} s", batch.kind, usage.wall);
    match result {
        Ok(Ok(())) => Reply::Done(usage),
        Ok(Err(error)) => Reply::Failed { error: describe(&error) },
        Err(panic) => Reply::Failed { error: panic_message(panic.as_ref()) },
    }
}

fn run(batch: &TaskBatch, computation: &Computation, cx: &Context<'_>) -> anyhow::Result<()> {
    let first = batch.tasks.first().context("a batch without a task")?;
    let stage = (computation.from_json)(&first.params).map_err(anyhow::Error::msg)?;
    match (&first.step, batch.tasks.as_slice()) {
        (Step::Merge(parts), [task]) => stage.merge(task, parts, cx),
        (Step::Whole, [task]) => stage.run(task, cx),
        (_, tasks) => stage.run_batch(tasks, cx),
    }
}

/// What a panic says, without libtorch's C++ trace behind it.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("the stage panicked");
    let text = text.split_once("Torch(\"").map_or(text, |(_, torch)| torch);
    let end = ["\\nException raised from", "\nException raised from"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min();
    text[..end.unwrap_or(text.len())].replace("\\n", "\n").replace("\\\"", "\"")
}

fn say(reply: &Reply) {
    let line = serde_json::to_string(reply).expect("a reply is plain data");
    let mut out = std::io::stdout().lock();
    // Without a reader there is no run, and the input's end stops this process.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Sends log events to the run, which owns the terminal.
struct ToRun;

impl<S: tracing::Subscriber> Layer<S> for ToRun {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        let mut text = MessageText::default();
        event.record(&mut text);
        say(&Reply::Log { level: event.metadata().level().to_string(), message: text.0 });
    }
}

#[derive(Default)]
struct MessageText(String);

impl tracing::field::Visit for MessageText {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
