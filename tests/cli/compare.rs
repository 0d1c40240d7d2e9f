//! `compare`: pairs and folders of audio.

use super::*;

#[test]
fn compare_judges_a_pair_and_names_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let (original, late) = (dir.path().join("a.wav"), dir.path().join("b.wav"));
    write_wav(&original, 16_000, 1, 1.5);
    let mut reader = codec_io::AudioReader::open(&original).unwrap();
    let audio = reader.read_to_end().unwrap();
    let mut samples = vec![0.0; 37];
    samples.extend(audio.channel(0).unwrap().iter().map(|x| x / 2.0));
    let audio = codec_core::AudioBuffer::mono(16_000, samples).unwrap();
    let mut writer = codec_io::WavWriter::create(&late, audio.spec(), codec_io::WavFormat::Float32).unwrap();
    writer.write(&audio).unwrap();
    writer.finish().unwrap();

    let run = |options: &[&str]| {
        let output = codec().arg("compare").args([&original, &late]).args(options).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    let aligned = json(&run(&["--json", "--align=sample", "--match-level"]));
    let [pair] = &aligned[..] else { panic!("{} results", aligned.len()) };
    assert_eq!(pair["alignment"]["samples"], 37.0);
    assert!((pair["gain_db"].as_f64().unwrap() - 6.02).abs() < 0.01, "{pair}");
    assert!(pair["scores"]["si_sdr"].as_f64().unwrap() > 80.0, "{pair}");
    assert!(pair["scores"]["mel_dac"].as_f64().unwrap() < 1e-3, "{pair}");

    let as_is = run(&["--metrics", "si_sdr,pesq_wb"]);
    assert!(stderr(&as_is).contains("the first 24000 are compared"), "{}", stderr(&as_is));
    assert!(stdout(&as_is).contains("without Corrigendum 2"), "{}", stdout(&as_is));
    assert!(!stdout(&as_is).contains("estoi"), "{}", stdout(&as_is));

    // The other way round it is early, and one pair has its scores from a table.
    let scores = dir.path().join("utmos.csv");
    std::fs::write(&scores, "clip,system,utmos\nb,a.wav,4.5\nb,x,1\nz,a.wav,2\n").unwrap();
    let output = codec()
        .args(["compare", "--align", "--metrics=l1", "--scores"])
        .args([&scores, &late, &original])
        .output()
        .unwrap();
    let (printed, said) = (stdout(&output), stderr(&output));
    assert!(printed.contains("was 37.00 samples (2.31 ms) early"), "{printed}{said}");
    assert!(printed.contains("4.5000") && said.contains("rows of x are not used"), "{printed}{said}");
    assert!(said.contains("z is not among the compared clips"), "{said}");

    // What is unlike is not moved, and what ends early is told.
    let other = dir.path().join("other.wav");
    let noise = |i: u32| ((i.wrapping_mul(2_654_435_761) >> 7) & 0xffff) as f32 / 65_536.0 - 0.5;
    let audio = codec_core::AudioBuffer::mono(16_000, (0..16_000).map(noise).collect()).unwrap();
    let mut writer = codec_io::WavWriter::create(&other, audio.spec(), codec_io::WavFormat::Float32).unwrap();
    writer.write(&audio).unwrap();
    writer.finish().unwrap();
    let output = codec().args(["compare", "--json", "--align"]).args([&original, &other]).output().unwrap();
    let unlike = &json(&output)[0];
    assert!(unlike["alignment"].is_null(), "{unlike}");
    assert!(unlike["not_aligned"].as_str().unwrap().contains("not alike"), "{unlike}");
    assert_eq!((&unlike["is_cut_off"], &pair["is_cut_off"]), (&true.into(), &false.into()));
    assert!(!unlike["scores"].as_object().unwrap().is_empty());

    // Each metric that cannot judge says why, and the command goes on.
    write_wav(&original, 8_000, 1, 0.2);
    let output = codec().args(["compare", "--json"]).args([&original, &original]).output().unwrap();
    let short = &json(&output)[0];
    assert!(short["not_judged"]["pesq_wb"].as_str().unwrap().contains("16000 Hz"), "{short}");
    assert!(short["not_judged"]["stoi"].as_str().unwrap().contains("30 frames"), "{short}");
    assert_eq!(short["scores"]["l1"], 0.0);
    let unknown = codec().args(["compare", "--metrics", "visqol"]).args([&original, &late]).output().unwrap();
    assert!(stderr(&unknown).contains("pesq_wb"), "{}", stderr(&unknown));
}

#[test]
fn compare_summarizes_two_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    for (name, seconds) in [("speech/a", 0.5), ("speech/b", 0.6), ("music/c", 0.7), ("music/alone", 0.5)] {
        for (folder, rate) in [(&left, 16_000), (&right, 24_000)] {
            let path = folder.join(format!("{name}.wav"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if folder == &left || name != "music/alone" {
                write_wav(&path, rate, 1, seconds);
            }
        }
    }
    let scores = dir.path().join("utmos.csv");
    std::fs::write(&scores, "clip,utmos\nspeech/a.wav,4\nb,3\nelsewhere,1\n").unwrap();
    let output = codec()
        .args(["compare", "--json", "--metrics", "si_sdr", "--scores"])
        .args([&scores, &left, &right])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "an original is missing: {}", stderr(&output));
    for note in ["alone.wav: has no counterpart", "resampled from 24000 Hz", "elsewhere is not among"] {
        assert!(stderr(&output).contains(note), "{note}: {}", stderr(&output));
    }
    let lines = json(&output);
    assert_eq!(lines.len(), 4);
    let of = |metric: &str, kind: Option<&str>| {
        let rows = lines[3]["summary"].as_array().unwrap().iter();
        let found =
            rows.filter(|row| row["metric"] == metric && row["kind"].as_str() == kind).collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "{metric} {kind:?}: {}", lines[3]);
        (found[0]["n"].as_u64().unwrap(), found[0]["mean"].as_f64().unwrap())
    };
    let (all, speech, music) =
        (of("si_sdr", None), of("si_sdr", Some("speech")), of("si_sdr", Some("music")));
    assert_eq!((all.0, speech.0, music.0), (3, 2, 1));
    assert!((3.0 * all.1 - 2.0 * speech.1 - music.1).abs() < 1e-9);
    assert_eq!(of("utmos", Some("speech")), (2, 3.5));
    // The clip that is elsewhere has no part in the mean.
    assert_eq!(of("utmos", None), (2, 3.5));
    assert!(lines[3]["missing"][0].as_str().unwrap().ends_with("alone.wav"), "{}", lines[3]);
    let alone = left.join("music/alone.wav");
    std::fs::create_dir_all(right.join("music")).unwrap();
    std::fs::rename(&alone, right.join("music/alone.wav")).unwrap();
    let output = codec().args(["compare", "--metrics", "l1"]).args([&left, &right]).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("has no original"), "{}", stderr(&output));

    // Wrong tables are told before the work.
    let refused = |table: &str, why: &str| {
        std::fs::write(&scores, table).unwrap();
        let output = codec().args(["compare", "--scores"]).args([&scores, &left, &right]).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains(why), "{why}: {}", stderr(&output));
        assert!(stdout(&output).is_empty());
    };
    refused("clip,utmos\nspeech/a,good\n", "not a number");
    refused("clip,stoi\nspeech/a,1\n", "stoi is measured here");
}
