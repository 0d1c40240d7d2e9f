//! Token files on disk: the documented reader in Python reads them, and they appear only when complete.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod tokens_support;

use codec_core::{CodeLayout, Codes};
use codec_io::atomic::AtomicFile;
use codec_io::tokens::{TokenHeader, TokenReader, TokenWriter};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use tokens_support::{codes, file, header, segmented_header, strided_layout, totals};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// What the script prints for a file.
fn expected(header: &TokenHeader, codes: &Codes) -> String {
    let totals = totals(header, codes.n_frames());
    let segment = header.segment.map_or([0; 3], |s| [s.n_samples, s.stride, s.n_frames]);
    let codebooks: Vec<_> = header.layout.codebooks().iter().map(|c| (c.size, c.stride)).collect();
    let mut text = format!(
        "weights: {}\nn_samples: {}\nsource_samples: {}\nstart_trim: {}\nsample_rate: {}\nhop_length: {}\n\
         source_rate: {}\nchannels: {}\nsource_channels: {}\nn_codebooks: {}\nn_codebooks_total: {}\n\
         scale_frames: {}\npacket_frames: {}\nsegment_samples: {}\nsegment_stride: {}\nsegment_frames: {}\n\
         codebooks: {codebooks:?}\nfamily: {}\nmodel: {}\ntags: [('title', 'Grüße'), ('', '')]\nn_frames: {}\n",
        header.weights,
        totals.n_samples,
        totals.source_samples,
        header.start_trim,
        header.audio.sample_rate,
        header.hop_length,
        header.source.sample_rate,
        header.audio.channels,
        header.source.channels,
        header.layout.n_codebooks(),
        header.n_codebooks_total,
        header.layout.scale_frames().unwrap_or(0),
        header.packet_frames,
        segment[0],
        segment[1],
        segment[2],
        header.family,
        header.model,
        codes.n_frames(),
    );
    for row in codes.rows() {
        let row: Vec<String> = row.iter().map(u32::to_string).collect();
        writeln!(text, "{}", row.join(" ")).unwrap();
    }
    let hex = |scale: &f32| scale.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let scales: Vec<String> = codes.scales().iter().map(hex).collect();
    writeln!(text, "{}", scales.join(" ")).unwrap();
    text
}

#[test]
fn the_page_of_python_reads_what_we_write() {
    if Command::new("python3").arg("--version").output().is_err() {
        // Past the test harness, which keeps what passing tests print.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: python3 is not installed, so docs/read_tokens.py was not run"
        );
        return;
    }
    let plain = CodeLayout::uniform(2, 700).unwrap();
    let mut trimmed = header(strided_layout(), 3);
    trimmed.start_trim = 77;
    // The last frames end inside a packet, and where they can inside a block.
    let cases = [
        (trimmed, 8 * 20 + 4),
        (segmented_header(2), 150 * 3 + 7),
        (header(plain.clone(), 10), 55),
        (header(plain, 1), 0),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (case_idx, (header, n_frames)) in cases.into_iter().enumerate() {
        let codes = codes(&header.layout, n_frames, case_idx as u64);
        let path = folder.path().join(format!("{case_idx}.nac"));
        fs::write(&path, file(header.clone(), &codes)).unwrap();
        let run = Command::new("python3")
            .arg(format!("{DOCS}/read_tokens.py"))
            .arg(&path)
            .env("PYTHONIOENCODING", "utf-8")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .unwrap();
        assert!(run.status.success(), "case {case_idx}: {}", String::from_utf8_lossy(&run.stderr));
        assert_eq!(String::from_utf8(run.stdout).unwrap(), expected(&header, &codes), "case {case_idx}");
    }

    let codes = codes(&strided_layout(), 40, 9);
    let mut damaged = file(header(strided_layout(), 1), &codes);
    let at = tokens_support::offsets(&damaged)[2];
    damaged[at + 25] ^= 4;
    let path = folder.path().join("damaged.nac");
    fs::write(&path, damaged).unwrap();
    let run = Command::new("python3").arg(format!("{DOCS}/read_tokens.py")).arg(&path).output().unwrap();
    let message = String::from_utf8_lossy(&run.stderr);
    assert!(message.contains(&format!("damaged packet at byte {at}")), "{message}");
}

#[test]
fn the_page_holds_the_script_and_the_limits() {
    let [page, script] = ["token-format.md", "read_tokens.py"]
        .map(|name| fs::read_to_string(format!("{DOCS}/{name}")).unwrap());
    assert!(page.contains(&format!("```python\n{script}```")), "docs/token-format.md holds another script");
    assert!(script.lines().count() < 85, "the script is longer than a page");
    assert!(page.contains("at most 65536 |") && codec_io::tokens::MAX_HEADER_BYTES == 65_536);
    assert!(page.contains("at most 4096, UTF-8") && codec_io::tokens::MAX_TAG_VALUE_BYTES == 4096);
    assert!(page.contains("2^18 codes and scales") && codec_io::tokens::MAX_PACKET_VALUES == 1 << 18);
    assert!(page.contains("payload at most 2^20 bytes") && codec_io::tokens::MAX_PAYLOAD_BYTES == 1 << 20);
    assert!(page.contains("at most 2^40 frames") && codec_io::tokens::MAX_FRAMES == 1 << 40);
    assert!(page.contains("samples per frame, 1 to 2^20") && codec_io::tokens::MAX_HOP_LENGTH == 1 << 20);
    assert!(page.contains("number of tags, at most 256") && codec_io::tokens::MAX_TAGS == 256);
}

/// Set in the process that is to be killed: where it writes.
const TARGET: &str = "CODEC_TEST_ATOMIC_TARGET";
const READY: &str = "written, not committed";

#[test]
fn a_killed_writer_leaves_nothing_under_the_final_name() {
    if let Some(path) = std::env::var_os(TARGET) {
        return write_and_wait(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, before) in [("new.nac", None), ("old.nac", Some(b"what was there"))] {
        let path = folder.path().join(name);
        if let Some(bytes) = before {
            fs::write(&path, bytes).unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_killed_writer_leaves_nothing_under_the_final_name", "--exact", "--nocapture"])
            .env(TARGET, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(READY)), "the child never wrote");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(fs::read(&path).ok().as_deref(), before.map(|bytes| &bytes[..]), "{name}");
    }
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<String> = left.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(left.iter().filter(|name| name.ends_with(".nac")).count(), 1, "{left:?}");
    let is_named = |name: &&String| name.starts_with(".codec-") && name.ends_with(".tmp");
    assert_eq!(left.iter().filter(is_named).count(), 2, "{left:?}");
}

/// Writes everything but the commit, and waits for the end.
fn write_and_wait(path: &Path) {
    let header = header(strided_layout(), 1);
    let mut writer = TokenWriter::new(AtomicFile::create(path).unwrap(), header.clone()).unwrap();
    writer.push(&codes(&header.layout, 8_000, 1)).unwrap();
    let _file = writer.finish_seekable(totals(&header, 8_000)).unwrap();
    println!("{READY}");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

#[test]
fn a_committed_file_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.nac");
    let header = header(strided_layout(), 1);
    let codes = codes(&header.layout, 8_000, 1);
    let mut writer = TokenWriter::new(AtomicFile::create(&path).unwrap(), header.clone()).unwrap();
    writer.push(&codes).unwrap();
    let file = writer.finish_seekable(totals(&header, 8_000)).unwrap();
    assert!(!path.exists());
    file.commit().unwrap();
    let mut reader = TokenReader::open(File::open(&path).unwrap()).unwrap();
    assert_eq!(reader.header().totals, Some(totals(&header, 8_000)));
    assert_eq!(reader.read_all().unwrap(), codes);
}
