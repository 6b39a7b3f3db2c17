//! Reading a manifest: size limit, YAML with places, every error at once, the files that it refers to.
//!
//! Nothing here looks at the host. A file that the manifest refers to lies in its folder or below, so that a manifest
//! means the same wherever its folder is copied to.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use miette::{Diagnostic, LabeledSpan, NamedSource};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::yaml_tree::{Node, Place, Problem, Span};
use super::{Manifest, PackageSource, RepositoryEntry, validate, yaml_de, yaml_tree};
use crate::types::{safe, safe_in_place, safe_line};

/// More than any manifest of one host needs.
const MAX_MANIFEST: u64 = 1 << 20;
/// Of one file that a manifest refers to: they are configuration, not images.
const MAX_FILE: u64 = 16 << 20;
/// How long whatever fills a pipe may take to begin.
const WRITER_MS: u16 = 5_000;

/// A manifest that was read and found valid.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub manifest: Manifest,
    /// Where it was read from.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The files beside it that it refers to (`source`, `template`), as it names them.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// sha256 in hex over the manifest and those files.
    pub digest: String,
}

/// Every problem of one manifest, with its text: what miette needs to show each place.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{} has {}", .source_code.name(), counted(.findings.len()))]
#[diagnostic(code(gpuvm::manifest))]
pub struct Invalid {
    #[source_code]
    source_code: NamedSource<String>,
    #[related]
    findings: Vec<Finding>,
}

/// One problem of a manifest, as JSON shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InvalidProblem {
    /// The path of keys to it (`vms.desktop.gpus[0]`); empty for the document itself.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// Why a manifest could not be used.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum LoadError {
    /// It is not valid.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Invalid(#[from] Invalid),
    /// It could not be read.
    #[error("cannot read `{}`", .path.display())]
    #[diagnostic(code(gpuvm::manifest), help("name it with `-f FILE`; `gpuvm init` writes one of this host as it is"))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is larger than 1 MiB.
    #[error("`{}` is larger than 1 MiB, which no manifest is", .path.display())]
    #[diagnostic(code(gpuvm::manifest))]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not UTF-8.
    #[error("`{}` is not text in UTF-8", .path.display())]
    #[diagnostic(code(gpuvm::manifest))]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: std::string::FromUtf8Error,
    },
}

impl LoadError {
    /// The same for programs. A file that could not be read at all is a problem of its first character.
    pub fn problems(&self) -> Vec<InvalidProblem> {
        if let Self::Invalid(invalid) = self {
            return invalid.problems();
        }
        let why = std::error::Error::source(self).map(|why| format!(": {why}")).unwrap_or_default();
        vec![InvalidProblem { path: String::new(), line: 1, column: 1, message: format!("{self}{why}"), help: None }]
    }
}

/// Reads a manifest and the files that it refers to.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let bytes = read_at_most(path, MAX_MANIFEST).map_err(unreadable)?;
    let bytes = bytes.ok_or_else(|| LoadError::TooLarge { path: path.to_owned() })?;
    let text = String::from_utf8(bytes).map_err(|source| LoadError::NotText { path: path.to_owned(), source })?;
    load_text(path, text)
}

/// The same of a text that is to be written there: by every rule, with the files beside it.
pub fn load_text(path: &Path, text: String) -> Result<Loaded, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    if text.len() as u64 > MAX_MANIFEST {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    let name = path.display().to_string();
    let mut checked = check(&text);
    let mut files = BTreeMap::new();
    if let (Some(manifest), Some(root)) = (&checked.manifest, &checked.root) {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = folder.canonicalize().map_err(unreadable)?;
        for (file, place) in referred(manifest, root) {
            match read_beside(&folder, file) {
                Ok(bytes) => _ = files.insert(file.to_owned(), bytes),
                Err(Refused { message, help }) => checked.problems.push(Problem {
                    labels: vec![(place.span(), message.clone())],
                    path: place.path,
                    message,
                    help,
                }),
            }
        }
    }
    let manifest = checked.finish(&name, &text)?;
    let digest = digest(&text, &files);
    Ok(Loaded { manifest, path: path.to_owned(), text, files, digest })
}

/// A manifest whose text and files were kept, read again from them.
pub fn reload(path: &Path, text: String, files: BTreeMap<PathBuf, Vec<u8>>) -> Result<Loaded, LoadError> {
    let manifest = parse(&path.display().to_string(), &text)?;
    let digest = digest(&text, &files);
    Ok(Loaded { manifest, path: path.to_owned(), text, files, digest })
}

/// Reads a manifest from text. Files that it refers to are not looked at.
pub fn parse(name: &str, source: &str) -> Result<Manifest, Invalid> {
    if source.len() as u64 > MAX_MANIFEST {
        let problem = Problem::at(0..0, "larger than 1 MiB, which no manifest is", "");
        return Err(Invalid::new(name, source, vec![problem]));
    }
    check(source).finish(name, source)
}

/// Reads another file of a person's by the same rules: size, YAML, unknown fields, every mistake at its place.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let bytes = read_at_most(path, MAX_MANIFEST).map_err(unreadable)?;
    let bytes = bytes.ok_or_else(|| LoadError::TooLarge { path: path.to_owned() })?;
    let text = String::from_utf8(bytes).map_err(|source| LoadError::NotText { path: path.to_owned(), source })?;
    parse_as(&path.display().to_string(), &text)
}

/// The same of a text that has been read; `name` is what it is called.
pub fn parse_as<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, LoadError> {
    let invalid = |problems| LoadError::Invalid(Invalid::new(name, text, problems));
    let (root, mut problems) = yaml_tree::parse(text).map_err(|problem| invalid(vec![problem]))?;
    let (value, more) = yaml_de::from_tree::<T>(&root);
    problems.extend(more);
    value.filter(|_| problems.is_empty()).ok_or_else(|| invalid(problems))
}

/// What was read of a text, with what is wrong with it.
struct Checked {
    manifest: Option<Manifest>,
    root: Option<Node>,
    problems: Vec<Problem>,
}

fn check(source: &str) -> Checked {
    let (root, mut problems) = match yaml_tree::parse(source) {
        Ok(read) => read,
        Err(problem) => return Checked { manifest: None, root: None, problems: vec![problem] },
    };
    let (manifest, more) = yaml_de::from_tree::<Manifest>(&root);
    problems.extend(more);
    if let Some(manifest) = &manifest {
        let stand_ins = yaml_tree::stand_ins(&root);
        let as_written = |mut text: String| {
            stand_ins.iter().for_each(|(read, written)| text = text.replace(read, written));
            text
        };
        problems.extend(validate::validate(manifest, &root).into_iter().map(|p| Problem {
            message: as_written(p.message),
            path: p.path,
            labels: p.labels.into_iter().map(|(span, label)| (span, as_written(label))).collect(),
            help: p.help.map(as_written),
        }));
    }
    Checked { manifest, root: Some(root), problems }
}

impl Checked {
    fn finish(mut self, name: &str, source: &str) -> Result<Manifest, Invalid> {
        match self.manifest {
            Some(manifest) if self.problems.is_empty() => Ok(manifest),
            _ => {
                self.problems.sort_by_key(|p| p.labels.first().map(|(span, _)| span.start));
                Err(Invalid::new(name, source, self.problems))
            }
        }
    }
}

fn counted(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

impl Invalid {
    fn new(name: &str, source: &str, problems: Vec<Problem>) -> Self {
        let findings = problems.into_iter().map(|problem| Finding(safe_problem(within(source, problem)))).collect();
        // It is shown as it is written, by whom it is refused: the same places, without what steers a terminal.
        let shown = NamedSource::new(safe_line(name), safe_in_place(source)).with_language("yaml");
        Invalid { source_code: shown, findings }
    }

    /// Each problem with its place, in the order of the file.
    pub fn problems(&self) -> Vec<InvalidProblem> {
        let source = self.source_code.inner();
        let placed = self.findings.iter().map(|Finding(problem)| {
            let start = problem.labels.first().map_or(0, |(span, _)| span.start);
            let before = source.get(..start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |i| i + 1);
            InvalidProblem {
                path: problem.path.clone(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                message: problem.message.clone(),
                help: problem.help.clone(),
            }
        });
        placed.collect()
    }
}

/// Keeps each label inside the text and on whole characters, which the drawing relies on.
fn within(source: &str, mut problem: Problem) -> Problem {
    let boundary = |mut at: usize| {
        at = at.min(source.len());
        while !source.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    for (span, _) in &mut problem.labels {
        let start = boundary(span.start);
        *span = start..boundary(span.end).max(start);
    }
    problem
}

/// Names and values of the manifest are quoted in what is said of it.
fn safe_problem(mut problem: Problem) -> Problem {
    problem.message = safe(&problem.message);
    problem.path = safe_line(&problem.path);
    problem.help = problem.help.map(|help| safe(&help));
    for (_, label) in &mut problem.labels {
        *label = safe(label);
    }
    problem
}

/// One problem, as miette draws it; the text comes from `Invalid`.
#[derive(Debug)]
struct Finding(Problem);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.path.is_empty() {
            f.write_str(&self.0.message)
        } else {
            write!(f, "{}: {}", self.0.path, self.0.message)
        }
    }
}

impl std::error::Error for Finding {}

impl Diagnostic for Finding {
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        // Where the message says it all, the word is underlined and no more.
        let said = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
        Some(Box::new(self.0.labels.iter().enumerate().map(
            move |(i, (span, text)): (usize, &(Span, String))| match i {
                0 => LabeledSpan::new_primary_with_span(said(text), span.clone()),
                _ => LabeledSpan::new_with_span(said(text), span.clone()),
            },
        )))
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// The files that a manifest refers to, with their places. One whose path leaves the folder is not among them: that is
/// a problem of its own (see `validate`).
fn referred<'a>(manifest: &'a Manifest, root: &'a Node) -> Vec<(&'a Path, Place<'a>)> {
    let files = Place::root(root).get("files");
    let mut found = Vec::new();
    for (name, entry) in &manifest.files {
        let Some(place) = files.as_ref().and_then(|files| files.get(name.as_str())) else { continue };
        for (field, file) in [("source", &entry.source), ("template", &entry.template)] {
            if let (Some(file), Some(place)) = (file, place.get(field))
                && stays_inside(file)
            {
                found.push((file.as_path(), place));
            }
        }
    }
    let nvidia = manifest.drivers.as_ref().and_then(|d| d.nvidia.as_ref());
    if let Some(PackageSource::Repository(RepositoryEntry { key, .. })) = nvidia.map(|n| &n.source)
        && let Some(place) =
            ["drivers", "nvidia", "source", "key"].iter().try_fold(Place::root(root), |place, name| place.get(name))
        && stays_inside(key)
    {
        found.push((key.as_path(), place));
    }
    let vms = Place::root(root).get("vms");
    for (name, vm) in &manifest.vms {
        let Some(place) = vms.as_ref().and_then(|vms| vms.get(name.as_str())) else { continue };
        let keys = place.get("user").and_then(|user| user.get("sshKeys")).map(|keys| keys.items()).unwrap_or_default();
        for (key, place) in vm.user.iter().flat_map(|user| &user.ssh_keys).zip(keys) {
            if let Some(file) = key.beside().filter(|file| stays_inside(file)) {
                found.push((file, place));
            }
        }
        let xml = place.get("xml").map(|list| list.items()).unwrap_or_default();
        for (entry, place) in vm.xml.iter().zip(xml) {
            if let (Some(file), Some(place)) = (entry.beside().filter(|f| stays_inside(f)), place.get("add")) {
                found.push((file, place));
            }
        }
        let files = place.get("cloudInit").and_then(|more| more.get("files"));
        for (path, entry) in vm.cloud_init.iter().flat_map(|more| &more.files) {
            let place = files.as_ref().and_then(|files| files.get(path.as_str())?.get("source"));
            if let (Some(file), Some(place)) = (&entry.source, place)
                && stays_inside(file)
            {
                found.push((file.as_path(), place));
            }
        }
    }
    found
}

/// Whether a path is relative and goes down only.
pub(super) fn stays_inside(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

struct Refused {
    message: String,
    help: Option<String>,
}

fn read_beside(folder: &Path, file: &Path) -> Result<Vec<u8>, Refused> {
    let refused = |message, help| Refused { message, help };
    let unreadable = |error: io::Error| {
        let reason = if error.kind() == io::ErrorKind::NotFound { "no such file".into() } else { error.to_string() };
        refused(
            format!("cannot read `{}`: {reason}", file.display()),
            Some(format!("it is looked for in `{}`", folder.display())),
        )
    };
    let real = folder.join(file).canonicalize().map_err(unreadable)?;
    if !real.starts_with(folder) {
        return Err(refused(
            format!("`{}` is a link that leads out of the manifest's folder", file.display()),
            Some("copy the file beside the manifest".to_owned()),
        ));
    }
    // Opening a pipe would wait for its writer.
    if !real.metadata().map_err(unreadable)?.is_file() {
        return Err(refused(format!("`{}` is not a file", file.display()), None));
    }
    let read = read_at_most(&real, MAX_FILE).map_err(unreadable)?;
    read.ok_or_else(|| refused(format!("`{}` is larger than {} MiB", file.display(), MAX_FILE >> 20), None))
}

/// Nothing where there is more. A pipe that nobody writes to is no reason to wait; `<(…)` and `/dev/stdin` are read.
fn read_at_most(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.file_type().is_fifo()
        && poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], WRITER_MS)? == 0
    {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it is a pipe that nobody writes to"));
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// Each part goes in with its length, so that no two sets of files give the same bytes.
fn digest(text: &str, files: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(text.as_bytes());
    for (path, bytes) in files {
        part(path.as_os_str().as_encoded_bytes());
        part(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
