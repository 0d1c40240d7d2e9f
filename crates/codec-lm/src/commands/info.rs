//! `info`.

use super::models::LmArgs;
use crate::Global;
use anyhow::Result;
use codec_lm::config::CodecIdentity;
use codec_lm::pattern::Pattern;
use serde::Serialize;
use std::process::ExitCode;

/// Say what a language model is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec-lm info
  codec-lm info --lm runs/speech/model --json")]
pub(crate) struct Args {
    #[command(flatten)]
    lm: LmArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    layout: String,
    pattern: &'a Pattern,
    n_streams: usize,
    delay_steps: usize,
    parameters: usize,
    classes: &'a [String],
    codec: Option<&'a CodecIdentity>,
    embedded_bytes: Option<usize>,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let model = args.lm.load()?;
    let arrangement = model.arrangement();
    let outcome = Outcome {
        layout: arrangement.layout().to_string(),
        pattern: arrangement.pattern(),
        n_streams: arrangement.n_streams(),
        delay_steps: arrangement.delay(),
        parameters: model.n_parameters(),
        classes: model.classes(),
        codec: model.codec(),
        embedded_bytes: codec_lm::embedded::size().filter(|_| args.lm.lm.is_none()),
    };
    if global.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("codes       {}", outcome.layout);
    println!("pattern     {:?}, {} stream(s)", outcome.pattern, outcome.n_streams);
    println!("parameters  {}", outcome.parameters);
    match outcome.codec {
        Some(codec) => println!("codec       {}, {} frames per second", codec.model, codec.frame_rate()),
        None => println!("codec       not known"),
    }
    if !outcome.classes.is_empty() {
        println!("classes     {}", outcome.classes.join(", "));
    }
    if let Some(size) = outcome.embedded_bytes {
        println!("size        {size} bytes, inside this program");
    }
    Ok(ExitCode::SUCCESS)
}
