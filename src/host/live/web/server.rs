//! A server on the loopback for tests, which cuts, drips, lies about lengths, redirects and forgets as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    for (name, value) in
        page.etag.iter().map(|t| ("etag", t.as_str())).chain(page.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())))
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
