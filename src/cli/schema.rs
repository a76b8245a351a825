//! `attrflow schema`: the JSON Schema of pipeline files, for editors.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::failure::Failure;
use crate::progress::print;
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::schema;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow schema --output pipelines/schema.json\n  \
    attrflow schema --config --output configs/schema.json")]
pub(super) struct Args {
    /// Write the schema of configs instead: it covers their `[run]` and `[cluster]` tables; all other keys depend on the pipeline
    #[arg(long)]
    config: bool,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn schema(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let schema = if args.config { schema::config() } else { schema::pipeline(registry) };
    let text = serde_json::to_string_pretty(&schema).expect("a schema is plain data") + "\n";
    match &args.output {
        Some(file) => fs_err::write(file, text).map_err(|error| Failure::Missing(error.to_string())),
        None => {
            print(&text);
            Ok(())
        }
    }
}
