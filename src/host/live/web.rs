//! Files from the web: over https, with redirects followed by hand so that none leads to plain http unseen, with a limit
//! on what a server may send, and taken up again where a connection broke.

mod room;
#[cfg(test)]
pub(super) mod server;
mod sums;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

pub(super) use room::Room;
pub(super) use sums::Sums;

use crate::host::HostError;
use crate::image::Digest;

/// How long a server may take to accept, and to send the next bytes.
const PATIENCE: Duration = Duration::from_secs(30);
/// More redirects than this are a circle.
const MOST_REDIRECTS: usize = 5;
/// How often a connection that broke is taken up again within a step.
const TRIES: usize = 4;
/// No image of a cloud is larger.
const LARGEST: u64 = 64 << 30;
/// A server that sends less than this within the time is as good as gone: a run that waits holds the lock.
const PACE: Pace = Pace { least: 1 << 20, within: Duration::from_secs(60), all: Duration::from_secs(12 * 3600) };
/// How long a small file may take as a whole.
const SMALL_LIMIT: Duration = Duration::from_secs(120);
/// How often it is told how far a download is.
const TELL_AGAIN: Duration = Duration::from_millis(500);

/// What a file has to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Want {
    /// What it adds up to.
    pub digest: Option<Digest>,
    /// Its bytes, where that is known beforehand.
    pub size: Option<u64>,
    /// Plain http will do: what is wanted is known by a digest that no list has said.
    pub plain: bool,
}

/// A file that is not whole yet, and what there has to be to go on with it.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Part {
    url: String,
    /// The server's own word for this content (RFC 9110, 8.8).
    validator: Option<String>,
    digest: Option<String>,
}

/// How slow a server may be.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// So many bytes at least, …
    least: u64,
    /// … each time that this is over.
    within: Duration,
    /// A file as a whole, in all of its tries.
    all: Duration,
}

/// What became of one try.
enum Tried {
    Whole,
    /// Nothing more is to be had now; what had come before is as good as it was.
    Refused(HostError),
    /// The connection broke, after more had come than before.
    Cut(String),
    /// What is there is of no use to the server: once more from the beginning.
    Again,
}

/// Whoever fetches.
#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    /// Servers that may be asked over plain http: those of tests.
    plain: Vec<String>,
    pace: Pace,
    /// For whatever is put beside what is fetched.
    pub room: Room,
}

fn refused(url: &Url, why: impl std::fmt::Display) -> HostError {
    HostError::Refused(format!("{url}: {why}"))
}

/// An error of the connection, with what lies under it: the top says little.
fn why(error: &reqwest::Error) -> String {
    let mut said = Vec::new();
    let mut at = error.source();
    while let Some(e) = at {
        said.push(e.to_string());
        at = e.source();
    }
    let last = said.pop().unwrap_or_else(|| error.to_string());
    if error.is_timeout() {
        format!("no answer within {} s", PATIENCE.as_secs())
    } else if error.is_connect() {
        format!("no connection: {last}")
    } else {
        last
    }
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

impl Web {
    /// Trusts what the system trusts.
    pub fn new() -> Result<Self, HostError> {
        // Another one that is there already serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .user_agent(concat!("gpuvm/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| HostError::Refused(format!("https is not to be had: {}", why(&e))))?;
        Ok(Self { client, plain: Vec::new(), pace: PACE, room: Room::default() })
    }

    /// For tests: this server may be asked over plain http.
    #[cfg(test)]
    pub fn with_plain(server: &str) -> Self {
        Self { plain: vec![server.to_owned()], ..Self::new().unwrap() }
    }

    fn permitted(&self, url: &Url, plain: bool) -> Result<(), HostError> {
        let known = || {
            let server = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
            self.plain.contains(&server)
        };
        match url.scheme() {
            "https" => Ok(()),
            "http" if plain || known() => Ok(()),
            "http" => Err(refused(url, "plain http, which anyone on the way can change; give a digest, or use https")),
            other => Err(refused(url, format!("nothing is fetched by `{other}`"))),
        }
    }

    /// Asks, and follows redirects.
    fn get(&self, url: &Url, headers: &HeaderMap, plain: bool) -> Result<Response, HostError> {
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            self.permitted(&at, plain).map_err(|e| match at == *url {
                true => e,
                false => HostError::Refused(format!("{url} was redirected: {e}")),
            })?;
            let response =
                self.client.get(at.clone()).headers(headers.clone()).send().map_err(|e| refused(&at, why(&e)))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let to = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).unwrap_or_default();
            at = at.join(to).map_err(|e| refused(&at, format!("it redirects to nowhere: {e}")))?;
        }
        Err(refused(url, format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// A small file, whole in memory.
    pub fn small(&self, url: &str, most: u64, plain: bool) -> Result<Vec<u8>, HostError> {
        let url = address(url)?;
        let mut response = self.get(&url, &HeaderMap::new(), plain)?;
        if response.status() != StatusCode::OK {
            return Err(refused(&url, status(response.status())));
        }
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        let (begun, limit) = (Instant::now(), SMALL_LIMIT.min(self.pace.all));
        loop {
            match response.read(&mut buffer).map_err(|e| refused(&url, format!("it broke off: {e}")))? {
                0 => return Ok(bytes),
                n => bytes.extend_from_slice(&buffer[..n]),
            }
            if bytes.len() as u64 > most {
                return Err(refused(&url, format!("more than {}, which no such file has", mib(most))));
            }
            if begun.elapsed() > limit {
                return Err(refused(&url, format!("it did not come within {} s; try again later", limit.as_secs())));
            }
        }
    }

    /// A large file. It lies at `part` when it is whole and what it has to be. What is wrong leaves nothing there; what
    /// is only not whole stays, and the next try goes on with it.
    pub fn large(
        &self,
        url: &str,
        part: &Path,
        want: &Want,
        tell: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Sums, HostError> {
        let url = address(url)?;
        let (mut broke, mut times, begun) = (String::new(), 0, Instant::now());
        let got = || fs::metadata(part).map_or(0, |m| m.len());
        while times < TRIES && begun.elapsed() <= self.pace.all {
            times += 1;
            match self.one_try(&url, part, want, begun, tell).inspect_err(|_| forget(part))? {
                Tried::Cut(why) => broke = why,
                Tried::Again => forget(part),
                Tried::Refused(e) if got() > 0 => {
                    let after = if broke.is_empty() {
                        String::new()
                    } else {
                        format!(", after the connection broke ({broke})")
                    };
                    return Err(HostError::Refused(format!(
                        "{e}{after}; the {} that came stay, and the next try goes on there",
                        mib(got())
                    )));
                }
                Tried::Refused(e) => {
                    forget(part);
                    return Err(e);
                }
                Tried::Whole => {
                    let sums = Sums::of(part)?;
                    if let Some(digest) = want.digest.as_ref().filter(|d| !sums.is(d)) {
                        forget(part);
                        let is = match digest {
                            Digest::Sha256(_) => format!("sha256:{}", sums.sha256),
                            Digest::Sha512(_) => format!("sha512:{}", sums.sha512),
                        };
                        return Err(refused(
                            &url,
                            format!("it is {is}, and has to be {digest}; nothing of it was kept"),
                        ));
                    }
                    let _ = fs::remove_file(note(part));
                    return Ok(sums);
                }
            }
        }
        Err(refused(
            &url,
            format!(
                "the connection broke {times} times, last after {} ({broke}); the next try goes on there",
                mib(got())
            ),
        ))
    }

    fn one_try(
        &self,
        url: &Url,
        part: &Path,
        want: &Want,
        begun: Instant,
        tell: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Tried, HostError> {
        let digest = want.digest.as_ref().map(ToString::to_string);
        let known = fs::read(note(part)).ok().and_then(|bytes| serde_json::from_slice::<Part>(&bytes).ok());
        let known = known.filter(|k| k.url == url.as_str() && k.digest == digest);
        let validator = known.and_then(|k| k.validator);
        let mut have = validator.as_ref().map_or(0, |_| fs::metadata(part).map_or(0, |m| m.len()));
        let mut headers = HeaderMap::new();
        if let Some(tag) = validator.as_ref().filter(|_| have > 0).and_then(|v| HeaderValue::from_str(v).ok()) {
            headers.insert(IF_RANGE, tag);
            if let Ok(range) = HeaderValue::from_str(&format!("bytes={have}-")) {
                headers.insert(RANGE, range);
            }
        }
        let mut response = match self.get(url, &headers, want.plain) {
            Ok(response) => response,
            Err(e) => return Ok(Tried::Refused(e)),
        };
        let rest = response.content_length();
        let total = match response.status() {
            StatusCode::OK => {
                have = 0;
                rest
            }
            StatusCode::PARTIAL_CONTENT => match range(response.headers()) {
                Some((from, total)) if from == have => total,
                _ => return Ok(Tried::Again),
            },
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(Tried::Again),
            other => return Ok(Tried::Refused(refused(url, status(other)))),
        };
        if let (Some(size), Some(total)) = (want.size, total)
            && size != total
        {
            return Err(refused(
                url,
                format!("it has {total} bytes, and its list says {size}; nothing of it was kept"),
            ));
        }
        let most = want.size.or(total).unwrap_or(LARGEST).min(LARGEST);
        if total.is_some_and(|total| total > LARGEST) {
            return Err(refused(url, format!("it has {}, which no image has", mib(total.unwrap_or_default()))));
        }
        // What is not known beforehand is looked after while it comes.
        self.room.has(part, if total.or(want.size).is_some() { most.saturating_sub(have) } else { 0 })?;
        let failed = |source| HostError::File { path: part.to_owned(), source };
        let now = Part { url: url.as_str().to_owned(), validator: strong(response.headers()), digest };
        fs::write(note(part), serde_json::to_vec(&now).unwrap_or_default()).map_err(failed)?;
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).mode(0o600).open(part).map_err(failed)?;
        file.set_len(have).map_err(failed)?;
        let (mut buffer, mut told) = (vec![0; 1 << 16], Instant::now());
        let (mut since, mut had) = (Instant::now(), have);
        let ended = loop {
            match response.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => {
                    have += n as u64;
                    if have > most {
                        return Err(refused(url, format!("it goes on after {most} bytes; nothing of it was kept")));
                    }
                    // Guests write meanwhile, and a length may be a lie.
                    self.room.has(part, n as u64)?;
                    file.write_all(&buffer[..n]).map_err(failed)?;
                    if since.elapsed() >= self.pace.within {
                        if have - had < self.pace.least {
                            let (came, s) = (mib(have - had), self.pace.within.as_secs());
                            break Some(format!("only {came} came within {s} s"));
                        }
                        (since, had) = (Instant::now(), have);
                    }
                    if begun.elapsed() > self.pace.all {
                        break Some(format!("it was not whole after {} h", self.pace.all.as_secs() / 3600));
                    }
                    if told.elapsed() > TELL_AGAIN {
                        (told, _) = (Instant::now(), tell(have, total.or(want.size)));
                    }
                }
                Err(e) => break Some(e.to_string()),
            }
        };
        file.sync_all().map_err(failed)?;
        match (ended, total.or(want.size)) {
            (Some(why), _) => Ok(Tried::Cut(why)),
            (None, Some(total)) if have < total => Ok(Tried::Cut(format!("{} of {} came", mib(have), mib(total)))),
            _ => Ok(Tried::Whole),
        }
    }
}

fn address(url: &str) -> Result<Url, HostError> {
    Url::parse(url).map_err(|e| HostError::Refused(format!("`{url}` is no address: {e}")))
}

fn status(status: StatusCode) -> String {
    let next = match status.as_u16() {
        404 | 410 => ": it is not there (any more)",
        401 | 403 => ": the server does not give it out",
        500.. => ": the server has a problem; try again later",
        _ => "",
    };
    format!("the server answers {status}{next}")
}

/// Whether a content is the same: a weak tag only says that it means the same.
fn strong(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|t| !t.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

/// `bytes 100-199/200`: where it begins, and how much there is in all.
fn range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// What is known of a file that is not whole.
fn note(part: &Path) -> PathBuf {
    part.with_extension("json")
}

/// Takes a file that is not whole away.
pub(super) fn forget(part: &Path) {
    let _ = fs::remove_file(part);
    let _ = fs::remove_file(note(part));
}
