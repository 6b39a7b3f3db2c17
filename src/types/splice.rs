//! Changes of a text at given bytes, so that every byte beside them stays as it is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Some bytes of a text are replaced. Places are those of the text before any change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Splice {
    /// Where, in bytes.
    pub at: usize,
    /// How many bytes go away.
    pub remove: usize,
    /// What comes in their place.
    pub insert: String,
}

/// Why splices do not fit a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a change at byte {0} does not fit the text")]
pub struct SpliceError(pub usize);

/// The text with all splices applied. They are in order and do not overlap.
pub fn splice(text: &str, splices: &[Splice]) -> Result<String, SpliceError> {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for s in splices {
        let wrong = || SpliceError(s.at);
        let end = s.at.checked_add(s.remove).ok_or_else(wrong)?;
        out += text.get(done..s.at).ok_or_else(wrong)?;
        out += &s.insert;
        text.get(s.at..end).ok_or_else(wrong)?;
        done = end;
    }
    out += text.get(done..).ok_or(SpliceError(done))?;
    Ok(out)
}

/// The splices that lead back from the changed text to this one.
pub fn inverse(text: &str, splices: &[Splice]) -> Result<Vec<Splice>, SpliceError> {
    splice(text, splices)?;
    let (mut grown, mut shrunk) = (0, 0);
    Ok(splices
        .iter()
        .map(|s| {
            let back = Splice {
                at: s.at + grown - shrunk,
                remove: s.insert.len(),
                insert: text.get(s.at..s.at + s.remove).unwrap_or_default().to_owned(),
            };
            grown += s.insert.len();
            shrunk += s.remove;
            back
        })
        .collect())
}

/// What turns one text into another, by whole lines: those that both have are not in it.
pub fn line_edits(from: &str, to: &str) -> Vec<Splice> {
    let mut at = 0;
    let mut all: Vec<Splice> = Vec::new();
    let diff = similar::TextDiff::from_lines(from, to);
    for line in diff.iter_all_changes() {
        let text: &str = line.value();
        if line.tag() == similar::ChangeTag::Equal {
            at += text.len();
            continue;
        }
        if all.last().is_none_or(|last| last.at + last.remove != at) {
            all.push(Splice { at, remove: 0, insert: String::new() });
        }
        let Some(last) = all.last_mut() else { continue };
        if line.tag() == similar::ChangeTag::Delete {
            last.remove += text.len();
            at += text.len();
        } else {
            last.insert.push_str(text);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: usize, remove: usize, insert: &str) -> Splice {
        Splice { at, remove, insert: insert.to_owned() }
    }

    #[test]
    fn back_is_the_text_again() {
        let text = "eins\nzwei\ndrei\n";
        let there = [at(0, 5, ""), at(5, 4, "2 und mehr"), at(15, 0, "Ende\n")];
        let changed = splice(text, &there).unwrap();
        assert_eq!(changed, "2 und mehr\ndrei\nEnde\n");
        assert_eq!(splice(&changed, &inverse(text, &there).unwrap()).unwrap(), text);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for bad in
            [vec![at(9, 1, "")], vec![at(0, 4, ""), at(2, 1, "")], vec![at(1, 1, "")], vec![at(usize::MAX, 2, "")]]
        {
            assert!(splice("ä€", &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lines_that_stay_are_in_no_edit() {
        for (from, to) in [
            ("a\nsecret\nb\n", "x\nsecret\ny\n"),
            ("secret\nb", "secret\nc"),
            ("", "a\n"),
            ("a\n", ""),
            ("a\nsecret\n", "a\nb\nc\nsecret\n"),
            ("a\nb\nsecret\nc\n", "secret\n"),
        ] {
            let edits = line_edits(from, to);
            assert!(edits.iter().all(|e| !e.insert.contains("secret")), "{edits:?}");
            assert_eq!(splice(from, &edits).as_deref(), Ok(to), "{from:?} {edits:?}");
        }
    }
}
