//! `attrflow show`: the top of a ranking in the terminal.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::results::Results;
use crate::io::image::{RgbImage, load_rgb};
use crate::io::npy::Npy;
use crate::io::words::{count, digits, score};
use crate::progress::{Graphics, Table, line, print, print_pictures, safe};
use crate::results::{CaptionFiles, QueryStages, Row, Run, base, rows, score_meaning};
use attrflow_engine::config::text::suggestion;

/// Rows of each query where several are shown.
const FEW: usize = 3;

/// The help.
pub(super) const ABOUT: &str = concat!("Show the top of a ranking in the terminal\n\n", score_meaning!());

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow show apple\n  \
    attrflow show 'influence[apple]' --run demo:last~1 --top 20 --pictures off")]
pub(super) struct Args {
    /// The query, or a stage of it, such as influence[apple] [default: all queries]
    query: Option<String>,
    /// The run: a pipeline's file for its last run, a manifest, or last, last~1, PIPELINE:last
    #[arg(long, default_value = "last")]
    run: String,
    /// Training images shown [default: 10 of one query, 3 of several]
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Pictures above each table [default: as the terminal can, by the variables that it sets]
    #[arg(long, value_enum)]
    pictures: Option<Pictures>,
    /// The cache folder [default: that of the manifest, or ./cache]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// The protocols of terminals, and none.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Pictures {
    /// None
    Off,
    /// Two pixels in each character, by its colours
    Blocks,
    /// The protocol of kitty and Ghostty
    Kitty,
    /// Sixel, of foot, WezTerm, Konsole, mlterm, iTerm2
    Sixel,
}

pub(super) fn show(args: &Args) -> Result<(), Failure> {
    let results = Results::open(&args.run, args.cache.as_deref())?;
    let run = Run::new(&results.named.manifest, &results);
    let queries = QueryStages::all(&run);
    let chosen = choose(&queries, args.query.as_deref(), &results.named.manifest.pipeline)?;
    let top = args.top.map_or(if chosen.len() == 1 { 10 } else { FEW }, |top| top as usize);
    let graphics = match args.pictures {
        None => Graphics::detect(),
        Some(Pictures::Off) => None,
        Some(Pictures::Blocks) => Some(Graphics::Blocks),
        Some(Pictures::Kitty) => Some(Graphics::Kitty),
        Some(Pictures::Sixel) => Some(Graphics::Sixel),
    };
    let mut files = CaptionFiles::default();
    let mut missing = Vec::new();
    for (place, query) in chosen.iter().enumerate() {
        if place > 0 {
            print("\n");
        }
        missing.extend(table(query, &run, top, graphics, &mut files).err());
    }
    if missing.is_empty() { Ok(()) } else { Err(Failure::Refused(missing.join("; "))) }
}

/// The queries that a name stands for: a query, a stage of one, or the stage of all.
fn choose<'q, 'a>(
    queries: &'q [QueryStages<'a>],
    name: Option<&str>,
    pipeline: &str,
) -> Result<Vec<&'q QueryStages<'a>>, Failure> {
    let Some(name) = name else {
        return match queries {
            [] => Err(Failure::Refused(format!(
                "{pipeline}: the run has no stage of the kind `ranking` or `influence`"
            ))),
            _ => Ok(queries.iter().collect()),
        };
    };
    let stages = |query: &&QueryStages<'_>| {
        let records = query.ranking.into_iter().chain(query.influence);
        records.map(|record| record.stage.clone()).collect::<Vec<_>>()
    };
    let named = |query: &&QueryStages<'_>| {
        query.name == name || stages(query).iter().any(|stage| stage == name || base(stage) == name)
    };
    let found: Vec<_> = queries.iter().filter(named).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let known: Vec<&str> = queries.iter().map(|query| query.name.as_str()).collect();
    let hint = suggestion(name, known.iter().copied()).unwrap_or_else(|| "it has none".into());
    Err(Failure::Usage(format!("the run of {pipeline} has no query `{name}`: {hint}")))
}

/// Prints the first rows of a query; why there are none.
fn table(
    query: &QueryStages<'_>,
    run: &Run<'_>,
    count_shown: usize,
    graphics: Option<Graphics>,
    files: &mut CaptionFiles,
) -> Result<(), String> {
    let (drawing, picture, _) = query.drawing(run);
    let caption = query.caption(drawing).map(|caption| format!("   {}", one_line(&caption)));
    print(&line(&format!("{}{}", query.name, caption.unwrap_or_default())));
    let Some(arrays) = query.arrays(run) else {
        let problem = query.problem();
        print(&line(&problem));
        return Err(format!("{}: {}", query.name, problem.trim_end_matches('.')));
    };
    let top = query.top(run).unwrap_or_default();
    let shown = count_shown.min(arrays.ranks.len());
    let captions = query.data(run, "captions");
    let rows = rows(&arrays, 0..shown, &top, captions.as_deref(), files);
    if let Some(graphics) = graphics {
        let folder = query.data(run, "images");
        let image = |row: &Row| Some(folder.as_ref()?.join(row.file_name.as_ref()?));
        let mut pictures = vec![("query".to_owned(), picture)];
        pictures.extend(rows.iter().map(|row| (row.rank.to_string(), image(row))));
        strips(graphics, &pictures);
    }
    let estimates = rows.iter().any(|row| row.exact.is_some());
    let errors = query.ranking.and_then(|ranking| Npy::vector(run.output(ranking, "errors")?).ok());
    let error = |index: usize| errors.as_ref()?.get(index).copied().filter(|error| !error.is_nan());
    let has_errors = rows.iter().any(|row| error(row.index).is_some());
    // Right-aligned, scores can be compared at a glance.
    let scores: Vec<String> = rows.iter().map(|row| score(row.score.into())).collect();
    let width = scores.iter().map(String::len).max().unwrap_or(0);
    let marks = if estimates { "exact" } else { "tie" };
    let mut table = Table::new(&["rank", "score", "\u{b1}", marks, "index", "file", "caption"]);
    for (row, score) in rows.iter().zip(scores) {
        let mark = match (row.exact, row.error) {
            (Some(true), _) => "yes",
            (Some(false), _) => "estimate",
            (None, Some(error)) if error.tied => "with the next",
            (None, None) if has_errors => "?",
            _ => "",
        };
        let error = error(row.index).map_or("-".into(), |error| digits(error.into(), 2));
        let caption = row.captions.first().map_or(String::new(), |caption| one_line(caption));
        table.row([
            row.rank.to_string(),
            format!("{score:>width$}"),
            error,
            mark.to_owned(),
            row.index.to_string(),
            row.file_name.as_deref().map_or(String::new(), one_line),
            caption,
        ]);
    }
    print(&table.to_string());
    print(&line(&format!("of {}", count(arrays.ranks.len(), "training image", "training images"))));
    if has_errors {
        print(&line(
            "\u{b1}: one standard error. tie: the 95 % intervals of the ranks of neighbours overlap.",
        ));
    }
    if has_errors && rows.iter().any(|row| row.error.is_none()) {
        let known = count(top.rows.len(), "image", "images");
        print(&line(&format!(
            "Ties are known for the first {known} only: the parameter `rows` of `ranking`."
        )));
    }
    let note = top.summary.no_error_bars.filter(|_| !has_errors);
    for note in note.iter().chain(&top.summary.warnings) {
        print(&line(note));
    }
    Ok(())
}

/// Pictures in rows that fit the terminal, each below its name.
fn strips(graphics: Graphics, pictures: &[(String, Option<PathBuf>)]) {
    let columns = usize::from(console::Term::stdout().size().1);
    let pitch = graphics.pitch() as usize;
    for row in pictures.chunks((columns / pitch).max(1)) {
        let names: String = row.iter().map(|(name, _)| format!("{name:<pitch$}")).collect();
        print(&format!("{}\n", names.trim_end()));
        let images: Vec<Option<RgbImage>> =
            row.iter().map(|(_, path)| load_rgb(path.as_ref()?).ok()).collect();
        print_pictures(graphics, &images);
    }
}

/// A text of others without line breaks and commands to the terminal.
fn one_line(text: &str) -> String {
    safe(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}
