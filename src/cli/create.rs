//! `gpuvm create ubuntu NAME`: a VM's entry in the manifest → its plan → as any apply. Nothing is written before the plan
//! was shown and approved.

use std::io::IsTerminal;
use std::path::Path;
use std::str::FromStr;

use clap::{Args, Subcommand};
use miette::{IntoDiagnostic, miette};

use super::adopt::save;
use super::agent_keys::GivenKey;
use super::apply::{Consent, Machine, ResultArgs, Talk, approve};
use super::defaults::{USUAL, defaults, manifest_of};
use super::plan::verdict;
use super::status::free;
use super::{Target, code, host, print, say, shell_word};
use crate::apply::Order;
use crate::describe::{self, NewVm, Refused};
use crate::manifest::{self, Defaults, DeviceUse, Loaded, NvidiaBranch, UserName};
use crate::plan::{SavedPlan, Selection};
use crate::types::{ByteSize, DomainName, ResourceName, safe_line};
use crate::undo::Edited;

/// Arguments of `gpuvm create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A VM from Ubuntu's image.
    Ubuntu(UbuntuArgs),
    /// A VM from Debian's image.
    Debian(DebianArgs),
}

/// What every VM is asked for.
#[derive(Debug, Args)]
pub struct VmArgs {
    /// The VM's name.
    name: DomainName,
    #[command(flatten)]
    target: Target,
    /// Virtual processors; 2 where left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    cpus: Option<u32>,
    /// Memory; 4GiB where left out.
    #[arg(long)]
    memory: Option<ByteSize>,
    /// The size of its disk; 25GiB where left out.
    #[arg(long)]
    disk: Option<ByteSize>,
    /// Where its disk is: one of the manifest's `storage`; the default pool where left out.
    #[arg(long)]
    pool: Option<ResourceName>,
    /// Who gets in; whoever runs this where left out.
    #[arg(long)]
    user: Option<UserName>,
    /// A key that lets in: `file:alice.pub` beside the manifest, `file:/root/key.pub`, `gh:NAME`, `gl:NAME`, or a key
    /// itself; `agent`: those of your ssh agent, which are written into the manifest.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<GivenKey>,
    /// The bridge or one of the manifest's networks; left out where there is one only.
    #[arg(long)]
    network: Option<ResourceName>,
    /// Its address with the length of the prefix (192.168.1.50/24); by DHCP where left out.
    #[arg(long)]
    address: Option<manifest::IpWithPrefix>,
    /// With `--address`: the gateway.
    #[arg(long, requires = "address")]
    gateway: Option<manifest::Ip>,
    /// A GPU, by its name in the manifest.
    #[arg(long = "gpu", value_name = "NAME")]
    gpus: Vec<ResourceName>,
    /// Leave it to a person to start it, now and with the host.
    #[arg(long)]
    no_start: bool,
    /// Print the entry, and change nothing.
    #[arg(long, conflicts_with = "yes")]
    print: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Boot the host again where the plan needs it, and go on afterwards.
    #[arg(long)]
    reboot: bool,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct UbuntuArgs {
    #[command(flatten)]
    vm: VmArgs,
    /// The release.
    #[arg(long, default_value = "24.04")]
    release: String,
    /// Make a desktop of it: that takes half an hour and more.
    #[arg(long)]
    desktop: bool,
    /// NVIDIA's driver of this branch.
    #[arg(long, value_name = "BRANCH")]
    nvidia: Option<NvidiaBranch>,
}

#[derive(Debug, Args)]
struct DebianArgs {
    #[command(flatten)]
    vm: VmArgs,
    /// The release.
    #[arg(long, default_value = "13")]
    release: String,
}

pub(super) fn run(args: &CreateArgs, talk: Talk<'_>) -> miette::Result<u8> {
    match &args.what {
        What::Ubuntu(args) => {
            let image = format!("ubuntu-{}", args.release);
            built_in(&image)?;
            create(&args.vm, Begins { image: &image, file: None, bios: false }, args.desktop, args.nvidia.clone(), talk)
        }
        What::Debian(args) => {
            let image = format!("debian-{}", args.release);
            built_in(&image)?;
            create(&args.vm, Begins { image: &image, file: None, bios: false }, false, None, talk)
        }
    }
}

/// What a VM's disk begins as: an image by its name; one that is a file of the host's with that and its sha256.
pub(super) struct Begins<'a> {
    pub image: &'a str,
    pub file: Option<(String, String)>,
    /// Whether that is started by BIOS.
    pub bios: bool,
}

impl VmArgs {
    /// The recorded host that it is for.
    pub(super) fn root(&self) -> Option<&std::path::Path> {
        self.target.root.as_deref()
    }
}

fn built_in(image: &str) -> miette::Result<()> {
    if crate::image::builtin(image).is_none() {
        return Err(miette!(
            help = format!("built in: {}, and Ubuntu's other releases by number", crate::image::names().join(", ")),
            "there is no image `{image}`"
        ));
    }
    Ok(())
}

pub(super) fn create(
    args: &VmArgs,
    begins: Begins<'_>,
    desktop: bool,
    nvidia: Option<NvidiaBranch>,
    talk: Talk<'_>,
) -> miette::Result<u8> {
    let talk = args.result.talk(talk);
    let (mut machine, mut state) = Machine::open(args.target.root.as_deref())?;
    let live = host::live();
    free(&state, matches!(machine, Machine::This))?;
    let root = args.target.root.as_deref();
    let file = match args.target.file == Path::new(USUAL) && !args.target.file.exists() {
        true => manifest_of(root, machine.probe(&live))?.unwrap_or_else(|| args.target.file.clone()),
        false => args.target.file.clone(),
    };
    let before = manifest::load(&file)?;
    let usual = match defaults(root, machine.probe(&live)) {
        Ok(usual) => usual.filter(|usual| same_file(&usual.manifest, &file)),
        // Of another manifest, or none: everything can be said on the command line.
        Err(e) => {
            say(&format!("the defaults of `vmctl` are left out: {e}\n"));
            None
        }
    };
    if let Err(other) = host::is_meant(&before, machine.probe(&live)) {
        say(&format!("{other}\n"));
        return Ok(code::REFUSED);
    }
    let new = told(args, begins, desktop, nvidia, &before, usual.as_ref())?;
    let (shown, text) =
        describe::new_vm(&new, &before).map_err(|Refused { why, help }| miette!(help = help, "{why}"))?;
    if args.print {
        print(&shown)?;
        say("nothing was changed\n");
        return Ok(code::OK);
    }
    talk.beside(&format!("{shown}\n"))?;
    // Read as it will be: a key's file is looked for, and every rule is held.
    let path = &file;
    let loaded = manifest::load_text(&before.path, text).inspect_err(|_| {
        say(&format!(
            "the entry was not written, and `{}` is as it was; with the entry, it would be:\n",
            path.display()
        ));
    })?;

    let only = format!("libvirt-domain/{}", new.name).parse().into_diagnostic()?;
    let selection = Selection { only: vec![only], ..Selection::default() };
    let past = state.past().into_diagnostic()?;
    let (plan, _) = host::plan_now(&loaded, &selection, machine.probe(&live), &past);
    if verdict(&plan) == code::ERROR {
        talk.plan(&plan, talk.detail)?;
        say(&format!("`{}` is as it was\n", path.display()));
        return talk.stopped(code::ERROR, &crate::report::refused(&plan));
    }
    let order = SavedPlan::new(plan, selection, host::saved_manifest(&loaded)?);
    let consent = Consent { yes: args.yes, reboot: args.reboot, at: None };
    let edited = Some(Edited::new(path, vec![format!("`vms.{}` is new", new.name)]));
    let order = Order { edited, ..order.into() };
    let ended = approve(order, &mut machine, &mut state, consent, talk, || {
        if std::fs::read_to_string(path).into_diagnostic()? != before.text {
            return Err(miette!("`{}` changed in the meantime; nothing was changed", path.display()));
        }
        save(path, loaded.text.as_bytes(), 0o644, true)
    })?;
    if ended == code::OK {
        say(&format!(
            "`{}` has it; the rest of it: gpuvm plan -f {}\n",
            path.display(),
            shell_word(&path.to_string_lossy())
        ));
    }
    Ok(ended)
}

/// Whether two paths lead to one file that is there.
fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// What was said, what the defaults say, and for the rest the usual, which a person at a terminal is asked about.
fn told(
    args: &VmArgs,
    begins: Begins<'_>,
    desktop: bool,
    nvidia: Option<NvidiaBranch>,
    before: &Loaded,
    usual: Option<&Defaults>,
) -> miette::Result<NewVm> {
    // Whoever says that nothing is to be asked, or asks for the entry alone, takes the usual.
    let asks = std::io::stdin().is_terminal() && !args.yes && !args.print;
    let m = &before.manifest;
    let user = usual.and_then(|usual| usual.user.as_ref());
    let network = args.network.clone().or_else(|| usual.and_then(|usual| usual.network.clone()));
    let networks: Vec<&str> =
        m.bridge.iter().map(|b| b.name.as_str()).chain(m.networks.keys().map(ResourceName::as_str)).collect();
    let network = match (network, networks.first()) {
        (None, Some(first)) if asks && networks.len() > 1 => {
            Some(offered(&format!("network ({})", networks.join(", ")), first, |n: &ResourceName| {
                networks.contains(&n.as_str()).then_some(()).ok_or_else(|| format!("there is no network `{n}`"))
            })?)
        }
        (network, _) => network,
    };
    let any = |_: &_| Ok(());
    let gpus: Vec<&str> =
        m.gpus.iter().filter(|(_, gpu)| gpu.usage != DeviceUse::Host).map(|(name, _)| name.as_str()).collect();
    Ok(NewVm {
        name: args.name.clone(),
        image: begins.image.parse().into_diagnostic()?,
        image_file: begins.file,
        bios: begins.bios,
        cpus: match args.cpus {
            Some(cpus) => cpus,
            None if asks => offered("processors", "2", |n: &u32| match n {
                1..=1024 => Ok(()),
                _ => Err("1 to 1024".to_owned()),
            })?,
            None => 2,
        },
        memory: match args.memory {
            Some(memory) => memory,
            None if asks => offered("memory", "4GiB", |_: &ByteSize| Ok(()))?,
            None => ByteSize::from_gib(4),
        },
        disk: match args.disk {
            Some(disk) => disk,
            None if asks => offered("disk", "25GiB", |_: &ByteSize| Ok(()))?,
            None => ByteSize::from_gib(25),
        },
        pool: args.pool.clone().or_else(|| usual.and_then(|usual| usual.pool.clone())),
        gpus: match (&args.gpus[..], &gpus[..]) {
            ([], [_, ..]) if asks => {
                let known = |n: &OneOrNone| match &n.0 {
                    Some(n) if !gpus.contains(&n.as_str()) => Err(format!("there is no GPU `{n}` for VMs")),
                    _ => Ok(()),
                };
                let one: OneOrNone = offered(&format!("GPU ({}, none)", gpus.join(", ")), "none", known)?;
                one.0.into_iter().collect()
            }
            (said, _) => said.to_vec(),
        },
        user: match (&args.user, user, whoever()) {
            (Some(said), ..) => said.clone(),
            (None, Some(usual), _) => usual.name.clone(),
            (None, None, Some(me)) if asks => offered("user of the guest", me.as_str(), any)?,
            (None, None, Some(me)) => me,
            (None, None, None) => asked("user of the guest", "--user alice")?,
        },
        keys: match (&args.keys[..], user) {
            ([], Some(usual)) => usual.ssh_keys.clone(),
            ([], None) => {
                let key: GivenKey =
                    asked("key that lets in (file:alice.pub, gh:NAME, agent, …)", "--key file:alice.pub")?;
                key.written()?
            }
            (said, _) => said.iter().map(GivenKey::written).collect::<miette::Result<Vec<_>>>()?.concat(),
        },
        network,
        address: args.address.as_ref().map(ToString::to_string),
        gateway: args.gateway.as_ref().map(ToString::to_string),
        desktop,
        nvidia,
        start: !args.no_start,
    })
}

/// Whoever runs this, unless that is root, who does not log in.
fn whoever() -> Option<UserName> {
    let names = ["SUDO_USER", "USER"].into_iter().filter_map(|name| std::env::var(name).ok());
    names.filter(|n| n != "root").find_map(|n| n.parse().ok())
}

/// A name, or the word `none`.
struct OneOrNone(Option<ResourceName>);

impl FromStr for OneOrNone {
    type Err = <ResourceName as FromStr>::Err;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "none" { None } else { Some(text.parse()?) }))
    }
}

/// Asks on a terminal, with an answer that is taken where nothing is said.
fn offered<T: FromStr<Err: std::fmt::Display>>(
    what: &str,
    usual: &str,
    good: impl Fn(&T) -> Result<(), String>,
) -> miette::Result<T> {
    loop {
        say(&format!("{what} [{usual}]: "));
        let answer = line()?.ok_or_else(|| miette!("there is no answer; nothing was changed"))?;
        let answer = if answer.is_empty() { usual } else { &answer };
        match answer.parse::<T>().map_err(|e| e.to_string()).and_then(|value| good(&value).map(|()| value)) {
            Ok(value) => return Ok(value),
            Err(why) => say(&format!("{}\n", safe_line(&why))),
        }
    }
}

/// Asks on a terminal; without one, says what to write.
fn asked<T: FromStr<Err: std::fmt::Display>>(what: &str, option: &str) -> miette::Result<T> {
    if !std::io::stdin().is_terminal() {
        return Err(miette!(help = format!("say it: {option}"), "there is no {what}, and no terminal to ask on"));
    }
    loop {
        say(&format!("{what}: "));
        let Some(answer) = line()? else {
            return Err(miette!(help = format!("say it: {option}"), "there is no {what}"));
        };
        match answer.parse() {
            Ok(value) => return Ok(value),
            Err(why) => say(&format!("{}\n", safe_line(&why.to_string()))),
        }
    }
}

/// A line of a person's; `None` where there is none to come.
fn line() -> miette::Result<Option<String>> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line).into_diagnostic()? {
        0 => Ok(None),
        _ => Ok(Some(line.trim().to_owned())),
    }
}
