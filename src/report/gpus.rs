//! GPUs and why they can or cannot be given away, as a person reads it over ssh in 80 columns.

use std::fmt::Write;

use owo_colors::OwoColorize;

use super::text::safe;
use crate::check::{Explanation, Link, NextBootReport, Status, Verdict};
use crate::gpu::mig::Instance;
use crate::gpu::{Busy, Gpu, GpuKind, Holder, HolderKind, PciLink, RefusedStart};
use crate::resource::shared_gpu::SharedNow;

const WIDTH: usize = 80;

/// A GPU with its name in the manifest and the line that names it there.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedGpu {
    /// Its name in the manifest.
    pub name: Option<String>,
    /// Whether the manifest keeps it for the host.
    pub kept_by_host: bool,
    /// The shortest line for a manifest that fits it alone.
    pub matched_by: String,
    /// Whose it is now, where host and VMs share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedNow>,
    /// Its MIG instances, where it has any and they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigNow>,
    /// The GPU.
    #[serde(flatten)]
    pub gpu: Gpu,
}

/// The MIG instances of a GPU.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigNow {
    /// By their places.
    pub instances: Vec<Instance>,
    /// Why they are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Whose a shared GPU is now, and what that costs the host.
fn shared(s: &SharedNow) -> String {
    let list = |all: &[String]| all.join(", ");
    let release: Vec<String> = s.release.iter().map(ToString::to_string).collect();
    let h = &s.handover;
    match (&h.vm, &h.left, h.open) {
        (Some(vm), ..) if h.owed.is_empty() => format!("VM {vm} has it"),
        (Some(vm), ..) => format!("VM {vm} has it; stopped for it: {}", list(&h.owed)),
        (None, Some(left), _) => format!("not all went back to the host: {left}"),
        (None, None, true) => "on its way back to the host; gpuvm plan says what is left to do".to_owned(),
        (None, None, false) if h.hidden => "whose it is now may not be read (not root)".to_owned(),
        (None, None, false) if release.is_empty() => "the host's until a VM starts with it".to_owned(),
        (None, None, false) => format!("the host's until a VM starts with it; stopped then: {}", list(&release)),
    }
}

/// Cuts text into lines; a word that is longer than a line stays whole.
fn wrapped(text: &str, first: usize, indent: usize) -> String {
    let mut out = String::new();
    let mut column = first;
    for word in safe(text).split(' ') {
        let wide = word.chars().count();
        if column > indent && column + 1 + wide > WIDTH {
            out += &format!("\n{}", " ".repeat(indent));
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += wide;
    }
    out
}

fn drivers(gpu: &Gpu) -> String {
    let all: Vec<&str> =
        gpu.functions.iter().filter(|f| f.role == "display").filter_map(|f| f.driver.as_deref()).collect();
    all.first().map_or("no driver".to_owned(), |d| (*d).to_owned())
}

fn groups(gpu: &Gpu) -> String {
    let all: Vec<String> = gpu.groups.iter().map(u32::to_string).collect();
    let word = if all.len() == 1 { "group" } else { "groups" };
    match (all.is_empty(), gpu.shares.len()) {
        (true, _) => "no group".to_owned(),
        (_, 0) => format!("{word} {}", all.join(",")),
        (_, n) => format!("{word} {} +{n}", all.join(",")),
    }
}

fn user(h: &Holder) -> String {
    match &h.kind {
        HolderKind::Vm => format!("VM {}", h.name),
        HolderKind::Container { engine, id } => format!("{engine} {id} ({})", h.name),
        _ => h.pid.map_or(h.name.clone(), |pid| format!("{} ({pid})", h.name)),
    }
}

/// Who uses it; and what else keeps it from being free.
fn users(named: &NamedGpu) -> String {
    let gpu = &named.gpu;
    let mut all: Vec<String> = gpu.holders.iter().map(user).collect();
    all.dedup();
    if gpu.link.as_ref().is_some_and(PciLink::is_dead) {
        all.insert(0, "does not answer".to_owned());
    }
    match gpu.sharing.mig_instances.len() {
        0 => {}
        1 => all.push("1 MIG instance".to_owned()),
        n => all.push(format!("{n} MIG instances")),
    }
    if named.kept_by_host {
        all.push("kept for the host".to_owned());
    }
    if gpu.boot_display {
        all.push("boot display".to_owned());
    }
    match (all.is_empty(), &gpu.hidden_holders) {
        (true, None) => "free".to_owned(),
        (true, Some(_)) => "?".to_owned(),
        (false, None) => all.join(", "),
        (false, Some(_)) => format!("{}, ?", all.join(", ")),
    }
}

/// A start of a VM that the hook refused, with why.
pub fn refused_start(refused: &RefusedStart) -> String {
    let head = format!("VM {} did not start ({} UTC):", safe(&refused.vm), safe(&refused.at));
    format!("  {} {head}\n      {}\n", "×".red(), wrapped(&refused.why, 6, 6))
}

/// One line a GPU.
pub fn gpu_list(gpus: &[NamedGpu]) -> String {
    let rows: Vec<[String; 6]> = gpus
        .iter()
        .map(|g| {
            let model = match g.gpu.kind {
                GpuKind::Gpu => g.gpu.model.clone(),
                GpuKind::Management => format!("{} (BMC)", g.gpu.model),
                GpuKind::Virtual => format!("{} (virtual)", g.gpu.model),
            };
            let name = g.name.clone().unwrap_or_default();
            let users = match &g.shared {
                Some(_) => format!("shared: {}", users(g)),
                None => users(g),
            };
            [name, g.gpu.slot.to_string(), model, drivers(&g.gpu), groups(&g.gpu), users].map(|c| safe(&c))
        })
        .collect();
    let mut wide = [0; 6];
    for row in &rows {
        for (w, cell) in wide.iter_mut().zip(row) {
            *w = cell.chars().count().max(*w);
        }
    }
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(wide).filter(|(_, w)| *w > 0).map(|(cell, w)| format!("{cell:w$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out += line.trim_end();
        out.push('\n');
    }
    if gpus.is_empty() {
        out += "no display controller\n";
    }
    if gpus.iter().any(|g| g.gpu.hidden_holders.is_some()) {
        out += "\n?  not all who may use it could be seen; `gpuvm gpu status` says why\n";
    }
    out
}

/// All that is known of one GPU.
pub fn gpu_status(named: &NamedGpu) -> String {
    let mut out = String::new();
    let _ = status(named, &mut out);
    out
}

fn status(named: &NamedGpu, out: &mut String) -> std::fmt::Result {
    let gpu = &named.gpu;
    let name = named.name.as_ref().map_or(String::new(), |n| format!("{}   ", n.bold()));
    writeln!(out, "{name}{}   {} [{}]", gpu.slot.to_string().bold(), safe(&gpu.model), gpu.id)?;
    let mut line = |what: &str, text: String| writeln!(out, "  {what:<11} {}", wrapped(&text, 14, 14));
    line("name it by", named.matched_by.clone())?;
    let functions: Vec<String> = gpu
        .functions
        .iter()
        .map(|f| format!(".{} {} {}", f.address.function, f.role, f.driver.as_deref().unwrap_or("(no driver)")))
        .collect();
    line("functions", functions.join(", "))?;
    if let Some(s) = &named.shared {
        line("shared", shared(s))?;
    }
    let shares = match gpu.shares.is_empty() {
        true => String::new(),
        false => format!(", shared with {}", gpu.shares.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
    };
    let numbers: Vec<String> = gpu.groups.iter().map(u32::to_string).collect();
    line(
        "iommu",
        if numbers.is_empty() { "no group".to_owned() } else { format!("group {}{shares}", numbers.join(", ")) },
    )?;
    if !gpu.elsewhere.is_empty() {
        line(
            "elsewhere",
            format!(
                "parts of the card in other slots: {}",
                gpu.elsewhere.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            ),
        )?;
    }
    match (gpu.holders.is_empty(), &gpu.hidden_holders) {
        (true, None) => line("used by", "nobody".to_owned())?,
        (true, Some(why)) => line("used by", format!("? {why}"))?,
        (false, hidden) => {
            for h in &gpu.holders {
                let nodes: Vec<String> = h.nodes.iter().map(|n| n.display().to_string()).collect();
                line("used by", format!("{} {}", user(h), nodes.join(" ")))?;
            }
            if let Some(why) = hidden {
                line("", format!("? {why}"))?;
            }
        }
    }
    let power = gpu.power_state.as_deref().unwrap_or("not told");
    match &gpu.link {
        Some(l) if l.is_dead() => line("link", "does not answer".to_owned())?,
        Some(l) => line("link", link_text(l))?,
        None if gpu.power_state.as_deref() == Some("D0") => {}
        None => line("link", "not asked: that would wake it".to_owned())?,
    }
    line("power", power.to_owned())?;
    line(
        "busy",
        match &gpu.busy {
            Busy::Percent(percent) => format!("{percent} % of its time"),
            Busy::NotTold(why) => why.clone(),
        },
    )?;
    if !gpu.bars.is_empty() {
        let all: Vec<String> = gpu.bars.iter().filter(|b| b.size >= 1 << 20).map(|b| size(b.size)).collect();
        line("windows", all.join(", "))?;
    }
    let methods = gpu
        .reset
        .methods
        .as_ref()
        .map_or("none listed".to_owned(), |m| if m.is_empty() { "none".to_owned() } else { m.join(" ") });
    let seen = match &gpu.reset.seen {
        None => "never seen to work".to_owned(),
        Some(seen) if seen.lost => format!("did not answer after VM `{}`", seen.vm),
        Some(seen) => format!("seen to work {} times", seen.cycles),
    };
    line("reset", format!("{methods}; {seen}"))?;
    line("display", if gpu.boot_display { "the boot display".to_owned() } else { "not the boot display".to_owned() })?;
    if let Some(node) = gpu.numa_node {
        line("numa node", node.to_string())?;
    }
    let remembered = |recalled: bool| if recalled { " (remembered; not told now)" } else { "" };
    if let Some(serial) = &gpu.serial {
        line("serial", format!("{serial}{}", remembered(gpu.recalled.serial)))?;
    }
    if let Some(uuid) = &gpu.uuid {
        line("uuid", format!("{uuid}{}", remembered(gpu.recalled.uuid)))?;
    }
    let s = &gpu.sharing;
    if s.most_virtual_functions > 0 {
        line("sr-iov", format!("{} of {} virtual functions on", s.virtual_functions, s.most_virtual_functions))?;
    }
    for f in &s.functions {
        line("", format!("{} {}", f.address, f.driver.as_deref().unwrap_or("(no driver)")))?;
    }
    if !s.mig_instances.is_empty() {
        line("mig", format!("{} GPU instances", s.mig_instances.len()))?;
    }
    for i in named.mig.iter().flat_map(|m| &m.instances) {
        let users: Vec<String> = i.users.iter().cloned().collect();
        let users = if users.is_empty() { String::new() } else { format!("   used by {}", users.join(", ")) };
        let uuids = if i.uuids.is_empty() { "without a compute instance".to_owned() } else { i.uuids.join(" ") };
        line("", format!("{} at {}   {uuids}{users}", i.profile, i.start))?;
    }
    if let Some(why) = named.mig.as_ref().and_then(|m| m.unknown.as_ref()) {
        line("", format!("? {why}"))?;
    }
    if s.offers_mediated {
        line("vgpu", format!("mediated types offered, {} made", s.mediated.len()))?;
    }
    for (address, vgpu) in &s.vgpus {
        line("vgpu", format!("{address} type {vgpu}"))?;
    }
    Ok(())
}

/// The kernel says `Unknown` for a speed that it has no name for (`pci_speed_string`): nothing is made of that.
fn link_text(l: &PciLink) -> String {
    let known = |speed: &String| !speed.is_empty() && speed != "Unknown";
    let now = match known(&l.speed) {
        true => format!("{} x{}", l.speed, l.width),
        false => format!("x{}, its speed is not told", l.width),
    };
    match known(&l.most_speed) {
        true => format!("{now} (at most {} x{})", l.most_speed, l.most_width),
        false => format!("{now} (at most x{})", l.most_width),
    }
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// The chain of one GPU.
pub fn explanation(e: &Explanation, verbose: bool) -> String {
    let mut out = String::new();
    let _ = explained(e, verbose, &mut out);
    out
}

fn verdict(v: Verdict) -> String {
    match v {
        Verdict::Pass => "PASS".green().to_string(),
        Verdict::Unknown => "UNKNOWN".yellow().to_string(),
        Verdict::Fail => "FAIL".red().to_string(),
    }
}

/// The chain of the next boot.
pub fn next_boot(r: &NextBootReport, verbose: bool) -> String {
    let mut out = String::new();
    let _ = boots(r, verbose, &mut out);
    out
}

fn boots(r: &NextBootReport, verbose: bool, out: &mut String) -> std::fmt::Result {
    let Some(v) = r.verdict else { return writeln!(out, "next boot: {}", r.summary) };
    let plain = if v == Verdict::Unknown { 7 } else { 4 };
    let kept = safe(&r.kept.join(", "));
    writeln!(out, "{}   {}   for VMs: {kept}", "next boot".bold(), safe(r.kernel.as_deref().unwrap_or("?")))?;
    writeln!(out, "verdict  {}:{}\n", verdict(v), wrapped(&safe(&r.summary), 10 + plain, 9))?;
    for l in &r.links {
        link(l, verbose, out)?;
    }
    Ok(())
}

fn explained(e: &Explanation, verbose: bool, out: &mut String) -> std::fmt::Result {
    let name = e.name.as_ref().map_or(String::new(), |n| format!("{}   ", n.bold()));
    let before = e.name.as_ref().map_or(0, |n| n.chars().count() + 3) + e.slot.to_string().len() + 3;
    writeln!(out, "{name}{}   {}", e.slot.to_string().bold(), wrapped(&e.title, before, 9).trim_start())?;
    let plain = match e.verdict {
        Verdict::Pass => 4,
        Verdict::Unknown => 7,
        Verdict::Fail => 4,
    };
    writeln!(out, "verdict  {}:{}\n", verdict(e.verdict), wrapped(&e.summary, 10 + plain, 9))?;
    for l in &e.links {
        link(l, verbose, out)?;
    }
    Ok(())
}

/// What was found, then what it rests on: beside it where there is room, else below. Only what is good and long is cut,
/// and shown whole with `-v`.
fn link(l: &Link, verbose: bool, out: &mut String) -> std::fmt::Result {
    const AT: usize = 22;
    let mark = match l.status {
        Status::Ok => "ok   ".green().to_string(),
        Status::Unknown => "?    ".yellow().to_string(),
        Status::Fail => "FAIL ".red().to_string(),
    };
    let says = wrapped(&safe(&l.says), AT, AT);
    write!(out, "  {mark} {:<13} {says}", l.name)?;
    let column = says.rsplit('\n').next().map_or(0, |last| last.trim_start().chars().count()) + AT;
    let quiet = l.status == Status::Ok && !verbose;
    let shown = |source: &str, value: &str| match quiet {
        true => source.to_owned(),
        false => format!("{source} = {value}"),
    };
    let all: Vec<String> = l.evidence.iter().map(|e| safe(&shown(&e.source, &e.value))).collect();
    match &all[..] {
        [] => writeln!(out)?,
        [first, ..] if quiet => match column + 3 + first.chars().count() <= WIDTH {
            true => writeln!(out, "   {}", first.dimmed())?,
            false => writeln!(out)?,
        },
        all => {
            writeln!(out)?;
            for one in all {
                writeln!(out, "{}{}", " ".repeat(AT), wrapped(one, AT, AT + 2).dimmed())?;
            }
        }
    }
    for fix in &l.fix {
        writeln!(out, "{}→ {}", " ".repeat(AT), wrapped(fix, AT + 2, AT + 2))?;
    }
    Ok(())
}
