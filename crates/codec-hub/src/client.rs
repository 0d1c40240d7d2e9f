//! HTTP: one request at a time, its redirects followed by hand.
//!
//! Redirects are followed here and not by the HTTP library, because the token of the hub must go to
//! the hub's host and to no other, and because a redirect must not leave TLS.

use crate::error::{Error, Result};
use codec_io::card::Origin;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

/// The hub where no other is named.
const HUB: &str = "https://huggingface.co";
const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that is silent for so long is taken for dead.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How the network is to be used.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Where the Hugging Face Hub or a mirror of it answers.
    pub endpoint: String,
    /// What the hub wants to see for models that not everybody may fetch. It goes to no other host.
    pub token: Option<String>,
    /// The variable that forbids the network, if one does.
    pub offline: Option<&'static str>,
    /// Whether requests go through the proxies that the environment names.
    pub proxies: bool,
    /// Certificates to trust instead of the usual ones, PEM.
    pub certificates: Option<Vec<u8>>,
    /// Attempts in a row that bring no byte, before a transfer is given up.
    pub max_attempts: u32,
    /// The pause after the first of them; each further one is twice as long.
    pub pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: HUB.to_owned(),
            token: None,
            offline: None,
            proxies: false,
            certificates: None,
            max_attempts: 5,
            pause: Duration::from_secs(1),
        }
    }
}

impl Settings {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN` (or the token that `hf auth login` stored), `HF_HUB_OFFLINE`,
    /// `SSL_CERT_FILE`, and the proxies of `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    /// [`Error::Setting`] when a value cannot be used.
    pub fn from_env() -> Result<Self> {
        let mut settings = Self { proxies: true, token: token()?, ..Self::default() };
        if let Some(endpoint) = endpoint()? {
            settings.endpoint = endpoint;
        }
        let is_set = |name: &&str| variable(name).is_some_and(|value| is_true(&value));
        settings.offline = ["HF_HUB_OFFLINE"].into_iter().find(is_set);
        if let Some(path) = variable("SSL_CERT_FILE") {
            let certificates = std::fs::read(&path)
                .map_err(|e| Error::Setting { variable: "SSL_CERT_FILE", why: format!("{path}: {e}") })?;
            settings.certificates = Some(certificates);
        }
        Ok(settings)
    }
}

/// The address of a file, for a person: nothing is asked for. It is that of a pull, or, where `HF_ENDPOINT` is
/// no address, the one at Hugging Face.
pub fn address(origin: &Origin) -> String {
    let endpoint = endpoint().ok().flatten();
    url_at(endpoint.as_deref().unwrap_or(HUB), origin)
}

/// Asks servers for files.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    settings: Settings,
}

/// An answer that carries bytes of a file.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The byte of the file that the body starts with.
    pub(crate) from: u64,
    /// Length of the whole file, if the server says.
    pub(crate) length: Option<u64>,
    /// Names this version of the file.
    pub(crate) etag: Option<String>,
    /// The SHA-256 that the hub has for the file, in hexadecimal.
    pub(crate) sha256: Option<String>,
    /// Whether the end of the body can be told from a connection that broke.
    pub(crate) has_end: bool,
}

/// What came of a request for bytes.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Answer),
    /// The file has no such byte.
    BeyondEnd,
    /// It may work the next time, `after` the time that the server asks for.
    Failed {
        error: Error,
        after: Option<Duration>,
    },
}

impl Outcome {
    fn failed(url: String, why: impl Into<String>) -> Self {
        Self::Failed { error: Error::Connection { url, why: why.into() }, after: None }
    }
}

impl Client {
    /// A client with these settings.
    ///
    /// # Errors
    /// [`Error::Setting`] when the certificates are no PEM.
    pub fn new(settings: Settings) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &settings.certificates {
            let mut certificates = Vec::new();
            for item in ureq::tls::parse_pem(pem) {
                let why = |e: ureq::Error| Error::Setting { variable: "SSL_CERT_FILE", why: e.to_string() };
                if let PemItem::Certificate(certificate) = item.map_err(why)? {
                    certificates.push(certificate);
                }
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(if settings.proxies { Proxy::try_from_env() } else { None })
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("codec-hub/", env!("CARGO_PKG_VERSION")))
            // Lengths and offsets are those of the file, not of a compressed body.
            .accept_encoding("identity")
            .tls_config(tls.build())
            .build();
        Ok(Self { agent: config.new_agent(), settings })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The address of a file.
    pub fn url(&self, origin: &Origin) -> String {
        url_at(&self.settings.endpoint, origin)
    }

    /// Asks for the bytes of a file from `from` on; `etag` is the version that the earlier ones are of.
    /// An answer comes with its body.
    ///
    /// # Errors
    /// What asking again would not change.
    pub(crate) fn get(&self, start: &str, from: u64, etag: Option<&str>) -> Result<(Outcome, Option<Body>)> {
        if let Some(variable) = self.settings.offline {
            return Err(Error::Offline { url: start.to_owned(), variable });
        }
        let hub = origin_of(&self.settings.endpoint);
        let mut url = start.to_owned();
        let mut sha256 = None;
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
                if let Some(etag) = etag {
                    request = request.header("If-Range", etag);
                }
            }
            let is_hub = origin_of(&url) == hub;
            let token = self.settings.token.as_ref().filter(|_| is_hub);
            if let Some(token) = token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(e) if is_final(&e) => {
                    return Err(Error::Connection { url, why: e.to_string() });
                }
                Err(e) => return Ok((Outcome::failed(url, e.to_string()), None)),
            };
            let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
            // The hub says it before it sends elsewhere.
            sha256 = sha256.or_else(|| header("x-linked-etag").and_then(|etag| as_sha256(&etag)));
            let status = response.status().as_u16();
            match status {
                301 | 302 | 303 | 307 | 308 => {
                    url = redirected(&url, header("location"))?;
                }
                200 => {
                    let length = header("content-length").and_then(|text| text.parse().ok());
                    let is_chunked = header("transfer-encoding")
                        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
                    let (etag, has_end) = (header("etag"), length.is_some() || is_chunked);
                    let answer = Answer { from: 0, length, etag, sha256, has_end };
                    return Ok((Outcome::Answer(answer), Some(response.into_body())));
                }
                206 => {
                    let Some((first, length)) = header("content-range").and_then(|text| content_range(&text))
                    else {
                        let why = "the server answers with a part that it does not name";
                        return Ok((Outcome::failed(url, why), None));
                    };
                    // A part says itself where it ends.
                    let answer = Answer { from: first, length, etag: header("etag"), sha256, has_end: true };
                    return Ok((Outcome::Answer(answer), Some(response.into_body())));
                }
                416 => return Ok((Outcome::BeyondEnd, None)),
                408 | 425 | 429 | 500..=599 => {
                    let after = header("retry-after").and_then(|text| text.trim().parse().ok());
                    let hint = after.map(|n| format!("; it asks to be left alone for {n} s"));
                    let error = Error::Status { url, status, hint: hint.unwrap_or_default() };
                    return Ok((Outcome::Failed { error, after: after.map(Duration::from_secs) }, None));
                }
                _ => {
                    let hint = match status {
                        401 | 403 if token.is_some() => {
                            "; the token that it was shown is not enough: it may be wrong or have expired, or \
                             its owner has yet to accept the terms on the model's page"
                        }
                        401 | 403 if is_hub => "; it may want to see a token: set HF_TOKEN",
                        404 | 410 => "; the file is not there, or not for everybody",
                        _ => "",
                    };
                    return Err(Error::Status { url, status, hint: hint.to_owned() });
                }
            }
        }
        Err(Error::Redirect { url: start.to_owned(), why: "too many redirects" })
    }
}

/// Whether asking again would change nothing: a name without an address, or a request that cannot be written.
fn is_final(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::Http(_) | ureq::Error::BadUri(_) => true,
        // The standard library gives it no kind of its own.
        ureq::Error::Io(e) => e.to_string().starts_with("failed to lookup address information"),
        _ => false,
    }
}

/// Scheme, host and port: who a secret may be shown to.
fn origin_of(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?.to_owned();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

fn redirected(from: &str, location: Option<String>) -> Result<String> {
    let refused = |why| Error::Redirect { url: from.to_owned(), why };
    let location = location.ok_or_else(|| refused("a redirect to nowhere"))?;
    let to = if location.contains("://") {
        location
    } else {
        let (scheme, host, port) = origin_of(from).ok_or_else(|| refused("a redirect from nowhere"))?;
        if let Some(authority) = location.strip_prefix("//") {
            format!("{scheme}://{authority}")
        } else if location.starts_with('/') {
            format!("{scheme}://{host}:{port}{location}")
        } else {
            let folder = from.split(['?', '#']).next().and_then(|path| path.rsplit_once('/'));
            format!("{}/{location}", folder.map_or(from, |(folder, _)| folder))
        }
    };
    match origin_of(&to) {
        None => Err(refused("a redirect to something that is no web address")),
        Some((scheme, ..)) if scheme == "http" && from.starts_with("https://") => {
            Err(refused("a redirect from https to http is not followed"))
        }
        Some(_) => Ok(to),
    }
}

/// `bytes 5-99/100`: the first byte and the length of the file, if it is known.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, length.trim().parse().ok()))
}

/// An entity tag that is a SHA-256, without its quotes.
fn as_sha256(etag: &str) -> Option<String> {
    let digits = etag.trim_start_matches("W/").trim_matches('"');
    (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digits.to_ascii_lowercase())
}

fn url_at(endpoint: &str, origin: &Origin) -> String {
    match origin {
        Origin::Hub { repository, revision, path } => {
            format!("{endpoint}/{repository}/resolve/{revision}/{path}")
        }
        Origin::Url(url) => url.clone(),
    }
}

/// The hub that `HF_ENDPOINT` names.
fn endpoint() -> Result<Option<String>> {
    let Some(endpoint) = variable("HF_ENDPOINT") else { return Ok(None) };
    let endpoint = endpoint.trim_end_matches('/');
    if origin_of(endpoint).is_none() {
        let why = format!("`{endpoint}` is no http or https address");
        return Err(Error::Setting { variable: "HF_ENDPOINT", why });
    }
    Ok(Some(endpoint.to_owned()))
}

/// The token of `HF_TOKEN`, or else the one that `hf auth login` has stored.
fn token() -> Result<Option<String>> {
    // What is not even text is refused as any other sign that no token has.
    let named = std::env::var_os("HF_TOKEN").unwrap_or_default();
    let named = named.to_string_lossy();
    if !named.trim().is_empty() {
        return as_token(&named, "it").map(Some);
    }
    let Some((path, stored)) = stored_token() else { return Ok(None) };
    as_token(&stored, &format!("it is not set, and what lies in {}", path.display())).map(Some)
}

/// A token without the space around it. It goes into a header as it is, which would be refused in every attempt
/// and without a name; a token is a secret, so the error does not show it.
fn as_token(text: &str, what: &str) -> Result<String> {
    let token = text.trim();
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    let why = format!("{what} is no token: one has no spaces, line breaks or characters beyond ASCII inside");
    Err(Error::Setting { variable: "HF_TOKEN", why })
}

/// What `hf auth login` has stored, and where.
fn stored_token() -> Option<(PathBuf, String)> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
        return None;
    }
    let path =
        variable("HF_TOKEN_PATH").map(Into::into).or_else(|| Some(crate::cache::home()?.join("token")))?;
    let token = std::fs::read(&path).ok()?;
    let token = String::from_utf8_lossy(&token).into_owned();
    (!token.trim().is_empty()).then_some((path, token))
}

/// A variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// As the hub's own tools understand a switch.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_do_not_leave_tls() {
        let to = |from: &str, location: &str| redirected(from, Some(location.into())).ok();
        let from = "https://hub.example/a/b?c=/d";
        assert_eq!(to(from, "/x").as_deref(), Some("https://hub.example:443/x"));
        assert_eq!(to(from, "x").as_deref(), Some("https://hub.example/a/x"));
        assert_eq!(to(from, "//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(to(from, "https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(to(from, "http://hub.example/x"), None);
        assert_eq!(to(from, "file:///etc/passwd"), None);
        assert_eq!(to("http://localhost:1/x", "http://localhost:2/").as_deref(), Some("http://localhost:2/"));
        assert!(redirected(from, None).is_err());
    }

    #[test]
    fn headers_are_read() {
        assert_eq!(content_range("bytes 5-99/100"), Some((5, Some(100))));
        assert_eq!(content_range("bytes 5-99/*"), Some((5, None)));
        assert_eq!(content_range("bytes */100"), None);
        let digits = "AB".repeat(32);
        assert_eq!(as_sha256(&format!("\"{digits}\"")), Some(digits.to_lowercase()));
        assert_eq!(as_sha256("\"abc\""), None);
    }

    #[test]
    fn who_is_the_same_server() {
        assert_eq!(origin_of("https://Hub.example/a"), origin_of("https://hub.example:443/b"));
        assert_ne!(origin_of("https://hub.example/a"), origin_of("http://hub.example/a"));
        assert_ne!(origin_of("https://hub.example/"), origin_of("https://hub.example.evil.example/"));
        assert_ne!(origin_of("https://hub.example@evil.example/"), origin_of("https://hub.example/"));
        assert_eq!(origin_of("ftp://hub.example/a"), None);
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_showing_it() {
        assert_eq!(as_token(" hf_aBc-1\n", "it").unwrap(), "hf_aBc-1");
        for text in ["hf_a\nhf_b", "hf_a b", "hf_\u{e9}", "hf_\u{fffd}", "hf_\0"] {
            let error = as_token(text, "it").unwrap_err().to_string();
            assert!(error.starts_with("HF_TOKEN: it is no token") && !error.contains("hf_"), "{error}");
        }
    }
}
