//! Package transactions: what was planned, simulated once more, or nothing.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::{files, program};
use crate::host::{HostError, Program};
use crate::plan::AptPackage;
use crate::resource::package::{FETCHED_FOR, Simulated, UNFINISHED, read_simulation};
use crate::types::{PackageName, compare_versions, without_userinfo};

/// A download over a slow line and an initramfs for every kernel.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(3600);
/// The simulation reads all package lists.
const SIMULATION_LIMIT: Duration = Duration::from_secs(120);
/// How long another package manager is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// The locks that apt takes, in its order (apt-get(8), FILES).
const LOCKS: [&str; 4] =
    ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"];
/// How often a lock is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Configuration files that a person changed are kept, others become the package's; apt asks nobody.
const QUIET: [&str; 9] = [
    "-y",
    "-q",
    "--no-install-recommends",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Use-Pty=0",
];

/// Fetches the package lists, and remembers what for.
pub(super) fn index(mark: &str, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    wait_for_locks(&LOCKS.map(Path::new), LOCK_LIMIT, progress)?;
    // Without this word apt-get ends with 0 although a source did not answer.
    fetch(&["update", "-q", "-o", "APT::Update::Error-Mode=any"], progress)?;
    files::make_dir(Path::new(FETCHED_FOR).parent().unwrap_or(Path::new("/")), 0o700, 0, 0)?;
    files::write(Path::new(FETCHED_FOR), mark.as_bytes(), 0o600, 0, 0)
}

/// Lets apt fetch something. Sources that do not answer are named, in place of all that apt says.
fn fetch(args: &[&str], progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let mut failed: Vec<Unfetched> = Vec::new();
    let mut untrustworthy: Vec<Unfetched> = Vec::new();
    let mut watch = |line: &str| {
        failed.extend(unfetched(line).filter(|u| !failed.contains(u)));
        untrustworthy.extend(untrusted(line).filter(|u| !untrustworthy.iter().any(|o| o.source == u.source)));
        progress(line);
    };
    match program::perform(Program::AptGet, args, TRANSACTION_LIMIT, &mut watch) {
        // Worse than a source that does not answer, and told alone.
        Err(HostError::Failed { .. }) if !untrustworthy.is_empty() => {
            let each = untrustworthy.iter().map(|u| format!("\n  {}: {}", u.source, u.why)).collect::<String>();
            Err(HostError::Refused(format!(
                "package sources are not to be trusted:{each}\nno package was changed; wait until their maker has mended \
                 them, or compare their key with the one that the maker publishes; then apply again"
            )))
        }
        Err(HostError::Failed { .. }) if !failed.is_empty() => {
            let each = failed.iter().map(|u| format!("\n  {}: {}", u.source, u.why)).collect::<String>();
            // What a source answers and does not have is not its fault: our lists of it are old.
            let old = failed.iter().all(|u| u.why.starts_with("404"));
            let (what, next) = match old {
                true => ("the package lists here are older than their sources", "run: apt-get update; then plan again"),
                false => (
                    "package sources do not answer",
                    "look at the network, or at /etc/apt/sources.list.d; then apply again",
                ),
            };
            Err(HostError::Refused(format!("{what}:{each}\nno package was changed; {next}")))
        }
        other => other,
    }
}

/// Something that apt could not fetch.
#[derive(Debug, PartialEq, Eq)]
struct Unfetched {
    source: String,
    why: String,
}

/// A source whose index is not signed, not by its key, changed after it was signed, or past its time, in apt's words:
/// `W: GPG error: SOURCE  FILE: WHY`, `E: The repository 'SOURCE  FILE' is not signed.`,
/// `E: Release file for SOURCE is expired (…).`
fn untrusted(line: &str) -> Option<Unfetched> {
    let told = line.strip_prefix("E: ").or_else(|| line.strip_prefix("W: "))?;
    let source = |text: &str| without_userinfo(text.split("  ").next().unwrap_or(text)).trim().to_owned();
    if let Some((_, rest)) = told.split_once("GPG error: ") {
        let (of, why) = rest.split_once(": ")?;
        return Some(Unfetched { source: source(of), why: why.trim().to_owned() });
    }
    if let Some(rest) = told.strip_prefix("The repository '") {
        // `is no longer signed` where it was before.
        let (of, why) = rest.split_once("' ")?;
        let why = ["is not signed.", "is no longer signed."].into_iter().find(|w| *w == why)?;
        return Some(Unfetched { source: source(of), why: format!("it {}", why.trim_end_matches('.')) });
    }
    let rest = told.strip_prefix("Release file for ")?;
    let (of, why) = rest.split_once(" is expired ")?;
    let since = why.split_once(')').map_or(why, |(w, _)| w).trim_start_matches('(');
    Some(Unfetched { source: source(of), why: format!("it has expired ({since})") })
}

/// `E: Failed to fetch URL  WHY`, and `W:` likewise. Without the password that a URL may hold.
fn unfetched(line: &str) -> Option<Unfetched> {
    let rest = line.strip_prefix("E: ").or_else(|| line.strip_prefix("W: "))?.strip_prefix("Failed to fetch ")?;
    let (url, why) = rest.split_once("  ")?;
    let (scheme, after) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = after.split_once('/').unwrap_or((after, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    Some(Unfetched { source: format!("{scheme}{host}/{path}"), why: why.trim().replace("  ", " ") })
}

/// Carries out one transaction. apt is asked once more what it would do; anything but what was planned is refused.
pub(super) fn transaction(
    asked: &[String],
    install: &[AptPackage],
    remove: &[PackageName],
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    finish(progress)?;
    let apt = program::place(Program::AptGet).ok_or(HostError::NoProgram("apt-get"))?;
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let simulate: Vec<&str> = crate::resource::package::SIMULATE.iter().copied().chain(asked.iter().copied()).collect();
    match read_simulation(&program::ask(&apt, &simulate, SIMULATION_LIMIT)?) {
        Simulated::Would { install: now, remove: going } => {
            if let Some(other) = difference(install, remove, &now, &going) {
                return Err(HostError::Refused(format!(
                    "apt would now do something else than was planned: {other}; plan again"
                )));
            }
        }
        Simulated::NotKnown(name) => {
            return Err(HostError::Refused(format!("apt does not know `{name}` any more; plan again")));
        }
        Simulated::Cannot(why) | Simulated::NotAsked(why) => return Err(HostError::Refused(format!("apt: {why}"))),
    }
    let versions: BTreeMap<&str, &str> = install.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
    let exact: Vec<String> = asked
        .iter()
        .map(|name| match versions.get(name) {
            Some(version) => format!("{name}={version}"),
            None => (*name).to_owned(),
        })
        .collect();
    // apt asks for the word even where a pin wants it; planned and shown is each of them.
    let older = |p: &AptPackage| p.before.as_ref().is_some_and(|b| compare_versions(&p.version, b) == Ordering::Less);
    let back: &[&str] = if install.iter().any(older) { &["--allow-downgrades"] } else { &[] };
    // All is fetched before the first package changes: a source that does not answer leaves the host as it was.
    let install = |more: &[&'static str]| -> Vec<&str> {
        QUIET
            .iter()
            .chain(more)
            .chain(back)
            .copied()
            .chain(["install"])
            .chain(exact.iter().map(String::as_str))
            .collect()
    };
    fetch(&install(&["--download-only"]), progress)?;
    program::perform(Program::AptGet, &install(&[]), TRANSACTION_LIMIT, progress)?;
    files::remove(Path::new(FETCHED_FOR))
}

/// What apt would do now and was not planned, or the other way round.
fn difference(
    install: &[AptPackage],
    remove: &[PackageName],
    now: &[AptPackage],
    going: &[PackageName],
) -> Option<String> {
    let version = |list: &[AptPackage]| -> BTreeMap<String, String> {
        list.iter().map(|p| (p.name.to_string(), p.version.clone())).collect()
    };
    let (planned, now) = (version(install), version(now));
    let new = now.iter().find(|(name, v)| planned.get(*name) != Some(v)).map(|(n, v)| format!("install {n} {v}"));
    let missing = || planned.keys().find(|n| !now.contains_key(*n)).map(|n| format!("not install {n}"));
    let gone = || going.iter().find(|n| !remove.contains(n)).map(|n| format!("remove {n}"));
    let kept = || remove.iter().find(|n| !going.contains(n)).map(|n| format!("not remove {n}"));
    new.or_else(missing).or_else(gone).or_else(kept)
}

/// A transaction that was cut off in the middle is finished first, as dpkg itself asks for.
pub(super) fn finish(progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    wait_for_locks(&LOCKS.map(Path::new), LOCK_LIMIT, progress)?;
    // dpkg leaves numbered files there while a transaction is open (dpkg's own check for `--audit`).
    let open = fs::read_dir("/var/lib/dpkg/updates").is_ok_and(|mut d| {
        d.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())))
    });
    let status = fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    let cut = |l: &str| l.starts_with("Status: ") && UNFINISHED.iter().any(|h| l.ends_with(h));
    if open || status.lines().any(cut) {
        progress("an earlier package transaction was cut off: finishing it first");
        let args = ["--configure", "-a", "--force-confdef", "--force-confold"];
        program::perform(Program::Dpkg, &args, TRANSACTION_LIMIT, progress)?;
    }
    Ok(())
}

/// Waits until no other package manager works, says which one it waits for, and gives up after a while.
fn wait_for_locks(locks: &[&Path], limit: Duration, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let begin = Instant::now();
    let mut told = None;
    for path in locks {
        let Ok(file) = File::options().read(true).write(true).open(path) else { continue };
        // The kernel tells of a released record lock only to one who queues for it, without a limit: hence the looking.
        while let Some(pid) = holder(&file).map_err(HostError::file(path))? {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = if name.is_empty() { "another program" } else { name.trim() };
            if begin.elapsed() >= limit {
                return Err(HostError::Refused(format!(
                    "{name} (pid {pid}) still holds {} after {} s; try again when it is done",
                    path.display(),
                    limit.as_secs()
                )));
            }
            if told != Some(pid) {
                progress(&format!(
                    "waiting for {name} (pid {pid}), which holds {}, at most {} s",
                    path.display(),
                    limit.as_secs()
                ));
                told = Some(pid);
            }
            std::thread::sleep(LOOK_AGAIN.min(limit));
        }
    }
    Ok(())
}

/// Who holds a record lock that would keep us from writing.
fn holder(file: &File) -> std::io::Result<Option<i32>> {
    let mut lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != nix::libc::F_UNLCK).then_some(lock.l_pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> AptPackage {
        AptPackage { name: name.parse().unwrap(), version: version.to_owned(), before: None }
    }

    #[test]
    fn another_transaction_than_the_planned_one_is_seen() {
        let planned = [package("aa", "1"), package("bb", "1")];
        let gone: Vec<PackageName> = vec!["old".parse().unwrap()];
        let says = |now: &[AptPackage], going: &[PackageName]| difference(&planned, &gone, now, going);
        assert_eq!(says(&planned, &gone), None);
        assert_eq!(says(&[package("aa", "1"), package("bb", "2")], &gone).unwrap(), "install bb 2");
        assert_eq!(says(&planned[..1], &gone).unwrap(), "not install bb");
        assert_eq!(says(&planned, &[]).unwrap(), "not remove old");
        assert_eq!(says(&planned, &["old".parse().unwrap(), "new".parse().unwrap()]).unwrap(), "remove new");
    }

    #[test]
    fn a_lock_is_waited_for_with_a_word_and_a_limit() {
        let taken = tempfile::NamedTempFile::new().unwrap();
        let free = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holder(free.as_file()).unwrap(), None);
        // A lock of the open file, which is in the way of this process's own looking too; it has no pid.
        let lock = nix::libc::flock { l_type: nix::libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(taken.as_file().as_fd(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        let mut said = Vec::new();
        let limit = Duration::from_millis(20);
        let result = wait_for_locks(&[free.path(), taken.path()], limit, &mut |line| said.push(line.to_owned()));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("still holds") && error.contains(&taken.path().display().to_string()), "{error}");
        assert!(said.len() == 1 && said[0].starts_with("waiting for another program"), "{said:?}");
        drop(taken);
        wait_for_locks(&[free.path()], limit, &mut |_| panic!("nothing to wait for")).unwrap();
    }

    #[test]
    fn a_source_that_does_not_answer_is_named_without_its_password() {
        let line =
            "E: Failed to fetch http://me:secret@mirror.test/debian/dists/x/InRelease  Could not connect to mirror";
        let one = unfetched(line).unwrap();
        assert_eq!(one.source, "http://mirror.test/debian/dists/x/InRelease");
        assert_eq!(one.why, "Could not connect to mirror");
        let gone = unfetched("E: Failed to fetch http://m/pool/a.deb  404  Not Found [IP: 192.0.2.1 80]").unwrap();
        assert_eq!(gone.why, "404 Not Found [IP: 192.0.2.1 80]");
        assert_eq!(unfetched("E: Unable to locate package x"), None);
    }

    /// The real apt on a repository in NVIDIA's layout, made by the lab's own script, in a root of its own.
    struct Repository {
        dir: tempfile::TempDir,
        fingerprint: String,
    }

    impl Repository {
        /// `None` where the programs that make one are not installed.
        fn new() -> Option<Self> {
            let all = ["/usr/bin/gpg", "/usr/bin/dpkg-deb", "/bin/bash", "/usr/bin/apt-get"];
            if all.iter().any(|p| !Path::new(p).exists()) {
                return None;
            }
            let dir = tempfile::tempdir().unwrap();
            for folder in ["etc/sources.list.d", "etc/preferences.d", "lists/partial", "cache/archives/partial", "dpkg"]
            {
                fs::create_dir_all(dir.path().join(folder)).unwrap();
            }
            fs::write(dir.path().join("dpkg/status"), "").unwrap();
            let mut new = Self { dir, fingerprint: String::new() };
            new.fingerprint = new.make(&[]).trim().to_owned();
            let source = format!(
                "Types: deb\nURIs: file:{0}/made/repo\nSuites: /\nSigned-By: {0}/made/key.asc\nCheck-Valid-Until: yes\nCheck-Date: yes\n",
                new.dir.path().display()
            );
            fs::write(new.dir.path().join("etc/sources.list.d/x.sources"), source).unwrap();
            Some(new)
        }
        fn make(&self, verb: &[&str]) -> String {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/apt-repo/make");
            let made = self.dir.path().join("made").display().to_string();
            let args: Vec<&str> = [script, &made].into_iter().chain(verb.iter().copied()).collect();
            let output = program::ask(Path::new("/bin/bash"), &args, Duration::from_secs(300)).unwrap();
            assert_eq!(output.status, 0, "{}", output.stderr);
            output.stdout
        }
        fn args(&self, verb: &[&str]) -> Vec<String> {
            let at = |name: &str| self.dir.path().join(name).display().to_string();
            let options = [
                format!("Dir::Etc={}", at("etc")),
                format!("Dir::State::lists={}", at("lists")),
                format!("Dir::State::status={}", at("dpkg/status")),
                format!("Dir::Cache={}", at("cache")),
                "APT::Sandbox::User=root".to_owned(),
                "APT::Architecture=amd64".to_owned(),
            ];
            let options = options.into_iter().flat_map(|o| ["-o".to_owned(), o]);
            options.chain(verb.iter().map(|v| (*v).to_owned())).collect()
        }
        fn update(&self) -> Result<(), HostError> {
            let args = self.args(&["update", "-q", "-o", "APT::Update::Error-Mode=any"]);
            fetch(&args.iter().map(String::as_str).collect::<Vec<_>>(), &mut |_| {})
        }
        /// What apt would do for a package, as `name before→version` and `-name`.
        fn simulated(&self, name: &str) -> Vec<String> {
            let args = self.args(&[&crate::resource::package::SIMULATE[..], &[name]].concat());
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = program::ask(Path::new("/usr/bin/apt-get"), &args, SIMULATION_LIMIT).unwrap();
            let Simulated::Would { install, remove } = read_simulation(&output) else { panic!("{output:?}") };
            let shown = |p: &AptPackage| format!("{} {}→{}", p.name, p.before.as_deref().unwrap_or(""), p.version);
            let mut all: Vec<String> =
                remove.iter().map(|n| format!("-{n}")).chain(install.iter().map(shown)).collect();
            all.sort();
            all
        }
        fn preferences(&self, text: &str) {
            fs::write(self.dir.path().join("etc/preferences.d/x.pref"), text).unwrap();
        }
        /// dpkg's status as if the unsuffixed driver of this version were installed.
        fn installed(&self, version: &str) {
            let open = ["nvidia-open", "nvidia-driver-open", "nvidia-dkms-open", "libnvidia-compute"];
            let needs = |i: usize| match i {
                0 => format!("Depends: nvidia-driver-open (= {version})\n"),
                1 => format!("Depends: nvidia-dkms-open (= {version}), libnvidia-compute (= {version})\n"),
                2 => "Provides: nvidia-kernel-any\nConflicts: nvidia-kernel-any\n".to_owned(),
                _ => String::new(),
            };
            let stanza = |(i, n): (usize, &&str)| {
                format!(
                    "Package: {n}\nStatus: install ok installed\nVersion: {version}\nArchitecture: all\n{}\n",
                    needs(i)
                )
            };
            fs::write(self.dir.path().join("dpkg/status"), open.iter().enumerate().map(stanza).collect::<String>())
                .unwrap();
        }
    }

    #[test]
    fn apt_refuses_an_index_that_is_not_to_be_trusted_and_it_is_told_which_and_why() {
        let Some(repository) = Repository::new() else { return };
        repository.update().unwrap();
        let key = fs::read_to_string(repository.dir.path().join("made/key.asc")).unwrap();
        assert_eq!(crate::types::fingerprints(&key).unwrap(), [repository.fingerprint.as_str()], "as gpg tells it");
        for (how, why) in [
            ("broken", "The following signatures were invalid: BADSIG"),
            ("other", "NO_PUBKEY"),
            ("expired", "it has expired (invalid since 2d"),
            ("not", "signed"),
        ] {
            repository.make(&["sign", how]);
            for fresh in [false, true] {
                if fresh {
                    fs::remove_dir_all(repository.dir.path().join("lists")).unwrap();
                    fs::create_dir_all(repository.dir.path().join("lists/partial")).unwrap();
                }
                let said = repository.update().unwrap_err().to_string();
                assert!(
                    said.starts_with("package sources are not to be trusted:") && said.contains(why),
                    "{how}: {said}"
                );
                assert!(said.contains("no package was changed"), "{said}");
            }
            repository.make(&["sign", "well"]);
            repository.update().unwrap();
        }
    }

    #[test]
    fn lists_and_pins_are_what_apt_makes_of_them() {
        let Some(repository) = Repository::new() else { return };
        repository.update().unwrap();
        let url = format!("file://{}/made/repo", repository.dir.path().display());
        let prefix = crate::resource::apt_source::list_prefix(&url, "/");
        let lists: Vec<_> = fs::read_dir(repository.dir.path().join("lists")).unwrap().collect();
        let named = |e: &std::io::Result<fs::DirEntry>| {
            e.as_ref().unwrap().file_name().to_string_lossy().starts_with(&format!("{prefix}Packages"))
        };
        assert!(lists.iter().any(named), "{prefix}: {lists:?}");

        // A suffix is a branch of its own; without one the newest comes, unless it is pinned.
        let of = |all: &[String], name: &str| all.iter().find(|l| l.starts_with(&format!("{name} "))).cloned();
        assert_eq!(
            of(&repository.simulated("nvidia-open-580"), "nvidia-dkms-580-open").unwrap(),
            "nvidia-dkms-580-open →580.95.05-1"
        );
        assert_eq!(of(&repository.simulated("nvidia-open"), "nvidia-open").unwrap(), "nvidia-open →595.71.05-1");
        repository.preferences(
            "Package: src:*nvidia*:any src:cuda-drivers*:any\nPin: version 590.48.01-*\nPin-Priority: 1001\n",
        );
        let pinned = repository.simulated("nvidia-open");
        assert_eq!(pinned.len(), 4);
        assert!(pinned.iter().all(|l| l.ends_with("→590.48.01-1")), "{pinned:?}");

        // Back to an older version, as a whole.
        repository.installed("595.71.05-1");
        let back = repository.simulated("nvidia-open");
        assert!(back.len() == 4 && back.iter().all(|l| l.ends_with(" 595.71.05-1→590.48.01-1")), "{back:?}");
        // To a branch with a suffix: what cannot stay beside it goes.
        repository.preferences("");
        let other = repository.simulated("nvidia-open-580");
        assert_eq!(
            other,
            [
                "-nvidia-dkms-open",
                "-nvidia-driver-open",
                "-nvidia-open",
                "libnvidia-compute-580 →580.95.05-1",
                "nvidia-dkms-580-open →580.95.05-1",
                "nvidia-driver-580-open →580.95.05-1",
                "nvidia-open-580 →580.95.05-1",
            ]
        );
    }

    #[test]
    fn apt_is_understood_where_no_source_answers() {
        if program::place(Program::AptGet).is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        // Port 9 of the loopback: nobody listens there.
        fs::write(at("list"), "deb [trusted=yes] http://127.0.0.1:9/debian stable main\n").unwrap();
        let options = [
            format!("Dir::Etc::sourcelist={}", at("list")),
            "Dir::Etc::sourceparts=/nonexistent".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
        ];
        let mut args = vec!["update", "-q", "-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Retries=0"];
        args.extend(options.iter().flat_map(|o| ["-o", o.as_str()]));
        let error = fetch(&args, &mut |_| {}).unwrap_err().to_string();
        assert!(error.starts_with("package sources do not answer:\n  http://127.0.0.1:9/debian/dists/"), "{error}");
    }
}
