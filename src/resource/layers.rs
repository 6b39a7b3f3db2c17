//! The files of a VM's disk under snapshots: the one that it began as, and layers over it and over each other, each of which
//! holds what was written since the one below was left as it is. What no snapshot and no VM needs any more is merged or
//! dropped, in steps each of which leaves every state that is needed as it is.
//!
//! A layer is known by its name, `desk-0+3.qcow2` over `desk-0.qcow2`: no VM and no pool that gpuvm makes has a `+` in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file that a layer's name says it belongs to is named by, and its number.
fn layer_name(path: &Path) -> Option<(&str, u32)> {
    let (stem, number) = path.file_name()?.to_str()?.strip_suffix(".qcow2")?.rsplit_once('+')?;
    Some((stem, number.parse().ok().filter(|_| !stem.is_empty())?))
}

/// The name without its ending, which all files of a disk have in common.
fn stem(base: &Path) -> &str {
    base.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
}

/// The number of a layer of this disk; none where it is another file.
pub fn number(base: &Path, path: &Path) -> Option<u32> {
    let (of, number) = layer_name(path)?;
    (of == stem(base) && path.parent() == base.parent()).then_some(number)
}

/// The layer of this number.
pub fn layer(base: &Path, number: u32) -> PathBuf {
    base.with_file_name(format!("{}+{number}.qcow2", stem(base)))
}

/// The file that a disk began as, by its file of today and what that goes on in.
pub fn base<'a>(top: &'a Path, chain: &'a [PathBuf]) -> &'a Path {
    let is_base = |path: &&Path| layer_name(path).is_none();
    let mut all = std::iter::once(top).chain(chain.iter().map(PathBuf::as_path));
    all.find(is_base).unwrap_or(top)
}

/// The files of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// What the disk began as.
    pub base: PathBuf,
    /// Each layer, with what it goes on in.
    pub under: BTreeMap<PathBuf, PathBuf>,
    /// The files that VMs write to.
    pub tops: BTreeSet<PathBuf>,
    /// The files that hold a snapshot's state.
    pub held: BTreeSet<PathBuf>,
    /// The files that something else goes on in (a clone's disk), each with that.
    pub outside: BTreeMap<PathBuf, String>,
}

/// A step towards having only what is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// A layer's content goes into the file below it, which then holds what the layer does; the layer stays as it is.
    Commit {
        /// The layer.
        top: PathBuf,
        /// What it goes on in.
        into: PathBuf,
    },
    /// Whoever names a file as a disk names this one, which has the same content.
    Refer {
        /// The former.
        from: PathBuf,
        /// The one from now on.
        to: PathBuf,
    },
    /// A layer goes on in another file: what differs between the two is copied into it first.
    Rebase {
        /// The layer.
        path: PathBuf,
        /// What it goes on in from now on.
        onto: PathBuf,
    },
    /// A layer that nothing needs goes.
    Remove {
        /// The layer.
        path: PathBuf,
    },
}

impl Layers {
    fn over(&self, path: &Path) -> Vec<PathBuf> {
        self.under.iter().filter(|(_, under)| *under == path).map(|(over, _)| over.clone()).collect()
    }

    /// Whether the content of a file is a state that something needs by itself.
    fn needed(&self, path: &Path) -> bool {
        self.tops.contains(path) || self.held.contains(path) || self.outside.contains_key(path)
    }

    /// A layer goes on in another file.
    fn rebase(&mut self, path: PathBuf, onto: &Path, moves: &mut Vec<Move>) {
        self.under.insert(path.clone(), onto.to_owned());
        moves.push(Move::Rebase { path, onto: onto.to_owned() });
    }

    fn remove(&mut self, path: &Path, moves: &mut Vec<Move>) {
        self.under.remove(path);
        moves.push(Move::Remove { path: path.to_owned() });
    }

    /// What leads to having only what is needed. Interrupted after any of them and asked again, it leads to the same end:
    /// a commit changes a file whose own content nothing needs, and a rebase changes no content at all.
    pub fn settle(mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        while let Some(layer) = self.under.keys().find(|l| !self.needed(l)).cloned() {
            let under = self.under.get(&layer).cloned().unwrap_or_default();
            for over in self.over(&layer) {
                self.rebase(over, &under, &mut moves);
            }
            self.remove(&layer, &mut moves);
        }
        // The file that the disk began as stays in any case, and takes up the one layer that goes on in it.
        let over = self.over(&self.base);
        if let ([top], false) = (&over[..], self.needed(&self.base))
            && !self.outside.contains_key(top)
        {
            let base = self.base.clone();
            moves.push(Move::Commit { top: top.clone(), into: base.clone() });
            moves.push(Move::Refer { from: top.clone(), to: base.clone() });
            for over in self.over(top) {
                self.rebase(over, &base, &mut moves);
            }
            self.remove(top, &mut moves);
        }
        moves
    }

    /// The same while a VM runs with it: QEMU takes the layer that it writes to up into the one below it, where nothing
    /// else needs that. Else why it cannot be done before the VM is off.
    pub fn settle_live(mut self, top: &Path) -> Result<Vec<Move>, String> {
        let mut moves = Vec::new();
        let mut at = top.to_owned();
        while let Some(under) = self.under.get(&at).cloned() {
            if self.needed(&under)
                || self.held.contains(&at)
                || self.outside.contains_key(&at)
                || self.over(&under).len() > 1
            {
                break;
            }
            moves.push(Move::Commit { top: at.clone(), into: under.clone() });
            self.tops.remove(&at);
            self.tops.insert(under.clone());
            self.remove(&at, &mut moves);
            at = under;
        }
        while let Some(layer) = self.under.keys().find(|l| !self.needed(l) && self.over(l).is_empty()).cloned() {
            self.remove(&layer, &mut moves);
        }
        let left = self.clone().settle();
        match left.iter().find(|m| !matches!(m, Move::Refer { .. })) {
            None => Ok(moves),
            Some(Move::Commit { top: path, .. } | Move::Rebase { path, .. } | Move::Remove { path }) => Err(format!(
                "it runs, and `{}` is between what others of its snapshots hold: that is put together only while it is off",
                path.display()
            )),
            Some(Move::Refer { .. }) => Ok(moves),
        }
    }
}

#[cfg(test)]
mod tests;
