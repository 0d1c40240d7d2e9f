//! The systems of a run: codecs by name, each at several bitrates.

mod neural;
pub(crate) mod opus;
mod pcm;
mod process;
mod tools;

pub(crate) use process::peak_memory;

use super::results::{Group, Results, SystemInfo};
use anyhow::{Context, Result, bail, ensure};
use codec_core::AudioBuffer;
use std::fmt;
use std::path::Path;

/// A codec at a bitrate.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) info: SystemInfo,
    /// The codec as it was named: a model's name or path, or a baseline.
    pub(crate) source: String,
    /// What names it alone.
    pub(crate) spec: String,
    /// Time to load the model, where there is one.
    pub(crate) load_seconds: Option<f64>,
    /// Whether another program does the work.
    pub(crate) is_program: bool,
    pub(crate) coder: Box<dyn Coder>,
}

/// Codes a clip and decodes it again.
pub(crate) trait Coder: fmt::Debug + Send + Sync {
    /// `scratch` is an empty folder of its own.
    fn code(&self, clip: &AudioBuffer, scratch: &Path) -> Result<Coded>;
}

/// What became of a clip.
#[derive(Debug)]
pub(crate) struct Coded {
    /// The file as it was written.
    pub(crate) file: Vec<u8>,
    /// Bits without headers and framing, where the format tells them apart.
    pub(crate) payload_bits: Option<u64>,
    /// At the codec's own rate and channels.
    pub(crate) audio: AudioBuffer,
    pub(crate) encode_seconds: f64,
    pub(crate) decode_seconds: f64,
    /// Largest memory of another program that took part, where the system tells.
    pub(crate) program_bytes: Option<u64>,
    /// Whether the file is one of tokens.
    pub(crate) is_tokens: bool,
}

/// A codec as the user named it: `NAME`, `LABEL=PATH`, and either with `@KBPS,KBPS,..`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    name: String,
    /// What the model is called in the results; otherwise its folder or card says.
    label: Option<String>,
    /// None where the user leaves the choice to us.
    kbps: Vec<f64>,
}

/// The classical codecs, with the bitrates to choose from, in kbit/s.
const BASELINES: [(&str, &[f64]); 5] = [
    ("opus", &[6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0]),
    ("mp3", &[16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0]),
    ("speex", &[4.0, 6.0, 8.0, 10.0, 13.0, 17.0, 21.0, 24.0, 28.0]),
    ("flac", &[]),
    ("pcm", &[]),
];

impl Spec {
    /// # Errors
    /// When a bitrate is not a positive number, or a baseline is given another name or lends its own.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        // A path may hold either sign.
        let (name, rates) = match text.rsplit_once('@') {
            Some((name, rates)) if !Path::new(text).exists() => (name, Some(rates)),
            _ => (text, None),
        };
        let (label, name) = match name.split_once('=') {
            Some((label, path)) if !Path::new(name).exists() && !label.contains(['/', '\\']) => {
                ensure!(!label.is_empty() && !label.contains('@'), "{text}: `{label}` cannot name a codec");
                let is_baseline = |name: &str| BASELINES.iter().any(|(baseline, _)| *baseline == name);
                ensure!(!is_baseline(label) && !is_baseline(path), "{text}: baselines keep their names");
                (Some(label.to_owned()), path)
            }
            _ => (None, name),
        };
        let Some(rates) = rates else { return Ok(Self { name: name.to_owned(), label, kbps: Vec::new() }) };
        let rate = |text: &str| {
            let kbps: f64 =
                text.trim().parse().with_context(|| format!("`{text}` is not a bitrate in kbit/s"))?;
            ensure!(kbps.is_finite() && kbps > 0.0, "{text} kbit/s is not a bitrate");
            Ok(kbps)
        };
        let kbps = rates.split(',').map(rate).collect::<Result<_>>().with_context(|| text.to_owned())?;
        Ok(Self { name: name.to_owned(), label, kbps })
    }

    fn ladder(&self) -> Option<&'static [f64]> {
        BASELINES.iter().find(|(name, _)| *name == self.name).map(|(_, ladder)| *ladder)
    }
}

/// What the user asked to measure, in the names of the results.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// None for the usual codecs; else each codec with its bitrates in kbit/s, without some where they are ours to
    /// choose.
    codecs: Option<Vec<(String, Vec<f64>)>>,
}

impl Asked {
    /// Takes what was named, if anything was, and what came of it.
    pub(crate) fn new(specs: &[Spec], systems: &[System], is_usual: bool) -> Self {
        let codec = |spec: &Spec| {
            // By an alias perhaps.
            let own = systems.iter().find(|system| system.source == spec.name);
            let name = spec.label.as_ref().or(own.map(|system| &system.info.codec));
            name.unwrap_or(&spec.name).clone()
        };
        let codecs = specs.iter().map(|spec| (codec(spec), spec.kbps.clone())).collect();
        Self { codecs: (!is_usual).then_some(codecs) }
    }

    /// Whether a system of an earlier run, which `now` lacks, should have been part of it.
    pub(crate) fn covers(&self, system: &SystemInfo, now: &Results) -> bool {
        // The bitrates of a baseline follow those of the models.
        let follows =
            system.group == Group::Classical && now.systems.iter().any(|other| other.codec == system.codec);
        let Some(codecs) = &self.codecs else { return !follows };
        codecs.iter().filter(|(codec, _)| *codec == system.codec).any(|(_, kbps)| {
            let is_named = |own: f64| kbps.iter().any(|kbps| (kbps / own - 1.0).abs() < 1e-3);
            if kbps.is_empty() { !follows } else { system.nominal_kbps.is_none_or(is_named) }
        })
    }
}

/// The systems that the user named, and the baselines that have no program on this machine.
///
/// Where no bitrates are given, a model has those of its card, or all of its codebooks, a half, a quarter and an
/// eighth of them; a baseline has those of its ladder that are nearest to the models' and the one above.
///
/// # Errors
/// When a model does not load, a codec cannot have a bitrate, or two systems have one name.
pub(crate) fn systems(specs: &[Spec]) -> Result<(Vec<System>, Vec<String>)> {
    let (mut systems, mut missing) = (Vec::new(), Vec::new());
    for spec in specs.iter().filter(|spec| spec.ladder().is_none()) {
        systems.extend(neural::systems(&spec.name, spec.label.as_deref(), &spec.kbps)?);
    }
    let neural: Vec<f64> = systems.iter().filter_map(|system| system.info.nominal_kbps).collect();
    for spec in specs {
        let Some(ladder) = spec.ladder() else { continue };
        let kbps = if spec.kbps.is_empty() { near(ladder, &neural) } else { spec.kbps.clone() };
        let made = match spec.name.as_str() {
            "opus" => opus::systems(&kbps)?,
            "pcm" => vec![pcm::system()],
            name => match tools::systems(name, &kbps)? {
                Some(made) => made,
                None => {
                    missing.push(format!("{name} ({})", tools::wanted(name)));
                    continue;
                }
            },
        };
        if ladder.is_empty() && !spec.kbps.is_empty() {
            bail!("{} has no bitrate to choose", spec.name);
        }
        systems.extend(made);
    }
    for (system_idx, system) in systems.iter().enumerate() {
        let is_other =
            |other: &&System| other.info.codec == system.info.codec && other.source != system.source;
        if let Some(other) = systems[..system_idx].iter().find(is_other) {
            bail!(
                "{} and {} are both called {}: name one of them, as in NAME={}",
                other.source,
                system.source,
                system.info.codec,
                system.source
            );
        }
        if systems[..system_idx].iter().any(|other| other.info.id == system.info.id) {
            bail!("{} is named twice", system.info.id);
        }
    }
    ensure!(!systems.is_empty(), "nothing to evaluate: none of the codecs has its program here");
    Ok((systems, missing))
}

/// The rates of a ladder nearest to some others, and one above; the lower half of it where there are no others.
fn near(ladder: &[f64], others: &[f64]) -> Vec<f64> {
    if others.is_empty() {
        return ladder[..ladder.len().div_ceil(2)].to_vec();
    }
    let distance = |idx: usize, kbps: f64| (ladder[idx] / kbps).ln().abs();
    let nearest =
        |kbps: f64| (0..ladder.len()).min_by(|a, b| distance(*a, kbps).total_cmp(&distance(*b, kbps)));
    let mut chosen: Vec<usize> = others.iter().filter_map(|kbps| nearest(*kbps)).collect();
    chosen.extend(chosen.iter().max().map(|idx| idx + 1).filter(|idx| *idx < ladder.len()));
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().map(|idx| ladder[idx]).collect()
}

/// `CODEC@KBPS`.
fn id(codec: &str, kbps: Option<f64>) -> String {
    kbps.map_or_else(|| codec.to_owned(), |kbps| format!("{codec}@{}", short(kbps)))
}

/// Up to three decimals.
fn short(kbps: f64) -> String {
    let text = format!("{kbps:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What of an Ogg file is packets, without the header packets, in bits.
fn ogg_payload_bits(file: &[u8], n_headers: usize) -> Result<u64> {
    let mut reader = ogg::PacketReader::new(std::io::Cursor::new(file));
    let mut n_bytes = 0;
    let mut packet_idx = 0;
    while let Some(packet) = reader.read_packet()? {
        if packet_idx >= n_headers {
            n_bytes += packet.data.len() as u64;
        }
        packet_idx += 1;
    }
    Ok(8 * n_bytes)
}

fn classical(codec: &str, kbps: f64, identity: String, is_program: bool, coder: Box<dyn Coder>) -> System {
    let info = SystemInfo {
        id: id(codec, Some(kbps)),
        codec: codec.to_owned(),
        group: Group::Classical,
        nominal_kbps: Some(kbps),
        identity,
    };
    let (source, spec) = (codec.to_owned(), info.id.clone());
    System { source, spec, info, load_seconds: None, is_program, coder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bitrates_are_told_apart() {
        let spec =
            |name: &str, kbps: &[f64]| Spec { name: name.to_owned(), label: None, kbps: kbps.to_vec() };
        assert_eq!(Spec::parse("opus").unwrap(), spec("opus", &[]));
        assert_eq!(Spec::parse("lyra-v2@3.2,6, 9.2").unwrap(), spec("lyra-v2", &[3.2, 6.0, 9.2]));
        let labelled = Spec { label: Some("mine".to_owned()), ..spec("runs/7/best", &[3.0]) };
        assert_eq!(Spec::parse("mine=runs/7/best@3").unwrap(), labelled);
        assert_eq!(Spec::parse("runs/lr=1/best").unwrap(), spec("runs/lr=1/best", &[]));
        for wrong in ["opus@", "opus@a", "opus@6,-1", "opus@0", "opus@inf", "=x", "opus=x", "x=opus@6"] {
            assert!(Spec::parse(wrong).is_err(), "{wrong}");
        }
        let folder = tempfile::Builder::new().prefix("a@b").tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(Spec::parse(path).unwrap(), spec(path, &[]));
        assert_eq!(Spec::parse(&format!("{path}@3")).unwrap(), spec(path, &[3.0]));
        let folder = tempfile::Builder::new().prefix("a=b").tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(Spec::parse(&format!("x={path}@3")).unwrap().name, path);
    }

    #[test]
    fn baselines_come_near_the_models() {
        let (_, opus) = BASELINES[0];
        assert_eq!(near(opus, &[3.2, 6.0, 9.2]), [6.0, 8.0, 12.0]);
        assert_eq!(near(opus, &[200.0]), [128.0]);
        assert_eq!(near(opus, &[]), [6.0, 8.0, 12.0, 16.0, 24.0]);
        assert!(near(&[], &[3.0]).is_empty());
    }

    #[test]
    fn ids_have_no_superfluous_digits() {
        assert_eq!(id("a", Some(6.0)), "a@6");
        assert_eq!(id("a", Some(10.7666)), "a@10.767");
        assert_eq!(id("a", Some(100.0)), "a@100");
        assert_eq!(id("pcm", None), "pcm");
    }
}
