//! Arguments of the kernel's command line, appended by a GRUB drop-in of our own that comes after all others. Nobody's
//! file is edited, and the recovery entry, which does not read the variable, stays a way back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::{BootLoader, HostFacts};
use crate::host::{HostError, Probe};
use crate::plan::Place;
use crate::plan::{Action, Change, Diff, FieldDiff, FileWrite, Refresh, Risk, Step, WaitFor};

/// Our drop-in. grub-mkconfig reads `*.cfg` in the order of their names.
const PATH: &str = "/etc/default/grub.d/99-gpuvm.cfg";

/// Every argument that is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelArgs {
    /// In the order in which they are written: some mean what stands before them (`hugepagesz=1G hugepages=8`), and of
    /// others the last counts (`console=`).
    #[serde(deserialize_with = "in_either_form")]
    pub wanted: Vec<String>,
}

/// Ledgers were once written with the section of the manifest at each argument.
fn in_either_form<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Map(BTreeMap<String, String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::List(list) => list,
        Either::Map(map) => map.into_keys().collect(),
    })
}

/// The arguments whose order counts among themselves: several of one name, and huge pages with their sizes.
fn by_meaning<'a>(args: impl IntoIterator<Item = &'a String>) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for arg in args {
        let name = match arg.split('=').next().unwrap_or_default() {
            "hugepagesz" | "default_hugepagesz" => "hugepages",
            name => name,
        };
        all.entry(name).or_default().push(arg);
    }
    all
}

/// How our drop-in remembers what it no longer sets: the running kernel has it until the host boots.
const GONE: &str = "# Until the next boot, the running kernel has: ";

impl KernelArgs {
    fn text(&self, gone: &BTreeSet<String>) -> String {
        let args = self.wanted.join(" ");
        let gone = match gone.is_empty() {
            true => String::new(),
            false => format!("{GONE}{}\n", gone.iter().map(String::as_str).collect::<Vec<_>>().join(" ")),
        };
        format!(
            "# Written by gpuvm; what is changed here is replaced.\n{gone}\
             GRUB_CMDLINE_LINUX_DEFAULT=\"${{GRUB_CMDLINE_LINUX_DEFAULT}} {args}\"\n"
        )
    }

    /// Whether those that the running kernel has stand in its command line in this order, as far as it counts. GRUB puts
    /// ours last.
    fn in_order(&self, facts: &HostFacts) -> bool {
        let at = |a: &&str| facts.kernel.cmdline.iter().rposition(|now| now == a);
        by_meaning(&self.wanted).values().all(|alike| alike.iter().filter_map(at).is_sorted())
    }

    /// Whether a drop-in of ours says the same, whatever the order of what has none.
    fn is_said_by(&self, text: &str, remembered: &BTreeSet<String>) -> bool {
        let there = Self { wanted: sets(text) };
        let (ours, theirs) = (by_meaning(&self.wanted), by_meaning(&there.wanted));
        there.text(remembered) == text && ours == theirs
    }

    /// Values of others for what is set here, each with ours. Which one counts is up to the kernel.
    fn conflicts(&self, facts: &HostFacts, last: Option<&Self>) -> Vec<String> {
        let name = |a: &str| a.split('=').next().unwrap_or_default().to_owned();
        // What an earlier drop-in of ours set is no other's.
        let earlier = |a: &String| last.is_some_and(|l| l.wanted.contains(a));
        let running = facts.kernel.cmdline.iter().filter(|a| !earlier(a));
        let others: BTreeSet<&String> = running.chain(set_by_others(facts)).collect();
        let mut said = Vec::new();
        for other in others {
            // Several values of one of these add up.
            if ["console", "module_blacklist", "modprobe.blacklist"].contains(&name(other).as_str()) {
                continue;
            }
            if let Some(ours) = self.wanted.iter().find(|a| name(a) == name(other) && *a != other) {
                said.push(format!("`{other}` is set by something else; `{ours}` comes after it"));
            }
        }
        said
    }
}

/// What GRUB's files set without us.
pub fn set_by_others(facts: &HostFacts) -> impl Iterator<Item = &String> {
    let sets = match &facts.boot.loader {
        BootLoader::Grub { cmdline_default, cmdline, .. } => [cmdline_default.as_ref(), cmdline.as_ref()],
        _ => [None, None],
    };
    sets.into_iter().flatten().flatten()
}

/// The arguments that a drop-in of ours sets, in its order.
fn sets(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("GRUB_CMDLINE_LINUX_DEFAULT=\"${GRUB_CMDLINE_LINUX_DEFAULT}"));
    line.unwrap_or_default().trim_end_matches('"').split_whitespace().map(str::to_owned).collect()
}

/// The arguments that a drop-in of ours sets, and those that it remembers.
fn read(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let gone = text.lines().find_map(|l| l.strip_prefix(GONE)).unwrap_or_default();
    (sets(text).into_iter().collect(), gone.split_whitespace().map(str::to_owned).collect())
}

/// Why gpuvm does not write for a boot loader, and how its person does.
fn not_ours(loader: &BootLoader, args: &str) -> Option<(String, String)> {
    let (what, how) = match loader {
        BootLoader::Grub { .. } => return None,
        BootLoader::GrubWithoutUpdate => (
            "this GRUB comes without update-grub".to_owned(),
            "install the package grub2-common, and plan again".to_owned(),
        ),
        BootLoader::SystemdBoot => (
            "this host boots with systemd-boot".to_owned(),
            format!(
                "add `{args}` to /etc/kernel/cmdline, run: kernel-install add $(uname -r) /boot/vmlinuz-$(uname -r); then boot"
            ),
        ),
        BootLoader::Extlinux => (
            "this host boots with extlinux".to_owned(),
            format!(
                "add `{args}` in /etc/default/u-boot or /etc/default/extlinux, run: u-boot-update or extlinux-update; then boot"
            ),
        ),
        BootLoader::Unknown(why) => (
            format!("no boot loader is known here ({why})"),
            format!("add `{args}` to the kernel's command line with the tool of your boot loader; then boot"),
        ),
    };
    Some((format!("{what}, and gpuvm writes for GRUB with update-grub only"), how))
}

fn touches_boot(change: &mut Change) {
    change.refreshes.insert(Refresh::BootLoader);
    change.risks.insert(Risk::BootConfig);
}

/// It takes effect at the next boot only.
fn at_next_boot(change: &mut Change) {
    change.risks.insert(Risk::Reboot);
    change.complete_after = Some(WaitFor::Reboot);
}

fn waits(what: &str, why: String, notes: Vec<String>) -> Diff {
    let mut promise = Change::new(Action::Change, what);
    promise.risks.insert(Risk::Reboot);
    promise.notes = notes;
    Diff::Waits { on: WaitFor::Reboot, why, promise }
}

impl Resource for KernelArgs {
    const KIND: &'static str = "kernel-arg";
    /// The text of our drop-in, where it is there.
    type State = Option<String>;

    fn name(&self) -> String {
        String::new()
    }

    fn probe(&self, host: &dyn Probe) -> Result<Option<String>, HostError> {
        Ok(host.text(Path::new(PATH))?.value())
    }

    fn at_boot(&self, host: &dyn Probe) -> Vec<Place> {
        // Those too that are there and go.
        let there = host.text(Path::new(PATH)).ok().and_then(crate::host::Answer::value).unwrap_or_default();
        let (sets, gone) = read(&there);
        let all: BTreeSet<String> = sets.into_iter().chain(gone).chain(self.wanted.iter().cloned()).collect();
        all.into_iter().map(Place::Argument).collect()
    }

    fn diff(&self, state: &Option<String>, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let running = |arg: &str| facts.kernel.cmdline.iter().any(|a| a == arg);
        let missing: Vec<&str> = self.wanted.iter().map(String::as_str).filter(|a| !running(a)).collect();
        let conflicts = self.conflicts(facts, last);
        let BootLoader::Grub { cmdline_default, drop_ins, .. } = &facts.boot.loader else {
            if missing.is_empty() {
                return Diff::InSync { evidence: "on the command line, set by others than gpuvm".to_owned() };
            }
            let (why, help) = not_ours(&facts.boot.loader, &missing.join(" ")).unwrap_or_default();
            return Diff::Blocked { why, help };
        };
        let later = |path: &Path| path.file_name() > Path::new(PATH).file_name();
        if let Some((path, _)) = drop_ins.iter().find(|(path, sets)| *sets && later(path)) {
            return Diff::Blocked {
                why: format!("`{}` comes after {PATH} and sets GRUB_CMDLINE_LINUX_DEFAULT", path.display()),
                help: "rename it so that it comes before `99-gpuvm.cfg`".to_owned(),
            };
        }
        let (set, remembered) = state.as_deref().map(read).unwrap_or_default();
        if state.as_deref().is_some_and(|text| self.is_said_by(text, &remembered)) {
            let still: Vec<&str> = remembered.iter().map(String::as_str).filter(|a| running(a)).collect();
            let mut why = Vec::new();
            if !missing.is_empty() {
                why.push(format!("{} written, and not on the running kernel's command line", missing.join(" ")));
            }
            if missing.is_empty() && !self.in_order(facts) {
                why.push("written, and in another order on the running kernel's command line".to_owned());
            }
            if !still.is_empty() {
                why.push(format!("{} taken out, and still on the running kernel's command line", still.join(" ")));
            }
            if why.is_empty() {
                let others = conflicts.iter().map(|c| format!("; {c}")).collect::<String>();
                return Diff::InSync { evidence: format!("in GRUB and on the command line{others}") };
            }
            why.extend(conflicts.iter().cloned());
            return waits(
                &missing.iter().chain(&still).copied().collect::<Vec<_>>().join(" "),
                why.join("; "),
                conflicts,
            );
        }
        let others: BTreeSet<&String> = set_by_others(facts).collect();
        let gone: BTreeSet<String> = set
            .union(&remembered)
            .filter(|a| !self.wanted.contains(a) && running(a) && !others.contains(a))
            .cloned()
            .collect();
        let text = self.text(&gone);
        let action = if state.is_some() { Action::Change } else { Action::Create };
        let mut change = Change::new(action, self.wanted.join(" "));
        change.fields.push(FieldDiff::text(PATH, state.as_deref(), Some(&text)));
        change.notes = conflicts;
        if cmdline_default.is_none() {
            change.notes.push("what other files set there is not known: they need a shell to be read".to_owned());
        }
        change.steps.push(Step::WriteFile(FileWrite::root(PATH, text, 0o644)));
        touches_boot(&mut change);
        // Where they are there already, from elsewhere, nothing waits for a boot.
        if !missing.is_empty() || !gone.is_empty() || !self.in_order(facts) {
            at_next_boot(&mut change);
        }
        Diff::Change(change)
    }

    fn remove(&self, state: &Option<String>, facts: &HostFacts) -> Diff {
        let (set, remembered) = state.as_deref().map(read).unwrap_or_default();
        let others: BTreeSet<&String> = set_by_others(facts).collect();
        let still: BTreeSet<&String> = set
            .iter()
            .chain(&remembered)
            .chain(&self.wanted)
            .filter(|a| facts.kernel.cmdline.contains(a) && !others.contains(a))
            .collect();
        let shown = still.iter().map(|a| a.as_str()).collect::<Vec<_>>().join(" ");
        let Some(text) = state else {
            // Without GRUB's files nobody knows who set what is there.
            return match shown.is_empty() || !matches!(facts.boot.loader, BootLoader::Grub { .. }) {
                true => Diff::InSync { evidence: "gone".to_owned() },
                false => waits(
                    &shown,
                    format!("{shown} taken out, and still on the running kernel's command line"),
                    Vec::new(),
                ),
            };
        };
        let mut change = Change::new(Action::Remove, "taken off the next boots");
        change.fields.push(FieldDiff::text(PATH, Some(text), None));
        change.steps.push(Step::RemoveFile { path: PATH.into() });
        touches_boot(&mut change);
        if !still.is_empty() {
            at_next_boot(&mut change);
        }
        Diff::Change(change)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    fn args(wanted: &[&str]) -> KernelArgs {
        KernelArgs { wanted: wanted.iter().map(|a| (*a).to_owned()).collect() }
    }
    fn host(running: &str, default: &str) -> HostFacts {
        let words = |t: &str| t.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut facts = facts();
        facts.kernel.cmdline = words(running);
        facts.boot.loader =
            BootLoader::Grub { cmdline_default: Some(words(default)), cmdline: Some(Vec::new()), drop_ins: Vec::new() };
        facts
    }
    /// `change`, `waits WHY` or `in sync`, for what is there and what comes of it.
    fn told(diff: &Diff) -> String {
        match diff {
            Diff::Change(c) if c.complete_after == Some(WaitFor::Reboot) => "change, then reboot".to_owned(),
            Diff::Change(_) => "change".to_owned(),
            Diff::Waits { on: WaitFor::Reboot, why, .. } => format!("waits: {why}"),
            Diff::InSync { .. } => "in sync".to_owned(),
            other => format!("{other:?}"),
        }
    }
    fn written(diff: &Diff) -> Option<String> {
        let Diff::Change(change) = diff else { return None };
        change.steps.iter().find_map(|s| match s {
            Step::WriteFile(FileWrite { content: crate::plan::Content::Text(text), .. }) => Some(text.clone()),
            _ => None,
        })
    }

    #[test]
    fn written_is_told_apart_from_running() {
        let wanted = args(&["a=1"]);
        let diff = wanted.diff(&None, None, &host("quiet", "quiet"));
        assert_eq!(told(&diff), "change, then reboot");
        let text = written(&diff);
        let waiting = told(&wanted.diff(&text, Some(&wanted), &host("quiet", "quiet")));
        assert_eq!(waiting, "waits: a=1 written, and not on the running kernel's command line");
        assert_eq!(told(&wanted.diff(&text, Some(&wanted), &host("quiet a=1", "quiet"))), "in sync");
        assert_eq!(told(&wanted.diff(&None, None, &host("a=1", "a=1"))), "change", "from elsewhere: no boot is due");
    }

    #[test]
    fn they_are_written_in_their_order_and_another_one_waits_for_a_boot() {
        let wanted = args(&["hugepagesz=1G", "hugepages=8", "a"]);
        let text = written(&wanted.diff(&None, None, &host("quiet", "quiet")));
        assert!(text.as_deref().unwrap().contains("} hugepagesz=1G hugepages=8 a\"\n"), "{text:?}");
        let running = host("quiet hugepages=8 hugepagesz=1G a", "quiet");
        assert_eq!(told(&wanted.diff(&None, None, &running)), "change, then reboot");
        let waits = "waits: written, and in another order on the running kernel's command line";
        assert_eq!(told(&wanted.diff(&text, Some(&wanted), &running)), waits);
        // Of those that do not mean each other, the order is nobody's concern.
        let alike = args(&["a", "hugepagesz=1G", "hugepages=8"]);
        let running = host("quiet hugepagesz=1G hugepages=8 a", "quiet");
        assert_eq!(told(&alike.diff(&text, Some(&wanted), &running)), "in sync");
        // As ledgers once had them.
        let old: KernelArgs = serde_json::from_str("{\"wanted\":{\"b\":\"iommu\",\"a=1\":\"kernelArgs\"}}").unwrap();
        assert_eq!(old, args(&["a=1", "b"]));
        assert_eq!(serde_json::from_str::<KernelArgs>(&serde_json::to_string(&wanted).unwrap()).unwrap(), wanted);
        // Ours come last, whoever else sets one too.
        let running = host("a quiet hugepagesz=1G hugepages=8 a", "a quiet");
        assert_eq!(told(&wanted.diff(&text, Some(&wanted), &running)), "in sync");
    }

    #[test]
    fn what_is_taken_out_waits_for_the_boot_that_drops_it() {
        let both = args(&["a=1", "b"]);
        let one = args(&["b"]);
        let text = Some(both.text(&BTreeSet::new()));
        let before = host("quiet a=1 b", "quiet");
        let diff = one.diff(&text, Some(&both), &before);
        assert_eq!(told(&diff), "change, then reboot");
        let text = written(&diff);
        let waits = "waits: a=1 taken out, and still on the running kernel's command line";
        assert_eq!(told(&one.diff(&text, Some(&one), &before)), waits);
        assert_eq!(told(&one.diff(&text, Some(&one), &host("quiet b", "quiet"))), "in sync");
        // All of them.
        assert_eq!(told(&one.remove(&text, &host("quiet b", "quiet"))), "change, then reboot");
        assert!(told(&one.remove(&None, &host("quiet b", "quiet"))).starts_with("waits: b taken out"));
        assert_eq!(told(&one.remove(&None, &host("quiet", "quiet"))), "in sync");
        assert_eq!(told(&one.remove(&None, &host("quiet b", "quiet b"))), "in sync", "another sets it too");
    }

    #[test]
    fn values_of_others_are_reported_and_our_own_earlier_ones_are_not() {
        let wanted = args(&["intel_iommu=on"]);
        let Diff::Change(change) = wanted.diff(&None, None, &host("intel_iommu=off", "intel_iommu=off")) else {
            panic!("a change")
        };
        assert_eq!(change.notes, ["`intel_iommu=off` is set by something else; `intel_iommu=on` comes after it"]);
        let (last, wanted) = (args(&["hugepages=4"]), args(&["hugepages=8"]));
        let text = Some(last.text(&BTreeSet::new()));
        let Diff::Change(change) = wanted.diff(&text, Some(&last), &host("hugepages=4", "")) else {
            panic!("a change")
        };
        assert!(change.notes.is_empty(), "{:?}", change.notes);
    }

    #[test]
    fn another_boot_loader_is_refused_with_its_own_next_step() {
        for (loader, word) in [
            (BootLoader::SystemdBoot, "/etc/kernel/cmdline"),
            (BootLoader::Extlinux, "extlinux-update"),
            (BootLoader::GrubWithoutUpdate, "grub2-common"),
            (BootLoader::Unknown("x".to_owned()), "a=1"),
        ] {
            let mut facts = host("quiet", "");
            facts.boot.loader = loader;
            let Diff::Blocked { help, .. } = args(&["a=1"]).diff(&None, None, &facts) else { panic!("blocked") };
            assert!(help.contains(word), "{help}");
            facts.kernel.cmdline.push("a=1".to_owned());
            assert_eq!(told(&args(&["a=1"]).diff(&None, None, &facts)), "in sync", "once a person has set it");
        }
    }
}
