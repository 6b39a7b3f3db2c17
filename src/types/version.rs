//! Debian's order of package versions (deb-version(7)), which decides what goes back to an older one.

use std::cmp::Ordering;

/// Compares two versions: `[EPOCH:]UPSTREAM[-REVISION]`.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    a.0.cmp(&b.0).then_with(|| compare_part(a.1, b.1)).then_with(|| compare_part(a.2, b.2))
}

fn parts(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
    (epoch.parse().unwrap_or(0), upstream, revision)
}

/// Alternately the longest run without digits, in the order below, and the longest number.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (wa, wb) = (cut(&mut a, |c| !c.is_ascii_digit()), cut(&mut b, |c| !c.is_ascii_digit()));
        let longest = wa.len().max(wb.len());
        let weights = |word: &str| (0..longest).map(|i| weight(word.as_bytes().get(i).copied())).collect::<Vec<_>>();
        let (na, nb) = (cut(&mut a, |c| c.is_ascii_digit()), cut(&mut b, |c| c.is_ascii_digit()));
        let (na, nb) = (na.trim_start_matches('0'), nb.trim_start_matches('0'));
        let order = weights(wa).cmp(&weights(wb)).then_with(|| na.len().cmp(&nb.len())).then_with(|| na.cmp(nb));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the longest beginning of such characters off a text.
fn cut<'a>(text: &mut &'a str, is: impl Fn(char) -> bool) -> &'a str {
    let at = text.find(|c| !is(c)).unwrap_or(text.len());
    let (begin, rest) = text.split_at(at);
    *text = rest;
    begin
}

/// A tilde comes before the end, the end before letters, letters before everything else.
fn weight(c: Option<u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(c),
        Some(c) => i32::from(c) + 256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        for (older, newer) in [
            ("1.0", "1.1"),
            ("9", "10"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0a"),
            ("1.0a", "1.0+b"),
            ("2.0", "1:1.0"),
            ("1.0-1", "1.0-1+deb13u1"),
            ("1.0-1~bpo12+1", "1.0-1"),
            ("580.95.05-0ubuntu1", "580.105.08-0ubuntu1"),
            ("1.0", "1.0-1"),
        ] {
            assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare_versions(newer, older), Ordering::Greater, "{newer} {older}");
        }
        for (a, b) in [("1.0", "1.0-0"), ("0:1.02", "1.2"), ("1.0", "1.0")] {
            assert_eq!(compare_versions(a, b), Ordering::Equal, "{a} {b}");
        }
    }
}
