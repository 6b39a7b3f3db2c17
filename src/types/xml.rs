//! Text in XML that others parse.

/// A text as it stands in an attribute or between tags; control characters, which XML 1.0 cannot hold, are left out.
pub fn xml_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

/// Whether a text is one whole element that may stand in a definition. One with a password in it may not: definitions are
/// shown in plans, and whoever may look at VMs reads them.
pub fn xml_fragment(text: &str) -> Result<(), String> {
    let doc = roxmltree::Document::parse(text.trim()).map_err(|e| format!("it is not well-formed: {e}"))?;
    if text.contains("<!") || text.contains("<?") {
        return Err("it has a declaration, and has to be an element alone".to_owned());
    }
    let secret = |name: &str| ["passwd", "password", "secret", "auth"].contains(&name.to_ascii_lowercase().as_str());
    for node in doc.descendants().filter(|n| n.is_element()) {
        let attributes = node.attributes().map(|a| a.name().to_owned());
        if let Some(name) = attributes.chain([node.tag_name().name().to_owned()]).find(|n| secret(n)) {
            return Err(format!("`{name}` is for secrets, which a manifest's XML is not"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_attribute() {
        let hostile = "a' b=\"c\"/><x>&amp;\u{1}\n";
        let xml = format!("<e one='{0}' two=\"{0}\">{0}</e>", xml_escape(hostile));
        let doc = roxmltree::Document::parse(&xml).unwrap();
        let e = doc.root_element();
        let want = "a' b=\"c\"/><x>&amp;\n";
        assert_eq!((e.attribute("one"), e.attribute("two"), e.text()), (Some(want), Some(want), Some(want)));
        assert_eq!(e.children().filter(|c| c.is_element()).count(), 0);
    }
}
