//! Model cards: what a published codec is, where its weights come from, and under which licence.
//!
//! The cards of the folder `models` are part of the library.
//!
//! ```
//! use codec_io::card;
//! let lyra = card::find("Lyra").ok_or("no such card")?;
//! assert_eq!(lyra.name, "lyra-v2");
//! assert_eq!(lyra.licence.weights.as_deref(), Some("Apache-2.0"));
//! assert_eq!(card::suggest("encodec_24kz"), Some("encodec_24khz"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::tokens::WeightsHash;
use codec_core::{AudioSpec, CodeLayout, CodebookSpec, CodecInfo, Delays, Ratio};
use serde::{Deserialize, Deserializer};
use std::sync::LazyLock;

/// Names that differ from a known one by more than this share of their length are no misspelling.
const MAX_TYPOS_SHARE: usize = 3;

/// Why a card was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// The text is no card: broken TOML, or fields that are missing, unknown or of another type.
    #[error("model card: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// A field has a value that no codec has.
    #[error("model card {card}: {field} is not valid")]
    Field {
        /// The card's name.
        card: String,
        /// The field.
        field: &'static str,
    },
    /// The codebooks make no layout.
    #[error("model card {card}: {source}")]
    Layout {
        /// The card's name.
        card: String,
        /// What is wrong with them.
        source: codec_core::Error,
    },
}

/// What is known about a published codec.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// The name, which token files carry.
    pub name: String,
    /// Other names for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The codec's family.
    pub family: String,
    /// One sentence: what it is for.
    pub description: String,
    /// What a user has to know beyond that.
    pub notes: Option<String>,
    /// Whether the weights are part of the programs of this workspace, and nothing has to be fetched.
    #[serde(default)]
    pub embedded: bool,
    /// Where the weights were published.
    pub source: CardSource,
    /// The files that make the model.
    pub files: Vec<CardFile>,
    /// Samples per second of the audio that it codes.
    pub sample_rate: u32,
    /// Channels of that audio.
    pub channels: u16,
    /// Samples per frame.
    pub hop_length: u32,
    /// Codebooks, coarse to fine.
    pub codebooks: Vec<CardCodebooks>,
    /// Those of its bitrates that its authors speak of, in bit/s, for a measurement to choose from; the last one
    /// uses all codebooks. All that it can have are [`ModelCard::possible_bitrates`].
    pub bitrates: Vec<f64>,
    /// The configuration of the network, where the published files do not carry it.
    pub config: Option<toml::Table>,
    /// The licences.
    pub licence: CardLicence,
    /// The publication to cite.
    pub citation: Option<String>,
}

/// Where a model was published.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardSource {
    /// Page of the repository, `https://HOST/OWNER/NAME`.
    pub url: String,
    /// Tag or commit of the repository that holds the files.
    pub revision: Option<String>,
    /// Folder of the files in the repository.
    pub folder: Option<String>,
    /// Tag of the GitHub release that the files are attached to.
    pub release: Option<String>,
}

/// Where a file can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of a repository on the Hugging Face Hub.
    Hub {
        /// `OWNER/NAME`
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path of the file in the repository.
        path: String,
    },
    /// Any other place.
    Url(String),
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardFile {
    /// Name of the file.
    pub name: String,
    /// Its SHA-256, where it is known.
    #[serde(default, deserialize_with = "hash")]
    pub sha256: Option<WeightsHash>,
    /// The first hexadecimal digits of its SHA-256, where no more is known.
    pub sha256_prefix: Option<String>,
    /// Its length in bytes, where it is known.
    pub size: Option<u64>,
    /// Where it can be fetched, where that does not follow from the source.
    pub url: Option<String>,
}

/// Several codebooks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardCodebooks {
    /// How many.
    pub count: usize,
    /// Entries of each.
    pub size: u32,
    /// Frames per code.
    #[serde(default = "one")]
    pub stride: u32,
}

/// Licences of a model, as its publishers state them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardLicence {
    /// SPDX name of the licence of the published code.
    pub code: String,
    /// SPDX name of the licence of the weights; `None` when none is stated.
    pub weights: Option<String>,
    /// Whether the weights may be used only without commercial advantage; `None` when that is
    /// not known.
    pub non_commercial: Option<bool>,
    /// What there is to say about it.
    pub notes: Option<String>,
}

impl ModelCard {
    /// Reads a card.
    ///
    /// # Errors
    /// [`CardError`] says which field is wrong.
    pub fn parse(text: &str) -> Result<Self, CardError> {
        let card: Self = toml::from_str(text).map_err(Box::new)?;
        let faults = [
            ("name", card.name.is_empty()),
            ("family", card.family.is_empty()),
            ("files", card.files.is_empty() || card.files.iter().any(|file| !is_file_name(&file.name))),
            ("sample_rate", card.sample_rate == 0),
            ("channels", card.channels == 0),
            ("hop_length", card.hop_length == 0),
            ("sha256_prefix", card.files.iter().any(|file| !file.has_plain_prefix())),
            ("source", !card.embedded && card.files.iter().any(|file| card.origin(file).is_none())),
        ];
        if let Some((field, _)) = faults.into_iter().find(|(_, is_wrong)| *is_wrong) {
            return Err(CardError::Field { card: card.name, field });
        }
        if let Err(source) = card.layout() {
            return Err(CardError::Layout { card: card.name, source });
        }
        Ok(card)
    }

    /// The codebooks as a layout.
    ///
    /// # Errors
    /// As [`CodeLayout::new`]; never for a card that was parsed.
    pub fn layout(&self) -> codec_core::Result<CodeLayout> {
        let expand = |group: &CardCodebooks| {
            let codebook = CodebookSpec { size: group.size, stride: group.stride };
            // One more than a layout may have is enough to be refused.
            std::iter::repeat_n(codebook, group.count.min(codec_core::codes::MAX_CODEBOOKS + 1))
        };
        CodeLayout::new(self.codebooks.iter().flat_map(expand).collect())
    }

    /// Where a file of the card can be fetched; `None` when the card does not say.
    pub fn origin(&self, file: &CardFile) -> Option<Origin> {
        if let Some(url) = &file.url {
            return url.starts_with("https://").then(|| Origin::Url(url.clone()));
        }
        let (host, repository) = self.source.url.strip_prefix("https://")?.split_once('/')?;
        let parts: Vec<&str> = repository.split('/').collect();
        let folder = self.source.folder.as_ref().map(|folder| format!("{folder}/")).unwrap_or_default();
        let path = format!("{folder}{}", file.name);
        match (host, parts.as_slice(), &self.source.revision, &self.source.release) {
            ("huggingface.co", [owner, name], revision, None) => Some(Origin::Hub {
                repository: format!("{owner}/{name}"),
                revision: revision.clone().unwrap_or_else(|| "main".to_owned()),
                path,
            }),
            ("github.com", [owner, name], Some(revision), None) => {
                Some(Origin::Url(format!("https://github.com/{owner}/{name}/raw/{revision}/{path}")))
            }
            ("github.com", [owner, name], _, Some(tag)) => {
                let releases = format!("https://github.com/{owner}/{name}/releases");
                Some(Origin::Url(format!("{releases}/download/{tag}/{}", file.name)))
            }
            _ => None,
        }
    }

    /// Whether the address of every file names one revision, so that the same file lies there for good; a branch
    /// goes on.
    pub fn is_pinned(&self) -> bool {
        let source = &self.source;
        let has_revision = source.revision.is_some() || source.release.is_some();
        self.embedded || self.files.iter().all(|file| file.url.is_some() || has_revision)
    }

    /// The configuration of the network as JSON, where the card has one.
    pub fn config_json(&self) -> Option<String> {
        serde_json::to_string(self.config.as_ref()?).ok()
    }

    /// Frames per second.
    pub fn frame_rate(&self) -> Option<Ratio> {
        Ratio::new(self.sample_rate.into(), self.hop_length.into())
    }

    /// The bitrates that it can have, in bit/s: those of its first codebook, of its first two, and so on to all.
    ///
    /// # Errors
    /// As [`CodecInfo::bitrate`]; never for a card of the library.
    pub fn possible_bitrates(&self) -> codec_core::Result<Vec<Ratio>> {
        let info = CodecInfo {
            model: self.name.clone(),
            family: "",
            audio: AudioSpec { sample_rate: self.sample_rate, channels: self.channels },
            hop_length: self.hop_length,
            delays: Delays::default(),
            segment: None,
            layout: self.layout()?,
        };
        (1..=info.layout.n_codebooks()).map(|n| info.bitrate(n)).collect()
    }

    /// Bytes of all files, where all lengths are known.
    pub fn size(&self) -> Option<u64> {
        self.files.iter().all(|file| file.size.is_some()).then(|| self.known_size())
    }

    /// Bytes of the files whose lengths are known.
    pub fn known_size(&self) -> u64 {
        self.files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }
}

impl CardFile {
    /// Whether a file of this SHA-256 is the one that the card means, as far as the card knows.
    pub fn allows_sha256(&self, sha256: &WeightsHash) -> bool {
        let has_prefix = |prefix: &String| sha256.to_string().starts_with(prefix.as_str());
        self.sha256.as_ref().is_none_or(|known| known == sha256)
            && self.sha256_prefix.as_ref().is_none_or(has_prefix)
    }

    /// Digits that a hash can start with, as it is printed.
    fn has_plain_prefix(&self) -> bool {
        let is_digit = |digit: char| digit.is_ascii_hexdigit() && !digit.is_ascii_uppercase();
        self.sha256_prefix.as_ref().is_none_or(|prefix| !prefix.is_empty() && prefix.chars().all(is_digit))
    }
}

/// All cards of the library.
pub fn cards() -> &'static [ModelCard] {
    static CARDS: LazyLock<Vec<ModelCard>> = LazyLock::new(|| {
        // A test parses each of them, so none is left out.
        TEXTS.iter().filter_map(|text| ModelCard::parse(text).ok()).collect()
    });
    &CARDS
}

/// The card of that name or alias, whatever its case.
pub fn find(name: &str) -> Option<&'static ModelCard> {
    cards().iter().find(|card| card.names().any(|known| known.eq_ignore_ascii_case(name)))
}

/// The known name that is closest to a misspelt one, if any is close.
pub fn suggest(name: &str) -> Option<&'static str> {
    // Longer inputs are no names; the distance takes time with the square of the length.
    let name: String = name.chars().take(100).flat_map(char::to_lowercase).collect();
    let names = cards().iter().flat_map(ModelCard::names);
    let closest = names.map(|known| (edit_distance(&name, known), known)).min()?;
    (closest.0 <= name.chars().count() / MAX_TYPOS_SHARE).then_some(closest.1)
}

// `TEXTS`, the files of the folder `models`, as the build script lists them.
include!(concat!(env!("OUT_DIR"), "/cards.rs"));

fn one() -> u32 {
    1
}

fn hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WeightsHash>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// A card must not lead out of the folder that its files are looked for in.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\'])
}

/// Characters to insert, delete, replace or swap with their neighbour to make one text the other.
fn edit_distance(left: &str, right: &str) -> usize {
    let [left, right] = [left, right].map(|text| text.chars().collect::<Vec<_>>());
    // Entry [i][j] is the distance of the first i characters from the first j.
    let mut table = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                let best = replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                let is_swap = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
                if is_swap { best.min(table[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    table[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_of_the_folder_is_embedded_and_valid() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let card = ModelCard::parse(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                assert_eq!(path.file_stem().unwrap(), card.name.as_str(), "a card is named after its model");
                assert_eq!(find(&card.name), Some(&card), "not embedded");
                names.push(card.name);
            }
        }
        assert_eq!(names.len(), cards().len());
        let all: Vec<&str> = cards().iter().flat_map(ModelCard::names).collect();
        let different: std::collections::HashSet<&&str> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "a name is used twice");
    }

    #[test]
    fn published_bitrates_are_those_of_whole_codebooks() {
        for card in cards() {
            let possible: Vec<f64> =
                card.possible_bitrates().unwrap().into_iter().map(Ratio::to_f64).collect();
            for bitrate in &card.bitrates {
                assert!(possible.contains(bitrate), "{}: {bitrate} is none of {possible:?}", card.name);
            }
            assert_eq!(
                card.bitrates.last(),
                possible.last(),
                "{}: the highest uses all codebooks",
                card.name
            );
        }
    }

    #[test]
    fn sizes_are_added_up_as_far_as_they_are_known() {
        let mut lyra = find("lyra-v2").unwrap().clone();
        assert_eq!((lyra.size(), lyra.known_size()), (Some(3_583_372), 3_583_372));
        lyra.files[1].size = None;
        assert_eq!((lyra.size(), lyra.known_size()), (None, 3_254_360));
    }

    #[test]
    fn the_origin_of_a_file_follows_from_its_source() {
        let lyra = find("lyra-v2").unwrap();
        let url = "https://github.com/google/lyra/raw/v1.3.2/lyra/model_coeffs/soundstream_encoder.tflite";
        assert_eq!(lyra.origin(&lyra.files[0]), Some(Origin::Url(url.into())));
        let encodec = find("encodec_24khz").unwrap();
        let Some(Origin::Hub { repository, path, .. }) = encodec.origin(&encodec.files[0]) else {
            panic!("not on the hub");
        };
        assert_eq!((repository.as_str(), path.as_str()), ("facebook/encodec_24khz", "config.json"));
        let pinned = ["lyra-v2", "dac_44khz-original", "encodec_24khz-original", "codec-16khz", "bigcodec"];
        let is_pinned = pinned.map(|name| find(name).unwrap().is_pinned());
        assert_eq!(is_pinned, [true, true, true, true, false]);
    }

    #[test]
    fn misspelt_names_lead_to_known_ones() {
        assert_eq!(suggest("lyra-v3"), Some("lyra-v2"));
        assert_eq!(suggest("ENCODEC_42khz"), Some("encodec_24khz"));
        assert_eq!(suggest("musicegn"), Some("musicgen"));
        assert_eq!(suggest("opus"), None);
        assert_eq!(suggest(""), None);
        assert_eq!(find("opus"), None);
        let swapped = [("", ""), ("ab", "ba"), ("kitten", "sitting"), ("abc", "")];
        assert_eq!(swapped.map(|(l, r)| edit_distance(l, r)), [0, 1, 3, 3]);
    }

    #[test]
    fn cards_with_a_mistake_are_refused_by_field() {
        let good = TEXTS.iter().find(|text| text.contains("name = \"lyra-v2\"")).unwrap();
        let refused = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            ModelCard::parse(&good.replacen(from, to, 1)).unwrap_err().to_string()
        };
        let cases = [
            ("family = ", "famly = ", "famly"),
            ("sample_rate = 16000", "sample_rate = 0", "sample_rate is not valid"),
            ("sample_rate = 16000", "sample_rate = -1", "sample_rate"),
            ("\"quantizer.tflite\"", "\"../quantizer.tflite\"", "files is not valid"),
            ("\"841ee05989", "\"841ee0598", "64 hexadecimal digits"),
            ("count = 46", "count = 9999", "codebooks"),
            ("[licence]", "[license]", "license"),
            ("https://github.com/google/lyra", "https://example.org/lyra", "source is not valid"),
            ("revision = \"v1.3.2\"", "", "source is not valid"),
            ("size = 329012", "sha256_prefix = \"84X\"", "sha256_prefix is not valid"),
        ];
        for (from, to, expected) in cases {
            let message = refused(from, to);
            assert!(message.contains(expected), "{to}: {message}");
        }
    }
}
