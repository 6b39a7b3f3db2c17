//! The lists of the makers: simplestreams (an index, and products with versions) and files of checksums. What they name
//! is taken only where it stays below the list's own top.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Digest;

/// A file that a list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is, below the top.
    pub path: String,
    /// What it adds up to.
    pub digest: Digest,
    /// Its bytes, where the list says so.
    pub size: Option<u64>,
    /// Its version.
    pub version: Option<String>,
    /// Whether its maker still mends it, where the list says so.
    pub supported: Option<bool>,
}

/// Why a list does not lead to a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It is not in the form that it should have.
    #[error("it is not the list that it should be: {0}")]
    Form(String),
    /// What is looked for is not in it.
    #[error("it has no {what}{there}")]
    Missing {
        /// What was looked for.
        what: String,
        /// What there is, as the rest of the sentence.
        there: String,
    },
    /// It names a file twice, with different digests.
    #[error("it names `{0}` twice, with different digests")]
    Twice(String),
    /// It leads away from its own top.
    #[error("it names `{0}`, which is not below the list's own top")]
    Away(String),
}

#[derive(Deserialize)]
struct Index {
    // Some trees have a date among the entries.
    index: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Products {
    products: BTreeMap<String, Product>,
}

#[derive(Deserialize)]
struct Product {
    supported: Option<bool>,
    versions: BTreeMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    items: BTreeMap<String, Item>,
}

#[derive(Deserialize)]
struct Item {
    path: Option<String>,
    sha256: Option<String>,
    size: Option<u64>,
}

fn missing(what: impl Into<String>, there: impl Into<String>) -> ListError {
    ListError::Missing { what: what.into(), there: there.into() }
}

/// A path that goes down only.
fn below(path: &str) -> Result<String, ListError> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '?', '#', '%']);
    let printable = path.chars().all(|c| c.is_ascii_graphic());
    if printable && !path.contains("://") && path.split('/').all(plain) {
        Ok(path.to_owned())
    } else {
        Err(ListError::Away(path.chars().take(80).collect()))
    }
}

/// Where the products of an index are.
pub fn path_of_products(index: &str, content: &str) -> Result<String, ListError> {
    let read: Index = serde_json::from_str(index).map_err(|e| ListError::Form(e.to_string()))?;
    let path = read.index.get(content).and_then(|entry| entry.get("path")?.as_str());
    below(path.ok_or_else(|| missing(format!("entry `{content}`"), ""))?)
}

/// Versions are dates with a counter behind a dot: `20260814.2` comes after `20260814` and `20260814.1`.
fn newness(version: &str) -> (Vec<u64>, &str) {
    (version.split(['.', '-']).map(|n| n.parse().unwrap_or(0)).collect(), version)
}

/// The file of a product: of this version or of the newest; with this digest where one is pinned.
pub fn in_streams(
    products: &str,
    product: &str,
    files: &[String],
    version: Option<&str>,
    pinned: Option<&Digest>,
) -> Result<Listed, ListError> {
    let read: Products = serde_json::from_str(products).map_err(|e| ListError::Form(e.to_string()))?;
    let product_is = read.products.get(product).ok_or_else(|| {
        let like = product.rsplit_once(':').map_or("", |(_, arch)| arch);
        let mut there: Vec<&str> = read
            .products
            .keys()
            .filter(|p| p.ends_with(&format!(":{like}")))
            .filter_map(|p| p.rsplit(':').nth(1))
            .filter(|r| r.contains('.'))
            .collect();
        there.sort_unstable();
        missing(format!("product `{product}`"), format!("; for {like} it has {}", there.join(", ")))
    })?;
    let listed = |(name, of): (&String, &Version)| {
        let item = files.iter().find_map(|file| of.items.get(file))?;
        let digest: Digest = format!("sha256:{}", item.sha256.as_ref()?).parse().ok()?;
        Some((name.clone(), item.path.clone()?, digest, item.size))
    };
    let mut all: Vec<_> = product_is.versions.iter().filter_map(listed).collect();
    all.sort_by(|a, b| newness(&a.0).cmp(&newness(&b.0)));
    let newest = all.last().map(|(name, ..)| name.clone());
    let there = newest.map_or("; it has none".to_owned(), |newest| format!("; the newest is {newest}"));
    let found = match (version, pinned) {
        (Some(version), _) => all
            .into_iter()
            .find(|(name, ..)| name == version)
            .ok_or_else(|| missing(format!("version {version} of `{product}`"), there))?,
        (None, Some(Digest::Sha256(_))) => all
            .into_iter()
            .rfind(|(_, _, digest, _)| Some(digest) == pinned)
            .ok_or_else(|| missing(format!("version of `{product}` with the pinned digest"), there))?,
        (None, _) => all.pop().ok_or_else(|| missing(format!("version of `{product}`"), ""))?,
    };
    let (name, path, digest, size) = found;
    Ok(Listed { path: below(&path)?, digest, size, version: Some(name), supported: product_is.supported })
}

/// The digest of a file in a list of checksums as sha256sum(1) and sha512sum(1) write it. Only the file of exactly this
/// name counts.
pub fn in_sums(list: &str, file: &str) -> Result<Digest, ListError> {
    let mut found: Option<Digest> = None;
    let mut lines = 0;
    for line in list.lines().filter(|l| !l.trim().is_empty()) {
        let Some((hex, name)) = line.split_once(' ') else { continue };
        let Some(name) = name.strip_prefix([' ', '*']) else { continue };
        let kind = if hex.len() == 128 { "sha512" } else { "sha256" };
        let Ok(digest) = format!("{kind}:{hex}").parse::<Digest>() else { continue };
        lines += 1;
        if name.trim_start_matches("./") == file {
            match &found {
                Some(other) if *other != digest => return Err(ListError::Twice(file.to_owned())),
                _ => found = Some(digest),
            }
        }
    }
    match found {
        Some(digest) => Ok(digest),
        None if lines == 0 => Err(ListError::Form("no line of it has a checksum and a name".to_owned())),
        None => Err(missing(format!("line for `{file}`"), "")),
    }
}

/// The file of a list of checksums whose name is this one with the number of a point release in place of `*`, or with
/// nothing: that of the newest, or of the pinned digest.
pub fn like_in_sums(list: &str, pattern: &str, pinned: Option<&Digest>) -> Result<(String, Digest), ListError> {
    let Some((before, after)) = pattern.split_once('*') else {
        return in_sums(list, pattern).map(|digest| (pattern.to_owned(), digest));
    };
    let names = list.lines().filter_map(|l| l.split_once(' ')?.1.strip_prefix([' ', '*']));
    let point = |name: &str| {
        let number = name.strip_prefix(before)?.strip_suffix(after)?;
        match number.strip_prefix('.') {
            Some(digits) => digits.parse::<u32>().ok(),
            None => number.is_empty().then_some(0),
        }
    };
    let mut all: Vec<(u32, &str)> =
        names.map(|n| n.trim_start_matches("./")).filter_map(|n| Some((point(n)?, n))).collect();
    all.sort_unstable();
    let mut found = all.into_iter().rev().map(|(_, name)| in_sums(list, name).map(|digest| (name.to_owned(), digest)));
    let found = match pinned {
        None => found.next(),
        Some(pinned) => found.find(|one| one.as_ref().is_ok_and(|(_, digest)| digest == pinned)),
    };
    // Where there is none, the other says what the list is.
    found.unwrap_or_else(|| in_sums(list, pattern).map(|digest| (pattern.to_owned(), digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aa";
    const INDEX: &str = r#"{"format":"index:1.0","index":{"com.ubuntu.cloud:released:download":
        {"datatype":"image-downloads","path":"streams/v1/com.ubuntu.cloud:released:download.json"},"updated":"Thu, 18 May 2017 12:08:59 +0000"}}"#;

    fn products() -> String {
        let item = |version: &str, digest: &str| {
            format!(
                r#""{version}":{{"items":{{
                    "disk1.img":{{"ftype":"disk1.img","path":"server/releases/noble/release-{version}/u.img","sha256":"{}","size":7}},
                    "manifest":{{"path":"server/x.manifest","sha256":"{}","size":1}}}},"label":"release"}}"#,
                digest.repeat(32),
                "00".repeat(32)
            )
        };
        format!(
            r#"{{"content_id":"c","datatype":"image-downloads","format":"products:1.0","products":{{
                "com.ubuntu.cloud:server:24.04:amd64":{{"arch":"amd64","supported":true,"versions":{{{},{},{}}}}}}}}}"#,
            item("20260814", "bb"),
            item("20260814.10", A),
            item("20260814.9", "cc")
        )
    }
    const PRODUCT: &str = "com.ubuntu.cloud:server:24.04:amd64";

    fn find(version: Option<&str>, pinned: Option<&Digest>) -> Result<Listed, ListError> {
        in_streams(&products(), PRODUCT, &["uefi1.img".to_owned(), "disk1.img".to_owned()], version, pinned)
    }
    fn sha256(two: &str) -> Digest {
        Digest::Sha256(two.repeat(32))
    }

    #[test]
    fn the_newest_is_the_newest_by_its_numbers() {
        let path = path_of_products(INDEX, "com.ubuntu.cloud:released:download").unwrap();
        assert_eq!(path, "streams/v1/com.ubuntu.cloud:released:download.json");
        let newest = find(None, None).unwrap();
        assert_eq!(newest.version.as_deref(), Some("20260814.10"));
        assert_eq!((newest.digest, newest.size, newest.supported), (sha256(A), Some(7), Some(true)));
        assert_eq!(newest.path, "server/releases/noble/release-20260814.10/u.img");
    }

    #[test]
    fn a_version_or_a_pinned_digest_finds_an_older_one() {
        assert_eq!(find(Some("20260814"), None).unwrap().digest, sha256("bb"));
        assert_eq!(find(None, Some(&sha256("cc"))).unwrap().version.as_deref(), Some("20260814.9"));
        let said = find(Some("20200101"), None).unwrap_err().to_string();
        assert!(said.contains("no version 20200101") && said.contains("the newest is 20260814.10"), "{said}");
        let said = find(None, Some(&sha256("dd"))).unwrap_err().to_string();
        assert!(said.contains("pinned digest"), "{said}");
        let said = in_streams(&products(), "com.ubuntu.cloud:server:24.05:amd64", &[], None, None).unwrap_err();
        assert!(said.to_string().contains("for amd64 it has 24.04"), "{said}");
    }

    #[test]
    fn a_list_leads_nowhere_else() {
        for path in ["/etc/passwd", "../x", "a/../../x", "https://other/x", "a//b", "a/./b", "a?b", "a b", "%2e%2e/x"] {
            let index = format!(r#"{{"index":{{"c":{{"path":"{path}"}}}}}}"#);
            assert!(matches!(path_of_products(&index, "c"), Err(ListError::Away(_))), "{path}");
        }
        assert!(matches!(path_of_products("[]", "c"), Err(ListError::Form(_))));
        assert!(matches!(path_of_products("<html>", "c"), Err(ListError::Form(_))));
    }

    #[test]
    fn the_newest_point_release_is_found_by_its_number() {
        let (a, b, c) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let list = format!(
            "{a} *ubuntu-24.04-desktop-amd64.iso\n{b} *ubuntu-24.04.10-desktop-amd64.iso\n{c} *ubuntu-24.04.9-desktop-amd64.iso\n\
             {a} *ubuntu-24.04.11-live-server-amd64.iso\n{a} *ubuntu-24.04.12x-desktop-amd64.iso\n"
        );
        let find = |pinned: Option<&Digest>| like_in_sums(&list, "ubuntu-24.04*-desktop-amd64.iso", pinned);
        let is = |name: &str, hex: &str| Ok((name.to_owned(), Digest::Sha256(hex.to_owned())));
        assert_eq!(find(None), is("ubuntu-24.04.10-desktop-amd64.iso", &b));
        assert_eq!(find(Some(&Digest::Sha256(c.clone()))), is("ubuntu-24.04.9-desktop-amd64.iso", &c));
        assert_eq!(find(Some(&Digest::Sha256(a.clone()))), is("ubuntu-24.04-desktop-amd64.iso", &a));
        assert!(matches!(find(Some(&Digest::Sha256("d".repeat(64)))), Err(ListError::Missing { .. })));
        assert!(matches!(like_in_sums(&list, "ubuntu-26.04*-desktop-amd64.iso", None), Err(ListError::Missing { .. })));
        assert!(matches!(like_in_sums("<html>", "u*.iso", None), Err(ListError::Form(_))));
        assert_eq!(
            like_in_sums(&list, "ubuntu-24.04-desktop-amd64.iso", None),
            is("ubuntu-24.04-desktop-amd64.iso", &a)
        );
    }

    #[test]
    fn checksums_are_those_of_exactly_this_file() {
        let (a, b) = ("a".repeat(64), "B".repeat(128));
        let list = format!("{a} *u.img\n{a}  v.img\n{b}  w.img\n\n{a} *other/u.img\n");
        assert_eq!(in_sums(&list, "u.img").unwrap(), Digest::Sha256(a.clone()));
        assert_eq!(in_sums(&list, "v.img").unwrap(), Digest::Sha256(a.clone()));
        assert_eq!(in_sums(&list, "w.img").unwrap(), Digest::Sha512(b.to_lowercase()));
        assert!(matches!(in_sums(&list, "img"), Err(ListError::Missing { .. })));
        let twice = format!("{list}{}  u.img\n", "c".repeat(64));
        assert!(matches!(in_sums(&twice, "u.img"), Err(ListError::Twice(_))));
        assert!(in_sums(&format!("{list}{a}  u.img\n"), "u.img").is_ok(), "the same again is no contradiction");
        assert!(matches!(in_sums("<html>not found</html>", "u.img"), Err(ListError::Form(_))));
    }
}
