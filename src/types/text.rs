//! Text of others, as it is shown to people.

/// Text of others must not steer the terminal, nor read as something else than it is: control characters, and those that
/// turn the direction of a line or cannot be seen, are shown as escapes. Line ends and tabs stay.
pub fn safe(text: &str) -> String {
    text.chars().flat_map(|c| if steers(c) && c != '\n' && c != '\t' { escaped(c) } else { vec![c] }).collect()
}

/// The same on one line: a line end in it would begin what looks like another line of ours.
pub fn safe_line(text: &str) -> String {
    text.chars().flat_map(|c| if steers(c) { escaped(c) } else { vec![c] }).collect()
}

/// Whether all of it is shown as what it is.
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(steers)
}

/// A text of the same bytes' places with a stand-in for each character that steers, for whoever shows places in it.
pub fn safe_in_place(text: &str) -> String {
    let stand_in = |c: char| match c.len_utf8() {
        _ if c == '\n' || c == '\t' || !steers(c) => c,
        // It would write over what stands before it on the line.
        _ if c == '\r' => ' ',
        1 => '?',
        2 => '¿',
        _ => '\u{fffd}',
    };
    text.chars().map(stand_in).collect()
}

fn escaped(c: char) -> Vec<char> {
    c.escape_default().collect()
}

/// Control characters; marks of direction (Unicode's Bidi_Control), which can show a line in another order than it is
/// read; what has no width; separators of lines.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_and_the_rest_stays() {
        let hostile = "a\u{1b}[2J\u{202e}b\u{85}\u{200b}c\n\tü日";
        assert_eq!(safe(hostile), "a\\u{1b}[2J\\u{202e}b\\u{85}\\u{200b}c\n\tü日");
        assert_eq!(safe_line("a\nb"), "a\\nb");
        assert!(is_plain("ü日 x") && !["\n", "\u{9b}", "a\u{202e}"].into_iter().any(is_plain));
        assert_eq!(safe_in_place("a\rb\r\n"), "a b \n");
        let placed = safe_in_place(hostile);
        assert_eq!(placed, "a?[2J\u{fffd}b¿\u{fffd}c\n\tü日");
        assert!(hostile.char_indices().zip(placed.char_indices()).all(|((a, _), (b, _))| a == b), "places move");
    }
}
