//! `gpuvm gpu`, `gpuvm check`, `gpuvm topology`: facts → GPUs → judged or drawn → shown. Look only, but for
//! `attach` and `detach`, which are in a file of their own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use miette::{IntoDiagnostic, miette};
use serde::Serialize;

use super::apply::Talk;
use super::defaults::defaults;
use super::move_gpu::{self, MoveArgs};
use super::{Output, code, host, print, say, tell};
use crate::apply::StateDir;
use crate::check::{self, Asked, Explanation, Looked, NextBoot, Verdict};
use crate::desire;
use crate::facts::{self, HostFacts};
use crate::gpu::identity::{self, Criterion};
use crate::gpu::{self, Gpu, GpuKind, RefusedStart, mig, topology};
use crate::host::{Probe, Snapshot};
use crate::manifest::{self, DeviceUse, Loaded, Manifest};
use crate::plan::{Finding, Key, Past, Severity};
use crate::report::{self, MigNow, NamedGpu};
use crate::resource::block_volume::nearly_full;
use crate::resource::shared_gpu::{SharedGpu, SharedNow, shared_now};
use crate::resource::vfio_binding::{VfioBinding, recognised};
use crate::resource::{Resource, Wanted};
use crate::types::PciSlot;

/// Where to look, and how to answer.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// The manifest, for the names that it gives; without it, GPUs are named by what they are.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// A recorded host (made by `gpuvm facts --record`) in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How the answer is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Arguments of `gpuvm gpu`.
#[derive(Debug, Args)]
pub struct GpuArgs {
    #[command(subcommand)]
    command: GpuCommand,
}

#[derive(Debug, Subcommand)]
enum GpuCommand {
    /// One line a GPU: address, model, driver, IOMMU group (`+2`: shared with two devices), and who uses it.
    List {
        #[command(flatten)]
        look: LookArgs,
    },
    /// All that is known of a GPU, or of every GPU. A sleeping card is not woken.
    Status {
        /// Its name in the manifest, address, slot path, model, id or UUID.
        gpu: Option<String>,
        #[command(flatten)]
        look: LookArgs,
    },
    /// Why this GPU can or cannot be given to a VM: every link of the chain, its evidence and its fix.
    ///
    /// Ends with 0 for PASS, 1 for FAIL, 3 for UNKNOWN. Run as root, it sees all; as another user, what it may not read
    /// is `?`.
    Explain {
        /// Its name in the manifest, address, slot path, model, id or UUID.
        gpu: String,
        #[command(flatten)]
        look: LookArgs,
    },
    /// Give a GPU to a VM: the whole slot or nothing, now where VM and host allow it, else from its next start on.
    ///
    /// Who uses the GPU is looked for first. `gpuvm undo` takes it back.
    Attach(MoveArgs),
    /// Take a GPU from a VM; its functions go back to their own drivers, or stay on vfio-pci where the manifest keeps it.
    Detach(MoveArgs),
}

/// Arguments of `gpuvm check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Judge what boots next: kernel, command line, modules, initramfs, and the drivers of GPUs that stay with the host.
    #[arg(long)]
    next_boot: bool,
    /// Keep the verdict for `gpuvm status`; for the hooks of kernel and initramfs updates.
    #[arg(long, hide = true, requires = "next_boot", conflicts_with = "root")]
    record: bool,
    #[command(flatten)]
    look: LookArgs,
}

/// Arguments of `gpuvm topology`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// A recorded host (made by `gpuvm facts --record`) in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Draw the chipset's small parts too.
    #[arg(long)]
    all: bool,
    /// How it is drawn on stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: Drawing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Drawing {
    /// A tree.
    Text,
    /// For programs.
    Json,
    /// For a browser: gpuvm topology --output svg > host.svg
    Svg,
}

/// What was looked at, with the names of the manifest.
struct Seen {
    facts: HostFacts,
    gpus: Vec<Gpu>,
    looked: Looked,
    manifest: Option<Loaded>,
    /// What was bound before; empty where gpuvm's own state may not be read.
    past: Past,
    /// What host and VMs share, as it is now.
    shared: Vec<SharedNow>,
}

impl Seen {
    /// The names that the manifest gives, with their slots and uses.
    fn named(&self) -> Vec<(String, PciSlot, DeviceUse)> {
        let gpus = self.manifest.iter().flat_map(|m| &m.manifest.gpus);
        gpus.filter_map(|(n, e)| Some((n.to_string(), desire::resolve(e, true, &self.facts).ok()?, e.usage))).collect()
    }

    fn asked(&self, slot: PciSlot) -> Asked {
        let named = self.named();
        let Some(m) = self.manifest.as_ref().map(|m| &m.manifest) else { return Asked::default() };
        let given = |usage: DeviceUse| usage == DeviceUse::Vfio;
        let devices = m.devices.iter().filter(|(_, e)| given(e.usage));
        let devices = devices.filter_map(|(_, e)| desire::resolve(e, false, &self.facts).ok());
        let vms = m.vms.iter().filter(|(_, vm)| !vm.absent);
        let vms = vms.map(|(n, vm)| (n.to_string(), desire::slots_of(m, vm, &self.facts)));
        let (vms, other_vms) = vms.partition(|(_, slots)| slots.contains(&slot));
        let name = named.iter().find(|(_, s, _)| *s == slot).map(|(n, ..)| n.as_str());
        Asked {
            another: name.and_then(|name| self.another(name)),
            recognised: self.recognised(m, slot),
            name: named.iter().find(|(_, s, _)| *s == slot).map(|(n, ..)| n.clone()),
            given: named.iter().filter(|(.., u)| given(*u)).map(|(_, s, _)| *s).chain(devices).collect(),
            vms,
            other_vms,
            running: m.vms.iter().filter(|(_, vm)| desire::runs(vm)).map(|(n, _)| n.to_string()).collect(),
            shared: self.release(m, slot),
            modules: desire::modules(m, &self.facts),
            mig: self.cut(m, slot),
        }
    }

    /// By what it is known, where the manifest names it by a serial number or UUID that is not told now.
    fn recognised(&self, m: &Manifest, slot: PciSlot) -> Option<String> {
        let first = self.facts.slot(slot).next().filter(|f| !f.recalled.is_none())?;
        let named = m.gpus.values().filter(|e| e.matches.serial.is_some() || e.matches.uuid.is_some());
        let mut named = named.filter(|e| desire::resolve(e, true, &self.facts).ok() == Some(slot));
        recognised(first, named.next()?.matches.serial.is_some())
    }

    /// Whether the manifest cuts the card into MIG instances.
    fn cut(&self, m: &Manifest, slot: PciSlot) -> bool {
        let mut cut = m.gpus.values().filter(|e| e.mig.is_some());
        cut.any(|e| desire::resolve(e, true, &self.facts).ok() == Some(slot))
    }

    /// What is stopped for a VM of what host and VMs share.
    fn release(&self, m: &Manifest, slot: PciSlot) -> Option<Vec<String>> {
        let shared = m.gpus.values().filter(|e| e.usage == DeviceUse::Shared);
        let mut entry = shared.filter(|e| desire::resolve(e, true, &self.facts).ok() == Some(slot));
        entry.next().map(|e| e.release.iter().map(ToString::to_string).collect())
    }

    /// Why the card that the manifest names may not be the one that was bound by that name.
    fn another(&self, name: &str) -> Option<(String, String)> {
        let mut nodes = desire::desire(self.manifest.as_ref()?, &self.facts).nodes;
        [VfioBinding::KIND, SharedGpu::KIND].into_iter().find_map(|kind| {
            let key = Key::new(kind, name);
            match (nodes.remove(&key)?.wanted, self.past.owned.get(&key)?) {
                (Wanted::VfioBinding(now), Wanted::VfioBinding(last)) => now.another(last, &self.facts),
                (Wanted::SharedGpu(now), Wanted::SharedGpu(last)) => now.another(last, &self.facts),
                _ => None,
            }
        })
    }

    fn named_gpu(&self, gpu: &Gpu) -> NamedGpu {
        let first = self.facts.slot(gpu.slot).find(|f| f.is_gpu());
        NamedGpu {
            name: self.asked(gpu.slot).name,
            kept_by_host: self.named().iter().any(|(_, slot, usage)| *slot == gpu.slot && *usage == DeviceUse::Host),
            matched_by: first.map_or(String::new(), |f| identity::shortest(f, true, &self.facts)),
            shared: self.shared.iter().find(|s| s.slot == gpu.slot).cloned(),
            mig: None,
            gpu: gpu.clone(),
        }
    }

    /// The same with its MIG instances: where there are any, its driver has the card awake.
    fn with_instances(&self, gpu: &Gpu, probe: &dyn Probe) -> NamedGpu {
        let mut named = self.named_gpu(gpu);
        let of_card = self.facts.slot(gpu.slot).find(|f| f.is_gpu());
        if let Some(f) = of_card.filter(|_| !gpu.sharing.mig_instances.is_empty()) {
            let (instances, unknown) = match mig::ask(probe, f.address) {
                mig::Told::Card(card) => (card.instances, None),
                mig::Told::Without => (Vec::new(), Some("its driver says that it has no MIG".to_owned())),
                mig::Told::Unknown(why) => (Vec::new(), Some(why)),
            };
            named.mig = Some(MigNow { instances, unknown });
        }
        named
    }

    fn explain(&self, gpu: &Gpu) -> Explanation {
        check::explain(&self.facts, &self.looked, &self.gpus, gpu, &self.asked(gpu.slot))
    }

    /// The GPU that a person means.
    fn find(&self, text: &str) -> miette::Result<&Gpu> {
        let slot = meant(text, self.manifest.as_ref(), &self.facts)?;
        self.gpus.iter().find(|g| g.slot == slot).ok_or_else(|| miette!("{slot} has no display function"))
    }
}

/// The slot of the GPU that a person means: by its name in the manifest, else by what it is.
pub(super) fn meant(text: &str, manifest: Option<&Loaded>, facts: &HostFacts) -> miette::Result<PciSlot> {
    let entry = manifest.and_then(|m| m.manifest.gpus.iter().find(|(n, _)| n.as_str() == text));
    if let Some((_, entry)) = entry {
        return desire::resolve(entry, true, facts).map_err(|(why, help)| miette!(help = help, "`{text}`: {why}"));
    }
    let criterion = Criterion::guess(text);
    let by_serial = |e| identity::find(&Criterion::Serial(text.to_owned()), true, facts).map_err(|_| e);
    let found = identity::find(&criterion, true, facts);
    let found = found.or_else(|e| if e.fitting == 0 { by_serial(e) } else { Err(e) });
    found.map(|f| f.address.slot).map_err(|e| {
        let why = match e.fitting {
            0 => format!("no GPU is `{text}`"),
            n => format!("{n} GPUs are `{text}`"),
        };
        let names: Vec<String> =
            manifest.iter().flat_map(|m| m.manifest.gpus.keys()).map(|n| format!("`{n}`")).collect();
        let by_name = match (manifest, names.is_empty()) {
            (None, _) => {
                "a name that a manifest gives needs that manifest: -f host.yaml; without it, an address does\n"
                    .to_owned()
            }
            (Some(_), true) => "the manifest names no GPU; an address does\n".to_owned(),
            (Some(_), false) => format!("the manifest names {}\n", names.join(", ")),
        };
        miette!(help = format!("{by_name}there are:\n      {}", e.lines()), "{why}")
    })
}

/// Opens the host, looks at everything once, and gives it to `show`.
fn look(
    root: Option<&PathBuf>,
    file: Option<&PathBuf>,
    show: impl FnOnce(&Seen, &dyn Probe) -> miette::Result<u8>,
) -> miette::Result<u8> {
    let (probe, state) = host::open(root.map(PathBuf::as_path))?;
    let probe = probe.as_ref();
    // Another user than root may not read it, and is told of the rest.
    let past = StateDir::open(state).and_then(|s| s.past()).unwrap_or_default();
    let manifest = match file {
        Some(file) => Some(manifest::load(file)?),
        // For the names alone: one that is not there, or not for this user, is no reason to show nothing.
        None => defaults(root.map(PathBuf::as_path), probe)
            .ok()
            .flatten()
            .and_then(|known| manifest::load(&known.manifest).ok())
            .filter(|m| host::is_meant(m, probe).is_ok()),
    };
    if let Some(Err(other)) = manifest.as_ref().map(|m| host::is_meant(m, probe)) {
        say(&format!("{other}\n"));
        return Ok(code::REFUSED);
    }
    let snapshot = Snapshot::new(probe);
    let mut facts = match &manifest {
        Some(manifest) => host::facts_for(manifest, &snapshot),
        None => facts::collect(&snapshot),
    };
    past.recall(&mut facts);
    let gpus = gpu::collect(&snapshot, &facts);
    let looked = Looked::look(&snapshot, &facts, &gpus);
    let shared = shared_now(&snapshot);
    show(&Seen { facts, gpus, looked, manifest, past, shared }, &snapshot)
}

/// The GPUs with the names that the manifest gives.
pub(super) fn named(root: Option<&Path>, file: Option<&Path>) -> miette::Result<Vec<NamedGpu>> {
    let mut all = Vec::new();
    let meant = look(root.map(Path::to_path_buf).as_ref(), file.map(Path::to_path_buf).as_ref(), |seen, _| {
        all = seen.gpus.iter().map(|g| seen.named_gpu(g)).collect();
        Ok(code::OK)
    })?;
    match meant {
        code::OK => Ok(all),
        _ => Err(miette!("the manifest is for another host")),
    }
}

fn json(value: &impl Serialize) -> miette::Result<String> {
    Ok(serde_json::to_string_pretty(value).into_diagnostic()? + "\n")
}

fn tell_or_json(output: Output, value: &impl Serialize, text: impl FnOnce() -> String) -> miette::Result<()> {
    match output {
        Output::Json => print(&json(value)?),
        Output::Text => tell(&text()),
    }
}

fn exit(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Pass => code::OK,
        Verdict::Fail => code::ERROR,
        Verdict::Unknown => code::WAITS,
    }
}

pub(super) fn gpu(args: &GpuArgs, verbose: bool, talk: Talk<'_>) -> miette::Result<u8> {
    match &args.command {
        GpuCommand::Attach(moved) => move_gpu::run(moved, true, talk),
        GpuCommand::Detach(moved) => move_gpu::run(moved, false, talk),
        GpuCommand::List { look: l } => look(l.root.as_ref(), l.file.as_ref(), |seen, _| {
            let all: Vec<NamedGpu> = seen.gpus.iter().map(|g| seen.named_gpu(g)).collect();
            tell_or_json(l.output, &all, || report::gpu_list(&all))?;
            Ok(code::OK)
        }),
        GpuCommand::Status { gpu, look: l } => look(l.root.as_ref(), l.file.as_ref(), |seen, probe| {
            let wanted = match gpu {
                Some(text) => vec![seen.find(text)?],
                None => seen.gpus.iter().collect(),
            };
            let all: Vec<NamedGpu> = wanted.into_iter().map(|g| seen.with_instances(g, probe)).collect();
            tell_or_json(l.output, &all, || all.iter().map(report::gpu_status).collect::<Vec<_>>().join("\n"))?;
            Ok(code::OK)
        }),
        GpuCommand::Explain { gpu, look: l } => look(l.root.as_ref(), l.file.as_ref(), |seen, _| {
            let explanation = seen.explain(seen.find(gpu)?);
            tell_or_json(l.output, &explanation, || report::explanation(&explanation, verbose))?;
            Ok(exit(explanation.verdict))
        }),
    }
}

/// What `gpuvm check` answers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    /// Mistakes of the manifest on this host.
    findings: Vec<Finding>,
    /// Starts of VMs that the hook refused since the host booted.
    refused_starts: Vec<RefusedStart>,
    /// The GPUs that are to be given away; without a manifest, all.
    gpus: Vec<Explanation>,
    /// The worst of all; none where nothing is to be given away.
    verdict: Option<Verdict>,
}

pub(super) fn check(args: &CheckArgs, verbose: bool, quiet: bool) -> miette::Result<u8> {
    let l = &args.look;
    if args.next_boot {
        return look(l.root.as_ref(), l.file.as_ref(), |seen, probe| next_boot(args, seen, probe, verbose, quiet));
    }
    look(l.root.as_ref(), l.file.as_ref(), |seen, probe| {
        let given: BTreeSet<PciSlot> =
            seen.named().into_iter().filter(|(.., u)| *u != DeviceUse::Host).map(|(_, s, _)| s).collect();
        let wanted = seen.gpus.iter().filter(|g| match &seen.manifest {
            Some(_) => given.contains(&g.slot),
            None => g.kind == GpuKind::Gpu,
        });
        let gpus: Vec<Explanation> = wanted.map(|g| seen.explain(g)).collect();
        let desired = seen.manifest.as_ref().map(|m| desire::desire(m, &seen.facts)).unwrap_or_default();
        let full = nearly_full(desired.nodes.values().map(|n| &n.wanted), probe);
        let findings: Vec<Finding> = desired.findings.into_iter().chain(full).collect();
        let wrong = findings.iter().any(|f| f.severity == Severity::Error);
        let refused_starts = gpu::refused_starts(probe);
        let verdict = if wrong || !refused_starts.is_empty() { Some(Verdict::Fail) } else { check::worst(&gpus) };
        let checked = Checked { findings, refused_starts, gpus, verdict };
        tell_or_json(l.output, &checked, || {
            let mut parts: Vec<String> = checked.findings.iter().map(report::finding).collect();
            parts.extend(checked.refused_starts.iter().map(report::refused_start));
            parts.extend(checked.gpus.iter().map(|e| report::explanation(e, verbose)));
            if parts.is_empty() {
                parts.push("no GPU to judge\n".to_owned());
            }
            parts.join("\n")
        })?;
        Ok(verdict.map_or(code::OK, exit))
    })
}

/// With `quiet`, only a FAIL is said, and only what fails.
fn next_boot(args: &CheckArgs, seen: &Seen, probe: &dyn Probe, verbose: bool, quiet: bool) -> miette::Result<u8> {
    let looked;
    let next = match &seen.looked.next {
        Some(next) => next,
        None => {
            looked = NextBoot::look(probe, &seen.facts);
            &looked
        }
    };
    let mut report = check::judge_next_boot(next, &seen.facts, &seen.gpus);
    if args.record {
        let state = StateDir::open(Path::new("/").join(host::STATE)).into_diagnostic()?;
        super::next_boot::record(&state, &report).into_diagnostic()?;
    }
    let verdict = report.verdict;
    if quiet {
        report.links.retain(|l| l.status == check::Status::Fail);
    }
    if !quiet || verdict == Some(Verdict::Fail) {
        tell_or_json(args.look.output, &report, || report::next_boot(&report, verbose))?;
    }
    Ok(verdict.map_or(code::OK, exit))
}

pub(super) fn topology(args: &TopologyArgs) -> miette::Result<u8> {
    look(args.root.as_ref(), None, |seen, probe| {
        let drawn = topology::topology(probe, &seen.facts, &seen.gpus, args.all);
        print(&match args.output {
            Drawing::Text => report::topology_text(&drawn),
            Drawing::Json => json(&drawn)?,
            Drawing::Svg => report::topology_svg(&drawn),
        })?;
        Ok(code::OK)
    })
}
