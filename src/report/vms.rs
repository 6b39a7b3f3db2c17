//! VMs as a person reads them over ssh in 80 columns.

use std::fmt::Write;
use std::net::IpAddr;

use owo_colors::OwoColorize;

use super::text::safe;
use crate::vm::{Agent, Device, Hinder, Run, Vm, size};

fn device(d: &Device) -> String {
    let model = if d.model.is_empty() { d.slot.to_string() } else { d.model.clone() };
    match &d.name {
        Some(name) => format!("{name} ({model})"),
        None => model,
    }
}

fn address(vm: &Vm) -> String {
    let all = vm.reachable();
    // One of the older kind is what people type; the rest is in `vm info`.
    match all.first() {
        None => String::new(),
        Some(first) if all.len() == 1 => first.ip.to_string(),
        Some(first) => format!("{} +{}", first.ip, all.len() - 1),
    }
}

fn count(n: u32, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// One line a VM.
pub fn vm_list(vms: &[Vm]) -> String {
    if vms.is_empty() {
        return "no VM\n".to_owned();
    }
    let rows: Vec<[String; 6]> = vms
        .iter()
        .map(|vm| {
            let (cpus, memory) = match vm.unreadable {
                Some(_) => ("?".to_owned(), "?".to_owned()),
                None => (count(vm.cpus, "CPU"), size(vm.memory)),
            };
            let gpus: Vec<String> = vm.gpus().map(device).collect();
            [vm.name.clone(), vm.state.word().to_owned(), cpus, memory, gpus.join(", "), address(vm)].map(|c| safe(&c))
        })
        .collect();
    let mut wide = [0; 6];
    for row in &rows {
        for (w, cell) in wide.iter_mut().zip(row) {
            *w = cell.chars().count().max(*w);
        }
    }
    let mut out = String::new();
    for (row, vm) in rows.iter().zip(vms) {
        let cells = row.iter().zip(wide).filter(|(_, w)| *w > 0).map(|(cell, w)| format!("{cell:w$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        // Its own words, since what others made is left alone by every verb.
        let theirs = if vm.ours { String::new() } else { format!("  {}", "not gpuvm's".dimmed()) };
        let kept = match vm.snapshots.len() {
            0 => String::new(),
            n => format!("  {}", count(u32::try_from(n).unwrap_or(u32::MAX), "snapshot")),
        };
        let _ = writeln!(out, "{}{kept}{theirs}", line.trim_end());
        if let Some(condition) = &vm.condition {
            let _ = writeln!(out, "  {} {}", "!".yellow(), safe(condition));
        }
    }
    out
}

/// What keeps a VM from running, beside what it is.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Off {
    /// What is in the way of a start.
    pub hinders: Vec<Hinder>,
    /// How gpuvm's last start of it failed, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_start: Option<String>,
    /// The last that QEMU said of itself.
    pub log: Vec<String>,
}

/// All that is known of a VM. `unknown` is what could not be asked about addresses; of a `recorded` host only what was
/// recorded answers.
pub fn vm_info(vm: &Vm, off: &Off, unknown: &[String], recorded: bool) -> String {
    let mut out = String::new();
    let by = if vm.ours { "gpuvm's" } else { "not gpuvm's: left as it is by every verb" };
    let state = match vm.state {
        Run::Running => vm.state.word().green().to_string(),
        Run::Paused => vm.state.word().yellow().to_string(),
        Run::Off => vm.state.word().to_owned(),
    };
    let _ = writeln!(out, "{}   {state}   {}", safe(&vm.name).bold(), by.dimmed());
    if let Some(condition) = &vm.condition {
        let _ = writeln!(out, "  {} {}", "!".yellow(), safe(condition));
    }
    if let Some(why) = &vm.unreadable {
        let _ = writeln!(out, "  {} its definition cannot be read: {}", "×".red(), safe(why));
        return out;
    }
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<9} {}", safe(value).trim_end());
    };
    row("cpus", &vm.cpus.to_string());
    row("memory", &size(vm.memory));
    for d in &vm.devices {
        let model = if d.model.is_empty() { "not in this host" } else { &d.model };
        let name = d.name.as_ref().map_or(String::new(), |n| format!("{n}   "));
        let whose = match (d.shared, vm.state) {
            (false, _) => "",
            (true, Run::Off) => "   shared: the host's until this VM starts",
            (true, _) => "   shared: the host's again when this VM has ended",
        };
        row(if d.gpu { "gpu" } else { "device" }, &format!("{name}{}   {model}{whose}", d.slot));
    }
    for disk in &vm.disks {
        let size = disk.size.map_or("size not known".to_owned(), size);
        row("disk", &format!("{size}   {}", disk.source));
    }
    if !vm.snapshots.is_empty() {
        row("snapshots", &format!("{}   (gpuvm vm snapshot list {})", vm.snapshots.join(", "), vm.name));
    }
    for nic in &vm.nics {
        row("network", &format!("{}   {}", nic.on, nic.mac));
        for a in &nic.addresses {
            row("", &format!("{}   {}", a.ip, a.source.word()));
        }
        if nic.addresses.is_empty() && vm.state == Run::Running {
            let why = if unknown.is_empty() { String::new() } else { format!("; {}", unknown.join("; ")) };
            row("", &format!("no address is known{why}"));
        }
    }
    row(
        "agent",
        match (vm.agent, vm.state) {
            (Agent::None, _) => "none: no channel for one in its definition",
            (_, Run::Off) => "has a channel",
            (Agent::Silent, _) if recorded => "not known: the record has no answer of it, and cannot be asked",
            (Agent::Silent, _) => "does not answer: not installed in its guest, or not up yet",
            (Agent::Answers, _) => "answers",
        },
    );
    row("at boot", if vm.autostart { "starts with the host" } else { "stays off" });
    if !vm.at_next_start.is_empty() {
        let what = vm.at_next_start.join(", ");
        row("waits", &format!("{what}: stored, in force after gpuvm vm restart {}", vm.name));
    }
    if vm.state == Run::Off {
        why_off(vm, off, &mut out);
    }
    out
}

fn why_off(vm: &Vm, off: &Off, out: &mut String) {
    if !off.hinders.is_empty() {
        let _ = writeln!(out, "\n  would not start:");
    }
    for hinder in &off.hinders {
        let _ = writeln!(out, "  {} {}", "×".red(), safe(&hinder.why));
        let _ = writeln!(out, "      {}", format!("→ {}", safe(&hinder.help)).dimmed());
    }
    if let Some(last) = &off.last_start {
        let _ = writeln!(out, "\n  its last start failed:\n      {}", safe(last));
    }
    if !off.log.is_empty() {
        let _ = writeln!(out, "\n  what QEMU said last (gpuvm vm logs {}):", safe(&vm.name));
        off.log.iter().for_each(|line| *out += &format!("      {}\n", safe(line)));
    }
}

/// One address of a host's network, with whose it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedAddress {
    /// The address.
    pub ip: IpAddr,
    /// Whose: `this host`, a VM, a name that a lease gave, or nobody known.
    pub of: String,
    /// On which link.
    pub link: String,
    /// Its address on the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Who told it.
    pub source: String,
}

/// One line an address.
pub fn ip_list(all: &[ListedAddress]) -> String {
    if all.is_empty() {
        return "no address is known\n".to_owned();
    }
    let rows: Vec<[String; 5]> = all
        .iter()
        .map(|a| {
            let mac = a.mac.clone().unwrap_or_default();
            [a.ip.to_string(), a.of.clone(), a.link.clone(), mac, a.source.clone()].map(|c| safe(&c))
        })
        .collect();
    let mut wide = [0; 5];
    for row in &rows {
        for (w, cell) in wide.iter_mut().zip(row) {
            *w = cell.chars().count().max(*w);
        }
    }
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(wide).filter(|(_, w)| *w > 0).map(|(cell, w)| format!("{cell:w$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedSnapshot {
    /// Its name.
    pub name: String,
    /// When it was made, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The one that the VM went on from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether the VM goes on from this one.
    pub current: bool,
    /// Whether gpuvm made it.
    pub ours: bool,
    /// Whether the VM ran then.
    pub ran: bool,
    /// What it has beside disks and definition: `nvram`, `tpm`.
    pub parts: Vec<String>,
    /// The files that hold its disks, one a disk, each over what is below it.
    pub files: Vec<String>,
    /// The copies of UEFI variables and of the TPM's state.
    pub copies: Vec<String>,
}

/// One line a snapshot, oldest first.
pub fn snapshot_list(vm: &str, all: &[ListedSnapshot]) -> String {
    if all.is_empty() {
        return format!("{} has no snapshot\n", safe(vm));
    }
    let rows: Vec<[String; 4]> = all
        .iter()
        .map(|s| {
            let ran = if s.ran { "it ran" } else { "it was off" };
            let parts = if s.parts.is_empty() { String::new() } else { format!(", with {}", s.parts.join(", ")) };
            let from = s.parent.as_ref().map_or(String::new(), |p| format!("from {p}"));
            [s.name.clone(), s.created.clone().unwrap_or_default(), format!("{ran}{parts}"), from].map(|c| safe(&c))
        })
        .collect();
    let mut wide = [0; 4];
    for row in &rows {
        for (w, cell) in wide.iter_mut().zip(row) {
            *w = cell.chars().count().max(*w);
        }
    }
    let mut out = String::new();
    for (row, s) in rows.iter().zip(all) {
        let cells = row.iter().zip(wide).filter(|(_, w)| *w > 0).map(|(cell, w)| format!("{cell:w$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let now = if s.current { "  it goes on from here" } else { "" };
        let theirs = if s.ours { String::new() } else { format!("  {}", "not gpuvm's".dimmed()) };
        let _ = writeln!(out, "{}{now}{theirs}", if now.is_empty() { line.trim_end() } else { &line });
    }
    out
}
