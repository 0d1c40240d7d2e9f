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
