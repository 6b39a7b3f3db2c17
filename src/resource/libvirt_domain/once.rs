//! Parts that are put into a definition when it is made, and are a person's from then on: what the firmware tells the guest,
//! and elements of a person's own. What is in one of them is never copied into a record (it may be a secret), so that they
//! are not managed as other fields are: the ledger knows what they were, and the definition whether somebody put them in.

use roxmltree::{Document, Node};

use super::read::child;
use super::{Addition, LibvirtDomain, write};

impl LibvirtDomain {
    /// The fields of the manifest that say something else than this VM was made with, as far as its definition is not so.
    pub fn unlike_made(&self, last: &Self, xml: &str) -> Vec<&'static str> {
        let Ok(doc) = Document::parse(xml) else { return Vec::new() };
        let has = |addition: &Addition| is_in(&doc, addition);
        let unlike = |wanted: Vec<Addition>, was: Vec<Addition>| {
            let no_longer = was.iter().any(|a| !wanted.contains(a) && has(a));
            no_longer || wanted.iter().any(|a| !was.contains(a) && !has(a))
        };
        let mut all = Vec::new();
        if unlike(self.told_by_firmware(), last.told_by_firmware()) {
            all.push("smbios");
        }
        if unlike(self.additions.clone(), last.additions.clone()) {
            all.push("xml");
        }
        all
    }

    /// What the firmware tells the guest, entry by entry.
    fn told_by_firmware(&self) -> Vec<Addition> {
        let entry = |(name, value): (&String, &String)| {
            let one = Self { smbios: [(name.clone(), value.clone())].into(), ..self.clone() };
            Addition { at: "/domain".to_owned(), xml: write::sysinfo(&one) }
        };
        self.smbios.iter().map(entry).collect()
    }

    /// What is kept of it once it was changed: what it was made with, where it was not made by that.
    pub(super) fn made_with(&self, last: Option<&Self>, made: bool) -> Self {
        match last.filter(|l| !made && !l.absent) {
            Some(last) => Self { smbios: last.smbios.clone(), additions: last.additions.clone(), ..self.clone() },
            None => self.clone(),
        }
    }
}

/// Whether a definition has such an element in that place; libvirt may have added to it.
fn is_in(doc: &Document<'_>, addition: &Addition) -> bool {
    let Ok(wanted) = Document::parse(&addition.xml) else { return false };
    let mut names = addition.at.trim_start_matches('/').split('/').skip(1);
    let parent = names.try_fold(doc.root_element(), |node, name| child(node, name));
    parent.is_some_and(|p| p.children().any(|there| contains(there, wanted.root_element())))
}

/// Whether an element is another one, with whatever else is in it.
fn contains(there: Node<'_, '_>, wanted: Node<'_, '_>) -> bool {
    let text = |n: Node<'_, '_>| n.text().unwrap_or_default().trim().to_owned();
    there.is_element()
        && there.tag_name() == wanted.tag_name()
        && wanted.attributes().all(|a| match a.namespace() {
            Some(space) => there.attribute((space, a.name())),
            None => there.attribute(a.name()),
        } == Some(a.value()))
        && text(there) == text(wanted)
        && wanted.children().filter(Node::is_element).all(|part| there.children().any(|t| contains(t, part)))
}
