//! stub
use serde::{Deserialize, Serialize};
use super::Resource;
use crate::{facts::HostFacts, host::{HostError, Probe}, plan::Diff};
/// stub
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {}
impl Resource for Volume {
    const KIND: &'static str = "volume";
    type State = ();
    fn name(&self) -> String { String::new() }
    fn probe(&self, _: &dyn Probe) -> Result<(), HostError> { Ok(()) }
    fn diff(&self, (): &(), _: Option<&Self>, _: &HostFacts) -> Diff { Diff::InSync { evidence: String::new() } }
    fn remove(&self, (): &(), _: &HostFacts) -> Diff { Diff::InSync { evidence: String::new() } }
}
