//! `attrflow cache gc`: removes what no run needs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use jiff::Timestamp;
use serde_json::json;

use super::when;
use crate::cli::failure::Failure;
use crate::io::words::count;
use crate::progress::{Table, duration, line, print, short_path};
use attrflow_engine::maintenance::{Inventory, Plan, Policy, Removal, RetainReason, Target};
use attrflow_engine::store::{Store, format_bytes, resolved};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache gc\n  \
    attrflow cache gc --budget 20G --yes")]
pub(super) struct Args {
    /// Remove what is listed; without it, nothing is removed
    #[arg(long)]
    yes: bool,
    /// Keep the results of the last N runs of each pipeline
    #[arg(long, value_name = "N", default_value_t = 1)]
    keep_runs: usize,
    /// Remove only as much as needed for the cache to fit into this size, such as 20G
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    budget: Option<u64>,
    /// Also remove the units of kept results: no run needs them, but runs after an edit (such as more timesteps) may reuse them
    #[arg(long)]
    units: bool,
    /// Days to keep results that belong to no finished run, quarantined files and unused downloads
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    grace: u32,
    /// Also remove manifests except the last N of each pipeline and pinned ones
    #[arg(long, value_name = "N")]
    keep_manifests: Option<usize>,
    /// Do not keep what runs of the project in this folder need (repeatable)
    #[arg(long, value_name = "PATH")]
    forget: Vec<PathBuf>,
    /// Say that no run on any host uses the cache, where attrflow cannot know it
    #[arg(long)]
    alone: bool,
    /// Write a line of JSON per item, and one with the totals
    #[arg(long)]
    json: bool,
}

pub(super) fn gc(args: &Args, store: &Store) -> Result<(), Failure> {
    if let Some(doubt) = store.lock_doubt().filter(|_| args.yes && !args.alone) {
        let hint = "nothing was removed; --alone says that no run on any host uses the cache";
        return Err(Failure::Refused(format!("{doubt}; {hint}")));
    }
    // Locked before planning, so that the plan is still valid when it is carried out.
    let lock = match args.yes {
        false => None,
        true => match store.exclusive_lock()? {
            Some(lock) => Some(lock),
            None => {
                let message = "the cache is in use by a run or another gc: try again when it has ended";
                return Err(Failure::Refused(message.into()));
            }
        },
    };
    let policy = Policy {
        keep_runs: args.keep_runs,
        keep_manifests: args.keep_manifests,
        budget: args.budget,
        units: args.units,
        grace: Duration::from_secs(u64::from(args.grace) * 24 * 3600),
        forget: args.forget.iter().map(|path| resolved(path)).collect(),
    };
    let inventory = Inventory::of(store)?;
    let roots: BTreeSet<&std::path::Path> =
        inventory.runs.values().flatten().filter_map(|run| run.manifest.root.as_deref()).collect();
    if let Some(unknown) = policy.forget.iter().find(|root| !roots.contains(root.as_path())) {
        let known: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
        let (unknown, known) = (unknown.display(), known.join(", "));
        return Err(Failure::Usage(format!(
            "no run of this cache is of the project {unknown}: it has runs of {known}"
        )));
    }
    for root in inventory.gone_projects().into_iter().filter(|root| !policy.forgets(Some(root))) {
        let path = root.display();
        tracing::warn!("the project {path} is gone; what its runs need is kept: --forget {path} releases it");
    }
    for (path, _) in &inventory.newer {
        let path = short_path(path);
        tracing::warn!("{path}: a newer version of attrflow wrote it; everything that it names is kept");
    }
    for (_, reason) in &inventory.unread {
        tracing::warn!("{reason}; what its run needs is not known, so it keeps nothing");
    }
    let plan = Plan::of(store, &inventory, &policy, Timestamp::now())?;
    match args.json {
        true => lines(&plan, args.yes),
        false => show(&plan, args),
    }
    let Some(lock) = lock else { return Ok(()) };
    let bar = super::remote::bar("removing", false);
    let done = plan.execute(store, &inventory, &lock, &mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    if !args.json {
        let (entries, objects) = (done.entries, done.objects);
        print(&format!("\nremoved {entries} index entries and {objects} objects\n"));
    }
    Ok(())
}

fn lines(plan: &Plan, done: bool) {
    for step in &plan.steps {
        print(&format!("{}\n", json!(step)));
    }
    let Plan { steps, before, frees, kept, over } = plan;
    let kept: serde_json::Map<String, serde_json::Value> = kept
        .iter()
        .map(|(why, (count, disk))| {
            let why = json!(why).as_str().unwrap_or_default().to_owned();
            (why, json!({ "count": count, "disk": disk }))
        })
        .collect();
    let line = json!({
        "steps": steps.len(), "before": before, "frees": frees, "kept": kept, "over": over, "done": done,
    });
    print(&format!("{line}\n"));
}

fn show(plan: &Plan, args: &Args) {
    if plan.steps.is_empty() {
        print("nothing to remove\n");
    } else {
        let mut table = Table::new(&["remove", "kind", "item", "size", "last used (UTC)", "rebuild time"]);
        for step in &plan.steps {
            table.row([
                step.name.clone(),
                step.kind.clone(),
                item(step),
                format_bytes(step.frees),
                step.used.map(when).unwrap_or_default(),
                step.seconds.map(duration).unwrap_or_default(),
            ]);
        }
        let seconds: f64 =
            plan.steps.iter().filter(|step| is_result(step)).filter_map(|step| step.seconds).sum();
        print(&format!(
            "{table}\n{} of {} to remove; rebuild time {}\n",
            format_bytes(plan.frees),
            format_bytes(plan.before),
            duration(seconds)
        ));
    }
    for (why, (number, disk)) in &plan.kept {
        let items = count(*number, "result or unit", "results and units");
        print(&line(&format!("kept: {items}, {}: {}", format_bytes(*disk), describe(*why, args))));
    }
    if let Some(over) = plan.over {
        let units = plan.kept.get(&RetainReason::Units).map_or(0, |(_, disk)| *disk);
        let more = match units {
            0 => "keep fewer runs, or unpin something".to_owned(),
            units => format!("--units removes {} more", format_bytes(units)),
        };
        print(&format!("still {} above the budget: {more}\n", format_bytes(over)));
    }
    if !args.yes && !plan.steps.is_empty() {
        print("nothing was removed: add --yes to remove these\n");
    }
}

/// Removing the units of a cached result loses no work.
fn is_result(step: &Removal) -> bool {
    matches!(step.what, Target::Result { .. })
}

fn item(step: &Removal) -> String {
    match &step.what {
        Target::Result { fingerprint } => format!("result {}", fingerprint.short()),
        Target::Units { units } => format!("{}, merged", count(units.len(), "unit", "units")),
        Target::Stray { .. } => "object".into(),
        Target::Scratch => "work folders".into(),
        Target::Files { paths } => count(paths.len(), "file", "files"),
        Target::Obsolete { .. } => "obsolete".into(),
        Target::Manifest { .. } => "manifest".into(),
    }
}

fn describe(why: RetainReason, args: &Args) -> String {
    match why {
        RetainReason::Run if args.keep_runs == 1 => "used by the last run of each pipeline".into(),
        RetainReason::Run => format!("used by the last {} runs of each pipeline", args.keep_runs),
        RetainReason::Pin => "pinned".into(),
        RetainReason::Partial => "a partial stage resumes from them".into(),
        RetainReason::Recent => {
            let age = count(args.grace as usize, "day", "days");
            format!("of no finished run, and younger than {age} (--grace)")
        }
        RetainReason::Units => "units of kept results, for reuse after an edit; --units removes them".into(),
    }
}

/// Reads `20G`, `500MB`, `1.5T`: powers of 1000, or of 1024 with an `i`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (unit, base) = unit.strip_suffix('i').map_or((unit, 1000.0), |unit| (unit, 1024.0_f64));
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == unit);
    let value: Option<f64> = digits.trim().parse().ok().filter(|value: &f64| *value >= 0.0);
    match (value, power) {
        (Some(value), Some(power)) => Ok((value * base.powi(power as i32)) as u64),
        _ => Err(format!("invalid size `{text}`: expected a number with B, k, M, G or T, such as 20G")),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read() {
        let read = |text| bytes(text).unwrap();
        assert_eq!((read("0"), read("20G"), read("1.5kB")), (0, 20_000_000_000, 1500));
        assert_eq!((read("2MiB"), read("3 T"), read("7b")), (2 << 20, 3_000_000_000_000, 7));
        for text in ["", "G", "20X", "-1", "1Gx", "nanG"] {
            assert!(bytes(text).unwrap_err().contains("invalid size"), "{text}");
        }
    }
}
