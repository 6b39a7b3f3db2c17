//! Images on this machine: the lists of their makers and the signatures of those, the file itself, and where it is put.
//! Nothing is named as an image before all of it was checked.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::web::{Room, Sums, Want, Web, forget};
use super::{files, layers, libvirt, program};
use crate::host::{HostError, Probe, Program};
use crate::image::{self, CACHED_FORMAT, Cached, Digest, FOLDER, Listed, Origin};
use crate::plan::FetchStep;
use crate::resource::image::{fits_a_drive, used};

/// A list of all images of a maker has a few MiB.
const LARGEST_LIST: u64 = 64 << 20;
const LARGEST_SIGNATURE: u64 = 64 << 10;
/// How long a signature of a list may take to be checked.
const CHECK_LIMIT: Duration = Duration::from_secs(60);
/// How often a list that changed while its file was fetched is read again.
const TRIES: usize = 2;

fn refused(why: impl Into<String>) -> HostError {
    HostError::Refused(why.into())
}

/// What is kept of an image, by the file that says so.
pub(super) fn kept(pointer: &Path) -> Result<Cached, HostError> {
    let text = fs::read_to_string(pointer).map_err(HostError::file(pointer))?;
    let kept =
        Cached::parse(&text).ok_or_else(|| refused(format!("`{}` is not what gpuvm writes", pointer.display())))?;
    let file = pointer.with_file_name(&kept.file);
    match file.is_file() {
        true => Ok(kept),
        false => Err(refused(format!("the image `{}` is not there; plan again, which fetches it", file.display()))),
    }
}

/// Fetches an image.
pub(super) fn fetch(step: &FetchStep, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    Fetcher { web: Web::new()?, key: image::key, owner: (0, 0) }.fetch(step, progress)
}

/// Deletes the file of an image. Which disks are made from it is looked at once more, with every pool as it is by now:
/// what is on a disk that lost its image cannot come back.
pub(super) fn remove(path: &Path, host: &dyn Probe) -> Result<(), HostError> {
    if path.parent().and_then(Path::file_name) != Some(FOLDER.as_ref()) {
        return Err(refused(format!("`{}` is no image of gpuvm's", path.display())));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with('.') && !name.ends_with(".json") {
        let kept = |why: &str| refused(format!("`{}` is not deleted: {why}", path.display()));
        let used = used(&libvirt::looked_anew()?, host);
        let used = used.map_err(|why| kept(&format!("which disks are made from it is not known: {why}")))?;
        if used.contains(&*name) {
            return Err(kept("a disk is made from it"));
        }
    }
    files::remove(path)
}

struct Fetcher {
    web: Web,
    key: fn(&str) -> Option<Vec<u8>>,
    owner: (u32, u32),
}

/// What is to be fetched, and why it can be trusted.
struct Source {
    url: String,
    want: Want,
    version: Option<String>,
    trusted: String,
    notes: Vec<String>,
}

impl Fetcher {
    fn fetch(&self, step: &FetchStep, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
        if !step.pool.is_dir() {
            return Err(refused(format!("there is no directory `{}` to put the image in", step.pool.display())));
        }
        let folder = step.pool.join(FOLDER);
        // 0711: whoever knows an image's name may read it, as QEMU's user does; nobody may list.
        files::make_dir(&folder, 0o711, self.owner.0, self.owner.1)?;
        let part = folder.join(format!(".{}.part", step.name));
        let pointer = image::pointer(&step.pool, step.name.as_str());
        let former = kept(&pointer).ok();
        if let Origin::Path { path } = &step.origin {
            progress(&format!("copies {}", path.display()));
            forget(&part);
            copy(path, &part, &self.web.room).inspect_err(|_| forget(&part))?;
            let sums = Sums::of(&part)?;
            if let Some(digest) = step.digest.as_ref().filter(|d| !sums.is(d)) {
                forget(&part);
                return Err(refused(format!("`{}` is sha256:{}, and has to be {digest}", path.display(), sums.sha256)));
            }
            let trusted = if step.digest.is_some() { "by its pinned digest" } else { "as a file of this host" };
            return self.keep(step, &part, sums, None, trusted.to_owned());
        }
        if let Origin::Disk { vm, path, kind, .. } = &step.origin {
            progress(&format!("copies {}", path.display()));
            forget(&part);
            layers::flat(path, kind, &part, progress).inspect_err(|_| forget(&part))?;
            let sums = Sums::of(&part)?;
            return self.keep(step, &part, sums, None, format!("as a disk of VM {vm}"));
        }
        let mut tried = 0;
        loop {
            tried += 1;
            let source = self.source(step)?;
            source.notes.iter().for_each(|note| progress(note));
            let same = |old: &Cached| {
                source.want.digest.as_ref().is_some_and(|digest| match digest {
                    Digest::Sha256(hex) => *hex == old.sha256,
                    Digest::Sha512(hex) => *hex == old.sha512,
                })
            };
            if let Some(old) = former.clone().filter(same) {
                progress("what is there is the newest");
                let now = Cached { asked: step.asked.clone(), origin: step.origin.clone(), ..old };
                return self.point(&pointer, &now);
            }
            progress(&format!("from {}", source.url));
            let mut tell = |have: u64, of: Option<u64>| {
                let of = of.map_or(String::new(), |of| format!(" of {}", of >> 20));
                progress(&format!("{}{of} MiB", have >> 20));
            };
            match self.web.large(&source.url, &part, &source.want, &mut tell) {
                Ok(sums) => return self.keep(step, &part, sums, source.version, source.trusted),
                // `latest` became another one between the list and the file: the list is read once more.
                Err(e) if tried < TRIES && step.digest.is_none() && self.moved(step, &source) => {
                    progress(&format!("it changed while it was fetched; once more ({e})"));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether the list says something else by now.
    fn moved(&self, step: &FetchStep, source: &Source) -> bool {
        self.source(step).is_ok_and(|now| now.want.digest != source.want.digest)
    }

    fn source(&self, step: &FetchStep) -> Result<Source, HostError> {
        let pinned = step.digest.clone();
        let plain = pinned.is_some();
        let by_digest = || "by its pinned digest".to_owned();
        let of_list = |what: &str, e: image::ListError| refused(format!("{what}: {e}"));
        match &step.origin {
            Origin::Path { .. } | Origin::Disk { .. } => Err(refused("a file of this host is not fetched")),
            Origin::Url { url } => match pinned {
                None => Err(refused(format!("{url}: nothing says what it has to be; pin its digest"))),
                Some(digest) => Ok(Source {
                    url: url.clone(),
                    want: Want { digest: Some(digest), size: None, plain },
                    version: None,
                    trusted: by_digest(),
                    notes: Vec::new(),
                }),
            },
            Origin::Sums { base, list, file, signed_by } => {
                let from = format!("{base}{list}");
                let (folder, pattern) = file.rsplit_once('/').unwrap_or(("", file));
                let (digest, name, trusted) = match pinned {
                    // Which one it is called, only the list knows.
                    Some(digest) if pattern.contains('*') => {
                        let text = self.text(&from, true)?;
                        let (name, _) =
                            image::like_in_sums(&text, pattern, Some(&digest)).map_err(|e| of_list(&from, e))?;
                        (digest, name, by_digest())
                    }
                    Some(digest) => (digest, pattern.to_owned(), by_digest()),
                    None => {
                        let (text, trusted) = match signed_by {
                            Some(signer) => {
                                (self.signed(&from, Some(signer))?, format!("by {from}, which is signed with {signer}"))
                            }
                            None => (self.text(&from, false)?, format!("by {from}, which is not signed")),
                        };
                        let (name, digest) =
                            image::like_in_sums(&text, pattern, None).map_err(|e| of_list(&from, e))?;
                        (digest, name, trusted)
                    }
                };
                let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
                Ok(Source {
                    url: format!("{base}{folder}{name}"),
                    want: Want { digest: Some(digest), size: None, plain },
                    // The name that the list has for it tells the point release.
                    version: pattern.contains('*').then_some(name),
                    trusted,
                    notes: Vec::new(),
                })
            }
            Origin::Streams { base, index, content, product, files, signed_by, version } => {
                let signer = pinned.is_none().then_some(signed_by.as_str());
                let from = format!("{base}{index}");
                let text = self.signed(&from, signer)?;
                let path = image::path_of_products(&text, content).map_err(|e| of_list(&from, e))?;
                let from = format!("{base}{path}");
                let text = self.signed(&from, signer)?;
                let listed = image::in_streams(&text, product, files, version.as_deref(), pinned.as_ref());
                let Listed { path, digest, size, version, supported } = listed.map_err(|e| of_list(&from, e))?;
                let notes = match supported {
                    Some(false) => vec![format!("{}: its maker does not mend it any more", step.name)],
                    _ => Vec::new(),
                };
                let trusted = match &pinned {
                    Some(_) => by_digest(),
                    None => format!("by a list that is signed with {signed_by}"),
                };
                // What is pinned may be another version than the list's, of another size.
                let size = size.filter(|_| pinned.as_ref().is_none_or(|p| *p == digest));
                let want = Want { digest: Some(pinned.unwrap_or(digest)), size, plain };
                Ok(Source { url: format!("{base}{path}"), want, version, trusted, notes })
            }
        }
    }

    fn text(&self, url: &str, plain: bool) -> Result<String, HostError> {
        let bytes = self.web.small(url, LARGEST_LIST, plain)?;
        String::from_utf8(bytes).map_err(|_| refused(format!("{url}: it is no text")))
    }

    /// A list whose signature is beside it. Without a signer it is taken as it is: a digest is pinned.
    fn signed(&self, url: &str, signer: Option<&str>) -> Result<String, HostError> {
        let text = self.text(url, signer.is_none())?;
        let Some(signer) = signer else { return Ok(text) };
        let signature = self.web.small(&format!("{url}.gpg"), LARGEST_SIGNATURE, false)?;
        let key = (self.key)(signer).ok_or_else(|| refused(format!("the key {signer} is not known to this gpuvm")))?;
        verify(text.as_bytes(), &signature, &key, signer).map_err(|why| refused(format!("{url}: {why}")))?;
        Ok(text)
    }

    /// Gives what was fetched its name.
    fn keep(
        &self,
        step: &FetchStep,
        part: &Path,
        sums: Sums,
        version: Option<String>,
        trusted: String,
    ) -> Result<(), HostError> {
        let mut first = Vec::new();
        let mut file = File::open(part).map_err(HostError::file(part))?;
        Read::by_ref(&mut file).take(4096).read_to_end(&mut first).map_err(HostError::file(part))?;
        let header = image::header(&first, sums.bytes).map_err(|e| {
            forget(part);
            refused(format!("{}: {e}; nothing of it was kept", step.origin.place()))
        })?;
        if let (true, Err(why)) = (step.medium, fits_a_drive(header.kind)) {
            forget(part);
            return Err(refused(format!("{}: {why}; nothing of it was kept", step.origin.place())));
        }
        let name = Cached::file_name(step.name.as_str(), &sums.sha256, header.kind);
        let path = part.with_file_name(&name);
        if path.is_file() && Sums::of(&path)?.sha256 == sums.sha256 {
            // Disks may be made from it: the file that is there stays that file.
            forget(part);
        } else {
            let place = || {
                std::os::unix::fs::fchown(&file, Some(self.owner.0), Some(self.owner.1))?;
                file.set_permissions(fs::Permissions::from_mode(0o444))?;
                file.sync_all()?;
                fs::rename(part, &path)
            };
            place().map_err(HostError::file(&path))?;
        }
        self.point(
            &image::pointer(&step.pool, step.name.as_str()),
            &Cached {
                format: CACHED_FORMAT,
                file: name,
                kind: header.kind.to_owned(),
                sha256: sums.sha256,
                sha512: sums.sha512,
                bytes: sums.bytes,
                virtual_size: header.virtual_size,
                origin: step.origin.clone(),
                version,
                trusted,
                asked: step.asked.clone(),
            },
        )
    }

    fn point(&self, pointer: &Path, cached: &Cached) -> Result<(), HostError> {
        files::write(pointer, cached.text().as_bytes(), 0o644, self.owner.0, self.owner.1)
    }
}

/// Copies a file while there is room. Holes stay holes.
fn copy(from: &Path, part: &Path, room: &Room) -> Result<(), HostError> {
    let mut source = File::open(from).map_err(HostError::file(from))?;
    let about = source.metadata().map_err(HostError::file(from))?;
    // A device has no length of its own: it is looked after while it is read.
    room.has(part, about.len().min(about.blocks().saturating_mul(512)))?;
    let mut target = File::create(part).map_err(HostError::file(part))?;
    let (mut buffer, mut whole) = (vec![0; 1 << 20], 0);
    loop {
        let n = source.read(&mut buffer).map_err(HostError::file(from))?;
        if n == 0 {
            return target.set_len(whole).map_err(HostError::file(part));
        }
        let read = &buffer[..n];
        match read.iter().all(|b| *b == 0) {
            true => _ = target.seek(SeekFrom::Current(n as i64)).map_err(HostError::file(part))?,
            false => {
                room.has(part, n as u64)?;
                target.write_all(read).map_err(HostError::file(part))?;
            }
        }
        whole += n as u64;
    }
}

/// Checks a signature by whichever of the two programs that Debian and Ubuntu check their packages with is there.
fn verify(data: &[u8], signature: &[u8], key: &[u8], signer: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| format!("a signature needs a place to be checked at: {e}"))?;
    let put = |name: &str, bytes: &[u8]| -> Result<String, String> {
        let path = dir.path().join(name);
        fs::write(&path, bytes).map_err(|e| format!("`{}`: {e}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (data, signature, key) = (put("list", data)?, put("signature", signature)?, put("key.gpg", key)?);
    let ask = |path: PathBuf, args: &[&str]| program::ask(&path, args, CHECK_LIMIT).map_err(|e| e.to_string());
    let (output, signed) = if let Some(gpgv) = program::place(Program::Gpgv) {
        let output = ask(gpgv, &["--status-fd", "1", "--keyring", &key, &signature, &data])?;
        // VALIDSIG: the fingerprint of the key that signed, and at the end that of the one that it belongs to.
        let valid = output.stdout.lines().filter_map(|l| l.strip_prefix("[GNUPG:] VALIDSIG "));
        let signed = valid.into_iter().any(|l| l.split(' ').next_back() == Some(signer));
        (output, signed)
    } else if let Some(sqv) = program::place(Program::Sqv) {
        let output = ask(sqv, &["--keyring", &key, &signature, &data])?;
        let signed = output.stdout.lines().any(|l| l.trim() == signer);
        (output, signed)
    } else {
        return Err("its signature cannot be checked: neither gpgv nor sqv is installed".to_owned());
    };
    if output.status == 0 && signed {
        return Ok(());
    }
    let said = output.stderr.lines().last().unwrap_or("it is not by that key").trim().to_owned();
    Err(format!("its signature is not that of {signer}: {said}; nothing was fetched"))
}

#[cfg(test)]
mod tests {
    use super::super::web::server::{Page, Server};
    use super::*;

    const SIGNER: &str = "10B0D961E798BDC2660F53CD13DABFE07599F1E1";
    const PRODUCT: &str = "com.ubuntu.cloud:server:24.04:amd64";
    const KEY: &[u8] = include_bytes!("../../../tests/images/key.gpg");
    const INDEX: &str = include_str!("../../../tests/images/index.json");
    const INDEX_SIGNATURE: &[u8] = include_bytes!("../../../tests/images/index.json.gpg");
    const PRODUCTS: &str = include_str!("../../../tests/images/products.json");
    const PRODUCTS_SIGNATURE: &[u8] = include_bytes!("../../../tests/images/products.json.gpg");
    const MEDIA_SIGNER: &str = "66DE2C39286B95C07D434A7968041E6580A230C9";
    const MEDIA_KEY: &[u8] = include_bytes!("../../../tests/images/media-key.gpg");
    const MEDIA: &str = include_str!("../../../tests/images/SHA256SUMS");
    const MEDIA_SIGNATURE: &[u8] = include_bytes!("../../../tests/images/SHA256SUMS.gpg");
    const PRODUCTS_AT: &str = "/streams/v1/com.ubuntu.cloud:released:download.json";
    const OLD_AT: &str = "/server/releases/noble/release-20260801/ubuntu-24.04-server-cloudimg-amd64.img";
    const NEW_AT: &str = "/server/releases/noble/release-20260814.1/ubuntu-24.04-server-cloudimg-amd64.img";

    /// The images that the lists name: 3 GiB for a guest, told apart by what fills them.
    fn qcow2(fill: u8) -> Vec<u8> {
        let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
        bytes.resize(20, 0);
        bytes.extend(16u32.to_be_bytes());
        bytes.extend((3u64 << 30).to_be_bytes());
        bytes.resize(80, 0);
        bytes.resize(200_000, fill);
        bytes
    }

    struct Maker {
        server: Server,
        dir: tempfile::TempDir,
    }

    impl Maker {
        fn new() -> Self {
            let server = Server::start();
            for (path, body) in [
                ("/streams/v1/index.json", INDEX.as_bytes().to_vec()),
                ("/streams/v1/index.json.gpg", INDEX_SIGNATURE.to_vec()),
                (PRODUCTS_AT, PRODUCTS.as_bytes().to_vec()),
                (&format!("{PRODUCTS_AT}.gpg"), PRODUCTS_SIGNATURE.to_vec()),
                (OLD_AT, qcow2(1)),
                (NEW_AT, qcow2(2)),
            ] {
                server.put(path, Page::of(body));
            }
            Self { server, dir: tempfile::tempdir().unwrap() }
        }
        fn step(&self, origin: Origin) -> FetchStep {
            FetchStep {
                name: "ubuntu-24.04".parse().unwrap(),
                pool: self.dir.path().to_owned(),
                origin,
                digest: None,
                asked: None,
                medium: false,
            }
        }
        fn ubuntu(&self) -> FetchStep {
            self.step(Origin::Streams {
                base: self.server.url("/"),
                index: "streams/v1/index.json".to_owned(),
                content: "com.ubuntu.cloud:released:download".to_owned(),
                product: PRODUCT.to_owned(),
                files: vec!["uefi1.img".to_owned(), "disk1.img".to_owned()],
                signed_by: SIGNER.to_owned(),
                version: None,
            })
        }
        fn debian(&self) -> FetchStep {
            self.step(Origin::Sums {
                base: self.server.url("/"),
                list: "trixie/latest/SHA512SUMS".to_owned(),
                file: "trixie/latest/debian-13-generic-amd64.qcow2".to_owned(),
                signed_by: None,
            })
        }
        fn fetch(&self, step: &FetchStep) -> Result<Vec<String>, String> {
            self.fetch_with(step, Room::default())
        }
        fn fetch_with(&self, step: &FetchStep, room: Room) -> Result<Vec<String>, String> {
            let owner = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
            let key = |signer: &str| match signer {
                SIGNER => Some(KEY.to_vec()),
                MEDIA_SIGNER => Some(MEDIA_KEY.to_vec()),
                _ => None,
            };
            let mut told = Vec::new();
            let mut web = Web::with_plain(&self.server.address);
            web.room = room;
            let fetcher = Fetcher { web, key, owner };
            fetcher.fetch(step, &mut |line| told.push(line.to_owned())).map_err(|e| e.to_string())?;
            Ok(told)
        }
        fn kept(&self) -> Cached {
            kept(&image::pointer(self.dir.path(), "ubuntu-24.04")).unwrap()
        }
        /// The names in the folder of images.
        fn left(&self) -> Vec<String> {
            let all = fs::read_dir(self.dir.path().join(FOLDER)).unwrap();
            let mut names: Vec<_> = all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
        fn asked_for_images(&self) -> Vec<String> {
            self.server.asked().into_iter().filter(|a| a.contains(".img") || a.contains(".qcow2")).collect()
        }
    }

    fn sums(of: &[u8], name: &str) -> Page {
        use sha2::Digest as _;
        let hex: String = sha2::Sha512::digest(of).iter().map(|b| format!("{b:02x}")).collect();
        Page::of(format!("{}  other.qcow2\n{hex}  {name}\n", "0".repeat(128)))
    }

    #[test]
    fn the_newest_is_fetched_checked_and_kept_read_only() {
        let maker = Maker::new();
        maker.fetch(&maker.ubuntu()).unwrap();
        let kept = maker.kept();
        assert_eq!((kept.version.as_deref(), kept.virtual_size), (Some("20260814.1"), 3 << 30));
        assert!(kept.trusted.contains(SIGNER), "{}", kept.trusted);
        let path = maker.dir.path().join(FOLDER).join(&kept.file);
        assert_eq!(fs::read(&path).unwrap(), qcow2(2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
        assert_eq!(maker.left(), [kept.file.clone(), "ubuntu-24.04.json".to_owned()]);
        // Asked for once more, it is not fetched once more; and the file that disks are made from stays the same one.
        maker.asked_for_images();
        let again = FetchStep { asked: Some("later".to_owned()), ..maker.ubuntu() };
        assert_eq!(maker.fetch(&again).unwrap(), ["what is there is the newest"]);
        assert!(maker.asked_for_images().is_empty());
        assert_eq!(maker.kept(), Cached { asked: Some("later".to_owned()), ..kept });
    }

    #[test]
    fn a_pinned_digest_wins_over_the_list_and_needs_no_signature() {
        let maker = Maker::new();
        for list in ["/streams/v1/index.json.gpg", &format!("{PRODUCTS_AT}.gpg")] {
            maker.server.put(list, Page { status: 404, ..Page::default() });
        }
        let digest = Digest::Sha256(crate::types::sha256_hex(&qcow2(1)));
        maker.fetch(&FetchStep { digest: Some(digest), ..maker.ubuntu() }).unwrap();
        assert_eq!(maker.kept().version.as_deref(), Some("20260801"));
        let said = maker.fetch(&maker.ubuntu()).unwrap_err();
        assert!(said.contains("index.json.gpg") && said.contains("404"), "without one, there has to be one: {said}");
        assert_eq!(maker.kept().version.as_deref(), Some("20260801"), "and what was kept stays");
    }

    #[test]
    fn a_list_that_its_maker_did_not_sign_is_not_believed() {
        for (path, page) in [
            ("/streams/v1/index.json", Page::of(INDEX.replace("2026", "2027"))),
            (PRODUCTS_AT, Page::of(PRODUCTS.replace("\"supported\": true", "\"supported\": false"))),
            ("/streams/v1/index.json.gpg", Page::of(PRODUCTS_SIGNATURE)),
            ("/streams/v1/index.json.gpg", Page::of("no signature")),
            ("/streams/v1/index.json.gpg", Page::of("")),
        ] {
            let maker = Maker::new();
            maker.server.put(path, page);
            let said = maker.fetch(&maker.ubuntu()).unwrap_err();
            assert!(said.contains("signature is not that of"), "{path}: {said}");
            assert!(maker.left().is_empty() && maker.asked_for_images().is_empty(), "{path}");
        }
        let other = key_of_ubuntu();
        let said = verify(INDEX.as_bytes(), INDEX_SIGNATURE, &other, SIGNER).unwrap_err();
        assert!(said.contains(SIGNER), "{said}");
        let said = verify(INDEX.as_bytes(), INDEX_SIGNATURE, KEY, "D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81");
        assert!(said.is_err(), "a good signature by a key that it is not to be of");
    }

    fn key_of_ubuntu() -> Vec<u8> {
        image::key("D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81").unwrap()
    }

    #[test]
    fn what_is_not_what_the_list_says_leaves_nothing() {
        let leads_out = {
            let mut bytes = qcow2(2);
            bytes[15] = 104;
            bytes
        };
        for (page, what) in [
            (Page::of(qcow2(3)), "has to be sha256:"),
            (Page::of(qcow2(2)[..100_000].to_vec()), "its list says 200000"),
            (Page::of([qcow2(2), vec![0]].concat()), "its list says 200000"),
            (
                Page {
                    status: 302,
                    headers: vec![("location".into(), "http://127.0.0.1:1/x".into())],
                    ..Page::default()
                },
                "plain http",
            ),
            (Page { status: 404, ..Page::default() }, "404"),
        ] {
            let maker = Maker::new();
            maker.server.put(NEW_AT, page);
            let said = maker.fetch(&maker.ubuntu()).unwrap_err();
            assert!(said.contains(what), "{what}: {said}");
            assert!(maker.left().is_empty(), "{what}: {:?}", maker.left());
        }
        let maker = Maker::new();
        maker.server.put("/u", Page::of(leads_out.clone()));
        let digest = Digest::Sha256(crate::types::sha256_hex(&leads_out));
        let step = FetchStep { digest: Some(digest), ..maker.step(Origin::Url { url: maker.server.url("/u") }) };
        let said = maker.fetch(&step).unwrap_err();
        assert!(said.contains("another file to read from"), "{said}");
        assert!(maker.left().is_empty(), "{:?}", maker.left());
        let said = maker.fetch(&FetchStep { digest: None, ..step }).unwrap_err();
        assert!(said.contains("pin its digest"), "{said}");
    }

    #[test]
    fn latest_may_become_another_between_the_list_and_the_file() {
        let name = "debian-13-generic-amd64.qcow2";
        let at = format!("/trixie/latest/{name}");
        let maker = Maker::new();
        maker.server.put(
            "/trixie/latest/SHA512SUMS",
            Page { then: Some(Box::new(sums(&qcow2(6), name))), ..sums(&qcow2(5), name) },
        );
        maker.server.put(&at, Page::of(qcow2(6)));
        let told = maker.fetch(&maker.debian()).unwrap();
        assert!(told.iter().any(|l| l.contains("it changed while it was fetched")), "{told:?}");
        let kept = maker.kept();
        assert_eq!(kept.sha256, crate::types::sha256_hex(&qcow2(6)));
        assert!(kept.trusted.contains("SHA512SUMS, which is not signed"), "{}", kept.trusted);

        let swapped = Maker::new();
        swapped.server.put("/trixie/latest/SHA512SUMS", sums(&qcow2(5), name));
        swapped.server.put(&at, Page::of(qcow2(6)));
        let said = swapped.fetch(&swapped.debian()).unwrap_err();
        assert!(said.contains("has to be sha512:"), "{said}");
        assert!(swapped.left().is_empty(), "{:?}", swapped.left());
    }

    #[test]
    fn an_installers_medium_is_the_newest_of_a_signed_list() {
        let at = |name: &str| format!("/24.04/{name}");
        let (new, old) = (at("ubuntu-24.04.10-desktop-amd64.iso"), at("ubuntu-24.04.9-desktop-amd64.iso"));
        let maker = |list: Page, signature: Page| {
            let maker = Maker::new();
            for (path, page) in [
                (at("SHA256SUMS"), list),
                (at("SHA256SUMS.gpg"), signature),
                (new.clone(), Page::of(vec![b'i'; 6144])),
                (old.clone(), Page::of(vec![b'o'; 6144])),
            ] {
                maker.server.put(&path, page);
            }
            maker
        };
        let step = |maker: &Maker| FetchStep {
            medium: true,
            ..maker.step(Origin::Sums {
                base: maker.server.url("/"),
                list: "24.04/SHA256SUMS".to_owned(),
                file: "24.04/ubuntu-24.04*-desktop-amd64.iso".to_owned(),
                signed_by: Some(MEDIA_SIGNER.to_owned()),
            })
        };
        let good = maker(Page::of(MEDIA), Page::of(MEDIA_SIGNATURE));
        good.fetch(&step(&good)).unwrap();
        let kept = good.kept();
        assert_eq!(kept.version.as_deref(), Some("ubuntu-24.04.10-desktop-amd64.iso"));
        assert_eq!((kept.bytes, kept.kind.as_str()), (6144, "raw"));
        assert!(kept.trusted.contains(MEDIA_SIGNER), "{}", kept.trusted);
        // A digest that is pinned finds its own, whoever signed the list.
        let pinned = maker(Page::of(MEDIA), Page { status: 404, ..Page::default() });
        let digest = Some(Digest::Sha256(crate::types::sha256_hex(&[b'o'; 6144])));
        pinned.fetch(&FetchStep { digest, ..step(&pinned) }).unwrap();
        assert_eq!(pinned.kept().version.as_deref(), Some("ubuntu-24.04.9-desktop-amd64.iso"));
        for (list, signature, what) in [
            (Page::of(MEDIA.replace("04.10-d", "04.11-d")), Page::of(MEDIA_SIGNATURE), "signature is not that of"),
            (Page::of(MEDIA), Page::of("no signature"), "signature is not that of"),
            (Page::of(MEDIA), Page { status: 404, ..Page::default() }, "404"),
        ] {
            let maker = maker(list, signature);
            let said = maker.fetch(&step(&maker)).unwrap_err();
            assert!(said.contains(what), "{what}: {said}");
            assert!(maker.left().is_empty() && !maker.server.asked().iter().any(|a| a.contains(".iso")), "{what}");
        }
        for (body, what) in [(vec![b'x'; 6144], "has to be sha256:"), (vec![b'i'; 4096], "has to be sha256:")] {
            let maker = maker(Page::of(MEDIA), Page::of(MEDIA_SIGNATURE));
            maker.server.put(&new, Page::of(body));
            let said = maker.fetch(&step(&maker)).unwrap_err();
            assert!(said.contains(what) && maker.left().is_empty(), "{said}");
        }
    }

    #[test]
    fn a_file_of_the_hosts_is_copied() {
        let maker = Maker::new();
        let path = maker.dir.path().join("golden");
        fs::write(&path, vec![7; 1024]).unwrap();
        maker.fetch(&maker.step(Origin::Path { path: path.clone() })).unwrap();
        let kept = maker.kept();
        assert_eq!((kept.kind.as_str(), kept.virtual_size), ("raw", 1024));
        assert!(kept.file.ends_with(".img") && path.exists());
        let wrong = FetchStep { digest: Some(Digest::Sha256("0".repeat(64))), ..maker.step(Origin::Path { path }) };
        assert!(maker.fetch(&wrong).unwrap_err().contains("has to be"));
        let gone = maker.step(Origin::Path { path: "/nonexistent/image".into() });
        assert!(maker.fetch(&gone).unwrap_err().contains("/nonexistent/image"));
        assert_eq!(maker.left().len(), 2, "{:?}", maker.left());
    }

    #[test]
    fn a_cd_rom_is_no_disk_image() {
        let maker = Maker::new();
        maker.server.put("/u", Page::of(qcow2(1)));
        let digest = |bytes: &[u8]| Some(Digest::Sha256(crate::types::sha256_hex(bytes)));
        let url = Origin::Url { url: maker.server.url("/u") };
        let step = FetchStep { digest: digest(&qcow2(1)), medium: true, ..maker.step(url.clone()) };
        let said = maker.fetch(&step).unwrap_err();
        assert!(said.contains("qcow2 form") && said.contains("nothing of it was kept"), "{said}");
        let path = maker.dir.path().join("golden");
        fs::write(&path, qcow2(1)).unwrap();
        let copied = FetchStep { medium: true, ..maker.step(Origin::Path { path }) };
        assert!(maker.fetch(&copied).unwrap_err().contains("qcow2 form"));
        assert!(maker.left().is_empty(), "{:?}", maker.left());
        maker.server.put("/u", Page::of(vec![7; 4096]));
        maker.fetch(&FetchStep { digest: digest(&[7; 4096]), medium: true, ..maker.step(url) }).unwrap();
        assert!(maker.kept().file.ends_with(".img"), "{}", maker.kept().file);
    }

    #[test]
    fn a_copy_leaves_room_in_the_pool_and_keeps_holes() {
        let maker = Maker::new();
        let path = maker.dir.path().join("golden");
        let file = File::create(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 2 << 20).unwrap();
        let part = maker.dir.path().join("part");
        copy(&path, &part, &Room { reserve: 0, free: |_| Some(2 << 20) }).unwrap();
        assert_eq!(Sums::of(&part).unwrap(), Sums::of(&path).unwrap());
        assert!(fs::metadata(&part).unwrap().blocks() < 4096, "its holes stay holes");

        fs::write(&path, vec![7; 3 << 20]).unwrap();
        for free in [(|_| Some(1)) as fn(&Path) -> Option<u64>, |_| None] {
            let said =
                maker.fetch_with(&maker.step(Origin::Path { path: path.clone() }), Room { reserve: 1 << 20, free });
            assert!(said.is_err(), "{said:?}");
            assert!(maker.left().is_empty(), "{:?}", maker.left());
        }
        fs::create_dir_all(maker.dir.path().join(FOLDER)).unwrap();
        let part = maker.dir.path().join(FOLDER).join(".ubuntu-24.04.part");
        let free = |folder: &Path| {
            let part = fs::metadata(folder.join(".ubuntu-24.04.part")).map_or(0, |m| m.len());
            // Guests write meanwhile.
            Some((5u64 << 20).saturating_sub(2 * part))
        };
        let said = copy(&path, &part, &Room { reserve: 1 << 20, free }).unwrap_err().to_string();
        assert!(said.contains("make room there"), "{said}");
    }

    #[test]
    fn only_images_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("a.qcow2");
        fs::write(&disk, "a guest's").unwrap();
        assert!(remove(&disk, &crate::host::live::Live::for_a_plan()).unwrap_err().to_string().contains("no image"));
        assert!(disk.exists());
    }
}
