//! Pulls from a local server: what arrives, what is kept, what is refused, and who sees the token.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise")]

mod support;

use codec_hub::{Checked, Client, Error, Expected, Progress, PullOptions, Settings, State, Store};
use codec_io::card::ModelCard;
use sha2::{Digest, Sha256};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Reply, Server};

const CARD: &str = r#"
name = "toy"
family = "none"
description = "A codec that nobody trained."
sample_rate = 16000
channels = 1
hop_length = 320
codebooks = [{ count = 1, size = 16 }]
bitrates = [200]
[source]
url = "https://huggingface.co/owner/toy"
revision = "v1"
[[files]]
name = "config.json"
[[files]]
name = "weights.raw"
[licence]
code = "MIT"
"#;
const CONFIG: &str = "/owner/toy/resolve/v1/config.json";
const WEIGHTS: &str = "/owner/toy/resolve/v1/weights.raw";

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that are unlike each other, more than one buffer of them.
fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn card(file_fields: &str) -> ModelCard {
    let text = CARD.replace("name = \"weights.raw\"", &format!("name = \"weights.raw\"\n{file_fields}"));
    ModelCard::parse(&text).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    /// A server that has the files of the card.
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), server: Server::start() };
        place.server.on(CONFIG, &[Reply::File(b"{}".to_vec())]);
        place.server.on(WEIGHTS, &[Reply::File(weights())]);
        place
    }

    fn store(&self) -> Store {
        Store::new(self.folder.path().join("models"), Some(self.folder.path().join("hub")))
    }

    fn client(&self, change: impl FnOnce(&mut Settings)) -> Client {
        let mut settings = Settings::default();
        settings.endpoint = self.server.url.clone();
        settings.pause = Duration::from_millis(1);
        change(&mut settings);
        Client::new(settings).unwrap()
    }

    fn pull(&self, card: &ModelCard) -> Result<codec_hub::Found, Error> {
        self.pull_with(card, &self.client(|_| {}), PullOptions::default())
    }

    fn pull_with(
        &self,
        card: &ModelCard,
        client: &Client,
        options: PullOptions,
    ) -> Result<codec_hub::Found, Error> {
        self.store().pull(card, client, options, &mut |_| ControlFlow::Continue(()))
    }

    /// Pulls with a client of one's own until something happens that ends it.
    fn pull_until(
        &self,
        change: impl FnOnce(&mut Settings),
        mut is_end: impl FnMut(&Progress<'_>) -> bool,
    ) -> Result<codec_hub::Found, Error> {
        let mut on_progress = |progress: Progress<'_>| {
            if is_end(&progress) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.store().pull(&card(""), &self.client(change), PullOptions::default(), &mut on_progress)
    }

    /// Compares the files with what is known of them, where they are there.
    fn verify(&self, card: &ModelCard) -> Option<Vec<Checked>> {
        let found = self.store().find(card).unwrap()?;
        Some(card.files.iter().map(|file| found.check(file).unwrap()).collect())
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("models/toy")).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn n_requests(&self, path: &str) -> usize {
        self.server.requests().iter().filter(|request| request.path == path).count()
    }
}

#[test]
fn a_pulled_model_is_found_verified_and_not_fetched_again() {
    let place = Place::new();
    let card = card("");
    assert!(place.store().find(&card).unwrap().is_none());
    let found = place.pull(&card).unwrap();
    assert_eq!(std::fs::read(&found.files[1]).unwrap(), weights());
    assert_eq!(found.sha256["weights.raw"].to_string(), hex(&weights()));
    assert_eq!(place.names(), ["codec-lock.json", "config.json", "weights.raw"]);

    // From now on without the network.
    let n_requests = place.server.requests().len();
    let found = place.store().find(&card).unwrap().unwrap();
    assert_eq!(found.sha256["weights.raw"].to_string(), hex(&weights()));
    let states: Vec<State> = place.verify(&card).unwrap().into_iter().map(|checked| checked.state).collect();
    assert_eq!(states, [State::Locked, State::Locked]);
    place.pull(&card).unwrap();
    assert_eq!(place.server.requests().len(), n_requests);
}

#[test]
fn a_file_that_changed_since_it_was_first_seen_is_refused() {
    let place = Place::new();
    let card = card("");
    let found = place.pull(&card).unwrap();
    std::fs::write(&found.files[1], b"other").unwrap();
    let refused = |result: Result<_, Error>| {
        let Err(Error::Hash { expected, .. }) = result else { panic!("not refused") };
        assert_eq!(expected, hex(&weights()));
    };
    let checked = place.verify(&card).unwrap();
    assert_eq!(checked[0].state, State::Locked, "the other file is as it was");
    assert_eq!(checked[1].state, State::Changed(Expected::Sha256(hex(&weights()))));
    assert_eq!((checked[1].size, checked[1].sha256.to_string()), (5, hex(b"other")));
    refused(checked[1].clone().accepted().map(drop));
    refused(place.pull(&card).map(drop));
    // Fetched anew from a server that has something else by now: refused, and nothing is left of it.
    std::fs::remove_file(&found.files[1]).unwrap();
    place.server.on(WEIGHTS, &[Reply::File(b"yet another".to_vec())]);
    refused(place.pull(&card).map(drop));
    assert_eq!(place.names(), ["codec-lock.json", "config.json"]);
    // Until the user says that it is meant.
    let force = PullOptions { force: true, ..PullOptions::default() };
    place.pull_with(&card, &place.client(|_| {}), force).unwrap();
    assert_eq!(std::fs::read(&found.files[1]).unwrap(), b"yet another");
}

#[test]
fn the_lock_beside_the_files_counts_whichever_folder_is_the_first() {
    let place = Place::new();
    let card = card("");
    let found = place.pull(&card).unwrap();
    let path = |name: &str| place.folder.path().join(name);
    let store = || Store::new(path("first"), Some(path("hub"))).with_folder(path("models"));
    let states = |store: &Store| -> Vec<State> {
        let found = store.find(&card).unwrap().unwrap();
        card.files.iter().map(|file| found.check(file).unwrap().state).collect()
    };
    let pull = |store: &Store| {
        let client = place.client(|_| {});
        store.pull(&card, &client, PullOptions::default(), &mut |_| ControlFlow::Continue(()))
    };
    assert_eq!(states(&store()), [State::Locked, State::Locked]);
    std::fs::write(&found.files[1], b"other").unwrap();
    let changed = State::Changed(Expected::Sha256(hex(&weights())));
    assert_eq!(states(&store()), [State::Locked, changed.clone()]);
    assert!(matches!(pull(&store()), Err(Error::Hash { .. })));

    // What was not taken down yet is, beside the files and not in the first folder.
    std::fs::remove_file(found.folder.join("codec-lock.json")).unwrap();
    assert_eq!(states(&store()), [State::Unknown, State::Unknown]);
    pull(&store()).unwrap();
    assert_eq!(states(&store()), [State::Locked, State::Locked]);
    assert!(place.names().contains(&"codec-lock.json".to_owned()) && !path("first").exists());

    // No lock is written into a cache of others: what it holds is known from whichever folder.
    let snapshot = path("hub/models--owner--toy/snapshots/v1");
    std::fs::create_dir_all(&snapshot).unwrap();
    for file in &found.files {
        std::fs::rename(file, snapshot.join(file.file_name().unwrap())).unwrap();
    }
    assert_eq!(states(&store()), [State::Locked, State::Locked]);
    std::fs::write(snapshot.join("weights.raw"), weights()).unwrap();
    assert_eq!(states(&store())[1], State::Changed(Expected::Sha256(hex(b"other"))));
}

#[test]
fn the_hash_of_the_card_decides() {
    let place = Place::new();
    let right = card(&format!("sha256 = \"{}\"\nsize = 300000", hex(&weights())));
    place.pull(&right).unwrap();
    assert_eq!(place.verify(&right).unwrap()[1].state, State::Published);
    std::fs::write(place.folder.path().join("models/toy/weights.raw"), b"short").unwrap();
    assert_eq!(place.verify(&right).unwrap()[1].state, State::Changed(Expected::Size(300_000)));

    let wrong = [
        format!("sha256 = \"{}\"", hex(b"other")),
        "sha256_prefix = \"00000000\"".to_owned(),
        "size = 299999".to_owned(),
    ];
    for fields in wrong {
        let place = Place::new();
        let error = place.pull(&card(&fields)).unwrap_err();
        assert!(matches!(error, Error::Hash { .. } | Error::Size { .. }), "{fields}: {error}");
        assert_eq!(place.names(), ["codec-lock.json", "config.json"], "{fields}");
    }
    let place = Place::new();
    place.pull(&card(&format!("sha256_prefix = \"{}\"", &hex(&weights())[..8]))).unwrap();
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let place = Place::new();
    place.server.on(WEIGHTS, &[Reply::Breaks { bytes: weights(), after: 70_000 }]);
    let found = place.pull(&card("")).unwrap();
    assert_eq!(std::fs::read(&found.files[1]).unwrap(), weights());
    let requests = place.server.requests();
    let ranges: Vec<_> =
        requests.iter().filter(|r| r.path == WEIGHTS).filter_map(|r| r.headers.get("range")).collect();
    assert_eq!(ranges, ["bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]);
}

#[test]
fn an_interrupted_pull_goes_on_in_the_next_run() {
    let place = Place::new();
    let card = card("");
    let mut stop = |progress: Progress<'_>| match progress {
        Progress::Transfer { file: "weights.raw", n_bytes: 60_000.., .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error =
        place.store().pull(&card, &place.client(|_| {}), PullOptions::default(), &mut stop).unwrap_err();
    assert!(matches!(error, Error::Stopped));
    assert!(place.store().find(&card).unwrap().is_none(), "half a file is no file");
    let part = place.folder.path().join("models/toy/weights.raw.part");
    let n_kept = part.metadata().unwrap().len();
    assert!(n_kept >= 60_000);
    place.pull(&card).unwrap();
    let last = place.server.requests().pop().unwrap();
    assert_eq!(last.headers["range"], format!("bytes={n_kept}-"));
    assert_eq!(place.names(), ["codec-lock.json", "config.json", "weights.raw"]);
}

#[test]
fn another_version_of_the_file_starts_again() {
    let place = Place::new();
    let mut old = weights();
    old.reverse();
    place.server.on(WEIGHTS, &[Reply::Breaks { bytes: old, after: 100_000 }, Reply::File(weights())]);
    let found = place.pull(&card("")).unwrap();
    assert_eq!(std::fs::read(&found.files[1]).unwrap(), weights());
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let place = Place::new();
    let replies = [Reply::Breaks { bytes: weights(), after: 100_000 }, Reply::WithoutRanges(weights())];
    place.server.on(WEIGHTS, &replies);
    let found = place.pull(&card("")).unwrap();
    assert_eq!(std::fs::read(&found.files[1]).unwrap(), weights());
}

#[test]
fn a_remainder_that_is_longer_than_the_file_is_thrown_away() {
    let place = Place::new();
    std::fs::create_dir_all(place.folder.path().join("models/toy")).unwrap();
    std::fs::write(place.folder.path().join("models/toy/weights.raw.part"), vec![7; 400_000]).unwrap();
    let found = place.pull(&card("")).unwrap();
    assert_eq!(std::fs::read(&found.files[1]).unwrap(), weights());
}

#[test]
fn a_body_that_never_becomes_whole_is_an_error_with_both_lengths() {
    let place = Place::new();
    let breaks = Reply::Breaks { bytes: weights(), after: 50_000 };
    place.server.on(WEIGHTS, &[breaks, Reply::Breaks { bytes: weights(), after: 0 }]);
    let error = place.pull(&card("")).unwrap_err();
    assert!(matches!(error, Error::Truncated { expected: 300_000, actual: 50_000, .. }), "{error}");
    assert_eq!(place.n_requests(WEIGHTS), 1 + 5);
    assert!(!place.names().contains(&"weights.raw".to_owned()));
}

#[test]
fn what_is_refused_is_not_asked_for_again_and_what_fails_is() {
    for (status, expected) in [(404, "not there"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (400, "400")] {
        let place = Place::new();
        place.server.on(WEIGHTS, &[Reply::Status(status)]);
        let error = place.pull(&card("")).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(WEIGHTS), "{error}");
        assert_eq!(place.n_requests(WEIGHTS), 1, "{status}");
    }
    let place = Place::new();
    place
        .server
        .on(WEIGHTS, &[Reply::Status(503), Reply::HangUp, Reply::Status(429), Reply::File(weights())]);
    place.pull(&card("")).unwrap();
    assert_eq!(place.n_requests(WEIGHTS), 4);
}

#[test]
fn a_token_that_is_not_enough_is_not_asked_for_again() {
    for status in [401, 403] {
        let place = Place::new();
        place.server.on(WEIGHTS, &[Reply::Status(status)]);
        let client = place.client(|settings| settings.token = Some("secret".to_owned()));
        let error = place.pull_with(&card(""), &client, PullOptions::default()).unwrap_err().to_string();
        assert!(error.contains("accept the terms on the model's page"), "{error}");
        assert!(!error.contains("HF_TOKEN"), "{error}");
    }
}

#[test]
fn nothing_is_made_before_the_first_byte() {
    for (reply, offline) in
        [(Reply::Status(401), None), (Reply::HangUp, None), (Reply::File(Vec::new()), Some("HF_HUB_OFFLINE"))]
    {
        let place = Place::new();
        place.server.on(CONFIG, &[reply]);
        place.pull_until(|settings| settings.offline = offline, |_| false).unwrap_err();
        assert!(!place.folder.path().join("models").exists());
    }
}

#[test]
fn what_is_no_file_of_a_model_is_refused_and_not_taken_down() {
    let whole = b"{\"a\": 1}".to_vec();
    let refused = [
        Reply::File(b"<html>Log in</html>".to_vec()),
        Reply::File(Vec::new()),
        Reply::Unmeasured(Vec::new()),
        Reply::Unmeasured(whole.clone()),
        Reply::Unmeasured(whole[..4].to_vec()),
        Reply::Chunked { bytes: whole[..4].to_vec(), is_whole: true },
        Reply::Chunked { bytes: whole.clone(), is_whole: false },
    ];
    for reply in refused {
        let place = Place::new();
        place.server.on(CONFIG, std::slice::from_ref(&reply));
        let error = place.pull(&card("")).unwrap_err();
        assert!(!place.names().contains(&"config.json".to_owned()), "{reply:?}");
        assert!(!place.names().contains(&"codec-lock.json".to_owned()), "{reply:?}: {error}");
    }
    // Where the end of a body, or what the file has to be, is known, the file is accepted.
    let place = Place::new();
    place.server.on(CONFIG, &[Reply::Chunked { bytes: whole, is_whole: true }]);
    place.server.on(WEIGHTS, &[Reply::Unmeasured(weights())]);
    assert!(matches!(place.pull(&card("")), Err(Error::NoLength { .. })));
    place.pull(&card(&format!("sha256 = \"{}\"", hex(&weights())))).unwrap();

    // What was taken down before such things were refused.
    let place = Place::new();
    let folder = place.folder.path().join("models/toy");
    place.pull(&card("")).unwrap();
    let lock = std::fs::read_to_string(folder.join("codec-lock.json")).unwrap();
    let lock = lock.replace(&hex(b"{}"), &hex(b"<html>"));
    std::fs::write(folder.join("codec-lock.json"), lock).unwrap();
    std::fs::write(folder.join("config.json"), b"<html>").unwrap();
    let error = place.pull(&card("")).unwrap_err().to_string();
    assert!(error.contains("not JSON") && error.contains("<html>") && error.contains("--force"), "{error}");
}

#[test]
fn a_forced_pull_that_fails_forgets_only_what_it_fetched() {
    let place = Place::new();
    place.pull(&card("")).unwrap();
    place.server.on(CONFIG, &[Reply::File(b"[]".to_vec())]);
    place.server.on(WEIGHTS, &[Reply::Status(404)]);
    let force = PullOptions { force: true, ..PullOptions::default() };
    place.pull_with(&card(""), &place.client(|_| {}), force).unwrap_err();
    let checked = place.verify(&card("")).unwrap();
    assert_eq!(checked[0].sha256.to_string(), hex(b"[]"));
    assert!(checked.iter().all(|checked| checked.state == State::Locked), "{checked:?}");
}

#[test]
fn a_pull_can_be_stopped_while_nothing_comes() {
    let stalls = Reply::Stalls { bytes: weights(), after: 100 };
    // With the bytes that come, and whether it is stopped in the pause before the next attempt.
    for (reply, n_wanted, in_pause) in
        [(stalls, 100, false), (Reply::Silent, 0, false), (Reply::Status(503), 0, true)]
    {
        let place = Place::new();
        place.server.on(WEIGHTS, std::slice::from_ref(&reply));
        let (start, mut n_times, mut is_pause) = (Instant::now(), 0, false);
        let is_end = |progress: &Progress<'_>| {
            is_pause |= matches!(progress, Progress::Retry { .. });
            if let Progress::Transfer { file: "weights.raw", n_bytes, .. } = progress
                && *n_bytes == n_wanted
                && is_pause == in_pause
            {
                n_times += 1;
            }
            // Not the first time, when the bytes have just come.
            n_times > 2
        };
        let error =
            place.pull_until(|settings| settings.pause = Duration::from_secs(60), is_end).unwrap_err();
        assert!(matches!(error, Error::Stopped), "{reply:?}: {error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{reply:?}: {:?}", start.elapsed());
    }
}

#[test]
fn every_new_attempt_is_told() {
    let place = Place::new();
    let later = Reply::Later { status: 429, retry_after: 1 };
    place.server.on(WEIGHTS, &[later, Reply::Status(500), Reply::File(weights())]);
    let start = Instant::now();
    let mut told = Vec::new();
    let note = |progress: &Progress<'_>| {
        if let Progress::Retry { file, attempt, n_attempts, pause, why } = progress {
            let status = if let Error::Status { status, .. } = why { *status } else { 0 };
            told.push(((*file).to_owned(), *attempt, *n_attempts, pause.as_millis(), status));
        }
        false
    };
    place.pull_until(|_| {}, note).unwrap();
    let name = || "weights.raw".to_owned();
    assert_eq!(told, [(name(), 2, 5, 1000, 429), (name(), 3, 5, 2, 500)]);
    assert!(start.elapsed() >= Duration::from_secs(1));

    // A server that wants to be left alone for long is.
    place.server.on(CONFIG, &[Reply::Later { status: 503, retry_after: 3600 }]);
    std::fs::remove_file(place.folder.path().join("models/toy/config.json")).unwrap();
    let error = place.pull_until(|_| {}, |progress| matches!(progress, Progress::Retry { .. })).unwrap_err();
    assert!(error.to_string().contains("for 3600 s"), "{error}");
}

#[test]
fn a_host_without_an_address_is_asked_for_once() {
    let place = Place::new();
    let endpoint = |settings: &mut Settings| settings.endpoint = "http://hub.invalid".to_owned();
    let error =
        place.pull_until(endpoint, |progress| matches!(progress, Progress::Retry { .. })).unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
}

#[test]
fn a_request_that_cannot_be_written_is_not_tried_again() {
    let place = Place::new();
    let token = |settings: &mut Settings| settings.token = Some("a\nb".to_owned());
    let error = place.pull_until(token, |progress| matches!(progress, Progress::Retry { .. })).unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    assert!(place.server.requests().is_empty());
}

#[test]
fn a_dead_server_is_given_up() {
    let place = Place::new();
    let client = place.client(|settings| settings.endpoint = support::nobody());
    let error = place.pull_with(&card(""), &client, PullOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    let place = Place::new();
    place.server.on(CONFIG, &[Reply::HangUp]);
    assert!(matches!(place.pull(&card("")), Err(Error::Connection { .. })));
    assert_eq!(place.n_requests(CONFIG), 5);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let (place, store) = (Place::new(), Server::start());
    let elsewhere = format!("{}/blob", store.url);
    let redirect = |to: &str| Reply::Redirect { to: to.to_owned(), linked_etag: None };
    // Within the hub first, relative, then to another host.
    place.server.on(WEIGHTS, &[redirect("/renamed")]);
    place.server.on("/renamed", &[redirect(&elsewhere)]);
    store.on("/blob", &[Reply::File(weights())]);
    let client = place.client(|settings| settings.token = Some("secret".to_owned()));
    place.pull_with(&card(""), &client, PullOptions::default()).unwrap();
    let is_shown = |server: &Server| -> Vec<bool> {
        server
            .requests()
            .iter()
            .map(|r| r.headers.get("authorization").is_some_and(|a| a == "Bearer secret"))
            .collect()
    };
    assert_eq!(is_shown(&place.server), [true, true, true]);
    assert_eq!(is_shown(&store), [false]);
}

#[test]
fn redirects_that_lead_in_circles_or_nowhere_are_errors() {
    for to in [WEIGHTS, "ftp://example.org/w", "javascript:"] {
        let place = Place::new();
        place.server.on(WEIGHTS, &[Reply::Redirect { to: to.to_owned(), linked_etag: None }]);
        let error = place.pull(&card("")).unwrap_err();
        assert!(matches!(error, Error::Redirect { .. } | Error::Status { .. }), "{to}: {error}");
    }
}

#[test]
fn the_hash_that_the_hub_states_is_checked() {
    let place = Place::new();
    let redirect = |sha256: String| Reply::Redirect { to: "/blob".into(), linked_etag: Some(sha256) };
    place.server.on("/blob", &[Reply::File(weights())]);
    place.server.on(WEIGHTS, &[redirect(hex(b"other"))]);
    assert!(matches!(place.pull(&card("")), Err(Error::Hash { .. })));
    place.server.on(WEIGHTS, &[redirect(hex(&weights()))]);
    place.pull(&card("")).unwrap();
}

#[test]
fn weights_that_are_not_for_business_need_a_yes() {
    let place = Place::new();
    let text = format!("{CARD}weights = \"CC-BY-NC-4.0\"\nnon_commercial = true\n");
    let card = ModelCard::parse(&text).unwrap();
    let error = place.pull(&card).unwrap_err();
    assert!(matches!(&error, Error::NonCommercial { licence, .. } if licence == "CC-BY-NC-4.0"), "{error}");
    assert!(place.server.requests().is_empty());
    let options = PullOptions { accept_non_commercial: true, ..PullOptions::default() };
    place.pull_with(&card, &place.client(|_| {}), options).unwrap();
}

#[test]
fn nothing_is_fetched_offline() {
    let place = Place::new();
    let client = place.client(|settings| settings.offline = Some("HF_HUB_OFFLINE"));
    let error = place.pull_with(&card(""), &client, PullOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert!(place.server.requests().is_empty());
}

#[test]
fn what_other_tools_have_fetched_is_used_where_it_lies() {
    let place = Place::new();
    let repository = place.folder.path().join("hub/models--owner--toy");
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write(&repository.join("refs/v1"), b"c0ffee");
    write(&repository.join("snapshots/other/config.json"), b"old");
    write(&repository.join("snapshots/other/weights.raw"), b"old");
    write(&repository.join("snapshots/c0ffee/config.json"), b"{}");
    let card = card("");
    // The snapshot of the card's revision is not whole; another one is.
    let found = place.store().find(&card).unwrap().unwrap();
    assert!(found.folder.ends_with("snapshots/other"), "{found:?}");
    write(&repository.join("snapshots/c0ffee/weights.raw"), &weights());
    let found = place.store().find(&card).unwrap().unwrap();
    assert!(found.folder.ends_with("snapshots/c0ffee"), "{found:?}");

    // A pull takes the hashes down and fetches nothing.
    place.pull(&card).unwrap();
    assert!(place.server.requests().is_empty());
    assert_eq!(place.names(), ["codec-lock.json"]);
    write(&repository.join("snapshots/c0ffee/weights.raw"), b"changed");
    assert!(matches!(place.verify(&card).unwrap()[1].state, State::Changed(Expected::Sha256(_))));
}

#[test]
fn two_pulls_at_once_do_not_share_a_file() {
    let place = Place::new();
    let card = card("");
    let client = place.client(|_| {});
    let mut second = None;
    let mut on_progress = |progress: Progress<'_>| {
        if let Progress::Transfer { file: "weights.raw", n_bytes: 1.., .. } = progress {
            second.get_or_insert_with(|| place.pull(&card).unwrap_err());
        }
        ControlFlow::Continue(())
    };
    place.store().pull(&card, &client, PullOptions::default(), &mut on_progress).unwrap();
    assert!(matches!(second, Some(Error::Busy { .. })), "{second:?}");
}

#[test]
fn a_broken_lock_file_is_named() {
    let place = Place::new();
    let folder = place.folder.path().join("models/toy");
    std::fs::create_dir_all(&folder).unwrap();
    for text in ["", "{", "{\"files\": {\"a\": {\"sha256\": \"xyz\", \"size\": 1, \"source\": \"\"}}}"] {
        std::fs::write(folder.join("codec-lock.json"), text).unwrap();
        let error = place.pull(&card("")).unwrap_err();
        assert!(matches!(error, Error::Lock { .. }), "{text}: {error}");
        let force = PullOptions { force: true, ..PullOptions::default() };
        place.pull_with(&card(""), &place.client(|_| {}), force).unwrap();
        assert_eq!(place.verify(&card("")).unwrap()[1].state, State::Locked);
    }
}
