//! A YAML text as a tree that knows the bytes of every key and value, for changing a file at some places only.
//!
//! Unlike the manifest's reader it never expands an alias: a text with anchors is read, and marked as one that is not
//! to be changed.

use std::collections::BTreeSet;
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Where it is written.
    pub span: Range<usize>,
    pub kind: Kind,
    /// Written with brackets.
    pub flow: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Text; `plain` where it has no quotes.
    Scalar { text: String, plain: bool },
    /// A list.
    Seq(Vec<Node>),
    /// A mapping.
    Map(Vec<Pair>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    pub key: String,
    pub key_span: Range<usize>,
    pub value: Node,
}

/// A whole text.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// `None` for a text of comments only.
    pub root: Option<Node>,
    /// Whether anything has an anchor, an alias or a merge key.
    pub anchors: bool,
}

impl Node {
    pub fn pairs(&self) -> &[Pair] {
        if let Kind::Map(pairs) = &self.kind { pairs } else { &[] }
    }
    pub fn items(&self) -> &[Node] {
        if let Kind::Seq(items) = &self.kind { items } else { &[] }
    }
    pub fn get(&self, key: &str) -> Option<&Pair> {
        self.pairs().iter().find(|p| p.key == key)
    }
    pub fn scalar(&self) -> Option<&str> {
        if let Kind::Scalar { text, .. } = &self.kind { Some(text) } else { None }
    }
    /// The same value, wherever it is written and with whichever quotes.
    pub fn same(&self, other: &Node) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Scalar { text: a, .. }, Kind::Scalar { text: b, .. }) => a == b,
            (Kind::Seq(a), Kind::Seq(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            (Kind::Map(a), Kind::Map(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && a.value.same(&b.value))
            }
            _ => false,
        }
    }
}

/// Deeper than any file that a person writes; keeps the reader's own stack small.
const DEEPEST: usize = 40;

/// Reads a text with at most one document.
pub(crate) fn read(source: &str) -> Result<Document, String> {
    let mut reader = Reader { parser: Parser::new_from_str(source), source, anchors: false };
    let mut root = None;
    loop {
        let (event, _) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(Document { root, anchors: reader.anchors }),
            Event::DocumentStart(..) if root.is_some() => return Err("it holds more than one document".to_owned()),
            Event::DocumentStart(..) => {
                let (event, span) = reader.next()?;
                root = Some(reader.node(event, span, 0)?);
            }
            _ => {}
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    source: &'a str,
    anchors: bool,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Range<usize>), String> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.byte_range().unwrap_or(0..0))),
            Some(Err(e)) => Err(format!("it is not valid YAML: line {}: {}", e.marker().line(), e.info())),
            None => Ok((Event::StreamEnd, 0..0)),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Range<usize>, depth: usize) -> Result<Node, String> {
        if depth > DEEPEST {
            return Err("it is nested too deeply".to_owned());
        }
        self.anchors |= event.anchor_id().is_some();
        let flow = self.source.get(span.start..).is_some_and(|s| s.starts_with(['{', '[']));
        let mut end = span.end;
        let kind = match event {
            Event::Scalar(text, style, ..) => {
                // The span of a block scalar takes the blank lines after it along.
                let written = self.source.get(span.clone()).unwrap_or_default();
                end = span.start + written.trim_end().len();
                Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }
            }
            Event::Alias(_) => {
                self.anchors = true;
                Kind::Scalar { text: self.source.get(span.clone()).unwrap_or_default().to_owned(), plain: true }
            }
            Event::SequenceStart(..) => {
                let mut items: Vec<Node> = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        end = if flow { at.end } else { items.last().map_or(end, |i| i.span.end) };
                        break Kind::Seq(items);
                    }
                    items.push(self.node(event, at, depth + 1)?);
                }
            }
            Event::MappingStart(..) => {
                let mut pairs: Vec<Pair> = Vec::new();
                let mut seen = BTreeSet::new();
                loop {
                    let (event, key_span) = self.next()?;
                    self.anchors |= event.anchor_id().is_some();
                    let key = match event {
                        Event::MappingEnd => {
                            end = if flow { key_span.end } else { pairs.last().map_or(end, |p| p.value.span.end) };
                            break Kind::Map(pairs);
                        }
                        Event::Scalar(text, ..) => text.into_owned(),
                        _ => return Err("a key is not a plain word".to_owned()),
                    };
                    self.anchors |= key == "<<";
                    if !seen.insert(key.clone()) {
                        return Err(format!("`{key}` is given twice in one mapping"));
                    }
                    let (event, at) = self.next()?;
                    let mut value = self.node(event, at, depth + 1)?;
                    // A value that is not there has no place of its own.
                    if value.span.end < key_span.end {
                        value.span = key_span.end..key_span.end;
                    }
                    pairs.push(Pair { key, key_span, value });
                }
            }
            _ => return Err("a value is missing".to_owned()),
        };
        Ok(Node { span: span.start..end, kind, flow })
    }
}

/// Writes a value after `key:`, its children below at this depth of two blanks each.
pub(crate) fn write(out: &mut String, node: &Node, depth: usize) {
    let pad = "  ".repeat(depth);
    match &node.kind {
        Kind::Scalar { text, plain } => {
            *out += " ";
            *out += &scalar(text, *plain);
            *out += "\n";
        }
        Kind::Seq(items) if items.is_empty() => *out += " []\n",
        Kind::Map(pairs) if pairs.is_empty() => *out += " {}\n",
        Kind::Seq(items) => {
            *out += "\n";
            for item in items {
                *out += &format!("{pad}-");
                match &item.kind {
                    Kind::Map(pairs) if !pairs.is_empty() => {
                        for (i, pair) in pairs.iter().enumerate() {
                            *out += &if i == 0 { " ".to_owned() } else { format!("{pad}  ") };
                            *out += &format!("{}:", word(&pair.key));
                            write(out, &pair.value, depth + 2);
                        }
                    }
                    _ => write(out, item, depth + 1),
                }
            }
        }
        Kind::Map(pairs) => {
            *out += "\n";
            for pair in pairs {
                write_pair(out, pair, depth);
            }
        }
    }
}

/// Writes `key: value` at this depth.
pub(crate) fn write_pair(out: &mut String, pair: &Pair, depth: usize) {
    *out += &format!("{}{}:", "  ".repeat(depth), word(&pair.key));
    write(out, &pair.value, depth + 1);
}

/// A key: without quotes where it cannot be read as anything but text.
pub(crate) fn word(key: &str) -> String {
    let simple = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    // YAML 1.1 takes these for booleans and nothing.
    let other =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&key.to_ascii_lowercase().as_str());
    if simple && !other { key.to_owned() } else { scalar(key, false) }
}

/// A scalar as it was: plain ones stay plain, others get double quotes, which JSON's escapes fit.
fn scalar(text: &str, plain: bool) -> String {
    if plain && !text.contains('\n') { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> String {
        let document = read(text).unwrap();
        let mut out = String::new();
        for pair in document.root.unwrap().pairs() {
            write_pair(&mut out, pair, 0);
        }
        out
    }

    #[test]
    fn what_is_written_reads_as_the_same_value() {
        let text = "a: {x: [1, 'two', \"fe80::1\"], y: {}}\nb:\n- to: default\n  via: fe80::1\n- [1, 2]\n- plain text\nc: |\n  line 1\n  line 2\n\nd: []\n\"on\": ~\n";
        let once = again(text);
        let value = |t: &str| serde_yaml::from_str::<serde_yaml::Value>(t).unwrap();
        assert_eq!(value(&once), value(text), "{once}");
        assert_eq!(again(&once), once);
    }

    #[test]
    fn every_place_is_the_text_itself() {
        let text = "a:\n  b: {c: 1}   # why\n  d: |\n    x\n\n\ne: 'q'\n";
        let root = read(text).unwrap().root.unwrap();
        let a = &root.get("a").unwrap().value;
        assert_eq!(&text[a.get("b").unwrap().value.span.clone()], "{c: 1}");
        assert!(text[a.get("d").unwrap().value.span.clone()].ends_with("x"));
        assert_eq!(&text[root.get("e").unwrap().value.span.clone()], "'q'");
    }

    #[test]
    fn anchors_are_noticed_and_bombs_do_not_grow() {
        assert!(read("a: &x {b: 1}\nc: *x\n").unwrap().anchors);
        assert!(read("a: {<<: 1}\n").unwrap().anchors);
        assert!(!read("a: 1\n").unwrap().anchors);
        assert!(read("# only\n").unwrap().root.is_none());
        assert!(read("a: 1\n---\nb: 1\n").is_err());
        assert!(read("a: 1\na: 2\n").is_err());
        assert!(read(&"[".repeat(5000)).is_err());
    }
}
