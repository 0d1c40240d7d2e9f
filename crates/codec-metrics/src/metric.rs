//! All metrics under one roof: what each is called, needs and says.

use crate::align::check_specs;
use crate::error::{Error, Result};
use crate::pair::Pair;
use crate::spectral::{self, MelConfig};
use crate::{loudness, pesq, stoi, waveform};
use codec_core::AudioBuffer;
use std::str::FromStr;

/// A measure of how far a degraded signal is from its reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Metric {
    /// [`pesq::wide_band`].
    PesqWideBand,
    /// [`pesq::narrow_band`].
    PesqNarrowBand,
    /// [`stoi::stoi`].
    Stoi,
    /// [`stoi::estoi`].
    Estoi,
    /// [`waveform::si_sdr`].
    SiSdr,
    /// [`waveform::snr`].
    Snr,
    /// [`waveform::l1`].
    L1,
    /// [`spectral::mel_distance`] with [`MelConfig::Audiotools`].
    MelAudiotools,
    /// [`spectral::mel_distance`] with [`MelConfig::Dac`].
    MelDac,
    /// [`spectral::stft_distance`].
    Stft,
    /// [`spectral::log_spectral_distance`].
    LogSpectral,
    /// [`spectral::mel_cepstral_distance`].
    MelCepstral,
    /// [`loudness::change`].
    LoudnessChange,
}

/// Which values are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Large ones.
    Higher,
    /// Small ones.
    Lower,
    /// Those near zero.
    Zero,
}

/// What a reader of a score must know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Description {
    /// Short name for tables and files, unique.
    pub name: &'static str,
    /// Name with the variant.
    pub label: &'static str,
    /// Unit of the value; empty for a plain number.
    pub unit: &'static str,
    /// Which values are good.
    pub better: Better,
    /// The rate that both signals must have, in Hz; `None` when any will do.
    pub sample_rate: Option<u32>,
    /// Whether it takes one channel only; the others are averaged over channels, or take them all.
    pub is_mono: bool,
}

impl Metric {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 13] = [
        Self::PesqWideBand,
        Self::PesqNarrowBand,
        Self::Stoi,
        Self::Estoi,
        Self::SiSdr,
        Self::Snr,
        Self::L1,
        Self::MelAudiotools,
        Self::MelDac,
        Self::Stft,
        Self::LogSpectral,
        Self::MelCepstral,
        Self::LoudnessChange,
    ];

    /// The metric of that short name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.describe().name == name)
    }

    /// What a reader of its scores must know.
    pub fn describe(self) -> Description {
        let row = |name, label, unit, better| Description {
            name,
            label,
            unit,
            better,
            sample_rate: None,
            is_mono: false,
        };
        let speech = |sample_rate, row| Description { sample_rate, is_mono: true, ..row };
        use Better::{Higher, Lower, Zero};
        match self {
            Self::PesqWideBand => speech(
                Some(16_000),
                row("pesq_wb", "PESQ-WB (P.862.2 without Corrigendum 2)", "MOS-LQO", Higher),
            ),
            Self::PesqNarrowBand => {
                speech(Some(8_000), row("pesq_nb", "PESQ-NB (P.862.1 at 8 kHz)", "MOS-LQO", Higher))
            }
            Self::Stoi => speech(None, row("stoi", "STOI", "", Higher)),
            Self::Estoi => speech(None, row("estoi", "ESTOI", "", Higher)),
            Self::SiSdr => row("si_sdr", "SI-SDR", "dB", Higher),
            Self::Snr => row("snr", "SNR", "dB", Higher),
            Self::L1 => row("l1", "waveform L1", "", Lower),
            Self::MelAudiotools => row("mel_audiotools", "mel distance (audiotools defaults)", "", Lower),
            Self::MelDac => row("mel_dac", "mel distance (DAC's configuration)", "", Lower),
            Self::Stft => row("stft", "multi-resolution STFT distance (audiotools defaults)", "", Lower),
            Self::LogSpectral => row("lsd", "log-spectral distance", "dB", Lower),
            Self::MelCepstral => row("mcd", "MCD (mel-DCT)", "dB", Lower),
            Self::LoudnessChange => row("loudness_change", "change of integrated loudness", "LU", Zero),
        }
    }

    /// Judges a degraded signal by its reference: same rate, channels and length, aligned.
    ///
    /// # Errors
    /// [`Error::Format`] when rate or channels differ or a mono metric gets more than one channel,
    /// [`Error::Length`], and those of the metric.
    pub fn judge(self, reference: &AudioBuffer, degraded: &AudioBuffer) -> Result<f64> {
        check_specs(reference, degraded)?;
        let spec = reference.spec();
        if self.describe().is_mono && spec.channels != 1 {
            let actual = u32::from(spec.channels);
            return Err(Error::Format { what: "channels", expected: 1, actual });
        }
        let pairs: Vec<Pair<'_>> = reference
            .channels()
            .zip(degraded.channels())
            .map(|(reference, degraded)| Pair::new(reference, degraded, spec.sample_rate))
            .collect::<Result<_>>()?;
        if self == Self::LoudnessChange {
            return loudness::change(reference, degraded);
        }
        let scores: Vec<f64> = pairs.iter().map(|pair| self.judge_pair(pair)).collect::<Result<_>>()?;
        Ok(scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// Judges one channel.
    ///
    /// # Errors
    /// Those of the metric.
    pub fn judge_pair(self, pair: &Pair<'_>) -> Result<f64> {
        match self {
            Self::PesqWideBand => pesq::wide_band(pair),
            Self::PesqNarrowBand => pesq::narrow_band(pair),
            Self::Stoi => stoi::stoi(pair),
            Self::Estoi => stoi::estoi(pair),
            Self::SiSdr => waveform::si_sdr(pair),
            Self::Snr => waveform::snr(pair),
            Self::L1 => Ok(waveform::l1(pair)),
            Self::MelAudiotools => spectral::mel_distance(pair, MelConfig::Audiotools),
            Self::MelDac => spectral::mel_distance(pair, MelConfig::Dac),
            Self::Stft => spectral::stft_distance(pair),
            Self::LogSpectral => spectral::log_spectral_distance(pair),
            Self::MelCepstral => spectral::mel_cepstral_distance(pair),
            Self::LoudnessChange => {
                let mono = |samples: &[f32]| AudioBuffer::mono(pair.sample_rate(), samples.to_vec());
                let no_rate = |_| Error::Rate { metric: "loudness", needed: "at least 1 Hz", actual: 0 };
                let reference = mono(pair.reference()).map_err(no_rate)?;
                loudness::change(&reference, &mono(pair.degraded()).map_err(no_rate)?)
            }
        }
    }
}

/// By short name, for command lines.
impl FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = || Self::ALL.map(|metric| metric.describe().name).join(", ");
        Self::by_name(name).ok_or_else(|| Error::NoMetric { name: name.to_owned(), known: known() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::speech;
    use codec_core::AudioSpec;

    #[test]
    fn names_are_unique_and_found() {
        for metric in Metric::ALL {
            assert_eq!(Metric::by_name(metric.describe().name), Some(metric));
        }
        assert_eq!(Metric::by_name("visqol"), None);
        assert_eq!("stoi".parse(), Ok(Metric::Stoi));
        let error = "visqol".parse::<Metric>().unwrap_err().to_string();
        assert!(error.starts_with("no such metric as visqol; there are pesq_wb, "), "{error}");
    }

    #[test]
    fn channels_are_averaged() {
        let left = speech(16_000, 0.5);
        let half: Vec<f32> = left.iter().map(|x| x / 2.0).collect();
        let spec = AudioSpec { sample_rate: 16_000, channels: 2 };
        let reference = AudioBuffer::from_planar(spec, vec![left.clone(), left.clone()]).unwrap();
        let degraded = AudioBuffer::from_planar(spec, vec![left.clone(), half]).unwrap();
        let l1 = Metric::L1.judge(&reference, &degraded).unwrap();
        let expected: f64 = left.iter().map(|x| f64::from(x.abs())).sum::<f64>() / left.len() as f64 / 4.0;
        assert!((l1 - expected).abs() < 1e-9);
        let error = Metric::Stoi.judge(&reference, &degraded);
        assert_eq!(error, Err(Error::Format { what: "channels", expected: 1, actual: 2 }));
    }
}
