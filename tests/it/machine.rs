//! A copy of a recorded host to work on, and the program itself run against it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Copies a directory with its links as links.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_tree(&source, &target);
        } else if kind.is_symlink() {
            let _ = fs::remove_file(&target);
            std::os::unix::fs::symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

/// gpuvm without colours, with nobody to ask.
pub fn command(args: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpuvm"));
    command
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env_remove("CLICOLOR_FORCE")
        .stdin(std::process::Stdio::null());
    command
}

/// Runs gpuvm.
pub fn gpuvm(args: &[&str], folder: &Path) -> Output {
    command(args, folder).output().unwrap()
}

/// A folder in memory, where there is one: every write of gpuvm's is synced.
pub fn fast_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What was said on a rehearsal, as it reads on the host itself: a command to type next has no `--root` there.
pub fn on_the_host(said: &str) -> String {
    said.replace(" --root host", "")
}

/// What a run wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a run wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Every file and link below a folder with its content, but gpuvm's own state and the record's bookkeeping.
pub fn tree(root: &Path) -> std::collections::BTreeMap<String, String> {
    fn walk(dir: &Path, root: &Path, all: &mut std::collections::BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let name = format!("/{}", path.strip_prefix(root).unwrap().display());
            let kind = entry.file_type().unwrap();
            if name == "/var/lib/gpuvm" {
                continue;
            } else if kind.is_dir() {
                walk(&path, root, all);
            } else if kind.is_symlink() {
                all.insert(name, format!("-> {}\n", fs::read_link(&path).unwrap().display()));
            } else {
                all.insert(name, String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned());
            }
        }
    }
    let mut all = std::collections::BTreeMap::new();
    walk(&root.join("root"), &root.join("root"), &mut all);
    all
}
