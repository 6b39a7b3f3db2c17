//! Writes into a manifest's text which GPUs a VM has: one name in or out of a list, and `use` of a GPU. Everything else,
//! comments and order too, stays byte for byte.

use std::ops::Range;

use super::insert::place;
use super::{Refused, refused};
use crate::net::yaml::{self, Kind, Node};

/// One replacement in a text.
struct Edit {
    range: Range<usize>,
    with: String,
}

/// The text in which a VM has a GPU, which is kept for VMs.
pub fn give(text: &str, vm: &str, gpu: &str) -> Result<String, Refused> {
    let root = root(text)?;
    let mut edits = vec![];
    edits.extend(listed(text, &root, vm, gpu)?);
    let usage = root.get("gpus").and_then(|g| g.value.get(gpu)).and_then(|g| g.value.get("use"));
    if let Some(usage) = usage.filter(|u| u.value.scalar() == Some("host")) {
        edits.push(Edit { range: usage.value.span.clone(), with: "vfio".to_owned() });
    }
    Ok(edited(text, edits))
}

/// The text in which a VM does not have a GPU.
pub fn take(text: &str, vm: &str, gpu: &str) -> Result<String, Refused> {
    let root = root(text)?;
    Ok(edited(text, unlisted(text, &root, vm, gpu).into_iter().collect()))
}

fn root(text: &str) -> Result<Node, Refused> {
    let document = yaml::read(text).map_err(|why| refused(why, "correct it first: gpuvm validate"))?;
    document.root.ok_or_else(|| refused("the manifest is empty", "write one: gpuvm init"))
}

fn edited(text: &str, mut edits: Vec<Edit>) -> String {
    // From the back, so that what is in front of an edit stays where it is.
    edits.sort_by_key(|e| std::cmp::Reverse(e.range.start));
    edits.into_iter().fold(text.to_owned(), |mut text, edit| {
        text.replace_range(edit.range, &edit.with);
        text
    })
}

fn by_hand(vm: &str, gpu: &str) -> Refused {
    refused(
        format!("the entry of VM `{vm}` is written in a way that is not edited"),
        format!("write `gpus: [{gpu}]` there"),
    )
}

fn listed(text: &str, root: &Node, vm: &str, gpu: &str) -> Result<Option<Edit>, Refused> {
    let entry = root.get("vms").and_then(|v| v.value.get(vm));
    let entry =
        entry.ok_or_else(|| refused(format!("the manifest has no VM `{vm}`"), "take it over first: gpuvm adopt"))?;
    let at = |at: usize, with: String| Some(Edit { range: at..at, with });
    let Some(list) = entry.value.get("gpus") else {
        let last = entry.value.pairs().last().ok_or_else(|| by_hand(vm, gpu))?;
        if entry.value.flow {
            return Ok(at(last.value.span.end, format!(", gpus: [{gpu}]")));
        }
        let (end, pad, _) = place(text, &entry.value).ok_or_else(|| by_hand(vm, gpu))?;
        let line = if text[..end].ends_with('\n') { "" } else { "\n" };
        return Ok(at(end, format!("{line}{pad}gpus: [{gpu}]\n")));
    };
    let Kind::Seq(items) = &list.value.kind else { return Err(by_hand(vm, gpu)) };
    if items.iter().any(|i| i.scalar() == Some(gpu)) {
        return Ok(None);
    }
    match items.last() {
        None => Ok(Some(Edit { range: list.value.span.clone(), with: format!("[{gpu}]") })),
        Some(last) if list.value.flow => Ok(at(last.span.end, format!(", {gpu}"))),
        Some(last) => {
            let line = text[..last.span.start].rfind('\n').map_or(0, |n| n + 1);
            let dash = &text[line..last.span.start];
            if dash.trim_start().trim_end() != "-" {
                return Err(by_hand(vm, gpu));
            }
            let end = text[last.span.end..].find('\n').map_or(text.len(), |n| last.span.end + n);
            Ok(at(end, format!("\n{dash}{gpu}")))
        }
    }
}

fn unlisted(text: &str, root: &Node, vm: &str, gpu: &str) -> Option<Edit> {
    let list = root.get("vms")?.value.get(vm)?.value.get("gpus")?;
    let items = list.value.items();
    let at = items.iter().position(|i| i.scalar() == Some(gpu))?;
    let item = items.get(at)?;
    let range = match (items.get(at + 1), at.checked_sub(1).and_then(|before| items.get(before))) {
        (None, None) if list.value.flow => item.span.clone(),
        (None, None) => {
            let begin = list.key_span.start;
            return Some(Edit { range: begin..item.span.end, with: "gpus: []".to_owned() });
        }
        (Some(next), _) if list.value.flow => item.span.start..next.span.start,
        (None, Some(before)) if list.value.flow => before.span.end..item.span.end,
        _ => {
            let line = text[..item.span.start].rfind('\n').map_or(0, |n| n + 1);
            line..text[item.span.end..].find('\n').map_or(text.len(), |n| item.span.end + n + 1)
        }
    };
    Some(Edit { range, with: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPUS: &str =
        "gpus:\n  a: { match: '0000:01:00', use: host }   # the first\n  b: { match: '0000:02:00', use: vfio }\n";

    #[test]
    fn one_name_goes_in_and_out_and_every_other_byte_stays() {
        for (without, with) in [
            ("vms:\n  x: { cpus: 1 }   # one\n", "vms:\n  x: { cpus: 1, gpus: [b] }   # one\n"),
            ("vms:\n  x: { cpus: 1, gpus: [] }\n", "vms:\n  x: { cpus: 1, gpus: [b] }\n"),
            (
                "vms:\n  x:\n    cpus: 1\n  y: { cpus: 1 }\n",
                "vms:\n  x:\n    cpus: 1\n    gpus: [b]\n  y: { cpus: 1 }\n",
            ),
            ("vms:\n  x:\n    gpus: [ c ]   # its own\n", "vms:\n  x:\n    gpus: [ c, b ]   # its own\n"),
            (
                "vms:\n  x:\n    gpus:\n      - c   # its own\n    cpus: 1\n",
                "vms:\n  x:\n    gpus:\n      - c   # its own\n      - b\n    cpus: 1\n",
            ),
        ] {
            let (without, with) = (format!("{GPUS}{without}"), format!("{GPUS}{with}"));
            assert_eq!(give(&without, "x", "b").unwrap(), with);
            assert_eq!(give(&with, "x", "b").unwrap(), with, "it has it already");
            let back = take(&with, "x", "b").unwrap();
            let same = |text: &str| text.replace(", gpus: []", "").replace("    gpus: []\n", "");
            assert_eq!(same(&back), same(&without));
            assert_eq!(take(&back, "x", "b").unwrap(), back, "it does not have it");
        }
    }

    #[test]
    fn a_gpu_of_the_hosts_becomes_one_for_vms() {
        let given = give(&format!("{GPUS}vms:\n  x: {{ cpus: 1 }}\n"), "x", "a").unwrap();
        assert!(given.contains("a: { match: '0000:01:00', use: vfio }   # the first\n"), "{given}");
    }

    #[test]
    fn what_is_not_there_or_not_edited_is_said() {
        assert!(give(GPUS, "x", "b").unwrap_err().why.contains("no VM `x`"));
        let said = give("vms:\n  x: { gpus: b }\n", "x", "b").unwrap_err();
        assert!(said.help.contains("gpus: [b]"), "{said:?}");
    }
}
