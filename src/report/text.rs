//! The plan as a person reads it at two in the morning: what, why, in which order, at what risk, what next.

use std::collections::BTreeMap;
use std::fmt::Write;

use owo_colors::OwoColorize;

use crate::apply::Outcome;
use crate::plan::{Action, Change, Diff, Entry, FieldDiff, Finding, Item, Plan, Severity, WaitFor};

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What changes.
    Normal,
    /// What is in sync too, with the evidence.
    Verbose,
}

/// Text of others must not steer the terminal: control characters are shown as escapes.
pub fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() && c != '\n' && c != '\t' { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// The whole plan.
pub fn plan_text(plan: &Plan, detail: Detail) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render(plan, detail, &mut out);
    out
}

fn render(plan: &Plan, detail: Detail, out: &mut String) -> std::fmt::Result {
    let host = &plan.host;
    let vms = host.vms.map_or("VMs not known".to_owned(), |n| count(n, "VM"));
    writeln!(
        out,
        "{}   {}   Linux {}   IOMMU {}   {}, {vms}",
        host.hostname.bold(),
        safe(&host.os),
        host.kernel,
        host.iommu,
        count(host.gpus, "GPU")
    )?;
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
                writeln!(out, "\n  {} {}   not known: {}", "?".yellow(), entry.key.bold(), safe(why))?
            }
            _ => {}
        }
    }
    if !plan.order.is_empty() {
        writeln!(out)?;
    }
    let wide = plan.changes().map(|(e, _)| e.key.to_string().chars().count()).max().unwrap_or(0).min(28);
    for item in &plan.order {
        match item {
            Item::Entry { index } => {
                if let Some(entry) = plan.entries.get(*index) {
                    change(entry, wide, out)?;
                }
            }
            Item::Refresh { refresh, due } => {
                let of = due.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let of = if of.is_empty() { "left due by an earlier run".to_owned() } else { format!("for {of}") };
                writeln!(out, "  {} {}   {}", "↻".cyan(), refresh.name(), of.dimmed())?;
            }
            Item::Reboot { due } => {
                let of = due.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let line = format!("── reboot, for {of} ");
                writeln!(
                    out,
                    "{}",
                    format!("{line}{}", "─".repeat(78usize.saturating_sub(line.chars().count()))).yellow()
                )?;
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
    if detail == Detail::Verbose {
        writeln!(out)?;
        for entry in &plan.entries {
            if let Diff::InSync { evidence } = &entry.diff {
                writeln!(out, "  {} {}   {}", "=".dimmed(), entry.key, safe(evidence).dimmed())?;
            }
        }
    }
    summary(plan, out)
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

fn change(entry: &Entry, wide: usize, out: &mut String) -> std::fmt::Result {
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
    let risks: String = change.risks.iter().map(|r| format!(" [{}]", r.name())).collect();
    writeln!(
        out,
        "  {mark} {}{pad}  {}{}   {}",
        name.bold(),
        safe(&change.what),
        risks.red(),
        format!("from {}", entry.from).dimmed()
    )?;
    for field in &change.fields {
        field_lines(field, out)?;
    }
    for note in &change.notes {
        writeln!(out, "      {}", safe(note).dimmed())?;
    }
    match waits {
        Some(WaitFor::Reboot) | None => Ok(()),
        Some(on) => writeln!(out, "      {}", format!("exact once there is {}", on.name()).dimmed()),
    }
}

fn field_lines(field: &FieldDiff, out: &mut String) -> std::fmt::Result {
    let name = safe(&field.field);
    if let Some(unified) = &field.unified {
        writeln!(out, "      {name}:")?;
        for line in unified.lines().filter(|l| !l.starts_with("---") && !l.starts_with("+++")) {
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
        (Some(before), Some(after)) => writeln!(out, "      {name}: {} → {}", safe(before), safe(after)),
        (None, Some(after)) => writeln!(out, "      {name}: {}", safe(after)),
        (Some(before), None) => writeln!(out, "      {name}: {} → none", safe(before)),
        (None, None) => writeln!(out, "      {name}"),
    }
}

fn summary(plan: &Plan, out: &mut String) -> std::fmt::Result {
    let in_sync = plan.entries.iter().filter(|e| matches!(e.diff, Diff::InSync { .. })).count();
    let reboots = plan.order.iter().filter(|i| matches!(i, Item::Reboot { .. })).count();
    if plan.blocked() {
        let errors = plan.findings.iter().filter(|f| f.severity == Severity::Error).count()
            + plan.entries.iter().filter(|e| matches!(e.diff, Diff::Blocked { .. } | Diff::Unknown { .. })).count();
        return writeln!(
            out,
            "\n{}: {}; nothing is changed while it stands",
            "blocked".red().bold(),
            count(errors, "problem")
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
    if !outcome.done.is_empty() {
        let _ = writeln!(out, "go back: gpuvm undo {}", outcome.run);
    }
    out
}
