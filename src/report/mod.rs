//! Plan, facts and outcome as text, JSON and Markdown. Computes nothing: what is shown is what the plan holds.

mod facts;
mod gpus;
mod text;
mod topology;
mod vms;

pub use facts::facts_text;
pub use gpus::{MigNow, NamedGpu, explanation, gpu_list, gpu_status, next_boot, refused_start};
pub use text::{finding, outcome, plan_text, plan_text_as, refused, safe, verb_outcome};
pub use topology::{topology_svg, topology_text};
pub use vms::{ListedAddress, ListedSnapshot, Off, ip_list, snapshot_list, vm_info, vm_list};

use crate::plan::Plan;

/// A plan as JSON, with a line end.
pub fn plan_json(plan: &Plan) -> String {
    serde_json::to_string_pretty(plan).map(|t| t + "\n").unwrap_or_default()
}

/// A plan as Markdown, for a comment on a pull request.
pub fn plan_markdown(plan: &Plan) -> String {
    let text = anstream::adapter::strip_str(&plan_text(plan, text::Detail::Full)).to_string();
    // A fence longer than any run of backticks inside cannot be closed by a file's content.
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let head = format!("### gpuvm plan\n\n`{}`\n", first.replace('`', "'"));
    match rest.trim_matches('\n') {
        "" => head,
        rest => format!("{head}\n{fence}diff\n{rest}\n{fence}\n"),
    }
}

pub use text::Detail;
