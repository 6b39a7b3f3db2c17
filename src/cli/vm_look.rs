//! What is asked about VMs: which there are, what one is and why it does not start, when it has come up, its log, its
//! console, a shell in its guest. None of it changes anything on the host.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use miette::{IntoDiagnostic, miette};

use super::apply::Talk;
use super::{Output, code, host, print, say, tell};
use crate::apply::StateDir;
use crate::check::{self, Asked, Looked, Status};
use crate::facts::{self, HostFacts};
use crate::gpu;
use crate::host::{Answer, Domain, Probe, Program, Snapshot, Virtualisation, live};
use crate::manifest::UserName;
use crate::plan::{Past, Step};
use crate::report::{self, Off};
use crate::resource::shared_gpu::shared_now;
use crate::types::DomainName;
use crate::vm::{self, Agent, Around, Hinder, Run, Told, Vm};

/// Arguments of `gpuvm vm list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// How it is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) output: Output,
}

/// Arguments of `gpuvm vm info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The VM.
    name: DomainName,
    #[command(flatten)]
    list: ListArgs,
}

/// Arguments of `gpuvm vm wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The VM.
    name: DomainName,
    /// What for.
    #[arg(long = "for", value_enum, value_name = "WHAT")]
    what: Until,
    /// How long, in seconds; ends with 3 when that is over.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// How it is told on stdout where it got to.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Until {
    /// It runs.
    Running,
    /// It is off.
    Stopped,
    /// The agent in its guest answers.
    Agent,
    /// One of its addresses answers as an ssh server, which stays: a guest that gpuvm made is waited for until its agent
    /// answers too, for cloud-init starts ssh anew at a first boot, and the agent after that; where no agent comes, until
    /// ssh has answered for a minute without a break.
    Ssh,
}

/// Arguments of `gpuvm vm logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The VM.
    name: DomainName,
    /// So many of its last lines; all where none is said.
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Arguments of `gpuvm vm console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The VM.
    name: DomainName,
    /// Throw out whoever has its console.
    #[arg(long)]
    force: bool,
    /// Refused: a guest of a recorded host does not run anywhere.
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
}

/// Arguments of `gpuvm vm ssh`.
#[derive(Debug, Args)]
pub struct SshArgs {
    /// The VM.
    name: DomainName,
    /// The user in the guest; where none is said, the one that the manifest gave it, or else ssh's own choice.
    #[arg(short = 'l', long, value_name = "USER")]
    user: Option<String>,
    /// Refused: a guest of a recorded host does not run anywhere.
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
    /// A command in place of a shell.
    #[arg(last = true)]
    command: Vec<String>,
}

/// A host's VMs, asked once.
struct Seen<'a> {
    probe: &'a dyn Probe,
    facts: HostFacts,
    past: Past,
    told: Told,
    known: std::sync::Arc<Virtualisation>,
}

impl Seen<'_> {
    fn around(&self) -> Around<'_> {
        Around { pci: &self.facts.pci, past: &self.past, told: &self.told }
    }
    fn domain(&self, name: &DomainName) -> miette::Result<&Domain> {
        find(&self.known, name)
    }
    fn vm(&self, name: &DomainName) -> miette::Result<Vm> {
        Ok(vm::vm(self.probe, self.domain(name)?, &self.known, self.around()))
    }
}

/// The VM that is meant.
pub(super) fn find<'a>(known: &'a Virtualisation, name: &DomainName) -> miette::Result<&'a Domain> {
    known.domain(name.as_str()).ok_or_else(|| {
        let names: Vec<&str> = known.domains.iter().map(|d| d.name.as_str()).collect();
        let help =
            if names.is_empty() { "this host has none".to_owned() } else { format!("there is: {}", names.join(", ")) };
        miette!(help = help, "there is no VM `{name}`")
    })
}

/// What libvirt knows; else why it cannot be asked.
pub(super) fn ask(probe: &dyn Probe) -> miette::Result<std::sync::Arc<Virtualisation>> {
    match probe.virtualisation().map_err(host::told)? {
        Answer::Value(known) => Ok(known),
        Answer::Absent => Err(miette!(
            help = "see what is missing: gpuvm plan; or start it: systemctl start libvirtd.socket",
            "libvirt is not installed, or its daemon has no socket"
        )),
        Answer::Denied => Err(miette!(
            help = "be root, or one of libvirt's: adduser $USER libvirt, and log in anew",
            "this user may not ask libvirt"
        )),
    }
}

/// Opens the host, looks once, and gives it to `show`.
fn look(root: Option<&Path>, show: impl FnOnce(&Seen<'_>) -> miette::Result<u8>) -> miette::Result<u8> {
    let (probe, state) = host::open(root)?;
    let snapshot = Snapshot::new(probe.as_ref());
    let known = ask(&snapshot)?;
    let facts = facts::collect(&snapshot);
    // Another user than root may not read it, and is told of the rest.
    let past = StateDir::open(state).and_then(|s| s.past()).unwrap_or_default();
    let told = told(&snapshot, root);
    show(&Seen { probe: &snapshot, facts, past, told, known })
}

/// On a recorded host no time has passed since it was recorded.
pub(super) fn told(probe: &dyn Probe, root: Option<&Path>) -> Told {
    Told::ask(probe, root.is_none().then(|| jiff::Timestamp::now().as_second()))
}

pub(super) fn list(args: &ListArgs) -> miette::Result<u8> {
    look(args.root.as_deref(), |seen| {
        let all = vm::all(seen.probe, &seen.known, seen.around());
        print(&match args.output {
            Output::Json => json(&serde_json::json!({ "format": 1, "vms": all }))?,
            Output::Text => report::vm_list(&all),
        })?;
        Ok(code::OK)
    })
}

/// The list, and of each VM its name and all that is known of it.
pub(super) fn all(root: Option<&Path>) -> miette::Result<(String, Vec<(String, String)>)> {
    let (mut list, mut infos) = (String::new(), Vec::new());
    look(root, |seen| {
        let all = vm::all(seen.probe, &seen.known, seen.around());
        list = report::vm_list(&all);
        for vm in &all {
            let off = match (vm.state, vm.name.parse::<DomainName>()) {
                (Run::Off, Ok(name)) => off(seen, &name, vm, root)?,
                _ => Off::default(),
            };
            infos.push((vm.name.clone(), report::vm_info(vm, &off, &seen.told.unknown, root.is_some())));
        }
        Ok(code::OK)
    })?;
    Ok((list, infos))
}

pub(super) fn json(value: &serde_json::Value) -> miette::Result<String> {
    Ok(serde_json::to_string_pretty(value).into_diagnostic()? + "\n")
}

pub(super) fn info(args: &InfoArgs) -> miette::Result<u8> {
    look(args.list.root.as_deref(), |seen| {
        let vm = seen.vm(&args.name)?;
        let off = match vm.state {
            Run::Off => off(seen, &args.name, &vm, args.list.root.as_deref())?,
            _ => Off::default(),
        };
        match args.list.output {
            Output::Json => print(&json(&serde_json::json!({ "format": 1, "vm": vm, "off": off }))?)?,
            Output::Text => tell(&report::vm_info(&vm, &off, &seen.told.unknown, args.list.root.is_some()))?,
        }
        Ok(code::OK)
    })
}

/// Why a VM that is off may not start.
fn off(seen: &Seen<'_>, name: &DomainName, vm: &Vm, root: Option<&Path>) -> miette::Result<Off> {
    let mut hinders = vm::hinders(seen.probe, seen.domain(name)?, &seen.known, &seen.facts);
    hinders.extend(gpus(seen, vm));
    let log = seen.probe.text(&vm::log_path(name)).into_diagnostic()?.value().unwrap_or_default();
    Ok(Off { hinders, last_start: failed_start(name, root), log: vm::tail(&log, 6) })
}

/// What the chain of its GPUs says against them.
fn gpus(seen: &Seen<'_>, vm: &Vm) -> Vec<Hinder> {
    if vm.gpus().next().is_none() {
        return Vec::new();
    }
    let all = gpu::collect(seen.probe, &seen.facts);
    let looked = Looked::look(seen.probe, &seen.facts, &all);
    let slots: std::collections::BTreeSet<_> = vm.devices.iter().map(|d| d.slot).collect();
    // Neighbours in a group that are for other VMs hinder nothing while those are off, which is told beside this.
    let for_vms = seen.facts.pci.values().filter(|f| f.driver.as_deref() == Some("vfio-pci"));
    let on_vfio: std::collections::BTreeSet<_> = for_vms.map(|f| f.address.slot).collect();
    let shared = shared_now(seen.probe);
    let mut hinders = Vec::new();
    for gpu in all.iter().filter(|g| slots.contains(&g.slot)) {
        let name = vm.devices.iter().find(|d| d.slot == gpu.slot).and_then(|d| d.name.clone());
        let release = shared.iter().find(|s| s.slot == gpu.slot).map(|s| &s.release);
        let asked = Asked {
            name,
            given: slots.union(&on_vfio).copied().collect(),
            shared: release.map(|all| all.iter().map(ToString::to_string).collect()),
            vms: vec![(vm.name.clone(), slots.clone())],
            ..Asked::default()
        };
        let explained = check::explain(&seen.facts, &looked, &all, gpu, &asked);
        let named = explained.name.clone().unwrap_or_else(|| gpu.slot.to_string());
        // What the next boot of the host will come to does not keep a VM from starting now.
        let now = |l: &check::Link| l.status == Status::Fail && !["initramfs", "next boot"].contains(&l.name);
        hinders.extend(explained.links.into_iter().filter(now).map(|link| Hinder {
            why: format!("GPU {named}: {}: {}", link.name, link.says),
            help: link.fix.first().cloned().unwrap_or_else(|| format!("gpuvm gpu explain {}", gpu.slot)),
        }));
    }
    hinders
}

/// How the last start that a run tried failed; `None` where it did not, or where runs may not be read.
fn failed_start(name: &DomainName, root: Option<&Path>) -> Option<String> {
    let state = StateDir::open(host::state_of(root).ok()?).ok()?;
    for run in state.runs().into_iter().rev() {
        let journal = state.journal_lines(run).ok()?;
        let is = |step: &Step| matches!(step, Step::StartDomain { name: of } if of == name);
        let Some(last) = journal.iter().rev().find(|l| is(&l.step)) else { continue };
        if last.state != "failed" {
            return None;
        }
        let said = state.ending(run).map_or(format!("run {run}"), |e| e.text);
        return said.lines().next().map(str::to_owned);
    }
    None
}

/// How often is looked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub(super) fn wait(args: &WaitArgs, talk: Talk<'_>) -> miette::Result<u8> {
    let begun = Instant::now();
    let limit = Duration::from_secs(args.timeout);
    let (probe, _) = host::open(args.root.as_deref())?;
    let (mut shown, mut since) = (String::new(), None);
    loop {
        let (there, so_far) = reached(args, probe.as_ref(), &mut since)?;
        let over = begun.elapsed() >= limit;
        if there || over {
            match args.output {
                Output::Json => print(&json(&serde_json::json!({
                    "format": 1, "vm": args.name, "reached": there, "state": so_far,
                }))?)?,
                Output::Text if there => print(&format!("{}: {so_far}\n", args.name))?,
                Output::Text => say(&format!("{}: {so_far}, after {} s\n", args.name, args.timeout)),
            }
            return Ok(if there { code::OK } else { code::WAITS });
        }
        if so_far != shown && !talk.quiet {
            say(&format!("{}: {so_far}\n", args.name));
            shown = so_far;
        }
        std::thread::sleep(LOOK_AGAIN.min(limit.saturating_sub(begun.elapsed())));
    }
}

/// How long ssh has to have answered without a break in a guest that may be at its first boot, and whose agent is silent.
const SETTLED: Duration = Duration::from_secs(60);

/// Whether an ssh server that has answered for so long is there to stay. Only a guest that cloud-init sets up starts it anew
/// (its modules set_passwords and ssh, in the stages before the one in which packages and commands come, and the agent
/// with them).
fn stays(seeded: bool, agent: Agent, answered_for: Duration) -> bool {
    !seeded || agent == Agent::Answers || answered_for >= SETTLED
}

/// Whether a VM is where it is waited for, and where it is. `since`: when ssh began to answer, without a break since.
fn reached(args: &WaitArgs, below: &dyn Probe, since: &mut Option<Instant>) -> miette::Result<(bool, String)> {
    let probe = Snapshot::new(below);
    let known = ask(&probe)?;
    // What it is named after and what it did before make no difference to where it can be reached.
    let (pci, past, told) = (Default::default(), Past::default(), told(&probe, args.root.as_deref()));
    let vm = vm::vm(&probe, find(&known, &args.name)?, &known, Around { pci: &pci, past: &past, told: &told });
    let running = vm.state == Run::Running;
    let state = vm.state.word().to_owned();
    Ok(match args.what {
        Until::Running => (running, state),
        Until::Stopped => (vm.state == Run::Off, state),
        Until::Agent if vm.agent == Agent::None => {
            return Err(miette!("VM `{}` has no channel for an agent: there is nothing to wait for", vm.name));
        }
        Until::Agent => match (running, vm.agent) {
            (true, Agent::Answers) => (true, "its agent answers".to_owned()),
            (true, _) => (false, "its agent does not answer yet".to_owned()),
            _ => (false, state),
        },
        Until::Ssh => match answers(&vm).inspect(|_| _ = since.get_or_insert_with(Instant::now)) {
            Some(at) if stays(vm.user.is_some(), vm.agent, since.map(|s| s.elapsed()).unwrap_or_default()) => {
                (true, format!("ssh answers at {at}"))
            }
            Some(at) => (false, format!("ssh answers at {at}, and its guest may be at its first boot still")),
            None if since.take().is_some() && running => (false, "ssh answered, and does not any more".to_owned()),
            None if !running => (false, state),
            None => {
                let known: Vec<String> = vm.reachable().iter().map(|a| a.ip.to_string()).collect();
                match known.is_empty() {
                    true => (false, "no address is known yet".to_owned()),
                    false => (false, format!("no ssh server answers yet at {}", known.join(", "))),
                }
            }
        },
    })
}

/// How long an ssh server may take to say what it is.
const BANNER_LIMIT: Duration = Duration::from_secs(2);

/// The best address of a VM at which an ssh server answers.
fn answers(vm: &Vm) -> Option<std::net::IpAddr> {
    let speaks = |ip: &std::net::IpAddr| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(*ip, 22), BANNER_LIMIT).ok()?;
        stream.set_read_timeout(Some(BANNER_LIMIT)).ok()?;
        let mut banner = [0; 4];
        stream.read_exact(&mut banner).ok()?;
        (&banner == b"SSH-").then_some(())
    };
    vm.reachable().into_iter().map(|a| a.ip).find(|ip| speaks(ip).is_some())
}

pub(super) fn logs(args: &LogsArgs) -> miette::Result<u8> {
    let (probe, _) = host::open(args.root.as_deref())?;
    let path = vm::log_path(&args.name);
    let text = match probe.text(&path).into_diagnostic()? {
        Answer::Value(text) => text,
        Answer::Absent => {
            return Err(miette!(
                help = "it has one once it was started; which there are: gpuvm vm list",
                "there is no log of `{}` (`{}`)",
                args.name,
                path.display()
            ));
        }
        Answer::Denied => {
            let help = format!("sudo gpuvm vm logs {}", args.name);
            return Err(miette!(help = help, "only root may read `{}`", path.display()));
        }
    };
    let lines: Vec<&str> = text.lines().collect();
    let from = args.lines.map_or(0, |n| lines.len().saturating_sub(n));
    let shown: String =
        lines.get(from..).unwrap_or_default().iter().map(|l| format!("{}\n", report::safe(l))).collect();
    print(&shown)?;
    Ok(code::OK)
}

/// Nothing behind a record answers.
fn needs_a_guest(root: Option<&Path>, name: &DomainName) -> miette::Result<()> {
    match root {
        None => Ok(()),
        Some(dir) => Err(miette!(
            help = format!("what is known of it: gpuvm vm info {name}"),
            "`{}` is a recorded host: no guest runs there that one could get into",
            dir.display()
        )),
    }
}

pub(super) fn console(args: &ConsoleArgs, talk: Talk<'_>) -> miette::Result<u8> {
    let name = &args.name;
    let played = match &args.root {
        None => None,
        Some(dir) => match host::recorded(dir)?.console(name).into_diagnostic()? {
            Some(line) => Some(line),
            None => return needs_a_guest(Some(dir), name).map(|()| code::ERROR),
        },
    };
    if !talk.quiet {
        say(&format!("the console of {name}; Ctrl-] leaves it; Enter shows where it is\n"));
    }
    let left = match played {
        None => live::console(name, args.force),
        Some(line) => live::played_console(name, line),
    };
    match left.map_err(host::told)? {
        live::Left::ByKey => say("\n"),
        live::Left::AtItsEnd => say("\nthe console ended\n"),
    }
    Ok(code::OK)
}

pub(super) fn ssh(args: &SshArgs) -> miette::Result<u8> {
    needs_a_guest(args.root.as_deref(), &args.name)?;
    let mut words = Vec::new();
    look(None, |seen| {
        let vm = seen.vm(&args.name)?;
        if vm.state != Run::Running {
            let help = format!("gpuvm vm start {0} && gpuvm vm wait {0} --for ssh", vm.name);
            return Err(miette!(help = help, "VM `{}` is {}", vm.name, vm.state.word()));
        }
        let all = vm.reachable();
        let Some(first) = all.first() else {
            return Err(miette!(
                help = "the guest agent tells it: install qemu-guest-agent in the guest; or look on the console",
                "no address of VM `{}` is known",
                vm.name
            ));
        };
        let at = answers(&vm).unwrap_or(first.ip);
        // A VM's key is that VM's, whatever address it has today; a VM made anew has a new one.
        words.extend(["-o".to_owned(), format!("HostKeyAlias=gpuvm-{}-{}", vm.name, vm.uuid)]);
        words.extend(["-o".to_owned(), "StrictHostKeyChecking=accept-new".to_owned()]);
        // What a definition says may be anyone's: only what could be a user is passed on.
        let declared = || vm.user.clone().filter(|user| user.parse::<UserName>().is_ok());
        if let Some(user) = args.user.clone().or_else(declared) {
            words.extend(["-l".to_owned(), user]);
        }
        words.extend(["--".to_owned(), at.to_string()]);
        words.extend(args.command.iter().cloned());
        Ok(code::OK)
    })?;
    // ssh's own exit code is the answer from here on.
    Err(miette!("{}", live::become_program(Program::Ssh, &words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ssh_server_of_a_guest_that_is_set_up_is_not_there_to_stay() {
        let long = SETTLED;
        let short = long - Duration::from_millis(1);
        assert!(stays(false, Agent::None, Duration::ZERO) && stays(false, Agent::Silent, Duration::ZERO));
        assert!(stays(true, Agent::Answers, Duration::ZERO));
        for agent in [Agent::None, Agent::Silent] {
            assert!(!stays(true, agent, short) && stays(true, agent, long), "{agent:?}");
        }
    }
}
