//! Words of the host's own in a YAML text: names of VMs, files and cards are whatever somebody once wrote, and none of
//! them may end a comment or a scalar, or steer the terminal of the reader.

/// How much of a foreign word is shown in a comment.
const LONGEST: usize = 120;

/// Not to be written as it is: YAML takes it for the end of a line or refuses it, or it changes how the text around it
/// is drawn.
fn unsafe_char(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
}

/// A foreign word for a comment: on one line, and not longer than a line holds.
pub fn comment(word: &str) -> String {
    let mut out = String::new();
    for (n, c) in word.chars().enumerate() {
        if n == LONGEST {
            out.push('…');
            break;
        }
        if unsafe_char(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// A scalar that every reader of YAML takes for this text: without quotes where it is a plain word.
pub fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    // YAML 1.1 takes these for booleans, nothing and numbers.
    const OTHER: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    if plain && !OTHER.contains(&text.to_ascii_lowercase().as_str()) { text.to_owned() } else { quoted(text) }
}

/// A scalar in double quotes.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            c if unsafe_char(c) || !printable(c) => out += &escaped(c),
            c => out.push(c),
        }
    }
    out + "\""
}

/// YAML 1.2.2, 5.1: everything else has to be escaped.
fn printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

fn escaped(c: char) -> String {
    match u32::from(c) {
        n @ 0..=0xff => format!("\\x{n:02x}"),
        n @ 0x100..=0xffff => format!("\\u{n:04x}"),
        n => format!("\\U{n:08x}"),
    }
}

/// `key: text` as lines: a text of lines stays readable where nothing in it could be taken for something else.
pub fn text_lines(key: &str, text: &str) -> Vec<String> {
    let first = text.lines().next().unwrap_or_default();
    let block = text.ends_with('\n')
        && !text.ends_with("\n\n")
        && !first.is_empty()
        && !text.lines().any(|l| l.starts_with('\t'))
        && !first.starts_with(' ')
        && text.chars().all(|c| c == '\n' || c == '\t' || (printable(c) && !unsafe_char(c)));
    if !block {
        return vec![format!("{key}: {}", quoted(text))];
    }
    let body = text.lines().map(|l| if l.is_empty() { String::new() } else { format!("  {l}") });
    std::iter::once(format!("{key}: |")).chain(body).collect()
}

/// An argument of a shell's command line, as a person would type it.
pub fn argument(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./:=+@%,".contains(c));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text with everything that could break out somewhere.
    fn hostile() -> impl Strategy<Value = String> {
        let bits = prop_oneof![
            any::<char>().prop_map(String::from),
            prop::sample::select(vec![
                "\n",
                "\r",
                "\r\n",
                "\u{85}",
                "\u{2028}",
                "\u{2029}",
                "\u{feff}",
                "\"",
                "'",
                "\\",
                "#",
                " #",
                ": ",
                "- ",
                "*a",
                "&a",
                "!x",
                "|",
                ">",
                "%",
                "@",
                "`",
                "{",
                "}",
                "[",
                "]",
                ",",
                "?",
                "---",
                "...",
                "\t",
                "\0",
                "\u{7f}",
                "\u{1b}[2J",
                "\u{202e}",
                "true",
                "~",
                "1e3",
                "0x1",
                "<<",
                "=",
                " ",
            ])
            .prop_map(String::from),
        ];
        prop::collection::vec(bits, 0..12).prop_map(|bits| bits.concat())
    }

    proptest! {
        #[test]
        fn a_scalar_is_this_text_for_every_reader(text in hostile()) {
            let yaml = format!("key: {}\nnext: 1\n", scalar(&text));
            let read: serde_yaml::Value = serde_yaml::from_str(&yaml).unwrap();
            prop_assert_eq!(read["key"].as_str(), Some(text.as_str()), "{}", yaml);
            let own = crate::net::yaml::read(&yaml).unwrap().root.unwrap();
            prop_assert_eq!(own.get("key").unwrap().value.scalar(), Some(text.as_str()));
            prop_assert_eq!(own.pairs().len(), 2);
        }

        #[test]
        fn no_word_ends_its_comment(text in hostile()) {
            let yaml = format!("a: 1   # {}\n# {}\nb: 2\n", comment(&text), comment(&text));
            let read: serde_yaml::Value = serde_yaml::from_str(&yaml).unwrap();
            prop_assert_eq!(read, serde_yaml::from_str::<serde_yaml::Value>("a: 1\nb: 2\n").unwrap());
            prop_assert_eq!(crate::net::yaml::read(&yaml).unwrap().root.unwrap().pairs().len(), 2);
            prop_assert!(!comment(&text).chars().any(|c| c.is_control()));
        }

        #[test]
        fn a_text_of_lines_is_this_text(text in prop::collection::vec(hostile(), 0..5).prop_map(|l| l.join("\n") + "\n")) {
            let lines: String = text_lines("content", &text).iter().map(|l| format!("  {l}\n")).collect();
            let yaml = format!("file:\n{lines}next: 1\n");
            let read: serde_yaml::Value = serde_yaml::from_str(&yaml).unwrap();
            prop_assert_eq!(read["file"]["content"].as_str(), Some(text.as_str()), "{}", yaml);
        }
    }

    #[test]
    fn ordinary_texts_stay_readable() {
        assert_eq!(text_lines("content", "a\n\n  b\n"), ["content: |", "  a", "", "    b"]);
        assert_eq!(scalar("/srv/iso"), "/srv/iso");
        assert_eq!(scalar("no"), "\"no\"");
        assert_eq!(argument("win 10's"), r"'win 10'\''s'");
    }
}
