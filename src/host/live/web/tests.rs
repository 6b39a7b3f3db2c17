use std::net::TcpListener;

use super::server::{Page, Server};
use super::*;

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
    assert!(said.contains("broke 4 times") && said.contains("came within") && said.contains("goes on there"), "{said}");
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
