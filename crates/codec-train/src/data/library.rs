//! Crops of clips, drawn by number.

use super::Fingerprint;
use super::manifest::{Clip, clips};
use crate::config::{DataConfig, SourceConfig};
use crate::error::{Error, Result};
use crate::rng::Rng;
use codec_core::AudioSpec;
use codec_io::{AudioReader, Resampler, mix};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Draws of one crop before a quiet one is taken after all.
const MAX_DRAWS: u64 = 20;
/// Length that is assumed of a clip whose header does not say it.
const UNKNOWN_SECONDS: f64 = 10.0;

/// Audio for one item of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Crop {
    /// `[n_samples, channels]`.
    pub samples: Vec<f32>,
    /// Index into [`Library::kinds`].
    pub kind_idx: usize,
}

/// All clips of a run, decoded as they are needed and kept while memory lasts.
///
/// The crop of a number depends on the number, the seed and the clips alone.
#[derive(Debug)]
pub struct Library {
    config: DataConfig,
    spec: AudioSpec,
    crop_len: usize,
    seed: u64,
    entries: Vec<Entry>,
    /// Running sums of the entries' shares, the last of them 1.
    shares: Vec<f64>,
    kinds: Vec<String>,
    fingerprint: Fingerprint,
    cache: Cache,
}

#[derive(Debug)]
struct Entry {
    clip: Clip,
    kind_idx: usize,
}

impl Library {
    /// Finds the clips of `config` for crops of `crop_len` samples.
    ///
    /// # Errors
    /// As [`clips`]; [`Error::Config`] for weights that are all zero.
    pub fn new(config: &DataConfig, spec: AudioSpec, crop_len: usize, seed: u64) -> Result<Self> {
        let (mut entries, mut shares, mut kinds) = (Vec::new(), Vec::new(), Vec::<String>::new());
        let mut fingerprint = Fingerprint::default();
        for source in &config.sources {
            let clips = clips(source)?;
            let weighted = |clip: &Clip| clip.weight * clip.seconds.unwrap_or(UNKNOWN_SECONDS);
            let total: f64 = clips.iter().map(weighted).sum();
            for clip in clips {
                let kind_idx = kinds.iter().position(|kind| *kind == clip.kind).unwrap_or(kinds.len());
                if kind_idx == kinds.len() {
                    kinds.push(clip.kind.clone());
                }
                let share = source.weight * weighted(&clip) / total.max(f64::MIN_POSITIVE);
                let seconds = clip.seconds.map_or(u64::MAX, f64::to_bits);
                fingerprint.push(&source.path, &clip.path, &clip.kind, [seconds, share.to_bits()]);
                shares.push(share);
                entries.push(Entry { clip, kind_idx });
            }
        }
        let total: f64 = shares.iter().sum();
        if total.is_nan() || total <= 0.0 {
            return Err(Error::config("data.sources.weight", "leaves nothing to choose"));
        }
        let mut sum = 0.0;
        for share in &mut shares {
            sum += *share / total;
            *share = sum;
        }
        let cache = Cache::new((config.cache_gib * f64::from(1 << 30)) as usize / size_of::<f32>());
        Ok(Self { config: config.clone(), spec, crop_len, seed, entries, shares, kinds, fingerprint, cache })
    }

    /// The kinds of clips.
    pub fn kinds(&self) -> &[String] {
        &self.kinds
    }

    /// Number of clips.
    pub fn n_clips(&self) -> usize {
        self.entries.len()
    }

    /// What the clips are, for a run that goes on with them later.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Rate and channels of the crops.
    pub fn spec(&self) -> AudioSpec {
        self.spec
    }

    /// Samples of a crop, per channel.
    pub fn crop_len(&self) -> usize {
        self.crop_len
    }

    /// Crop number `crop_idx` of the run.
    ///
    /// # Errors
    /// When a file cannot be decoded.
    pub fn crop(&self, crop_idx: u64) -> Result<Crop> {
        let mut rng = Rng::of(self.seed, "crop", crop_idx);
        let mut crop = self.draw(&mut rng)?;
        if rng.uniform() < self.config.mix_probability {
            let other = self.draw(&mut rng)?;
            let snr = rng.between(self.config.mix_snr_db[0], self.config.mix_snr_db[1]);
            let (level, other_level) = (rms(&crop.samples), rms(&other.samples));
            if other_level > 0.0 {
                let gain = (level / other_level * 10.0_f64.powf(-snr / 20.0)) as f32;
                let pairs = crop.samples.iter_mut().zip(&other.samples);
                pairs.for_each(|(x, y)| *x += gain * y);
            }
        }
        let [low, high] = self.config.gain_db;
        let gain = 10.0_f64.powf(rng.between(low, high) / 20.0);
        // Rather quieter than clipped.
        let peak = crop.samples.iter().fold(0.0_f32, |peak, x| peak.max(x.abs()));
        let gain = gain.min(1.0 / f64::from(peak).max(1e-9)) as f32;
        if gain != 1.0 {
            crop.samples.iter_mut().for_each(|x| *x *= gain);
        }
        Ok(crop)
    }

    /// A stretch of a clip that is not silent, if there is one to be found.
    fn draw(&self, rng: &mut Rng) -> Result<Crop> {
        let floor = 10.0_f64.powf(self.config.silence_db / 20.0);
        let mut draws = 0;
        loop {
            let at = rng.uniform();
            let entry_idx = self.shares.partition_point(|&sum| sum <= at).min(self.entries.len() - 1);
            let entry = &self.entries[entry_idx];
            let audio = self.cache.get(entry_idx, || decode(&entry.clip.path, self.spec, None))?;
            let channels = usize::from(self.spec.channels);
            let n_samples = audio.len() / channels;
            let start = rng.below(n_samples.saturating_sub(self.crop_len) + 1);
            let end = n_samples.min(start + self.crop_len);
            let mut samples = audio[start * channels..end * channels].to_vec();
            draws += 1;
            if rms(&samples) < floor && draws < MAX_DRAWS {
                continue;
            }
            // A short clip is followed by silence.
            samples.resize(self.crop_len * channels, 0.0);
            return Ok(Crop { samples, kind_idx: entry.kind_idx });
        }
    }

    /// The clips of some sources, as [`Clip`]s.
    ///
    /// # Errors
    /// As [`clips`].
    pub fn clips_of(sources: &[SourceConfig]) -> Result<Vec<Clip>> {
        let all = sources.iter().map(clips).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().collect())
    }
}

fn rms(samples: &[f32]) -> f64 {
    let power: f64 = samples.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (power / samples.len().max(1) as f64).sqrt()
}

/// A file as interleaved samples at another rate and number of channels.
///
/// # Errors
/// What codec-io fails with; [`Error::Data`] when the file holds nothing.
pub fn decode(path: &Path, spec: AudioSpec, max_seconds: Option<f64>) -> Result<Vec<f32>> {
    let named = |e: codec_io::Error| Error::Data { why: format!("{}: {e}", path.display()) };
    let mut reader = AudioReader::open(path).map_err(named)?;
    let rate = reader.spec().sample_rate;
    let mut resampler = Resampler::new(rate, spec.sample_rate, spec.channels).map_err(named)?;
    let mut samples = Vec::new();
    let max_len = max_seconds.map_or(usize::MAX, |seconds| {
        (seconds * f64::from(spec.sample_rate)) as usize * usize::from(spec.channels)
    });
    while let Some(piece) = reader.read().map_err(named)? {
        let piece = mix::to_channels(&piece, spec.channels).map_err(named)?;
        samples.append(&mut resampler.push(&piece).map_err(named)?.to_interleaved());
        if samples.len() >= max_len {
            break;
        }
    }
    samples.append(&mut resampler.finish().map_err(named)?.to_interleaved());
    samples.truncate(max_len);
    if samples.is_empty() {
        return Err(Error::Data { why: format!("{} holds no samples", path.display()) });
    }
    if samples.iter().any(|x| !x.is_finite()) {
        let why = format!("{} holds samples that are not finite numbers", path.display());
        return Err(Error::Data { why });
    }
    Ok(samples)
}

/// Decoded clips, the oldest of which give way.
#[derive(Debug)]
struct Cache {
    max_len: usize,
    state: Mutex<CacheState>,
    decoded: Condvar,
}

#[derive(Debug, Default)]
struct CacheState {
    clips: HashMap<usize, Arc<Vec<f32>>>,
    order: VecDeque<usize>,
    /// Being decoded by some thread.
    open: HashSet<usize>,
    len: usize,
}

impl Cache {
    fn new(max_len: usize) -> Self {
        Self { max_len, state: Mutex::default(), decoded: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: usize, decode: impl FnOnce() -> Result<Vec<f32>>) -> Result<Arc<Vec<f32>>> {
        let mut state = self.lock();
        loop {
            if let Some(clip) = state.clips.get(&key) {
                return Ok(Arc::clone(clip));
            }
            if state.open.insert(key) {
                break;
            }
            // Two threads want one clip: one decodes it.
            state = self.decoded.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let clip = decode().map(Arc::new);
        let mut state = self.lock();
        state.open.remove(&key);
        if let Ok(clip) = &clip {
            state.len += clip.len();
            state.clips.insert(key, Arc::clone(clip));
            state.order.push_back(key);
            while state.len > self.max_len && state.order.len() > 1 {
                if let Some(old) = state.order.pop_front().and_then(|old| state.clips.remove(&old)) {
                    state.len -= old.len();
                }
            }
        }
        drop(state);
        self.decoded.notify_all();
        clip
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use codec_core::AudioBuffer;
    use codec_io::{WavFormat, WavWriter};
    use std::path::PathBuf;

    /// A sine of `seconds` at 16 kHz, silent in its first half where asked.
    pub(crate) fn write_tone(folder: &Path, name: &str, hz: f32, seconds: f32, half_silent: bool) -> PathBuf {
        let n = (16_000.0 * seconds) as usize;
        let tone = |t: usize| {
            let sounds = !half_silent || t > n / 2;
            if sounds { 0.3 * (t as f32 * hz * std::f32::consts::TAU / 16_000.0).sin() } else { 0.0 }
        };
        let audio = AudioBuffer::mono(16_000, (0..n).map(tone).collect()).unwrap();
        let path = folder.join(name);
        let mut writer = WavWriter::create(&path, audio.spec(), WavFormat::Float32).unwrap();
        writer.write(&audio).unwrap();
        writer.finish().unwrap();
        path
    }

    pub(crate) fn data_config(folder: &Path) -> DataConfig {
        let text = format!("sources = [{{ path = {:?} }}]", folder.display().to_string());
        toml::from_str(&text).unwrap()
    }

    const SPEC: AudioSpec = AudioSpec { sample_rate: 16_000, channels: 1 };

    #[test]
    fn crops_depend_on_their_number_alone_and_skip_silence() {
        let folder = tempfile::tempdir().unwrap();
        write_tone(folder.path(), "a.wav", 300.0, 4.0, true);
        write_tone(folder.path(), "b.wav", 700.0, 1.0, false);
        let config = DataConfig { gain_db: [-12.0, 0.0], mix_probability: 0.5, ..data_config(folder.path()) };
        let library = Library::new(&config, SPEC, 2_000, 1).unwrap();
        let small = DataConfig { cache_gib: 0.0, ..config };
        let uncached = Library::new(&small, SPEC, 2_000, 1).unwrap();
        let crops: Vec<Crop> = (0..60).map(|crop_idx| library.crop(crop_idx).unwrap()).collect();
        for crop_idx in (0..60).rev() {
            assert_eq!(uncached.crop(crop_idx).unwrap(), crops[crop_idx as usize]);
        }
        assert!(crops.iter().all(|crop| rms(&crop.samples) > 1e-3 && crop.samples.len() == 2_000));
        assert!(crops.windows(2).all(|pair| pair[0] != pair[1]));
        let levels: Vec<f64> = crops.iter().map(|crop| rms(&crop.samples)).collect();
        let loudest = levels.iter().copied().fold(0.0, f64::max);
        assert!(levels.iter().any(|level| level * 2.5 < loudest), "{levels:?}");
    }

    #[test]
    fn rates_and_channels_are_those_that_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        write_tone(folder.path(), "a.wav", 300.0, 0.5, false);
        let spec = AudioSpec { sample_rate: 24_000, channels: 2 };
        let library = Library::new(&data_config(folder.path()), spec, 30_000, 1).unwrap();
        let crop = library.crop(0).unwrap();
        assert_eq!(crop.samples.len(), 60_000);
        // 12,000 samples of sound, then silence; both channels the same.
        assert!(crop.samples[..24_000].chunks(2).all(|pair| pair[0] == pair[1]));
        assert!(rms(&crop.samples[..24_000]) > 0.2 && rms(&crop.samples[24_000..]) == 0.0);
    }

    #[test]
    fn weights_choose_sources() {
        let folder = tempfile::tempdir().unwrap();
        for (name, hz) in [("a", 300.0), ("b", 500.0)] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            write_tone(&folder.path().join(name), "x.wav", hz, 0.5, false);
        }
        let mut config = data_config(&folder.path().join("a"));
        config.sources[0].weight = 3.0;
        config.sources[0].kind = Some("low".to_owned());
        let mut other = data_config(&folder.path().join("b")).sources.remove(0);
        other.kind = Some("high".to_owned());
        config.sources.push(other);
        let library = Library::new(&config, SPEC, 1_000, 5).unwrap();
        let n_low = (0..400).filter(|&i| library.crop(i).unwrap().kind_idx == 0).count();
        assert!((270..330).contains(&n_low), "{n_low} of 400");
        assert_eq!(library.kinds(), ["low", "high"]);
    }
}
