//! Puts an entry into a manifest's text: everything that is there, comments and order too, stays byte for byte.

use std::ops::Range;

use super::{Refused, refused};
use crate::net::yaml::{self, Kind, Node};

/// What stands under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// On the key's own line.
    Inline(String),
    /// Below it, each line without the depth.
    Block(Vec<String>),
}

fn entry(pad: &str, key: &str, value: &Value) -> String {
    match value {
        Value::Inline(text) => format!("{pad}{key}: {text}\n"),
        Value::Block(lines) => {
            let body = lines.iter().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("{pad}  {l}\n") });
            format!("{pad}{key}:\n{}", body.collect::<String>())
        }
    }
}

/// The entry with its section.
pub(super) fn whole(section: Option<&str>, key: &str, value: &Value) -> String {
    match section {
        None => entry("", key, value),
        Some(section) => format!("{section}:\n{}", entry("  ", key, value)),
    }
}

/// The text with `key` in a section that is a mapping, or with `key` at the top where no section is named.
pub(super) fn insert(text: &str, section: Option<&str>, key: &str, value: &Value) -> Result<String, Refused> {
    let by_hand = |why: &str| {
        let place = section.map_or("at the top".to_owned(), |s| format!("under `{s}`"));
        refused(format!("{why}, which is not edited: put the entry {place} yourself"), entry("", key, value))
    };
    let document = yaml::read(text).map_err(|why| refused(why, "correct it first: gpuvm validate"))?;
    let root = document.root.ok_or_else(|| refused("the manifest is empty", "write one: gpuvm init"))?;
    if root.flow {
        return Err(by_hand("the manifest is written with braces"));
    }
    let mut new = text.to_owned();
    match section.map(|s| (s, root.get(s))) {
        None | Some((_, None)) => append(&mut new, &whole(section, key, value)),
        Some((section, Some(pair))) => {
            let (at, pad, cut) =
                place(text, &pair.value).ok_or_else(|| by_hand(&format!("`{section}` is written with braces")))?;
            let mut piece = entry(&pad, key, value);
            if !text[..at].ends_with('\n') {
                piece.insert(0, '\n');
            }
            new.insert_str(at, &piece);
            new.replace_range(cut, "");
        }
    }
    // A file with the line ends of another system keeps them.
    Ok(if text.contains("\r\n") { new.replace("\r\n", "\n").replace('\n', "\r\n") } else { new })
}

fn append(text: &mut String, section: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push('\n');
    text.push_str(section);
}

/// Where a new entry of a mapping goes, at which depth, and what of the old text goes away for it (empty braces).
pub(super) fn place(text: &str, map: &Node) -> Option<(usize, String, Range<usize>)> {
    let line_end = |at: usize| text[at..].find('\n').map_or(text.len(), |n| at + n + 1);
    match &map.kind {
        Kind::Map(pairs) if !map.flow => {
            let (first, last) = (pairs.first()?, pairs.last()?);
            let line = text[..first.key_span.start].rfind('\n').map_or(0, |n| n + 1);
            let pad = text[line..first.key_span.start].to_owned();
            if !pad.chars().all(|c| c == ' ') {
                return None;
            }
            let mut at = line_end(last.value.span.end.max(last.key_span.end));
            // Comments that belong to the last entry stay with it.
            while let Some(line) = text[at..].lines().next() {
                let depth = line.len() - line.trim_start_matches(' ').len();
                if !line.trim_start().starts_with('#') || depth <= pad.len().saturating_sub(1) || pad.is_empty() {
                    break;
                }
                at = line_end(at);
            }
            Some((at, pad, 0..0))
        }
        Kind::Map(pairs) if pairs.is_empty() => {
            let before = text[..map.span.start].trim_end_matches(' ').len();
            Some((line_end(map.span.end), "  ".to_owned(), before..map.span.end))
        }
        Kind::Scalar { text: word, plain: true } if word.is_empty() => {
            Some((line_end(map.span.end), "  ".to_owned(), 0..0))
        }
        Kind::Scalar { text: word, plain: true } if matches!(word.as_str(), "~" | "null") => {
            Some((line_end(map.span.end), "  ".to_owned(), map.span.clone()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> String {
        insert(text, Some("vms"), "new", &Value::Block(vec!["cpus: 1".to_owned()])).unwrap()
    }

    #[test]
    fn everything_that_is_there_stays() {
        for (text, want) in [
            ("version: 1\n", "version: 1\n\nvms:\n  new:\n    cpus: 1\n"),
            ("version: 1", "version: 1\n\nvms:\n  new:\n    cpus: 1\n"),
            ("vms: {}   # none\nhost: a\n", "vms:   # none\n  new:\n    cpus: 1\nhost: a\n"),
            ("vms:\nhost: a\n", "vms:\n  new:\n    cpus: 1\nhost: a\n"),
            (
                "vms:\n    a: { cpus: 2 }   # one\n    # about a\n# about host\nhost: a\n",
                "vms:\n    a: { cpus: 2 }   # one\n    # about a\n    new:\n      cpus: 1\n# about host\nhost: a\n",
            ),
            ("vms:\n  a:\n    cpus: 2", "vms:\n  a:\n    cpus: 2\n  new:\n    cpus: 1\n"),
            ("a: 1\r\nvms:\r\n  a: 1\r\n", "a: 1\r\nvms:\r\n  a: 1\r\n  new:\r\n    cpus: 1\r\n"),
        ] {
            assert_eq!(block(text), want);
        }
    }

    #[test]
    fn what_is_written_with_braces_is_left_to_a_person() {
        let said = insert("vms: { a: { cpus: 1 } }\n", Some("vms"), "new", &Value::Inline("1".to_owned())).unwrap_err();
        assert!(said.why.contains("braces") && said.help == "new: 1\n", "{said:?}");
    }
}
