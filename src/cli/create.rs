//! `gpuvm create ubuntu NAME`: a VM's entry in the manifest → its plan → as any apply. Nothing is written before the plan
//! was shown and approved.

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use miette::{IntoDiagnostic, miette};

use super::adopt::save;
use super::apply::{Consent, Machine, Talk, approve};
use super::plan::verdict;
use super::status::free;
use super::{Target, code, host, print, say, shell_word, tell_plan};
use crate::describe::{self, NewVm, Refused};
use crate::manifest::{self, NvidiaBranch, SshKey, UserName};
use crate::plan::{SavedPlan, Selection};
use crate::types::{ByteSize, DomainName, ResourceName};

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
    /// Virtual processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory.
    #[arg(long, default_value = "4GiB")]
    memory: ByteSize,
    /// The size of its disk.
    #[arg(long, default_value = "25GiB")]
    disk: ByteSize,
    /// Who gets in; whoever runs this where left out.
    #[arg(long)]
    user: Option<UserName>,
    /// A key that lets in: `file:alice.pub` beside the manifest, `file:/root/key.pub`, `gh:NAME`, `gl:NAME`, or a key itself.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<SshKey>,
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
            create(&args.vm, Begins { image: &image, file: None }, args.desktop, args.nvidia.clone(), talk)
        }
        What::Debian(args) => {
            let image = format!("debian-{}", args.release);
            built_in(&image)?;
            create(&args.vm, Begins { image: &image, file: None }, false, None, talk)
        }
    }
}

/// What a VM's disk begins as: an image by its name; one that is a file of the host's with that and its sha256.
pub(super) struct Begins<'a> {
    pub image: &'a str,
    pub file: Option<(String, String)>,
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
    let (mut machine, mut state) = Machine::open(args.target.root.as_deref())?;
    let live = host::live();
    free(&state, matches!(machine, Machine::This))?;
    let before = manifest::load(&args.target.file)?;
    if let Err(other) = host::is_meant(&before, machine.probe(&live)) {
        say(&format!("{other}\n"));
        return Ok(code::REFUSED);
    }
    let new = NewVm {
        name: args.name.clone(),
        image: begins.image.parse().into_diagnostic()?,
        image_file: begins.file,
        cpus: args.cpus,
        memory: args.memory,
        disk: args.disk,
        user: who(args)?,
        keys: keys(args)?,
        network: args.network.clone(),
        address: args.address.as_ref().map(ToString::to_string),
        gateway: args.gateway.as_ref().map(ToString::to_string),
        gpus: args.gpus.clone(),
        desktop,
        nvidia,
        start: !args.no_start,
    };
    let (shown, text) =
        describe::new_vm(&new, &before).map_err(|Refused { why, help }| miette!(help = help, "{why}"))?;
    print(&shown)?;
    if args.print {
        say("nothing was changed\n");
        return Ok(code::OK);
    }
    print("\n")?;
    // Written beside the manifest and read as it will be: a key's file is looked for, and every rule is held.
    let path = &args.target.file;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let trial =
        tempfile::Builder::new().prefix(".gpuvm-create-").suffix(".yaml").tempfile_in(folder).into_diagnostic()?;
    std::fs::write(trial.path(), &text).into_diagnostic()?;
    let read = manifest::load(trial.path())?;
    drop(trial);
    let loaded = manifest::reload(&before.path, text, read.files)?;

    let only = format!("libvirt-domain/{}", new.name).parse().into_diagnostic()?;
    let selection = Selection { only: vec![only], ..Selection::default() };
    let past = state.past().into_diagnostic()?;
    let (plan, _) = host::plan_now(&loaded, &selection, machine.probe(&live), &past);
    if verdict(&plan) == code::ERROR {
        tell_plan(&plan, talk.detail)?;
        say(&format!("`{}` is as it was\n", path.display()));
        return Ok(code::ERROR);
    }
    let order = SavedPlan::new(plan, selection, host::saved_manifest(&loaded)?);
    let consent = Consent { yes: args.yes, reboot: args.reboot, at: None };
    let ended = approve(order.into(), &mut machine, &mut state, consent, talk, || {
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

/// Whoever runs this, unless that is root, who does not log in.
fn who(args: &VmArgs) -> miette::Result<UserName> {
    if let Some(user) = &args.user {
        return Ok(user.clone());
    }
    let names = ["SUDO_USER", "USER"].into_iter().filter_map(|name| std::env::var(name).ok());
    let user = names.filter(|n| n != "root").find_map(|n| n.parse().ok());
    match user {
        Some(user) => Ok(user),
        None => asked("user of the guest", "--user alice"),
    }
}

fn keys(args: &VmArgs) -> miette::Result<Vec<SshKey>> {
    match args.keys.is_empty() {
        false => Ok(args.keys.clone()),
        true => Ok(vec![asked("key that lets in (file:alice.pub, gh:NAME, …)", "--key file:alice.pub")?]),
    }
}

/// Asks on a terminal; without one, says what to write.
fn asked<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, option: &str) -> miette::Result<T> {
    if !std::io::stdin().is_terminal() {
        return Err(miette!(help = format!("say it: {option}"), "there is no {what}, and no terminal to ask on"));
    }
    loop {
        say(&format!("{what}: "));
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).into_diagnostic()? == 0 {
            return Err(miette!(help = format!("say it: {option}"), "there is no {what}"));
        }
        match line.trim().parse() {
            Ok(value) => return Ok(value),
            Err(why) => say(&format!("{why}\n")),
        }
    }
}
