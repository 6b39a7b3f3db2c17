//! What the kinds of libvirt share: how libvirt answered, and what a thing waits for that libvirt cannot be asked about.

use std::sync::Arc;

use crate::host::{Answer, HostError, Probe, Virtualisation};
use crate::plan::{Change, Diff, WaitFor};

/// What libvirt answered: everything that it knows, in one answer.
pub type Libvirt = Answer<Arc<Virtualisation>>;

pub(super) fn ask(host: &dyn Probe) -> Result<Libvirt, HostError> {
    host.virtualisation()
}

/// What libvirt knows; else why that cannot be told yet, with what it will become once it is installed.
pub(super) fn known(state: &Libvirt, promise: impl FnOnce() -> Change) -> Result<&Virtualisation, Box<Diff>> {
    match state {
        Answer::Value(known) => Ok(known),
        Answer::Absent => Err(Box::new(Diff::Waits {
            on: WaitFor::Libvirt,
            why: "libvirt is not installed, or its daemon has no socket".to_owned(),
            promise: promise(),
        })),
        Answer::Denied => {
            Err(Box::new(Diff::Unknown { why: "this user may not ask libvirt: run gpuvm as root".to_owned() }))
        }
    }
}
