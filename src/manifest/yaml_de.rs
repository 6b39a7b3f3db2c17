//! serde over the tree with places.
//!
//! The error keeps what serde tells it (which field is unknown, which were expected) and picks up place and path on its
//! way up. To report every problem at once, the value at fault is left out after each error and the tree is read again.

use std::fmt;
use std::str::FromStr;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};

use super::yaml_tree::{Key, Kind, Node, Problem, Span};

/// After so many passes the rest waits until these are repaired.
const MAX_PASSES: usize = 100;

/// What is read for a field that must be there where it is missing or at fault, so that what stands beside it is checked
/// all the same. Never used: what has a problem is not used at all.
#[derive(Debug, Clone, Copy)]
enum StandIn {
    Number(u32),
    Text(&'static str),
}

/// What to write where a field is missing.
fn example(field: &str) -> String {
    let value = match field {
        "version" => "write `version: 1` at the beginning",
        "cpus" => "write `cpus: 2`",
        "memory" => "write `memory: 4GiB`",
        "size" => "write `size: 20GiB`",
        "match" => "write `match: { address: \"0000:01:00\" }`; `gpuvm gpu list` has the addresses",
        "use" => "write `use: vfio` to keep it for VMs, or `use: host`",
        "name" => "write `name: …`",
        _ => return format!("write `{field}: …`; what it takes is in schema/host.schema.json, or: gpuvm schema"),
    };
    value.to_owned()
}

fn stand_in(field: &str) -> Option<StandIn> {
    Some(match field {
        "version" | "cpus" => StandIn::Number(1),
        "memory" | "size" => StandIn::Text("1GiB"),
        "match" => StandIn::Text("0000:00:00"),
        "use" => StandIn::Text("vfio"),
        _ => return None,
    })
}

/// Has a stand-in read for a field; `false` where there is none.
fn fill(node: Option<&Node>, field: &'static str) -> bool {
    let Some(node) = node.filter(|n| stand_in(field).is_some() && !n.lacks.borrow().contains(&field)) else {
        return false;
    };
    node.lacks.borrow_mut().push(field);
    true
}

/// Reads a value and every problem that can be found. With problems, the value is what is left without the parts at
/// fault, where that still makes one: good for further checks, not for use.
pub fn from_tree<T: de::DeserializeOwned>(root: &Node) -> (Option<T>, Vec<Problem>) {
    let mut problems: Vec<Problem> = Vec::new();
    // (path of the mapping, field) that a misspelt field probably meant
    let mut meant: Vec<(String, &'static str)> = Vec::new();
    for _ in 0..MAX_PASSES {
        let error = match T::deserialize(Tree(root)) {
            Ok(value) => return (Some(value), problems),
            Err(error) => error,
        };
        let path = error.path.concat().trim_start_matches('.').to_owned();
        let place = locate(root, &error.path);
        let span = error.span.clone().unwrap_or(0..0);
        let key = locate_key(root, &error.path);
        if let Some(key) = key.filter(|key| key.reads_as() != key.name) {
            // The key was reported. What was guessed for it is no problem of its own.
            if !(error.of_key && key.try_another()) {
                match place {
                    Some(node) => node.pruned.set(true),
                    None => return (None, problems),
                }
            }
            continue;
        }
        let problem = match &error.what {
            What::Unknown { name, expected, variant } => {
                let best = closest(name, expected.iter().copied());
                if let (Some(best), false) = (best, *variant) {
                    let above = path.strip_suffix(name.as_str()).map_or("", |p| p.trim_end_matches('.'));
                    meant.push((above.to_owned(), best));
                }
                let known: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
                let kind = if *variant { "value" } else { "field" };
                Problem {
                    message: format!("unknown {kind} `{name}`"),
                    path,
                    labels: vec![(span, did_you_mean(best))],
                    help: Some(format!("expected one of {}", known.join(", "))),
                }
            }
            What::Missing(field) => {
                let follows = place.is_some_and(|node| pruned_field(node, field))
                    || meant.iter().any(|(above, name)| *above == path && name == field);
                if follows {
                    // It is missing only because of a problem that is in the list.
                    match place {
                        _ if fill(place, field) => {}
                        Some(node) if !error.path.is_empty() => node.pruned.set(true),
                        _ => return (None, problems),
                    }
                    continue;
                }
                Problem {
                    message: format!("missing field `{field}`"),
                    path,
                    labels: vec![(first_key(place).unwrap_or(span), format!("`{field}` is required here"))],
                    help: Some(example(field)),
                }
            }
            What::Unquoted { text, reads_as } => Problem {
                message: format!("expected a string, found the {reads_as} `{text}`"),
                path,
                labels: vec![(span, "without quotes this is no string".to_owned())],
                help: Some(format!("write it in quotes: `\"{text}\"`")),
            },
            What::Other(message) => {
                Problem { message: message.clone(), path, labels: vec![(span, String::new())], help: None }
            }
        };
        problems.push(problem);
        match place {
            Some(node) if error.of_key && key.is_some_and(|key| read_on(root, &error, key, node)) => {}
            _ if matches!(error.what, What::Missing(field) if fill(place, field)) => {}
            Some(node) if !error.path.is_empty() => node.pruned.set(true),
            _ => return (None, problems),
        }
    }
    (None, problems)
}

/// Has something else read in the place of a key that is wrong, so that what stands under it is checked; `false` where
/// nothing does: a field that is like no other, or one with a plain value.
fn read_on(root: &Node, error: &Error, key: &Key, under: &Node) -> bool {
    let What::Unknown { name, expected, variant: false } = &error.what else {
        return matches!(error.what, What::Other(_)) && key.try_another();
    };
    let above = error.path.split_last().and_then(|(_, above)| locate(root, above));
    let there = |field: &str| {
        let entries = above.map(|node| &node.kind);
        matches!(entries, Some(Kind::Map(entries)) if entries.iter().any(|(key, _)| key.name == field))
    };
    let meant = closest(name, expected.iter().copied()).filter(|best| strsim::jaro_winkler(name, best) > SURE);
    match meant.filter(|best| !there(best)) {
        Some(best) if !matches!(under.kind, Kind::Scalar { .. }) => {
            key.instead.iter().zip(std::iter::repeat(best)).all(|(cell, best)| cell.set(best.to_owned()).is_ok())
        }
        _ => false,
    }
}

/// How like a known field a misspelt one has to be for its content to be read as that field's.
const SURE: f64 = 0.85;

/// The known name that a misspelt one is most like.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One letter is like anything that has it.
    if name.chars().count() < 2 {
        return None;
    }
    let scored = known.into_iter().map(|other| (strsim::jaro_winkler(name, other), other));
    scored.filter(|(score, _)| *score > 0.7).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

fn did_you_mean(best: Option<&str>) -> String {
    best.map_or_else(|| "not known here".to_owned(), |best| format!("did you mean `{best}`?"))
}

fn pruned_field(node: &Node, field: &str) -> bool {
    matches!(&node.kind, Kind::Map(entries) if entries.iter().any(|(k, v)| k.name == field && v.pruned.get()))
}

fn first_key(node: Option<&Node>) -> Option<Span> {
    match &node?.kind {
        Kind::Map(entries) => entries.first().map(|(key, _)| key.span.clone()),
        _ => None,
    }
}

/// The value that a path names, also for an unknown key.
fn locate<'a>(root: &'a Node, path: &[String]) -> Option<&'a Node> {
    path.iter().try_fold(root, |node, segment| match (&node.kind, segment.strip_prefix('.')) {
        (Kind::Map(entries), Some(name)) => entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value),
        (Kind::Seq(items), None) => items.get(segment.trim_matches(['[', ']']).parse::<usize>().ok()?),
        _ => None,
    })
}

/// The key that a path ends with.
fn locate_key<'a>(root: &'a Node, path: &[String]) -> Option<&'a Key> {
    let (last, above) = path.split_last()?;
    let name = last.strip_prefix('.')?;
    match &locate(root, above)?.kind {
        Kind::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| key),
        _ => None,
    }
}

#[derive(Debug)]
struct Error {
    what: What,
    /// Whether the key at the end of the path is at fault, and not its value.
    of_key: bool,
    /// `.name` or `[index]`, from the document down.
    path: Vec<String>,
    span: Option<Span>,
}

#[derive(Debug)]
enum What {
    Unknown {
        name: String,
        expected: &'static [&'static str],
        variant: bool,
    },
    Missing(&'static str),
    /// A string was asked for, and this would be one in quotes.
    Unquoted {
        text: String,
        reads_as: &'static str,
    },
    Other(String),
}

/// What a plain scalar is to YAML's core schema, where that is no string
/// (YAML 1.2.2, 10.3.2: <https://yaml.org/spec/1.2.2/#1032-tag-resolution>). Nothing is told here of what is null.
fn core_schema(text: &str) -> Option<&'static str> {
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") {
        return Some("boolean");
    }
    let all = |digits: &str, of: fn(&u8) -> bool| !digits.is_empty() && digits.bytes().all(|b| of(&b));
    if text.strip_prefix("0x").is_some_and(|digits| all(digits, u8::is_ascii_hexdigit))
        || text.strip_prefix("0o").is_some_and(|digits| all(digits, |b| (b'0'..=b'7').contains(b)))
        || matches!(text, ".nan" | ".NaN" | ".NAN")
    {
        return Some("number");
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Some("number");
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let number = digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    (number && exponent.is_none_or(|exponent| all(exponent, u8::is_ascii_digit))).then_some("number")
}

impl Error {
    fn new(what: What) -> Self {
        Error { what, of_key: false, path: Vec::new(), span: None }
    }
    /// The innermost place wins.
    fn or_span(mut self, span: &Span) -> Self {
        self.span.get_or_insert_with(|| span.clone());
        self
    }
    fn under(mut self, segment: String) -> Self {
        self.path.insert(0, segment);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::new(What::Other(message.to_string()))
    }
    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        Error::new(What::Unknown { name: name.to_owned(), expected, variant: false })
    }
    fn unknown_variant(name: &str, expected: &'static [&'static str]) -> Self {
        Error::new(What::Unknown { name: name.to_owned(), expected, variant: true })
    }
    fn missing_field(field: &'static str) -> Self {
        Error::new(What::Missing(field))
    }
    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a mapping".to_owned(),
            other => other.to_string(),
        };
        Error::custom(format_args!("expected {expected}, found {found}"))
    }
}

/// A value as serde's source.
struct Tree<'a>(&'a Node);

impl Tree<'_> {
    fn is_null(&self) -> bool {
        matches!(&self.0.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }

    fn wrong(&self, expected: &dyn de::Expected) -> Error {
        let found = match &self.0.kind {
            _ if self.is_null() => "nothing".to_owned(),
            Kind::Scalar { text, .. } => format!("`{text}`"),
            Kind::Seq(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        };
        Error::new(What::Other(format!("expected {expected}, found {found}"))).or_span(&self.0.span)
    }

    fn number<T: FromStr>(&self) -> Result<T, Error> {
        let wrong = || self.wrong(&"a whole number");
        match &self.0.kind {
            Kind::Scalar { text, plain: true } => text.parse().map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.number()?).map_err(|e: Error| e.or_span(&self.0.span))
        })*
    };
}

impl<'de> de::Deserializer<'de> for Tree<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let read = match &self.0.kind {
            Kind::Seq(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Kind::Map(entries) => {
                let lacking = self.0.lacks.borrow().clone().into_iter();
                visitor.visit_map(Entries { rest: entries.iter(), current: None, lacking, filled: None })
            }
            Kind::Scalar { text, plain: false } => visitor.visit_borrowed_str(text),
            Kind::Scalar { text, plain: true } => match text.as_str() {
                "" | "~" | "null" => visitor.visit_unit(),
                "true" => visitor.visit_bool(true),
                "false" => visitor.visit_bool(false),
                text => match (text.parse::<i64>(), text.parse::<u64>()) {
                    (Ok(number), _) => visitor.visit_i64(number),
                    (_, Ok(number)) => visitor.visit_u64(number),
                    _ => visitor.visit_borrowed_str(text),
                },
            },
        };
        read.map_err(|e: Error| e.or_span(&self.0.span))
    }

    /// YAML 1.2: `yes`, `no`, `on` and `off` are words, not booleans.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.kind {
            Kind::Scalar { text, plain: true } if text == "true" => visitor.visit_bool(true),
            Kind::Scalar { text, plain: true } if text == "false" => visitor.visit_bool(false),
            _ => Err(self.wrong(&"`true` or `false`")),
        }
    }

    /// What YAML takes for a number or a boolean is none, as to every other reader that knows the schema: `0644` and
    /// `24.10` would be other values there. What is no such string either way says that first (`memory: 4096`).
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.kind {
            Kind::Scalar { text, plain } if !self.is_null() => {
                let value = visitor.visit_borrowed_str(text).map_err(|e: Error| e.or_span(&self.0.span))?;
                match core_schema(text).filter(|_| *plain) {
                    None => Ok(value),
                    Some(reads_as) => {
                        Err(Error::new(What::Unquoted { text: text.clone(), reads_as }).or_span(&self.0.span))
                    }
                }
            }
            _ => Err(self.wrong(&"a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    numbers!(
        deserialize_u8 visit_u8, deserialize_u16 visit_u16, deserialize_u32 visit_u32, deserialize_u64 visit_u64,
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32, deserialize_i64 visit_i64,
        deserialize_f32 visit_f32, deserialize_f64 visit_f64
    );

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if matches!(self.0.kind, Kind::Seq(_)) { self.deserialize_any(visitor) } else { Err(self.wrong(&"a list")) }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if matches!(self.0.kind, Kind::Map(_)) { self.deserialize_any(visitor) } else { Err(self.wrong(&"a mapping")) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.kind {
            // The manifest's enums are words; one that carries a value is read by hand (see `short`).
            Kind::Scalar { text, .. } if !self.is_null() => {
                visitor.visit_enum(text.as_str().into_deserializer()).map_err(|e: Error| e.or_span(&self.0.span))
            }
            _ => Err(self.wrong(&"one word")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct }
}

struct Items<'de>(std::iter::Enumerate<std::slice::Iter<'de, Node>>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((i, node)) = self.0.by_ref().find(|(_, node)| !node.pruned.get()) else { return Ok(None) };
        seed.deserialize(Tree(node)).map(Some).map_err(|e| e.or_span(&node.span).under(format!("[{i}]")))
    }
}

struct Entries<'de> {
    rest: std::slice::Iter<'de, (Key, Node)>,
    current: Option<&'de (Key, Node)>,
    lacking: std::vec::IntoIter<&'static str>,
    filled: Option<StandIn>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.rest.by_ref().find(|(_, value)| !value.pruned.get());
        let Some((key, _)) = self.current else {
            let Some(field) = self.lacking.next() else { return Ok(None) };
            self.filled = stand_in(field);
            return seed.deserialize(BorrowedStrDeserializer::<Error>::new(field)).map(Some);
        };
        let name = BorrowedStrDeserializer::<Error>::new(key.reads_as());
        let failed = |e: Error| Error { of_key: true, ..e.or_span(&key.span).under(format!(".{}", key.name)) };
        seed.deserialize(name).map(Some).map_err(failed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        match self.filled.take() {
            Some(StandIn::Number(number)) => return seed.deserialize(number.into_deserializer()),
            Some(StandIn::Text(text)) => return seed.deserialize(BorrowedStrDeserializer::new(text)),
            None => {}
        }
        let Some((key, node)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Tree(node)).map_err(|mut error| {
            // Nothing was written after the key, so that only the key can be pointed at.
            if error.path.is_empty() && node.span.is_empty() && Tree(node).is_null() {
                error.span = Some(key.span.clone());
            }
            error.or_span(&node.span).under(format!(".{}", key.name))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::yaml_tree;
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        name: String,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        on: bool,
        #[serde(default)]
        inner: Vec<Sample>,
    }

    fn problems(source: &str) -> Vec<String> {
        let (root, _) = yaml_tree::parse(source).unwrap();
        let (_, problems) = from_tree::<Sample>(&root);
        problems.iter().map(|p| format!("{}|{}|{}", p.path, p.message, &source[p.labels[0].0.clone()])).collect()
    }

    #[test]
    fn every_problem_is_found_with_its_place() {
        assert_eq!(
            problems("name: a\ncuont: 1\non: yes\ninner:\n  - { name: b, count: many }\n  - { count: 1 }\n  - 7\n"),
            [
                "cuont|unknown field `cuont`|cuont",
                "on|expected `true` or `false`, found `yes`|yes",
                "inner[0].count|expected a whole number, found `many`|many",
                "inner[1]|missing field `name`|count",
                "inner[2]|expected a mapping, found `7`|7",
            ]
        );
    }

    #[test]
    fn what_yaml_takes_for_a_number_or_a_boolean_is_no_string() {
        for text in
            ["644", "0644", "-1", "+12", "1.5", "24.10", "1e3", ".5", "5.", "0x1f", "0o17", ".inf", ".nan", "False"]
        {
            let reads_as = if text == "False" { "boolean" } else { "number" };
            let wanted = format!("name|expected a string, found the {reads_as} `{text}`|{text}");
            assert_eq!(problems(&format!("name: {text}\n")), [wanted]);
            assert!(problems(&format!("name: \"{text}\"\n")).is_empty());
        }
        for text in ["0000:01:00.0", "4GiB", "10de:2684", "1.2.3", "52:54:00:12:34:56", "e3", ".", "0x", "1e", "yes"] {
            assert!(problems(&format!("name: {text}\n")).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_field_that_is_missing_because_it_was_misspelt_is_one_problem() {
        assert_eq!(problems("name: a\ninner: [{ naem: b }]\n"), ["inner[0].naem|unknown field `naem`|naem"]);
        assert_eq!(problems("name: [1]\n"), ["name|expected a string, found a list|[1"]);
    }
}
