//! Cutting, dropping codebooks and joining, without decoding.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod tokens_support;

use codec_core::{CodeLayout, Codes};
use codec_io::tokens::edit::{PartialBlock, concatenate, cut, keep_codebooks, sample_at};
use codec_io::tokens::{TokenError, TokenHeader, TokenReader, TokenWriter, Totals, WeightsHash};
use proptest::prelude::*;
use std::io::Cursor;
use tokens_support::{codes, file, header, info, offsets, segmented_header, strided_layout, totals};

type Change = fn(&mut TokenHeader);
type Reader<'a> = TokenReader<Cursor<&'a [u8]>>;

fn open(bytes: &[u8]) -> Reader<'_> {
    TokenReader::open(Cursor::new(bytes)).unwrap()
}

/// A stand-in for a decoder: every sample of the decoded audio is named by the codes of the frame
/// that makes it and its place in the frame. Exact where a codec has no memory.
fn decode(reader: &mut Reader<'_>) -> Vec<(Vec<u32>, u64)> {
    let header = reader.header().clone();
    let codes = reader.read_all().unwrap();
    let hop = u64::from(header.hop_length);
    let column = |frame: usize| -> Vec<u32> {
        let specs = header.layout.codebooks();
        codes.rows().zip(specs).map(|(row, spec)| row[frame / spec.stride as usize]).collect()
    };
    let all = (0..codes.n_frames()).flat_map(|frame| {
        let column = column(frame);
        (0..hop).map(move |n| (column.clone(), n))
    });
    all.skip(header.start_trim as usize).take(reader.n_samples() as usize).collect()
}

/// A header whose frames are short, so that decoding by name is quick.
fn short_header(layout: CodeLayout, packet_blocks: u32) -> TokenHeader {
    let mut header = header(layout, packet_blocks);
    header.hop_length = 3;
    header.audio.sample_rate = 225;
    header.source.sample_rate = 450;
    header
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_decodes_to_the_samples_asked_for(
        n_groups in 1usize..40,
        packet_blocks in 1u32..6,
        (start, length) in (0u64..480, 1u64..480),
        (start_again, length_again) in (0u64..480, 1u64..480),
        warm_up_frames in 0u32..30,
        seed: u64,
    ) {
        let header = short_header(strided_layout(), packet_blocks);
        let codes = codes(&header.layout, n_groups * 4, seed);
        let bytes = file(header, &codes);
        let mut whole = open(&bytes);
        let audio = decode(&mut whole);
        let result = cut(&mut whole, start..start + length, warm_up_frames, Vec::new());
        if start >= audio.len() as u64 {
            let refused = matches!(result, Err(TokenError::Range { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let (bytes, report) = result.unwrap();
        let mut first = open(&bytes);
        let end = (start + length).min(audio.len() as u64);
        prop_assert_eq!(&report.samples, &(start..end));
        prop_assert_eq!(first.n_frames(), report.frames.end - report.frames.start);
        let part = decode(&mut first);
        prop_assert!(part == audio[start as usize..end as usize], "other audio");
        let totals = first.totals().unwrap();
        prop_assert_eq!((totals.n_samples, totals.source_samples), (end - start, 2 * (end - start)));
        // No block more than needed: those of 24 samples that the range touches, and the warm-up.
        let kept_from = (start / 24 * 8).saturating_sub(u64::from(warm_up_frames).next_multiple_of(8));
        prop_assert_eq!(report.frames.start, kept_from);
        prop_assert_eq!(report.frames.end, (end.div_ceil(24) * 8).min(codes.n_frames() as u64));

        // A cut of a cut counts from the start of the audio that is heard.
        if start_again < part.len() as u64 {
            let (bytes, _) = cut(&mut first, start_again..start_again + length_again, 0, Vec::new()).unwrap();
            let end = (start_again + length_again).min(part.len() as u64);
            let again = decode(&mut open(&bytes));
            prop_assert!(again == part[start_again as usize..end as usize], "other audio in the second cut");
        }
    }

    #[test]
    fn pieces_cut_between_blocks_join_to_the_same_file(
        n_blocks in 2usize..30,
        at in 1u64..29,
        packet_blocks in 1u32..6,
        seed: u64,
    ) {
        let header = short_header(strided_layout(), packet_blocks);
        let codes = codes(&header.layout, n_blocks * 8 - 4, seed);
        let bytes = file(header, &codes);
        let mut whole = open(&bytes);
        let n_samples = whole.n_samples();
        let at = at.min(n_blocks as u64 - 1) * 24;
        let (left, _) = cut(&mut whole, 0..at, 0, Vec::new()).unwrap();
        let (right, _) = cut(&mut whole, at..n_samples, 0, Vec::new()).unwrap();
        let (joined, seams) =
            concatenate(&mut [open(&left), open(&right)], PartialBlock::Refuse, Vec::new()).unwrap();
        prop_assert_eq!(seams.len(), 1);
        prop_assert_eq!((seams[0].sample, seams[0].extra_samples), (at, 0));
        prop_assert!(joined == bytes, "the joined file is another one");
    }
}

#[test]
fn keeping_codebooks_gives_the_file_of_the_lower_bitrate() {
    let info = info(CodeLayout::uniform(8, 1024).unwrap());
    let all = codes(&info.layout, 700, 5);
    let write = |n_codebooks: usize| {
        let header = TokenHeader::new(&info, n_codebooks, [1; 32], info.audio).unwrap();
        file(header, &all.truncated(n_codebooks).unwrap())
    };
    let bytes = write(8);
    for n_codebooks in [1, 2, 5, 8] {
        let kept = keep_codebooks(&mut open(&bytes), n_codebooks, Vec::new()).unwrap();
        assert!(kept == write(n_codebooks), "{n_codebooks} codebooks");
    }
    for n_codebooks in [0, 9] {
        let refused = keep_codebooks(&mut open(&bytes), n_codebooks, Vec::new()).unwrap_err();
        assert!(matches!(refused, TokenError::Codes(codec_core::Error::Range { .. })), "{refused}");
    }

    // From a pipe that says its length only at its end.
    let header = TokenHeader::new(&info, 8, [1; 32], info.audio).unwrap();
    let totals = totals(&header, 700);
    let mut writer = TokenWriter::new(Vec::new(), header).unwrap();
    writer.push(&all).unwrap();
    let piped = writer.finish(totals).unwrap();
    let kept = keep_codebooks(&mut TokenReader::new(piped.as_slice()).unwrap(), 2, Vec::new()).unwrap();
    let mut kept = open(&kept);
    assert_eq!((kept.header().totals, kept.totals()), (None, Some(totals)));
    assert_eq!(kept.read_all().unwrap(), all.truncated(2).unwrap());
}

#[test]
fn dropping_a_strided_codebook_makes_smaller_blocks() {
    let header = short_header(strided_layout(), 3);
    let codes = codes(&header.layout, 52, 6);
    let kept = keep_codebooks(&mut open(&file(header, &codes)), 1, Vec::new()).unwrap();
    let mut kept = open(&kept);
    assert_eq!(kept.header().packet_frames, 24, "the writer's choice stays");
    assert_eq!(kept.read_all().unwrap(), codes.truncated(1).unwrap());
}

#[test]
fn seams_say_what_padding_became_audible() {
    let header = short_header(CodeLayout::uniform(2, 1024).unwrap(), 4);
    let write = |header: &TokenHeader, n_frames: usize, seed| {
        let codes = codes(&header.layout, n_frames, seed);
        (file(header.clone(), &codes), codes)
    };
    // Five samples of padding at every end, as `file` writes them, and two trimmed at a start.
    let (left, left_codes) = write(&header, 10, 1);
    let mut trimmed = header.clone();
    trimmed.start_trim = 2;
    let (middle, middle_codes) = write(&trimmed, 9, 2);
    let (right, right_codes) = write(&header, 8, 3);
    let mut parts = [open(&left), open(&middle), open(&right)];
    let audio: Vec<_> = parts.iter_mut().map(decode).collect();
    let (joined, seams) = concatenate(&mut parts, PartialBlock::Refuse, Vec::new()).unwrap();
    let mut joined = open(&joined);
    assert_eq!(seams.iter().map(|s| (s.sample, s.extra_samples)).collect::<Vec<_>>(), [(32, 7), (57, 5)]);
    assert_eq!(joined.n_samples(), 57 + 19);
    let mut expected = left_codes;
    expected.append(&middle_codes).unwrap();
    expected.append(&right_codes).unwrap();
    let decoded = decode(&mut joined);
    assert_eq!(decoded[..25], audio[0]);
    assert_eq!(decoded[32..52], audio[1]);
    assert_eq!(decoded[57..], audio[2]);
    joined.seek_frame(0).unwrap();
    assert_eq!(joined.read_all().unwrap(), expected);
}

#[test]
fn a_file_that_ends_inside_a_block_is_joined_only_when_told() {
    let header = segmented_header(1);
    let codes = codes(&header.layout, 200, 1);
    let bytes = file(header.clone(), &codes);
    let refused = concatenate(&mut [open(&bytes), open(&bytes)], PartialBlock::Refuse, Vec::new());
    let error = refused.unwrap_err();
    assert!(matches!(error, TokenError::Join { part: 1, over: 50, block_frames: 150 }), "{error}");

    let (joined, seams) =
        concatenate(&mut [open(&bytes), open(&bytes)], PartialBlock::Drop, Vec::new()).unwrap();
    let mut joined = open(&joined);
    assert_eq!(joined.n_frames(), 350);
    // The second file starts where the dropped segment did.
    let n_samples = totals(&header, 200).n_samples;
    assert_eq!((seams[0].sample, seams[0].extra_samples), (47_520, 47_520 - n_samples as i64));
    assert_eq!(joined.n_samples(), 47_520 + n_samples);
    let mut expected = codes.slice(0..150).unwrap();
    expected.append(&codes).unwrap();
    assert_eq!(joined.read_all().unwrap(), expected);
}

#[test]
fn segments_are_cut_at_their_starts() {
    let header = segmented_header(2);
    let codes = codes(&header.layout, 150 * 4, 1);
    let bytes = file(header, &codes);
    // One second from 1.5 s on lies in the second and the third segment.
    let mut reader = open(&bytes);
    let range = sample_at(reader.header(), 1.5)..sample_at(reader.header(), 2.5);
    let (part, report) = cut(&mut reader, range, 0, Vec::new()).unwrap();
    assert_eq!((report.samples, report.frames), (72_000..120_000, 150..450));
    assert_eq!(report.start_trim, 72_000 - 47_520);
    let mut part = open(&part);
    assert_eq!(part.read_all().unwrap(), codes.slice(150..450).unwrap());
    assert_eq!(part.totals(), Some(Totals { n_samples: 48_000, source_samples: 48_000 }));
    // The tail of the last segment is reached through the last block, not one behind it.
    let n_samples = reader.n_samples();
    let (_, report) = cut(&mut reader, n_samples - 1..u64::MAX, 0, Vec::new()).unwrap();
    assert_eq!(report.samples, n_samples - 1..n_samples);
    assert_eq!(report.frames.end, 600);
}

#[test]
fn times_become_samples() {
    let header = header(strided_layout(), 1);
    let samples = [0.0, 1.0, 0.00003, -1.0, f64::NAN, f64::INFINITY].map(|t| sample_at(&header, t));
    assert_eq!(samples, [0, 24_000, 1, 0, 0, u64::MAX]);
}

#[test]
fn files_that_do_not_agree_are_refused_by_property() {
    let base = header(strided_layout(), 1);
    let codes = codes(&base.layout, 16, 1);
    let left = file(base.clone(), &codes);
    let changes: [(&str, Change); 6] = [
        ("codec family", |h| h.family = "other".into()),
        ("model", |h| {
            h.model = "other".into();
            h.weights.0[31] ^= 1;
        }),
        ("weights", |h| h.weights.0[31] ^= 1),
        ("hop length", |h| h.hop_length = 400),
        ("codebooks of the codec", |h| h.n_codebooks_total = 9),
        ("source audio", |h| h.source.channels = 1),
    ];
    for (what, change) in changes {
        let mut other = base.clone();
        change(&mut other);
        let right = file(other, &codes);
        let refused = concatenate(&mut [open(&left), open(&right)], PartialBlock::Refuse, Vec::new());
        let error = refused.unwrap_err();
        assert!(matches!(error, TokenError::Differ { what: found, .. } if found == what), "{what}: {error}");
    }
    // Packets of another length, other tags, and another name of the same weights are no reason.
    let mut other = base.clone();
    (other.packet_frames, other.tags, other.model) = (32, Vec::new(), "other".into());
    let right = file(other.clone(), &codes);
    concatenate(&mut [open(&left), open(&right)], PartialBlock::Refuse, Vec::new()).unwrap();
    // Where the weights are not known, the name is all there is.
    let [left, right] = [base, other].map(|header| {
        let header = TokenHeader { weights: WeightsHash::UNKNOWN, ..header };
        file(header, &codes)
    });
    let refused = concatenate(&mut [open(&left), open(&right)], PartialBlock::Refuse, Vec::new());
    assert!(matches!(refused, Err(TokenError::Differ { what: "model", .. })));
    let none: &mut [Reader<'_>] = &mut [];
    assert!(matches!(concatenate(none, PartialBlock::Drop, Vec::new()), Err(TokenError::Range { .. })));
}

#[test]
fn an_edit_stops_at_damage_that_it_needs_and_only_there() {
    let header = header(CodeLayout::uniform(1, 256).unwrap(), 10);
    let codes = codes(&header.layout, 100, 1);
    let mut bytes = file(header, &codes);
    let at = offsets(&bytes)[5];
    bytes[at + 22] ^= 1;
    let mut reader = open(&bytes);
    let (left, _) = cut(&mut reader, 0..50 * 320, 0, Vec::new()).unwrap();
    assert_eq!(open(&left).read_all().unwrap(), codes.slice(0..50).unwrap());
    let (right, _) = cut(&mut reader, 60 * 320..u64::MAX, 0, Vec::new()).unwrap();
    assert_eq!(open(&right).read_all().unwrap(), codes.slice(60..100).unwrap());
    for range in [49 * 320..51 * 320, 59 * 320..60 * 320] {
        let error = cut(&mut reader, range, 0, Vec::new()).unwrap_err();
        assert!(matches!(&error, TokenError::Damaged(damage) if damage.packet == 5), "{error}");
    }
}

#[test]
fn one_file_alone_stays_as_it_is() {
    let header = short_header(strided_layout(), 2);
    let codes: Codes = codes(&header.layout, 44, 4);
    let bytes = file(header, &codes);
    let (joined, seams) = concatenate(&mut [open(&bytes)], PartialBlock::Refuse, Vec::new()).unwrap();
    assert!(joined == bytes && seams.is_empty());
    let (whole, _) = cut(&mut open(&bytes), 0..u64::MAX, 0, Vec::new()).unwrap();
    assert!(whole == bytes);
}
