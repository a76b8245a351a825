//! `attrflow report`: a run, or two of them beside each other, as one HTML file.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::files;
use super::manifests::Named;
use super::results::Results;
use super::run_args::RunOutcome;
use crate::progress::{print, short_path};
use crate::report::{self, Comparison, Options, Page, ReportError};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow report pipelines/demo.toml\n  \
    attrflow report demo:last~1 demo:last -o compared.html")]
pub(super) struct Args {
    /// The run: a pipeline's file for its last run, a manifest, or last, last~1, PIPELINE:last
    #[arg(default_value = "last")]
    run: String,
    /// Another run, to compare it with
    #[arg(conflicts_with = "extract")]
    other: Option<String>,
    /// The page or archive [default: report.html or report.zip in the pipeline's folder of results]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Training images shown for each query
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Training images shown from the other end of each ranking
    #[arg(long, default_value_t = 0)]
    bottom: usize,
    /// The longer side of a training image's picture, in pixels
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(16..=1024))]
    thumb: u32,
    /// The most megabytes of the page; beyond it pictures shrink, then fewer images are shown
    #[arg(long, default_value_t = 10, value_name = "MB")]
    max_size: usize,
    /// Leave out paths, hosts and users, and the file names of training images
    #[arg(long)]
    redact: bool,
    /// Write a zip archive in place of the page: the page, and beside it its pictures in full size
    #[arg(long, conflicts_with_all = ["other", "extract"])]
    zip: bool,
    /// Write the manifest that is kept in a page to standard output
    #[arg(long, value_name = "PAGE", conflicts_with_all = ["output", "redact"])]
    extract: Option<PathBuf>,
    /// The cache folder [default: that of the manifest, or ./cache]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
}

pub(super) fn report(args: &Args) -> Result<(), Failure> {
    let refused = |error: std::io::Error| Failure::Refused(error.to_string());
    if let Some(page) = &args.extract {
        let html = fs_err::read_to_string(page).map_err(refused)?;
        let manifest = report::extract(&html)
            .map_err(|error| Failure::Refused(format!("{}: {error}", page.display())))?;
        print(&manifest);
        return Ok(());
    }
    let options = Options {
        top: args.top,
        bottom: args.bottom,
        thumbnail: args.thumb,
        max_size: args.max_size.saturating_mul(1_000_000),
        redact: args.redact,
        full_size: args.zip,
    };
    let cache = args.cache.as_deref();
    let one = Results::open(&args.run, cache)?;
    let failed = |error: ReportError| Failure::Refused(error.to_string());
    let name = match (&args.other, args.zip) {
        (Some(_), _) => "compared.html",
        (None, true) => "report.zip",
        (None, false) => "report.html",
    };
    let output = args.output.clone().unwrap_or_else(|| place(&one.named, name));
    if output.extension().is_some_and(|ending| ending == "zip") != args.zip {
        let expected = if args.zip { "a name that ends in .zip" } else { "a page, or --zip for an archive" };
        return Err(Failure::Usage(format!("{}: expected {expected}", output.display())));
    }
    match &args.other {
        None => {
            let page = Page::read(&one.named.manifest, &one, &options).map_err(failed)?;
            match args.zip {
                true => files::write_with(&output, true, |out| page.write_zip(out)).map_err(failed)?,
                false => files::write(&output, page.html().as_bytes(), true).map_err(refused)?,
            }
        }
        Some(other) => {
            let two = Results::open(other, cache)?;
            let runs = [(&one.named.manifest, &one), (&two.named.manifest, &two)];
            let [(first, a), (second, b)] = runs;
            let page = Comparison::read((first, a), (second, b), &options).map_err(failed)?;
            files::write(&output, page.html().as_bytes(), true).map_err(refused)?;
        }
    }
    let size = fs_err::metadata(&output).map_err(refused)?.len();
    print(&format!("{}   {:.0} kB\n", short_path(&output), size as f64 / 1e3));
    Ok(())
}

/// Writes the page of a run that has just ended into its folder of results. If that fails, the run has not failed.
pub(super) fn after_run(ended: &RunOutcome, results: &Path, as_json: bool) {
    match write_page(ended, results) {
        Ok(page) if as_json => print(&format!("{}\n", json!({ "report": page }))),
        Ok(page) => print(&format!("report: {}\n", short_path(&page))),
        Err(failure) => tracing::warn!("the report was not written: {failure}"),
    }
}

fn write_page(ended: &RunOutcome, results: &Path) -> Result<PathBuf, Failure> {
    let Some(manifest) = &ended.path else {
        return Err(Failure::Refused("the run has no manifest".into()));
    };
    let run = Results::of(Named::read(manifest)?, None)?;
    let page = Page::read(&run.named.manifest, &run, &Options::default())
        .map_err(|error| Failure::Refused(error.to_string()))?;
    let output = results.join("report.html");
    files::write(&output, page.html().as_bytes(), true)
        .map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(output)
}

/// Where a page goes by default: into the folder of results, if the run's project is here.
fn place(named: &Named, name: &str) -> PathBuf {
    let pipeline = &named.manifest.pipeline;
    let results = Path::new("results").join(pipeline);
    if results.is_dir() { results.join(name) } else { PathBuf::from(format!("{pipeline}-{name}")) }
}
