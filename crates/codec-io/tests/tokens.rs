//! Token files: what is written is read, whatever the layout; what is damaged is named.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod tokens_support;

use codec_core::{CodeLayout, CodebookSpec, Codes};
use codec_io::tokens::{
    DamageReason, IndexFault, TokenError, TokenReader, TokenWriter, Totals, file_bitrate, verify,
};
use proptest::prelude::*;
use std::io::Cursor;
use tokens_support::{Noise, codes, file, header, offsets, segmented_header, strided_layout, totals};

fn layouts() -> impl Strategy<Value = CodeLayout> {
    let size = prop_oneof![
        Just(1u32),
        Just(2),
        2u32..70,
        Just(1024),
        1u32..=(1 << 24),
        (1u32..=24).prop_map(|bits| 1 << bits),
    ];
    let stride = prop_oneof![Just(1u32), Just(2), Just(3), Just(4), Just(8)];
    let codebook = (size, stride).prop_map(|(size, stride)| CodebookSpec { size, stride });
    let scales = prop_oneof![Just(None), (1u32..20).prop_map(Some)];
    (proptest::collection::vec(codebook, 1..7), scales).prop_map(|(codebooks, scales)| {
        let layout = CodeLayout::new(codebooks).unwrap();
        scales.map_or(layout.clone(), |frames| layout.with_scales(frames).unwrap())
    })
}

/// Reads forwards until the end, past every fault.
fn read_through(bytes: &[u8]) -> (Vec<(u64, Codes)>, Vec<TokenError>) {
    let mut reader = TokenReader::new(bytes).unwrap();
    let (mut packets, mut faults) = (Vec::new(), Vec::new());
    loop {
        match reader.next_packet() {
            Ok(Some(codes)) => packets.push((reader.position() - codes.n_frames() as u64, codes)),
            Ok(None) => return (packets, faults),
            Err(fault) => faults.push(fault),
        }
        assert!(faults.len() + packets.len() < 10_000, "reading goes on for ever: {:?}", faults.last());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layout_comes_back_and_chunks_change_no_byte(
        layout in layouts(),
        n_groups in 0usize..60,
        packet_blocks in 1u32..9,
        pieces in proptest::collection::vec(0usize..5, 0..20),
        seed: u64,
    ) {
        let n_frames = n_groups * layout.stride_frames() as usize;
        let header = header(layout.clone(), packet_blocks);
        let codes = codes(&layout, n_frames, seed);
        let bytes = file(header.clone(), &codes);

        let totals = totals(&header, n_frames);
        let mut writer = TokenWriter::new(Cursor::new(Vec::new()), header.clone()).unwrap();
        let mut at = 0;
        for piece in pieces {
            let end = (at + piece * layout.block_frames() as usize).min(n_frames);
            writer.push(&codes.slice(at..end).unwrap()).unwrap();
            at = end;
            if at == n_frames {
                break;
            }
        }
        if at < n_frames {
            writer.push(&codes.slice(at..n_frames).unwrap()).unwrap();
        }
        let chunked = writer.finish_seekable(totals).unwrap().into_inner();
        prop_assert!(bytes == chunked, "chunks changed the file");

        let mut reader = TokenReader::open(Cursor::new(&bytes)).unwrap();
        prop_assert!(reader.has_index());
        prop_assert_eq!(reader.n_frames(), n_frames as u64);
        prop_assert_eq!(reader.totals(), Some(totals));
        let mut expected = header;
        expected.totals = Some(totals);
        prop_assert_eq!(reader.header(), &expected);
        prop_assert_eq!(reader.read_all().unwrap(), codes);
        let (_, report) = verify(bytes.as_slice(), |_| ()).unwrap();
        prop_assert!(report.is_intact() && report.has_index, "{:?}", report.faults);
    }

    #[test]
    fn seeking_gives_what_reading_through_gives(seed: u64, packet_blocks in 1u32..5, n_groups in 1usize..60) {
        let layout = strided_layout();
        let codes = codes(&layout, n_groups * 4, seed);
        let bytes = file(header(layout, packet_blocks), &codes);
        let (packets, faults) = read_through(&bytes);
        prop_assert!(faults.is_empty());
        // With the index, and with a file whose index a scan must rebuild.
        let without_index = &bytes[..bytes.len() - 1];
        for (bytes, has_index) in [(bytes.as_slice(), true), (without_index, false)] {
            let mut reader = TokenReader::open(Cursor::new(bytes)).unwrap();
            prop_assert_eq!(reader.has_index(), has_index);
            let mut noise = Noise(seed);
            for _ in 0..20 {
                let frame = noise.below(codes.n_frames() as u64);
                let first = reader.seek_frame(frame).unwrap();
                let codes = reader.next_packet().unwrap().unwrap();
                prop_assert!((first..first + codes.n_frames() as u64).contains(&frame));
                prop_assert!(packets.contains(&(first, codes)));
            }
            prop_assert_eq!(reader.seek_frame(codes.n_frames() as u64).unwrap(), codes.n_frames() as u64);
            let behind = reader.next_packet();
            prop_assert!(!behind.is_ok_and(|packet| packet.is_some()));
            let refused = reader.seek_frame(codes.n_frames() as u64 + 1).unwrap_err();
            let out_of_range = matches!(refused, TokenError::Range { .. });
            prop_assert!(out_of_range, "{}", refused);
        }
    }
}

/// Nine packets, the last one short and ending inside a block.
fn sample() -> (Vec<u8>, Codes) {
    let layout = strided_layout();
    let codes = codes(&layout, 8 * 16 + 12, 3);
    (file(header(layout, 2), &codes), codes)
}

#[test]
fn a_file_cut_off_at_any_byte_gives_every_whole_packet() {
    let (bytes, codes) = sample();
    let offsets = offsets(&bytes);
    let (n_packets, index) = (offsets.len() - 1, offsets[offsets.len() - 1] + 40);
    assert_eq!(n_packets, 9);
    for n_bytes in 0..bytes.len() {
        let cut = &bytes[..n_bytes];
        if n_bytes < offsets[0] {
            let error = TokenReader::new(cut).unwrap_err();
            assert!(
                matches!(error, TokenError::HeaderTruncated { offset } if offset == n_bytes as u64)
                    || n_bytes == 0 && matches!(error, TokenError::Empty),
                "cut at {n_bytes}: {error}"
            );
            continue;
        }
        let whole = offsets[1..].iter().filter(|&&end| end <= n_bytes).count();
        let n_frames = (16 * whole).min(codes.n_frames());
        let (packets, faults) = read_through(cut);
        assert_eq!(packets.len(), whole, "cut at {n_bytes}");
        for (first, packet) in packets {
            let first = first as usize;
            assert_eq!(packet, codes.slice(first..first + packet.n_frames()).unwrap(), "cut at {n_bytes}");
        }
        let [fault] = faults.as_slice() else { panic!("cut at {n_bytes}: {faults:?}") };
        let expected = if n_bytes < index {
            format!("truncated at byte {n_bytes}: {whole} whole packets, {n_frames} frames were read")
        } else {
            "is cut off: seeking is slower, all 9 packets (140 frames) are there".to_owned()
        };
        assert!(fault.to_string().ends_with(&expected), "cut at {n_bytes}: {fault}");

        let mut reader = TokenReader::open(Cursor::new(cut)).unwrap();
        assert!(!reader.has_index());
        assert_eq!(reader.n_frames(), n_frames as u64, "cut at {n_bytes}");
        assert_eq!(reader.totals().map(|t| t.n_samples), Some(140 * 320 - 5), "the header knows");
        assert_eq!(reader.seek_frame(0).unwrap(), 0);
    }
}

#[test]
fn a_changed_byte_is_found_and_its_packet_named() {
    let (bytes, codes) = sample();
    let offsets = offsets(&bytes);
    let end = offsets[offsets.len() - 1];
    for at in offsets[0]..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let (packets, faults) = read_through(&damaged);
        let hit = offsets.windows(2).position(|p| (p[0]..p[1]).contains(&at));
        let Some(hit) = hit else {
            assert_eq!(packets.len(), 9);
            if at < end + 40 {
                let [TokenError::Damaged(damage), TokenError::Truncated { n_packets: 9, .. }] = &faults[..]
                else {
                    panic!("byte {at}: {faults:?}")
                };
                assert_eq!((damage.packet, damage.offset, damage.n_frames), (8, end as u64, None));
            } else {
                let [TokenError::Index { fault, .. }] = &faults[..] else { panic!("byte {at}: {faults:?}") };
                assert!(matches!(fault, IndexFault::Checksum | IndexFault::Footer), "byte {at}: {fault}");
            }
            continue;
        };
        assert_eq!(packets.len(), 8, "byte {at}: {faults:?}");
        let [TokenError::Damaged(damage)] = &faults[..] else { panic!("byte {at}: {faults:?}") };
        let n_lost = if hit == 8 { 12 } else { 16 };
        assert_eq!(damage.packet, hit as u64, "byte {at}");
        assert_eq!(damage.offset, offsets[hit] as u64, "byte {at}");
        assert_eq!((damage.first_frame, damage.n_frames), (hit as u64 * 16, Some(n_lost)), "byte {at}");
        for (first, packet) in packets {
            let first = first as usize;
            assert_eq!(packet, codes.slice(first..first + packet.n_frames()).unwrap(), "byte {at}");
        }
        // With the index at hand, the damaged packet is the only one that cannot be sought.
        let mut reader = TokenReader::open(Cursor::new(&damaged)).unwrap();
        for packet in 0..9 {
            reader.seek_frame(packet * 16).unwrap();
            assert_eq!(reader.next_packet().is_ok(), packet != hit as u64, "byte {at}, packet {packet}");
        }
    }
}

#[test]
fn the_message_of_a_damaged_packet_says_all() {
    let (mut bytes, _) = sample();
    let at = offsets(&bytes)[3];
    bytes[at + 30] ^= 1;
    let (_, faults) = read_through(&bytes);
    let message = faults[0].to_string();
    assert!(message.starts_with(&format!("packet 3 at byte {at}: the checksum is ")), "{message}");
    assert!(message.ends_with("; frames 48..64 are lost"), "{message}");
}

#[test]
fn reading_finds_back_after_bytes_are_lost_inserted_or_moved() {
    let (bytes, _) = sample();
    let offsets = offsets(&bytes);
    let packet = |n: usize| &bytes[offsets[n]..offsets[n + 1]];
    let (before, after) = (&bytes[..offsets[3]], &bytes[offsets[3]..]);
    struct Case<'a> {
        name: &'a str,
        bytes: Vec<u8>,
        /// Packets that do not come, and packet and frames of every report.
        lost: &'a [u64],
        damages: &'a [(u64, u64)],
    }
    let case = |name, pieces: &[&[u8]], lost, damages| Case { name, bytes: pieces.concat(), lost, damages };
    let cases = [
        case("lost bytes", &[before, &after[7..]], &[3], &[(3, 16)]),
        case("a lost packet", &[before, &bytes[offsets[4]..]], &[3], &[(3, 16)]),
        case("two lost packets", &[before, &bytes[offsets[5]..]], &[3, 4], &[(3, 32)]),
        case("inserted bytes", &[before, &[0x8e; 70_000], after], &[], &[(3, 0)]),
        case("a packet twice", &[before, packet(1), after], &[], &[(3, 0)]),
        case(
            "two packets swapped",
            &[before, packet(4), packet(3), &bytes[offsets[5]..]],
            &[3],
            &[(3, 16), (5, 0)],
        ),
    ];
    for Case { name, bytes, lost, damages } in cases {
        let (packets, faults) = read_through(&bytes);
        let firsts: Vec<u64> = packets.iter().map(|(first, _)| first / 16).collect();
        let expected: Vec<u64> = (0..9).filter(|packet| !lost.contains(packet)).collect();
        assert_eq!(firsts, expected, "{name}: {faults:?}");
        let found: Vec<_> = faults
            .iter()
            .filter_map(|fault| match fault {
                TokenError::Damaged(damage) => Some((damage.packet, damage.n_frames.unwrap())),
                _ => None,
            })
            .collect();
        assert_eq!(found, damages, "{name}");
    }
}

#[test]
fn packets_of_later_versions_are_passed_over_by_name() {
    let (mut bytes, _) = sample();
    let at = offsets(&bytes)[2];
    let end = offsets(&bytes)[3];
    let seal = |bytes: &mut Vec<u8>| {
        let crc = crc32c::crc32c(&bytes[at..end - 4]);
        bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    };
    bytes[at + 3] = 2;
    seal(&mut bytes);
    let (packets, faults) = read_through(&bytes);
    assert_eq!(packets.len(), 8);
    let [error @ TokenError::Unsupported { value: 2, .. }] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!(error.to_string(), format!("packet kind 2 at byte {at} is not supported by this version"));

    // A kind that carries no codes is no fault, but it does not stand for frames.
    bytes[at + 3] = 200;
    bytes[at + 16] = 0;
    seal(&mut bytes);
    let (packets, faults) = read_through(&bytes);
    assert_eq!(packets.len(), 8);
    assert!(matches!(&faults[0], TokenError::Damaged(d) if d.reason == DamageReason::Missing), "{faults:?}");

    for (at, what) in [(8, "format version"), (10, "feature flags")] {
        let (mut bytes, _) = sample();
        bytes[at] = 9;
        let error = TokenReader::new(bytes.as_slice()).unwrap_err();
        assert!(matches!(error, TokenError::Unsupported { what: w, value: 9, .. } if w == what), "{error}");
    }
}

#[test]
fn a_payload_that_no_writer_writes_is_refused() {
    let layout = CodeLayout::uniform(1, 1000).unwrap().with_scales(2).unwrap();
    let bytes = file(
        header(layout, 1),
        &Codes::with_scales(
            CodeLayout::uniform(1, 1000).unwrap().with_scales(2).unwrap(),
            vec![vec![999, 1]],
            vec![1.5],
        )
        .unwrap(),
    );
    let at = offsets(&bytes)[0];
    let forge = |payload: [u8; 7]| {
        let mut bytes = bytes.clone();
        bytes[at + 20..at + 27].copy_from_slice(&payload);
        let crc = crc32c::crc32c(&bytes[at..at + 27]);
        bytes[at + 27..at + 31].copy_from_slice(&crc.to_le_bytes());
        let (packets, faults) = read_through(&bytes);
        (packets.len(), faults.first().map(ToString::to_string).unwrap_or_default())
    };
    let [a, b, c, d] = 1.5f32.to_le_bytes();
    assert_eq!(forge([a, b, c, d, 0xe7, 0x07, 0x00]), (1, String::new()), "the right one");
    let (n, message) = forge([a, b, c, d, 0xe8, 0x07, 0x00]);
    assert!(n == 0 && message.contains("a code that its codebook does not have is 1000"), "{message}");
    let (n, message) = forge([a, b, c, d, 0xe7, 0x07, 0x10]);
    assert!(n == 0 && message.contains("the padding after the last code is 1"), "{message}");
    let [a, b, c, d] = f32::NAN.to_le_bytes();
    let (n, message) = forge([a, b, c, d, 0xe7, 0x07, 0x00]);
    assert!(n == 0 && message.contains("not finite"), "{message}");
}

#[test]
fn a_stream_without_known_length_says_it_at_its_end() {
    let layout = strided_layout();
    let header = header(layout.clone(), 2);
    let codes = codes(&layout, 40, 1);
    let mut writer = TokenWriter::new(Vec::new(), header.clone()).unwrap();
    writer.push(&codes).unwrap();
    let totals = Totals { n_samples: 12_000, source_samples: 22_050 };
    let streamed = writer.finish(totals).unwrap();
    let mut reader = TokenReader::new(streamed.as_slice()).unwrap();
    assert_eq!((reader.header().totals, reader.totals()), (None, None));
    assert_eq!(reader.read_all().unwrap(), codes);
    assert_eq!(reader.totals(), Some(totals));
    let reader = TokenReader::open(Cursor::new(&streamed)).unwrap();
    assert_eq!((reader.header().totals, reader.totals(), reader.n_samples()), (None, Some(totals), 12_000));

    let mut told = header;
    told.totals = Some(totals);
    let mut writer = TokenWriter::new(Vec::new(), told).unwrap();
    writer.push(&codes).unwrap();
    let wrong = Totals { n_samples: 12_001, ..totals };
    assert!(matches!(writer.finish(wrong), Err(TokenError::Totals { expected: 12_000, actual: 12_001, .. })));
}

#[test]
fn the_writer_refuses_what_no_reader_could_make_sense_of() {
    let layout = strided_layout();
    let mut writer = TokenWriter::new(Vec::new(), header(layout.clone(), 2)).unwrap();
    let other = codes(&CodeLayout::uniform(3, 1024).unwrap(), 8, 0);
    assert!(matches!(writer.push(&other), Err(TokenError::Codes(_))));
    writer.push(&codes(&layout, 12, 0)).unwrap();
    assert!(
        matches!(writer.push(&codes(&layout, 4, 0)), Err(TokenError::Codes(_))),
        "12 ends inside a block"
    );
    let too_many = Totals { n_samples: 12 * 320 + 1, source_samples: 0 };
    assert!(matches!(writer.finish(too_many), Err(TokenError::Totals { expected: 3840, actual: 3841, .. })));

    let huge = CodeLayout::uniform(256, 1024).unwrap().with_scales(1 << 16).unwrap();
    let info = tokens_support::info(huge);
    let error = codec_io::tokens::TokenHeader::new(&info, 256, [0; 32], info.audio).unwrap_err();
    assert!(matches!(error, TokenError::Limit { what: "codes and scales per packet", .. }), "{error}");
    let mut odd = header(strided_layout(), 1);
    odd.packet_frames += 1;
    assert!(matches!(TokenWriter::new(Vec::new(), odd), Err(TokenError::Header { .. })));
    let tagged = header(strided_layout(), 1).with_tag("k".repeat(256), "v");
    assert!(matches!(TokenWriter::new(Vec::new(), tagged), Err(TokenError::Limit { .. })));
    let mut full = header(strided_layout(), 1);
    full.tags = vec![("key".to_owned(), "v".repeat(4096)); 16];
    let error = TokenWriter::new(Vec::new(), full).unwrap_err();
    assert!(matches!(error, TokenError::Limit { what: "header bytes", .. }), "{error}");
}

#[test]
fn other_weights_are_an_error_that_names_both() {
    let header = header(strided_layout(), 1);
    header.check_weights(&[0xa5; 32]).unwrap();
    let message = header.check_weights(&[0x5a; 32]).unwrap_err().to_string();
    assert!(message.contains(&"a5".repeat(32)) && message.contains(&"5a".repeat(32)), "{message}");
}

#[test]
fn other_files_and_text_mode_are_told_apart() {
    let (bytes, _) = sample();
    let unix_to_dos: Vec<u8> =
        bytes.iter().flat_map(|&b| if b == b'\n' { vec![b'\r', b'\n'] } else { vec![b] }).collect();
    let dos_to_unix: Vec<u8> = bytes.iter().copied().filter(|&b| b != b'\r').collect();
    let seven_bits: Vec<u8> = bytes.iter().map(|b| b & 0x7f).collect();
    for damaged in [unix_to_dos, dos_to_unix, seven_bits] {
        let error = TokenReader::new(damaged.as_slice()).unwrap_err();
        assert!(matches!(error, TokenError::TextMode { .. }), "{error}");
    }
    for other in [&b"RIFF\x24\0\0\0WAVE"[..], b"ECDC\0", b"\x93NUMPY\x01\0"] {
        let error = TokenReader::new(other).unwrap_err();
        assert!(matches!(error, TokenError::NotTokens { .. }), "{error}");
    }
}

#[test]
fn header_fields_are_checked_at_their_offset() {
    let (bytes, _) = sample();
    let body = 16;
    let n_body = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let forge = |at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[body + at..body + at + value.len()].copy_from_slice(value);
        let crc = crc32c::crc32c(&bytes[..body + n_body]);
        bytes[body + n_body..body + n_body + 4].copy_from_slice(&crc.to_le_bytes());
        TokenReader::new(bytes.as_slice()).unwrap_err()
    };
    let cases: [(usize, &[u8], &str); 9] = [
        (32, &[255; 8], "source samples"),
        (56, &[0; 4], "sample rate"),
        (60, &[255; 4], "hop length"),
        (68, &[0; 2], "channels"),
        (72, &[0; 2], "codebooks"),
        (74, &[0; 2], "codebooks of the codec"),
        (80, &[0; 4], "packet frames"),
        (80, &[9, 0, 0, 0], "packet frames beyond whole blocks"),
        (92, &[3, 0, 0, 0], "segment samples"),
    ];
    for (at, value, what) in cases {
        let error = forge(at, value);
        let TokenError::Header { what: found, .. } = &error else { panic!("{what}: {error}") };
        assert_eq!(found, &what, "{error}");
    }
    assert!(matches!(forge(96, &[0; 4]), TokenError::Layout { offset: 112, .. }));
    assert!(matches!(forge(96 + 24 + 1, &[0xff]), TokenError::Text { what: "family name", offset: 137 }));
}

#[test]
fn segments_overlap() {
    let header = segmented_header(1);
    let samples: Vec<u64> = [0, 1, 150, 152, 300].map(|n| header.samples_in(n)).to_vec();
    assert_eq!(samples, [0, 320, 48_000, 47_520 + 640, 47_520 + 48_000]);
    assert_eq!(header.block_samples(), 47_520);
    assert_eq!(header.to_source_samples(480), 480);
}

#[test]
fn packets_last_a_second_or_more_and_the_overhead_is_small() {
    // Codebooks of 1024 at 75 frames per second: 1.5, 6 and 24 kbit/s.
    for (n_codebooks, packet_frames, max_overhead) in [(2, 300, 0.05), (8, 103, 0.04), (32, 75, 0.02)] {
        let layout = CodeLayout::uniform(32, 1024).unwrap();
        let info = tokens_support::info(layout);
        let header = codec_io::tokens::TokenHeader::new(&info, n_codebooks, [0; 32], info.audio).unwrap();
        assert_eq!(header.packet_frames, packet_frames);
        let n_frames = 75 * 600;
        let codes = codes(&header.layout, n_frames, 1);
        let n_bytes = file(header.clone(), &codes).len() as u64;
        let true_bitrate = file_bitrate(n_bytes, n_frames as u64 * 320, 24_000).unwrap();
        let nominal = info.bitrate(n_codebooks).unwrap().to_f64();
        assert!(true_bitrate > nominal && true_bitrate < nominal * (1.0 + max_overhead), "{true_bitrate}");
    }
}

#[test]
fn an_index_that_leads_nowhere_costs_no_code() {
    let (bytes, codes) = sample();
    let offsets = offsets(&bytes);
    let index = offsets[offsets.len() - 1] + 40;
    let mut swapped = bytes.clone();
    swapped[index..index + 16].rotate_left(8);
    let crc = crc32c::crc32c(&swapped[index..bytes.len() - 20]);
    swapped[bytes.len() - 20..bytes.len() - 16].copy_from_slice(&crc.to_le_bytes());
    let trailing = [&bytes[..], b"\n"].concat();
    let twice = [&bytes[..], &bytes[..]].concat();
    let cases =
        [(swapped, IndexFault::Offsets), (trailing, IndexFault::Trailing), (twice, IndexFault::Trailing)];
    for (damaged, expected) in cases {
        let (packets, faults) = read_through(&damaged);
        assert_eq!(packets.len(), 9);
        let [TokenError::Index { fault, .. }] = &faults[..] else { panic!("{expected:?}: {faults:?}") };
        assert_eq!(fault, &expected);
        // Wherever the index leads, the packet that comes is the one that was sought, or it is an error.
        let mut reader = TokenReader::open(Cursor::new(&damaged)).unwrap();
        for first in (0..codes.n_frames()).step_by(16) {
            reader.seek_frame(first as u64).unwrap();
            match reader.next_packet() {
                Ok(Some(packet)) => {
                    assert_eq!(packet, codes.slice(first..first + packet.n_frames()).unwrap());
                }
                Err(TokenError::Damaged(damage)) => assert_eq!(damage.first_frame, first as u64),
                other => panic!("frame {first}: {other:?}"),
            }
        }
    }
}

#[test]
fn totals_that_contradict_the_header_or_the_frames_are_reported() {
    let (bytes, _) = sample();
    let end = offsets(&bytes)[9];
    let forge = |n_samples: u64| {
        let mut bytes = bytes.clone();
        bytes[end + 20..end + 28].copy_from_slice(&n_samples.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[end..end + 36]);
        bytes[end + 36..end + 40].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    for (n_samples, expected) in [(44_000, 44_795), (44_801, 44_800)] {
        let (packets, faults) = read_through(&forge(n_samples));
        assert_eq!(packets.len(), 9);
        let [TokenError::Totals { expected: found, actual, offset, .. }] = &faults[..] else {
            panic!("{faults:?}")
        };
        assert_eq!((*found, *actual, *offset), (expected, n_samples, end as u64));
    }
    assert_eq!(read_through(&forge(44_795)).1.len(), 0);
}
