//! `info`.

use super::models::LmArgs;
use crate::report::Reporter;
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

pub(crate) fn run(args: &Args, reporter: Reporter) -> Result<ExitCode> {
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
    reporter.result(|| outcome.text(), &outcome)?;
    Ok(ExitCode::SUCCESS)
}

impl Outcome<'_> {
    /// Lines for people.
    fn text(&self) -> String {
        let codec = self.codec.map_or_else(
            || "not known".to_owned(),
            |codec| format!("{}, {} frames per second", codec.model, codec.frame_rate()),
        );
        let mut lines = vec![
            format!("codes       {}", self.layout),
            format!("pattern     {:?}, {} stream(s)", self.pattern, self.n_streams),
            format!("parameters  {}", self.parameters),
            format!("codec       {codec}"),
        ];
        if !self.classes.is_empty() {
            lines.push(format!("classes     {}", self.classes.join(", ")));
        }
        lines
            .extend(self.embedded_bytes.map(|size| format!("size        {size} bytes, inside this program")));
        lines.join("\n")
    }
}
