//! What starts containers with GPUs: configured once by NVIDIA's container toolkit, which keeps what else is in the
//! configuration. Whether it is, the configuration itself tells.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Containers, Diff, FieldDiff, Place, Refresh, Risk};
use crate::types::UnitName;

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRuntime {
    /// Which.
    pub of: Containers,
    /// A package of the same manifest brings it.
    pub awaited: bool,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// Whether its program is installed.
    pub installed: bool,
    /// The file that says that it is configured.
    pub configured: Option<String>,
    /// What could not be looked at.
    pub unknown: Option<String>,
}

/// Where the toolkit adds its runtime: Docker's file (nvidia-ctk's default for it).
const DOCKER: &str = "/etc/docker/daemon.json";
/// containerd's: the drop-in that newer toolkits write, and the main file that older ones wrote into.
const CONTAINERD: [&str; 2] = ["/etc/containerd/conf.d/99-nvidia.toml", "/etc/containerd/config.toml"];
/// Files of the container device interface: ours, and the one that the toolkit's own unit keeps up to date.
const CDI: [&str; 2] = ["/etc/cdi/nvidia.yaml", "/run/cdi/nvidia.yaml"];

impl ContainerRuntime {
    /// The program that has to be there, and the unit that reads the configuration when it starts.
    fn needs(&self) -> Option<(&'static str, &'static str)> {
        match self.of {
            Containers::Docker => Some(("/usr/bin/dockerd", "docker.service")),
            Containers::Containerd => Some(("/usr/bin/containerd", "containerd.service")),
            Containers::Cdi => None,
        }
    }
    /// The file that has what the toolkit adds.
    fn file(&self) -> &'static str {
        self.changes()[0]
    }
    /// The files that the toolkit may change, the usual one first. Which of containerd's it is, depends on its version, and
    /// a drop-in is named in the main file's `imports`.
    fn changes(&self) -> &'static [&'static str] {
        match self.of {
            Containers::Docker => &[DOCKER],
            Containers::Containerd => &CONTAINERD,
            Containers::Cdi => &CDI[..1],
        }
    }
}

/// Docker's configuration has a runtime of that name.
fn docker_has_it(text: &str) -> bool {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(text);
    parsed.is_ok_and(|v| v["runtimes"]["nvidia"]["path"].is_string())
}

impl Resource for ContainerRuntime {
    const KIND: &'static str = "container-runtime";
    type State = RuntimeState;

    fn name(&self) -> String {
        self.of.name().to_owned()
    }

    fn probe(&self, host: &dyn Probe) -> Result<RuntimeState, HostError> {
        let mut state = RuntimeState { installed: true, ..RuntimeState::default() };
        if let Some((program, _)) = self.needs() {
            state.installed = matches!(host.stat(Path::new(program))?, Answer::Value(_));
        }
        let files: &[&str] = match self.of {
            Containers::Cdi => &CDI,
            _ => self.changes(),
        };
        for file in files {
            let has_it = match host.text(Path::new(file))? {
                Answer::Value(text) => match self.of {
                    Containers::Docker => docker_has_it(&text),
                    Containers::Containerd => text.contains("nvidia-container-runtime"),
                    Containers::Cdi => text.contains("nvidia.com/gpu"),
                },
                Answer::Absent => false,
                Answer::Denied => {
                    state.unknown = Some(format!("{file} may not be read (not root)"));
                    false
                }
            };
            if has_it && state.configured.is_none() {
                state.configured = Some((*file).to_owned());
            }
        }
        Ok(state)
    }

    /// What the toolkit changes, which is no step's own.
    fn at_boot(&self, _: &dyn Probe) -> Vec<Place> {
        self.changes().iter().map(|file| Place::File(file.into())).collect()
    }

    fn diff(&self, state: &RuntimeState, _: Option<&Self>, _: &HostFacts) -> Diff {
        if let Some(file) = &state.configured {
            return Diff::InSync { evidence: format!("in {file}") };
        }
        if let Some(why) = &state.unknown {
            return Diff::Unknown { why: why.clone() };
        }
        if !state.installed && !self.awaited {
            return Diff::Blocked {
                why: format!("{} is not installed", self.of.name()),
                help: "name its package under `packages` (docker.io, containerd), or take it out of `containers`"
                    .to_owned(),
            };
        }
        let mut change = Change::new(Action::Create, format!("nvidia-ctk {}", self.of.arguments().join(" ")));
        change.fields.push(FieldDiff::new(
            self.file(),
            Some("without NVIDIA's".to_owned()),
            Some("with it".to_owned()),
        ));
        change.refreshes.insert(Refresh::Containers(self.of));
        if let Some((_, unit)) = self.needs()
            && let Ok(unit) = unit.parse::<UnitName>()
        {
            change.notes.push(format!("{unit} is restarted, where it runs: its containers too, unless it keeps them"));
            change.risks.insert(Risk::ContainersRestart);
            change.refreshes.insert(Refresh::Restart(unit));
        }
        Diff::Change(change)
    }

    /// The toolkit has no way to take it out again; a runtime that nothing uses does no harm.
    fn remove(&self, _: &RuntimeState, _: &HostFacts) -> Diff {
        Diff::stays(format!("{} stays as it is", self.file()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_is_configured_where_the_runtime_has_a_path() {
        assert!(docker_has_it(r#"{"runtimes":{"nvidia":{"args":[],"path":"nvidia-container-runtime"}}}"#));
        for text in ["", "{}", r#"{"runtimes":{"other":{"path":"nvidia"}}}"#, "{\"runtimes\": \"nvidia\""] {
            assert!(!docker_has_it(text), "{text}");
        }
    }

    #[test]
    fn every_file_that_the_toolkit_may_change_is_kept_for_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root")).unwrap();
        crate::host::fixture::Record::default().save(&dir.path().join(crate::host::fixture::Record::NAME)).unwrap();
        let host = crate::host::fixture::Fixture::open(dir.path()).unwrap();
        for (of, files) in [
            (Containers::Docker, &["/etc/docker/daemon.json"][..]),
            (Containers::Containerd, &["/etc/containerd/conf.d/99-nvidia.toml", "/etc/containerd/config.toml"]),
            (Containers::Cdi, &["/etc/cdi/nvidia.yaml"]),
        ] {
            let places: Vec<Place> = files.iter().map(|f| Place::File(f.into())).collect();
            assert_eq!(ContainerRuntime { of, awaited: false }.at_boot(&host), places);
        }
    }

    #[test]
    fn one_that_is_not_there_is_refused_unless_it_comes() {
        let facts = super::super::tests::facts();
        let state = RuntimeState::default();
        let runtime = |awaited| ContainerRuntime { of: Containers::Docker, awaited };
        assert!(matches!(runtime(false).diff(&state, None, &facts), Diff::Blocked { .. }));
        let Diff::Change(change) = runtime(true).diff(&state, None, &facts) else { panic!("it comes") };
        // A rule of a policy can refuse it, whoever brings the daemon: it may run by then.
        assert_eq!(change.risks, [Risk::ContainersRestart].into());
        let cdi = ContainerRuntime { of: Containers::Cdi, awaited: true };
        let there = RuntimeState { installed: true, ..RuntimeState::default() };
        let Diff::Change(files) = cdi.diff(&there, None, &facts) else { panic!("it is not there yet") };
        assert!(files.risks.is_empty(), "nothing is restarted for files");
        // Configured first, then restarted.
        let names: Vec<String> = change.refreshes.iter().map(Refresh::name).collect();
        assert_eq!(names, ["container toolkit for docker", "restart docker.service"]);
        let done = RuntimeState { installed: true, configured: Some(DOCKER.to_owned()), unknown: None };
        assert!(matches!(runtime(false).diff(&done, None, &facts), Diff::InSync { .. }));
    }
}
