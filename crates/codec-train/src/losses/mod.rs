//! What training minimizes: distances of decoded audio from its target.
//!
//! Every loss is a scalar whose gradient for the decoded audio is checked against finite differences.

mod correlation;
mod intelligibility;
mod loudness;
mod mel;
mod spectral;
mod stft;
#[cfg(test)]
pub(crate) mod testing;
mod waveform;

pub use intelligibility::Intelligibility;
pub use loudness::Ear;
pub use mel::MelBands;
pub use spectral::{SpectralDistance, SpectralLoss};
pub use stft::Stft;
pub(crate) use stft::flat;
pub use waveform::{l1, negative_si_sdr};

use crate::config::LossConfig;
use crate::error::Result;
use candle_core::Tensor;
use std::sync::Arc;

/// The losses on audio that a run asks for.
#[derive(Debug)]
pub struct AudioLosses {
    terms: Vec<Term>,
}

#[derive(Debug)]
struct Term {
    name: &'static str,
    weight: f64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Waveform,
    SiSdr,
    Intelligibility(Box<Intelligibility>),
    /// The mean over windows.
    Spectral(Vec<SpectralLoss>),
}

/// One loss of a step.
#[derive(Debug)]
pub struct LossTerm {
    /// Its name in configuration and log.
    pub name: &'static str,
    /// Its weight.
    pub weight: f64,
    /// Its value, a scalar.
    pub loss: Tensor,
}

impl AudioLosses {
    /// Prepares the losses of `config` for audio at `sample_rate`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for windows or bands that cannot be.
    pub fn new(config: &LossConfig, sample_rate: u32) -> Result<Self> {
        let mel = |(&window, &n_bands): (&usize, &usize)| -> Result<SpectralLoss> {
            let bands = Arc::new(MelBands::new(sample_rate, window, n_bands)?);
            Ok(SpectralLoss::new(Stft::new(window, window / 4, 1.0)?, SpectralDistance::LogMel(bands)))
        };
        let compressed = |&window: &usize| -> Result<SpectralLoss> {
            let stft = Stft::new(window, window / 4, Stft::unit_gain(window))?;
            Ok(SpectralLoss::new(stft, SpectralDistance::Compressed(config.compression)))
        };
        let loudness = || -> Result<SpectralLoss> {
            // About 32 ms, PESQ's window.
            let window = (sample_rate as usize / 32).next_power_of_two();
            let stft = Stft::new(window, window / 4, Stft::unit_gain(window))?;
            let ear = Arc::new(Ear::new(sample_rate, window)?);
            Ok(SpectralLoss::new(stft, SpectralDistance::Loudness(ear)))
        };
        let windows = || config.windows.iter();
        // A loss that nobody asked for may not suit the rate.
        let all: [(_, _, &dyn Fn() -> Result<Kind>); 6] = [
            ("waveform", config.waveform, &|| Ok(Kind::Waveform)),
            ("mel", config.mel, &|| {
                Ok(Kind::Spectral(windows().zip(&config.mel_bands).map(mel).collect::<Result<_>>()?))
            }),
            ("stft", config.stft, &|| Ok(Kind::Spectral(windows().map(compressed).collect::<Result<_>>()?))),
            ("loudness", config.loudness, &|| Ok(Kind::Spectral(vec![loudness()?]))),
            ("intelligibility", config.intelligibility, &|| {
                Ok(Kind::Intelligibility(Box::new(Intelligibility::new(sample_rate)?)))
            }),
            ("si_sdr", config.si_sdr, &|| Ok(Kind::SiSdr)),
        ];
        let used = all.into_iter().filter(|(_, weight, _)| *weight != 0.0);
        let term = |(name, weight, kind): (_, _, &dyn Fn() -> Result<Kind>)| -> Result<Term> {
            Ok(Term { name, weight, kind: kind()? })
        };
        Ok(Self { terms: used.map(term).collect::<Result<_>>()? })
    }

    /// All losses of `decoded` against `target`.
    ///
    /// # Shapes
    /// Both `[batch, n_samples, channels]`.
    ///
    /// # Errors
    /// When a window is longer than the audio.
    pub fn losses(&self, decoded: &Tensor, target: &Tensor) -> Result<Vec<LossTerm>> {
        let (decoded, target) = (signals(decoded)?, signals(target)?);
        let loss = |term: &Term| -> Result<LossTerm> {
            let loss = match &term.kind {
                Kind::Waveform => l1(&decoded, &target)?,
                Kind::SiSdr => negative_si_sdr(&decoded, &target)?,
                Kind::Intelligibility(loss) => loss.loss(&decoded, &target)?,
                Kind::Spectral(losses) => {
                    let all = losses.iter().map(|loss| loss.loss(&decoded, &target));
                    Tensor::stack(&all.collect::<Result<Vec<_>>>()?, 0)?.mean_all()?
                }
            };
            Ok(LossTerm { name: term.name, weight: term.weight, loss })
        };
        self.terms.iter().map(loss).collect()
    }
}

/// `[batch, n_samples, channels]` as `[batch * channels, n_samples]`.
pub(crate) fn signals(audio: &Tensor) -> Result<Tensor> {
    let (batch, n_samples, channels) = audio.dims3()?;
    if channels == 1 {
        return Ok(audio.reshape((batch, n_samples))?);
    }
    Ok(audio.transpose(1, 2)?.contiguous()?.reshape((batch * channels, n_samples))?)
}
