//! stub
use super::*;
pub(super) fn desire(_: &Loaded, _: &HostFacts, _: &mut Desired, _: &mut Shared) {}
