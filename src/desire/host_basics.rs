//! `packages`, `files`, `kernelArgs`, `modules`, `iommu`, `libvirt.operators`, and the lists that other sections added to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Desired, Shared};
use crate::facts::HostFacts;
use crate::manifest::{FileEntry, Loaded};
use crate::plan::{Content, FileWrite, Finding, Key, Refresh, Severity};
use crate::resource::{file, group_member, kernel_arg, module, package, service};
use crate::types::{UnitName, sha256_hex};

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired, mut shared: Shared) {
    let m = &manifest.manifest;
    for package in &m.packages {
        if package.absent {
            shared.absent_packages.insert(package.name.to_string());
        } else {
            shared.packages.entry(package.name.to_string()).or_default().insert("packages".to_owned());
        }
    }
    if m.iommu.as_ref().is_some_and(|i| i.passthrough) {
        shared.kernel_args.entry("iommu=pt".to_owned()).or_insert_with(|| "iommu".to_owned());
    }
    // Those of the manifest first, in its order.
    let mut kernel_args: Vec<String> = m.kernel_args.iter().map(ToString::to_string).collect();
    kernel_args
        .extend(shared.kernel_args.keys().filter(|a| !m.kernel_args.iter().any(|own| own.as_str() == **a)).cloned());
    for arg in &m.kernel_args {
        shared.kernel_args.entry(arg.to_string()).or_insert_with(|| "kernelArgs".to_owned());
    }
    for name in &m.modules {
        shared.modules.entry(name.to_string()).or_insert_with(|| "modules".to_owned());
    }
    for user in m.libvirt.iter().flat_map(|l| &l.operators) {
        for group in ["libvirt", "kvm"] {
            shared
                .members
                .entry((group.to_owned(), user.to_string()))
                .or_insert_with(|| "libvirt.operators".to_owned());
        }
    }

    let packages = Key::new("package", "");
    if !shared.packages.is_empty() || !shared.absent_packages.is_empty() || shared.packages_wait.is_some() {
        let mut from: BTreeSet<String> = shared.packages.values().flatten().cloned().collect();
        // Only drivers want packages that are not known by name yet.
        from.extend(shared.packages_wait.is_some().then(|| "drivers.nvidia".to_owned()));
        let from = from.into_iter().collect::<Vec<_>>().join(", ");
        let wanted = shared.packages.into_iter().filter_map(|(n, f)| Some((n.parse().ok()?, f))).collect();
        let absent = shared.absent_packages.iter().filter_map(|n| n.parse().ok()).collect();
        // Sources and pins come before the packages that they are for.
        let apt: Vec<_> = m.files.iter().filter(|(path, _)| of_apt(path.as_str())).collect();
        let texts = apt
            .iter()
            .map(|(path, e)| format!("{path}\n{}\n", content(manifest, e, &facts.hostname).unwrap_or_default()));
        let sources = (!apt.is_empty()).then(|| sha256_hex(texts.collect::<String>().as_bytes()));
        let mut before: BTreeSet<Key> = apt.iter().map(|(path, _)| Key::new("file", path.as_str())).collect();
        before.append(&mut shared.before_packages);
        let wanted = package::PackageSet {
            wanted,
            absent,
            sources,
            stage: String::new(),
            versions: std::mem::take(&mut shared.versions),
            replaceable: std::mem::take(&mut shared.replaceable),
            older: shared.older,
            waits: shared.packages_wait.take(),
        };
        desired.want(if from.is_empty() { "packages" } else { &from }, before, wanted);
    }
    if !shared.kernel_args.is_empty() {
        let from =
            shared.kernel_args.values().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        desired.want(&from, [], kernel_arg::KernelArgs { wanted: kernel_args });
    }
    if !shared.modules.is_empty() {
        let from = shared.modules.values().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        desired.want(&from, [], module::Modules { wanted: shared.modules });
    }
    for ((group, user), from) in shared.members {
        desired.want(&from, [packages.clone()], group_member::GroupMember { group, user });
    }
    for (path, entry) in &m.files {
        match content(manifest, entry, facts.hostname.as_str()) {
            Ok(text) => {
                let content =
                    if entry.secret { Content::Secret(sha256_hex(text.as_bytes())) } else { Content::Text(text) };
                let write = FileWrite {
                    path: path.as_str().into(),
                    content,
                    mode: entry.mode.unwrap_or_else(|| file::usual_mode(entry.secret)),
                    owner: entry.owner.clone().unwrap_or_else(|| "root".to_owned()),
                    group: entry.group.clone().unwrap_or_else(|| "root".to_owned()),
                };
                let wanted = file::File {
                    write,
                    take_over: entry.take_over,
                    refreshes: refreshes(path.as_str(), &entry.restart),
                };
                let after = (!of_apt(path.as_str())).then(|| packages.clone());
                desired.want(&format!("files.{path}"), after, wanted);
            }
            Err(why) => desired.findings.push(Finding {
                severity: Severity::Error,
                code: "file-content".to_owned(),
                place: format!("files.{path}"),
                message: why,
                help: "correct the file or the template".to_owned(),
            }),
        }
    }
    services(manifest, &packages, desired);
}

/// `services`: after the packages and files that bring their units.
fn services(manifest: &Loaded, packages: &Key, desired: &mut Desired) {
    let m = &manifest.manifest;
    let unit_files = m.files.keys().filter(|p| refreshes(p.as_str(), &[]).contains(&Refresh::DaemonReload));
    let before: Vec<Key> = unit_files.map(|p| Key::new("file", p.as_str())).chain([packages.clone()]).collect();
    let awaited = desired.nodes.contains_key(packages);
    for (unit, entry) in &m.services {
        let wanted = service::Service { unit: unit.clone(), enabled: entry.enabled, running: entry.running, awaited };
        desired.want(&format!("services.{unit}"), before.clone(), wanted);
    }
}

/// Whether a file tells apt where packages come from.
fn of_apt(path: &str) -> bool {
    path.starts_with("/etc/apt/") || path.starts_with("/usr/share/keyrings/")
}

/// What has to be done after a file changed, by where it lies.
fn refreshes(path: &str, restart: &[UnitName]) -> BTreeSet<Refresh> {
    let mut due: BTreeSet<Refresh> = restart.iter().cloned().map(Refresh::Restart).collect();
    for (folder, refresh) in [
        ("/etc/systemd/system/", Refresh::DaemonReload),
        ("/etc/udev/rules.d/", Refresh::Udev),
        ("/etc/initramfs-tools/", Refresh::Initramfs),
        ("/etc/dracut.conf.d/", Refresh::Initramfs),
        ("/etc/default/grub", Refresh::BootLoader),
    ] {
        if path.starts_with(folder) {
            due.insert(refresh);
        }
    }
    due
}

/// The text of a declared file, its template filled in.
fn content(manifest: &Loaded, entry: &FileEntry, host: &str) -> Result<String, String> {
    let read = |path: &std::path::Path| {
        let bytes = manifest.files.get(path).ok_or_else(|| format!("`{}` was not read", path.display()))?;
        String::from_utf8(bytes.clone()).map_err(|_| format!("`{}` is not UTF-8 text", path.display()))
    };
    match (&entry.content, &entry.source, &entry.template) {
        (Some(text), _, _) => Ok(text.clone()),
        (_, Some(path), _) => read(path),
        (_, _, Some(path)) => {
            let mut engine = minijinja::Environment::new();
            engine.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
            engine.set_fuel(Some(100_000));
            let template = read(path)?;
            let text = engine
                .render_str(&template, minijinja::context! { host, vars => entry.vars.clone() })
                .map_err(|e| format!("`{}`: {e}", path.display()))?;
            // The engine drops the line end of the last line; a file keeps it.
            Ok(if template.ends_with('\n') && !text.ends_with('\n') { text + "\n" } else { text })
        }
        _ => Err("it has no content".to_owned()),
    }
}

/// The payloads of secret files and of seeds by their sha256, for the run that writes them.
pub fn secrets(manifest: &Loaded, host: &str) -> BTreeMap<String, Vec<u8>> {
    let secret = manifest.manifest.files.values().filter(|e| e.secret);
    let files = secret.filter_map(|e| content(manifest, e, host).ok());
    let files = files.map(|t| (sha256_hex(t.as_bytes()), t.into_bytes()));
    files.chain(super::guests::secrets(manifest, host)).collect()
}
