//! Files from the web: over https, with redirects followed by hand so that none leads to plain http unseen, with a limit
//! on what a server may send, and taken up again where a connection broke.

use std::error::Error as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

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
/// What is left free where an image is put: its disks take up what guests write, and a full pool halts them.
pub(super) const RESERVE: u64 = 1 << 30;
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

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    pub sha256: String,
    pub sha512: String,
    pub bytes: u64,
}

impl Sums {
    /// Whether it is what a digest says.
    pub fn is(&self, digest: &Digest) -> bool {
        match digest {
            Digest::Sha256(hex) => *hex == self.sha256,
            Digest::Sha512(hex) => *hex == self.sha512,
        }
    }

    /// Reads a whole file.
    pub fn of(path: &Path) -> Result<Self, HostError> {
        let failed = |e| HostError::File { path: path.to_owned(), source: e };
        let mut file = File::open(path).map_err(failed)?;
        let (mut short, mut long, mut bytes) = (sha2::Sha256::new(), sha2::Sha512::new(), 0);
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => {
                    short.update(&buffer[..n]);
                    long.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        let hex = |digest: &[u8]| digest.iter().map(|b| format!("{b:02x}")).collect::<String>();
        Ok(Self { sha256: hex(&short.finalize()), sha512: hex(&long.finalize()), bytes })
    }
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

/// How full the place of an image may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// What stays free, in bytes.
    pub reserve: u64,
    /// What is free in a folder, in bytes; none where that cannot be told.
    pub free: fn(&Path) -> Option<u64>,
}

impl Default for Room {
    fn default() -> Self {
        Self { reserve: RESERVE, free }
    }
}

impl Room {
    /// Whether so many bytes more have room beside a file, and the reserve stays.
    pub fn has(&self, part: &Path, more: u64) -> Result<(), HostError> {
        let folder = part.parent().unwrap_or(Path::new("/"));
        let at = folder.display();
        let Some(free) = (self.free)(folder) else {
            return Err(HostError::Refused(format!("how much is free in `{at}` cannot be told; nothing is put there")));
        };
        if free >= more.saturating_add(self.reserve) {
            return Ok(());
        }
        let reserve = mib(self.reserve);
        Err(HostError::Refused(match more {
            0 => {
                format!("`{at}` has {} free, and {reserve} stay free for the disks of VMs; make room there", mib(free))
            }
            more => format!(
                "`{at}` has {} free, and {} are needed while {reserve} stay free for the disks of VMs; make room there",
                mib(free),
                mib(more)
            ),
        }))
    }
}

fn free(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    #[allow(clippy::unnecessary_cast)] // the types differ between architectures
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
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
        let response = self.get(&url, &HeaderMap::new(), plain)?;
        if response.status() != StatusCode::OK {
            return Err(refused(&url, status(response.status())));
        }
        let (mut bytes, mut response) = (Vec::new(), response);
        let (mut buffer, begun, limit) = (vec![0; 1 << 16], Instant::now(), SMALL_LIMIT.min(self.pace.all));
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

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a path is answered with.
    #[derive(Debug, Clone, Default)]
    pub(in crate::host::live) struct Page {
        pub body: Vec<u8>,
        pub status: u16,
        pub headers: Vec<(String, String)>,
        /// The connection ends after so many bytes of the body.
        pub cut: Option<usize>,
        /// The length that is told, in place of the true one; `None` in it tells none.
        pub told: Option<Option<u64>>,
        /// It sends a byte of the body each time that so many milliseconds are over, from the first one on.
        pub drips: Option<u64>,
        /// Nobody answers any more after this.
        pub last: bool,
        /// It knows ranges.
        pub ranges: bool,
        pub etag: Option<String>,
        /// What the path is from the next request on.
        pub then: Option<Box<Page>>,
    }

    impl Page {
        pub fn of(body: impl Into<Vec<u8>>) -> Self {
            Self { body: body.into(), status: 200, ranges: true, etag: Some("\"one\"".to_owned()), ..Self::default() }
        }
    }

    /// A server on the loopback, and what it was asked.
    pub(in crate::host::live) struct Server {
        pub address: String,
        pub pages: Arc<Mutex<BTreeMap<String, Page>>>,
        pub asked: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        pub fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let pages: Arc<Mutex<BTreeMap<String, Page>>> = Arc::default();
            let asked: Arc<Mutex<Vec<String>>> = Arc::default();
            let (of, note) = (pages.clone(), asked.clone());
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if let Ok(true) = answer(&stream, &of, &note) {
                        // In this order: whoever sees the end finds nobody.
                        drop(listener);
                        drop(stream);
                        return;
                    }
                }
            });
            Self { address, pages, asked }
        }
        pub fn put(&self, path: &str, page: Page) {
            self.pages.lock().unwrap().insert(path.to_owned(), page);
        }
        pub fn url(&self, path: &str) -> String {
            format!("http://{}{path}", self.address)
        }
        pub fn asked(&self) -> Vec<String> {
            std::mem::take(&mut *self.asked.lock().unwrap())
        }
    }

    fn answer(
        stream: &TcpStream,
        pages: &Mutex<BTreeMap<String, Page>>,
        asked: &Mutex<Vec<String>>,
    ) -> std::io::Result<bool> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ") {
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let range = headers.get("range").cloned().unwrap_or_default();
        asked.lock().unwrap().push(format!("{path} {range}").trim_end().to_owned());
        let page = {
            let mut all = pages.lock().unwrap();
            let page = all.get(&path).cloned().unwrap_or(Page { status: 404, ..Page::default() });
            if let Some(then) = page.then.clone() {
                all.insert(path, *then);
            }
            page
        };
        let mut out = stream;
        let from: usize = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
        let same = headers.get("if-range").is_none_or(|tag| Some(tag) == page.etag.as_ref());
        let part = page.ranges && page.status == 200 && from > 0 && same && from < page.body.len();
        let body = if part { &page.body[from..] } else { &page.body[..] };
        let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", if part { 206 } else { page.status });
        if part {
            head += &format!("content-range: bytes {from}-{}/{}\r\n", page.body.len() - 1, page.body.len());
        }
        match page.told {
            None => head += &format!("content-length: {}\r\n", body.len()),
            Some(Some(told)) => head += &format!("content-length: {told}\r\n"),
            Some(None) => {}
        }
        for (name, value) in page
            .etag
            .iter()
            .map(|t| ("etag", t.as_str()))
            .chain(page.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())))
        {
            head += &format!("{name}: {value}\r\n");
        }
        out.write_all(head.as_bytes())?;
        out.write_all(b"\r\n")?;
        let body = &body[..page.cut.unwrap_or(body.len()).min(body.len())];
        match page.drips {
            None => out.write_all(body)?,
            Some(ms) => {
                for byte in body.chunks(1) {
                    out.write_all(byte)?;
                    std::thread::sleep(Duration::from_millis(ms));
                }
            }
        }
        Ok(page.last)
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }
    fn sha256(bytes: &[u8]) -> Digest {
        Digest::Sha256(crate::types::sha256_hex(bytes))
    }

    struct Try {
        server: Server,
        web: Web,
        dir: tempfile::TempDir,
    }
    impl Try {
        fn new() -> Self {
            let server = Server::start();
            let web = Web::with_plain(&server.address);
            Self { server, web, dir: tempfile::tempdir().unwrap() }
        }
        fn part(&self) -> PathBuf {
            self.dir.path().join(".image.part")
        }
        fn get(&self, path: &str, want: &Want) -> Result<Sums, String> {
            self.web.large(&self.server.url(path), &self.part(), want, &mut |_, _| {}).map_err(|e| e.to_string())
        }
        fn left(&self) -> usize {
            fs::read_dir(self.dir.path()).unwrap().count()
        }
    }

    #[test]
    fn what_broke_off_goes_on_where_it_broke() {
        let t = Try::new();
        let whole = bytes(300_000);
        let want = Want { digest: Some(sha256(&whole)), size: Some(300_000), plain: false };
        let cut = Page { cut: Some(100_000), then: Some(Box::new(Page::of(whole.clone()))), ..Page::of(whole.clone()) };
        t.server.put("/a", cut);
        let sums = t.get("/a", &want).unwrap();
        assert_eq!((fs::read(t.part()).unwrap(), sums.bytes, t.left()), (whole.clone(), 300_000, 1));
        assert_eq!(t.server.asked(), ["/a", "/a bytes=100000-"]);

        // Another content under the same name is not joined to the old one.
        let other = bytes(300_001)[1..].to_vec();
        let want = Want { digest: Some(sha256(&other)), size: Some(300_000), plain: false };
        let then = Page { etag: Some("\"two\"".to_owned()), ..Page::of(other.clone()) };
        t.server.put("/b", Page { cut: Some(100_000), then: Some(Box::new(then)), ..Page::of(whole.clone()) });
        t.get("/b", &want).unwrap();
        assert_eq!(fs::read(t.part()).unwrap(), other);

        // A server without ranges sends it all again.
        let then = Page { ranges: false, ..Page::of(other.clone()) };
        t.server.put("/c", Page { cut: Some(7), then: Some(Box::new(then)), ..Page::of(other.clone()) });
        t.get("/c", &want).unwrap();
        assert_eq!(fs::read(t.part()).unwrap(), other);
    }

    #[test]
    fn what_keeps_breaking_stays_for_the_next_try() {
        let t = Try::new();
        let whole = bytes(100_000);
        let want = Want { digest: Some(sha256(&whole)), size: None, plain: false };
        t.server.put("/a", Page { cut: Some(10_000), ..Page::of(whole.clone()) });
        let said = t.get("/a", &want).unwrap_err();
        assert!(said.contains("broke 4 times") && said.contains("goes on there"), "{said}");
        assert_eq!(fs::read(t.part()).unwrap(), whole[..40_000]);
        t.server.asked();
        t.server.put("/a", Page::of(whole.clone()));
        t.get("/a", &want).unwrap();
        assert_eq!(t.server.asked(), ["/a bytes=40000-"]);
        assert_eq!(fs::read(t.part()).unwrap(), whole);

        // For another content it is of no use.
        t.server.put("/a", Page { cut: Some(10_000), ..Page::of(whole) });
        t.get("/a", &Want { digest: Some(sha256(b"x")), ..Want::default() }).unwrap_err();
        let other = bytes(90_000);
        t.server.put("/a", Page::of(other.clone()));
        t.server.asked();
        t.get("/a", &Want { digest: Some(sha256(&other)), ..Want::default() }).unwrap();
        assert_eq!(t.server.asked(), ["/a"]);
    }

    #[test]
    fn what_is_wrong_leaves_nothing() {
        let t = Try::new();
        let whole = bytes(1000);
        t.server.put("/same-size", Page::of(bytes(1001)[1..].to_vec()));
        t.server.put("/larger", Page::of(bytes(2000)));
        t.server.put("/endless", Page { told: Some(None), ..Page::of(bytes(5000)) });
        t.server.put("/huge", Page { told: Some(Some(LARGEST + 1)), ..Page::of(whole.clone()) });
        t.server.put("/gone", Page { status: 404, ..Page::default() });
        t.server.put("/sick", Page { status: 503, ..Page::default() });
        let want = Want { digest: Some(sha256(&whole)), size: Some(1000), plain: false };
        let unsized_ = Want { size: None, ..want.clone() };
        for (path, want, what) in [
            ("/same-size", &want, "has to be sha256:"),
            ("/larger", &want, "it has 2000 bytes, and its list says 1000"),
            ("/endless", &want, "goes on after 1000 bytes"),
            ("/huge", &unsized_, "which no image has"),
            ("/gone", &want, "404"),
            ("/sick", &want, "try again later"),
        ] {
            let said = t.get(path, want).unwrap_err();
            assert!(said.contains(what), "{path}: {said}");
            assert_eq!(t.left(), 0, "{path}");
        }
        drop(t.server.asked());
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let web = Web::with_plain(&nobody.to_string());
        let said = web.small(&format!("http://{nobody}/"), 9, false).unwrap_err().to_string();
        assert!(said.contains("no connection"), "{said}");
    }

    #[test]
    fn what_came_stays_where_nobody_answers_any_more() {
        let mut t = Try::new();
        let whole = bytes(100_000);
        let want = Want { digest: Some(sha256(&whole)), size: Some(100_000), plain: false };
        t.server.put("/a", Page { cut: Some(40_000), last: true, ..Page::of(whole.clone()) });
        let said = t.get("/a", &want).unwrap_err();
        assert!(said.contains("no connection") && said.contains("the next try goes on there"), "{said}");
        assert_eq!(fs::read(t.part()).unwrap(), whole[..40_000]);
        // A server that has a problem for a while; it is the same one for the part.
        let note: Part = serde_json::from_slice(&fs::read(note(&t.part())).unwrap()).unwrap();
        t.server = Server::start();
        t.web = Web::with_plain(&t.server.address);
        let url = t.server.url("/a");
        fs::write(super::note(&t.part()), serde_json::to_vec(&Part { url, ..note }).unwrap()).unwrap();
        t.server.put("/a", Page { status: 503, then: Some(Box::new(Page::of(whole.clone()))), ..Page::default() });
        assert!(t.get("/a", &want).unwrap_err().contains("goes on there"));
        t.get("/a", &want).unwrap();
        assert_eq!(t.server.asked(), ["/a bytes=40000-", "/a bytes=40000-"]);
        assert_eq!(fs::read(t.part()).unwrap(), whole);
    }

    #[test]
    fn a_server_that_drips_does_not_hold_a_run_up_for_ever() {
        let mut t = Try::new();
        let whole = bytes(100_000);
        t.server.put("/drips", Page { drips: Some(2), ..Page::of(whole.clone()) });
        t.web.pace = Pace { least: 50_000, within: Duration::from_millis(100), all: Duration::from_secs(3600) };
        let want = Want { digest: Some(sha256(&whole)), size: Some(100_000), plain: false };
        let said = t.get("/drips", &want).unwrap_err();
        assert!(
            said.contains("broke 4 times") && said.contains("came within") && said.contains("goes on there"),
            "{said}"
        );
        assert!(t.left() == 2, "what came stays, with the word about it");
        // Fast enough, and never whole.
        t.web.pace = Pace { least: 1, within: Duration::from_millis(100), all: Duration::from_millis(300) };
        let said = t.get("/drips", &want).unwrap_err();
        assert!(said.contains("broke 1 times") && said.contains("it was not whole after"), "{said}");
        let said = t.web.small(&t.server.url("/drips"), 1 << 20, false).unwrap_err().to_string();
        assert!(said.contains("it did not come within"), "{said}");
    }

    #[test]
    fn what_has_no_room_goes_away_again() {
        let mut t = Try::new();
        let whole = bytes(300_000);
        let of = |told| Page { told, ..Page::of(whole.clone()) };
        t.server.put("/known", of(None));
        t.server.put("/unknown", of(Some(None)));
        let want = Want { digest: Some(sha256(&whole)), ..Want::default() };
        let full = |free| Room { reserve: 1 << 20, free };
        for free in [(|_| Some(1000)) as fn(&Path) -> Option<u64>, |_| None] {
            t.web.room = full(free);
            for path in ["/known", "/unknown"] {
                let said = t.get(path, &want).unwrap_err();
                assert!(said.contains("make room there") || said.contains("cannot be told"), "{path}: {said}");
                assert_eq!(t.left(), 0, "{path}");
            }
        }
        // It fills up while it comes: there is room for a third of it.
        t.web.room = full(|folder| {
            let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum::<u64>();
            Some((1 << 20) + 100_000u64.saturating_sub(all))
        });
        let said = t.get("/unknown", &want).unwrap_err();
        assert!(said.contains("make room there"), "{said}");
        assert_eq!(t.left(), 0);
        t.web.room = full(|_| Some((1 << 20) + 300_000));
        t.get("/known", &want).unwrap();
    }

    #[test]
    fn plain_http_is_asked_only_where_a_digest_is_pinned() {
        let t = Try::new();
        let other = Server::start();
        other.put("/a", Page::of("there"));
        let to = |url: String| Page { status: 302, headers: vec![("location".to_owned(), url)], ..Page::default() };
        t.server.put("/away", to(other.url("/a")));
        t.server.put("/here", to("/b".to_owned()));
        t.server.put("/b", Page::of("here"));
        t.server.put("/round", to("/round".to_owned()));
        t.server.put("/file", to("file:///etc/passwd".to_owned()));
        let small = |path: &str, plain| {
            let said = t.web.small(&t.server.url(path), 9, plain);
            said.map(|b| String::from_utf8(b).unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(small("/here", false).unwrap(), "here");
        let said = small("/away", false).unwrap_err();
        assert!(said.contains("was redirected") && said.contains("plain http"), "{said}");
        assert!(other.asked().is_empty(), "it was not even asked");
        assert_eq!(small("/away", true).unwrap(), "there");
        assert!(small("/round", false).unwrap_err().contains("redirects"));
        assert!(small("/file", true).unwrap_err().contains("by `file`"));
        t.server.put("/large", Page::of(bytes(10)));
        assert!(small("/large", false).unwrap_err().contains("which no such file has"));
        let said = Web::new().unwrap().small(&t.server.url("/b"), 9, false).unwrap_err().to_string();
        assert!(said.contains("plain http"), "{said}");
    }
}
