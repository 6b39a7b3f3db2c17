//! An image in a pool: fetched once and kept as it is, since disks are made from it. A newer one is fetched beside it,
//! and only where a person asks. Or all images of a pool, of which those go that no disk is made from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Resource;
use super::chains::chains;
use super::libvirt::{Libvirt, ask, known};
use crate::facts::HostFacts;
use crate::host::{Answer, HostError, Probe, Virtualisation};
use crate::image::{Cached, Digest, FOLDER, Origin, pointer};
use crate::plan::{Action, Change, Diff, FetchStep, FieldDiff, Risk, Step};
use crate::types::{ByteSize, ResourceName};

/// An image in a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The pool.
    pub pool: ResourceName,
    /// The pool's directory.
    pub directory: PathBuf,
    /// Which, and what it is to be.
    pub want: Want,
}

/// What is wanted of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Want {
    /// This one.
    Kept {
        /// Its name.
        name: ResourceName,
        /// Where it comes from.
        origin: Box<Origin>,
        /// What it has to add up to.
        digest: Option<Digest>,
        /// The newest, asked for with this word.
        asked: Option<String>,
        /// A CD-ROM drive has it, which reads it as it is.
        #[serde(default)]
        medium: bool,
    },
    /// None but those that disks are made from, and these.
    OnlyUsed {
        /// The names that the manifest has a use for.
        named: BTreeSet<ResourceName>,
    },
}

/// What is there.
#[derive(Debug)]
pub struct State {
    /// What is kept of it.
    kept: Answer<String>,
    /// Whether its file is there.
    file: bool,
    /// For all of a pool: every name in the folder.
    names: Answer<Vec<String>>,
    /// What `NAME.json` of each says.
    all: Vec<(String, Option<Cached>)>,
    /// The files that copies of the host's own were made from and that are gone.
    sources_gone: BTreeSet<PathBuf>,
    libvirt: Libvirt,
    /// The names of the files that others go on in, as those say themselves; else why that cannot be told.
    used: Result<BTreeSet<String>, String>,
}

fn matches(kept: &Cached, digest: &Digest) -> bool {
    match digest {
        Digest::Sha256(hex) => *hex == kept.sha256,
        Digest::Sha512(hex) => *hex == kept.sha512,
    }
}

/// The same place in the same list; of a list that names versions, the one that is wanted.
fn same_origin(kept: &Cached, wanted: &Origin) -> bool {
    match (&kept.origin, wanted) {
        (Origin::Streams { product: a, .. }, Origin::Streams { product: b, version, .. }) => {
            a == b && (version.is_none() || *version == kept.version)
        }
        (Origin::Sums { file: a, .. }, Origin::Sums { file: b, .. }) => a == b,
        (a, b) => a == b,
    }
}

/// Whether a CD-ROM drive can have an image of this kind (`qcow2`, `raw`); else why it cannot.
pub fn fits_a_drive(kind: &str) -> Result<(), &'static str> {
    match kind {
        "raw" => Ok(()),
        _ => Err("it is a disk image in qcow2 form, and a CD-ROM drive reads a medium as it is"),
    }
}

/// Whether it was a VM's disk: it is nowhere else, so a template goes by its own word only.
pub fn is_template(kept: &Cached) -> bool {
    matches!(kept.origin, Origin::Disk { .. })
}

impl Image {
    /// The folder of its file.
    fn folder(&self) -> PathBuf {
        self.directory.join(FOLDER)
    }

    fn change(&self, action: Action, kept: Option<&Cached>) -> Change {
        let Want::Kept { name, origin, digest, asked, medium } = &self.want else {
            return Change::new(action, String::new());
        };
        let (mut origin, mut digest) = ((**origin).clone(), digest.clone());
        let mut change = Change::new(action, format!("from {}", origin.place()));
        if let Some(kept) = kept.filter(|_| asked.is_none() && digest.is_none()) {
            // Its file is gone, and disks may be made from it: none but the very same will do.
            digest = Some(Digest::Sha256(kept.sha256.clone()));
            if let Some(version) = &kept.version {
                origin = origin.of_version(version);
            }
        }
        change.notes.push(match (&digest, &origin) {
            (Some(digest), _) => format!("used only if it is {digest}"),
            (None, Origin::Streams { signed_by, .. } | Origin::Sums { signed_by: Some(signed_by), .. }) => {
                format!("used only if a list signed with {signed_by} names it")
            }
            (None, Origin::Sums { base, list, .. }) => format!(
                "its maker signs no list: {base}{list} is trusted as far as its server is; `images: {{ {name}: {{ sha512: … }} }}` pins it"
            ),
            (None, _) => "as it is there".to_owned(),
        });
        change.steps.push(Step::Fetch(FetchStep {
            name: name.clone(),
            pool: self.directory.clone(),
            origin,
            digest,
            asked: asked.clone(),
            medium: *medium,
        }));
        change
    }

    fn compare(&self, state: &State) -> Diff {
        let Want::Kept { origin, digest, asked, medium, .. } = &self.want else { return self.prune(state) };
        // Its pool has to be there first.
        if let Err(diff) = known(&state.libvirt, || self.change(Action::Create, None)) {
            return *diff;
        }
        let text = match &state.kept {
            Answer::Absent => return Diff::Change(self.change(Action::Create, None)),
            Answer::Denied => {
                let folder = self.folder();
                return Diff::Unknown {
                    why: format!("this user may not look into `{}`: run gpuvm as root", folder.display()),
                };
            }
            Answer::Value(text) => text,
        };
        let Some(kept) = Cached::parse(text) else {
            let mut change = self.change(Action::Change, None);
            change.notes.push("what says what is there cannot be read".to_owned());
            return Diff::Change(change);
        };
        let shown = |kept: &Cached| {
            let version = kept.version.clone().map_or(String::new(), |v| format!("{v}, "));
            format!("{version}sha256:{}", kept.sha256.get(..12).unwrap_or_default())
        };
        if let Some(digest) = digest.as_ref().filter(|d| !matches(&kept, d)) {
            let mut change = self.change(Action::Change, None);
            change.fields.push(FieldDiff::new("image", Some(shown(&kept)), Some(digest.to_string())));
            change.notes.push("disks that were made from the former one stay on it".to_owned());
            return Diff::Change(change);
        }
        if let (true, Err(why)) = (*medium, fits_a_drive(&kept.kind)) {
            let help = "give the medium itself, or take the image out of `media`: it is a disk of a VM's";
            return Diff::Blocked { why: why.to_owned(), help: help.to_owned() };
        }
        if digest.is_none() && !same_origin(&kept, origin) {
            let mut change = self.change(Action::Change, None);
            change.fields.push(FieldDiff::new("from", Some(kept.origin.place()), Some(origin.place())));
            change.notes.push("disks that were made from the former one stay on it".to_owned());
            return Diff::Change(change);
        }
        if !state.file {
            let mut change = self.change(Action::Change, Some(&kept));
            change.notes.push(format!("its file `{}` is gone; disks that were made from it need it", kept.file));
            return Diff::Change(change);
        }
        if asked.is_some() && *asked != kept.asked {
            let mut change = self.change(Action::Change, None);
            change.notes.push(format!("there is {}; disks that were made from it stay on it", shown(&kept)));
            return Diff::Change(change);
        }
        Diff::InSync { evidence: format!("{}, {}", shown(&kept), kept.trusted) }
    }

    /// What goes: the files that no disk is made from and no name leads to, and names that nothing asks for.
    fn prune(&self, state: &State) -> Diff {
        let Want::OnlyUsed { named } = &self.want else { return Diff::InSync { evidence: String::new() } };
        let names = match &state.names {
            Answer::Value(names) => names,
            Answer::Absent => return Diff::InSync { evidence: "no images".to_owned() },
            Answer::Denied => {
                return Diff::Unknown { why: "this user may not list the images: run gpuvm as root".to_owned() };
            }
        };
        let known = match &state.libvirt {
            Answer::Value(known) => known,
            _ => {
                return Diff::Unknown {
                    why: "which disks are made from images is not known: libvirt does not answer".to_owned(),
                };
            }
        };
        if let Some(idle) = known.pools.iter().find(|p| !p.active) {
            return Diff::Blocked {
                why: format!("pool `{}` is not started, so what its disks are made from is not known", idle.name),
                help: format!("start it: virsh pool-start {}", idle.name),
            };
        }
        let used = match &state.used {
            Ok(used) => used,
            Err(why) => {
                return Diff::Unknown { why: format!("which disks are made from images is not known: {why}") };
            }
        };
        let folder = self.folder();
        let named_files: BTreeSet<&str> = state
            .all
            .iter()
            .filter(|(name, kept)| named.iter().any(|n| n.as_str() == name) || kept.as_ref().is_some_and(is_template))
            .filter_map(|(_, kept)| Some(kept.as_ref()?.file.as_str()))
            .collect();
        let mut change = Change::new(Action::Remove, String::new());
        for name in names {
            let path = folder.join(name);
            let keep = match name.strip_suffix(".json").filter(|n| !n.starts_with('.')) {
                Some(image) => {
                    let file = state.all.iter().find(|(n, _)| n == image).and_then(|(_, kept)| kept.as_ref());
                    named.iter().any(|n| n.as_str() == image)
                        || file.is_some_and(is_template)
                        || file.is_some_and(|kept| used.contains(kept.file.as_str()))
                }
                None => used.contains(name.as_str()) || named_files.contains(name.as_str()),
            };
            if !keep {
                let of = |(_, kept): &&(String, Option<Cached>)| kept.as_ref().is_some_and(|k| k.file == *name);
                if let Some((image, Some(Cached { origin: Origin::Path { path: from }, .. }))) =
                    state.all.iter().find(of)
                {
                    let from_there = format!("`{image}` was copied from `{}`", from.display());
                    change.notes.push(match state.sources_gone.contains(from) {
                        false => format!("{from_there}, which is still there"),
                        true => {
                            change.risks.insert(Risk::DataLoss);
                            format!("{from_there}, which is gone: this is the last of it")
                        }
                    });
                }
                change.fields.push(FieldDiff::new(name.clone(), Some("there".to_owned()), None));
                change.steps.push(Step::RemoveImage { path });
            }
        }
        if change.steps.is_empty() {
            return Diff::InSync { evidence: "every image is in use".to_owned() };
        }
        change.what = format!("{} that nothing uses", if change.steps.len() == 1 { "a file" } else { "files" });
        let fetched =
            |(_, kept): &(String, Option<Cached>)| !matches!(kept, Some(Cached { origin: Origin::Path { .. }, .. }));
        if state.all.is_empty() || state.all.iter().any(fetched) {
            change.notes.push("what was fetched can be fetched again as long as its server has it".to_owned());
        }
        Diff::Change(change)
    }
}

/// The names of the files that a disk of any pool or VM goes on in, and of those that VMs have as their disks or CD-ROMs. By name,
/// which carries the digest: a folder has several spellings. Else why that cannot be told.
pub fn used(known: &Virtualisation, host: &dyn Probe) -> Result<BTreeSet<String>, String> {
    let of_vms = known.domains.iter().flat_map(|d| [Some(&d.inactive_xml), d.live_xml.as_ref()]).flatten();
    let projections = of_vms.filter_map(|xml| super::libvirt_domain::project(xml).ok());
    let of_vms = projections.flat_map(|p| p.disks.into_iter().flatten().chain(p.cdroms));
    let paths = chains(known, host)?.into_keys().chain(of_vms.map(PathBuf::from));
    Ok(paths.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

impl Resource for Image {
    const KIND: &'static str = "image";
    type State = State;

    fn name(&self) -> String {
        match &self.want {
            Want::Kept { name, .. } => format!("{}/{name}", self.pool),
            Want::OnlyUsed { .. } => self.pool.to_string(),
        }
    }

    fn probe(&self, host: &dyn Probe) -> Result<State, HostError> {
        let mut state = State {
            kept: Answer::Absent,
            file: false,
            names: Answer::Absent,
            all: Vec::new(),
            sources_gone: BTreeSet::new(),
            libvirt: ask(host)?,
            used: Ok(BTreeSet::new()),
        };
        let folder = self.folder();
        if let Want::Kept { name, .. } = &self.want {
            state.kept = host.text(&pointer(&self.directory, name.as_str()))?;
            if let Answer::Value(kept) = state.kept.clone().map(|text| Cached::parse(&text)) {
                state.file = match kept {
                    Some(kept) => host.stat(&folder.join(kept.file))?.value().is_some(),
                    None => false,
                };
            }
            return Ok(state);
        }
        state.names = host.list(&folder)?.map(|all| all.iter().map(|n| n.to_string_lossy().into_owned()).collect());
        for name in state.names.clone().value().unwrap_or_default() {
            if let Some(image) = name.strip_suffix(".json").filter(|n| !n.starts_with('.')) {
                let text = host.text(&folder.join(&name))?.value();
                let kept = text.as_deref().and_then(Cached::parse);
                if let Some(Cached { origin: Origin::Path { path }, .. }) = &kept
                    && !matches!(host.stat(path)?, Answer::Value(_))
                {
                    state.sources_gone.insert(path.clone());
                }
                state.all.push((image.to_owned(), kept));
            }
        }
        if let Answer::Value(known) = &state.libvirt {
            state.used = used(known, host);
        }
        Ok(state)
    }

    fn diff(&self, state: &State, _: Option<&Self>, _: &HostFacts) -> Diff {
        self.compare(state)
    }

    /// Disks may be made from it: it stays.
    fn remove(&self, _: &State, _: &HostFacts) -> Diff {
        Diff::stays("images stay; `gpuvm image prune` deletes those that no disk is made from")
    }
}

/// What is kept of an image, for a disk that is to be made from it.
pub(super) fn kept(host: &dyn Probe, pointer: &Path) -> Result<Option<Cached>, HostError> {
    Ok(host.text(pointer)?.value().as_deref().and_then(Cached::parse))
}

/// Why a disk of this size cannot be made from it.
pub(super) fn too_small(kept: &Cached, size: ByteSize) -> Option<(String, String)> {
    let needs = ByteSize::from_bytes(kept.virtual_size);
    (size < needs).then(|| {
        let gib = ByteSize::from_gib(kept.virtual_size.div_ceil(1 << 30));
        (format!("the image has {needs}, and the disk is to have {size}"), format!("write at least `{gib}`"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::Pool;
    use crate::image::{CACHED_FORMAT, builtin};
    use crate::resource::tests::facts;

    fn origin(version: Option<&str>) -> Origin {
        builtin("ubuntu-24.04").unwrap().origin("amd64", None, version).unwrap()
    }
    fn wanted(origin: Origin, digest: Option<Digest>, asked: Option<&str>) -> Image {
        Image {
            pool: "default".parse().unwrap(),
            directory: "/srv".into(),
            want: Want::Kept {
                name: "u".parse().unwrap(),
                origin: Box::new(origin),
                digest,
                asked: asked.map(str::to_owned),
                medium: false,
            },
        }
    }
    fn cached(digest: &str) -> Cached {
        Cached {
            format: CACHED_FORMAT,
            file: Cached::file_name("u", &digest.repeat(32), "qcow2"),
            kind: "qcow2".to_owned(),
            sha256: digest.repeat(32),
            sha512: digest.repeat(64),
            bytes: 1,
            virtual_size: 3 << 30,
            origin: origin(None),
            version: Some("20260814".to_owned()),
            trusted: "by a list".to_owned(),
            asked: None,
        }
    }
    fn there(kept: Option<&Cached>, file: bool) -> State {
        let kept = kept.map_or(Answer::Absent, |k| Answer::Value(k.text()));
        State {
            kept,
            file,
            names: Answer::Absent,
            all: Vec::new(),
            sources_gone: BTreeSet::new(),
            libvirt: Answer::Value(Arc::default()),
            used: Ok(BTreeSet::new()),
        }
    }
    fn step(diff: Diff) -> FetchStep {
        match diff {
            Diff::Change(change) => match change.steps.as_slice() {
                [Step::Fetch(step)] => step.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_kept_as_a_disk_is_no_medium() {
        let digest = Some(Digest::Sha256("ab".repeat(32)));
        let Image { want: Want::Kept { name, origin, digest, asked, .. }, pool, directory } =
            wanted(origin(None), digest, None)
        else {
            panic!("it is kept")
        };
        let medium = Image { want: Want::Kept { name, origin, digest, asked, medium: true }, pool, directory };
        let diff = |kept: &Cached| medium.diff(&there(Some(kept), true), None, &facts());
        let Diff::Blocked { why, help } = diff(&cached("ab")) else { panic!("it is a disk") };
        assert!(why.contains("qcow2 form") && help.contains("`media`"), "{why}: {help}");
        let raw = Cached { kind: "raw".to_owned(), ..cached("ab") };
        assert!(matches!(diff(&raw), Diff::InSync { .. }));
        assert!(step(diff(&cached("cd"))).medium, "another one is fetched, as a medium");
    }

    #[test]
    fn what_is_kept_stays_whatever_its_maker_does() {
        let image = wanted(origin(None), None, None);
        let diff = |image: &Image, state: State| image.diff(&state, None, &facts());
        assert_eq!(step(diff(&image, there(None, false))).digest, None);
        let early = State { libvirt: Answer::Absent, ..there(None, false) };
        assert!(matches!(diff(&image, early), Diff::Waits { .. }), "there is no pool to put it in");
        let kept = cached("ab");
        assert!(matches!(diff(&image, there(Some(&kept), true)), Diff::InSync { .. }));
        // From a mirror it is the same image.
        let mirror = builtin("ubuntu-24.04").unwrap().origin("amd64", Some("https://m/"), None).unwrap();
        assert!(matches!(diff(&wanted(mirror, None, None), there(Some(&kept), true)), Diff::InSync { .. }));
        assert!(matches!(
            diff(&wanted(origin(Some("20260814")), None, None), there(Some(&kept), true)),
            Diff::InSync { .. }
        ));
        step(diff(&wanted(origin(Some("20260901")), None, None), there(Some(&kept), true)));
        // Disks need the very file that is gone.
        let again = step(diff(&image, there(Some(&kept), false)));
        assert_eq!(again.digest, Some(Digest::Sha256("ab".repeat(32))));
        assert!(matches!(again.origin, Origin::Streams { version: Some(v), .. } if v == "20260814"));
        // Pinned to another, or from elsewhere, it is another image.
        let other = Digest::Sha256("cd".repeat(32));
        assert_eq!(
            step(diff(&wanted(origin(None), Some(other.clone()), None), there(Some(&kept), true))).digest,
            Some(other)
        );
        let same = Digest::Sha512("ab".repeat(64));
        assert!(matches!(diff(&wanted(origin(None), Some(same), None), there(Some(&kept), true)), Diff::InSync { .. }));
        step(diff(&wanted(Origin::Url { url: "https://x/y".to_owned() }, None, None), there(Some(&kept), true)));
        // The newest is fetched once for each time that it is asked for.
        let asked = wanted(origin(None), None, Some("now"));
        assert_eq!(step(diff(&asked, there(Some(&kept), true))).asked.as_deref(), Some("now"));
        let had = Cached { asked: Some("now".to_owned()), ..kept };
        assert!(matches!(diff(&asked, there(Some(&had), true)), Diff::InSync { .. }));
    }

    #[test]
    fn only_what_no_disk_is_made_from_goes() {
        let (old, new) = (cached("ab"), cached("cd"));
        let prune = |named: &[&str], backing: &str, active: bool| {
            let image = Image {
                pool: "default".parse().unwrap(),
                directory: "/srv".into(),
                want: Want::OnlyUsed { named: named.iter().map(|n| n.parse().unwrap()).collect() },
            };
            let pool = Pool { name: "default".to_owned(), active, ..Pool::default() };
            let known = Virtualisation { pools: vec![pool], ..Virtualisation::default() };
            let names = [&old.file, &new.file, &"u.json".to_owned(), &".u.part".to_owned()].map(Clone::clone);
            let state = State {
                names: Answer::Value(names.to_vec()),
                all: vec![("u".to_owned(), Some(new.clone()))],
                libvirt: Answer::Value(Arc::new(known)),
                used: match backing {
                    "" => Err("this user may not read `/srv/a`".to_owned()),
                    name => Ok([name.to_owned()].into()),
                },
                ..there(None, false)
            };
            image.diff(&state, None, &facts())
        };
        let gone = |diff| match diff {
            Diff::Change(change) => change
                .steps
                .iter()
                .map(|s| match s {
                    Step::RemoveImage { path } => path.file_name().unwrap().to_string_lossy().into_owned(),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let used = old.file.clone();
        assert_eq!(gone(prune(&[], &used, true)), [new.file.as_str(), "u.json", ".u.part"]);
        assert_eq!(gone(prune(&["u"], &used, true)), [".u.part"]);
        assert_eq!(gone(prune(&["u"], "/elsewhere", true)), [old.file.as_str(), ".u.part"]);
        assert!(matches!(prune(&[], &used, false), Diff::Blocked { .. }), "a stopped pool may hold what needs it");
        let Diff::Unknown { why } = prune(&[], "", true) else { panic!("it is not known") };
        assert!(why.contains("/srv/a"), "{why}");
    }

    #[test]
    fn what_was_copied_is_not_said_to_come_from_a_server() {
        let copied = Cached { origin: Origin::Path { path: "/home/golden.img".into() }, ..cached("ab") };
        let prune = |gone: bool| {
            let want = Want::OnlyUsed { named: BTreeSet::new() };
            let state = State {
                names: Answer::Value(vec![copied.file.clone(), "u.json".to_owned()]),
                all: vec![("u".to_owned(), Some(copied.clone()))],
                sources_gone: gone.then(|| PathBuf::from("/home/golden.img")).into_iter().collect(),
                ..there(None, false)
            };
            match (Image { pool: "default".parse().unwrap(), directory: "/srv".into(), want }).diff(
                &state,
                None,
                &facts(),
            ) {
                Diff::Change(change) => (change.notes.concat(), change.risks),
                other => panic!("{other:?}"),
            }
        };
        let (notes, risks) = prune(false);
        assert!(notes.contains("still there") && !notes.contains("server") && risks.is_empty(), "{notes}");
        let (notes, risks) = prune(true);
        assert!(notes.contains("the last of it") && risks.contains(&Risk::DataLoss), "{notes}");
    }

    #[test]
    fn a_disk_is_not_smaller_than_its_image() {
        let kept = cached("ab");
        assert_eq!(too_small(&kept, ByteSize::from_gib(3)), None);
        let (why, help) = too_small(&kept, ByteSize::from_gib(2)).unwrap();
        assert!(why.contains("3GiB") && help.contains("`3GiB`"), "{why} {help}");
    }
}
