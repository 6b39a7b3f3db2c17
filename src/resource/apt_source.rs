//! Where apt finds packages and which versions it prefers: a source of our own with its key, and preferences for it. The
//! source is fetched in the same change, and the round of an apply ends with it: what it offers is known only then.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::facts::drivers::LISTS;
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Content, Diff, FieldDiff, FileWrite, Step, WaitFor};
use crate::types::{ResourceName, sha256_hex};

/// A source of packages, or preferences among the packages of all sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AptSource {
    /// Its name: what it is for.
    pub name: ResourceName,
    /// What it comes to, in words.
    pub what: String,
    /// The files: key, source, preferences.
    pub files: Vec<FileWrite>,
    /// How the names of the lists begin that apt makes of the source; none where there are preferences alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<String>,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AptSourceState {
    /// The text of each of the files that is there.
    pub texts: BTreeMap<String, String>,
    /// Why a file cannot be looked at or written.
    pub odd: Option<String>,
    /// Whether apt has a list of packages of the source.
    pub fetched: bool,
}

/// How apt names the lists of a source: its address without scheme, `/` as `_`, and some characters by their number
/// (`URItoFileName` in apt's strutl.cc).
pub fn list_prefix(url: &str, suite: &str) -> String {
    let address = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    let whole = match suite {
        "/" => format!("{address}/"),
        flat if flat.ends_with('/') => format!("{address}/{}", flat.trim_start_matches('/')),
        suite => format!("{address}/dists/{suite}/"),
    };
    let quoted = whole.chars().map(|c| match c {
        '/' => "_".to_owned(),
        c if "\\|{}[]<>\"^~_=!@#$%^&*".contains(c) || !c.is_ascii_graphic() => {
            c.to_string().bytes().map(|b| format!("%{b:02x}")).collect()
        }
        c => c.to_string(),
    });
    quoted.collect()
}

impl AptSource {
    fn text(file: &FileWrite) -> &str {
        match &file.content {
            Content::Text(text) => text,
            Content::Secret(_) | Content::Program(_) => "",
        }
    }
}

impl Resource for AptSource {
    const KIND: &'static str = "apt-source";
    type State = AptSourceState;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<AptSourceState, HostError> {
        let mut state = AptSourceState::default();
        for file in &self.files {
            let path = file.path.display().to_string();
            match host.link(&file.path)? {
                Answer::Absent => {}
                _ => state.odd = Some(format!("{path} is a link, which is not followed")),
            }
            match host.text(&file.path)? {
                Answer::Value(text) => _ = state.texts.insert(path, text),
                Answer::Absent => {}
                Answer::Denied => state.odd = Some(format!("{path} may not be read (not root)")),
            }
        }
        if let Some(prefix) = &self.lists {
            let names = host.list(Path::new(LISTS))?.value().unwrap_or_default();
            let is = |n: &str| n.starts_with(prefix.as_str()) && n.contains("_Packages");
            state.fetched = names.iter().any(|n| is(&n.to_string_lossy()));
        }
        Ok(state)
    }

    fn diff(&self, state: &AptSourceState, last: Option<&Self>, _: &HostFacts) -> Diff {
        if let Some(why) = &state.odd {
            return Diff::Unknown { why: why.clone() };
        }
        let mut change = Change::new(Action::Create, self.what.clone());
        let mut refetch = self.lists.is_some() && !state.fetched;
        for file in &self.files {
            let path = file.path.display().to_string();
            let there = state.texts.get(&path);
            if there.is_some_and(|t| t == Self::text(file)) {
                continue;
            }
            if there.is_some() && last.is_none() {
                return Diff::Blocked {
                    why: format!("{path} is there already, with another content, and is not gpuvm's"),
                    help: format!("look at it, and move it away: less {path}"),
                };
            }
            refetch |= self.lists.is_some() && !path.starts_with(crate::facts::drivers::PREFERENCES);
            change.fields.push(FieldDiff::text(&path, there.map(String::as_str), Some(Self::text(file))));
            change.steps.push(Step::WriteFile(file.clone()));
        }
        // What was ours and is no part of it any more: a pin that was given up.
        let gone = last.iter().flat_map(|l| &l.files).filter(|f| !self.files.iter().any(|w| w.path == f.path));
        for file in gone {
            change.steps.push(Step::RemoveFile { path: file.path.clone() });
            change.fields.push(FieldDiff::new(file.path.display().to_string(), None, None));
        }
        if refetch {
            change.steps.push(Step::AptIndex { mark: sha256_hex(self.what.as_bytes()) });
            change.notes.push(
                "then its package list is fetched; a signature that is not by that key, is broken or has \
                               expired ends the run before any package changes"
                    .to_owned(),
            );
        }
        if change.steps.is_empty() {
            return Diff::InSync { evidence: self.what.clone() };
        }
        if !state.texts.is_empty() {
            change.action = Action::Change;
        }
        // Which packages apt would take is known once it has read all this.
        change.complete_after = Some(WaitFor::PackageIndex);
        Diff::Change(change)
    }

    /// The packages that came from it stay; apt forgets its lists when it fetches the others.
    fn remove(&self, state: &AptSourceState, _: &HostFacts) -> Diff {
        if let Some(why) = &state.odd {
            return Diff::Unknown { why: why.clone() };
        }
        let mut change = Change::new(Action::Remove, "taken away; packages from it stay");
        // The source goes before the key: one without its key would stop apt.
        for file in self.files.iter().rev() {
            let path = file.path.display().to_string();
            match state.texts.get(&path) {
                None => {}
                Some(text) if text == Self::text(file) => {
                    change.fields.push(FieldDiff::new(path, None, None));
                    change.steps.push(Step::RemoveFile { path: file.path.clone() });
                }
                Some(_) => {
                    return Diff::Blocked {
                        why: format!("it left the manifest, but {path} was changed by hand since"),
                        help: format!("keep it or remove it yourself: {path}"),
                    };
                }
            }
        }
        if change.steps.is_empty() {
            return Diff::InSync { evidence: "gone".to_owned() };
        }
        Diff::Change(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(pin: bool) -> AptSource {
        let mut files = vec![
            FileWrite::root("/etc/apt/keyrings/gpuvm-x.asc", "key\n", 0o644),
            FileWrite::root("/etc/apt/sources.list.d/gpuvm-x.sources", "URIs: http://r/\n", 0o644),
        ];
        if pin {
            files.push(FileWrite::root("/etc/apt/preferences.d/gpuvm-x.pref", "Package: *\n", 0o644));
        }
        AptSource { name: "x".parse().unwrap(), what: "r".to_owned(), files, lists: Some("r_".to_owned()) }
    }
    fn there(source: &AptSource, fetched: bool) -> AptSourceState {
        let texts = source.files.iter().map(|f| (f.path.display().to_string(), AptSource::text(f).to_owned()));
        AptSourceState { texts: texts.collect(), odd: None, fetched }
    }
    fn steps(diff: &Diff) -> String {
        let Diff::Change(change) = diff else { return format!("{diff:?}").chars().take(7).collect() };
        change.steps.iter().map(Step::name).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn lists_are_named_as_apt_names_them() {
        for (url, suite, wanted) in [
            ("https://h.test/compute/x86_64/", "/", "h.test_compute_x86%5f64_"),
            ("http://127.0.0.1:8000/repo", "/", "127.0.0.1:8000_repo_"),
            ("http://h.test/debian", "trixie", "h.test_debian_dists_trixie_"),
            ("https://h.test/stable/deb/amd64", "./", "h.test_stable_deb_amd64_._"),
        ] {
            assert_eq!(list_prefix(url, suite), wanted);
        }
    }

    #[test]
    fn it_is_written_and_fetched_and_ends_its_round() {
        let facts = super::super::tests::facts();
        let x = source(true);
        let new = x.diff(&AptSourceState::default(), None, &facts);
        assert_eq!(
            steps(&new),
            "write /etc/apt/keyrings/gpuvm-x.asc, write /etc/apt/sources.list.d/gpuvm-x.sources, \
             write /etc/apt/preferences.d/gpuvm-x.pref, fetch the package lists"
        );
        assert!(matches!(&new, Diff::Change(c) if c.complete_after == Some(WaitFor::PackageIndex)));
        assert_eq!(steps(&x.diff(&there(&x, true), Some(&x), &facts)), "InSync ");
        // What was written and could not be fetched is fetched again.
        assert_eq!(steps(&x.diff(&there(&x, false), Some(&x), &facts)), "fetch the package lists");
        // A pin alone needs no fetching, and neither does giving one up.
        assert_eq!(
            steps(&x.diff(&there(&source(false), true), Some(&source(false)), &facts)),
            "write /etc/apt/preferences.d/gpuvm-x.pref"
        );
        assert_eq!(
            steps(&source(false).diff(&there(&x, true), Some(&x), &facts)),
            "remove /etc/apt/preferences.d/gpuvm-x.pref"
        );
    }

    #[test]
    fn what_is_not_ours_stays() {
        let facts = super::super::tests::facts();
        let x = source(false);
        let mut other = there(&x, true);
        other.texts.insert("/etc/apt/sources.list.d/gpuvm-x.sources".to_owned(), "URIs: http://else/\n".to_owned());
        assert_eq!(steps(&x.diff(&other, None, &facts)), "Blocked");
        assert_eq!(steps(&x.remove(&other, &facts)), "Blocked");
        assert_eq!(
            steps(&x.remove(&there(&x, true), &facts)),
            "remove /etc/apt/sources.list.d/gpuvm-x.sources, remove /etc/apt/keyrings/gpuvm-x.asc"
        );
        assert_eq!(steps(&x.remove(&AptSourceState::default(), &facts)), "InSync ");
    }
}
