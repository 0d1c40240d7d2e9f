//! `import` and `export`: the files of other programs, and our own arrays.

use super::*;

#[test]
fn files_of_other_programs_are_taken_and_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let vector = |name: &str| root().join("tests/vectors/exchange").join(name);
    let run = |arguments: &[&std::ffi::OsStr]| codec().args(arguments).output().unwrap();
    let import = |from: &str, more: &[&str], to: &str| {
        let mut command = codec();
        command.args(["import", "--json"]).arg(vector(from)).args(more).arg("-o").arg(path(to));
        command.output().unwrap()
    };
    let output = import("causal.ecdc", &[], "a.nac");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("not on this machine"), "{}", stderr(&output));
    assert_eq!((&json(&output)[0]["n_frames"], &json(&output)[0]["n_codebooks"]), (&22.into(), &3.into()));
    // There and back is the same file.
    let output = codec().arg("export").arg(path("a.nac")).arg("-o").arg(path("b.ecdc")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(std::fs::read(path("b.ecdc")).unwrap() == std::fs::read(vector("causal.ecdc")).unwrap());
    for format in ["npy", "npz", "safetensors"] {
        let output = codec()
            .args(["export", "-", "--to", format, "-o", "-"])
            .write_stdin(std::fs::read(path("a.nac")).unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(output.stdout.len() > 132, "{format}");
    }
    let nameless = run(&["export".as_ref(), path("a.nac").as_os_str()]);
    assert!(stderr(&nameless).contains("--to"), "{}", stderr(&nameless));

    let output = import("whole.dac", &[], "c.nac");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(json(&output)[0]["model"], "dac_44khz");
    let output = import("windows.dac", &[], "d.nac");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("3 windows"), "{}", stderr(&output));
    let output = import("windows.dac", &["--split"], "d.nac");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(names(&path("d")), ["00000.nac", "00001.nac", "00002.nac"]);
    let whole = run(&["verify".as_ref(), dir.path().as_os_str()]);
    assert!(whole.status.success(), "{}", stderr(&whole));
    assert!(stderr(&import("whole.dac", &[], "c2.nac")).contains("are taken for those of dac_44khz"));
    std::fs::remove_file(path("c2.nac")).unwrap();
    for model in ["mimi", "encodec_24khz"] {
        let wrong = import("whole.dac", &["-m", model], "e.nac");
        assert!(stderr(&wrong).contains("the Descript audio codec made its codes"), "{}", stderr(&wrong));
    }
    // Whether the model is on this machine or not: scales that are not there cannot be made up.
    let no_scales = import("codes.npy", &["-m", "encodec_48khz"], "e.nac");
    assert_eq!(no_scales.status.code(), Some(1));
    assert!(stderr(&no_scales).contains("a factor for each segment"), "{}", stderr(&no_scales));
    let wrong = import("causal.ecdc", &["-m", "dac_44khz"], "e.nac");
    assert!(stderr(&wrong).contains("are not those of dac_44khz"), "{}", stderr(&wrong));
    std::fs::write(path("f.dac"), b"\x93NUMPY\x01\x00").unwrap();
    let broken = run(&["import".as_ref(), path("f.dac").as_os_str()]);
    assert_eq!(broken.status.code(), Some(1));
    assert_eq!(names(dir.path()), ["a.nac", "b.ecdc", "c.nac", "d", "f.dac"]);
}

/// Three windows of one file: all of them or none, nothing without `--force`, and a report of what there is.
#[test]
fn split_files_are_those_of_a_folder_and_replace_nothing_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let vector = |name: &str| root().join("tests/vectors/exchange").join(name);
    let split = |from: &std::path::Path, more: &[&str]| {
        let mut command = codec();
        command.current_dir(dir.path()).args(["import", "--json", "--split"]).arg(from).args(more);
        command.output().unwrap()
    };
    let windows = ["00000.nac", "00001.nac", "00002.nac"];
    let written = |output: &std::process::Output, folder: &str| {
        assert!(output.status.success(), "{folder}: {}", stderr(output));
        let report = &json(output)[0];
        assert_eq!((&report["output"], &report["skipped"]), (&folder.into(), &false.into()), "{report}");
        assert_eq!(report["n_files"], names(&path(folder)).len());
    };
    // Neither an ending of another kind nor a file of the name without `.nac` in it is in the way.
    std::fs::write(path("wi.nac"), "").unwrap();
    for (output, folder) in [("wi.nac", "wi"), ("song.v2", "song.v2"), ("deep/er", "deep/er")] {
        written(&split(&vector("windows.dac"), &["-o", output]), folder);
        assert_eq!(names(&path(folder)), windows);
        // The same again finds what it made, though the folder is there now.
        let again = split(&vector("windows.dac"), &["-o", output]);
        assert!(again.status.success(), "{}", stderr(&again));
        let report = &json(&again)[0];
        assert_eq!((&report["output"], &report["skipped"]), (&folder.into(), &true.into()), "{report}");
        assert_eq!(names(&path(folder)), windows);
    }
    assert_eq!(std::fs::read(path("wi.nac")).unwrap(), b"");
    let bytes = |name: &str| std::fs::read(path(name)).unwrap();
    let whole = bytes("wi/00001.nac");

    let refused = |more: &[&str], expected: &str| {
        let output = split(&vector("windows.dac"), more);
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    };
    std::fs::create_dir(path("part")).unwrap();
    std::fs::write(path("part/00001.nac"), "precious").unwrap();
    refused(&["-o", "part.nac"], "part/00001.nac: is there already, but not all of 3 files are");
    assert_eq!(names(&path("part")), ["00001.nac"]);
    assert_eq!(bytes("part/00001.nac"), b"precious");
    written(&split(&vector("windows.dac"), &["-o", "part.nac", "--force"]), "part");
    assert_eq!(names(&path("part")), windows);
    assert!(bytes("part/00001.nac") == whole);
    // A window that cannot be put in place, or one of another input, is found before any is.
    std::fs::create_dir_all(path("odd/00002.nac")).unwrap();
    refused(&["-o", "odd", "--force"], "00002.nac: is there already and no file");
    assert_eq!(names(&path("odd")), ["00002.nac"]);
    std::fs::create_dir(path("more")).unwrap();
    std::fs::write(path("more/00003.nac"), "").unwrap();
    refused(&["-o", "more", "--force"], "00003.nac: is there already, but is none of 3 files");
    assert_eq!(names(&path("more")), ["00003.nac"]);
    refused(&["-o", "wi.nac/00000.nac"], "cannot create");
    std::fs::write(path("file"), "").unwrap();
    refused(&["-o", "file"], "file: is no folder, which --split needs");
    refused(&["-o", "-"], "--split writes files, not to stdout");
}

#[test]
fn split_files_lie_beside_their_input_or_in_its_tree() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path("in/deep")).unwrap();
    for (from, to) in
        [("windows.dac", "in/a.v2.dac"), ("whole.dac", "in/deep/b.dac"), ("causal.ecdc", "in/deep/c.ecdc")]
    {
        std::fs::copy(root().join("tests/vectors/exchange").join(from), path(to)).unwrap();
    }
    let run = |more: &[&str]| {
        let output =
            codec().current_dir(dir.path()).args(["import", "--split", "in"]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let mut lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let lines = run(&["-o", "out"]);
    assert!(
        lines[0].starts_with("in/a.v2.dac -> out/a.v2: ") && lines[0].ends_with(", 3 files"),
        "{lines:?}"
    );
    assert!(lines[1].starts_with("in/deep/b.dac -> out/deep/b: ") && lines[1].ends_with(", 1 file"));
    let lines = run(&[]);
    assert!(lines[2].starts_with("in/deep/c.ecdc -> in/deep/c: "), "{lines:?}");
    for folder in ["out", "in"] {
        assert_eq!(names(&path(folder).join("a.v2")).len(), 3);
        for name in ["b", "c"] {
            assert_eq!(names(&path(folder).join("deep").join(name)), ["00000.nac"]);
        }
    }
    assert!(run(&[]).iter().all(|line| line.contains("is there already, left alone")));
}

#[test]
fn rows_of_several_rates_are_no_array() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let npy = |n_rows: usize| {
        let shape = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({n_rows}, 8), }}");
        let mut bytes = b"\x93NUMPY\x01\0v\0".to_vec();
        bytes.extend(shape.as_bytes());
        bytes.resize(127, b' ');
        bytes.push(b'\n');
        bytes.resize(128 + 4 * 8 * n_rows, 0);
        bytes
    };
    std::fs::write(path("a.npy"), npy(3)).unwrap();
    std::fs::write(path("b.npy"), npy(1)).unwrap();
    let import = |name: &str| {
        codec().current_dir(dir.path()).args(["import", "-m", "snac_24khz", name]).output().unwrap()
    };
    let output = import("a.npy");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("codebooks of several rates, which are no array"),
        "{}",
        stderr(&output)
    );
    // The first codebook alone has one rate.
    assert!(import("b.npy").status.success());
    assert_eq!(names(dir.path()), ["a.npy", "b.nac", "b.npy"]);
    let output =
        codec().current_dir(dir.path()).args(["export", "b.nac", "--to", "npy"]).arg("--force").output();
    assert!(output.unwrap().status.success());
}

#[test]
fn codes_of_the_file_of_an_original_package_go_to_that_package() {
    let dir = tempfile::tempdir().unwrap();
    let vector = |name: &str| root().join("tests/vectors/exchange").join(name);
    let run = |arguments: &[&str]| {
        let output = codec().current_dir(dir.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        output
    };
    // That file has a card of its own, and the package one name for both.
    let ecdc = vector("causal.ecdc");
    let imported =
        run(&["import", "--json", ecdc.to_str().unwrap(), "-m", "encodec_24khz-original", "-o", "a.nac"]);
    assert_eq!(json(&imported)[0]["model"], "encodec_24khz-original");
    run(&["export", "a.nac", "-o", "a.ecdc"]);
    assert!(std::fs::read(dir.path().join("a.ecdc")).unwrap() == std::fs::read(ecdc).unwrap());
    let dac = vector("windows.dac");
    run(&["import", dac.to_str().unwrap(), "-m", "dac_44khz-original", "--split", "-o", "d.nac"]);
    assert_eq!(names(&dir.path().join("d")), ["00000.nac", "00001.nac", "00002.nac"]);
}

#[test]
fn exported_arrays_come_back_as_the_file_that_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 2, 0.6);
    let run = |arguments: &[&str]| {
        let output = codec().current_dir(dir.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        output
    };
    run(&["tokenize", "a.wav", "--each-channel", "--tag", "who=me"]);
    let original = std::fs::read(path("a.nac")).unwrap();
    for format in ["npz", "safetensors"] {
        let array = format!("a.{format}");
        run(&["export", "a.nac", "-o", &array]);
        run(&["import", &array, "-o", "back.nac", "--force"]);
        assert!(std::fs::read(path("back.nac")).unwrap() == original, "{format}");
        let wrong = codec()
            .args(["import", "-m", "mimi", "-o"])
            .arg(path("w.nac"))
            .arg(path(&array))
            .output()
            .unwrap();
        assert_eq!(wrong.status.code(), Some(1));
        assert!(stderr(&wrong).contains("made its codes, not mimi"), "{}", stderr(&wrong));
    }
    run(&["export", "a.nac", "-o", "a.npy"]);
    let model = root().join("examples/encodec-tiny");
    let model = model.to_str().unwrap();
    let guessed = run(&["import", "a.npy", "-m", model, "-o", "guessed.nac"]);
    assert!(stderr(&guessed).contains("taken for 2 channels"), "{}", stderr(&guessed));
    run(&["import", "a.npy", "-m", model, "--channels", "2", "-o", "told.nac"]);
    let codes = |name: &str| {
        let file = std::fs::File::open(path(name)).unwrap();
        let mut reader = codec_io::tokens::TokenReader::open(std::io::BufReader::new(file)).unwrap();
        (reader.header().audio, reader.read_all().unwrap())
    };
    assert_eq!(codes("guessed.nac"), codes("a.nac"));
    assert_eq!(codes("told.nac"), codes("a.nac"));
    for (channels, expected) in [("3", "not those of 3 channels"), ("1", "--channels tells")] {
        let mut command = codec();
        command
            .args(["import", "-m", model, "--channels", channels, "-o"])
            .arg(path("e.nac"))
            .arg(path("a.npy"));
        let output = command.output().unwrap();
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert!(!path("e.nac").exists());
}
