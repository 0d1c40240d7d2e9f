//! Scores of many clips: by system and metric, with those of judges that live elsewhere.

use crate::error::{Error, Result};
use crate::metric::Better;
use crate::stats::{PairedDifference, Summary, paired_difference, summarize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// Scores by clip, system (a codec at a bitrate, say) and metric, and the kind of each clip.
///
/// ```
/// use codec_metrics::Scores;
/// let mut scores = Scores::default();
/// for (clip, first, second) in [("a", 3.1, 2.9), ("b", 3.5, 3.4), ("c", 2.2, 2.1)] {
///     scores.insert(clip, "first", "pesq_wb", first)?;
///     scores.insert(clip, "second", "pesq_wb", second)?;
///     scores.set_kind(clip, "speech");
/// }
/// // What a neural judge said, from its own program.
/// let table = "clip,system,utmos\na,first,4.0\nb,first,4.2\n";
/// scores.merge_csv(table.as_bytes(), b',', "first", str::to_owned)?;
///
/// let mean = scores.summarize("utmos", "first", None, 0)?.mean;
/// assert!((mean - 4.1).abs() < 1e-12);
/// let difference = scores.compare("pesq_wb", "first", "second", Some("speech"), 0)?;
/// assert_eq!((difference.n_higher, difference.is_significant()), (3, true));
/// # Ok::<(), codec_metrics::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// By metric, system and clip.
    values: BTreeMap<(String, String), BTreeMap<String, f64>>,
    kinds: BTreeMap<String, String>,
    /// Of metrics whose table said it.
    better: BTreeMap<String, Better>,
}

/// What a table brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Scores taken.
    pub n_scores: usize,
    /// Empty cells.
    pub n_missing: usize,
    /// Clips that have no other score: perhaps misspelt.
    pub unknown_clips: BTreeSet<String>,
}

impl Scores {
    /// Adds a score.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is not finite, [`Error::Duplicate`] when there is one already.
    pub fn insert(&mut self, clip: &str, system: &str, metric: &str, score: f64) -> Result<()> {
        if !score.is_finite() {
            return Err(Error::Argument { what: "a score", needed: "finite", actual: score });
        }
        let clips = self.values.entry((metric.to_owned(), system.to_owned())).or_default();
        if clips.contains_key(clip) {
            let (clip, system, metric) = (clip.to_owned(), system.to_owned(), metric.to_owned());
            return Err(Error::Duplicate { clip, system, metric });
        }
        clips.insert(clip.to_owned(), score);
        Ok(())
    }

    /// Says what kind of sound a clip is: speech, music, or another word.
    pub fn set_kind(&mut self, clip: &str, kind: &str) {
        self.kinds.insert(clip.to_owned(), kind.to_owned());
    }

    /// Keeps the scores of which `keep` approves, by clip and system.
    pub fn retain(&mut self, keep: impl Fn(&str, &str) -> bool) {
        for ((_, system), clips) in &mut self.values {
            clips.retain(|clip, _| keep(clip, system));
        }
        self.values.retain(|_, clips| !clips.is_empty());
    }

    /// Which values of a metric from a table are good, if the table's header says it.
    pub fn better(&self, metric: &str) -> Option<Better> {
        self.better.get(metric).copied()
    }

    /// The metrics that have scores, by name.
    pub fn metrics(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.values.keys().map(|(metric, _)| metric.as_str()).collect();
        names.into_iter().collect()
    }

    /// The systems that have scores, by name.
    pub fn systems(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.values.keys().map(|(_, system)| system.as_str()).collect();
        names.into_iter().collect()
    }

    /// The kinds of clips that have scores, by name.
    pub fn kinds(&self) -> Vec<&str> {
        let scored = |clip: &String| self.values.values().any(|clips| clips.contains_key(clip));
        let kinds = self.kinds.iter().filter(|(clip, _)| scored(clip)).map(|(_, kind)| kind.as_str());
        kinds.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The clips that have scores, by name.
    pub fn clips(&self) -> Vec<&str> {
        let names: BTreeSet<&str> =
            self.values.values().flat_map(|clips| clips.keys()).map(String::as_str).collect();
        names.into_iter().collect()
    }

    /// The kind of each clip of which one is known.
    pub fn kinds_of_clips(&self) -> impl Iterator<Item = (&str, &str)> {
        self.kinds.iter().map(|(clip, kind)| (clip.as_str(), kind.as_str()))
    }

    /// The clips with a score, of one kind or all, in order of their names.
    pub fn of(&self, metric: &str, system: &str, kind: Option<&str>) -> Vec<(&str, f64)> {
        let clips = self.values.get(&(metric.to_owned(), system.to_owned()));
        let is_kind =
            |clip: &str| kind.is_none_or(|kind| self.kinds.get(clip).is_some_and(|own| own == kind));
        let scores = clips.into_iter().flatten().map(|(clip, score)| (clip.as_str(), *score));
        scores.filter(|(clip, _)| is_kind(clip)).collect()
    }

    /// The mean over clips of one kind, or all, with its interval; see [`summarize`](crate::stats::summarize).
    ///
    /// # Errors
    /// [`Error::TooShort`] when there is no score.
    pub fn summarize(&self, metric: &str, system: &str, kind: Option<&str>, seed: u64) -> Result<Summary> {
        let scores: Vec<f64> = self.of(metric, system, kind).into_iter().map(|(_, score)| score).collect();
        summarize(&scores, seed)
    }

    /// How two systems differ on the clips that both have; see
    /// [`paired_difference`](crate::stats::paired_difference).
    ///
    /// # Errors
    /// [`Error::TooShort`] when no clip has both scores.
    pub fn compare(
        &self,
        metric: &str,
        first: &str,
        second: &str,
        kind: Option<&str>,
        seed: u64,
    ) -> Result<PairedDifference> {
        let others: BTreeMap<&str, f64> = self.of(metric, second, kind).into_iter().collect();
        let first = self.of(metric, first, kind).into_iter();
        let pairs: Vec<(f64, f64)> =
            first.filter_map(|(clip, score)| Some((score, *others.get(clip)?))).collect();
        paired_difference(&pairs, seed)
    }

    /// Adds a table of scores from elsewhere: one row per clip, one column per metric.
    ///
    /// The first line names the columns. `clip` (or `file`) is needed, `system` and `kind` may be there, every
    /// other column is a metric. `NAME:lower` or `NAME:higher` calls it `NAME` and says which values are good.
    /// Without a column `system` the rows belong to `system`. Empty cells have no score. `delimiter` is a comma or a
    /// tab; `clip_name` turns the table's names of clips into ours.
    ///
    /// # Errors
    /// [`Error::Table`] with the line of what is not a number, is there twice, or is no table, or for a direction that
    /// is none or not that of an earlier table; nothing is added then.
    pub fn merge_csv(
        &mut self,
        table: impl Read,
        delimiter: u8,
        system: &str,
        clip_name: impl Fn(&str) -> String,
    ) -> Result<Merged> {
        let table = Table::read(table, delimiter)?;
        let (system_idx, kind_idx) = (table.column("system"), table.column("kind"));
        let clip_idx = table.clip()?;
        let known: BTreeSet<String> = self.values.values().flat_map(|clips| clips.keys().cloned()).collect();
        let (mut scores, mut merged) = (self.clone(), Merged::default());
        let mut metrics = Vec::new();
        for column in &table.columns {
            let (metric, better) = direction(column)?;
            if let Some(better) = better
                && scores.better.insert(metric.to_owned(), better).is_some_and(|other| other != better)
            {
                let reason = format!("{column}: another table says the opposite");
                return Err(Error::Table { line: 1, reason });
            }
            metrics.push(metric);
        }
        for (line, row) in &table.rows {
            let at_line = |reason: String| Error::Table { line: *line, reason };
            let clip = &clip_name(&row[clip_idx]);
            let system = system_idx.map_or(system, |idx| row[idx].as_str());
            if !known.contains(clip) {
                merged.unknown_clips.insert(clip.clone());
            }
            if let Some(kind) = kind_idx.map(|idx| &row[idx]).filter(|kind| !kind.is_empty()) {
                scores.set_kind(clip, kind);
            }
            for (column_idx, cell) in row.iter().enumerate() {
                if [Some(clip_idx), system_idx, kind_idx].contains(&Some(column_idx)) {
                    continue;
                }
                let metric = metrics[column_idx];
                if cell.is_empty() {
                    merged.n_missing += 1;
                    continue;
                }
                let score: f64 =
                    cell.parse().map_err(|_| at_line(format!("{metric}: `{cell}` is not a number")))?;
                scores.insert(clip, system, metric, score).map_err(|error| at_line(error.to_string()))?;
                merged.n_scores += 1;
            }
        }
        *self = scores;
        Ok(merged)
    }

    /// Takes the kinds of clips from a table with the columns `clip` (or `file`) and `kind`; others may be there.
    /// Gives the number of clips.
    ///
    /// # Errors
    /// [`Error::Table`] when a column is missing or it is no table.
    pub fn merge_kinds(
        &mut self,
        table: impl Read,
        delimiter: u8,
        clip_name: impl Fn(&str) -> String,
    ) -> Result<usize> {
        let table = Table::read(table, delimiter)?;
        let clip_idx = table.clip()?;
        let missing = || Error::Table { line: 1, reason: "no column `kind`".to_owned() };
        let kind_idx = table.column("kind").ok_or_else(missing)?;
        for (_, row) in &table.rows {
            self.set_kind(&clip_name(&row[clip_idx]), &row[kind_idx]);
        }
        Ok(table.rows.len())
    }
}

/// What separates the cells of a table of scores, kinds or clips: a tab where the name ends in `.tsv`, else a comma.
pub fn table_delimiter(path: &Path) -> u8 {
    let is_tabs = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tsv"));
    if is_tabs { b'\t' } else { b',' }
}

/// A column's metric, and which of its values are good where the header says it.
fn direction(column: &str) -> Result<(&str, Option<Better>)> {
    match column.rsplit_once(':') {
        None => Ok((column, None)),
        Some((metric, "lower")) => Ok((metric, Some(Better::Lower))),
        Some((metric, "higher")) => Ok((metric, Some(Better::Higher))),
        Some((_, other)) => {
            let reason = format!("{column}: a colon is followed by `lower` or `higher`, not `{other}`");
            Err(Error::Table { line: 1, reason })
        }
    }
}

/// Our name of a clip that a table calls `written`, with or without one of the file name `endings`: the one whose
/// path shares the most with it from its end on, if one alone does.
///
/// ```
/// use std::collections::BTreeSet;
/// let names = BTreeSet::from(["speech/a", "speech/b", "music/a"]);
/// let ours = |written| codec_metrics::clip_name(written, &names, &["wav"]);
/// assert_eq!(ours("out/speech/a.wav"), "speech/a");
/// assert_eq!(ours("b.WAV"), "speech/b");
/// assert_eq!(ours("a.wav"), "a", "could be either");
/// ```
pub fn clip_name(written: &str, names: &BTreeSet<&str>, endings: &[&str]) -> String {
    let written = written.replace('\\', "/");
    let without_ending = match written.rsplit_once('.') {
        Some((stem, ending)) if endings.contains(&ending.to_ascii_lowercase().as_str()) => stem,
        _ => &written,
    };
    let n_shared = |name: &str| {
        let (ours, theirs) = (name.rsplit('/'), without_ending.rsplit('/'));
        ours.zip(theirs).take_while(|(ours, theirs)| ours == theirs).count()
    };
    let most = names.iter().map(|name| n_shared(name)).max().unwrap_or(0);
    let mut best = names.iter().filter(|name| n_shared(name) == most);
    match (most, best.next(), best.next()) {
        (1.., Some(name), None) => (*name).to_owned(),
        _ => without_ending.to_owned(),
    }
}

/// A table in memory, every row with a cell per column.
struct Table {
    columns: Vec<String>,
    /// With the line of each.
    rows: Vec<(u64, Vec<String>)>,
}

impl Table {
    fn read(table: impl Read, delimiter: u8) -> Result<Self> {
        let mut reader =
            csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(table);
        let broken = |error: csv::Error| Error::Table {
            line: error.position().map_or(1, csv::Position::line),
            reason: error.to_string(),
        };
        let columns: Vec<String> = reader
            .headers()
            .map_err(broken)?
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').to_owned())
            .collect();
        let mut names = BTreeSet::new();
        if let Some(twice) = columns.iter().find(|name| !names.insert(name.as_str())) {
            return Err(Error::Table { line: 1, reason: format!("two columns `{twice}`") });
        }
        let rows = reader.records().map(|record| {
            let record = record.map_err(broken)?;
            let line = record.position().map_or(1, csv::Position::line);
            Ok((line, record.iter().map(str::to_owned).collect()))
        });
        let rows = rows.collect::<Result<_>>()?;
        Ok(Self { columns, rows })
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.eq_ignore_ascii_case(name))
    }

    fn clip(&self) -> Result<usize> {
        let missing = || Error::Table { line: 1, reason: "no column `clip` or `file`".to_owned() };
        self.column("clip").or(self.column("file")).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores() -> Scores {
        let mut scores = Scores::default();
        for (clip, kind, value) in [("a", "speech", 1.0), ("b", "speech", 2.0), ("c", "music", 6.0)] {
            scores.insert(clip, "x", "m", value).unwrap();
            scores.set_kind(clip, kind);
        }
        scores
    }

    #[test]
    fn kinds_are_broken_down() {
        let scores = scores();
        let mean = |kind| scores.summarize("m", "x", kind, 0).unwrap().mean;
        assert_eq!((mean(None), mean(Some("speech")), mean(Some("music"))), (3.0, 1.5, 6.0));
        assert_eq!(scores.kinds(), ["music", "speech"]);
        assert!(matches!(scores.summarize("m", "x", Some("other"), 0), Err(Error::TooShort { .. })));
    }

    #[test]
    fn tables_are_merged() {
        let mut scores = scores();
        let table = "\u{feff}file, UTMOS ,wer\r\na,4.5,\r\nd,3.5,0.1\r\n";
        let merged = scores.merge_csv(table.as_bytes(), b',', "x", str::to_owned).unwrap();
        assert_eq!((merged.n_scores, merged.n_missing), (3, 1));
        assert_eq!(merged.unknown_clips, BTreeSet::from(["d".to_owned()]));
        assert_eq!(scores.of("UTMOS", "x", None), [("a", 4.5), ("d", 3.5)]);
        assert_eq!(scores.metrics(), ["UTMOS", "m", "wer"]);
        let tabs = "clip\tsystem\tkind\tsim\nc\ty\tsong\t0.5\n";
        scores.merge_csv(tabs.as_bytes(), b'\t', "x", str::to_owned).unwrap();
        assert_eq!(scores.systems(), ["x", "y"]);
        assert_eq!(scores.of("m", "x", Some("song")), [("c", 6.0)]);
        assert_eq!(
            scores.merge_kinds("file\tsource\tkind\na\tme\tnoise\n".as_bytes(), b'\t', str::to_owned),
            Ok(1)
        );
        assert_eq!(scores.of("m", "x", Some("noise")), [("a", 1.0)]);
    }

    #[test]
    fn headers_say_which_values_are_good() {
        let mut scores = scores();
        let table = "clip,wer:lower,mos:higher,sim\na,0.1,4,0.9\n";
        scores.merge_csv(table.as_bytes(), b',', "x", str::to_owned).unwrap();
        assert_eq!(scores.metrics(), ["m", "mos", "sim", "wer"]);
        let found = ["wer", "mos", "sim"].map(|metric| scores.better(metric));
        assert_eq!(found, [Some(Better::Lower), Some(Better::Higher), None]);
        let opposite = scores.merge_csv("clip,wer:higher\nb,1\n".as_bytes(), b',', "x", str::to_owned);
        assert!(matches!(opposite, Err(Error::Table { line: 1, .. })));
    }

    #[test]
    fn what_is_not_wanted_goes() {
        let mut scores = scores();
        scores.insert("a", "y", "m", 3.0).unwrap();
        scores.retain(|clip, system| clip != "b" && system == "x");
        assert_eq!(scores.systems(), ["x"]);
        assert_eq!(scores.of("m", "x", None), [("a", 1.0), ("c", 6.0)]);
    }

    #[test]
    fn endings_tell_tables_apart() {
        let of = |name: &str| table_delimiter(Path::new(name));
        assert_eq!([of("a.tsv"), of("a.TSV"), of("a.csv"), of("a")], [b'\t', b'\t', b',', b',']);
    }

    #[test]
    fn faults_have_their_line_and_change_nothing() {
        let before = scores();
        let fault = |table: &str| {
            let mut scores = before.clone();
            let Err(Error::Table { line, reason }) =
                scores.merge_csv(table.as_bytes(), b',', "x", str::to_owned)
            else {
                panic!("{table:?} was taken");
            };
            assert_eq!(scores, before);
            (line, reason)
        };
        assert_eq!(fault("name,utmos\na,1\n"), (1, "no column `clip` or `file`".to_owned()));
        assert_eq!(fault("clip,utmos\na,1\nb,good\n"), (3, "utmos: `good` is not a number".to_owned()));
        assert_eq!(fault("clip,utmos\na,1\nb,inf\n").0, 3);
        assert_eq!(fault("clip,m\na,1\n"), (2, "two scores for m of a by x".to_owned()));
        assert_eq!(fault("clip,u,u\na,1,2\n"), (1, "two columns `u`".to_owned()));
        assert_eq!(fault("clip,u\na,1,2\n").0, 2);
        assert_eq!(fault("clip,u:down\na,1\n").0, 1);
        assert_eq!(fault("").0, 1);
        assert_eq!(
            before.clone().merge_kinds("clip\na\n".as_bytes(), b',', str::to_owned),
            Err(Error::Table { line: 1, reason: "no column `kind`".to_owned() })
        );
    }

    #[test]
    fn tables_may_name_clips_by_path() {
        let names = BTreeSet::from(["a", "deep/b", "c", "deep/c", "deep/d/e", "other/e"]);
        for (written, name) in [
            ("a", "a"),
            ("a.flac", "a"),
            ("corpus/dev/a.WAV", "a"),
            ("x\\deep\\b.mp3", "deep/b"),
            ("b", "deep/b"),
            ("c", "c"),
            ("corpus/deep/c.wav", "deep/c"),
            ("d/e", "deep/d/e"),
            // Which of the two?
            ("e.wav", "e"),
            ("take.2", "take.2"),
        ] {
            assert_eq!(clip_name(written, &names, &["flac", "mp3", "wav"]), name, "{written}");
        }
    }
}
