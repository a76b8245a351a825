//! Where the time of a network's passes goes: seconds and calls by kind of layer, for benchmarks.
//!
//! On a CPU a layer is done when its call returns. On a GPU events are put on the stream before and after it; they are read at the end,
//! so that the launching thread never waits. Where nothing is recorded, a span costs the reading of one flag.

mod events;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use tch::Device;

use events::{Event, Events};

/// What a layer's time counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Products of linear maps and of 1x1 convolutions of tokens.
    Linear,
    /// Convolutions.
    Convolution,
    /// Scaled dot product attention.
    Attention,
    /// Normalisations over groups, with what is fused into them.
    GroupNorm,
    /// Normalisations over the width, with the sum before them.
    LayerNorm,
    /// The gate of a feed-forward part.
    GatedGelu,
    /// Sums of branches that nothing else takes in.
    Sum,
}

/// The time of one part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// In seconds.
    pub seconds: f64,
    /// How often.
    pub calls: u64,
}

/// When a span began and ended on a GPU.
type Marks = (Part, Event, Event);

#[derive(Default)]
struct Recording {
    spent: BTreeMap<Part, Spent>,
    events: Option<Events>,
    marks: Vec<Marks>,
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static RECORDING: RefCell<Recording> = RefCell::default();
}

/// Does `work`, whose time counts as `part` if this thread records.
pub fn span<T>(part: Part, device: Device, work: impl FnOnce() -> T) -> T {
    if !ON.get() {
        return work();
    }
    let mark = || RECORDING.with_borrow_mut(|recording| recording.events.as_ref().and_then(Events::mark));
    let (begun, before) = (Instant::now(), device.is_cuda().then(mark).flatten());
    // A span inside this one is a part of it.
    ON.set(false);
    let done = work();
    ON.set(true);
    let after = before.is_some().then(mark).flatten();
    RECORDING.with_borrow_mut(|recording| {
        let spent = recording.spent.entry(part).or_default();
        spent.calls += 1;
        match before.zip(after) {
            Some((before, after)) => recording.marks.push((part, before, after)),
            None => spent.seconds += begun.elapsed().as_secs_f64(),
        }
    });
    done
}

/// Does `work`, and tells where the time of this thread's layers went.
///
/// # Errors
/// A GPU whose driver gives no events.
pub fn record<T>(device: Device, work: impl FnOnce() -> T) -> Result<(T, BTreeMap<Part, Spent>), String> {
    let events = if device.is_cuda() { Some(Events::load()?) } else { None };
    RECORDING.set(Recording { events, ..Recording::default() });
    ON.set(true);
    let done = work();
    ON.set(false);
    let Recording { mut spent, events, marks } = RECORDING.take();
    if let Some(events) = &events {
        for (part, before, after) in marks {
            spent.entry(part).or_default().seconds += events.seconds(before, after)?;
        }
    }
    Ok((done, spent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_counts_once_and_only_while_it_is_recorded() {
        let wait = |part, inner: &dyn Fn()| {
            span(part, Device::Cpu, || {
                std::thread::sleep(Duration::from_millis(5));
                inner();
            });
        };
        wait(Part::Sum, &|| ());
        let work = || {
            wait(Part::Linear, &|| wait(Part::Sum, &|| ()));
            wait(Part::Linear, &|| ());
            7
        };
        let (done, spent) = record(Device::Cpu, work).unwrap();
        assert_eq!(done, 7);
        assert_eq!(spent.keys().copied().collect::<Vec<_>>(), [Part::Linear]);
        let Spent { seconds, calls } = spent[&Part::Linear];
        assert!(calls == 2 && (0.015..1.0).contains(&seconds), "{calls} {seconds}");
        let (_, spent) = record(Device::Cpu, || ()).unwrap();
        assert!(spent.is_empty());
    }
}
