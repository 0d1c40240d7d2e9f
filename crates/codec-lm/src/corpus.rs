//! The codes that a model learns from or is judged by: token files, or audio that a codec tokenizes.

use crate::config::{CodecIdentity, hexadecimal};
use crate::error::{Error, Result};
use codec_core::{AudioBuffer, CodeLayout, Codec, Codes};
use codec_io::atomic::AtomicFile;
use codec_io::tokens::{EXTENSION, TokenHeader, TokenReader, TokenWriter, Totals};
use codec_train::config::SourceConfig;
use codec_train::data::{Clip, clips, decode};
use codec_train::rng::Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

/// Seconds of audio that a codec is given at once.
const PIECE_SECONDS: usize = 4;
/// What a manifest writes where it does not know.
const UNKNOWN: [&str; 2] = ["", "-"];

/// Turns audio into codes, and keeps them for the next time.
#[derive(Debug)]
pub struct Tokenizer<'c> {
    /// The codec.
    pub codec: &'c dyn Codec,
    /// Of its weights.
    pub sha256: [u8; 32],
    /// Codebooks in use.
    pub n_codebooks: usize,
    /// Folder of the codes of files that were tokenized before.
    pub cache: Option<PathBuf>,
}

impl Tokenizer<'_> {
    /// The codec's identity.
    pub fn identity(&self) -> CodecIdentity {
        CodecIdentity::of(self.codec.info(), &self.sha256)
    }

    /// The codes of an audio file.
    ///
    /// # Errors
    /// When the file cannot be decoded or the cache not be written.
    pub fn tokenize(&self, path: &Path) -> Result<Codes> {
        let cached = self.cached(path)?;
        if let Some(found) = cached.as_ref().filter(|cached| cached.is_file()) {
            // What cannot be read was broken by somebody else: it is made anew.
            if let Ok(codes) = read_tokens(found).and_then(|(header, codes)| self.checked(&header, codes)) {
                return Ok(codes);
            }
        }
        let spec = self.codec.info().audio;
        let samples = decode(path, spec, None)?;
        let channels = usize::from(spec.channels);
        let mut encoder = self.codec.encoder(self.n_codebooks)?;
        let mut codes: Option<Codes> = None;
        let piece_len = PIECE_SECONDS * spec.sample_rate as usize * channels;
        let mut add = |piece: Codes| match &mut codes {
            Some(codes) => codes.append(&piece),
            None => {
                codes = Some(piece);
                Ok(())
            }
        };
        for piece in samples.chunks(piece_len.max(1)) {
            add(encoder.push(&AudioBuffer::from_interleaved(spec, piece)?)?)?;
        }
        add(encoder.finish()?)?;
        let codes = codes.ok_or_else(|| Error::Data { why: format!("{}: no codes", path.display()) })?;
        if let Some(cached) = &cached {
            self.keep(cached, &codes, (samples.len() / channels) as u64)?;
        }
        Ok(codes)
    }

    /// The token file of an audio file as it is now, by this codec.
    fn cached(&self, path: &Path) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.cache else { return Ok(None) };
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        let modified = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let whole = path.canonicalize().map_err(Error::io(path))?;
        let mut hash = Sha256::new();
        hash.update(self.sha256);
        hash.update((self.n_codebooks as u64).to_le_bytes());
        hash.update(metadata.len().to_le_bytes());
        hash.update(modified.map_or(0, |at| at.as_nanos()).to_le_bytes());
        hash.update(whole.as_os_str().as_encoded_bytes());
        let name = hexadecimal(&hash.finalize()[..16]);
        Ok(Some(folder.join(format!("{name}.{EXTENSION}"))))
    }

    fn keep(&self, path: &Path, codes: &Codes, n_samples: u64) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let info = self.codec.info();
        let failed = |e: codec_io::tokens::TokenError| Error::format(path, e);
        let header = TokenHeader::new(info, self.n_codebooks, self.sha256, info.audio).map_err(failed)?;
        let file = AtomicFile::create(path).map_err(Error::io(path))?;
        let mut writer = TokenWriter::new(BufWriter::new(file), header).map_err(failed)?;
        writer.push(codes).map_err(failed)?;
        let written = writer.finish(Totals { n_samples, source_samples: n_samples }).map_err(failed)?;
        let file =
            written.into_inner().map_err(|e| Error::Io { path: path.to_owned(), source: e.into_error() })?;
        file.commit().map_err(Error::io(path))
    }

    fn checked(&self, header: &TokenHeader, codes: Codes) -> Result<Codes> {
        header.check_weights(&self.sha256).map_err(|e| Error::Data { why: e.to_string() })?;
        let layout = self.codec.info().layout.truncated(self.n_codebooks)?;
        same_layout(&layout, codes.layout())?;
        Ok(codes)
    }
}

fn same_layout(expected: &CodeLayout, actual: &CodeLayout) -> Result<()> {
    if expected != actual {
        let (left, right) = (expected.to_string(), actual.to_string());
        return Err(Error::Mismatch { what: "layout of the codes", left, right });
    }
    Ok(())
}

/// A token file: its header and all of its codes.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`].
pub fn read_tokens(path: &Path) -> Result<(TokenHeader, Codes)> {
    let file = File::open(path).map_err(Error::io(path))?;
    let failed = |e: codec_io::tokens::TokenError| Error::format(path, e);
    let mut reader = TokenReader::new(BufReader::new(file)).map_err(failed)?;
    let header = reader.header().clone();
    Ok((header, reader.read_all().map_err(failed)?))
}

/// The codes of one file.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The file.
    pub path: PathBuf,
    /// Who speaks, or the file where that is not known.
    pub speaker: String,
    /// What the manifest says in the column of classes.
    pub class: Option<String>,
    /// The source among those of the configuration.
    pub source_idx: usize,
    /// The codes.
    pub codes: Codes,
}

/// Recordings of one codec.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// The recordings, sources in order.
    pub recordings: Vec<Recording>,
    /// The codec, where token files or a tokenizer say it.
    pub codec: Option<CodecIdentity>,
}

/// Where a manifest says what of a recording.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// The column of speakers.
    pub speaker: &'a str,
    /// The column of classes, if recordings have classes.
    pub class: Option<&'a str>,
}

impl Corpus {
    /// Reads all recordings of some sources: folders, manifests, or single files, of audio or of tokens.
    ///
    /// Codes are cut to the first `n_codebooks` codebooks, if that is given. `each` is told when a recording
    /// is there, with the number of all of them.
    ///
    /// # Errors
    /// [`Error::Data`] for audio without a tokenizer, or when there is nothing; [`Error::Mismatch`] when
    /// files are of different codecs; what reading and tokenizing fail with.
    pub fn read(
        sources: &[SourceConfig],
        columns: Columns<'_>,
        n_codebooks: Option<usize>,
        tokenizer: Option<&Tokenizer<'_>>,
        each: &(dyn Fn(usize) + Sync),
    ) -> Result<Self> {
        let mut files = Vec::new();
        for (source_idx, source) in sources.iter().enumerate() {
            files.extend(find(source)?.into_iter().map(|clip| (source_idx, clip)));
        }
        let n_files = files.len();
        let read = |(source_idx, clip): (usize, Clip)| -> Result<(Recording, Option<CodecIdentity>)> {
            let is_tokens = clip.path.extension().is_some_and(|e| e == EXTENSION);
            let (codes, codec) = match (is_tokens, tokenizer) {
                (true, _) => {
                    let (header, codes) = read_tokens(&clip.path)?;
                    (codes, Some(identity(&header)))
                }
                (false, Some(tokenizer)) => (tokenizer.tokenize(&clip.path)?, Some(tokenizer.identity())),
                (false, None) => {
                    let why = format!("{} is audio: name the codec that tokenizes it", clip.path.display());
                    return Err(Error::Data { why });
                }
            };
            let codes = n_codebooks.map_or(Ok(codes.clone()), |n| codes.truncated(n))?;
            each(n_files);
            let known = |column: &str| {
                clip.columns.get(column).filter(|value| !UNKNOWN.contains(&value.as_str())).cloned()
            };
            let own = || clip.path.display().to_string();
            let speaker = known(columns.speaker).unwrap_or_else(own);
            let class = columns.class.and_then(known);
            Ok((Recording { path: clip.path.clone(), speaker, class, source_idx, codes }, codec))
        };
        let all: Result<Vec<_>> = files.into_par_iter().map(read).collect();
        let mut corpus = Self::default();
        for (recording, codec) in all? {
            corpus.add(recording, codec)?;
        }
        if corpus.n_frames() == 0 {
            return Err(Error::Data { why: "there are no codes".to_owned() });
        }
        Ok(corpus)
    }

    fn add(&mut self, recording: Recording, codec: Option<CodecIdentity>) -> Result<()> {
        if let Some(first) = self.recordings.first() {
            same_layout(first.codes.layout(), recording.codes.layout())?;
        }
        if let Some((own, other)) = self.codec.as_ref().zip(codec.as_ref())
            && own.sha256 != other.sha256
        {
            let what = "the codec of the token files";
            return Err(Error::Mismatch { what, left: own.model.clone(), right: other.model.clone() });
        }
        self.codec = self.codec.take().or(codec);
        self.recordings.push(recording);
        Ok(())
    }

    /// Frames in all.
    pub fn n_frames(&self) -> usize {
        self.recordings.iter().map(|recording| recording.codes.n_frames()).sum()
    }

    /// The layout of all codes.
    ///
    /// # Errors
    /// [`Error::Data`] when there are none.
    pub fn layout(&self) -> Result<&CodeLayout> {
        let first = self.recordings.first();
        let layout = first.map(|recording| recording.codes.layout().as_ref());
        layout.ok_or_else(|| Error::Data { why: "there are no codes".to_owned() })
    }

    /// The classes of the recordings, in order.
    pub fn classes(&self) -> Vec<String> {
        let classes = self.recordings.iter().filter_map(|recording| recording.class.clone());
        classes.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Takes speakers out until they have this share of every source's frames, or its last speaker is left:
    /// what stays and what was taken. No speaker is on both sides.
    pub fn split(self, share: f64, seed: u64) -> (Self, Self) {
        let mut sources = BTreeMap::<usize, BTreeMap<&str, usize>>::new();
        for recording in &self.recordings {
            let of_source = sources.entry(recording.source_idx).or_default();
            *of_source.entry(&recording.speaker).or_default() += recording.codes.n_frames();
        }
        let mut held = BTreeSet::new();
        for speakers in sources.values() {
            let wanted = share * speakers.values().sum::<usize>() as f64;
            let mut order: Vec<(&str, usize)> = speakers.iter().map(|(name, n)| (*name, *n)).collect();
            order.sort_by_key(|(name, _)| (Rng::of(seed, name, 0).bits(), *name));
            let mut taken = 0;
            let n_most = order.len().saturating_sub(1);
            for (name, n) in order.into_iter().take(n_most) {
                if taken as f64 >= wanted {
                    break;
                }
                taken += n;
                held.insert(name.to_owned());
            }
        }
        let codec = self.codec;
        let is_held = |recording: &Recording| held.contains(&recording.speaker);
        let (held, kept) = self.recordings.into_iter().partition::<Vec<_>, _>(is_held);
        let corpus = |recordings| Self { recordings, codec: codec.clone() };
        (corpus(kept), corpus(held))
    }
}

fn identity(header: &TokenHeader) -> CodecIdentity {
    CodecIdentity {
        model: header.model.clone(),
        sha256: hexadecimal(&header.weights.0),
        sample_rate: header.audio.sample_rate,
        hop_length: header.hop_length,
    }
}

/// The files of a source.
fn find(source: &SourceConfig) -> Result<Vec<Clip>> {
    let kind = source.kind.clone().unwrap_or_else(|| EXTENSION.to_owned());
    let clip = |path: PathBuf| Clip {
        path,
        kind: kind.clone(),
        seconds: None,
        weight: 1.0,
        columns: BTreeMap::new(),
    };
    let is_manifest = source.path.extension().is_some_and(|e| e == "tsv" || e == "jsonl");
    if source.path.is_file() && !is_manifest {
        return Ok(vec![clip(source.path.clone())]);
    }
    if source.path.is_dir() {
        let mut paths = Vec::new();
        for entry in walkdir::WalkDir::new(&source.path).follow_links(true) {
            let entry = entry.map_err(|e| Error::Io { path: source.path.clone(), source: e.into() })?;
            if entry.path().extension().is_some_and(|e| e == EXTENSION) {
                paths.push(entry.into_path());
            }
        }
        if !paths.is_empty() {
            paths.sort();
            return Ok(paths.into_iter().map(clip).collect());
        }
    }
    Ok(clips(source)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(source_idx: usize, speaker: &str, n_frames: usize) -> Recording {
        let codes = Codes::new(CodeLayout::uniform(1, 4).unwrap(), vec![vec![1; n_frames]]).unwrap();
        Recording { path: PathBuf::new(), speaker: speaker.to_owned(), class: None, source_idx, codes }
    }

    #[test]
    fn speakers_are_on_one_side_and_every_source_keeps_one() {
        let mut corpus = Corpus::default();
        for i in 0..40 {
            corpus.add(recording(0, &format!("s{}", i % 20), 10 + i), None).unwrap();
        }
        corpus.add(recording(1, "alone", 500), None).unwrap();
        // A speaker of two sources.
        corpus.add(recording(2, "s3", 50), None).unwrap();
        corpus.add(recording(2, "other", 50), None).unwrap();
        let n_frames = corpus.n_frames();
        let (kept, held) = corpus.clone().split(0.2, 1);
        assert_eq!(kept.n_frames() + held.n_frames(), n_frames);
        let speakers = |corpus: &Corpus| -> BTreeSet<String> {
            corpus.recordings.iter().map(|recording| recording.speaker.clone()).collect()
        };
        assert!(speakers(&kept).is_disjoint(&speakers(&held)));
        assert!(speakers(&kept).contains("alone"));
        let of_first = |corpus: &Corpus| -> usize {
            let first = corpus.recordings.iter().filter(|recording| recording.source_idx == 0);
            first.map(|recording| recording.codes.n_frames()).sum()
        };
        let share = of_first(&held) as f64 / (of_first(&held) + of_first(&kept)) as f64;
        assert!((0.2..0.4).contains(&share), "{share}");
        let (_, again) = corpus.clone().split(0.2, 1);
        assert_eq!(speakers(&again), speakers(&held));
        assert_ne!(speakers(&corpus.split(0.2, 2).1), speakers(&held));
    }

    #[test]
    fn codes_of_another_layout_are_refused() {
        let mut corpus = Corpus::default();
        corpus.add(recording(0, "a", 3), None).unwrap();
        let codes = Codes::empty(CodeLayout::uniform(2, 4).unwrap());
        let other = Recording { codes, ..recording(0, "b", 1) };
        assert!(matches!(corpus.add(other, None), Err(Error::Mismatch { .. })));
    }
}
