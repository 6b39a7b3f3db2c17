//! The order of a plan: dependencies first, refreshes once and as late as they may be, and below a reboot only what
//! depends on it or waits for it. Deterministic: same entries, same order.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Diff, Entry, Item, Key, Refresh, WaitFor};

/// Why no order exists.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OrderError {
    /// Things wait for each other.
    #[error("these wait for each other: {}", .0.iter().map(Key::to_string).collect::<Vec<_>>().join(" → "))]
    Cycle(Vec<Key>),
    /// Two changes would write one place; whichever came second would undo the first.
    #[error("`{first}` and `{second}` both write {place}")]
    TwoOwners {
        /// The place.
        place: String,
        /// One of them.
        first: Key,
        /// The other.
        second: Key,
    },
}

/// The change that stands in the order for an entry, where there is one: what is to be done, now or after a wait.
fn planned(entry: &Entry) -> Option<&Change> {
    match &entry.diff {
        Diff::Change(change) => Some(change),
        Diff::Waits { promise, .. } if !promise.steps.is_empty() => Some(promise),
        _ => None,
    }
}

/// Whether it is itself done by a boot at the earliest: it waits for one, and has steps for what comes then.
fn waits_with_steps(entry: &Entry) -> bool {
    matches!(&entry.diff, Diff::Waits { on: WaitFor::Reboot, promise, .. } if !promise.steps.is_empty())
}

/// Whether an entry holds up what comes after it until the host has booted again after its own turn.
fn needs_reboot(entry: &Entry) -> bool {
    match &entry.diff {
        Diff::Change(change) => change.complete_after == Some(WaitFor::Reboot),
        Diff::Waits { promise, .. } if waits_with_steps(entry) => promise.complete_after == Some(WaitFor::Reboot),
        Diff::Waits { on, .. } => *on == WaitFor::Reboot,
        _ => false,
    }
}

/// Puts entries into the order in which they run. `kinds` is the list of kinds, which breaks ties; `pending` are the
/// refreshes that an earlier, cut-off run left due.
pub fn order(entries: &[Entry], kinds: &[&str], pending: &BTreeSet<Refresh>) -> Result<Vec<Item>, OrderError> {
    one_owner(entries)?;
    let at: BTreeMap<&Key, usize> = entries.iter().enumerate().map(|(i, e)| (&e.key, i)).collect();
    let sorted = by_dependency(entries, &at, kinds)?;

    // After how many boots each has its turn: what depends on something that a boot completes comes after that boot.
    let mut boots = vec![0; entries.len()];
    for &i in &sorted {
        let entry = &entries[i];
        let needed =
            entry.after.iter().filter_map(|k| at.get(k)).map(|&d| boots[d] + usize::from(needs_reboot(&entries[d])));
        boots[i] = needed.max().unwrap_or(0).max(usize::from(waits_with_steps(entry)));
    }

    let mut items = Vec::new();
    for boot in 0..=entries.len() {
        let pending = if boot == 0 { pending } else { &BTreeSet::new() };
        phase(entries, &sorted, |i| boots[i] == boot, pending, &mut items);
        // Due for what it completes, and for what waits for it with steps.
        let due = |i: &usize| {
            let (entry, turn) = (&entries[*i], boots[*i]);
            turn == boot && needs_reboot(entry) || turn == boot + 1 && waits_with_steps(entry)
        };
        let due: Vec<Key> = sorted.iter().copied().filter(due).map(|i| entries[i].key.clone()).collect();
        if due.is_empty() {
            break;
        }
        items.push(Item::Reboot { due, shut_down: Vec::new(), running: Vec::new() });
    }
    Ok(items)
}

/// The planned changes between two boots, each refresh after the last of them that asks for it. A refresh that
/// something depends on (a unit file before its service) is flushed before that thing.
fn phase(
    entries: &[Entry],
    sorted: &[usize],
    in_it: impl Fn(usize) -> bool,
    pending: &BTreeSet<Refresh>,
    items: &mut Vec<Item>,
) {
    let mut due: BTreeMap<Refresh, Vec<Key>> = pending.iter().map(|r| (r.clone(), Vec::new())).collect();
    for &index in sorted {
        let entry = &entries[index];
        let Some(change) = planned(entry).filter(|_| in_it(index)) else { continue };
        let early: Vec<Refresh> = due
            .iter()
            .filter(|(refresh, keys)| {
                matches!(refresh, Refresh::DaemonReload | Refresh::Udev | Refresh::LibvirtHooks)
                    && keys.iter().any(|k| entry.after.contains(k))
            })
            .map(|(refresh, _)| refresh.clone())
            .collect();
        for refresh in early {
            let due = due.remove(&refresh).unwrap_or_default();
            items.push(Item::Refresh { refresh, due });
        }
        items.push(Item::Entry { index });
        for refresh in &change.refreshes {
            due.entry(refresh.clone()).or_default().push(entry.key.clone());
        }
    }
    items.extend(due.into_iter().map(|(refresh, due)| Item::Refresh { refresh, due }));
}

/// All entries, dependencies first; among those that are free, by kind and then by name.
fn by_dependency(entries: &[Entry], at: &BTreeMap<&Key, usize>, kinds: &[&str]) -> Result<Vec<usize>, OrderError> {
    let rank = |i: usize| {
        let key = &entries[i].key;
        (kinds.iter().position(|k| *k == key.kind).unwrap_or(kinds.len()), key)
    };
    let mut missing: Vec<usize> =
        entries.iter().map(|e| e.after.iter().filter(|k| at.contains_key(k)).count()).collect();
    let mut free: BTreeSet<_> = (0..entries.len()).filter(|&i| missing[i] == 0).map(|i| (rank(i), i)).collect();
    let mut sorted = Vec::with_capacity(entries.len());
    while let Some((_, i)) = free.pop_first() {
        sorted.push(i);
        for (j, other) in entries.iter().enumerate() {
            if other.after.contains(&entries[i].key) {
                missing[j] -= 1;
                if missing[j] == 0 {
                    free.insert((rank(j), j));
                }
            }
        }
    }
    if sorted.len() == entries.len() { Ok(sorted) } else { Err(OrderError::Cycle(cycle(entries, at, &sorted))) }
}

/// One cycle among the entries that could not be sorted: each of them has a dependency that could not be either.
fn cycle(entries: &[Entry], at: &BTreeMap<&Key, usize>, sorted: &[usize]) -> Vec<Key> {
    let stuck = |i: &usize| !sorted.contains(i);
    let mut path: Vec<usize> = Vec::new();
    let mut next = (0..entries.len()).find(stuck);
    while let Some(i) = next {
        if let Some(start) = path.iter().position(|&p| p == i) {
            return path[start..].iter().chain([&i]).map(|&i| entries[i].key.clone()).collect();
        }
        path.push(i);
        next = entries[i].after.iter().filter_map(|k| at.get(k).copied()).find(stuck);
    }
    path.into_iter().map(|i| entries[i].key.clone()).collect()
}

/// No two changes write one place.
fn one_owner(entries: &[Entry]) -> Result<(), OrderError> {
    let mut owners: BTreeMap<String, &Key> = BTreeMap::new();
    for entry in entries {
        let places: BTreeSet<String> =
            planned(entry).into_iter().flat_map(|c| c.steps.iter().flat_map(super::Step::writes)).collect();
        for place in places {
            if let Some(first) = owners.insert(place.clone(), &entry.key) {
                return Err(OrderError::TwoOwners { place, first: first.clone(), second: entry.key.clone() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Action, FileWrite, Step};
    use super::*;

    fn entry(kind: &str, name: &str, after: &[&Entry]) -> Entry {
        let mut change = Change::new(Action::Create, "");
        change.steps.push(Step::Module { name: name.to_owned() });
        Entry {
            key: Key::new(kind, name),
            from: String::new(),
            after: after.iter().map(|e| e.key.clone()).collect(),
            diff: Diff::Change(change),
        }
    }
    fn with(mut entry: Entry, refreshes: &[Refresh], complete_after: Option<WaitFor>) -> Entry {
        if let Diff::Change(change) = &mut entry.diff {
            change.refreshes = refreshes.iter().cloned().collect();
            change.complete_after = complete_after;
        }
        entry
    }
    fn shown(entries: &[Entry]) -> String {
        let items = order(entries, &["a", "b", "c"], &BTreeSet::new()).unwrap();
        let word = |item: &Item| match item {
            Item::Entry { index } => entries[*index].key.to_string(),
            Item::Refresh { refresh, .. } => format!("<{}>", refresh.name()),
            Item::Reboot { .. } => "REBOOT".to_owned(),
        };
        items.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn dependencies_come_first_and_ties_follow_kind_and_name() {
        let c = entry("c", "1", &[]);
        let a2 = entry("a", "2", &[&c]);
        let a1 = entry("a", "1", &[]);
        let b = entry("b", "1", &[]);
        assert_eq!(shown(&[c, b, a2, a1]), "a[1] b[1] c[1] a[2]");
    }

    #[test]
    fn only_what_depends_on_the_reboot_stands_after_it() {
        let bind = with(entry("a", "bind", &[]), &[Refresh::Initramfs], Some(WaitFor::Reboot));
        let vm = entry("b", "vm", &[&bind]);
        let start = entry("c", "start", &[&vm]);
        let disk = entry("c", "disk", &[]);
        assert_eq!(shown(&[bind, vm, start, disk]), "a[bind] c[disk] <initramfs> REBOOT b[vm] c[start]");
    }

    #[test]
    fn what_waits_for_a_boot_and_is_complete_by_another_has_two() {
        let argument = with(entry("a", "argument", &[]), &[Refresh::BootLoader], Some(WaitFor::Reboot));
        let mut bind = with(entry("b", "bind", &[&argument]), &[Refresh::Initramfs], Some(WaitFor::Reboot));
        if let Diff::Change(promise) = bind.diff {
            bind.diff = Diff::Waits { on: WaitFor::Reboot, why: String::new(), promise };
        }
        let vm = entry("c", "vm", &[&bind]);
        let items = "a[argument] <boot loader> REBOOT b[bind] <initramfs> REBOOT c[vm]";
        assert_eq!(shown(&[argument, bind.clone(), vm.clone()]), items);
        // The argument is written: it waits for the same boot, and the second comes after the binding all the same.
        let mut written = entry("a", "argument", &[]);
        written.diff =
            Diff::Waits { on: WaitFor::Reboot, why: String::new(), promise: Change::new(Action::Change, "") };
        assert_eq!(shown(&[written, bind, vm]), "REBOOT b[bind] <initramfs> REBOOT c[vm]");
    }

    #[test]
    fn a_refresh_runs_once_after_the_last_that_needs_it() {
        let x = with(entry("a", "x", &[]), &[Refresh::BootLoader], None);
        let y = with(entry("b", "y", &[]), &[Refresh::BootLoader], None);
        assert_eq!(shown(&[x, y]), "a[x] b[y] <boot loader>");
    }

    #[test]
    fn a_unit_file_is_reloaded_before_its_service() {
        let file = with(entry("a", "unit", &[]), &[Refresh::DaemonReload], None);
        let other = with(entry("a", "unit2", &[]), &[Refresh::DaemonReload], None);
        let service = entry("b", "service", &[&file]);
        assert_eq!(shown(&[file, other, service]), "a[unit] a[unit2] <systemd units> b[service]");
    }

    #[test]
    fn a_refresh_that_a_killed_run_left_due_is_planned_alone() {
        let items = order(&[], &[], &BTreeSet::from([Refresh::Initramfs])).unwrap();
        assert_eq!(items, [Item::Refresh { refresh: Refresh::Initramfs, due: vec![] }]);
    }

    #[test]
    fn a_cycle_is_named() {
        let mut a = entry("a", "", &[]);
        let b = entry("b", "", &[&a]);
        a.after.insert(b.key.clone());
        let said = order(&[a, b], &[], &BTreeSet::new()).unwrap_err().to_string();
        assert_eq!(said, "these wait for each other: a → b → a");
    }

    #[test]
    fn two_changes_of_one_file_are_refused() {
        let write = |kind: &str| {
            let mut e = entry(kind, "", &[]);
            if let Diff::Change(c) = &mut e.diff {
                c.steps = vec![Step::WriteFile(FileWrite::root("/etc/x", "", 0o644))];
            }
            e
        };
        let said = order(&[write("a"), write("b")], &[], &BTreeSet::new()).unwrap_err().to_string();
        assert_eq!(said, "`a` and `b` both write /etc/x");
    }
}
