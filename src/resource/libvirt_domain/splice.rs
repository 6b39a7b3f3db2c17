//! Edits a definition in place: the parser says where each managed element is, and only what differs is replaced there.
//! Every other byte stays, whoever wrote it.

use std::ops::Range;

use roxmltree::{Document, Node};

use super::read::{Projection, child, children, devices, function, is_disk, nic, sources};
use super::write::{self, cpu_mode};
use super::{Accel, Addition, Disk, Extra, LibvirtDomain, PassedSlot};
use crate::types::{PciAddress, Splice, xml_escape as e};

/// Why a definition is not edited, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: String,
    pub(super) help: String,
}

fn refused(why: impl Into<String>, help: impl Into<String>) -> Refused {
    Refused { why: why.into(), help: help.into() }
}

/// The edits of one text: each replaces a range, and none overlaps another.
pub(super) struct Edits<'x> {
    xml: &'x str,
    all: Vec<(Range<usize>, String)>,
}

impl<'x> Edits<'x> {
    pub(super) fn new(xml: &'x str) -> Self {
        Self { xml, all: Vec::new() }
    }

    fn replace(&mut self, range: Range<usize>, text: impl Into<String>) {
        self.all.push((range, text.into()));
    }

    /// The white space between the line's begin and a place; empty where something else stands there too.
    fn indent(&self, at: usize) -> &'x str {
        let line = self.xml[..at].rfind('\n').map_or(0, |n| n + 1);
        let before = &self.xml[line..at];
        if before.chars().all(char::is_whitespace) { before } else { "" }
    }

    /// Takes an element away, with its line where nothing else is on it.
    pub(super) fn remove(&mut self, node: Node<'_, '_>) {
        let range = node.range();
        let indent = self.indent(range.start).len();
        let line = range.start - indent;
        let whole = self.xml[..line].ends_with('\n') && self.xml.as_bytes().get(range.end) == Some(&b'\n');
        self.replace(if whole { line - 1..range.end } else { range }, "");
    }

    /// Puts elements behind one, at its depth.
    fn insert_after(&mut self, node: Node<'_, '_>, elements: &[String]) {
        let at = node.range().end;
        let line = format!("\n{}", self.indent(node.range().start));
        let text = elements.iter().map(|element| format!("{line}{element}")).collect::<String>();
        self.replace(at..at, text);
    }

    /// Puts elements into one, behind the last of `beside` or else behind its last child.
    fn insert_into(&mut self, parent: Node<'_, '_>, beside: &'static str, elements: &[String]) {
        let last = children(parent, beside).last().or_else(|| parent.children().rfind(Node::is_element));
        match last {
            Some(last) => self.insert_after(last, elements),
            None => {
                let indent = self.indent(parent.range().start);
                let lines = elements.iter().map(|element| format!("\n{indent}  {element}")).collect::<String>();
                let (range, name) = (parent.range(), parent.tag_name().name());
                match self.xml[range.clone()].rfind("</") {
                    Some(close) => {
                        let at = range.start + close;
                        self.replace(at..at, format!("{lines}\n{indent}"));
                    }
                    None => self.replace(range.end - 2..range.end, format!(">{lines}\n{indent}</{name}>")),
                }
            }
        }
    }

    /// Gives an element another text.
    pub(super) fn text(&mut self, node: Node<'_, '_>, text: &str) {
        let inside = node.children().map(|c| c.range()).reduce(|a, b| a.start..b.end);
        match inside {
            Some(range) => self.replace(range, e(text)),
            None => {
                let name = node.tag_name().name();
                self.replace(node.range(), format!("<{name}>{}</{name}>", e(text)));
            }
        }
    }

    /// Gives an attribute that is there another value.
    pub(super) fn attribute(&mut self, node: Node<'_, '_>, name: &str, value: &str) {
        if let Some(attribute) = node.attribute_node(name) {
            self.replace(attribute.range_value(), e(value));
        }
    }

    /// Gives an element an attribute, or takes it away.
    fn set_attribute(&mut self, node: Node<'_, '_>, name: &str, value: Option<&str>) {
        match (node.attribute_node(name), value) {
            (Some(_), Some(value)) => self.attribute(node, name, value),
            // With the blank before it.
            (Some(there), None) => self.replace(there.range().start - 1..there.range().end, ""),
            (None, Some(value)) => {
                let at = node.range().start + 1 + node.tag_name().name().len();
                self.replace(at..at, format!(" {name}='{}'", e(value)));
            }
            (None, None) => {}
        }
    }

    /// The edits in order; what is inserted at one place keeps its order.
    pub(super) fn splices(mut self) -> Vec<Splice> {
        self.all.sort_by_key(|(range, _)| (range.start, range.end));
        self.all.into_iter().map(|(range, insert)| Splice { at: range.start, remove: range.len(), insert }).collect()
    }

    /// The text with the edits; one whose edits overlap stays as it was.
    fn done(self) -> String {
        let xml = self.xml;
        crate::types::splice(xml, &self.splices()).unwrap_or_else(|_| xml.to_owned())
    }
}

/// A definition that keeps the UUID of the VM that it is for, where it names none itself.
pub fn with_uuid(xml: &str, uuid: &str) -> String {
    let Ok(doc) = Document::parse(xml) else { return xml.to_owned() };
    let root = doc.root_element();
    match (child(root, "uuid"), child(root, "name")) {
        (None, Some(name)) => {
            let mut edits = Edits { xml, all: Vec::new() };
            edits.insert_after(name, &[format!("<uuid>{}</uuid>", e(uuid))]);
            edits.done()
        }
        _ => xml.to_owned(),
    }
}

/// A definition with the passwords of the VM that it replaces, which libvirt shows only where they are asked for:
/// `shown` is that VM's definition without them, `whole` with them. `None` where one of them has no place in `xml`.
pub fn with_passwords(xml: &str, shown: &str, whole: &str) -> Option<String> {
    // virDomainGraphicsAuthDefFormatAttr in libvirt's domain_conf.c
    const SECRET: [&str; 3] = ["passwd", "passwdValidTo", "connected"];
    if shown == whole {
        return Some(xml.to_owned());
    }
    let (doc, secret) = (Document::parse(xml).ok()?, Document::parse(whole).ok()?);
    let (ours, theirs) = (devices(&doc, "graphics"), devices(&secret, "graphics"));
    let mut stripped = Edits { xml: whole, all: Vec::new() };
    let mut edits = Edits { xml, all: Vec::new() };
    for (n, graphics) in theirs.iter().enumerate() {
        for attribute in graphics.attributes().filter(|a| SECRET.contains(&a.name())) {
            let range = attribute.range();
            stripped.replace(range.start - 1..range.end, "");
            let place = ours.get(n).filter(|g| g.attribute("type") == graphics.attribute("type"))?;
            if place.attribute(attribute.name()).is_none() {
                let at = place.attribute_node("type")?.range().end;
                edits.replace(at..at, format!(" {}='{}'", attribute.name(), e(attribute.value())));
            }
        }
    }
    // Anything else that libvirt hides would be lost.
    (stripped.done() == shown).then(|| edits.done())
}

/// A definition with gpuvm's mark in its metadata, or without; every other byte stays. `None` where it cannot be read.
pub fn with_mark(xml: &str, present: bool) -> Option<String> {
    let doc = Document::parse(xml).ok()?;
    let root = doc.root_element();
    let metadata = child(root, "metadata");
    let marks = metadata.into_iter().flat_map(|m| m.children());
    let marks: Vec<_> = marks.filter(|n| n.is_element() && n.tag_name().namespace() == Some(write::MARK)).collect();
    let mut edits = Edits { xml, all: Vec::new() };
    match (present, metadata) {
        (true, _) if !marks.is_empty() => {}
        (true, Some(metadata)) => edits.insert_into(metadata, "", &[write::mark(None)]),
        (true, None) => {
            // Where libvirt itself writes it: behind what names the VM.
            let names = ["description", "title", "genid", "uuid", "name"];
            let before = names.into_iter().find_map(|name| child(root, name))?;
            let indent = edits.indent(before.range().start);
            let whole = format!("<metadata>\n{indent}  {}\n{indent}</metadata>", write::mark(None));
            edits.insert_after(before, &[whole]);
        }
        (false, _) => marks.into_iter().for_each(|mark| edits.remove(mark)),
    }
    Some(edits.done())
}

/// A new definition with a person's own elements in it. `None` where one of them has no place, or breaks it.
pub fn with_additions(xml: &str, additions: &[Addition]) -> Option<String> {
    let mut whole = xml.to_owned();
    for addition in additions {
        let doc = Document::parse(&whole).ok()?;
        let mut names = addition.at.trim_start_matches('/').split('/');
        let root = names.next().filter(|n| *n == "domain").map(|_| doc.root_element())?;
        let parent = names.try_fold(root, |node, name| child(node, name))?;
        let mut edits = Edits { xml: &whole, all: Vec::new() };
        edits.insert_into(parent, "", std::slice::from_ref(&addition.xml));
        let done = edits.done();
        drop(doc);
        Document::parse(&done).ok()?;
        whole = done;
    }
    Some(whole)
}

/// A definition without what people and other programs wrote into it for themselves: titles, metadata, arguments for
/// QEMU, what the firmware tells the guest. It may hold passwords, and nothing of it is ever compared.
pub fn without_private_parts(xml: &str) -> String {
    const PRIVATE: [&str; 3] = ["title", "description", "sysinfo"];
    // libvirt does not tell passwords unless it is asked to; whoever gives one is not copied.
    const PASSWORDS: [&str; 2] = ["passwd", "password"];
    let Ok(doc) = Document::parse(xml) else { return String::new() };
    let root = doc.root_element();
    let mut edits = Edits { xml, all: Vec::new() };
    for node in root.descendants().skip(1) {
        // What goes, goes with all that is in it.
        if edits.all.iter().any(|(gone, _)| gone.start <= node.range().start && node.range().end <= gone.end) {
            continue;
        }
        let (name, parent) = (node.tag_name(), node.parent());
        let of_root = parent == Some(root) && (name.namespace().is_some() || PRIVATE.contains(&name.name()));
        let of_metadata = parent.is_some_and(|p| p.has_tag_name("metadata") && p.parent() == Some(root))
            && name.namespace() != Some(write::MARK);
        if node.is_comment() || node.is_pi() || (node.is_element() && (of_root || of_metadata)) {
            edits.remove(node);
            continue;
        }
        for password in node.attributes().filter(|a| PASSWORDS.contains(&a.name())) {
            edits.replace(password.range_value(), "");
        }
    }
    // Nothing rather than all of it.
    crate::types::splice(xml, &edits.splices()).unwrap_or_default()
}

/// What makes every managed field of a definition as wanted.
pub(super) fn splice(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    xml: &str,
) -> Result<Vec<Splice>, Refused> {
    let doc =
        Document::parse(xml).map_err(|e| refused(format!("its definition cannot be read: {e}"), "virsh dumpxml"))?;
    let root = doc.root_element();
    let mut edits = Edits { xml, all: Vec::new() };
    accel(vm, is, root, &mut edits);
    cpus(vm, last, is, root, &mut edits)?;
    topology(vm, last, is, root, &mut edits);
    pins(vm, last, is, root, &mut edits)?;
    memory(vm, is, root, &mut edits)?;
    huge_pages(vm, last, is, root, &mut edits);
    boot(vm, last, is, root, &mut edits);
    disks(vm, last, is, &doc, &mut edits)?;
    nics(vm, last, is, &doc, &mut edits)?;
    slots(vm, last, is, &doc, &mut edits)?;
    extras(vm, last, is, &doc, &mut edits)?;
    Ok(edits.splices())
}

fn accel(vm: &LibvirtDomain, is: &Projection, root: Node<'_, '_>, edits: &mut Edits<'_>) {
    if is.accel == vm.accel.name() {
        return;
    }
    edits.attribute(root, "type", vm.accel.name());
    // The CPU that we chose for one does not exist for the other; one that a person chose stays.
    let other = if vm.accel == Accel::Kvm { Accel::Tcg } else { Accel::Kvm };
    if let Some(cpu) = child(root, "cpu").filter(|c| c.attribute("mode") == Some(cpu_mode(other))) {
        edits.attribute(cpu, "mode", cpu_mode(vm.accel));
    }
}

/// How the guest sees its processors: of the manifest, or no longer.
fn topology(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    root: Node<'_, '_>,
    edits: &mut Edits<'_>,
) {
    let wanted = vm.topology.as_ref();
    if wanted.is_some_and(|wanted| is.topology.as_ref() == Some(&wanted.text())) {
        return;
    }
    let was = last.is_some_and(|l| l.topology.is_some());
    let at = Nested { above: "cpu", name: "topology", behind: "model", beside: ["features", "os"] };
    nested(&at, wanted.map(write::topology), was, root, edits);
}

/// The place of an element in another one, which may not be there either.
struct Nested {
    /// The one that it is in.
    above: &'static str,
    name: &'static str,
    /// In that, what it stands behind (see [`Edits::insert_into`]).
    behind: &'static str,
    /// What the other one is put beside where it is not there: the first of these that is.
    beside: [&'static str; 2],
}

/// Such an element as it is wanted, or gone where it `was` of the manifest and is no longer.
fn nested(at: &Nested, wanted: Option<String>, was: bool, root: Node<'_, '_>, edits: &mut Edits<'_>) {
    let above = child(root, at.above);
    let there = above.and_then(|a| child(a, at.name));
    match (wanted, there) {
        (Some(wanted), Some(there)) => edits.replace(there.range(), wanted),
        (Some(wanted), None) => match above {
            Some(above) => edits.insert_into(above, at.behind, &[wanted]),
            None => {
                if let Some(beside) = at.beside.iter().find_map(|name| child(root, name)) {
                    edits.insert_after(beside, &[format!("<{0}>\n    {wanted}\n  </{0}>", at.above)]);
                }
            }
        },
        (None, Some(there)) if was => edits.remove(there),
        (None, _) => {}
    }
}

fn cpus(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    root: Node<'_, '_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    if is.cpus == vm.cpus {
        return Ok(());
    }
    let managed = vm.topology.is_some() || last.is_some_and(|l| l.topology.is_some());
    let topology = child(root, "cpu").and_then(|c| child(c, "topology"));
    if let Some(topology) = topology.filter(|_| !managed) {
        let part = |name| topology.attribute(name).and_then(|v| v.parse::<u32>().ok()).unwrap_or(1);
        let holds = ["sockets", "dies", "clusters", "cores", "threads"].map(part).iter().product::<u32>();
        if holds != vm.cpus {
            return Err(refused(
                format!("its CPU topology was set by hand to {holds} processors, and the manifest wants {}", vm.cpus),
                format!("correct <topology> first: virsh edit {}", vm.name),
            ));
        }
    }
    match child(root, "vcpu") {
        Some(vcpu) => {
            edits.text(vcpu, &vm.cpus.to_string());
            if vcpu.attribute("current").and_then(|c| c.parse::<u32>().ok()).is_some_and(|c| c > vm.cpus) {
                edits.attribute(vcpu, "current", &vm.cpus.to_string());
            }
        }
        None => edits.insert_into(root, "currentMemory", &[format!("<vcpu>{}</vcpu>", vm.cpus)]),
    }
    Ok(())
}

fn pins(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    root: Node<'_, '_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    let wanted = vm.pins.clone().unwrap_or_default();
    if is.pins == wanted || (vm.pins.is_none() && last.is_none_or(|l| l.pins.is_none())) {
        return Ok(());
    }
    let Some(there) = child(root, "cputune") else {
        let vcpu = child(root, "vcpu").ok_or_else(|| refused("its definition has no <vcpu>", "write `cpus` first"))?;
        edits.insert_after(vcpu, &[write::pins(&wanted)]);
        return Ok(());
    };
    let other = |n: &Node<'_, '_>| n.is_element() && !n.has_tag_name("vcpupin") && !n.has_tag_name("emulatorpin");
    if let Some(other) = there.children().find(other) {
        return Err(refused(
            format!("its <cputune> has <{}>, which was written by hand", other.tag_name().name()),
            format!("pin its processors there too: virsh edit {}", vm.name),
        ));
    }
    match wanted == super::Pins::default() {
        true => edits.remove(there),
        false => edits.replace(there.range(), write::pins(&wanted)),
    }
    Ok(())
}

fn memory(vm: &LibvirtDomain, is: &Projection, root: Node<'_, '_>, edits: &mut Edits<'_>) -> Result<(), Refused> {
    let Some(memory) = child(root, "memory").filter(|_| is.memory != vm.memory) else { return Ok(()) };
    if child(root, "cpu").and_then(|c| child(c, "numa")).is_some() {
        return Err(refused(
            format!("its memory is split over NUMA cells by hand, and the manifest wants {}", vm.memory),
            format!("correct <numa> first: virsh edit {}", vm.name),
        ));
    }
    let kib = vm.memory.kib().to_string();
    edits.attribute(memory, "unit", "KiB");
    edits.text(memory, &kib);
    // What the balloon leaves the guest follows, unless a person set it lower.
    if let Some(current) = child(root, "currentMemory") {
        let size = current.text().and_then(|t| super::read::size(current, t));
        if size.is_none_or(|s| s >= is.memory || s > vm.memory) {
            edits.attribute(current, "unit", "KiB");
            edits.text(current, &kib);
        }
    }
    Ok(())
}

fn huge_pages(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    root: Node<'_, '_>,
    edits: &mut Edits<'_>,
) {
    if vm.huge_pages.is_some() && is.huge_pages == vm.huge_pages {
        return;
    }
    let was = last.is_some_and(|l| l.huge_pages.is_some());
    let beside = ["currentMemory", "memory"];
    let at = Nested { above: "memoryBacking", name: "hugepages", behind: "hugepages", beside };
    nested(&at, vm.huge_pages.map(write::huge_pages), was, root, edits);
}

fn boot(vm: &LibvirtDomain, last: Option<&LibvirtDomain>, is: &Projection, root: Node<'_, '_>, edits: &mut Edits<'_>) {
    let Some(os) = child(root, "os") else { return };
    if vm.boot.is_none() && last.is_none_or(|l| l.boot.is_none()) {
        return;
    }
    let path = |p: &std::path::PathBuf| p.to_string_lossy().into_owned();
    let want = vm.boot.as_ref();
    let fields = [
        ("kernel", &is.kernel, want.map(|b| path(&b.kernel))),
        ("initrd", &is.initrd, want.and_then(|b| b.initrd.as_ref()).map(path)),
        ("cmdline", &is.cmdline, want.and_then(|b| b.cmdline.clone())),
    ];
    let mut new = Vec::new();
    for (name, is, want) in fields {
        match (child(os, name), want) {
            (_, want) if *is == want => {}
            (Some(there), Some(text)) => edits.text(there, &text),
            (Some(there), None) => edits.remove(there),
            (None, Some(text)) => new.push(format!("<{name}>{}</{name}>", e(&text))),
            (None, None) => {}
        }
    }
    if !new.is_empty() {
        edits.insert_into(os, "loader", &new);
    }
}

fn no_devices(vm: &LibvirtDomain) -> Refused {
    refused("its definition has no <devices>", format!("look at it: virsh dumpxml {}", vm.name))
}

fn disks(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    doc: &Document<'_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    let there = devices(doc, "disk");
    let of = |disk: &Disk| there.iter().find(|d| sources(**d).first().is_some_and(|s| is_disk(s, disk))).copied();
    // One that takes the place of another in the list does so in the guest: what its firmware boots from is known by that.
    let for_another = |disk: &Disk| {
        let at = vm.disks.iter().position(|d| d.path == disk.path)?;
        let was = last?.disks.get(at).filter(|was| vm.disks.iter().all(|d| d.path != was.path))?;
        of(was)
    };
    let anew = || vm.disks.iter().filter(|d| !is.has_disk(d));
    let replaced: Vec<Node<'_, '_>> = anew().filter_map(for_another).collect();
    for gone in vm.disks_to_drop(last) {
        let nodes = there.iter().filter(|d| sources(**d).first().is_some_and(|s| is_disk(s, gone)));
        for node in nodes.filter(|n| !replaced.contains(n)) {
            edits.remove(*node);
        }
    }
    let mut taken: Vec<String> =
        there.iter().filter_map(|d| child(*d, "target")?.attribute("dev").map(str::to_owned)).collect();
    let mut new = Vec::new();
    for disk in anew() {
        // A snapshot puts a file of the same name with another ending over the disk: adding the disk again beside it
        // would let the guest write below its own snapshot.
        let stem = disk.path.with_extension("").to_string_lossy().into_owned() + ".";
        let mut files = is.disks.iter().filter_map(|d| d.first()).filter(|_| !disk.block);
        if let Some(over) = files.find(|s| s.starts_with(&stem)) {
            return Err(refused(
                format!("`{}` is not attached, but `{over}` is: it looks like a snapshot over it", disk.path.display()),
                format!("merge the snapshot first: virsh blockcommit {} --active --pivot …", vm.name),
            ));
        }
        let bus = disk.options.bus();
        let former = for_another(disk);
        if let Some((node, target)) = former.and_then(|n| Some((n, child(n, "target")?)))
            && target.attribute("bus") == Some(bus)
            && let Some(name) = target.attribute("dev")
        {
            let at =
                child(node, "address").map_or(String::new(), |a| format!("  {}\n    ", &doc.input_text()[a.range()]));
            edits.replace(node.range(), write::disk(disk, name).replace("</disk>", &format!("{at}</disk>")));
            continue;
        }
        let target =
            write::free_name(bus, &mut taken).ok_or_else(|| refused("it has no disk name left", "take disks out"))?;
        match former {
            Some(node) => edits.replace(node.range(), write::disk(disk, &target)),
            None => new.push(write::disk(disk, &target)),
        }
    }
    for disk in vm.disks.iter().filter(|d| is.has_disk(d)) {
        let node = there.iter().find(|d| sources(**d).iter().any(|s| is_disk(s, disk)));
        if let (Some(node), Some(options)) = (node, is.options_of(disk)) {
            let wanted = disk.options.wanted(vm.options_before(disk, last));
            let due: Vec<_> = wanted.into_iter().filter(|(part, wanted)| options.part(part) != *wanted).collect();
            disk_options(*node, &due, &mut taken, edits).ok_or_else(|| {
                refused(
                    format!("its disk `{}` has no <driver> or <target> that can be changed", disk.shown()),
                    format!("correct it by hand: virsh edit {}", vm.name),
                )
            })?;
        }
    }
    if vm.disks.iter().any(|d| d.options.bus() == "scsi") {
        let scsi = |c: &&Node<'_, '_>| c.attribute("type") == Some("scsi");
        let controllers = devices(doc, "controller");
        match controllers.iter().find(scsi) {
            None => new.insert(0, write::SCSI.to_owned()),
            Some(other) if other.attribute("model").is_none_or(|m| !m.starts_with("virtio")) => {
                return Err(refused(
                    "its SCSI controller was set by hand, and is not of model `virtio-scsi`",
                    format!("correct it first: virsh edit {}", vm.name),
                ));
            }
            Some(_) => {}
        }
    }
    for gone in vm.seed_to_drop(last).chain(vm.media_to_drop(last)) {
        let path = gone.to_string_lossy();
        for node in there.iter().filter(|d| sources(**d).first().is_some_and(|s| *s == path)) {
            edits.remove(*node);
        }
    }
    for image in vm.seed.iter().chain(&vm.media).filter(|s| !is.has_cdrom(s)) {
        // The drive that a former seed leaves is taken away in the same edit; another name is as good as its.
        let bus = write::cdrom_bus(vm.arch);
        let target = write::free_name(bus, &mut taken)
            .ok_or_else(|| refused("it has no name for a CD-ROM drive left", "take disks out"))?;
        new.push(write::cdrom(image, &target, bus));
    }
    if !new.is_empty() {
        edits.insert_into(child(doc.root_element(), "devices").ok_or_else(|| no_devices(vm))?, "disk", &new);
    }
    Ok(())
}

/// What is said of a disk beside its source. `None` where it has not the elements for it.
fn disk_options(
    disk: Node<'_, '_>,
    due: &[(&'static str, Option<String>)],
    taken: &mut Vec<String>,
    edits: &mut Edits<'_>,
) -> Option<()> {
    for (part, wanted) in due {
        if *part == "bus" {
            let (target, bus) = (child(disk, "target")?, wanted.as_deref()?);
            target.attribute_node("bus")?;
            edits.attribute(target, "bus", bus);
            edits.attribute(target, "dev", &write::free_name(bus, taken)?);
            // Its place on the former bus.
            children(disk, "address").for_each(|n| edits.remove(n));
            continue;
        }
        let driver = child(disk, "driver")?;
        edits.set_attribute(driver, part, wanted.as_deref());
        // libvirt refuses QEMU's native requests where they do not go past the page cache.
        let past = |cache: &Option<String>| matches!(cache.as_deref(), Some("none" | "directsync"));
        if *part == "cache" && !past(wanted) && driver.attribute("io") == Some("native") {
            edits.set_attribute(driver, "io", None);
        }
    }
    Some(())
}

fn nics(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    doc: &Document<'_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    let there = devices(doc, "interface");
    let with = |mac| there.iter().copied().find(|i| nic(*i).is_some_and(|(m, _)| m == mac));
    let gone = vm.nic_to_drop(last).and_then(|n| with(n.mac));
    let Some(want) = &vm.nic else {
        if let Some(gone) = gone {
            edits.remove(gone);
        }
        return Ok(());
    };
    match with(want.mac) {
        Some(node) if is.nics.get(&want.mac) != Some(&want.on.name()) => {
            let (kind, source) = write::nic_source(&want.on);
            edits.attribute(node, "type", kind);
            match child(node, "source") {
                Some(old) => edits.replace(old.range(), source),
                None => edits.insert_into(node, "mac", &[source]),
            }
            if let Some(gone) = gone {
                edits.remove(gone);
            }
        }
        Some(_) => {
            if let Some(gone) = gone {
                edits.remove(gone);
            }
        }
        None => match (gone, &vm.cards_of_another_address(last, is)[..]) {
            (Some(gone), _) => edits.replace(gone.range(), write::interface(want, vm.windows)),
            (None, [other]) => {
                if let Some(mac) = with(*other).and_then(|card| child(card, "mac")) {
                    edits.attribute(mac, "address", &want.mac.to_string());
                }
            }
            (None, _) => {
                let devices = child(doc.root_element(), "devices").ok_or_else(|| no_devices(vm))?;
                edits.insert_into(devices, "interface", &[write::interface(want, vm.windows)]);
            }
        },
    }
    Ok(())
}

/// Parts that are one element each.
fn extras(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    doc: &Document<'_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    let differs = |extra: &&Extra| is.extras.get(&extra.key()) != Some(&extra.value());
    let due: Vec<&Extra> = vm.extras.iter().filter(differs).collect();
    for gone in vm.extras_to_drop(last).chain(due.iter().copied()) {
        gone.nodes(doc).into_iter().for_each(|node| edits.remove(node));
    }
    let root = doc.root_element();
    if due.iter().any(|e| matches!(e, Extra::Folder { .. })) {
        shared_memory(vm, is, root, edits)?;
    }
    for extra in due {
        let elements = extra.elements(vm.arch);
        edits.insert_into(child(root, "devices").ok_or_else(|| no_devices(vm))?, "", &elements);
    }
    Ok(())
}

/// A folder's daemon and the guest share its memory.
fn shared_memory(
    vm: &LibvirtDomain,
    is: &Projection,
    root: Node<'_, '_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    let backing = child(root, "memoryBacking");
    if backing.and_then(|b| child(b, "access")).is_some_and(|a| a.attribute("mode") == Some("shared")) {
        return Ok(());
    }
    let elements: Vec<String> = write::SHARED.map(str::to_owned).to_vec();
    match backing {
        Some(backing) if child(backing, "access").is_none() && child(backing, "source").is_none() => {
            edits.insert_into(backing, "", &elements);
        }
        Some(_) => {
            return Err(refused(
                "its <memoryBacking> was set by hand, and a folder needs memory that is shared",
                format!("write <access mode='shared'/> there first: virsh edit {}", vm.name),
            ));
        }
        None if vm.huge_pages.is_some() && is.huge_pages.is_none() => {
            return Err(refused("it is to get huge pages and a folder at once", "apply one first, and then the other"));
        }
        None => {
            let whole = format!("<memoryBacking>\n    {}\n  </memoryBacking>", elements.join("\n    "));
            if let Some(beside) = child(root, "currentMemory").or_else(|| child(root, "memory")) {
                edits.insert_after(beside, &[whole]);
            }
        }
    }
    Ok(())
}

/// A slot goes in and out as a whole.
fn slots(
    vm: &LibvirtDomain,
    last: Option<&LibvirtDomain>,
    is: &Projection,
    doc: &Document<'_>,
    edits: &mut Edits<'_>,
) -> Result<(), Refused> {
    let incomplete: Vec<_> =
        vm.slots.iter().filter(|s| s.functions.iter().any(|f| !is.functions.contains(f))).collect();
    let out: Vec<_> = vm.slots_to_drop(last).chain(incomplete.iter().copied()).collect();
    let kept = |a: PciAddress| vm.slots.iter().any(|s| s.has(a)) && !incomplete.iter().any(|s| s.has(a));
    take_functions(|a| out.iter().any(|s| s.has(a)) && !kept(a), doc, edits);
    put_slots(&incomplete, doc, edits).ok_or_else(|| no_devices(vm))
}

/// Takes everything of these functions out.
pub(super) fn take_functions(out: impl Fn(PciAddress) -> bool, doc: &Document<'_>, edits: &mut Edits<'_>) {
    for node in devices(doc, "hostdev").iter().filter(|h| function(**h).is_some_and(&out)) {
        edits.remove(*node);
    }
}

/// Puts slots in, each as one device of the guest behind a port of its own. `None` where there is no place for devices.
pub(super) fn put_slots(slots: &[&PassedSlot], doc: &Document<'_>, edits: &mut Edits<'_>) -> Option<()> {
    if slots.is_empty() {
        return Some(());
    }
    let root = doc.root_element();
    let parent = child(root, "devices")?;
    let machine = child(root, "os").and_then(|os| child(os, "type")).and_then(|t| t.attribute("machine"));
    // Ports are PCI Express; on an older machine libvirt finds the place.
    let express = machine.is_some_and(|m| m.contains("q35") || m.starts_with("virt"));
    let index = |c: &Node<'_, '_>| c.attribute("index").and_then(|i| i.parse::<u32>().ok());
    let controllers = devices(doc, "controller");
    let pci = controllers.iter().filter(|c| c.attribute("type") == Some("pci"));
    let mut bus = pci.filter_map(index).max().unwrap_or(0);
    // A port that a device left is used again, so that moving a card in and out adds none each time.
    let mut free = free_ports(doc).into_iter();
    let (mut ports, mut hostdevs) = (Vec::new(), Vec::new());
    for slot in slots {
        let port = free.next().filter(|_| express).unwrap_or_else(|| {
            bus += 1;
            if express {
                ports.push(write::root_port(bus));
            }
            bus
        });
        hostdevs.extend(write::hostdevs(slot, express.then_some(port)));
    }
    if controllers.is_empty() || ports.is_empty() {
        ports.extend(hostdevs);
        edits.insert_into(parent, "hostdev", &ports);
    } else {
        edits.insert_into(parent, "controller", &ports);
        edits.insert_into(parent, "hostdev", &hostdevs);
    }
    Some(())
}

/// The buses of PCI Express ports behind which nothing is, in a definition in which libvirt gave every device its place:
/// one that lacks a place may get any of these.
pub(super) fn free_ports(doc: &Document<'_>) -> Vec<u32> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let all: Vec<_> = child(doc.root_element(), "devices").into_iter().flat_map(|d| d.children()).collect();
    // The bus that a device sits on; `None` where libvirt has not given it a place on one.
    let bus = |n: &Node<'_, '_>| {
        let at = child(*n, "address").filter(|a| a.attribute("type") == Some("pci"))?;
        number(at.attribute("bus")?)
    };
    let plugs = |n: &Node<'_, '_>| child(*n, "target").and_then(|t| t.attribute("hotplug")) != Some("off");
    let is_port = |n: &&Node<'_, '_>| n.has_tag_name("controller") && n.attribute("model") == Some("pcie-root-port");
    let ports: Vec<_> = all.iter().filter(is_port).collect();
    if !ports.iter().all(|p| bus(p).is_some()) {
        return Vec::new();
    }
    let used: Vec<u32> = all.iter().filter_map(bus).collect();
    let open = ports.into_iter().filter(|p| plugs(p));
    open.filter_map(|n| n.attribute("index").and_then(number)).filter(|bus| !used.contains(bus)).collect()
}
