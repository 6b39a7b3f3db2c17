//! The machine as a drawing: a text tree, and SVG for a browser. Names are others': they are escaped.

use std::fmt::Write;

use super::text::safe;
use crate::gpu::topology::{Branch, Topology};
use crate::types::xml_escape;

fn head(node: Option<u32>) -> String {
    node.map_or("all CPUs".to_owned(), |n| format!("NUMA node {n}"))
}

/// The words of a branch after its name.
fn details(b: &Branch) -> Vec<String> {
    let mut all = Vec::new();
    if b.kind == "port" {
        return all;
    }
    let groups: Vec<String> = b.groups.iter().map(u32::to_string).collect();
    if !groups.is_empty() {
        all.push(format!("group {}", groups.join(",")));
    }
    let drivers: Vec<&str> = b.drivers.iter().map(String::as_str).collect();
    all.push(if drivers.is_empty() { "no driver".to_owned() } else { drivers.join(" ") });
    if !b.carries.is_empty() {
        all.push(format!("carries {}", b.carries.join(", ")));
    }
    all.extend(b.vms.iter().map(|vm| format!("→ VM {vm}")));
    all
}

/// A tree of text.
pub fn topology_text(t: &Topology) -> String {
    let mut out = format!("{}\n", safe(&t.host));
    for (i, node) in t.nodes.iter().enumerate() {
        let last = i + 1 == t.nodes.len();
        let _ = writeln!(out, "{}─ {}", if last { "└" } else { "├" }, head(node.number));
        branches(&node.children, if last { "   " } else { "│  " }, &mut out);
    }
    out
}

fn branches(all: &[Branch], indent: &str, out: &mut String) {
    for (i, b) in all.iter().enumerate() {
        let last = i + 1 == all.len();
        let (corner, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let what = if b.kind == "port" {
            format!("{} port", b.address)
        } else {
            format!("{} {} {}", b.address, b.kind, b.name)
        };
        let _ = writeln!(out, "{indent}{corner}{}", safe(&what));
        let indent = format!("{indent}{below}");
        if b.kind != "port" {
            let mut lines = vec![details(b).join("   ")];
            if !b.functions.is_empty() {
                lines.push(b.functions.join("   "));
            }
            for line in lines {
                let _ = writeln!(out, "{indent}   {}", safe(&line));
            }
        }
        branches(&b.children, &indent, out);
    }
}

const ROW: usize = 44;
const STEP: usize = 28;
const BOX: usize = 520;

/// A drawing for a browser: one box a slot, lines to the ports above it, VMs to the right. Nothing in it is fetched or run.
pub fn topology_svg(t: &Topology) -> String {
    let mut body = String::new();
    let mut row = 0;
    for node in &t.nodes {
        draw_box(&mut body, 0, row, "node", &head(node.number), "", &[]);
        let from = row;
        row += 1;
        for b in &node.children {
            draw(&mut body, b, 1, from, &mut row);
        }
    }
    let (width, height) = (STEP * 8 + BOX + 260, (row + 1) * ROW + 20);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<title>{}</title>\n<style>\nrect {{ fill: #fff; stroke: #888; }}\n\
         .node {{ fill: #eee; }} .port {{ fill: #f6f6f6; stroke: #ccc; }} .gpu {{ fill: #e3f1d8; stroke: #4a7c1f; }}\n\
         .nvme, .storage {{ fill: #e2ecfa; }} .network {{ fill: #fbeedb; }} .vm {{ fill: #efe3fa; stroke: #6b3fa0; }}\n\
         .small {{ font-size: 11px; fill: #555; }} path {{ stroke: #999; fill: none; }}\n</style>\n{body}</svg>\n",
        xml_escape(&safe(&t.host))
    )
}

fn draw(body: &mut String, b: &Branch, depth: usize, above: usize, row: &mut usize) {
    let here = *row;
    let (x, y0, y1) = (depth * STEP - STEP / 2 + 10, above * ROW + 44, here * ROW + 28);
    let _ = writeln!(body, "<path d=\"M{x} {y0} V{y1} H{}\"/>", depth * STEP + 10);
    let name = if b.kind == "port" { format!("{} port", b.address) } else { format!("{}  {}", b.address, b.name) };
    let small = details(b).into_iter().filter(|d| !d.starts_with('→')).chain(b.functions.iter().cloned());
    draw_box(body, depth, here, b.kind, &name, &small.collect::<Vec<_>>().join("   "), &b.vms);
    *row += 1;
    for child in &b.children {
        draw(body, child, depth + 1, here, row);
    }
}

fn draw_box(body: &mut String, depth: usize, row: usize, class: &str, name: &str, small: &str, vms: &[String]) {
    let (x, y) = (depth * STEP + 10, row * ROW + 10);
    let esc = |text: &str| xml_escape(&safe(text)).to_string();
    let _ = writeln!(
        body,
        "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{BOX}\" height=\"36\" rx=\"4\"/>\n\
         <text x=\"{}\" y=\"{}\">{}</text>\n<text class=\"small\" x=\"{}\" y=\"{}\">{}</text>",
        x + 8,
        y + 15,
        esc(name),
        x + 8,
        y + 30,
        esc(small)
    );
    for (i, vm) in vms.iter().enumerate() {
        let left = x + BOX + 40 + i * 170;
        let _ = writeln!(
            body,
            "<path d=\"M{} {} H{left}\"/>\n<rect class=\"vm\" x=\"{left}\" y=\"{y}\" width=\"160\" height=\"36\" rx=\"12\"/>\n\
             <text x=\"{}\" y=\"{}\">VM {}</text>",
            x + BOX,
            y + 18,
            left + 10,
            y + 22,
            esc(vm)
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::gpu::topology::NumaNode;

    #[test]
    fn names_of_others_stay_text_in_the_drawing_and_steer_no_terminal() {
        let hostile = "<script>alert(1)</script>&\"'\u{1b}[2J".to_owned();
        let branch = Branch {
            kind: "gpu",
            address: "0000:01:00".to_owned(),
            name: hostile.clone(),
            functions: vec![hostile.clone()],
            drivers: BTreeSet::from([hostile.clone()]),
            groups: BTreeSet::new(),
            carries: vec![hostile.clone()],
            vms: vec![hostile.clone()],
            children: Vec::new(),
        };
        let drawn = Topology { host: hostile, nodes: vec![NumaNode { number: Some(0), children: vec![branch] }] };
        let svg = topology_svg(&drawn);
        let doc = roxmltree::Document::parse(&svg).unwrap();
        let known = ["svg", "title", "style", "path", "rect", "text"];
        assert!(doc.descendants().filter(|n| n.is_element()).all(|n| known.contains(&n.tag_name().name())), "{svg}");
        assert!(doc.descendants().any(|n| n.text().is_some_and(|t| t.contains("<script>alert(1)</script>"))));
        assert!(!svg.contains('\u{1b}') && !topology_text(&drawn).contains('\u{1b}'));
    }
}
