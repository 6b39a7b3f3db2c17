//! What people do to an adopted VM by virsh stays, whatever its manifest entry becomes afterwards: every definition of
//! `tests/domains` × every edit here × one edit of the manifest.

use roxmltree::Document;

use crate::edits::{EDITS, adopted, beside, difference, keep, restore, set_by_hand};
use crate::foreign::domains;

/// An edit as `virsh edit` leaves it. None where the definition has no place for it.
struct ByHand {
    what: &'static str,
    edit: fn(&str) -> Option<String>,
    /// A field of the manifest differs now: the next plan says so, and an apply puts the manifest's back.
    drifts: bool,
}

const fn kept(what: &'static str, edit: fn(&str) -> Option<String>) -> ByHand {
    ByHand { what, edit, drifts: false }
}
const fn drift(what: &'static str, edit: fn(&str) -> Option<String>) -> ByHand {
    ByHand { what, edit, drifts: true }
}

/// The text with something put before the first of these that it has.
fn before(xml: &str, places: &[&str], put: &str) -> Option<String> {
    let place = places.iter().find_map(|p| xml.find(p))?;
    Some(format!("{}{put}{}", &xml[..place], &xml[place..]))
}
fn device(xml: &str, put: &str) -> Option<String> {
    before(xml, &["</devices>"], put)
}
/// As libvirt orders them: this one stands before `<os>`.
fn before_os(xml: &str, put: &str) -> Option<String> {
    before(xml, &["<os>", "<os "], put)
}
/// The first element of this name with attributes put into its start tag.
fn attribute(xml: &str, element: &str, put: &str) -> Option<String> {
    let start = [" ", "/", ">"].iter().find_map(|c| xml.find(&format!("<{element}{c}")))? + 1 + element.len();
    let key = put.split('=').next()?;
    let tag = &xml[start..start + xml[start..].find('>')?];
    (!tag.contains(&format!(" {key}="))).then(|| format!("{} {put}{}", &xml[..start], &xml[start..]))
}
/// The first text between these, replaced.
fn text(xml: &str, element: &str, with: &str) -> Option<String> {
    let open = xml.find(&format!("<{element}"))?;
    let from = open + xml[open..].find('>')? + 1;
    let to = from + xml[from..].find("</")?;
    Some(format!("{}{with}{}", &xml[..from], &xml[to..]))
}
fn absent(xml: &str, element: &str) -> Option<()> {
    (!xml.contains(&format!("<{element}"))).then_some(())
}

const BY_HAND: [ByHand; 24] = [
    kept("title", |x| {
        absent(x, "title").and_then(|()| before(x, &["<metadata", "<memory"], "<title>rack 4 &lt;left&gt;</title>\n  "))
    }),
    kept("description", |x| {
        absent(x, "description")
            .and_then(|()| before(x, &["<metadata", "<memory"], "<description>ask Eve\nfirst</description>\n  "))
    }),
    kept("metadata of another program", |x| {
        before(x, &["</metadata>"], "  <team:owner xmlns:team='http://example.org/team'>lab</team:owner>\n  ")
    }),
    kept("watchdog", |x| device(x, "  <watchdog model='i6300esb' action='poweroff'/>\n  ")),
    kept("random numbers", |x| {
        device(x, "  <rng model='virtio'>\n      <backend model='random'>/dev/random</backend>\n    </rng>\n  ")
    }),
    kept("sound", |x| device(x, "  <sound model='ich9'>\n      <codec type='micro'/>\n    </sound>\n  ")),
    kept("another disk of somebody's", |x| {
        device(
            x,
            "  <disk type='file' device='disk'>\n      <driver name='qemu' type='raw' cache='none' io='native'/>\n      \
             <source file='/srv/archive.raw'/>\n      <target dev='vdz' bus='virtio'/>\n      <serial>ARCHIVE</serial>\n    </disk>\n  ",
        )
    }),
    kept("a CD", |x| {
        device(
            x,
            "  <disk type='file' device='cdrom'>\n      <driver name='qemu' type='raw'/>\n      \
             <source file='/srv/tools.iso'/>\n      <target dev='sdz' bus='sata'/>\n      <readonly/>\n    </disk>\n  ",
        )
    }),
    kept("a serial port over TCP", |x| {
        device(
            x,
            "  <serial type='tcp'>\n      <source mode='bind' host='127.0.0.1' service='7777' tls='no'/>\n      \
             <protocol type='telnet'/>\n      <target type='isa-serial' port='3'/>\n    </serial>\n  ",
        )
    }),
    kept("a channel", |x| {
        device(x, "  <channel type='unix'>\n      <target type='virtio' name='org.example.0'/>\n    </channel>\n  ")
    }),
    kept("shared memory", |x| {
        device(
            x,
            "  <shmem name='frames'>\n      <model type='ivshmem-plain'/>\n      <size unit='M'>32</size>\n    </shmem>\n  ",
        )
    }),
    kept("how a disk caches", |x| attribute(x, "driver name='qemu'", "copy_on_read='on'")),
    kept("CPU shares", |x| {
        absent(x, "cputune").and_then(|()| before_os(x, "<cputune>\n    <shares>2048</shares>\n  </cputune>\n  "))
    }),
    kept("weights of disks", |x| {
        absent(x, "blkiotune").and_then(|()| {
            before(x, &["<memoryBacking", "<vcpu"], "<blkiotune>\n    <weight>800</weight>\n  </blkiotune>\n  ")
        })
    }),
    kept("limits of memory", |x| {
        absent(x, "memtune").and_then(|()| {
            before(
                x,
                &["<memoryBacking", "<vcpu"],
                "<memtune>\n    <soft_limit unit='KiB'>65536</soft_limit>\n  </memtune>\n  ",
            )
        })
    }),
    kept("I/O threads", |x| absent(x, "iothreads").and_then(|()| before_os(x, "<iothreads>2</iothreads>\n  "))),
    kept("a feature of the hypervisor", |x| before(x, &["</features>"], "  <pmu state='off'/>\n  ")),
    kept("what a crash does", |x| match x.contains("<on_crash>") {
        true => text(x, "on_crash", "coredump-restart"),
        false => before(x, &["<devices>"], "<on_crash>coredump-restart</on_crash>\n  "),
    }),
    kept("a clock", |x| match x.contains("<clock") {
        true => before(x, &["</clock>"], "  <timer name='kvmclock' present='no'/>\n  "),
        false => {
            before(x, &["<devices>"], "<clock offset='utc'>\n    <timer name='hpet' present='yes'/>\n  </clock>\n  ")
        }
    }),
    kept("arguments for QEMU", |x| {
        absent(x, "qemu:commandline").and_then(|()| {
            let put = "  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n    \
                       <qemu:arg value='-msg'/>\n    <qemu:arg value='timestamp=on'/>\n  </qemu:commandline>\n";
            before(x, &["</domain>"], put)
        })
    }),
    drift("virsh setvcpus", |x| {
        let now = x[x.find("<vcpu")?..].split(['>', '<']).nth(2)?.trim().parse::<u32>().ok()?;
        // Pins of processors that would be gone are a definition that libvirt refuses.
        text(x, "vcpu", &(now + 1).to_string())
    }),
    drift("virsh setmaxmem, setmem", |x| {
        let with = text(x, "memory", "3145728")?;
        match with.contains("<currentMemory") {
            true => text(&with, "currentMemory", "3145728"),
            false => Some(with),
        }
    }),
    drift("virsh detach-disk", |x| {
        let start = x.find("<disk ")?;
        let end = start + x[start..].find("</disk>")? + "</disk>".len();
        Some(format!("{}{}", &x[..start], &x[end..]))
    }),
    drift("virsh update-device of the card's network", |x| {
        let nic = x.find("<interface type='network'>")?;
        let source = nic + x[nic..].find("network='")? + "network='".len();
        let end = source + x[source..].find('\'')?;
        Some(format!("{}lab{}", &x[..source], &x[end..]))
    }),
];

/// What one definition showed.
#[derive(Default)]
struct Seen {
    edits: usize,
    wrong: Vec<String>,
}

fn edited(name: &str, xml: &str) -> Seen {
    let mut seen = Seen::default();
    let host = adopted(name, xml);
    let (manifest, marked) = (host.manifest(), host.definition(name));
    keep(&host);
    for (n, by_hand) in BY_HAND.iter().enumerate() {
        let Some(tuned) = (by_hand.edit)(&marked) else { continue };
        Document::parse(&tuned).unwrap_or_else(|e| panic!("{name}, {}: {e}\n{tuned}", by_hand.what));
        let put = || {
            restore(&host);
            host.record(|r| {
                let domains = r["libvirt"]["known"]["domains"].as_array_mut().unwrap();
                domains.iter_mut().find(|d| d["name"] == name).unwrap()["inactiveXml"] = tuned.clone().into();
            });
            host.set_manifest(&manifest);
        };
        put();
        let (code, said) = host.run(&["plan"]);
        // A field that the manifest leaves out is nobody's drift.
        if by_hand.drifts && code == 0 {
            continue;
        }
        seen.edits += 1;
        let mut wrong = |why: &str, said: &str| seen.wrong.push(format!("{name}, {}: {why}\n{said}", by_hand.what));
        if by_hand.drifts {
            // What it may not decide (a disk that somebody took away may be in use elsewhere) waits for a person's word.
            match code {
                1 if said.contains("and this VM has not had it") || set_by_hand(&said) => {}
                2 if said.contains(&format!("libvirt-domain[{name}]")) => {
                    let (code, said) = host.run(&["apply", "--yes"]);
                    if !matches!(code, 0 | 3) || !matches!(host.run(&["plan"]).0, 0 | 3) {
                        wrong("it is not put right", &said);
                    }
                }
                _ => wrong("the plan does not tell of it", &said),
            }
            continue;
        }
        if code != 0 {
            wrong("the plan takes it for drift", &said);
        }
        // One of the manifest's edits, each time another one.
        let turned = EDITS.iter().cycle().skip(n % EDITS.len()).take(EDITS.len());
        let Some((edit, changed)) = turned.filter_map(|e| Some((e, (e.edit)(&manifest, name)?))).next() else {
            continue;
        };
        host.set_manifest(&changed);
        let (code, said) = host.run(&["apply", "--yes"]);
        let after = host.definition(name);
        let (out, inside) = difference(&tuned, &after);
        let gone = beside(&out, edit.out);
        if code == 1 && set_by_hand(&said) && after == tuned {
            continue;
        }
        if !matches!(code, 0 | 3) || (out.is_empty() && inside.is_empty()) {
            wrong(&format!("then {}: exit {code}, nothing changed", edit.what), &said);
        } else if !gone.is_empty() || (edit.out.is_empty() && !out.is_empty()) {
            wrong(&format!("then {}: lost {out:?}", edit.what), "");
        } else if !beside(&inside, edit.inside).is_empty() {
            wrong(&format!("then {}: more came in: {inside:?}", edit.what), "");
        }
    }
    seen
}

/// Two halves, so that two processors share them.
fn half(which: usize) {
    let mut all = Seen::default();
    let mine: Vec<_> = domains().into_iter().skip(which).step_by(2).collect();
    for (name, xml) in &mine {
        let seen = edited(name, xml);
        all.edits += seen.edits;
        all.wrong.extend(seen.wrong);
    }
    let (edits, wrong) = (all.edits, all.wrong.len());
    eprintln!("{} definitions, {edits} edits by hand: {wrong} lost or taken for drift", mine.len());
    assert!(all.wrong.is_empty(), "{}", all.wrong.join("\n"));
    assert!(all.edits >= mine.len() * 20, "{} edits were tried", all.edits);
}

#[test]
fn what_people_edit_by_virsh_stays() {
    half(0);
}

#[test]
fn what_people_edit_by_virsh_stays_in_the_other_half() {
    half(1);
}
