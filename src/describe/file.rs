//! A file of the host's as an entry of `files`.

use std::path::{Path, PathBuf};

use super::words::{scalar, text_lines};
use super::{Extra, Refused, refused};
use crate::facts::HostFacts;
use crate::host::{Answer, FileKind, Probe};
use crate::manifest::{FileEntry, FilePath};
use crate::resource::file::usual_mode;

/// Longer ones are clearer beside the manifest than in it.
const LONGEST: usize = 8 << 10;

/// The entry that describes a file as it is, with a copy to lie beside the manifest where its content must not be in it.
pub(super) fn file(
    path: &FilePath,
    probe: &dyn Probe,
    facts: &HostFacts,
) -> Result<(FileEntry, Option<Extra>), Refused> {
    let at = Path::new(path.as_str());
    let look = format!("look at it: ls -ld {}", path.as_str());
    let failed = |e: crate::host::HostError| refused(e.to_string(), look.clone());
    let stat = match probe.stat(at).map_err(failed)? {
        Answer::Value(stat) => stat,
        Answer::Absent => return Err(refused(format!("there is no `{path}`"), "name a file that is there")),
        Answer::Denied => return Err(refused(format!("`{path}` may not be looked at"), "run gpuvm as root")),
    };
    if stat.kind != FileKind::File {
        return Err(refused(format!("`{path}` is no regular file; a link is not followed"), look));
    }
    let bytes = match probe.read(at).map_err(failed)? {
        Answer::Value(bytes) => bytes,
        Answer::Absent => return Err(refused(format!("there is no `{path}`"), "name a file that is there")),
        Answer::Denied => return Err(refused(format!("`{path}` may not be read"), "run gpuvm as root")),
    };
    let text = String::from_utf8(bytes)
        .map_err(|_| refused(format!("`{path}` is not text in UTF-8"), "gpuvm manages text files only"))?;
    let secret = stat.mode.bits() & 0o004 == 0;
    let name = |number: u32, found: Option<&String>| match number {
        0 => None,
        _ => Some(found.cloned().unwrap_or_else(|| number.to_string())),
    };
    let mut entry = FileEntry {
        owner: name(stat.uid, facts.users.iter().find(|(_, u)| u.uid == stat.uid).map(|(n, _)| n)),
        group: name(stat.gid, facts.groups.iter().find(|(_, g)| g.gid == stat.gid).map(|(n, _)| n)),
        mode: Some(stat.mode).filter(|m| *m != usual_mode(secret)),
        secret,
        ..FileEntry::default()
    };
    if !secret && text.len() <= LONGEST {
        entry.content = Some(text);
        return Ok((entry, None));
    }
    let beside = PathBuf::from("files").join(flat(path.as_str()));
    entry.source = Some(beside.clone());
    Ok((entry, Some(Extra { path: beside, bytes: text.into_bytes(), private: secret })))
}

/// A path as one name: `etc_motd`.
fn flat(path: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    path.trim_start_matches('/').chars().map(safe).collect::<String>().trim_start_matches('.').to_owned()
}

/// The entry as lines of a block.
pub(super) fn lines(entry: &FileEntry) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(text) = &entry.content {
        lines.extend(text_lines("content", text));
    }
    if let Some(path) = &entry.source {
        lines.push(format!("source: {}", scalar(&path.to_string_lossy())));
    }
    if entry.secret {
        lines.push("secret: true   # not readable by everybody: its content is never shown".to_owned());
    }
    lines.extend(entry.owner.iter().map(|o| format!("owner: {}", scalar(o))));
    lines.extend(entry.group.iter().map(|g| format!("group: {}", scalar(g))));
    lines.extend(entry.mode.iter().map(|m| format!("mode: \"{m}\"")));
    lines
}
