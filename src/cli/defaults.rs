//! What a command takes where its manifest is not named: `host.yaml` in this folder, or the one that an apply wrote
//! into the defaults of `vmctl`.

use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, miette};

use crate::host::{Answer, Probe};
use crate::manifest::Defaults;

/// The name of a manifest that is looked for in this folder.
pub(super) const USUAL: &str = "host.yaml";

/// The defaults of this host, with their manifest where it lies here; `None` where there are none, or where this user may
/// not read them.
pub(super) fn defaults(root: Option<&Path>, probe: &dyn Probe) -> miette::Result<Option<Defaults>> {
    let Answer::Value(text) = probe.text(Path::new(Defaults::PATH)).into_diagnostic()? else { return Ok(None) };
    let mut known = Defaults::parse(&text)?;
    if let Some(root) = root {
        known.manifest = inside(&root.join("root"), &known.manifest)?;
    }
    Ok(Some(known))
}

/// A record comes from others: a manifest of its host is one in the record, and nothing of this machine's.
fn inside(root: &Path, path: &Path) -> miette::Result<PathBuf> {
    let at = root.join(path.strip_prefix("/").unwrap_or(path));
    let leads_out = match (at.canonicalize(), root.canonicalize()) {
        (Ok(real), Ok(root)) => !real.starts_with(root),
        // It is not there, which whoever reads it will say.
        _ => path.components().any(|c| c == std::path::Component::ParentDir),
    };
    match leads_out {
        true => Err(miette!(
            help = "name the manifest: -f FILE",
            "the record's manifest `{}` leads out of the record",
            path.display()
        )),
        false => Ok(at),
    }
}

/// The manifest that is meant where `-f` names none.
pub(super) fn manifest_of(root: Option<&Path>, probe: &dyn Probe) -> miette::Result<Option<PathBuf>> {
    match Path::new(USUAL) {
        here if here.is_file() => Ok(Some(here.to_owned())),
        _ => Ok(defaults(root, probe)?.map(|known| known.manifest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_no_manifest_of_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("srv")).unwrap();
        std::fs::write(root.join("srv/host.yaml"), "").unwrap();
        std::fs::write(dir.path().join("other.yaml"), "").unwrap();
        std::os::unix::fs::symlink("../../other.yaml", root.join("srv/out.yaml")).unwrap();
        assert_eq!(inside(&root, Path::new("/srv/host.yaml")).unwrap(), root.join("srv/host.yaml"));
        assert_eq!(inside(&root, Path::new("/srv/none.yaml")).unwrap(), root.join("srv/none.yaml"));
        for out in ["/srv/out.yaml", "/../other.yaml", "../other.yaml", "/../none.yaml"] {
            assert!(inside(&root, Path::new(out)).is_err(), "{out}");
        }
    }
}
