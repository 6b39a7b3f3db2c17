//! A recorded host with VMs of gpuvm's, to work on: a copy in a folder of its own, and the program run against it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::machine::{copy_tree, fast_folder, gpuvm, on_the_host, repository, stderr, stdout};

pub struct Host {
    pub dir: tempfile::TempDir,
}

impl Host {
    /// The recorded host with a manifest that was not applied yet.
    pub fn bare(manifest: &str) -> Self {
        let dir = fast_folder();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
        fs::write(dir.path().join("host.yaml"), manifest).unwrap();
        Self { dir }
    }
    /// The recorded host after an apply of a manifest.
    pub fn made(manifest: &str) -> Self {
        let host = Self::bare(manifest);
        host.says("apply --yes --reboot", 0);
        host
    }
    pub fn copy(from: &Path) -> Self {
        let dir = fast_folder();
        copy_tree(from, dir.path());
        Self { dir }
    }
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
    pub fn run(&self, words: &str) -> Output {
        let words: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
        gpuvm(&words, self.dir.path())
    }
    /// Runs it, which ends with this code; what it said.
    pub fn says(&self, words: &str, code: i32) -> String {
        let output = self.run(words);
        let said = on_the_host(&(stdout(&output) + &stderr(&output)));
        assert_eq!(output.status.code(), Some(code), "{words}: {said}");
        said
    }
    /// The record beside the files, changed.
    pub fn record(&self, change: impl FnOnce(&mut Value)) -> Value {
        let path = self.at("host/gpuvm-record.json");
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        record
    }
    /// What libvirt knows, changed.
    pub fn libvirt(&self, change: impl FnOnce(&mut Value)) -> Value {
        self.record(|record| change(&mut record["libvirt"]["known"]))["libvirt"]["known"].clone()
    }
    /// A VM; null where there is none of this name.
    pub fn domain(&self, name: &str) -> Value {
        let known = self.libvirt(|_| {});
        known["domains"].as_array().unwrap().iter().find(|d| d["name"] == name).cloned().unwrap_or_default()
    }
}
