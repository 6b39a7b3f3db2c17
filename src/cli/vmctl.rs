//! The same program under the name `vmctl`: the short way to what is done with VMs every day. Its words are those of
//! `gpuvm vm`, `gpuvm gpu` and `gpuvm ip`; it has none of its own.

use std::ffi::OsString;
use std::path::Path;

/// The name.
const NAME: &str = "vmctl";

/// What `vmctl` alone, and `vmctl --help`, say.
pub const HELP: &str = "\
vmctl is gpuvm under another name, for every day:

  vmctl list                           gpuvm vm list
  vmctl info NAME                      gpuvm vm info NAME
  vmctl start|stop|restart NAME        gpuvm vm start|stop|restart NAME
  vmctl delete NAME                    gpuvm vm delete NAME
  vmctl ssh|console|logs|wait NAME     gpuvm vm ssh|console|logs|wait NAME
  vmctl create ubuntu|debian NAME      gpuvm create ubuntu|debian NAME
  vmctl snapshot create|list NAME      gpuvm vm snapshot create|list NAME
  vmctl snapshot restore NAME SNAP     gpuvm vm snapshot restore NAME SNAP
  vmctl clone NAME NEW                 gpuvm vm clone NAME NEW
  vmctl gpu list|status|explain        gpuvm gpu list|status|explain
  vmctl gpu attach|detach NAME GPU     gpuvm gpu attach|detach NAME GPU
  vmctl ip check|list                  gpuvm ip check|list
  vmctl tui                            gpuvm tui

`vmctl start --help` and so on say more; for everything else: gpuvm --help
";

/// The words of `gpuvm vm`.
const OF_VMS: [&str; 13] = [
    "list", "info", "start", "stop", "restart", "delete", "ssh", "console", "logs", "wait", "snapshot", "clone",
    "template",
];

/// The command line as gpuvm takes it; `None` where vmctl was asked for help.
pub fn words(args: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut words: Vec<OsString> = args.into_iter().collect();
    let called = words.first().map(Path::new).and_then(Path::file_name);
    if called != Some(NAME.as_ref()) {
        return Some(words);
    }
    // `--log-format` is the one option before the verb that has a value.
    let valued = |at: usize| words.get(at.wrapping_sub(1)).is_some_and(|w| w == "--log-format");
    let first = (1..words.len()).find(|at| !words[*at].to_string_lossy().starts_with('-') && !valued(*at));
    match first {
        Some(at) if words.get(at).is_some_and(|w| w == "help") => None,
        None if !words.iter().any(|w| w == "--version" || w == "-V") => None,
        Some(at) if words.get(at).is_some_and(|w| OF_VMS.iter().any(|v| w == v)) => {
            words.insert(at, "vm".into());
            Some(words)
        }
        _ => Some(words),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn as_gpuvm(line: &str) -> Option<String> {
        let words = words(line.split(' ').map(OsString::from))?;
        Some(words.iter().skip(1).map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn its_words_are_those_of_gpuvm() {
        for (line, gpuvm) in [
            ("/usr/local/bin/vmctl list", "vm list"),
            ("vmctl info desk --output json", "vm info desk --output json"),
            ("vmctl -q start desk", "-q vm start desk"),
            ("vmctl --log-format json stop desk --force", "--log-format json vm stop desk --force"),
            ("vmctl delete desk --keep-disks", "vm delete desk --keep-disks"),
            ("vmctl ssh desk -l alice -- uptime", "vm ssh desk -l alice -- uptime"),
            ("vmctl snapshot restore desk first --yes", "vm snapshot restore desk first --yes"),
            ("vmctl clone desk other --linked --snapshot first", "vm clone desk other --linked --snapshot first"),
            ("vmctl gpu status", "gpu status"),
            ("vmctl ip check 10.0.0.7", "ip check 10.0.0.7"),
            ("vmctl ip list", "ip list"),
            // Whatever its name is, gpuvm's own words are gpuvm's.
            ("gpuvm vm list", "vm list"),
            ("vmctl --version", "--version"),
        ] {
            assert_eq!(as_gpuvm(line).as_deref(), Some(gpuvm), "{line}");
            let parsed = Cli::try_parse_from(words(line.split(' ').map(OsString::from)).unwrap());
            assert!(parsed.is_ok() || line.ends_with("--version"), "{line}");
        }
        assert!(["vmctl", "vmctl --help", "vmctl help"].iter().all(|line| as_gpuvm(line).is_none()));
        assert_eq!(as_gpuvm("gpuvm --help").as_deref(), Some("--help"));
    }

    #[test]
    fn its_help_names_what_there_is() {
        for line in HELP.lines().filter_map(|l| l.strip_prefix("  vmctl ")) {
            let (left, right) = line.split_once("gpuvm ").unwrap();
            for word in left.split_whitespace().next().unwrap().split('|') {
                let first = as_gpuvm(&format!("vmctl {word} x")).unwrap();
                assert!(right.starts_with(first.split(' ').next().unwrap()), "{word}: {right}");
            }
        }
        assert!(HELP.lines().all(|l| l.len() <= 80));
    }
}
