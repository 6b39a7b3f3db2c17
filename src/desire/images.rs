//! `images`, where a VM uses them: what of each a pool is to keep.

use std::path::{Path, PathBuf};

use super::vms::{finding, want_package};
use super::{Desired, Shared};
use crate::facts::{HostFacts, Known};
use crate::image::{Builtin, Cached, Digest, FOLDER, Origin, builtin, pointer};
use crate::manifest::{ImageEntry, Manifest};
use crate::plan::{Key, Severity};
use crate::resource::image::{Image, Want};
use crate::resource::volume::FromImage;
use crate::types::ResourceName;

/// Where an image comes from, and what it has to add up to.
fn origin(name: &ResourceName, entry: &ImageEntry, arch: &str) -> Option<(Origin, Option<Digest>)> {
    let digest = match (&entry.sha256, &entry.sha512) {
        (Some(hex), _) => Some(Digest::Sha256(hex.as_str().to_ascii_lowercase())),
        (_, Some(hex)) => Some(Digest::Sha512(hex.as_str().to_ascii_lowercase())),
        _ => None,
    };
    let origin = match (&entry.url, &entry.path) {
        (Some(url), _) => Origin::Url { url: url.to_string() },
        (_, Some(path)) => Origin::Path { path: path.as_str().into() },
        _ => {
            let base = entry.base_url.as_ref().map(|b| b.as_str());
            let version = entry.version.as_ref().map(ResourceName::as_str);
            builtin(entry.from.as_ref().unwrap_or(name).as_str())?.origin(arch, base, version)?
        }
    };
    Some((origin, digest))
}

/// The built-in image that this one is, by whatever name.
pub(super) fn built_in(m: &Manifest, name: &ResourceName) -> Option<Builtin> {
    let entry = m.images.get(name);
    let own = entry.is_some_and(|e| e.from.is_none() && (e.url.is_some() || e.path.is_some()));
    let of = entry.and_then(|e| e.from.as_ref()).unwrap_or(name);
    builtin(of.as_str()).filter(|_| !own)
}

/// Wants an image in a pool; what a volume needs to know of it, and its key.
pub(super) fn want(
    m: &Manifest,
    facts: &HostFacts,
    desired: &mut Desired,
    place: &str,
    name: &ResourceName,
    (pool, directory, pool_key): (&ResourceName, &Path, &Key),
) -> Option<(FromImage, Key)> {
    let entry = m.images.get(name).cloned().unwrap_or_default();
    let (origin, digest) = origin(name, &entry, &facts.os.arch)?;
    let maker = entry.url.is_none() && entry.path.is_none();
    let of = entry.from.as_ref().unwrap_or(name);
    if let Some(ended) = builtin(of.as_str()).filter(|_| maker).and_then(|b| b.ended) {
        desired.findings.push(finding(
            Severity::Warning,
            "image-out-of-support",
            &format!("{place}.image"),
            format!("`{of}` gets no updates since {ended}: what is found in it stays open"),
            "take a release that is maintained",
        ));
    }
    let mut media = m.vms.values().filter(|vm| !vm.absent).flat_map(|vm| &vm.media);
    let installs = built_in(m, name).is_some_and(|b| b.installs);
    let medium = installs || media.any(|medium| medium.image().as_ref() == Some(name));
    let want = Want::Kept { name: name.clone(), origin: Box::new(origin), digest, asked: None, medium };
    let wanted = Image { pool: pool.clone(), directory: directory.to_owned(), want };
    let key = desired.want(place, [Key::new("package", ""), pool_key.clone()], wanted);
    Some((FromImage { name: name.clone(), pointer: pointer(directory, name.as_str()) }, key))
}

/// Wants an image that a CD-ROM drive is to have; where it will lie, by the digest that it has to have, and its key.
pub(super) fn medium(
    m: &Manifest,
    facts: &HostFacts,
    desired: &mut Desired,
    place: &str,
    name: &ResourceName,
    pool: (&ResourceName, &Path, &Key),
) -> Option<(PathBuf, Key)> {
    let digest = m.images.get(name)?.sha256.as_ref()?.as_str().to_ascii_lowercase();
    let (_, key) = want(m, facts, desired, place, name, pool)?;
    Some((pool.1.join(FOLDER).join(Cached::file_name(name.as_str(), &digest, "raw")), key))
}

/// What checks the signatures of lists, where the host has nothing yet that does.
pub(super) fn packages(m: &Manifest, facts: &HostFacts, shared: &mut Shared) {
    let signed = m.vms.values().filter(|vm| !vm.absent).filter_map(|vm| vm.image.as_ref()).any(|name| {
        let entry = m.images.get(name).cloned().unwrap_or_default();
        origin(name, &entry, "").is_some_and(|(origin, digest)| origin.signed() && digest.is_none())
    });
    let there = match &facts.packages {
        Known::Value(known) => ["gpgv", "sqv"].iter().any(|p| known.get(*p).is_some_and(|p| p.installed)),
        _ => true,
    };
    if signed && !there {
        want_package(shared, "gpgv", "vms");
    }
}
