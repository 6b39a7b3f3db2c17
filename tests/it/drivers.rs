//! What is refused of drivers before anything changes, and how a branch is changed: composed hosts, planned by the program
//! itself. What the real apt makes of pins and signatures is in `src/host/live/apt.rs`.

use std::fs;
use std::path::Path;

use crate::composed::{Machine, expand};
use crate::machine::{gpuvm, repository, stdout};

const REPOSITORY: &str = "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/";

/// A Debian 13 with one card, and what NVIDIA's repository has fetched already.
fn machine(card: &str) -> Machine {
    let case = repository().join("tests/cases/drivers-repository");
    let mut machine: Machine = serde_yaml::from_str(&fs::read_to_string(case.join("machine.yaml")).unwrap()).unwrap();
    machine.devices = machine.devices.replace("10de:2204", card);
    machine
}

fn fetched(machine: &mut Machine) {
    let list = "/var/lib/apt/lists/developer.download.nvidia.com_compute_cuda_repos_debian13_x86%5f64_Packages";
    let packages = machine.repositories[REPOSITORY].clone();
    machine.files.insert(list.to_owned(), packages);
}

fn installed(machine: &mut Machine, packages: &[&str]) {
    machine.packages.extend(packages.iter().map(|p| (*p).to_owned()));
}

struct Host(tempfile::TempDir);

impl Host {
    fn new(machine: &Machine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        expand(machine, &dir.path().join("host"));
        fs::copy(repository().join("tests/keys/test.asc"), dir.path().join("cuda.asc")).unwrap();
        Self(dir)
    }
    fn run(&self, verb: &str, manifest: &str, more: &[&str]) -> (i32, String) {
        fs::write(self.0.path().join("host.yaml"), format!("version: 1\n{manifest}")).unwrap();
        let out = gpuvm(&[&[verb, "-f", "host.yaml", "--root", "host"], more].concat(), self.0.path());
        let text = stdout(&out) + &String::from_utf8_lossy(&out.stderr);
        (out.status.code().unwrap(), text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join("host/root").join(path)).unwrap_or_default()
    }
}

fn fingerprint() -> String {
    fs::read_to_string(repository().join("tests/keys/test.fingerprint")).unwrap().trim().to_owned()
}

/// `drivers.nvidia` with NVIDIA's repository and these fields.
fn nvidia(fields: &str) -> String {
    let source = format!("{{ url: \"{REPOSITORY}\", key: cuda.asc, fingerprint: {} }}", fingerprint());
    format!("drivers: {{ nvidia: {{ {fields}, source: {source} }} }}\n")
}

#[test]
fn what_cannot_work_is_refused_before_anything_changes() {
    let ampere = || machine("10de:2204");
    let with = |change: &dyn Fn(&mut Machine)| {
        let mut machine = ampere();
        change(&mut machine);
        machine
    };
    let signed = |on: &str, files: &[(&str, &str)]| {
        let mut machine = ampere();
        machine.secure_boot = on.to_owned();
        fetched(&mut machine);
        machine.files.extend(files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())));
        machine
    };
    let certificate = "certificate of this host's own, which is longer than sixty-four bytes, as any is";
    let driver_595: &dyn Fn(&mut Machine) = &|m| {
        fetched(m);
        installed(m, &["nvidia-open=595.71.05-1", "libnvidia-compute=595.71.05-1"]);
    };
    let of = |fields: &str| nvidia(fields);
    let cases: Vec<(&str, Machine, String, &[&str])> = vec![
        (
            "a card that nobody knows",
            machine("10de:fff0"),
            of("branch: \"580\""),
            &["0000:01:00", "[10de:fff0] is not in the table", "write `kernelModule: open`"],
        ),
        (
            "proprietary modules for Blackwell",
            machine("10de:2b85"),
            of("branch: \"580\", kernelModule: proprietary"),
            &["the proprietary kernel modules do not work with 0000:01:00", "Blackwell needs the open ones"],
        ),
        (
            "open modules for Pascal",
            machine("10de:1b80"),
            of("branch: \"580\", kernelModule: open"),
            &["the open kernel modules do not work with 0000:01:00", "they need Turing or later"],
        ),
        (
            "a branch that has no driver for the card any more",
            machine("10de:1b80"),
            of("branch: \"590\""),
            &["branch 590 has no driver for 0000:01:00", "(Pascal): its last branch is 580"],
        ),
        (
            "a host that only passes through",
            ampere(),
            format!("gpus: {{ work: {{ match: \"0000:01:00\", use: vfio }} }}\n{}", of("branch: \"580\"")),
            &["every GPU of this maker is kept for VMs (0000:01:00)", "the host needs no driver for them"],
        ),
        (
            "no card of that maker",
            with(&|m| m.devices = m.devices.replace("10de:", "1002:")),
            of("branch: \"580\""),
            &["this host has no GPU of this maker (10de)"],
        ),
        (
            "a branch that the repository does not have",
            with(&fetched),
            of("branch: \"570\""),
            &["no list of apt's has NVIDIA's driver 570", "there is: 580.95.05, 590.48.01, 595.71.05"],
        ),
        (
            "a driver that the distribution does not have",
            ampere(),
            "drivers: { nvidia: { branch: \"580\" } }\n".to_owned(),
            &["no list of apt's has NVIDIA's driver 580", "is not among apt's sources"],
        ),
        (
            "a toolkit that the repository does not have",
            with(&fetched),
            of("branch: \"590\", cuda: \"12-9\""),
            &["no list of apt's has `cuda-toolkit-12-9`", "there is: cuda-toolkit-13-0"],
        ),
        (
            "another key than the one that is named",
            ampere(),
            of("branch: \"580\"").replace(&fingerprint(), &format!("\"{}\"", "0".repeat(40))),
            &["`cuda.asc` holds 5E9D87E8F5E0399A5722B5D596E94BC0BB1945B4, and `fingerprint` is 0000"],
        ),
        (
            "a repository that is there already, with another key",
            with(&|m| {
                let line = format!("deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] {REPOSITORY} /\n");
                m.files.insert("/etc/apt/sources.list.d/cuda-debian13-x86_64.list".to_owned(), line);
            }),
            of("branch: \"580\""),
            &["cuda-debian13-x86_64.list names this repository already", "apt reads none of its sources"],
        ),
        (
            "an older branch than the one that is there",
            with(driver_595),
            of("branch: \"590\""),
            &["nvidia-open 595.71.05 is installed, and 590 is older", "`allowDowngrade: true`"],
        ),
        (
            "an older version",
            with(driver_595),
            of("version: 595.58.03"),
            &["nvidia-open 595.71.05 is installed, and 595.58.03 is older"],
        ),
        (
            "secure boot without a key for what is built here",
            signed("on", &[]),
            of("branch: \"590\""),
            &["secure boot is on, and there is no key for it yet", "the kernel would refuse the modules"],
        ),
        (
            "a key that is not enrolled",
            signed("on", &[("/var/lib/dkms/mok.pub", certificate)]),
            of("branch: \"590\""),
            &["secure boot is on, and the key /var/lib/dkms/mok.pub is not enrolled"],
        ),
        (
            "secure boot that cannot be told",
            signed("hidden", &[]),
            of("branch: \"590\""),
            &["whether secure boot is on is not known"],
        ),
        (
            "docker that is not there",
            with(&|m| {
                fetched(m);
                m.files.remove("/usr/bin/dockerd");
            }),
            of("branch: \"590\", containers: [docker]"),
            &["docker is not installed", "docker.io"],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, machine, manifest, wanted) in &cases {
        let host = Host::new(machine);
        let (code, said) = host.run("plan", manifest, &[]);
        for text in wanted.iter().filter(|t| !said.contains(**t)) {
            wrong.push(format!("{what}: not said: {text}\n  {said}"));
        }
        if code != 1 {
            wrong.push(format!("{what}: exit {code}\n  {said}"));
        }
        let (code, said) = host.run("apply", manifest, &["--yes", "--reboot"]);
        if code == 0
            || host.text("var/lib/dpkg/status").contains("Package: nvidia-open\n")
                != machine.packages.iter().any(|p| p.starts_with("nvidia-open="))
            || !host.text("etc/apt/sources.list.d/gpuvm-nvidia.sources").is_empty()
        {
            wrong.push(format!("{what}: apply ended with {code}, and changed something\n  {said}"));
        }
    }
    // What is enrolled is no hindrance.
    let enrolled = "/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23";
    let fine = signed("on", &[("/var/lib/dkms/mok.pub", certificate), (enrolled, &format!("headers{certificate}"))]);
    let (_, said) = Host::new(&fine).run("plan", &of("branch: \"590\""), &[]);
    if said.contains("secure boot") {
        wrong.push(format!("an enrolled key: {said}"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A host with branch 580 by its suffix, to branch 590, and back where that is declared.
#[test]
fn a_change_of_branch_shows_what_goes_and_a_way_back_has_to_be_declared() {
    let mut machine = machine("10de:2204");
    fetched(&mut machine);
    installed(
        &mut machine,
        &[
            "nvidia-open-580=580.95.05-1",
            "nvidia-dkms-580-open=580.95.05-1",
            "libnvidia-compute-580=580.95.05-1",
            "linux-headers-6.12.41+deb13-amd64=1",
            "linux-headers-amd64=1",
        ],
    );
    let swap = "Remv nvidia-open-580 [580.95.05-1]\nRemv nvidia-dkms-580-open [580.95.05-1]\n\
                Inst libnvidia-compute (590.48.01-1 NVIDIA CUDA [amd64])\nInst nvidia-dkms-open (590.48.01-1 NVIDIA CUDA [amd64])\n\
                Inst nvidia-open (590.48.01-1 NVIDIA CUDA [amd64])\n";
    let back = "Remv nvidia-open [590.48.01-1]\nRemv nvidia-dkms-open [590.48.01-1]\n\
                Inst nvidia-dkms-580-open (580.95.05-1 NVIDIA CUDA [amd64])\nInst nvidia-open-580 (580.95.05-1 NVIDIA CUDA [amd64])\n";
    machine.apt.insert("nvidia-open".to_owned(), swap.to_owned());
    machine.apt.insert("nvidia-open-580".to_owned(), back.to_owned());
    let host = Host::new(&machine);

    // The branch that is there is in sync but for its source, nouveau and the boot.
    let (code, said) = host.run("apply", &nvidia("branch: \"590\""), &["--yes", "--reboot"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(host.text("sys/module/nvidia/version"), "590.48.01\n");
    let status = host.text("var/lib/dpkg/status");
    assert!(status.contains("Package: nvidia-open-580\nStatus: deinstall ok config-files"), "{status}");

    let (code, said) = host.run("plan", &nvidia("branch: \"580\""), &[]);
    assert!(code == 1 && said.contains("nvidia-open 590.48.01 is installed, and 580 is older"), "{said}");

    let declared = nvidia("branch: \"580\", allowDowngrade: true");
    let (code, said) = host.run("plan", &declared, &[]);
    assert_eq!(code, 2, "{said}");
    for text in [
        "[package-removal]",
        "nvidia-open: 590.48.01-1 →",
        "nvidia-open-580: 580.95.05-1",
        "version 590.48.01 runs, not 580",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let (code, said) = host.run("apply", &declared, &["--yes", "--reboot"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(host.text("sys/module/nvidia/version"), "580.95.05\n");
    let (code, said) = host.run("plan", &declared, &[]);
    assert!(code == 0 && said.contains("nothing to do"), "{said}");
}

/// One exact version is held by preferences of ours, which are there before apt is asked.
#[test]
fn a_version_is_pinned_before_apt_is_asked() {
    let mut machine = machine("10de:2204");
    fetched(&mut machine);
    let only = "linux-headers-6.12.41+deb13-amd64 linux-headers-amd64 nvidia-open";
    machine.apt.insert(
        only.to_owned(),
        "Inst nvidia-dkms-open (590.48.01-1 x [amd64])\nInst nvidia-open (590.48.01-1 x [amd64])\n\
        Inst linux-headers-6.12.41+deb13-amd64 (1 x [amd64])\nInst linux-headers-amd64 (1 x [amd64])\n"
            .to_owned(),
    );
    let host = Host::new(&machine);
    let manifest = nvidia("version: 590.48.01");
    let (code, said) = host.run("plan", &manifest, &["-v"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("Pin: version 590.48.01-* "), "{said}");
    assert!(said.contains("NVIDIA's driver 590.48.01 (open modules) is pinned first"), "{said}");
    let (code, said) = host.run("apply", &manifest, &["--yes", "--reboot"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(host.text("sys/module/nvidia/version"), "590.48.01\n");
    assert!(host.text("etc/apt/preferences.d/gpuvm-nvidia.pref").contains("Pin-Priority: 1001"));

    // Left out of the manifest: the source goes, what came from it stays.
    let (code, said) = host.run("apply", "packages: []\n", &["--yes", "--reboot"]);
    assert_eq!(code, 0, "{said}");
    assert!(host.text("etc/apt/sources.list.d/gpuvm-nvidia.sources").is_empty(), "{said}");
    assert!(host.text("var/lib/dpkg/status").contains("Package: nvidia-open\nStatus: install ok installed"));
    let _: &Path = host.0.path();
}
