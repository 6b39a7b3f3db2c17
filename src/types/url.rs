//! URLs in text of others, which may hold a user and a password.

use std::borrow::Cow;

/// The text without what stands before the `@` in its URLs. A password may hold almost anything, an `@` too: whatever is
/// between `://` and the last `@` of that word goes.
pub fn without_userinfo(text: &str) -> Cow<'_, str> {
    const MARK: &str = "://";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at + MARK.len());
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || c.is_control() || "\"'<>".contains(c));
        let word = &after[..end.unwrap_or(after.len())];
        // The next URL of the same word has its own.
        let word = word.find(MARK).map_or(word, |next| &word[..next]);
        let host = word.rfind('@').map_or(0, |at| at + 1);
        rest = &after[host..];
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_stays_whatever_it_is_made_of() {
        for (text, want) in [
            ("nothing", "nothing"),
            ("http://deb.example/debian x", "http://deb.example/debian x"),
            ("Err:1 https://me:secret@deb.example/debian stable", "Err:1 https://deb.example/debian stable"),
            ("https://me:s!e%40c@r/e?t#@deb.example/a", "https://deb.example/a"),
            ("a http://x:secret@b/ and ftp://y:secret@c", "a http://b/ and ftp://c"),
            ("'http://x:secret@b'", "'http://b'"),
            ("http://a,http://x:secret@b", "http://a,http://b"),
            ("://secret@", "://"),
            ("x://", "x://"),
        ] {
            assert_eq!(without_userinfo(text), want);
        }
    }
}
