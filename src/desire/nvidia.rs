//! `drivers.nvidia`: from branch or version, cards and apt's lists to packages. No name is made up: each is in a list that
//! apt has, or the plan says that the list comes first.

use std::collections::BTreeSet;

use super::drivers::{On, finding};
use super::{Desired, Shared};
use crate::facts::drivers::Offer;
use crate::facts::{InitramfsTool, Known, PciFunction, SecureBoot};
use crate::gpu::architecture::{Architecture, NVIDIA};
use crate::manifest::{self, KernelModule, NvidiaEntry, PackageSource, RepositoryEntry};
use crate::plan::{Containers, FileWrite, Finding, Key, Refresh, Severity};
use crate::resource::apt_source::{AptSource, list_prefix};
use crate::resource::container_runtime::ContainerRuntime;
use crate::resource::driver::{Driver, fits, upstream};
use crate::resource::file;
use crate::resource::package::PackageSet;
use crate::types::{PackageName, compare_versions, fingerprints};

const PLACE: &str = "drivers.nvidia";
const KEYRING: &str = "/etc/apt/keyrings/gpuvm-nvidia.asc";
const SOURCE: &str = "/etc/apt/sources.list.d/gpuvm-nvidia.sources";
const PIN: &str = "gpuvm-nvidia.pref";
const NOUVEAU: &str = "/etc/modprobe.d/gpuvm-nouveau.conf";
const CUDA_PATH: &str = "/etc/profile.d/gpuvm-cuda.sh";
const CUDA_LIBRARIES: &str = "/etc/ld.so.conf.d/gpuvm-cuda.conf";
/// NVIDIA's packages that hold a host on a branch (its driver installation guide, "Version locking").
const PINNING: &str = "nvidia-driver-pinning";
/// The transaction that installs one of them.
const STAGE: &str = "pinning";

pub(super) fn desire(on: &On<'_>, entry: &NvidiaEntry, desired: &mut Desired, shared: &mut Shared) {
    let cards = match on.cards("nvidia", NVIDIA) {
        Ok(cards) => cards,
        Err(none) => return desired.findings.push(none),
    };
    let Some(wish) = Wish::of(entry) else { return };
    let open = match modules(entry.kernel_module, &wish, &cards) {
        Ok(open) => open,
        Err(found) => return desired.findings.extend(found),
    };
    let mut found = Vec::new();
    found.extend(goes_back(on, entry, &wish));
    let url = match &entry.source {
        PackageSource::Distribution => None,
        PackageSource::Repository(repository) => {
            found.extend(key_is_it(on, repository));
            found.extend(named_twice(on, repository));
            Some(repository)
        }
    };
    let lists = url.map(|r| list_prefix(r.url.as_str(), r.suite.as_ref().map_or("/", |s| s.as_str())));
    let fetched = lists.as_ref().is_none_or(|l| on.known.has_list(l));
    let mut chosen = None;
    if fetched {
        match choose(on, lists.as_deref(), &wish, open) {
            Ok(names) => chosen = Some(names),
            Err((message, help)) => found.push(error("no-package", message, &help)),
        }
    }
    let preferences = preferences(url, &wish, chosen.as_ref());
    let source = want_source(on, entry, lists.clone(), preferences.clone(), desired);
    let after_source: BTreeSet<Key> = source.into_iter().collect();
    shared.before_packages.extend(after_source.clone());
    shared.replaceable.extend(installed_stack(on));
    shared.older |= entry.allow_downgrade;
    let pinned = preferences.is_none_or(|text| on.known.preferences.get(PIN).is_some_and(|t| *t == text));
    if !fetched || !pinned {
        let from = url.map_or("the distribution".to_owned(), |r| r.url.to_string());
        shared.packages_wait = Some(match fetched {
            false => format!(
                "NVIDIA's driver {wish} ({}) is named by the list of {from}, which is fetched first",
                kind(open)
            ),
            true => format!("NVIDIA's driver {wish} ({}) is pinned first", kind(open)),
        });
    }
    let mut packages = Vec::new();
    if !fetched && wish.is_branch() {
        // It may be needed, and nothing is done that was not in the plan.
        let waits = Some("whether it is needed, the list of the source tells".to_owned());
        let set = PackageSet { stage: STAGE.to_owned(), waits, ..PackageSet::default() };
        shared.before_packages.insert(desired.want(PLACE, after_source.clone(), set));
    }
    if let Some(names) = &chosen {
        if let Some(pinning) = &names.pinning {
            want_pinning(on, pinning, after_source, desired, shared);
        }
        // One that holds another branch says the opposite of the manifest.
        let held =
            on.facts.packages.value().into_iter().flatten().filter(|(n, p)| p.installed && n.starts_with(PINNING));
        let others = held.map(|(n, _)| n.clone()).filter(|n| names.pinning.as_ref().is_none_or(|p| p != n));
        if names.pinning.is_none() {
            shared.absent_packages.extend(others);
        }
        for name in &names.packages {
            want(shared, name);
            if names.of_driver.contains(name)
                && let Ok(name) = name.parse::<PackageName>()
            {
                shared.versions.insert(name.clone(), wish.0.clone());
                packages.push(name);
            }
        }
        found.extend(toolkits(on, entry, lists.as_deref(), shared));
        if names.built_here {
            headers(on, shared);
            found.extend(signs(on));
        }
    }
    found.extend(next_boot(on, &packages));
    if let Some(cuda) = &entry.cuda {
        want_cuda(cuda.as_str(), desired);
        let old: Vec<String> = cards
            .iter()
            .filter(|f| Architecture::of(f.id).is_some_and(|a| a < Architecture::Turing))
            .map(|f| f.model().to_owned())
            .collect();
        if !old.is_empty() && !cuda.as_str().starts_with("12-") {
            found.push(finding(
                Severity::Warning,
                "cuda-without-card",
                &format!("{PLACE}.cuda"),
                format!("CUDA {} makes no programs for {}", cuda.as_str().replace('-', "."), old.join(", ")),
                "the last toolkit for cards before Turing is 12: name one of these (`cuda: \"12-9\"`)",
            ));
        }
    }
    let after_packages = [Key::new("package", "")];
    let text = "# Written by gpuvm: nouveau and NVIDIA's driver exclude each other.\nblacklist nouveau\noptions nouveau modeset=0\n";
    let refreshes = match on.facts.boot.initramfs {
        InitramfsTool::None => BTreeSet::new(),
        _ => BTreeSet::from([Refresh::Initramfs]),
    };
    let write = FileWrite::root(NOUVEAU, text, 0o644);
    let nouveau = desired.want(PLACE, after_packages.clone(), file::File { write, take_over: false, refreshes });
    if let Ok(name) = "nvidia".parse() {
        let wanted = Driver {
            name,
            cards: cards.iter().map(|f| f.address).collect(),
            shared: on.shared(&cards),
            drivers: vec!["nvidia".to_owned()],
            version: Some(wish.0.clone()),
            open: Some(open),
            packages,
        };
        let driver = desired.want(PLACE, after_packages.into_iter().chain([nouveau]), wanted);
        containers(on, entry, &driver, desired);
    }
    desired.findings.extend(found);
}

fn error(code: &str, message: String, help: &str) -> Finding {
    finding(Severity::Error, code, PLACE, message, help)
}

const fn kind(open: bool) -> &'static str {
    if open { "open modules" } else { "proprietary modules" }
}

/// How the driver's version has to begin: `580.` for a branch, else the version (see [`fits`]).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish(String);

impl std::fmt::Display for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.trim_end_matches('.'))
    }
}

impl Wish {
    fn of(entry: &NvidiaEntry) -> Option<Self> {
        let branch = entry.branch.as_ref().map(|b| format!("{b}."));
        branch.or_else(|| entry.version.as_ref().map(ToString::to_string)).map(Self)
    }
    fn branch(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
    fn is_branch(&self) -> bool {
        self.0.ends_with('.')
    }
}

/// Whether the open modules are taken; findings where the cards cannot have what is asked for, or are not known.
fn modules(asked: KernelModule, wish: &Wish, cards: &[&PciFunction]) -> Result<bool, Vec<Finding>> {
    let mut found = Vec::new();
    let mut known = Vec::new();
    for card in cards {
        let of = Architecture::of(card.id);
        let name = format!("{} {} [{}]", card.address.slot, card.model(), card.id);
        match of {
            Some(architecture) => known.push((name, architecture)),
            None if asked == KernelModule::Auto => found.push(error(
                "unknown-card",
                format!("{name} is not in the table of NVIDIA's architectures, so which kernel modules it needs is not known"),
                "write `kernelModule: open` (from Turing on, and the only ones from Blackwell on) or `proprietary`",
            )),
            None => {}
        }
    }
    let branch = wish.branch().parse::<u32>().unwrap_or(u32::MAX);
    for (name, architecture) in &known {
        if let Some(last) = architecture.last_branch().filter(|last| branch > *last) {
            found.push(error(
                "branch-without-card",
                format!(
                    "branch {branch} has no driver for {name} ({}): its last branch is {last}",
                    architecture.name()
                ),
                &format!("write `branch: \"{last}\"`, or keep the card for VMs (`use: vfio`)"),
            ));
        }
    }
    let no_open: Vec<&str> = known.iter().filter(|(_, a)| !a.takes_open()).map(|(n, _)| n.as_str()).collect();
    let no_proprietary: Vec<&str> =
        known.iter().filter(|(_, a)| !a.takes_proprietary()).map(|(n, _)| n.as_str()).collect();
    let open = match asked {
        KernelModule::Open => true,
        KernelModule::Proprietary => false,
        KernelModule::Auto => no_open.is_empty(),
    };
    let against = if open { &no_open } else { &no_proprietary };
    if !against.is_empty() {
        let (message, help) = match (open, asked) {
            (true, _) => (
                format!("the open kernel modules do not work with {}: they need Turing or later", against.join(", ")),
                "write `kernelModule: auto` or `proprietary`",
            ),
            (false, KernelModule::Proprietary) => (
                format!(
                    "the proprietary kernel modules do not work with {}: Blackwell needs the open ones",
                    against.join(", ")
                ),
                "write `kernelModule: auto` or `open`",
            ),
            (false, _) => (
                format!(
                    "no kernel modules work with all cards: {} needs the open ones, {} the proprietary ones",
                    no_proprietary.join(", "),
                    no_open.join(", ")
                ),
                "keep one of them for VMs (`use: vfio`)",
            ),
        };
        found.push(error("modules-without-card", message, help));
    }
    if found.is_empty() { Ok(open) } else { Err(found) }
}

/// The parts of NVIDIA's driver that are installed: what a change of branch replaces.
fn installed_stack(on: &On<'_>) -> Vec<PackageName> {
    let all = on.facts.packages.value().into_iter().flatten();
    let of_driver = |name: &str, version: &str| {
        let parts = name.contains("nvidia") || name.starts_with("cuda-drivers") || name == "libxnvctrl0";
        let others = ["container", "cuda-toolkit", "docker", "fs", "pinning"];
        let branch = upstream(version).split('.').next().unwrap_or_default();
        // Modules that the distribution built and signed have the kernel's version.
        let signed = name.starts_with("linux-modules-nvidia-") || name.starts_with("linux-signatures-nvidia-");
        parts
            && !others.iter().any(|o| name.contains(o))
            && (signed || branch.len() == 3 && branch.parse::<u32>().is_ok())
    };
    all.filter(|(name, p)| p.installed && of_driver(name, &p.version))
        .filter_map(|(name, _)| name.parse().ok())
        .collect()
}

/// The driver would become an older one, and nobody said that it may.
fn goes_back(on: &On<'_>, entry: &NvidiaEntry, wish: &Wish) -> Option<Finding> {
    if entry.allow_downgrade {
        return None;
    }
    let versions = installed_stack(on).into_iter().filter_map(|name| {
        let package = on.facts.package(name.as_str())?;
        (!name.as_str().starts_with("linux-")).then(|| (name, upstream(&package.version).to_owned()))
    });
    let newer = |version: &str| match wish.is_branch() {
        true => {
            let branch = |v: &str| v.split('.').next().and_then(|b| b.parse::<u32>().ok());
            branch(version) > branch(&wish.0)
        }
        false => compare_versions(version, upstream(&wish.0)) == std::cmp::Ordering::Greater,
    };
    let (name, version) = versions.filter(|(_, v)| newer(v)).max_by(|a, b| compare_versions(&a.1, &b.1))?;
    Some(error(
        "driver-older",
        format!("{name} {version} is installed, and {wish} is older"),
        "if it may go back, write `allowDowngrade: true`; else name the branch that is there, or a newer one",
    ))
}

/// The key beside the manifest is the one that is named, and the only one in its file.
fn key_is_it(on: &On<'_>, repository: &RepositoryEntry) -> Option<Finding> {
    let place = format!("{PLACE}.source.key");
    let name = repository.key.display();
    let wrong = |message: String| {
        let help = "fetch the repository's key again, compare its fingerprint with what its maker publishes, and write that \
                    into `fingerprint`";
        Some(finding(Severity::Error, "not-that-key", &place, message, help))
    };
    let Some(text) = key_text(on, repository) else { return wrong(format!("`{name}` is not text in UTF-8")) };
    let wanted = repository.fingerprint.as_str().to_ascii_uppercase();
    match fingerprints(&text) {
        Err(e) => wrong(format!("`{name}`: {e}")),
        Ok(found) if found == [wanted.clone()] => None,
        Ok(found) => wrong(format!("`{name}` holds {}, and `fingerprint` is {wanted}", found.join(", "))),
    }
}

fn key_text(on: &On<'_>, repository: &RepositoryEntry) -> Option<String> {
    String::from_utf8(on.manifest.files.get(&repository.key)?.clone()).ok()
}

/// Another source with this address and another key makes apt refuse all of its sources.
fn named_twice(on: &On<'_>, repository: &RepositoryEntry) -> Option<Finding> {
    let same = |url: &str| url.trim_end_matches('/') == repository.url.as_str().trim_end_matches('/');
    let (file, _) = on.known.others.iter().find(|(_, url)| same(url))?;
    Some(finding(
        Severity::Error,
        "source-twice",
        &format!("{PLACE}.source.url"),
        format!("{file} names this repository already; with two keys for one address apt reads none of its sources"),
        &format!("write `source: distribution` to use it as it is there, or take it away: less {file}"),
    ))
}

/// What is installed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Chosen {
    /// Everything that is asked for.
    packages: Vec<String>,
    /// Those of them that have the driver's version.
    of_driver: BTreeSet<String>,
    /// The package that keeps the host on the branch, installed before them.
    pinning: Option<String>,
    /// The branch is held by preferences of ours, since nothing else does.
    pin_branch: bool,
    /// DKMS builds the modules here.
    built_here: bool,
}

/// The packages for a wish, by the names that are in the lists.
fn choose(on: &On<'_>, lists: Option<&str>, wish: &Wish, open: bool) -> Result<Chosen, (String, String)> {
    let known = on.known;
    let of_source = |o: &&Offer| lists.is_none_or(|l| o.list.starts_with(l));
    let offers = |name: &str| known.offers.get(name).into_iter().flatten().filter(of_source).collect::<Vec<_>>();
    let has = |name: &str| offers(name).iter().any(|o| fits(&o.version, &wish.0));
    let branch = wish.branch();
    let repository = lists.is_some();
    let suffixed: Vec<String> = match (open, repository) {
        (true, true) => vec![format!("nvidia-open-{branch}"), format!("nvidia-driver-{branch}-open")],
        (true, false) => vec![format!("nvidia-driver-{branch}-open"), format!("nvidia-open-{branch}")],
        (false, true) => vec![format!("cuda-drivers-{branch}"), format!("nvidia-driver-{branch}")],
        (false, false) => vec![format!("nvidia-driver-{branch}"), format!("cuda-drivers-{branch}")],
    };
    if let Some(name) = suffixed.iter().find(|n| has(n)) {
        let signed = signed_modules(on, branch, open).filter(|_| !repository);
        let mut packages = vec![name.clone()];
        let built_here = signed.is_none();
        packages.extend(signed.into_iter().flatten());
        return Ok(Chosen { packages, of_driver: BTreeSet::from([name.clone()]), built_here, ..Chosen::default() });
    }
    // Debian's driver and its modules are two packages, without a branch in their names.
    let plain: Vec<Vec<&str>> = match (open, repository) {
        (true, true) => vec![vec!["nvidia-open"], vec!["nvidia-driver-open"]],
        (false, true) => vec![vec!["cuda-drivers"], vec!["nvidia-driver"]],
        (true, false) => vec![vec!["nvidia-driver", "nvidia-open-kernel-dkms"], vec!["nvidia-open"]],
        (false, false) => vec![vec!["nvidia-driver", "nvidia-kernel-dkms"], vec!["cuda-drivers"]],
    };
    if let Some(names) = plain.iter().find(|names| names.iter().all(|n| has(n))) {
        let pinning = format!("{PINNING}-{branch}");
        let pinning = Some(pinning).filter(|n| wish.is_branch() && !offers(n).is_empty());
        return Ok(Chosen {
            packages: names.iter().map(|n| (*n).to_owned()).collect(),
            of_driver: names.iter().map(|n| (*n).to_owned()).collect(),
            pin_branch: wish.is_branch() && pinning.is_none(),
            pinning,
            built_here: true,
        });
    }
    Err(not_offered(on, wish, open, &suffixed, &plain, &offers))
}

/// Nothing fits: what there is in its place.
fn not_offered<'a>(
    on: &On<'_>,
    wish: &Wish,
    open: bool,
    suffixed: &[String],
    plain: &[Vec<&str>],
    offers: &dyn Fn(&str) -> Vec<&'a Offer>,
) -> (String, String) {
    let family = |name: &str| {
        let stem = |prefix: &str, suffix: &str| {
            let branch = name.strip_prefix(prefix).and_then(|r| r.strip_suffix(suffix));
            branch.is_some_and(|b| b.len() == 3 && b.bytes().all(|b| b.is_ascii_digit()))
        };
        match open {
            true => stem("nvidia-open-", "") || stem("nvidia-driver-", "-open"),
            false => stem("cuda-drivers-", "") || stem("nvidia-driver-", ""),
        }
    };
    let firsts = plain.iter().filter_map(|n| n.first().copied());
    let names: BTreeSet<&str> =
        on.known.offers.keys().map(String::as_str).filter(|n| family(n)).chain(firsts).collect();
    let versions = names.into_iter().flat_map(|n| offers(n).into_iter().map(|o| upstream(&o.version).to_owned()));
    let mut versions: Vec<String> = versions.collect::<BTreeSet<_>>().into_iter().collect();
    versions.sort_by(|a, b| compare_versions(a, b));
    let looked_for: Vec<&str> =
        suffixed.iter().map(String::as_str).chain(plain.iter().filter_map(|n| n.first().copied())).collect();
    let message = format!(
        "no list of apt's has NVIDIA's driver {wish} with the {}: neither {}",
        kind(open),
        looked_for.join(" nor ")
    );
    let help = match (versions.is_empty(), on.known.unread.first()) {
        (false, _) => format!("there is: {}", versions.join(", ")),
        (true, Some(unread)) => format!(
            "{unread}: write `Acquire::GzipIndexes \"false\";` into a file of /etc/apt/apt.conf.d, and run apt-get update"
        ),
        (true, None) => {
            "its component (restricted, non-free) is not among apt's sources, or their lists are old: apt-get update; \
                         or name NVIDIA's own repository as `source`"
                .to_owned()
        }
    };
    (message, help)
}

/// Modules that the distribution built and signed for the kernels that are installed, where it has them for all of them.
fn signed_modules(on: &On<'_>, branch: &str, open: bool) -> Option<Vec<String>> {
    let open = if open { "-open" } else { "" };
    let flavours = kernel_packages(on);
    let names: Vec<String> = flavours.iter().map(|f| format!("linux-modules-nvidia-{branch}{open}-{f}")).collect();
    (!names.is_empty() && names.iter().all(|n| on.known.offers.contains_key(n))).then_some(names)
}

/// The kernels that are kept up to date here: `generic`, `generic-hwe-24.04`, `amd64`.
fn kernel_packages(on: &On<'_>) -> Vec<String> {
    let all = on.facts.packages.value().into_iter().flatten().filter(|(_, p)| p.installed);
    let flavour = |name: &String| {
        let rest = name.strip_prefix("linux-image-")?;
        let meta = rest.starts_with(|c: char| c.is_ascii_alphabetic())
            && !["unsigned-", "extra-"].iter().any(|p| rest.starts_with(p))
            && !rest.ends_with("-dbg");
        meta.then(|| rest.to_owned())
    };
    all.filter_map(|(name, _)| flavour(name)).collect()
}

/// DKMS builds for the kernel that runs, for the one that boots next, and for those to come.
fn headers(on: &On<'_>, shared: &mut Shared) {
    let metas = kernel_packages(on);
    for kernel in [&on.known.running_kernel, &on.known.next_kernel].into_iter().chain(&metas) {
        want(shared, &format!("linux-headers-{kernel}"));
    }
}

/// Modules that are built here are signed with a key of this host's, which the firmware's shim has to trust.
fn signs(on: &On<'_>) -> Option<Finding> {
    let why = match &on.known.secure_boot {
        SecureBoot::Off(_) => return None,
        SecureBoot::Unknown(why) => format!("whether secure boot is on is not known: {why}"),
        SecureBoot::On => match &on.known.own_key {
            Known::Value((_, true)) => return None,
            Known::Value((path, false)) => format!("secure boot is on, and the key {path} is not enrolled"),
            Known::Unknown(why) => format!("secure boot is on, and {why}"),
        },
    };
    Some(error(
        "modules-not-trusted",
        format!("{why}: the kernel would refuse the modules that DKMS builds here"),
        "make and enrol the key: apt-get install dkms mokutil; dkms generate_mok (Ubuntu: update-secureboot-policy \
         --new-key); mokutil --import its certificate, boot, and confirm at the screen. Or take the distribution's signed \
         modules, where it has them (`source: distribution`)",
    ))
}

/// The driver is there, and the kernel that boots next would be without it.
fn next_boot(on: &On<'_>, packages: &[PackageName]) -> Option<Finding> {
    let installed = !packages.is_empty() && packages.iter().all(|p| on.facts.package(p.as_str()).is_some());
    (installed && !on.known.next_has_module && on.known.nvidia.is_some()).then(|| {
        finding(
            Severity::Warning,
            "next-kernel-without-driver",
            PLACE,
            format!("kernel {}, which boots next, has no module `nvidia`", on.known.next_kernel),
            "see why it was not built: cat /var/lib/dkms/nvidia*/*/build/make.log",
        )
    })
}

fn want(shared: &mut Shared, name: &str) {
    shared.packages.entry(name.to_owned()).or_default().insert(PLACE.to_owned());
}

/// Preferences of ours: for one version always, for a branch where nothing else holds it, and for the priority of a source.
fn preferences(repository: Option<&RepositoryEntry>, wish: &Wish, chosen: Option<&Chosen>) -> Option<String> {
    let mut text = String::new();
    if !wish.is_branch() || chosen.is_some_and(|c| c.pin_branch) {
        let version = match (wish.is_branch(), wish.0.contains('-')) {
            (true, _) => format!("{}*", wish.0),
            (false, true) => wish.0.clone(),
            (false, false) => format!("{}-*", wish.0),
        };
        // As NVIDIA's own pinning packages: by source, so that all its parts stay together. Above 1000 it goes back too,
        // which gpuvm asks for by itself.
        text +=
            &format!("Package: src:*nvidia*:any src:cuda-drivers*:any\nPin: version {version}\nPin-Priority: 1001\n");
    }
    if let Some((repository, pin)) = repository.and_then(|r| Some((r, r.pin?))) {
        let host = repository.url.as_str().split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!("Package: *\nPin: origin \"{host}\"\nPin-Priority: {pin}\n");
    }
    (!text.is_empty()).then(|| format!("# Written by gpuvm; what is changed here is replaced.\n{text}"))
}

/// The source with its key, and the preferences.
fn want_source(
    on: &On<'_>,
    entry: &NvidiaEntry,
    lists: Option<String>,
    preferences: Option<String>,
    desired: &mut Desired,
) -> Option<Key> {
    let mut files = Vec::new();
    let mut what = Vec::new();
    if let PackageSource::Repository(r) = &entry.source {
        files.push(FileWrite::root(KEYRING, key_text(on, r)?, 0o644));
        let suite = r.suite.as_ref().map_or("/", |s| s.as_str());
        let components: String = match r.components.is_empty() {
            true => String::new(),
            false => {
                let words: Vec<&str> = r.components.iter().map(|c| c.as_str()).collect();
                format!("Components: {}\n", words.join(" "))
            }
        };
        let text = format!(
            "# Written by gpuvm; what is changed here is replaced.\nTypes: deb\nURIs: {}\nSuites: {suite}\n{components}Signed-By: {KEYRING}\nCheck-Valid-Until: yes\nCheck-Date: yes\n",
            r.url
        );
        files.push(FileWrite::root(SOURCE, text, 0o644));
        what.push(format!("{} signed by {}", r.url, r.fingerprint.as_str().to_ascii_uppercase()));
    }
    if let Some(text) = preferences {
        what.push("a pin of the version".to_owned());
        files.push(FileWrite::root(format!("{}/{PIN}", crate::facts::drivers::PREFERENCES), text, 0o644));
    }
    let wanted = AptSource { name: "nvidia".parse().ok()?, what: what.join(", "), files, lists };
    (!wanted.files.is_empty()).then(|| desired.want(PLACE, [], wanted))
}

/// NVIDIA's package that holds the branch: its preferences have to be there before apt is asked about the driver.
fn want_pinning(on: &On<'_>, name: &str, after: BTreeSet<Key>, desired: &mut Desired, shared: &mut Shared) {
    let Ok(package) = name.parse::<PackageName>() else { return };
    let others = on.facts.packages.value().into_iter().flatten().filter(|(n, p)| p.installed && n.starts_with(PINNING));
    let replaceable = others.filter(|(n, _)| *n != name).filter_map(|(n, _)| n.parse().ok()).collect();
    let set = PackageSet {
        wanted: [(package, BTreeSet::from([PLACE.to_owned()]))].into(),
        stage: STAGE.to_owned(),
        replaceable,
        older: true,
        ..PackageSet::default()
    };
    shared.before_packages.insert(desired.want(PLACE, after, set));
    if on.facts.package(name).is_none() {
        shared.packages_wait.get_or_insert_with(|| format!("{name} comes first, which holds the branch"));
    }
}

/// CUDA and the container toolkit, by the names that are in the lists.
fn toolkits(on: &On<'_>, entry: &NvidiaEntry, lists: Option<&str>, shared: &mut Shared) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut want = |name: String, place: &str| {
        if on.known.offers.contains_key(&name) || on.facts.package(&name).is_some() {
            shared.packages.entry(name).or_default().insert(PLACE.to_owned());
            return;
        }
        let prefix = if name.starts_with("cuda-") { "cuda-toolkit-" } else { "nvidia-container-toolkit" };
        let there: Vec<&str> = on.known.offers.keys().map(String::as_str).filter(|n| n.starts_with(prefix)).collect();
        let help = match (there.is_empty(), lists) {
            (false, _) => format!("there is: {}", there.join(", ")),
            (true, None) => "name NVIDIA's own repository as `source`".to_owned(),
            (true, Some(_)) => "look at what the repository has: apt-cache search nvidia".to_owned(),
        };
        found.push(finding(
            Severity::Error,
            "no-package",
            &format!("{PLACE}.{place}"),
            format!("no list of apt's has `{name}`"),
            &help,
        ));
    };
    if let Some(cuda) = &entry.cuda {
        want(format!("cuda-toolkit-{cuda}"), "cuda");
    }
    if !entry.containers.is_empty() {
        want("nvidia-container-toolkit".to_owned(), "containers");
    }
    found
}

/// PATH, and what the linker looks through (NVIDIA's CUDA installation guide, post-installation actions).
fn want_cuda(version: &str, desired: &mut Desired) {
    let at = format!("/usr/local/cuda-{}", version.replace('-', "."));
    let path = format!(
        "# Written by gpuvm; what is changed here is replaced.\nPATH={at}/bin${{PATH:+:${{PATH}}}}\nexport PATH\n"
    );
    let libraries = format!("# Written by gpuvm; what is changed here is replaced.\n{at}/lib64\n");
    for (file, text, refresh) in [(CUDA_PATH, path, None), (CUDA_LIBRARIES, libraries, Some(Refresh::LinkerCache))] {
        let write = FileWrite::root(file, text, 0o644);
        let wanted = file::File { write, take_over: false, refreshes: refresh.into_iter().collect() };
        desired.want(PLACE, [Key::new("package", "")], wanted);
    }
}

/// Each runtime once. The device interface's files name the cards that the driver has, so they come after it.
fn containers(on: &On<'_>, entry: &NvidiaEntry, driver: &Key, desired: &mut Desired) {
    let wanted: BTreeSet<Containers> = entry
        .containers
        .iter()
        .map(|c| match c {
            manifest::ContainerRuntime::Docker => Containers::Docker,
            manifest::ContainerRuntime::Containerd => Containers::Containerd,
            manifest::ContainerRuntime::Podman | manifest::ContainerRuntime::Cdi => Containers::Cdi,
        })
        .collect();
    for of in wanted {
        let brought: &[&str] = match of {
            Containers::Docker => &["docker.io", "docker-ce"],
            Containers::Containerd => &["containerd", "containerd.io", "docker.io", "docker-ce"],
            Containers::Cdi => &[],
        };
        let awaited = on.m.packages.iter().any(|p| !p.absent && brought.contains(&p.name.as_str()));
        let after = match of {
            Containers::Cdi => driver.clone(),
            _ => Key::new("package", ""),
        };
        desired.want(PLACE, [after], ContainerRuntime { of, awaited });
    }
}
