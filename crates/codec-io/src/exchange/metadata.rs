//! What arrays of codes say of themselves: the header of a token file as JSON.

use crate::error::{Error, Result};
use crate::tokens::{TokenHeader, Totals};
use codec_core::{AudioSpec, CodeLayout, CodebookSpec, Codes, Segment};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A token file as arrays: codes and all that stands beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenArrays {
    /// What the token file says; its packets have the usual length.
    pub header: TokenHeader,
    /// How much audio there is.
    pub totals: Totals,
    /// The codes, with their scales.
    pub codes: Codes,
}

/// The fields, as `docs/exchange.md` lists them.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Metadata {
    family: String,
    model: String,
    weights_sha256: String,
    sample_rate: u32,
    channels: u16,
    hop_length: u32,
    segment: Option<SegmentFields>,
    codebooks: Vec<CodebookFields>,
    n_codebooks_total: usize,
    scale_frames: Option<u32>,
    start_trim: u64,
    n_samples: u64,
    source_sample_rate: u32,
    source_channels: u16,
    source_samples: u64,
    tags: Vec<(String, String)>,
}

#[derive(Debug, Deserialize, Serialize)]
struct SegmentFields {
    n_samples: u32,
    stride: u32,
    n_frames: u32,
}

#[derive(Debug, Deserialize, Serialize)]
struct CodebookFields {
    size: u32,
    stride: u32,
}

/// Fields that are texts; the others are JSON where metadata can hold texts alone.
const TEXTS: [&str; 3] = ["family", "model", "weights_sha256"];

impl Metadata {
    pub(super) fn new(header: &TokenHeader, totals: Totals) -> Self {
        let codebooks = header.layout.codebooks().iter();
        Self {
            family: header.family.clone(),
            model: header.model.clone(),
            weights_sha256: header.weights.to_string(),
            sample_rate: header.audio.sample_rate,
            channels: header.audio.channels,
            hop_length: header.hop_length,
            segment: header.segment.map(|Segment { n_samples, stride, n_frames }| SegmentFields {
                n_samples,
                stride,
                n_frames,
            }),
            codebooks: codebooks
                .map(|codebook| CodebookFields { size: codebook.size, stride: codebook.stride })
                .collect(),
            n_codebooks_total: header.n_codebooks_total,
            scale_frames: header.layout.scale_frames(),
            start_trim: header.start_trim,
            n_samples: totals.n_samples,
            source_sample_rate: header.source.sample_rate,
            source_channels: header.source.channels,
            source_samples: totals.source_samples,
            tags: header.tags.clone(),
        }
    }

    /// One text per field.
    pub(super) fn to_texts(&self) -> Map<String, Value> {
        let fields = serde_json::to_value(self).ok();
        let fields = fields.and_then(|fields| fields.as_object().cloned()).unwrap_or_default();
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        fields.into_iter().map(|(key, value)| (key, text(value).into())).collect()
    }

    /// What [`Metadata::to_texts`] gave; `None` when it is something else.
    pub(super) fn from_texts(texts: &Map<String, Value>) -> Option<Self> {
        let field = |(key, value): (&String, &Value)| {
            let parsed = || value.as_str().and_then(|text| serde_json::from_str(text).ok());
            // What others put there besides is passed over.
            let parsed = if TEXTS.contains(&key.as_str()) { None } else { parsed() };
            (key.clone(), parsed.unwrap_or_else(|| value.clone()))
        };
        serde_json::from_value(Value::Object(texts.iter().map(field).collect())).ok()
    }

    /// The token file of codes with this metadata.
    ///
    /// # Errors
    /// [`Error::Format`] when it says what no token file can, [`Error::Core`] when the codes do not fit it.
    pub(super) fn with_codes(
        self,
        format: &'static str,
        rows: Vec<Vec<u32>>,
        scales: Vec<f32>,
    ) -> Result<TokenArrays> {
        let bad = |what| Error::Format { format, what, offset: 0 };
        let codebooks = self.codebooks.iter();
        let codebooks =
            codebooks.map(|codebook| CodebookSpec { size: codebook.size, stride: codebook.stride });
        let mut layout = CodeLayout::new(codebooks.collect())?;
        if let Some(scale_frames) = self.scale_frames {
            layout = layout.with_scales(scale_frames)?;
        }
        let segment = self.segment.map(|SegmentFields { n_samples, stride, n_frames }| Segment {
            n_samples,
            stride,
            n_frames,
        });
        let totals = Totals { n_samples: self.n_samples, source_samples: self.source_samples };
        let mut header = TokenHeader {
            family: self.family,
            model: self.model,
            weights: self.weights_sha256.parse().map_err(|_| bad("its weights_sha256 is none"))?,
            audio: AudioSpec { sample_rate: self.sample_rate, channels: self.channels },
            hop_length: self.hop_length,
            segment,
            layout: layout.clone(),
            n_codebooks_total: self.n_codebooks_total,
            source: AudioSpec { sample_rate: self.source_sample_rate, channels: self.source_channels },
            start_trim: self.start_trim,
            totals: Some(totals),
            packet_frames: 0,
            tags: self.tags,
        };
        header.packet_frames = header.default_packet_frames();
        header.validate().map_err(|_| bad("its metadata says what no token file can"))?;
        let codes = Codes::with_scales(layout, rows, scales)?;
        if header.samples_in(codes.n_frames() as u64) < header.start_trim.saturating_add(totals.n_samples) {
            return Err(bad("its metadata promises more samples than its codes stand for"));
        }
        Ok(TokenArrays { header, totals, codes })
    }
}
