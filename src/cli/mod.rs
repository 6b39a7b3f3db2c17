//! The command line: its arguments, and one file a command that names the stages it goes through.

mod adopt;
mod agent_keys;
mod apply;
mod create;
mod defaults;
mod facts;
mod gpu;
mod history;
mod host;
mod image;
mod init;
mod ip;
mod move_gpu;
mod next_boot;
mod plan;
mod progress;
mod rehearsal;
mod run;
mod schema;
mod snapshot;
mod source;
mod status;
mod stop;
mod template;
mod tui;
mod undo;
mod validate;
mod vm;
mod vm_look;
mod vmctl;
mod write_attribute;

use std::path::PathBuf;
use std::process::ExitCode;

pub use host::plan_now;
pub use vmctl::{HELP as VMCTL_HELP, words};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Exit codes, as documented in the README.
pub mod code {
    /// In sync, or done.
    pub const OK: u8 = 0;
    /// An error, something blocked, or a verdict of FAIL.
    pub const ERROR: u8 = 1;
    /// Changes are pending.
    pub const CHANGES: u8 = 2;
    /// In sync, but something waits for a reboot or a guest's restart; a verdict of UNKNOWN.
    pub const WAITS: u8 = 3;
    /// Refused: stale plan, other host, beyond what was approved.
    pub const REFUSED: u8 = 4;
    /// Wrong usage.
    pub const USAGE: u8 = 64;
}

/// Brings a GPU virtualisation host to the state that host.yaml describes.
#[derive(Debug, Parser)]
#[command(name = "gpuvm", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more: what is in sync too, whole files, and what is logged for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only results and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// How logs are written: the log file of a run, and warnings on stderr. What a command answers has --output.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

impl Cli {
    /// Reads a command line. What is said from here on is about the host that it names.
    ///
    /// # Errors
    /// Wrong usage, and help and version, which are answers.
    pub fn read(words: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        rehearsal::begin(&matches);
        Self::from_arg_matches(&matches)
    }

    /// The least that is logged. A run has no terminal: what it logs is its log file, which says what it did.
    pub fn log_level(&self) -> &'static str {
        match (self.quiet, self.verbose) {
            (true, _) => "error",
            (_, 0) if matches!(self.command, Command::Run(_)) => "info",
            (_, 0) => "warn",
            (_, 1) => "debug",
            _ => "trace",
        }
    }

    /// The options that make another gpuvm log as this one.
    fn log_options(&self) -> Vec<String> {
        let mut options = vec!["-v".to_owned(); self.verbose.into()];
        if self.quiet {
            options.push("-q".to_owned());
        }
        if self.log_format == LogFormat::Json {
            options.push("--log-format=json".to_owned());
        }
        options
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What gpuvm can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what would change on this host, in which order, and why. Changes nothing.
    Plan(plan::PlanArgs),
    /// Carry the plan out, on this machine or, with `--root`, on a recorded one: a rehearsal.
    Apply(apply::ApplyArgs),
    /// Write a manifest that describes this host as it is, with comments; its plan is empty.
    Init(init::InitArgs),
    /// Take a VM, a bridge, a file or a binding that is there under management, as it is.
    Adopt(adopt::AdoptArgs),
    /// Write a new VM into the manifest, show its plan, and carry it out.
    Create(create::CreateArgs),
    /// Show how the last run stands, or follow one that is at work.
    Status(status::StatusArgs),
    /// List the runs: when, what was asked for, how each ended.
    History(history::HistoryArgs),
    /// Show one run: its plan, what it did and what not.
    Show(history::ShowArgs),
    /// Go back to the state before a run: a plan like any other, shown and approved.
    Undo(undo::UndoArgs),
    /// Check a manifest without looking at any host.
    Validate(validate::ValidateArgs),
    /// Print the JSON Schema of the manifest, for editors, or of a plan's JSON, for programs.
    Schema(schema::SchemaArgs),
    /// Show what gpuvm sees of a host, or record it to a folder.
    Facts(facts::FactsArgs),
    /// Show the GPUs, who uses them, and why they can or cannot be given to a VM. Changes nothing.
    Gpu(gpu::GpuArgs),
    /// Judge every GPU that is to be given to a VM, before the first reboot: PASS (0), FAIL (1) or UNKNOWN (3).
    Check(gpu::CheckArgs),
    /// List, fetch and delete the images that VMs' disks are made from.
    Image(image::ImageArgs),
    /// The VMs of this host: list, look at, start, stop, restart, delete them, and get into their guests.
    Vm(vm::VmArgs),
    /// The addresses on the host's networks: which are known, and whether one is free.
    Ip(ip::IpArgs),
    /// Host, GPUs, VMs, plan and runs on one screen, and what is done with VMs every day.
    Tui(tui::TuiArgs),
    /// Draw the machine: NUMA nodes, ports, slots, IOMMU groups, GPUs, disks, network cards, VMs.
    Topology(gpu::TopologyArgs),
    /// Carry out an approved run; started by `apply` and after a reboot.
    #[command(hide = true)]
    Run(run::RunArgs),
    /// Write an attribute of a PCI device, which may block for ever.
    #[command(hide = true)]
    WriteAttribute(write_attribute::WriteAttributeArgs),
}

/// How data is written to stdout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// A part of the manifest.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// Only these and what they need: KIND or KIND/NAME, as in the plan.
    #[arg(long, value_name = "KIND[/NAME]")]
    pub only: Vec<crate::plan::Selector>,
    /// Not these, and not what needs them.
    #[arg(long, value_name = "KIND[/NAME]")]
    pub skip: Vec<crate::plan::Selector>,
}

impl SelectArgs {
    fn selection(&self) -> crate::plan::Selection {
        crate::plan::Selection { only: self.only.clone(), skip: self.skip.clone(), ..Default::default() }
    }
}

/// What may not be done.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Rules that the plan, and each change when it starts, has to keep: no reboot, a window for VMs, …
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Judge the rules as if it were this time (2025-06-07T03:00:00+02:00), to try them out.
    #[arg(long, value_name = "TIME", requires = "policy")]
    pub at: Option<jiff::Timestamp>,
}

impl PolicyArgs {
    fn read(&self) -> miette::Result<Option<crate::plan::Policy>> {
        let Some(path) = &self.policy else { return Ok(None) };
        let policy: crate::plan::Policy = crate::manifest::read(path)?;
        let problems = policy.problems();
        if !problems.is_empty() {
            return Err(miette::miette!(
                help = "see schema/policy.schema.json, or: gpuvm schema policy",
                "`{}` is no policy: {}",
                path.display(),
                problems.join("; ")
            ));
        }
        Ok(Some(policy))
    }
    fn now(&self) -> jiff::Timestamp {
        self.at.unwrap_or_else(jiff::Timestamp::now)
    }
}

/// Says what the rules refuse of a plan; `true` where that is nothing.
fn keeps(policies: &[crate::plan::Policy], plan: &crate::plan::Plan, now: jiff::Timestamp) -> bool {
    let refusals: Vec<_> = policies.iter().flat_map(|p| p.judge(plan, now)).collect();
    for refusal in &refusals {
        say(&format!("refused: {refusal}\n"));
    }
    if !refusals.is_empty() {
        say("nothing was changed\n");
    }
    refusals.is_empty()
}

/// Which manifest, and which host.
#[derive(Debug, Args)]
pub struct Target {
    /// The manifest.
    #[arg(short, long, default_value = "host.yaml")]
    pub file: PathBuf,
    /// A recorded host (made by `gpuvm facts --record`) in place of this machine.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs the command; errors are printed here.
pub fn run(cli: Cli) -> ExitCode {
    let log = cli.log_options();
    let detail = match (cli.quiet, cli.verbose) {
        (true, _) => crate::report::Detail::Summary,
        (_, 0) => crate::report::Detail::Normal,
        _ => crate::report::Detail::Verbose,
    };
    let talk = apply::Talk { quiet: cli.quiet, detail, log: &log, output: Output::Text };
    let of_a_run = matches!(cli.command, Command::Run(_));
    let of_a_change = matches!(cli.command, Command::Apply(_) | Command::Adopt(_));
    let result = match cli.command {
        Command::Plan(args) => plan::run(&args, detail),
        Command::Apply(args) => apply::run(&args, talk),
        Command::Init(args) => init::run(&args),
        Command::Adopt(args) => adopt::run(&args, talk),
        Command::Create(args) => create::run(&args, talk),
        Command::Validate(args) => validate::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Facts(args) => facts::run(&args),
        Command::Status(args) => status::run(&args, cli.quiet),
        Command::Vm(args) => vm::run(&args, talk),
        Command::Ip(args) => ip::run(&args),
        Command::Gpu(args) => gpu::gpu(&args, cli.verbose > 0, talk),
        Command::Check(args) => gpu::check(&args, cli.verbose > 0, cli.quiet),
        Command::Image(args) => image::run(&args, talk),
        Command::Tui(args) => tui::run(&args, &log),
        Command::Topology(args) => gpu::topology(&args),
        Command::History(args) => history::history(&args),
        Command::Show(args) => history::show(&args),
        Command::Undo(args) => undo::run(&args, talk),
        Command::Run(args) => run::run(&args, cli.log_format),
        Command::WriteAttribute(args) => write_attribute::run(&args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(report) => {
            match of_a_run {
                true => tracing::error!("{report}"),
                false => say(&format!("{report:?}")),
            }
            if of_a_change && report.is::<crate::manifest::LoadError>() {
                say("nothing was changed\n");
            }
            ExitCode::from(code::ERROR)
        }
    }
}

/// Talk goes to standard error. A terminal that is gone is no reason to stop.
fn say(text: &str) {
    use std::io::Write;
    let _ = anstream::stderr().write_all(rehearsal::said(text).as_bytes());
}

/// A word of a command line, for a person to copy.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:=@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A result for people: data on standard output too, with commands in it that are about this host.
fn tell(text: &str) -> miette::Result<()> {
    print(&rehearsal::said(text))
}

/// A plan for people: the commands in it are about this host, and the contents of files are as they are.
fn tell_plan(plan: &crate::plan::Plan, detail: crate::report::Detail) -> miette::Result<()> {
    print(&crate::report::plan_text_as(plan, detail, rehearsal::said))
}

/// Standard output is data; a closed pipe is the reader's choice and no error.
fn print(text: &str) -> miette::Result<()> {
    use std::io::Write;
    match anstream::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(miette::miette!("cannot write the output: {e}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_run_logs_as_apply_was_asked_to() {
        for (asked, level) in [
            (&["apply"][..], "info"),
            (&["apply", "-v"], "debug"),
            (&["-vv", "apply", "--log-format", "json"], "trace"),
            (&["apply", "--quiet"], "error"),
        ] {
            let apply = Cli::try_parse_from(["gpuvm"].iter().chain(asked)).unwrap();
            let options = apply.log_options();
            let words = ["gpuvm"].into_iter().chain(options.iter().map(String::as_str)).chain(["run", "/runs/7"]);
            let run = Cli::try_parse_from(words).unwrap();
            assert_eq!((run.log_level(), run.log_format), (level, apply.log_format), "{asked:?}");
        }
        assert_eq!(Cli::try_parse_from(["gpuvm", "plan"]).unwrap().log_level(), "warn");
    }

    #[test]
    fn what_a_script_would_call_answers_in_json() {
        // What they write is the thing itself: a manifest, a schema, a screen, a guest's own words; or they are called by
        // the host and answer it in its own way.
        const OTHERWISE: [&str; 8] =
            ["init", "schema", "tui", "vm console", "vm logs", "vm ssh", "run", "write-attribute"];
        fn ends(command: &clap::Command, path: &str, all: &mut Vec<String>) {
            for sub in command.get_subcommands() {
                let name = format!("{path} {}", sub.get_name()).trim().to_owned();
                if sub.has_subcommands() {
                    ends(sub, &name, all);
                } else if !sub.get_arguments().any(|a| a.get_long() == Some("output")) {
                    all.push(name);
                }
            }
        }
        let mut without = Vec::new();
        ends(&Cli::command(), "", &mut without);
        without.retain(|name| !OTHERWISE.contains(&name.as_str()));
        assert_eq!(without, Vec::<String>::new());
    }
}
