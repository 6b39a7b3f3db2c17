//! `--only` and `--skip`: a part of a manifest, with what it needs.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Finding, Key, Past, Severity};
use crate::desire::Desired;
use crate::host::Virtualisation;
use crate::resource::Wanted;
use crate::resource::image::{Image, Want};
use crate::types::ResourceName;

/// `KIND` or `KIND/NAME`, as on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    kind: String,
    name: Option<String>,
}

/// A word that names no kind.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no kind; there are {kinds}", kinds = Wanted::KINDS.join(", "))]
pub struct NoSuchKind(String);

impl FromStr for Selector {
    type Err = NoSuchKind;
    fn from_str(text: &str) -> Result<Self, NoSuchKind> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, Some(name.to_owned())),
            None => (text, None),
        };
        if !Wanted::KINDS.contains(&kind) {
            return Err(NoSuchKind(kind.to_owned()));
        }
        Ok(Self { kind: kind.to_owned(), name })
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}/{name}", self.kind),
            None => f.write_str(&self.kind),
        }
    }
}

impl Selector {
    /// Whether it names this thing.
    pub fn fits(&self, key: &Key) -> bool {
        key.kind == self.kind && self.name.as_ref().is_none_or(|name| *name == key.name)
    }
}

/// What of a manifest is planned; nothing named means all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    /// These and what they need.
    #[serde(default)]
    pub only: Vec<Selector>,
    /// Not these, and not what needs them.
    #[serde(default)]
    pub skip: Vec<Selector>,
    /// Take these over as they are, and do nothing else.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub adopt: BTreeSet<Key>,
    /// Images, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageTask>,
}

/// What is to be done with images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImageTask {
    /// Fetch the newest of these; of all that the manifest uses where none is named.
    Newest {
        /// Which.
        names: Vec<ResourceName>,
        /// What tells this time from others: each time, it is fetched once.
        asked: String,
    },
    /// Delete those that no disk is made from and the manifest does not use.
    Prune,
}

impl Selection {
    /// Narrows what is wanted, and what is looked at as ours, and says what that took along.
    /// `known` is what libvirt knows, for what is there without the manifest.
    pub fn narrow(&self, desired: &mut Desired, past: &mut Past, known: Option<&Virtualisation>) {
        if !self.adopt.is_empty() {
            return self.narrow_to_adopted(desired, past);
        }
        if let Some(task) = &self.images {
            narrow_to_images(task, desired, past, known);
            past.owned.retain(|key, _| desired.nodes.contains_key(key));
            past.pending.clear();
            return;
        }
        let keys: BTreeSet<Key> = desired.nodes.keys().chain(past.owned.keys()).cloned().collect();
        for selector in self.only.iter().chain(&self.skip) {
            if !keys.iter().any(|k| selector.fits(k)) {
                desired.findings.push(finding(
                    Severity::Error,
                    format!("nothing in this manifest is `{selector}`"),
                    format!("there is {}", list(keys.iter())),
                ));
            }
        }
        if !self.only.is_empty() {
            let named: BTreeSet<Key> = keys.iter().filter(|k| self.only.iter().any(|s| s.fits(k))).cloned().collect();
            let mut kept = named.clone();
            let mut open: Vec<Key> = named.iter().cloned().collect();
            while let Some(key) = open.pop() {
                let needs = desired.nodes.get(&key).map(|n| n.after.clone()).unwrap_or_default();
                open.extend(needs.into_iter().filter(|k| desired.nodes.contains_key(k) && kept.insert(k.clone())));
            }
            let along = list(kept.difference(&named));
            if !along.is_empty() {
                desired.findings.push(note(format!("taken along, since what you named needs it: {along}")));
            }
            retain(desired, past, |key| kept.contains(key));
        }
        if !self.skip.is_empty() {
            let named: BTreeSet<Key> = keys.iter().filter(|k| self.skip.iter().any(|s| s.fits(k))).cloned().collect();
            let mut gone = named.clone();
            loop {
                let needs = |after: &BTreeSet<Key>| after.iter().any(|k| gone.contains(k));
                let more: Vec<Key> = desired
                    .nodes
                    .iter()
                    .filter(|(key, node)| !gone.contains(key) && needs(&node.after))
                    .map(|(key, _)| key.clone())
                    .collect();
                if more.is_empty() {
                    break;
                }
                gone.extend(more);
            }
            let along = list(gone.difference(&named));
            if !along.is_empty() {
                desired.findings.push(note(format!("left out too, since it needs what you skip: {along}")));
            }
            retain(desired, past, |key| !gone.contains(key));
        }
        desired.findings.sort();
    }

    /// Only what is taken over, without what it needs: what an earlier run still owes stays owed too.
    fn narrow_to_adopted(&self, desired: &mut Desired, past: &mut Past) {
        retain(desired, past, |key| self.adopt.contains(key));
        past.owned.retain(|key, _| desired.nodes.contains_key(key));
        past.pending.clear();
        let about = |f: &Finding| {
            let below = |from: &str| f.place == from || f.place.starts_with(&format!("{from}."));
            desired.nodes.values().any(|n| below(&n.from))
        };
        let mut findings: Vec<Finding> = desired.findings.iter().filter(|f| about(f)).cloned().collect();
        for key in self.adopt.iter().filter(|k| !desired.nodes.contains_key(k)) {
            findings.push(finding(
                Severity::Error,
                format!("nothing in this manifest is `{}/{}`", key.kind, key.name),
                format!("see what to write: gpuvm adopt {}/{}", key.kind, key.name),
            ));
        }
        findings.sort();
        desired.findings = findings;
        desired.adopt = self.adopt.clone();
    }
}

/// Images alone, without what they need: that is an apply's. What else is wrong with the manifest is no matter here.
fn narrow_to_images(task: &ImageTask, desired: &mut Desired, past: &Past, known: Option<&Virtualisation>) {
    let mut images = Desired::default();
    let mut there = BTreeSet::new();
    for node in desired.nodes.values() {
        match (&node.wanted, task) {
            (Wanted::Image(image), ImageTask::Newest { names, asked }) => {
                let Want::Kept { name, origin, digest, medium, .. } = &image.want else { continue };
                there.insert(name.clone());
                if names.is_empty() || names.contains(name) {
                    let want = Want::Kept {
                        name: name.clone(),
                        origin: origin.clone(),
                        digest: digest.clone(),
                        asked: Some(asked.clone()),
                        medium: *medium,
                    };
                    images.want(&node.from, [], Image { want, ..image.clone() });
                    let about = |f: &&Finding| f.place.starts_with(&format!("{}.image", node.from));
                    images.findings.extend(desired.findings.iter().filter(about).cloned());
                }
            }
            (Wanted::Pool(pool), ImageTask::Prune) => {
                let of_pool = desired.nodes.values().filter_map(|n| match &n.wanted {
                    Wanted::Image(Image { pool: of, want: Want::Kept { name, .. }, .. }) if *of == pool.name => {
                        Some(name)
                    }
                    _ => None,
                });
                let want = Want::OnlyUsed { named: of_pool.cloned().collect() };
                images.want(&node.from, [], Image { pool: pool.name.clone(), directory: pool.path.clone(), want });
                there.insert(pool.name.clone());
            }
            _ => {}
        }
    }
    // Images stay behind in a pool that no VM of the manifest is in any more.
    if let ImageTask::Prune = task {
        let of_past = past.owned.values().filter_map(|w| match w {
            Wanted::Pool(pool) => Some((pool.name.clone(), pool.path.clone())),
            _ => None,
        });
        let of_libvirt = known.into_iter().flat_map(|k| &k.pools);
        let of_libvirt = of_libvirt.filter_map(|p| Some((p.name.parse().ok()?, p.directory()?)));
        for (pool, directory) in of_past.chain(of_libvirt).collect::<Vec<_>>() {
            if there.insert(pool.clone()) {
                let want = Want::OnlyUsed { named: BTreeSet::new() };
                images.want(super::GONE, [], Image { pool, directory, want });
            }
        }
    }
    if let ImageTask::Newest { names, .. } = task {
        let all: Vec<String> = there.iter().map(ToString::to_string).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        for name in names.iter().filter(|n| !there.contains(*n)) {
            images.findings.push(finding(
                Severity::Error,
                format!("no VM of this manifest is made from `{name}`"),
                format!("images that its VMs use: {all}"),
            ));
        }
    }
    images.findings.sort();
    *desired = images;
}

fn retain(desired: &mut Desired, past: &mut Past, keep: impl Fn(&Key) -> bool) {
    desired.nodes.retain(|key, _| keep(key));
    past.owned.retain(|key, _| keep(key));
}

fn list<'a>(keys: impl Iterator<Item = &'a Key>) -> String {
    keys.map(Key::to_string).collect::<Vec<_>>().join(", ")
}

fn note(message: String) -> Finding {
    finding(Severity::Note, message, String::new())
}

fn finding(severity: Severity, message: String, help: String) -> Finding {
    Finding { severity, code: "selection".to_owned(), place: String::new(), message, help }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{group_member::GroupMember, module::Modules, package::PackageSet};

    fn desired() -> Desired {
        let mut desired = Desired::default();
        let packages = PackageSet::default();
        let packages = desired.want("packages", [], packages);
        desired.want("modules", [], Modules { wanted: Default::default() });
        let member = GroupMember { group: "kvm".to_owned(), user: "alice".to_owned() };
        desired.want("libvirt", [packages], member);
        desired
    }

    fn left(only: &[&str], skip: &[&str]) -> (String, Vec<String>) {
        let parse = |words: &[&str]| words.iter().map(|w| w.parse().unwrap()).collect();
        let (mut desired, mut past) = (desired(), Past::default());
        past.owned.insert(
            Key::new("group-member", "kvm/bob"),
            GroupMember { group: "kvm".to_owned(), user: "bob".to_owned() }.into(),
        );
        Selection { only: parse(only), skip: parse(skip), ..Selection::default() }.narrow(
            &mut desired,
            &mut past,
            None,
        );
        let said = desired.findings.iter().map(|f| f.message.clone()).collect();
        (list(desired.nodes.keys().chain(past.owned.keys())), said)
    }

    #[test]
    fn only_takes_what_is_needed_along_and_says_so() {
        let (kept, said) = left(&["group-member/kvm/alice"], &[]);
        assert_eq!(kept, "group-member[kvm/alice], package");
        assert_eq!(said, ["taken along, since what you named needs it: package"]);
        assert_eq!(left(&["module"], &[]).0, "module", "what is ours and was not named is not removed");
    }

    #[test]
    fn skip_leaves_out_what_needs_it_and_says_so() {
        let (kept, said) = left(&[], &["package"]);
        assert_eq!(kept, "module, group-member[kvm/bob]");
        assert_eq!(said, ["left out too, since it needs what you skip: group-member[kvm/alice]"]);
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error() {
        assert!(left(&["module/x"], &[]).1[0].contains("nothing in this manifest is `module/x`"));
        assert!("modul".parse::<Selector>().unwrap_err().to_string().contains("there are apt-source, package, file"));
    }
}
