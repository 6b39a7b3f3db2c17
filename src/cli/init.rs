//! `gpuvm init`: the host as it is → a commented manifest, whose plan is empty.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::{code, host, plan::verdict, print, say, shell_word};
use crate::apply::StateDir;
use crate::describe;
use crate::host::Snapshot;
use crate::plan::{Past, Selection};
use crate::{facts, manifest};

/// Arguments of `gpuvm init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where the manifest is written; `-` is standard output. A file that is there is never replaced.
    #[arg(short, long, default_value = "host.yaml")]
    out: PathBuf,
    /// A recorded host (made by `gpuvm facts --record`) in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

pub(super) fn run(args: &InitArgs) -> miette::Result<u8> {
    let (probe, state) = host::open(args.root.as_deref())?;
    let probe = probe.as_ref();
    let stdout = args.out == Path::new("-");
    if !stdout && args.out.symlink_metadata().is_ok() {
        return Err(miette!(
            help = "`-o FILE` writes it elsewhere, `-o -` shows it; to have a new one there, move yours away first",
            "`{}` is there already, and is not replaced; nothing was written",
            args.out.display()
        ));
    }
    let past = StateDir::open(state).and_then(|s| s.past()).into_diagnostic()?;
    if !past.owned.is_empty() {
        return Err(miette!(
            help = "go on with the manifest that was applied here: gpuvm plan -f FILE",
            "gpuvm manages {} things on this host already; a manifest made now would not have them, and the next plan \
             would take them away",
            past.owned.len()
        ));
    }
    let snapshot = Snapshot::new(probe);
    let text = describe::init(&snapshot, &facts::collect(&snapshot));
    // What was written has to be what it says of itself.
    let loaded = manifest::reload(&args.out, text.clone(), Default::default())?;
    let (plan, _) = host::plan_now(&loaded, &Selection::default(), probe, &Past::default());
    if stdout {
        print(&text)?;
    } else {
        write(&args.out, &text)?;
        let at = std::path::absolute(&args.out).unwrap_or_else(|_| args.out.clone());
        say(&format!("wrote {}\n", at.display()));
    }
    let name = if stdout { "it".to_owned() } else { args.out.display().to_string() };
    let file = if stdout { "host.yaml".to_owned() } else { shell_word(&args.out.to_string_lossy()) };
    if verdict(&plan) == code::OK {
        say(&format!("{name} describes this host as it is: nothing would change\n"));
        say(&format!("next: read it, change what you want, then: gpuvm plan -f {file}\n"));
        return Ok(code::OK);
    }
    let findings = plan.findings.iter().map(|f| format!("{}: {}", f.place, f.message));
    let entries = plan.entries.iter().filter(|e| !e.diff.settled()).map(|e| e.key.to_string());
    let said: Vec<String> = findings.chain(entries).collect();
    say(&format!("{name} is not wholly as the host is; see `gpuvm plan -f {file}`: {}\n", said.join("; ")));
    Ok(verdict(&plan))
}

/// A new file, as a whole or not at all.
fn write(path: &Path, text: &str) -> miette::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map(drop).map_err(|e| e.error)
    };
    write().map_err(|e| miette!("`{}` could not be written: {e}", path.display()))
}
