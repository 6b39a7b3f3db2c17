//! The screen: what it is about, the tabs, one of them, what can be typed. Meaning is never in colour.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};

use super::look::{Item, Seen, Watched};
use super::{App, Over, Tab};

const PLAIN: Style = Style::new();
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// A part of the screen of so many lines from there on.
fn part(whole: Rect, from: u16, lines: u16) -> Rect {
    let from = from.min(whole.height);
    Rect { x: whole.x, y: whole.y + from, width: whole.width, height: lines.min(whole.height - from) }
}

fn put(frame: &mut Frame<'_>, at: Rect, lines: Vec<Line<'_>>) {
    frame.render_widget(Paragraph::new(lines), at);
}

fn height(lines: usize) -> u16 {
    u16::try_from(lines).unwrap_or(u16::MAX)
}

pub(super) fn draw(app: &App, frame: &mut Frame<'_>) {
    let whole = frame.area();
    let about = match app.host.known() {
        Some(Ok(seen)) => seen.title.clone(),
        _ => String::new(),
    };
    put(frame, part(whole, 0, 1), vec![Line::styled(format!("gpuvm   {about}"), STRONG)]);
    let tabs = Tab::ALL.iter().zip(1..).flat_map(|((tab, name), n)| {
        let style = if *tab == app.tab { CHOSEN } else { PLAIN };
        [Span::styled(format!(" {n} {name} "), style), Span::raw(" ")]
    });
    let recorded = app.target.root.as_ref().map(|_| Span::raw("  on a recorded host"));
    put(frame, part(whole, 1, 1), vec![Line::from(tabs.chain(recorded).collect::<Vec<_>>())]);
    let body = part(whole, 3, whole.height.saturating_sub(5));
    match app.tab {
        Tab::Host => text(app, &app.host, frame, body),
        Tab::Plan => text(app, &app.plan, frame, body),
        Tab::Gpus => list(app, &app.gpus, frame, body),
        Tab::Vms => list(app, &app.vms, frame, body),
        Tab::Run => run(app, frame, body),
    }
    let busy = app.busy.as_ref().map_or(String::new(), |what| format!("… {what}"));
    put(frame, part(whole, whole.height.saturating_sub(2), 1), vec![Line::styled(busy, STRONG)]);
    if let Some(over) = &app.over {
        lies_over(over, frame, body);
    }
    put(frame, part(whole, whole.height.saturating_sub(1), 1), vec![Line::raw(keys(app))]);
}

/// What can be typed now.
fn keys(app: &App) -> &'static str {
    match (&app.over, app.tab) {
        (Some(Over::Choose { .. }), _) => "up, down: another   enter: this one   n: leave it",
        (Some(Over::Plan(prepared, _)), _) if prepared.order.is_some() => "y: do it   n: leave it   up, down: more",
        (Some(_), _) => "any key goes on",
        (None, Tab::Vms) => "s start  t stop  c console  a attach GPU  d detach  r anew  1-5 tab  q quit",
        (None, Tab::Gpus) => "up, down: another   page up, down: more of it   r anew   1-5 tab   q quit",
        (None, _) => "up, down, page up, page down: more   r anew   1-5 tab   q quit",
    }
}

/// The lines from the place on to which was scrolled, and never past the last of them.
fn window(lines: &[String], scroll: usize, most: u16) -> Vec<Line<'_>> {
    let most = usize::from(most);
    let from = scroll.min(lines.len().saturating_sub(most));
    lines.iter().skip(from).take(most).map(|l| Line::raw(l.as_str())).collect()
}

/// Why it may not be so, over what was seen; how many lines that took.
fn doubt<T: Send + 'static>(watched: &Watched<T>, frame: &mut Frame<'_>, at: Rect) -> u16 {
    match watched.doubt() {
        Some(doubt) => {
            let lines = vec![Line::styled(format!("? {doubt}"), STRONG)];
            let paragraph = Paragraph::new(lines).wrap(ratatui::widgets::Wrap { trim: false });
            frame.render_widget(paragraph, part(at, 0, 2));
            2
        }
        None => 0,
    }
}

fn text(app: &App, watched: &Watched<Seen>, frame: &mut Frame<'_>, at: Rect) {
    let taken = doubt(watched, frame, at);
    let at = part(at, taken, at.height);
    if let Some(Ok(seen)) = watched.known() {
        put(frame, at, window(&seen.lines, app.scroll, at.height));
    }
}

fn list(app: &App, watched: &Watched<Seen>, frame: &mut Frame<'_>, at: Rect) {
    let taken = doubt(watched, frame, at);
    let at = part(at, taken, at.height);
    let (Some(Ok(seen)), Some((items, chosen))) = (watched.known(), app.list()) else { return };
    if items.is_empty() {
        put(frame, at, vec![Line::raw("none")]);
        return;
    }
    // Half of the room for the list, half for what is known of the chosen one.
    let rows = height(items.len()).min((at.height / 2).max(1));
    let from = chosen.saturating_sub(usize::from(rows) - 1);
    let lines =
        items.iter().enumerate().skip(from).take(usize::from(rows)).map(|(n, item): (usize, &Item)| {
            Line::styled(item.line.as_str(), if n == chosen { CHOSEN } else { PLAIN })
        });
    put(frame, part(at, 0, rows), lines.collect());
    let detail = items.get(chosen).map(|i| i.detail.as_slice()).unwrap_or_default();
    let more =
        if items.len() > usize::from(rows) { format!(" {} of {} ", chosen + 1, items.len()) } else { String::new() };
    let rule = format!("{more:─<width$}", width = usize::from(at.width));
    put(frame, part(at, rows, 1), vec![Line::raw(rule)]);
    let room = part(at, rows + 1, at.height);
    let mut lines = window(detail, app.scroll, room.height);
    if usize::from(room.height) > lines.len() + seen.lines.len() {
        lines.extend(seen.lines.iter().map(|l| Line::raw(l.as_str())));
    }
    put(frame, room, lines);
}

fn run(app: &App, frame: &mut Frame<'_>, at: Rect) {
    if app.run.lines.is_empty() && app.run.now.is_none() {
        put(frame, at, vec![Line::raw("nothing is being carried out")]);
        return;
    }
    // The newest, unless a person looks at what was before.
    let room = at.height.saturating_sub(1);
    let back = app.run.lines.len().saturating_sub(usize::from(room)).saturating_sub(app.scroll);
    put(frame, part(at, 0, room), window(&app.run.lines, back, room));
    if let Some(now) = &app.run.now {
        let below = height(app.run.lines.len()).min(room);
        put(frame, part(at, below, 1), vec![Line::styled(format!("  …     {now}"), STRONG)]);
    }
}

fn lies_over(over: &Over, frame: &mut Frame<'_>, at: Rect) {
    frame.render_widget(Clear, at);
    let titled = |title: &str| Line::styled(title.to_owned(), STRONG);
    let below = part(at, 2, at.height);
    match over {
        Over::Choose { vm, attach, names, at: chosen } => {
            let title = if *attach { format!("a GPU for {vm}") } else { format!("a GPU that {vm} gives back") };
            put(frame, part(at, 0, 1), vec![titled(&title)]);
            let lines = names
                .iter()
                .enumerate()
                .map(|(n, name)| Line::styled(format!(" {name} "), if n == *chosen { CHOSEN } else { PLAIN }));
            let from = chosen.saturating_sub(usize::from(below.height.saturating_sub(1)));
            put(frame, below, lines.skip(from).collect());
        }
        Over::Plan(prepared, from) => {
            put(frame, part(at, 0, 1), vec![titled(&prepared.title)]);
            put(frame, below, window(&prepared.lines, *from, below.height));
        }
        Over::Said(title, lines) => {
            put(frame, part(at, 0, 1), vec![titled(title)]);
            let lines: Vec<Line<'_>> = lines.iter().map(|l| Line::raw(l.as_str())).collect();
            frame.render_widget(Paragraph::new(lines).wrap(ratatui::widgets::Wrap { trim: false }), below);
        }
    }
}
