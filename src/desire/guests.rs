//! What a VM's guest is told at its first boot: `user`, `cloudInit` and the address in `network`, or `windows`, as one seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Desired;
use super::vms::{finding, stable_mac};
use crate::guest::{
    Account, Autoinstall, Guest, GuestFile, GuestNic, GuestUser, KeySource, MOST_KEYS, Told, Windows, computer_name,
    keys_in,
};
use crate::manifest::{GuestFileEntry, Loaded, NvidiaModules, SshKey, UbuntuEntry, VmEntry, WindowsName};
use crate::plan::{Key, Severity};
use crate::resource::seed::Seed;
use crate::types::{DomainName, sha256_hex};

/// Whether a VM has a seed.
pub(super) fn has_seed(vm: &VmEntry) -> bool {
    if vm.is_windows() {
        return vm.windows.is_some();
    }
    // Whatever is made of an Ubuntu is made of an image.
    let address = vm.network.as_ref().is_some_and(|nic| nic.address.is_some());
    vm.image.is_some() || vm.user.is_some() || vm.cloud_init.is_some() || address
}

/// The name of a VM's seed in its pool's directory.
pub(super) fn path(directory: &Path, name: &DomainName) -> PathBuf {
    directory.join(format!("{name}-seed.iso"))
}

/// Everything that a guest is told, with what is wrong with it.
fn guest(manifest: &Loaded, hostname: &str, name: &DomainName, vm: &VmEntry) -> (Guest, Vec<String>) {
    let mut wrong = Vec::new();
    let more = vm.cloud_init.clone().unwrap_or_default();
    let user = vm.user.as_ref().map(|user| {
        let mut keys = Vec::new();
        for key in &user.ssh_keys {
            match sources(manifest, key) {
                Ok(found) => keys.extend(found),
                Err(why) => wrong.push(why),
            }
        }
        keys.dedup();
        if keys.len() > MOST_KEYS {
            wrong.push(format!("{} keys for one user", keys.len()));
        }
        GuestUser { name: user.name.to_string(), keys }
    });
    let agent = "qemu-guest-agent";
    let mut packages: Vec<String> = vec![agent.to_owned()];
    let installer = super::vms::installer(&manifest.manifest, vm);
    let (of_ubuntu, last) = match (&vm.ubuntu, &installer) {
        (Some(entry), Some((_, of))) => (installed(entry, of.release()), Vec::new()),
        (Some(entry), None) => ubuntu(entry),
        (None, _) => Default::default(),
    };
    if installer.is_some() {
        // What runs at its first boot, and what lets in: there already, or installed.
        packages.extend(["cloud-init", "openssh-server"].map(str::to_owned));
    }
    packages.extend(of_ubuntu);
    packages.extend(more.packages.iter().map(ToString::to_string).filter(|p| p != agent));
    let mut files = Vec::new();
    for (path, entry) in &more.files {
        match content(manifest, entry) {
            Ok(content) => files.push(GuestFile {
                path: path.to_string(),
                content,
                mode: entry.mode.map_or_else(|| "0644".to_owned(), |m| format!("{:04o}", m.bits())),
                owner: entry
                    .owner
                    .clone()
                    .map_or_else(|| "root:root".to_owned(), |o| if o.contains(':') { o } else { format!("{o}:{o}") }),
            }),
            Err(why) => wrong.push(why),
        }
    }
    // The agent's unit is started by its device, which is there already when its package comes.
    let mut commands = vec![["systemctl", "start", "qemu-guest-agent.service"].map(str::to_owned).to_vec()];
    commands.extend(more.commands.iter().map(|c| ["sh", "-c", c].map(str::to_owned).to_vec()));
    commands.extend(last.iter().map(|c| ["sh", "-c", c].map(str::to_owned).to_vec()));
    let nic = vm.network.as_ref().map(|nic| GuestNic {
        mac: nic.mac.unwrap_or_else(|| stable_mac(hostname, name, 0)),
        addresses: nic.address.iter().map(ToString::to_string).collect(),
        gateway: nic.gateway.as_ref().and_then(|g| g.as_str().parse().ok()),
        nameservers: nic.nameservers.iter().filter_map(|n| n.as_str().parse().ok()).collect(),
    });
    let guest = Guest {
        hostname: more.hostname.as_ref().map_or_else(|| of_vm(name), ToString::to_string),
        instance: format!("gpuvm-{name}-{}", more.generation.unwrap_or(1)),
        user,
        packages,
        files,
        commands,
        nic,
        user_data: more.user_data,
    };
    (guest, wrong)
}

/// The packages that make a desktop of a server, and a card of NVIDIA's usable; and the commands at the very end.
fn ubuntu(entry: &UbuntuEntry) -> (Vec<String>, Vec<String>) {
    let (mut packages, mut commands) = (Vec::new(), Vec::new());
    // The kernel of the cloud's images comes without most drivers for graphics and sound.
    packages.push("linux-generic");
    if entry.desktop {
        packages.push("ubuntu-desktop-minimal");
        commands.push("systemctl set-default graphical.target".to_owned());
        // The desktop shows the network that NetworkManager has; only once that is really there.
        commands.push(
            "if command -v NetworkManager > /dev/null; then umask 077; printf 'network: {version: 2, renderer: \
             NetworkManager}\\n' > /etc/netplan/90-gpuvm-desktop.yaml; fi"
                .to_owned(),
        );
    }
    let mut packages: Vec<String> = packages.into_iter().map(str::to_owned).collect();
    if let Some(branch) = &entry.nvidia {
        let flavour = match entry.nvidia_modules {
            NvidiaModules::Open => format!("{branch}-open"),
            NvidiaModules::Proprietary => branch.to_string(),
        };
        // Modules that are built and signed by Ubuntu: with secure boot, no others are loaded.
        packages.push(format!("linux-modules-nvidia-{flavour}-generic"));
        packages.push(match entry.desktop {
            true => format!("nvidia-driver-{flavour}"),
            false => format!("nvidia-headless-no-dkms-{flavour}"),
        });
        if !entry.desktop {
            packages.push(format!("nvidia-utils-{branch}"));
        }
    }
    // The other kernel, its drivers and the desktop come with the next boot.
    commands.push("systemctl --no-block reboot".to_owned());
    (packages, commands)
}

/// The packages for a card of NVIDIA's in what the installer's medium installs: a desktop, with the kernel of that name.
fn installed(entry: &UbuntuEntry, release: &str) -> Vec<String> {
    let Some(branch) = &entry.nvidia else { return Vec::new() };
    let flavour = match entry.nvidia_modules {
        NvidiaModules::Open => format!("{branch}-open"),
        NvidiaModules::Proprietary => branch.to_string(),
    };
    vec![format!("linux-modules-nvidia-{flavour}-generic-hwe-{release}"), format!("nvidia-driver-{flavour}")]
}

/// A host name has fewer characters than a VM's name may have.
fn of_vm(name: &DomainName) -> String {
    let text: String = name.as_str().chars().map(|c| if matches!(c, '.' | '_') { '-' } else { c }).collect();
    text.trim_end_matches('-').to_owned()
}

/// The keys of an entry: those of a file beside the manifest are known now.
fn sources(manifest: &Loaded, key: &SshKey) -> Result<Vec<KeySource>, String> {
    let text = key.as_str();
    if let Some(name) = text.strip_prefix("gh:") {
        return Ok(vec![KeySource::GitHub(name.to_owned())]);
    }
    if let Some(name) = text.strip_prefix("gl:") {
        return Ok(vec![KeySource::GitLab(name.to_owned())]);
    }
    let texts = |text: &str| keys_in(text).map(|keys| keys.into_iter().map(KeySource::Text).collect());
    match text.strip_prefix("file:") {
        Some(path) if path.starts_with('/') => Ok(vec![KeySource::Host(path.into())]),
        Some(path) => {
            let bytes = manifest.files.get(Path::new(path)).ok_or_else(|| format!("`{path}` was not read"))?;
            texts(&String::from_utf8_lossy(bytes)).map_err(|e| format!("`{path}`: {e}"))
        }
        None => texts(text).map_err(|e| e.to_string()),
    }
}

fn content(manifest: &Loaded, entry: &GuestFileEntry) -> Result<String, String> {
    match (&entry.content, &entry.source) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(path)) => {
            let bytes = manifest.files.get(path).ok_or_else(|| format!("`{}` was not read", path.display()))?;
            String::from_utf8(bytes.clone()).map_err(|_| format!("`{}` is not UTF-8 text", path.display()))
        }
        (None, None) => Err("a file has no content".to_owned()),
    }
}

/// What Windows' Setup is told.
fn windows(name: &DomainName, vm: &VmEntry) -> Windows {
    let told = vm.windows.clone().unwrap_or_default();
    let text = |word: &WindowsName| word.to_string();
    // By its number alone a disk is the only one: one that was given, in whatever way, might be written over.
    let own_disk = matches!(&vm.disks[..], [disk] if disk.path.is_none() && !disk.take_over)
        && vm.image.is_none()
        && vm.devices.is_empty()
        && vm.usb.is_empty()
        && vm.xml.is_empty();
    Windows {
        computer: computer_name(name.as_str(), told.user.as_ref().map(|u| u.as_str())),
        account: told
            .user
            .as_ref()
            .zip(told.password_file.as_ref())
            .map(|(user, file)| Account { name: user.to_string(), password_file: file.as_str().into() }),
        edition: told.edition.as_ref().map(text),
        accept_license: told.accept_license,
        language: told.language.as_ref().map(ToString::to_string),
        time_zone: told.time_zone.as_ref().map(text),
        remote_desktop: told.remote_desktop,
        own_disk,
    }
}

/// Everything that its guest is told, with what is wrong with it.
fn told(manifest: &Loaded, hostname: &str, name: &DomainName, vm: &VmEntry) -> (Told, Vec<String>) {
    if vm.is_windows() {
        return (Told::Windows(windows(name, vm)), Vec::new());
    }
    let (guest, wrong) = guest(manifest, hostname, name, vm);
    match super::vms::installer(&manifest.manifest, vm) {
        Some(_) => (Told::Autoinstall(Autoinstall { installs: guest }), wrong),
        None => (Told::CloudInit(guest), wrong),
    }
}

/// What a seed is made from, as the run that makes it reads it, and its digest.
fn inputs(guest: &Told) -> (String, Vec<u8>) {
    let bytes = serde_json::to_vec(guest).unwrap_or_default();
    (sha256_hex(&bytes), bytes)
}

/// What of Windows' a person may be shown.
fn shown_of_windows(told: &Windows) -> BTreeMap<String, String> {
    let user = match &told.account {
        Some(account) => format!("{} (password from {})", account.name, account.password_file.display()),
        None => "asked at its first boot".to_owned(),
    };
    let disk = match told.own_disk {
        true => "partitioned if it is blank",
        false => "asked by Setup",
    };
    let more = [("edition", &told.edition), ("language", &told.language), ("timeZone", &told.time_zone)];
    let mut all: BTreeMap<String, String> =
        more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
    let license = if told.accept_license { "accepted by you" } else { "asked by Setup" };
    for (name, value) in [("computer", told.computer.as_str()), ("user", &user), ("disk", disk), ("license", license)] {
        all.insert(name.to_owned(), value.to_owned());
    }
    if told.remote_desktop {
        all.insert("remoteDesktop".to_owned(), "on".to_owned());
    }
    all
}

/// What of it a person may be shown.
fn shown(guest: &Guest) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("hostname".to_owned(), guest.hostname.clone())]);
    let mut show = |name: &str, value: String| {
        if !value.is_empty() {
            all.insert(name.to_owned(), value);
        }
    };
    if let Some(user) = &guest.user {
        let keys = user.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        show("user", format!("{} ({keys})", user.name));
    }
    show("packages", guest.packages.join(" "));
    show("files", guest.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>().join(" "));
    if let Some(nic) = &guest.nic {
        show("address", nic.addresses.first().cloned().unwrap_or_else(|| "by DHCP".to_owned()));
    }
    show("userData", guest.user_data.keys().cloned().collect::<Vec<_>>().join(" "));
    all
}

/// Wants the seed of a VM; where it lies, and its key.
pub(super) fn want(
    manifest: &Loaded,
    desired: &mut Desired,
    hostname: &str,
    (name, vm): (&DomainName, &VmEntry),
    (directory, after): (&Path, Vec<Key>),
) -> (PathBuf, Key) {
    let place = format!("vms.{name}");
    let (told, wrong) = told(manifest, hostname, name, vm);
    for why in wrong {
        let help = "correct it there";
        desired.findings.push(finding(Severity::Error, "guest", &place, why, help));
    }
    let locked = matches!(&told, Told::CloudInit(guest) if guest.user.is_none()
        && !["users", "ssh_authorized_keys"].iter().any(|own| guest.user_data.contains_key(*own)));
    if locked {
        desired.findings.push(finding(
            Severity::Warning,
            "no-login",
            &place,
            "nobody can log in to its guest: there is no password by default, and no key is given".to_owned(),
            "write `user: { name: …, sshKeys: […] }`",
        ));
    }
    if let Told::Autoinstall(Autoinstall { installs: Guest { user: Some(user), .. } }) = &told {
        let user = &user.name;
        desired.findings.push(finding(
            Severity::Note,
            "no-password",
            &place,
            format!("`{user}` has no password, which the login of its desktop asks for"),
            &format!("once it runs, by ssh as `{user}`: sudo passwd {user}"),
        ));
    }
    let path = path(directory, name);
    let key_files = told.keys().iter().filter_map(|k| match k {
        KeySource::Host(path) => Some(path.clone()),
        _ => None,
    });
    let seed = Seed {
        vm: name.clone(),
        path: path.clone(),
        inputs: inputs(&told).0,
        instance: told.guest().map_or_else(|| format!("gpuvm-{name}"), |guest| guest.instance.clone()),
        shown: match &told {
            Told::CloudInit(guest) | Told::Autoinstall(Autoinstall { installs: guest }) => shown(guest),
            Told::Windows(windows) => shown_of_windows(windows),
        },
        key_files: key_files.collect(),
        password_file: told.password_file().map(Path::to_owned),
        windows: vm.is_windows(),
        installer: matches!(told, Told::Autoinstall(_)),
        absent: false,
    };
    let key = desired.want(&place, after, seed);
    (path, key)
}

/// Wants the seed of a VM that goes to go with it.
pub(super) fn want_gone(desired: &mut Desired, name: &DomainName, directory: &Path, domain: Key) {
    let seed = Seed {
        vm: name.clone(),
        path: path(directory, name),
        inputs: String::new(),
        instance: String::new(),
        shown: BTreeMap::new(),
        key_files: Vec::new(),
        password_file: None,
        windows: false,
        installer: false,
        absent: true,
    };
    desired.want(&format!("vms.{name}"), [domain], seed);
}

/// What the seeds are made from by its digest, for the run that makes them.
pub(super) fn secrets(manifest: &Loaded, hostname: &str) -> BTreeMap<String, Vec<u8>> {
    let with = manifest.manifest.vms.iter().filter(|(_, vm)| !vm.absent && has_seed(vm));
    with.map(|(name, vm)| inputs(&told(manifest, hostname, name, vm).0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desktop_with_a_card_of_nvidias_is_packages_and_a_reboot() {
        let entry = |text: &str| serde_yaml::from_str::<UbuntuEntry>(text).unwrap();
        let (packages, commands) = ubuntu(&entry("{ desktop: true, nvidia: '580' }"));
        let want = [
            "linux-generic",
            "ubuntu-desktop-minimal",
            "linux-modules-nvidia-580-open-generic",
            "nvidia-driver-580-open",
        ];
        assert_eq!(packages, want);
        assert!(
            commands[0].contains("graphical.target") && commands.last().unwrap().contains("reboot"),
            "{commands:?}"
        );
        assert!(commands[1].contains("printf 'network: {version: 2, renderer: NetworkManager}\\n'"), "{}", commands[1]);
        let (packages, commands) = ubuntu(&entry("{ nvidia: '570', nvidiaModules: proprietary }"));
        assert_eq!(
            packages[1..],
            ["linux-modules-nvidia-570-generic", "nvidia-headless-no-dkms-570", "nvidia-utils-570"]
        );
        assert_eq!(commands.len(), 1);
    }

    #[test]
    fn a_guests_own_name_is_one_that_hosts_have() {
        assert_eq!(of_vm(&"my_vm.lan".parse().unwrap()), "my-vm-lan");
        assert_eq!(of_vm(&"a.".parse().unwrap()), "a");
    }
}
