//! The plan as a person reads it at two in the morning: what, why, in which order, at what risk, what next.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use owo_colors::OwoColorize;

use crate::apply::Outcome;
use crate::host::LIBVIRT_HANGS;
use crate::plan::{Action, Change, Diff, Entry, FieldDiff, Finding, GONE, Item, Plan, Severity, WaitFor};
use crate::types::DomainName;
pub use crate::types::safe;
use crate::types::safe_line;
use crate::verb::Verb;

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What is wrong, and the sum.
    Summary,
    /// What changes.
    Normal,
    /// What changes, with the whole content of every file.
    Full,
    /// What is in sync too, with the evidence.
    Verbose,
}

/// A terminal at its narrowest.
const COLUMNS: usize = 80;

/// Lines that are broken between words. Text that a person copies (commands, file contents) does not go through it.
struct Wrapped<'a> {
    out: &'a mut String,
    column: usize,
    indent: usize,
}

impl<'a> Wrapped<'a> {
    /// Begins behind what stands in the line already; further lines are indented.
    fn new(out: &'a mut String, column: usize, indent: usize) -> Self {
        Self { out, column, indent }
    }
    /// A word, so many blanks behind the one before.
    fn word(&mut self, gap: usize, word: &str, style: impl Fn(&str) -> String) {
        let width = word.chars().count();
        if self.column + gap + width > COLUMNS && self.column > self.indent {
            self.out.push('\n');
            self.out.push_str(&" ".repeat(self.indent));
            self.column = self.indent + width;
        } else {
            self.out.push_str(&" ".repeat(gap));
            self.column += gap + width;
        }
        self.out.push_str(&style(word));
    }
    /// Words with single blanks between them.
    fn text(&mut self, gap: usize, text: &str, style: impl Fn(&str) -> String) {
        for (n, word) in text.split(' ').filter(|w| !w.is_empty()).enumerate() {
            self.word(if n == 0 { gap } else { 1 }, word, &style);
        }
    }
    fn end(self) {
        self.out.push('\n');
    }
}

/// The whole plan.
pub fn plan_text(plan: &Plan, detail: Detail) -> String {
    plan_text_as(plan, detail, str::to_owned)
}

/// The whole plan, with what `said` makes of its lines. What there is on the host and what is written there is shown as it
/// is: whatever is said to a person, a file's content stays the file's.
pub fn plan_text_as(plan: &Plan, detail: Detail, said: impl Fn(&str) -> String) -> String {
    let (mut out, mut contents) = (String::new(), Vec::new());
    // Writing to a String cannot fail.
    let _ = render(plan, detail, &mut out, &mut contents);
    let (mut text, mut from) = (String::new(), 0);
    for content in contents {
        text += &said(out.get(from..content.start).unwrap_or_default());
        from = content.end;
        text += out.get(content).unwrap_or_default();
    }
    text + &said(out.get(from..).unwrap_or_default())
}

/// `contents` becomes the parts of the text that are contents of the host.
fn render(plan: &Plan, detail: Detail, out: &mut String, contents: &mut Vec<Range<usize>>) -> std::fmt::Result {
    let host = &plan.host;
    let vms = host.vms.map_or("VMs not known".to_owned(), |n| count(n, "VM"));
    let waits = |e: &&Entry| !e.diff.settled();
    if plan.order.is_empty() && plan.findings.is_empty() && !plan.entries.iter().any(|e| waits(&e)) {
        write!(out, "{}: nothing to do; {} in sync", safe(&host.hostname).bold(), plan.entries.len())?;
        writeln!(out)?;
        return if detail == Detail::Verbose { in_sync(plan, out) } else { left(plan, out) };
    }
    let mut head = Wrapped::new(out, 0, 2);
    head.word(0, &safe(&host.hostname), |w| w.bold().to_string());
    for part in [
        safe(&host.os),
        format!("Linux {}", safe(&host.kernel)),
        format!("IOMMU {}", safe(&host.iommu)),
        format!("{}, {vms}", count(host.gpus, "GPU")),
    ] {
        head.word(3, &part, str::to_owned);
    }
    head.end();
    problems(plan, out)?;
    if detail == Detail::Summary {
        return summary(plan, out);
    }
    if !plan.order.is_empty() {
        writeln!(out)?;
    }
    let wide = plan.changes().map(|(e, _)| e.key.to_string().chars().count()).max().unwrap_or(0).min(28);
    for item in &plan.order {
        match item {
            Item::Entry { index } => {
                if let Some(entry) = plan.entries.get(*index) {
                    change(entry, wide, detail, out, contents)?;
                }
            }
            Item::Refresh { refresh, due } => {
                let of = due.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let of = if of.is_empty() { "left due by an earlier run".to_owned() } else { format!("for {of}") };
                let name = refresh.name();
                write!(out, "  {} {name}", "↻".cyan())?;
                let mut line = Wrapped::new(out, 4 + name.chars().count(), 6);
                line.text(3, &of, |w| w.dimmed().to_string());
                line.end();
            }
            Item::Reboot { due, shut_down, running } => {
                let of = due.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let line = format!("── reboot, for {of} ");
                writeln!(
                    out,
                    "{}",
                    format!("{line}{}", "─".repeat(78usize.saturating_sub(line.chars().count()))).yellow()
                )?;
                guests(shut_down, running, out)?;
            }
        }
    }
    for entry in &plan.entries {
        if let Diff::Waits { on, why, promise } = &entry.diff
            && promise.steps.is_empty()
        {
            writeln!(out, "  {} {}   waits for {}: {}", "…".yellow(), entry.key.bold(), on.name(), safe(why))?;
        }
    }
    match detail {
        Detail::Verbose => in_sync(plan, out)?,
        _ => left(plan, out)?,
    }
    summary(plan, out)
}

/// What left the manifest and stays on the host all the same.
fn left(plan: &Plan, out: &mut String) -> std::fmt::Result {
    for entry in plan.entries.iter().filter(|e| e.from == GONE) {
        let Diff::Stays { why, .. } = &entry.diff else { continue };
        let key = entry.key.to_string();
        write!(out, "  {} {}", "·".dimmed(), key)?;
        let mut line = Wrapped::new(out, 4 + key.chars().count(), 6);
        line.text(3, &safe(why), |w| w.dimmed().to_string());
        line.end();
    }
    Ok(())
}

/// Why nothing of a plan is done, without the rest of it.
pub fn refused(plan: &Plan) -> String {
    let mut out = String::new();
    let _ = problems(plan, &mut out);
    format!("{}nothing was changed\n", out.strip_prefix('\n').unwrap_or(&out))
}

fn problems(plan: &Plan, out: &mut String) -> std::fmt::Result {
    for found in &plan.findings {
        write!(out, "\n{}", finding(found))?;
    }
    let unable: Vec<_> =
        plan.entries.iter().filter(|e| matches!(e.diff, Diff::Blocked { .. } | Diff::Unknown { .. })).collect();
    for entry in &unable {
        match &entry.diff {
            Diff::Blocked { why, help } => {
                writeln!(out, "\n  {} {}   {}", "×".red(), entry.key.bold(), safe(why))?;
                writeln!(out, "      {}", safe(help).dimmed())?;
            }
            Diff::Unknown { why } => {
                writeln!(out, "\n  {} {}   not known: {}", "?".yellow(), entry.key.bold(), safe(why))?;
                writeln!(out, "      {}", to_know(why).dimmed())?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What to do about what is not known.
fn to_know(why: &str) -> &'static str {
    if why.contains("the record does not hold") {
        return "a record has what was looked at: make it anew, with this manifest: gpuvm facts --record DIR -f FILE";
    }
    if why.contains("libvirt did not answer") {
        return LIBVIRT_HANGS;
    }
    "what is not known counts as unsafe; as root gpuvm sees all that can be seen"
}

/// A finding with its place and what to do.
pub fn finding(finding: &Finding) -> String {
    let mark = match finding.severity {
        Severity::Error => "×".red().to_string(),
        Severity::Warning => "!".yellow().to_string(),
        Severity::Note => "·".dimmed().to_string(),
    };
    let place = if finding.place.is_empty() { String::new() } else { format!("{}: ", finding.place) };
    let help =
        if finding.help.is_empty() { String::new() } else { format!("      {}\n", safe(&finding.help).dimmed()) };
    format!("  {mark} {place}{}\n{help}", safe(&finding.message))
}

fn in_sync(plan: &Plan, out: &mut String) -> std::fmt::Result {
    writeln!(out)?;
    for entry in &plan.entries {
        if let Diff::InSync { evidence } | Diff::Stays { why: evidence, .. } = &entry.diff {
            writeln!(out, "  {} {}   {}", "=".dimmed(), entry.key, safe(evidence).dimmed())?;
        }
    }
    Ok(())
}

/// What a reboot does to the VMs that run.
fn guests(shut_down: &[DomainName], running: &[String], out: &mut String) -> std::fmt::Result {
    if !shut_down.is_empty() {
        let names = shut_down.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        writeln!(out, "      first asked to shut down, for it has passed devices: {names}")?;
    }
    if !running.is_empty() {
        let names = running.iter().map(|n| format!("`{}`", safe(n))).collect::<Vec<_>>().join(", ");
        writeln!(out, "      run too, and go down as libvirt-guests is set: {names}")?;
    }
    Ok(())
}

fn change(
    entry: &Entry,
    wide: usize,
    detail: Detail,
    out: &mut String,
    contents: &mut Vec<Range<usize>>,
) -> std::fmt::Result {
    let (change, waits) = match &entry.diff {
        Diff::Change(change) => (change, None),
        Diff::Waits { on, promise, .. } => (promise, Some(*on)),
        _ => return Ok(()),
    };
    let mark = change.action.mark();
    let mark = match change.action {
        Action::Create => mark.green().to_string(),
        Action::Change => mark.yellow().to_string(),
        Action::Remove => mark.red().to_string(),
    };
    let name = entry.key.to_string();
    let pad = " ".repeat(wide.saturating_sub(name.chars().count()));
    write!(out, "  {mark} {}{pad}", name.bold())?;
    let column = 4 + wide.max(name.chars().count());
    let mut line = Wrapped::new(out, column, if column < COLUMNS / 2 { column + 2 } else { 6 });
    line.text(2, &safe(&change.what), str::to_owned);
    for risk in &change.risks {
        line.word(1, &format!("[{}]", risk.name()), |w| w.red().to_string());
    }
    line.word(3, &format!("from {}", safe(&entry.from)), |w| w.dimmed().to_string());
    line.end();
    // What a person declared is shown whole; of gpuvm's own files, that they come or go.
    let whole = detail != Detail::Normal || entry.from.starts_with("files.");
    let from = out.len();
    for field in &change.fields {
        field_lines(field, whole, out)?;
    }
    contents.push(from..out.len());
    for note in &change.notes {
        out.push_str(&" ".repeat(6));
        let mut line = Wrapped::new(out, 6, 8);
        line.text(0, &safe(note), |w| w.dimmed().to_string());
        line.end();
    }
    match waits {
        Some(WaitFor::Reboot) | None => Ok(()),
        Some(on) => writeln!(out, "      {}", format!("exact once there is {}", on.name()).dimmed()),
    }
}

/// More of a file that comes or goes as a whole is shown with `-v`.
const FEW_LINES: usize = 3;

fn field_lines(field: &FieldDiff, whole: bool, out: &mut String) -> std::fmt::Result {
    let name = safe_line(&field.field);
    if let Some(unified) = &field.unified {
        let lines: Vec<&str> = unified.lines().filter(|l| !l.starts_with("---") && !l.starts_with("+++")).collect();
        let new = lines.first().is_some_and(|l| l.starts_with("@@ -0,0 "));
        let lines = if new { lines.get(1..).unwrap_or_default() } else { &lines[..] };
        if new && !whole && lines.len() > FEW_LINES {
            return writeln!(out, "      {name}: new, {} lines {}", lines.len(), "(-v shows them)".dimmed());
        }
        let gone = lines.first().is_some_and(|l| l.starts_with("@@ ") && l.contains(" +0,0 @@"));
        if gone && !whole && lines.len() > FEW_LINES + 1 {
            return writeln!(out, "      {name}: goes, {} lines {}", lines.len() - 1, "(-v shows them)".dimmed());
        }
        writeln!(out, "      {name}:{}", if new { " new" } else { "" })?;
        for line in lines {
            let line = safe(line);
            let line = match line.as_bytes().first() {
                Some(b'+') => line.green().to_string(),
                Some(b'-') => line.red().to_string(),
                Some(b'@') => line.dimmed().to_string(),
                _ => line,
            };
            writeln!(out, "        {line}")?;
        }
        return Ok(());
    }
    match (&field.before, &field.after) {
        (Some(before), Some(after)) => writeln!(out, "      {name}: {} → {}", safe_line(before), safe_line(after)),
        (None, Some(after)) => writeln!(out, "      {name}: {}", safe_line(after)),
        (Some(before), None) => writeln!(out, "      {name}: {} → none", safe_line(before)),
        (None, None) => writeln!(out, "      {name}"),
    }
}

fn summary(plan: &Plan, out: &mut String) -> std::fmt::Result {
    let in_sync = plan.entries.iter().filter(|e| e.diff.settled()).count();
    let reboots = plan.order.iter().filter(|i| matches!(i, Item::Reboot { .. })).count();
    if plan.blocked() {
        let errors = plan.findings.iter().filter(|f| f.severity == Severity::Error).count()
            + plan.entries.iter().filter(|e| matches!(e.diff, Diff::Blocked { .. } | Diff::Unknown { .. })).count();
        return writeln!(
            out,
            "\n{}: {}{}; nothing is changed while {}",
            "blocked".red().bold(),
            count(errors, "problem"),
            match plan.findings.iter().filter(|f| f.severity == Severity::Warning).count() {
                0 => String::new(),
                n => format!(" (×, ?), and {} (!)", count(n, "warning")),
            },
            if errors == 1 { "it stands" } else { "they stand" }
        );
    }
    let mut actions: BTreeMap<Action, usize> = BTreeMap::new();
    let changes: Vec<&Change> = plan
        .order
        .iter()
        .filter_map(|i| match i {
            Item::Entry { index } => plan.entries.get(*index),
            _ => None,
        })
        .filter_map(|e| match &e.diff {
            Diff::Change(c) | Diff::Waits { promise: c, .. } => Some(c),
            _ => None,
        })
        .collect();
    for change in &changes {
        *actions.entry(change.action).or_default() += 1;
    }
    if changes.is_empty() && plan.order.is_empty() {
        return writeln!(out, "\nnothing to do; {in_sync} in sync");
    }
    let removed = match actions.get(&Action::Remove) {
        Some(n) => format!("{n} removed"),
        None => "nothing removed".to_owned(),
    };
    writeln!(out, "\n{}, {}, {removed}; {in_sync} in sync", count(changes.len(), "change"), count(reboots, "reboot"))
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What an apply did, what waits, and how to go back.
pub fn outcome(outcome: &Outcome) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "run {}: {} done", outcome.run, count(outcome.done.len(), "change"));
    for entry in &outcome.left.entries {
        if let Diff::Waits { on, why, .. } = &entry.diff {
            let _ = writeln!(out, "  … {} waits for {}: {}", entry.key, on.name(), safe(why));
        }
    }
    let after = outcome.left.order.iter().skip_while(|i| !matches!(i, Item::Reboot { .. }));
    let keys = after.filter_map(|i| match i {
        Item::Entry { index } => outcome.left.entries.get(*index),
        _ => None,
    });
    for entry in keys.filter(|e| matches!(e.diff, Diff::Change(_))) {
        let _ = writeln!(out, "  … {} comes after the reboot", entry.key);
    }
    if !outcome.done.is_empty() {
        let _ = writeln!(out, "go back: gpuvm undo {}", outcome.run);
    }
    out
}

/// What came of a verb, what waits, and how to go back.
pub fn verb_outcome(outcome: &Outcome, verb: &Verb, approved: &Plan) -> String {
    let mut out = String::new();
    let mut waits = false;
    for entry in &outcome.left.entries {
        if let Diff::Waits { on, why, .. } = &entry.diff {
            waits = true;
            let _ = writeln!(out, "  … {} waits for {}: {}", entry.key, on.name(), safe(why));
        }
    }
    if !waits {
        let _ = writeln!(out, "{}", verb.done());
    }
    if !outcome.done.is_empty() {
        let _ = match verb.is_undoable(approved) {
            true => writeln!(out, "go back: gpuvm undo {}", outcome.run),
            false => writeln!(out, "run {}; it cannot be undone", outcome.run),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{HostLine, Key, PLAN_FORMAT, Risk};

    fn plan(entries: Vec<Entry>) -> Plan {
        let order = entries.iter().enumerate().filter(|(_, e)| matches!(e.diff, Diff::Change(_)));
        Plan {
            format: PLAN_FORMAT,
            writer: String::new(),
            host: HostLine {
                hostname: "gpu-01".to_owned(),
                os: "Debian GNU/Linux 13 (trixie)".to_owned(),
                kernel: "6.12.117+deb13-amd64".to_owned(),
                iommu: "on (intel, 14 groups)".to_owned(),
                gpus: 2,
                vms: Some(0),
                fingerprint: String::new(),
            },
            manifest: String::new(),
            findings: Vec::new(),
            order: order.map(|(index, _)| Item::Entry { index }).collect(),
            entries,
        }
    }
    fn entry(key: Key, from: &str, diff: Diff) -> Entry {
        Entry { key, from: from.to_owned(), after: Default::default(), diff }
    }
    fn shown(plan: &Plan, detail: Detail) -> String {
        anstream::adapter::strip_str(&plan_text(plan, detail)).to_string()
    }
    fn file(from: &str, before: Option<&str>, lines: usize) -> Plan {
        let mut change = Change::new(Action::Create, "it");
        let after: String = (0..lines).map(|n| format!("line {n}\n")).collect();
        change.fields.push(FieldDiff::text("/etc/it", before, Some(&after)));
        plan(vec![entry(Key::new("file", "/etc/it"), from, Diff::Change(change))])
    }

    #[test]
    fn prose_is_broken_at_80_columns() {
        let mut change =
            Change::new(Action::Create, "install 4: libvirt-daemon-system ovmf qemu-system-x86 qemu-utils");
        change.risks.insert(Risk::PackageRemoval);
        change
            .notes
            .push("a note that says more than one line of a terminal has room for, as notes do now and then".into());
        let text =
            shown(&plan(vec![entry(Key::new("package", ""), "packages, vms", Diff::Change(change))]), Detail::Normal);
        assert!(text.lines().all(|l| l.chars().count() <= COLUMNS), "{text}");
        let words = |t: &str| t.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&text).contains("qemu-system-x86 qemu-utils [package-removal] from packages, vms"), "{text}");
        assert!(words(&text).contains("has room for, as notes do now and then"), "{text}");
    }

    #[test]
    fn only_new_files_of_gpuvms_own_are_shortened() {
        let has = |plan: &Plan, detail| shown(plan, detail).contains("line 7");
        assert!(shown(&file("use: vfio", None, 8), Detail::Normal).contains("/etc/it: new, 8 lines (-v shows them)"));
        assert!(!has(&file("use: vfio", None, 8), Detail::Normal));
        assert!(has(&file("use: vfio", None, 8), Detail::Verbose) && has(&file("use: vfio", None, 8), Detail::Full));
        assert!(shown(&file("use: vfio", None, 2), Detail::Normal).contains("+line 1"), "a short one says more itself");
        assert!(has(&file("use: vfio", Some("old\n"), 8), Detail::Normal), "one that is there changes");
        assert!(has(&file("files./etc/it", None, 8), Detail::Normal), "a person declared it");
        let mut goes = Change::new(Action::Remove, "it");
        goes.fields.push(FieldDiff::text("/etc/it", Some("1\n2\n3\nline 7\n"), None));
        let goes = plan(vec![entry(Key::new("file", "/etc/it"), "undo of run 1", Diff::Change(goes))]);
        assert!(shown(&goes, Detail::Normal).contains("/etc/it: goes, 4 lines (-v shows them)\n"));
        assert!(!has(&goes, Detail::Normal) && has(&goes, Detail::Verbose));
    }

    #[test]
    fn what_blocks_is_counted_apart_from_what_is_only_said() {
        let find = |severity| Finding {
            severity,
            code: String::new(),
            place: "vms.a".to_owned(),
            message: "too much".to_owned(),
            help: String::new(),
        };
        let why = "the record does not hold `apt-get -s`".to_owned();
        let mut blocked = plan(vec![entry(Key::new("package", ""), "vms", Diff::Unknown { why })]);
        let said = shown(&blocked, Detail::Normal);
        assert!(said.ends_with("\nblocked: 1 problem; nothing is changed while it stands\n"), "{said}");
        assert!(said.contains("\n      a record has what was looked at: make it anew, with this manifest: "), "{said}");
        blocked.findings = vec![find(Severity::Error), find(Severity::Warning)];
        let said = shown(&blocked, Detail::Normal);
        let sum = "\nblocked: 2 problems (×, ?), and 1 warning (!); nothing is changed while they stand\n";
        assert!(said.ends_with(sum), "{said}");
    }

    #[test]
    fn a_plan_with_nothing_to_do_is_one_line_and_a_quiet_one_the_sum() {
        let in_sync = entry(Key::new("module", ""), "vms", Diff::InSync { evidence: "loaded".to_owned() });
        let idle = plan(vec![in_sync]);
        assert_eq!(shown(&idle, Detail::Normal), "gpu-01: nothing to do; 1 in sync\n");
        assert!(shown(&idle, Detail::Verbose).contains("= module   loaded"));
        let text = shown(&file("use: vfio", None, 8), Detail::Summary);
        assert!(
            text.ends_with("\n1 change, 0 reboots, nothing removed; 0 in sync\n") && !text.contains("/etc/it"),
            "{text}"
        );
    }
}
