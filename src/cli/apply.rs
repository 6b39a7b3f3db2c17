//! `gpuvm apply`: plan → shown → asked → carried out → verified by planning again.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::{Target, code, host, plan::verdict, print};
use crate::apply::{Allowed, Apply, ApplyError, Event, StateDir};
use crate::report::{self, Detail};
use crate::{desire, facts, manifest};

/// Arguments of `gpuvm apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    target: Target,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Boot the host again where the plan needs it, and go on afterwards.
    #[arg(long)]
    reboot: bool,
}

pub(super) fn run(args: &ApplyArgs, quiet: bool) -> miette::Result<u8> {
    let manifest = manifest::load(&args.target.file)?;
    let Some(dir) = &args.target.root else {
        return Err(miette!(
            help = "see what would happen here: gpuvm plan -f host.yaml\n\
                    rehearse it:                gpuvm facts --record DIR; gpuvm apply -f host.yaml --root DIR",
            "this version changes recorded hosts only; nothing was changed"
        ));
    };
    let mut machine = host::recorded(dir)?;
    let mut state = StateDir::open(dir.join("root").join(host::STATE)).into_diagnostic()?;
    if let Err(other) = host::is_meant(&manifest, &machine) {
        anstream::eprintln!("{other}");
        return Ok(code::REFUSED);
    }
    let (approved, _) = host::plan_now(&manifest, &machine, &state.past().into_diagnostic()?);
    print(&report::plan_text(&approved, Detail::Normal))?;
    match verdict(&approved) {
        code::ERROR => return Ok(code::ERROR),
        code::OK => return Ok(code::OK),
        code::WAITS if !args.reboot => return Ok(code::WAITS),
        _ => {}
    }
    if !args.yes && !asked()? {
        anstream::eprintln!("nothing was changed");
        return Ok(code::CHANGES);
    }
    let secrets = desire::secrets(&manifest, &facts::hostname(&machine));
    let mut tell = |event: Event<'_>| {
        if quiet {
            return;
        }
        match event {
            Event::Begins(_) => {}
            Event::Progress(line) => anstream::eprintln!("    {line}"),
            Event::Done(key) => anstream::eprintln!("  done  {key}"),
            Event::Refreshed(refresh) => anstream::eprintln!("  done  {}", refresh.name()),
            Event::Rebooting => anstream::eprintln!("── reboot ──"),
        }
    };
    let apply = Apply {
        plan: &|probe, past| host::plan_now(&manifest, probe, past),
        state: &mut state,
        allowed: Allowed { reboot: args.reboot },
        secrets: &secrets,
        tell: &mut tell,
    };
    match apply.run(&mut machine, &approved) {
        Ok(outcome) => {
            print(&report::outcome(&outcome))?;
            Ok(match verdict(&outcome.left) {
                code::CHANGES => code::ERROR,
                other => other,
            })
        }
        Err(refused @ (ApplyError::Stale(_) | ApplyError::BeyondApproved(_))) => {
            anstream::eprintln!("{refused}\nsee what it is now: gpuvm plan -f {}", args.target.file.display());
            Ok(code::REFUSED)
        }
        Err(e) => Err(miette!(
            help = "what was done stays done; `gpuvm plan` shows what is left, and the next apply goes on from there",
            "{e}"
        )),
    }
}

/// Asks on the terminal. Without one there is nobody to ask, and no answer is no.
fn asked() -> miette::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(miette!(
            help = "say `--yes` to apply without asking",
            "there is no terminal to ask on; nothing was changed"
        ));
    }
    anstream::eprint!("apply this? [y/N] ");
    std::io::stderr().flush().into_diagnostic()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).into_diagnostic()?;
    Ok(matches!(line.trim(), "y" | "yes"))
}
