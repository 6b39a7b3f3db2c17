//! `gpuvm history` and `gpuvm show`: the runs, and one of them.

use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::apply::Machine;
use super::status::{Standing, standing};
use super::{Output, code, print, tell, tell_plan};
use crate::apply::{About, StateDir};
use crate::report::{self, Detail};

/// Arguments of `gpuvm history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How it is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Arguments of `gpuvm show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The run, as `gpuvm history` numbers it; the last one where none is given.
    run: Option<u64>,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How it is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// One run in a line.
struct Line {
    run: u64,
    about: Option<About>,
    state: &'static str,
    code: Option<u8>,
    done: usize,
}

fn line(state: &StateDir, last: &Standing, run: u64) -> Line {
    let ending = state.ending(run);
    let word = match (&ending, last) {
        (_, Standing::AtWork(n)) if *n == run => "at work",
        (None, Standing::WaitsForBoot(n)) if *n == run => "waits for a boot",
        (None, _) => "cut off",
        (Some(ending), _) => match ending.code {
            code::OK => "done",
            code::WAITS => "done, something waits",
            code::REFUSED => "refused",
            _ => "failed",
        },
    };
    let done = state.done(run).map_or(0, |d| d.len());
    Line { run, about: state.about(run).ok(), state: word, code: ending.map(|e| e.code), done }
}

fn open(root: Option<&Path>) -> miette::Result<(StateDir, Standing)> {
    let (machine, state) = Machine::open(root)?;
    let standing = standing(&state, matches!(machine, Machine::This));
    Ok((state, standing))
}

pub(super) fn history(args: &HistoryArgs) -> miette::Result<u8> {
    let (state, last) = open(args.root.as_deref())?;
    let lines: Vec<Line> = state.runs().into_iter().rev().map(|run| line(&state, &last, run)).collect();
    match args.output {
        Output::Json => {
            let run = |l: &Line| {
                serde_json::json!({
                    "run": l.run,
                    "at": l.about.as_ref().map(|a| &a.at),
                    "asked": l.about.as_ref().map(|a| &a.asked),
                    "undo": l.about.as_ref().and_then(|a| a.undo),
                    "verb": l.about.as_ref().and_then(|a| a.verb.as_ref()),
                    "state": l.state,
                    "code": l.code,
                    "done": l.done,
                })
            };
            let all = serde_json::json!({ "format": 1, "runs": lines.iter().map(run).collect::<Vec<_>>() });
            print(&format!("{all}\n"))?;
        }
        Output::Text if lines.is_empty() => print("no run yet\n")?,
        Output::Text => {
            for l in lines {
                let (at, asked) = l.about.map_or(("?".to_owned(), "?".to_owned()), |a| (a.at, a.asked));
                let changes = format!("{} change{}", l.done, if l.done == 1 { "" } else { "s" });
                print(&format!("{:>4}  {at}  {changes:<11}  {:<8}  gpuvm {}\n", l.run, l.state, report::safe(&asked)))?;
            }
        }
    }
    Ok(code::OK)
}

pub(super) fn show(args: &ShowArgs) -> miette::Result<u8> {
    let (state, last) = open(args.root.as_deref())?;
    let run = args.run.unwrap_or_else(|| state.last_run());
    if !state.runs().contains(&run) {
        return Err(miette!(help = "see which there are: gpuvm history", "there is no record of a run {run}"));
    }
    let about = state.about(run).into_diagnostic()?;
    let journal = state.journal_lines(run).into_diagnostic()?;
    let done = state.done(run).into_diagnostic()?;
    let planned = about.plan.changes().map(|(entry, _)| entry.key.to_string());
    let left: Vec<String> = planned.filter(|key| !done.contains(key)).collect();
    let l = line(&state, &last, run);
    let dir = state.run_dir(run);
    if args.output == Output::Json {
        let mut value = serde_json::json!({
            "format": 1, "run": run, "at": about.at, "asked": about.asked, "undo": about.undo, "verb": about.verb,
            "state": l.state, "code": l.code, "plan": about.plan, "journal": journal, "done": done, "notDone": left, "directory": dir,
        });
        without_others_words(&mut value);
        print(&format!("{value}\n"))?;
        return Ok(code::OK);
    }
    let mut out = format!("run {run}   {}   {}\n  gpuvm {}\n", about.at, l.state, report::safe(&about.asked));
    if let Some(undone) = about.undo {
        out += &format!("  the undo of run {undone}\n");
    }
    out += "\nwhat was approved\n\n";
    tell(&out)?;
    tell_plan(&about.plan, Detail::Normal)?;
    let mut out = "\nwhat was done, step by step\n\n".to_owned();
    let ends = |key: &str, step: &crate::plan::Step, from: usize| {
        journal.get(from..).into_iter().flatten().find(|l| l.key == key && l.step == *step && l.state != "begins")
    };
    for (at, line) in journal.iter().enumerate().filter(|(_, line)| line.state == "begins") {
        let ended = ends(&line.key, &line.step, at).map_or("not finished", |l| l.state.as_str());
        out += &format!("  {ended:<12}  {}   {}\n", line.key, line.step.name());
    }
    for key in &left {
        out += &format!("  {:<12}  {key}\n", "not done");
    }
    if let Some(ending) = state.ending(run) {
        out += &format!("\n{}", ending.text);
    }
    out += &format!("log: {}\n", state.log(run).display());
    tell(&out)?;
    Ok(code::OK)
}

/// A VM that an undo makes anew gets back what others wrote into it, which may be secret: that is the run's to know.
fn without_others_words(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            if let Some(Value::String(xml)) = map.get_mut("defineDomain").and_then(|step| step.get_mut("xml")) {
                *xml = crate::resource::libvirt_domain::without_private_parts(xml);
            }
            map.values_mut().for_each(without_others_words);
        }
        Value::Array(all) => all.iter_mut().for_each(without_others_words),
        _ => {}
    }
}
