//! `startAfter`: the order in which VMs start with the host. libvirt starts those that it is told to in no order that it
//! promises, so the ones that wait for others are started by a unit each, which waits until the others run. That a VM runs
//! is all that is known: whether what is in it is ready is a matter between guests.

use std::collections::BTreeSet;

use super::Desired;
use crate::manifest::{StartWhen, VmEntry};
use crate::plan::{FileWrite, Key, Refresh};
use crate::resource::file::File;
use crate::types::DomainName;

/// Wants the unit that starts a VM behind others at boot.
pub(super) fn desire(name: &DomainName, vm: &VmEntry, domain: &Key, desired: &mut Desired) {
    if vm.absent || vm.start != StartWhen::Boot || vm.start_after.is_empty() {
        return;
    }
    let mut want = |path: String, text: String| {
        let refreshes = BTreeSet::from([Refresh::DaemonReload]);
        let file = File { write: FileWrite::root(path, text, 0o644), take_over: false, refreshes };
        desired.want(&format!("vms.{name}.startAfter"), [domain.clone()], file);
    };
    want(format!("/etc/systemd/system/{}", unit(name)), text(name, &vm.start_after));
    want(
        format!("/etc/systemd/system/multi-user.target.d/gpuvm-start-{name}.conf"),
        format!(
            "# Written by gpuvm. `gpuvm.off` on the kernel's command line keeps the unit from starting.\n[Unit]\nWants={}\n",
            unit(name)
        ),
    );
}

fn unit(name: &DomainName) -> String {
    format!("gpuvm-start-{name}.service")
}

/// The names of VMs are words that neither systemd nor a shell reads anything into.
fn text(name: &DomainName, others: &[DomainName]) -> String {
    let others: Vec<&str> = others.iter().map(DomainName::as_str).collect();
    let after: String = others.iter().map(|other| format!(" gpuvm-start-{other}.service")).collect();
    let (others, virsh) = (others.join(" "), "virsh -q -c qemu:///system");
    // systemd wants `$` twice. Three minutes for each: one that never runs is no reason to wait for ever.
    format!(
        "# Written by gpuvm.\n\
         [Unit]\n\
         Description=VM {name}, behind {others}\n\
         ConditionKernelCommandLine=!gpuvm.off\n\
         After=libvirtd.service virtqemud.service libvirtd.socket virtqemud.socket{after}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         TimeoutStartSec=infinity\n\
         ExecStart=/bin/sh -c 'runs() {{ {virsh} domstate \"$$1\" 2>/dev/null | grep -qx running; }}; \
         for vm in {others}; do n=0; until runs $$vm; do n=$$((n + 1)); \
         [ $$n -le 90 ] || {{ echo \"VM $$vm does not run, so {name} is not started\" >&2; exit 1; }}; sleep 2; done; done; \
         runs {name} || exec {virsh} start {name}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::tests::PlayedRoot;

    /// Runs the shipped line with a virsh that knows these VMs to run.
    #[allow(clippy::disallowed_methods)] // tests start the shipped script themselves
    fn run(running: &str) -> (bool, String) {
        let root = PlayedRoot::new();
        root.write("running", running);
        let folder = root.path().display();
        root.program(
            "virsh",
            &format!(
                "shift 3\ncase $1 in domstate) grep -qx \"$2\" {folder}/running && echo running || echo 'shut off';;\n\
                 start) echo \"$2\" >> {folder}/started;; esac\n"
            ),
        );
        root.program("sleep", "exit 0\n");
        let text = text(&"web".parse().unwrap(), &["db".parse().unwrap(), "cache".parse().unwrap()]);
        let line = text.lines().find_map(|l| l.strip_prefix("ExecStart=/bin/sh -c '")).unwrap();
        let script = line.strip_suffix('\'').unwrap().replace("$$", "$");
        let path = format!("{folder}/bin:/usr/bin:/bin");
        let done = std::process::Command::new("/bin/sh").args(["-c", &script]).env("PATH", path).output().unwrap();
        (done.status.success(), root.read("started"))
    }

    #[test]
    fn it_starts_once_the_others_run_and_not_before() {
        assert_eq!(run("db\ncache\n"), (true, "web\n".to_owned()));
        assert_eq!(run("db\n"), (false, String::new()), "one of them never runs");
        assert_eq!(run("db\ncache\nweb\n"), (true, String::new()), "it runs already");
        assert_eq!(run("db2\ncache\n"), (false, String::new()), "a name is a whole name");
    }
}
