//! A YAML document as a tree in which every key and every value knows its bytes.
//!
//! Built from granit-parser's events. What is refused here, no later stage can see: more than one document, duplicate
//! keys, keys that are not scalars, and aliases that expand past a budget of nodes ("billion laughs"). The depth is
//! bounded by the parser itself.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};

/// A range of bytes of the source.
pub type Span = Range<usize>;

/// A value.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it is written; for an alias, where the alias is.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
    /// Left out when the tree is read: a problem was reported here already.
    pub pruned: Cell<bool>,
    /// Fields that the mapping must have and does not: reported, and read as stand-ins, so that the rest is checked too.
    pub lacks: RefCell<Vec<&'static str>>,
}

/// What a value is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Text; `plain` where it was written without quotes, so that it may also be a number, a boolean or nothing.
    Scalar { text: String, plain: bool },
    /// A list.
    Seq(Vec<Node>),
    /// A mapping in the order of the file, its keys distinct.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone)]
pub struct Key {
    pub name: String,
    pub span: Span,
    /// What is read in its place, once a problem of the key itself was reported: so that what stands under it is checked
    /// too. The last one that is set counts.
    pub instead: [OnceCell<String>; STAND_INS],
}

/// How many names are tried in the place of one that is wrong.
pub const STAND_INS: usize = 3;

impl Key {
    /// The key as it is read.
    pub fn reads_as(&self) -> &str {
        self.instead.iter().rev().find_map(OnceCell::get).unwrap_or(&self.name)
    }

    /// Has a valid name read in the place of this one, another each time; `false` once there is none left. The kinds of
    /// names are words, absolute paths and units of systemd.
    pub fn try_another(&self) -> bool {
        let at = self.span.start;
        let names = [format!("x-{at}-x"), format!("/x-{at}-x"), format!("x-{at}-x.service")];
        let mut free = self.instead.iter().zip(names).filter(|(cell, _)| cell.get().is_none());
        free.next().is_some_and(|(cell, name)| cell.set(name).is_ok())
    }
}

/// A message with the places that it is about; the first label is the primary one.
#[derive(Debug, Clone)]
pub struct Problem {
    pub message: String,
    /// The path of keys to the place; empty for the document itself.
    pub path: String,
    pub labels: Vec<(Span, String)>,
    pub help: Option<String>,
}

impl Problem {
    /// A problem of the document with one place.
    pub fn at(span: Span, message: impl Into<String>, label: impl Into<String>) -> Self {
        Problem { message: message.into(), path: String::new(), labels: vec![(span, label.into())], help: None }
    }
}

/// More than any manifest of one host has, and few enough to be read in a moment.
const MAX_NODES: usize = 50_000;

/// Reads one document. Problems that leave a usable tree (duplicate keys) are returned beside it, so that they are
/// reported together with those of later stages.
pub fn parse(source: &str) -> Result<(Node, Vec<Problem>), Problem> {
    let mut builder = Builder {
        parser: Parser::new_from_str(source),
        source,
        anchors: HashMap::new(),
        nodes: 0,
        problems: Vec::new(),
    };
    let mut root = None;
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(..) if root.is_some() => {
                return Err(Problem::at(span, "more than one YAML document", "a second document starts here"));
            }
            Event::DocumentStart(..) => {
                let (event, span) = builder.next()?;
                root = Some(builder.node(event, span)?);
            }
            _ => {}
        }
    }
    let root = root.ok_or_else(|| Problem::at(0..0, "the file is empty", "expected a manifest"))?;
    Ok((root, builder.problems))
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    source: &'a str,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: Vec<Problem>,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.byte_range().unwrap_or(0..0))),
            Some(Err(error)) => {
                let at = error.marker().byte_offset().unwrap_or(self.source.len()).min(self.source.len());
                let why = Some(error.info()).filter(|i| !i.is_empty()).map(|i| format!(": {i}")).unwrap_or_default();
                let mut problem = Problem::at(at..at + 1, format!("not valid YAML{why}"), "");
                // The parser stops at the tab, somewhere behind it, or in the line above.
                let bytes = self.source.as_bytes();
                let blank = |b: &u8| matches!(b, b'\n' | b'\r' | b' ');
                let line_end = bytes.iter().skip(at).position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n);
                let below = bytes.iter().skip(line_end).position(|b| !blank(b)).map(|n| line_end + n);
                let line = bytes.iter().take(at).rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
                let indent = bytes.iter().skip(line).position(|b| !blank(b)).map(|n| line + n);
                let near = [Some(at), at.checked_sub(1), indent, below];
                if let Some(tab) = near.into_iter().flatten().find(|i| bytes.get(*i) == Some(&b'\t')) {
                    problem.labels = vec![(tab..tab + 1, "a tab".to_owned())];
                    problem.help = Some("indent with spaces; YAML does not allow tabs".into());
                }
                Err(problem)
            }
            None => Ok((Event::StreamEnd, 0..0)),
        }
    }

    fn count(&mut self, nodes: usize, at: &Span) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            let label = format!("with this there are more than {MAX_NODES}");
            return Err(Problem::at(at.clone(), "too many values, or aliases that expand to too many", label));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node, Problem> {
        self.count(1, &span)?;
        let anchor = event.anchor_id();
        let (kind, span) = match event {
            Event::Scalar(text, style, ..) => {
                (Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }, span)
            }
            Event::Alias(id) => {
                let target = self.anchors.get(&id);
                let missing = || Problem::at(span.clone(), "an alias inside its own anchor", "");
                let mut node = target.cloned().ok_or_else(missing)?;
                self.count(size(&node), &span)?;
                node.span = span;
                return Ok(node);
            }
            Event::SequenceStart(..) => self.sequence(span)?,
            Event::MappingStart(..) => self.mapping(span)?,
            _ => return Err(Problem::at(span, "expected a value", "")),
        };
        let node = Node { span, kind, pruned: Cell::new(false), lacks: RefCell::default() };
        if let Some(id) = anchor {
            self.count(size(&node), &node.span)?;
            self.anchors.insert(id, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, span: Span) -> Result<(Kind, Span), Problem> {
        let mut items = Vec::new();
        let mut end = span.end;
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok((Kind::Seq(items), span.start..end));
            }
            let item = self.node(event, at)?;
            end = end.max(item.span.end);
            items.push(item);
        }
    }

    fn mapping(&mut self, span: Span) -> Result<(Kind, Span), Problem> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut merges = Vec::new();
        let mut start = None;
        let mut end = span.end;
        loop {
            let (event, at) = self.next()?;
            let name = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Problem::at(at, "a key must be a plain word", "this is not one")),
            };
            start.get_or_insert(at.start);
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at)?;
            end = value.span.end.max(at.end);
            if name == "<<" {
                merges.push((at, value));
                continue;
            }
            if let Some(first) = seen.get(&name) {
                self.problems.push(Problem {
                    message: format!("`{name}` is given twice"),
                    path: String::new(),
                    labels: vec![(at, "given again here".into()), (first.clone(), "first given here".into())],
                    help: None,
                });
                continue;
            }
            seen.insert(name.clone(), at.clone());
            entries.push((Key { name, span: at, instead: Default::default() }, value));
        }
        merge(&mut entries, merges)?;
        Ok((Kind::Map(entries), start.unwrap_or(span.start)..end))
    }
}

/// `<<: *base` or `<<: [*a, *b]`: the mapping's own keys win, then the first that has the key.
fn merge(entries: &mut Vec<(Key, Node)>, merges: Vec<(Span, Node)>) -> Result<(), Problem> {
    let mut known: HashSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
    for (at, value) in merges {
        let kinds = match value.kind {
            Kind::Seq(items) => items.into_iter().map(|item| item.kind).collect(),
            kind => vec![kind],
        };
        for kind in kinds {
            let Kind::Map(others) = kind else {
                return Err(Problem::at(at, "`<<` merges mappings only", "this is not one"));
            };
            entries.extend(others.into_iter().filter(|(key, _)| known.insert(key.name.clone())));
        }
    }
    Ok(())
}

/// What was read in the place of names, with what was written; outermost first.
pub fn stand_ins(node: &Node) -> Vec<(&str, &str)> {
    match &node.kind {
        Kind::Scalar { .. } => Vec::new(),
        Kind::Seq(items) => items.iter().flat_map(stand_ins).collect(),
        Kind::Map(entries) => {
            let own = |key: &'_ Key| key.reads_as() != key.name;
            let of = entries.iter().filter(|(key, _)| own(key)).map(|(key, _)| (key.reads_as(), key.name.as_str()));
            of.chain(entries.iter().flat_map(|(_, value)| stand_ins(value))).collect()
        }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::Scalar { .. } => 0,
        Kind::Seq(items) => items.iter().map(size).sum(),
        Kind::Map(entries) => entries.iter().map(|(_, value)| size(value)).sum(),
    }
}

/// A value with the path of keys that leads to it, and its key.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    node: &'a Node,
    key: Option<&'a Span>,
    /// The path of keys, as problems show it.
    pub path: String,
}

impl<'a> Place<'a> {
    /// The document itself.
    pub fn root(node: &'a Node) -> Self {
        Place { node, key: None, path: String::new() }
    }

    /// Where the value is written.
    pub fn span(&self) -> Span {
        self.node.span.clone()
    }

    /// Where the key is written; the value where there is none.
    pub fn key_span(&self) -> Span {
        self.key.unwrap_or(&self.node.span).clone()
    }

    /// Whether a problem of the value itself was reported, so that it was left out.
    pub fn is_pruned(&self) -> bool {
        self.node.pruned.get()
    }

    /// Whether a field that must be there is not, or was left out, and a stand-in was read in its place.
    pub fn lacks(&self, field: &str) -> bool {
        self.node.lacks.borrow().contains(&field)
    }

    /// The value under a key, also where it was pruned.
    pub fn get(&self, name: &str) -> Option<Place<'a>> {
        self.pairs().iter().find(|(key, _)| key.name == name || key.reads_as() == name).map(|pair| self.below(pair))
    }

    /// The keys of a mapping with their values, also those that were pruned.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Place<'a>)> {
        self.pairs().iter().map(|pair| (pair.0.name.as_str(), self.below(pair)))
    }

    /// The keys of a mapping, also those whose value was pruned.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.pairs().iter().map(|(key, _)| key.name.as_str())
    }

    fn pairs(&self) -> &'a [(Key, Node)] {
        if let Kind::Map(entries) = &self.node.kind { entries } else { &[] }
    }

    fn below(&self, (key, node): &'a (Key, Node)) -> Place<'a> {
        let path = if self.path.is_empty() { key.name.clone() } else { format!("{}.{}", self.path, key.name) };
        Place { node, key: Some(&key.span), path }
    }

    /// The items of a list that were not pruned: those that the value read from it has, in its order.
    pub fn items(&self) -> Vec<Place<'a>> {
        let Kind::Seq(items) = &self.node.kind else { return Vec::new() };
        let live = items.iter().enumerate().filter(|(_, node)| !node.pruned.get());
        live.map(|(i, node)| Place { node, key: None, path: format!("{}[{i}]", self.path) }).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(source: &str) -> Problem {
        parse(source).map(|_| ()).unwrap_err()
    }

    #[test]
    fn every_key_and_value_knows_its_bytes() {
        let source = "a: 1\nb:\n  - x\n  - { c: 'y' }\n";
        let (root, problems) = parse(source).unwrap();
        assert!(problems.is_empty());
        let b = Place::root(&root).get("b").unwrap();
        assert_eq!(&source[b.key_span()], "b");
        let items = b.items();
        assert_eq!(&source[items[0].span()], "x");
        let c = items[1].get("c").unwrap();
        assert_eq!((&source[c.key_span()], &source[c.span()], c.path.as_str()), ("c", "'y'", "b[1].c"));
    }

    #[test]
    fn a_key_given_twice_shows_both_places() {
        let (_, problems) = parse("a: 1\nb: 2\na: 3\n").unwrap();
        assert_eq!(problems[0].message, "`a` is given twice");
        assert_eq!((problems[0].labels[0].0.clone(), problems[0].labels[1].0.clone()), (10..11, 0..1));
    }

    #[test]
    fn tabs_second_documents_and_empty_files_are_refused() {
        for text in ["a:\n\tb: 1\n", "a: 1\n\tb: 1\n", "a: 1\n\n  \tb: 1\n"] {
            let problem = refused(text);
            assert!(problem.help.unwrap().contains("tabs"), "{text:?}");
            assert_eq!(&text[problem.labels[0].0.clone()], "\t", "{text:?}");
        }
        assert_eq!(refused("a: 1\n---\nb: 1\n").message, "more than one YAML document");
        assert_eq!(refused("").message, "the file is empty");
        assert_eq!(refused("? [a]\n: 1\n").message, "a key must be a plain word");
    }

    #[test]
    fn merged_keys_do_not_win_over_own_ones() {
        let (root, _) = parse("a: &a { x: 1, y: 2 }\nb: { <<: *a, y: 3 }\n").unwrap();
        let b = Place::root(&root).get("b").unwrap();
        let text = |name| match &b.get(name).unwrap().node.kind {
            Kind::Scalar { text, .. } => text.clone(),
            other => format!("{other:?}"),
        };
        assert_eq!((text("x"), text("y")), ("1".into(), "3".into()));
        assert_eq!(refused("b: { <<: 1 }\n").message, "`<<` merges mappings only");
    }

    #[test]
    fn bombs_and_depth_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..10 {
            let list = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        assert!(refused(&bomb).message.contains("too many"));
        for text in ["[", "- ", "{a: "] {
            assert!(refused(&text.repeat(100_000)).message.starts_with("not valid YAML"), "{text}");
        }
    }
}
