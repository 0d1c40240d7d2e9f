//! From an original and what a codec made of it to scores.

use super::results::Delay;
use anyhow::{Context, Result, ensure};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::Converter;
use codec_metrics::align::{self, Resolution};
use codec_metrics::{Error, Metric, Versions};
use std::collections::BTreeMap;

/// Longest delay that is looked for, in seconds: more than any codec here has.
const MAX_DELAY: f64 = 0.1;

/// A delay this close to whole samples is one, within the accuracy of its measure.
const WHOLE: f64 = 0.02;

/// Metrics that judge speech and say nothing of other sounds.
const FOR_SPEECH: [Metric; 5] =
    [Metric::PesqWideBand, Metric::PesqNarrowBand, Metric::Stoi, Metric::Estoi, Metric::MelCepstral];

/// What became of a clip, in numbers.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) sample_rate: u32,
    pub(crate) delay: Option<Delay>,
    pub(crate) scores: BTreeMap<String, f64>,
    pub(crate) not_judged: BTreeMap<String, String>,
}

/// Judges decoded audio by its original, at the original's rate; mixed to mono where the channels differ.
///
/// A delay that shows clearly is taken out first. Metrics for speech judge clips of that kind, and of none.
///
/// # Errors
/// When the two cannot be brought to one rate, or nothing is left to compare. A metric that cannot judge is none.
pub(crate) fn judge(
    original: &AudioBuffer,
    decoded: &AudioBuffer,
    kind: &str,
    metrics: &[Metric],
) -> Result<Judgement> {
    let (mut original, mut decoded, delay) = aligned(original, decoded)?;
    let n_samples = original.n_samples().min(decoded.n_samples());
    ensure!(n_samples > 0, "nothing is left to compare");
    original.truncate(n_samples);
    decoded.truncate(n_samples);
    let sample_rate = original.spec().sample_rate;
    let mut versions = Versions::new(original, decoded, Converter::whole);
    let (mut scores, mut not_judged) = (BTreeMap::new(), BTreeMap::new());
    for &metric in metrics {
        let name = metric.describe().name.to_owned();
        if FOR_SPEECH.contains(&metric) && !kind.is_empty() && kind != "speech" {
            not_judged.insert(name, format!("judges speech, this is {kind}"));
            continue;
        }
        match versions.judge(metric) {
            Ok(score) => drop(scores.insert(name, score)),
            Err(error) => drop(not_judged.insert(name, error.to_string())),
        }
    }
    Ok(Judgement { sample_rate, delay, scores, not_judged })
}

/// Original and decoded audio with one rate and one number of channels, without the delay.
///
/// # Errors
/// As [`judge`].
pub(crate) fn aligned(
    original: &AudioBuffer,
    decoded: &AudioBuffer,
) -> Result<(AudioBuffer, AudioBuffer, Option<Delay>)> {
    let own = original.spec();
    let channels = if own.channels == decoded.spec().channels { own.channels } else { 1 };
    let spec = AudioSpec { channels, ..own };
    let original = Converter::whole(original, spec)?;
    let decoded = Converter::whole(decoded, spec).context("converting the decoded audio back")?;
    let max_delay = (MAX_DELAY * f64::from(spec.sample_rate)) as usize;
    let mut found = match align::estimate(&original, &decoded, max_delay, Resolution::Fraction) {
        Ok(found) => found,
        Err(Error::Unlike { correlation, .. }) => {
            let delay = Delay { samples: 0.0, correlation, inverted: false, taken_out: false };
            return Ok((original, decoded, Some(delay)));
        }
        // Silence has no delay.
        Err(_) => return Ok((original, decoded, None)),
    };
    // What is so close to whole samples is whole: interpolation would cost what it cannot gain.
    if (found.delay - found.delay.round()).abs() < WHOLE {
        found.delay = found.delay.round();
    }
    let delay = Delay {
        samples: found.delay,
        correlation: found.correlation,
        inverted: found.is_inverted,
        taken_out: true,
    };
    let (original, decoded) = found.apply(&original, &decoded)?;
    Ok((original, decoded, Some(delay)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hum(sample_rate: u32, late: usize) -> AudioBuffer {
        let sound = |t: usize| {
            let t = t as f32 / sample_rate as f32;
            0.4 * (t * 900.0 + 5.0 * (t * 23.0).sin()).sin() * (t * 9.0).sin()
        };
        let n_samples = sample_rate as usize;
        let samples = (0..n_samples).map(|t| if t < late { 0.0 } else { sound(t - late) });
        AudioBuffer::mono(sample_rate, samples.collect()).unwrap()
    }

    #[test]
    fn a_delay_is_taken_out_and_told() {
        let judged = judge(&hum(16_000, 0), &hum(16_000, 40), "", &[Metric::SiSdr, Metric::Stoi]).unwrap();
        let delay = judged.delay.unwrap();
        assert!((delay.samples - 40.0).abs() < 0.01 && delay.taken_out, "{delay:?}");
        assert!(judged.scores["si_sdr"] > 40.0 && judged.scores.contains_key("stoi"), "{judged:?}");
    }

    #[test]
    fn other_rates_and_channels_are_brought_to_those_of_the_original() {
        let (left, right) = (hum(48_000, 0), hum(48_000, 0));
        let spec = AudioSpec { sample_rate: 48_000, channels: 2 };
        let channels = left.into_channels().into_iter().chain(right.into_channels()).collect();
        let stereo = AudioBuffer::from_planar(spec, channels).unwrap();
        let judged = judge(&stereo, &hum(16_000, 0), "music", &Metric::ALL).unwrap();
        assert_eq!(judged.sample_rate, 48_000);
        assert!(judged.scores["si_sdr"] > 40.0, "{judged:?}");
        assert_eq!(judged.not_judged["pesq_wb"], "judges speech, this is music");
        assert_eq!(judged.scores.len() + judged.not_judged.len(), Metric::ALL.len());
    }

    #[test]
    fn silence_is_no_failure() {
        let silence = AudioBuffer::mono(16_000, vec![0.0; 16_000]).unwrap();
        let judged = judge(&hum(16_000, 0), &silence, "", &[Metric::SiSdr, Metric::L1]).unwrap();
        assert!(judged.delay.is_none() && judged.not_judged.contains_key("si_sdr"), "{judged:?}");
    }
}
