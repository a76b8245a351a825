//! Training images as queries: which rank does each give itself?
//!
//! A right implementation puts nearly all first; by chance a query would stand in the middle. Runs
//! `pipelines/self_influence.toml` (from the cache where it can) and prints a table. `cargo bench` runs it.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use attrflow::io::npy::Npy;

fn main() -> ExitCode {
    match table() {
        Ok(text) => {
            attrflow::progress::print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            attrflow::progress::print(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn table() -> anyhow::Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(env!("CARGO_BIN_EXE_attrflow"))
        .args(["run", "pipelines/self_influence.toml"])
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "the pipeline failed: {status}");

    let config: toml::Table = toml::from_str(&fs_err::read_to_string(root.join("configs/demo.toml"))?)?;
    let queries = config["self_influence"]["queries"].as_array().context("a list of queries")?;
    let mut text = format!("\n{:<28} {:>5} {:>9} {:>9} {:>9}\n", "query", "rank", "own", "mean", "std");
    let mut ranks = Vec::new();
    for query in queries {
        let name = query["name"].as_str().context("a name")?;
        let index = query["index"].as_integer().context("an index")?;
        let folder = root.join("results/self_influence/influence").join(name);
        let order = read_i64(&folder.join("rank.npy"))?;
        let scores = read_f32(&folder.join("influence.npy"))?;
        let rank = 1 + order.iter().position(|&image| image == index).context("every image has a rank")?;
        let count = scores.len() as f64;
        let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / count;
        let variance = scores.iter().map(|&score| (f64::from(score) - mean).powi(2)).sum::<f64>() / count;
        let own = scores[usize::try_from(index)?];
        text += &format!("{name:<28} {rank:>5} {own:>9.5} {mean:>9.5} {:>9.5}\n", variance.sqrt());
        ranks.push(rank);
    }
    let first = ranks.iter().filter(|&&rank| rank == 1).count();
    let images = read_f32(&root.join("results/self_influence/pretrain_loss/pretrain_loss.npy"))?.len() / 2;
    text += &format!(
        "\n{first} of {} rank themselves first among {images} images, {} in the first five; by chance the mean rank \
         would be {}\n",
        ranks.len(),
        ranks.iter().filter(|&&rank| rank <= 5).count(),
        images.div_ceil(2)
    );
    Ok(text)
}

fn read_f32(path: &Path) -> anyhow::Result<Vec<f32>> {
    let npy = Npy::open(path)?;
    let mut values = Vec::new();
    npy.read_f32(0..npy.rows(), &mut values)?;
    Ok(values)
}

fn read_i64(path: &Path) -> anyhow::Result<Vec<i64>> {
    let npy = Npy::open(path)?;
    let mut values = Vec::new();
    npy.read_i64(0..npy.rows(), &mut values)?;
    Ok(values)
}
