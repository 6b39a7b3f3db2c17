//! `gpuvm tui`: host, GPUs, VMs, the plan and a run on one screen of 80 columns and 24 lines, over ssh too. What it shows
//! is what the commands show, asked in the background; what it changes goes the way of the commands.

mod act;
mod console;
mod draw;
mod keys;
mod look;
mod screen;

use std::io::{BufRead, BufReader, IsTerminal, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use clap::Args;
use miette::{IntoDiagnostic, miette};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::crossterm::event::KeyCode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::act::{Begun, Prepared, Wish};
use self::console::{Console, End};
use self::look::{Item, Seen, Target, Watched};
use super::progress::Told;
use super::status::{Standing, standing};
use super::{code, host, say};
use crate::apply::StateDir;
use crate::manifest;
use crate::types::{DomainName, safe_line};

/// Arguments of `gpuvm tui`.
#[derive(Debug, Args)]
pub struct TuiArgs {
    /// The manifest whose plan is shown; host.yaml where it is there, else the one of `vmctl`'s defaults.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// How often keys, signals and answers are looked for.
const TICK_MS: u8 = 100;
/// How old what is shown may become.
const AGE: Duration = Duration::from_secs(5);
/// A plan costs more, and is asked for by `r`.
const AGE_OF_A_PLAN: Duration = Duration::from_secs(600);
/// What of a run is kept to be looked at.
const KEPT_LINES: usize = 2000;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tab {
    Host,
    Gpus,
    Vms,
    Plan,
    Run,
}

impl Tab {
    const ALL: [(Tab, &'static str); 5] =
        [(Tab::Host, "host"), (Tab::Gpus, "GPUs"), (Tab::Vms, "VMs"), (Tab::Plan, "plan"), (Tab::Run, "run")];
}

/// What lies over the tab.
enum Over {
    /// A GPU is chosen for a VM.
    Choose { vm: String, attach: bool, names: Vec<String>, at: usize },
    /// A plan is shown, and asked about.
    Plan(Box<Prepared>, usize),
    /// Something was said, to be read.
    Said(String, Vec<String>),
}

/// A run that is shown.
#[derive(Default)]
struct Run {
    lines: Vec<String>,
    now: Option<String>,
    file: Option<(PathBuf, u64)>,
    told: Option<Receiver<Told>>,
}

struct App {
    target: Target,
    log: Vec<String>,
    tab: Tab,
    host: Watched<Seen>,
    gpus: Watched<Seen>,
    vms: Watched<Seen>,
    plan: Watched<Seen>,
    preparing: Watched<Prepared>,
    doing: Watched<Begun>,
    /// What is prepared or begun just now.
    busy: Option<String>,
    run: Run,
    over: Option<Over>,
    /// The console that has the keys and the screen.
    console: Option<Console>,
    /// The chosen GPU and VM, by their names: lists change.
    chosen: [Option<String>; 2],
    scroll: usize,
}

pub(super) fn run(args: &TuiArgs, log: &[String]) -> miette::Result<u8> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(miette!(
            help = "the same as text: gpuvm status, gpuvm gpu list, gpuvm vm list, gpuvm plan",
            "the screen needs a terminal"
        ));
    }
    let (probe, _) = host::open(args.root.as_deref())?;
    if let Some(file) = &args.file
        && let Err(other) = host::is_meant(&manifest::load(file)?, probe.as_ref())
    {
        say(&format!("{other}\n"));
        return Ok(code::REFUSED);
    }
    drop(probe);
    // Before the terminal is taken: from here on a signal is a way out like any other.
    let ended_by = Arc::new(AtomicUsize::new(0));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let number = usize::try_from(signal).unwrap_or_default();
        signal_hook::flag::register_usize(signal, ended_by.clone(), number).into_diagnostic()?;
    }
    let mut app = App {
        target: Target { file: args.file.clone(), root: args.root.clone() },
        log: log.to_vec(),
        tab: Tab::Vms,
        host: Watched::default(),
        gpus: Watched::default(),
        vms: Watched::default(),
        plan: Watched::default(),
        preparing: Watched::default(),
        doing: Watched::default(),
        busy: None,
        run: Run::default(),
        over: None,
        console: None,
        chosen: [None, None],
        scroll: 0,
    };
    app.take_up_a_run();
    let mut screen = screen::take().into_diagnostic()?;
    let ended = app.until_the_end(&mut screen, &ended_by);
    if let Some(console) = app.console.take() {
        console.close();
    }
    screen::give_back();
    // A rehearsal is carried out here: it comes to its end first.
    while app.busy.is_some() && app.target.root.is_some() && !app.doing.take_in() {
        std::thread::sleep(Duration::from_millis(TICK_MS.into()));
    }
    match (ended_by.load(Ordering::SeqCst), ended) {
        (0, ended) => ended.into_diagnostic().map(|()| code::OK),
        // As a shell tells it.
        (signal, _) => Ok(u8::try_from(128 + signal).unwrap_or(code::ERROR)),
    }
}

impl App {
    fn until_the_end(&mut self, screen: &mut screen::Screen, ended_by: &AtomicUsize) -> std::io::Result<()> {
        loop {
            self.look();
            screen.draw(|frame| match &mut self.console {
                Some(console) => console.draw(frame),
                None => draw::draw(self, frame),
            })?;
            crate::fail_point::panic_point();
            if ended_by.load(Ordering::SeqCst) != 0 {
                return Ok(());
            }
            // Looked at first: what reads keys from a terminal that is gone does not come back.
            let stdin = std::io::stdin();
            if let Some(console) = &mut self.console {
                if let Some(end) = console.pass(stdin.as_fd(), TICK_MS)? {
                    self.leave_console(end);
                }
                continue;
            }
            let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(TICK_MS));
            let seen = fds.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
            if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the terminal is gone"));
            }
            if seen.is_empty() {
                continue;
            }
            for key in keys::read(stdin.as_fd())? {
                if self.key(key) {
                    return Ok(());
                }
                // What was typed ahead was not meant for the guest.
                if self.console.is_some() {
                    break;
                }
            }
        }
    }

    /// Asks for what is shown and has become old, and takes in what came.
    fn look(&mut self) {
        let target = || self.target.clone();
        if self.host.is_older_than(AGE) && (self.tab == Tab::Host || self.host.known().is_none()) {
            let target = target();
            self.host.ask(move || look::host(&target));
        }
        // Who may be given to a VM is asked for beside the VMs.
        if self.gpus.is_older_than(AGE) && matches!(self.tab, Tab::Gpus | Tab::Vms) {
            let target = target();
            self.gpus.ask(move || look::gpus(&target));
        }
        if self.vms.is_older_than(AGE) && self.tab == Tab::Vms {
            let target = target();
            self.vms.ask(move || look::vms(&target));
        }
        if self.plan.is_older_than(AGE_OF_A_PLAN) && self.tab == Tab::Plan {
            let target = target();
            self.plan.ask(move || look::plan(&target));
        }
        for watched in [&mut self.host, &mut self.gpus, &mut self.vms, &mut self.plan] {
            watched.take_in();
        }
        if self.preparing.take_in() {
            let title = self.busy.take().unwrap_or_default();
            self.over = match self.preparing.take() {
                Some(Ok(prepared)) => Some(Over::Plan(Box::new(prepared), 0)),
                Some(Err(why)) => Some(Over::Said(title, look::lines(&why))),
                None => None,
            };
        }
        self.run.take_in();
        if self.doing.take_in() {
            let title = self.busy.take().unwrap_or_default();
            match self.doing.take() {
                Some(Ok(Begun::There(file))) => self.run.file = Some((file, 0)),
                Some(Ok(Begun::Over)) | None => {}
                Some(Err(why)) => self.over = Some(Over::Said(title, look::lines(&why))),
            }
            self.anew();
        }
    }

    /// What was seen is old: something was changed, or a person asks.
    fn anew(&mut self) {
        let target = || self.target.clone();
        let (a, b, c) = (target(), target(), target());
        self.host.ask(move || look::host(&a));
        self.gpus.ask(move || look::gpus(&b));
        self.vms.ask(move || look::vms(&c));
        if self.tab == Tab::Plan {
            let target = target();
            self.plan.ask(move || look::plan(&target));
        } else {
            self.plan = Watched::default();
        }
    }

    /// A run that is at work is followed from its beginning.
    fn take_up_a_run(&mut self) {
        let here = self.target.root.is_none();
        let Ok(dir) = host::state_of(self.target.root()) else { return };
        let Ok(state) = StateDir::open(dir) else { return };
        if let Standing::AtWork(run) = standing(&state, here) {
            self.run.file = Some((state.run_dir(run).join(super::run::EVENTS), 0));
            self.tab = Tab::Run;
        }
    }

    /// The list of this tab, and what of it is chosen.
    fn list(&self) -> Option<(&[Item], usize)> {
        let (seen, chosen) = match self.tab {
            Tab::Gpus => (self.gpus.known(), &self.chosen[0]),
            Tab::Vms => (self.vms.known(), &self.chosen[1]),
            _ => return None,
        };
        let items = seen.and_then(|s| s.as_ref().ok()).map(|s| s.items.as_slice()).unwrap_or_default();
        let at = chosen.as_ref().and_then(|name| items.iter().position(|i| i.name == *name)).unwrap_or(0);
        Some((items, at))
    }

    fn choose(&mut self, by: isize) {
        let Some((items, at)) = self.list() else { return };
        let at = at.saturating_add_signed(by).min(items.len().saturating_sub(1));
        let name = items.get(at).map(|i| i.name.clone());
        self.scroll = 0;
        match self.tab {
            Tab::Gpus => self.chosen[0] = name,
            _ => self.chosen[1] = name,
        }
    }

    /// Takes in a key; whether it was the last.
    fn key(&mut self, key: KeyCode) -> bool {
        if key == keys::QUIT {
            return true;
        }
        if let Some(over) = self.over.take() {
            self.over = self.answered(over, key);
            return false;
        }
        match key {
            KeyCode::Char('q') => return true,
            KeyCode::Char(c @ '1'..='5') => {
                let at = usize::try_from(u32::from(c) - u32::from('1')).unwrap_or_default();
                self.go_to(Tab::ALL.get(at).map_or(self.tab, |(tab, _)| *tab));
            }
            KeyCode::Tab | KeyCode::Right => self.next(1),
            KeyCode::BackTab | KeyCode::Left => self.next(Tab::ALL.len() - 1),
            KeyCode::Char('r') => self.anew(),
            KeyCode::Up | KeyCode::Char('k') if self.list().is_some() => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') if self.list().is_some() => self.choose(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll += 1,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll += 10,
            KeyCode::Home => self.scroll = 0,
            KeyCode::Char(c) if self.tab == Tab::Vms => self.of_a_vm(c),
            _ => {}
        }
        false
    }

    fn go_to(&mut self, tab: Tab) {
        self.tab = tab;
        self.scroll = 0;
    }

    fn next(&mut self, by: usize) {
        let at = Tab::ALL.iter().position(|(tab, _)| *tab == self.tab).unwrap_or_default();
        self.go_to(Tab::ALL.get((at + by) % Tab::ALL.len()).map_or(self.tab, |(tab, _)| *tab));
    }

    /// What can be done with the chosen VM.
    fn of_a_vm(&mut self, key: char) {
        let Some(name) = self.list().and_then(|(items, at)| items.get(at)).map(|i| i.name.clone()) else {
            return;
        };
        let domain = name.parse::<DomainName>();
        match (key, domain) {
            ('s', Ok(vm)) => self.prepare(Wish::Start(vm)),
            ('t', Ok(vm)) => self.prepare(Wish::Stop(vm)),
            ('c', Ok(vm)) => self.open_console(vm),
            ('a' | 'd', Ok(_)) => {
                let gpus = self.gpus.known().and_then(|s| s.as_ref().ok());
                let names: Vec<String> = gpus.iter().flat_map(|s| &s.items).map(|i| i.name.clone()).collect();
                self.over = Some(match names.is_empty() {
                    true => Over::Said("GPUs".to_owned(), vec!["none is known yet".to_owned()]),
                    false => Over::Choose { vm: name, attach: key == 'a', names, at: 0 },
                });
            }
            ('s' | 't' | 'c' | 'a' | 'd', Err(why)) => {
                self.over = Some(Over::Said(safe_line(&name), vec![safe_line(&why.to_string())]));
            }
            _ => {}
        }
    }

    fn prepare(&mut self, wish: Wish) {
        if self.busy.is_some() {
            return;
        }
        self.busy = Some("planning".to_owned());
        let target = self.target.clone();
        self.preparing.ask(move || act::prepare(&target, &wish));
    }

    /// What a key says to what lies over the tab; what lies there afterwards.
    fn answered(&mut self, over: Over, key: KeyCode) -> Option<Over> {
        match (over, key) {
            (Over::Choose { vm, attach, names, at }, KeyCode::Up | KeyCode::Char('k')) => {
                Some(Over::Choose { vm, attach, names, at: at.saturating_sub(1) })
            }
            (Over::Choose { vm, attach, names, at }, KeyCode::Down | KeyCode::Char('j')) => {
                let at = (at + 1).min(names.len().saturating_sub(1));
                Some(Over::Choose { vm, attach, names, at })
            }
            (Over::Choose { vm, attach, names, at }, KeyCode::Enter) => {
                if let (Ok(vm), Some(gpu)) = (vm.parse(), names.get(at)) {
                    let gpu = gpu.clone();
                    self.prepare(if attach { Wish::Attach(vm, gpu) } else { Wish::Detach(vm, gpu) });
                }
                None
            }
            // There is nothing to be asked: it is read, and gone.
            (Over::Plan(prepared, _), key)
                if prepared.order.is_none()
                    && !matches!(key, KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown) =>
            {
                None
            }
            (Over::Plan(prepared, from), KeyCode::PageDown | KeyCode::Down | KeyCode::Char('j' | ' ')) => {
                let most = prepared.lines.len().saturating_sub(1);
                Some(Over::Plan(prepared, (from + 5).min(most)))
            }
            (Over::Plan(prepared, from), KeyCode::PageUp | KeyCode::Up | KeyCode::Char('k')) => {
                Some(Over::Plan(prepared, from.saturating_sub(5)))
            }
            (Over::Plan(prepared, _), KeyCode::Char('y')) if prepared.order.is_some() => {
                self.carry_out(*prepared);
                None
            }
            (Over::Plan(..) | Over::Choose { .. }, KeyCode::Char('n' | 'q') | KeyCode::Esc) => None,
            (Over::Said(..), _) => None,
            // Any other key is no answer.
            (over, _) => Some(over),
        }
    }

    fn carry_out(&mut self, prepared: Prepared) {
        let Some(order) = prepared.order else { return };
        let (sent, told) = channel();
        let (target, log, last) = (self.target.clone(), self.log.clone(), prepared.last);
        self.run = Run { told: Some(told), ..Run::default() };
        self.run.lines.push(prepared.title.clone());
        self.busy = Some(prepared.title);
        self.doing.ask(move || act::carry_it_out(&target, order, last, &log, &sent));
        self.go_to(Tab::Run);
    }

    /// Keys and screen are the guest's until its console is left.
    fn open_console(&mut self, vm: DomainName) {
        let mut args: Vec<String> = ["-q", "vm", "console", vm.as_str()].map(str::to_owned).to_vec();
        if let Some(root) = &self.target.root {
            args.extend(["--root".to_owned(), root.display().to_string()]);
        }
        let title = console_of(&vm);
        match Console::open(vm, &args) {
            Ok(console) => self.console = Some(console),
            Err(e) => self.over = Some(Over::Said(title, look::lines(&e.to_string()))),
        }
    }

    fn leave_console(&mut self, end: End) {
        let Some(console) = self.console.take() else { return };
        let title = console_of(console.name());
        self.over = match end {
            End::Left => None,
            End::Over { failed: true, said } => Some(Over::Said(title, look::lines(&said))),
            End::Over { failed: false, .. } => {
                Some(Over::Said(title, vec!["it ended: the VM is off, or somebody else took it".to_owned()]))
            }
        };
        console.close();
        self.anew();
    }
}

fn console_of(vm: &DomainName) -> String {
    format!("console of {vm}")
}

impl Run {
    fn take_in(&mut self) {
        let told: Vec<Told> = self.told.iter().flat_map(Receiver::try_iter).collect();
        told.iter().for_each(|t| self.show(t));
        let Some((path, from)) = self.file.take() else { return };
        let mut at = from;
        if let Ok(mut file) = std::fs::File::open(&path)
            && file.seek(SeekFrom::Start(from)).is_ok()
        {
            let (mut lines, mut line) = (BufReader::new(file), String::new());
            // A line that is being written is read the next time.
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                at += line.len() as u64;
                if let Ok(told) = serde_json::from_str::<Told>(&line) {
                    self.show(&told);
                }
                line.clear();
            }
        }
        self.file = Some((path, at));
    }

    fn show(&mut self, told: &Told) {
        match told {
            Told::Begins { key } => self.now = Some(safe_line(key)),
            Told::Progress { line } => {
                let key = self.now.as_deref().unwrap_or_default().split("   ").next().unwrap_or_default().to_owned();
                self.now = Some(format!("{key}   {}", safe_line(line)));
            }
            Told::Note { line } => self.lines.push(format!("  {}", safe_line(line))),
            Told::Done { key, seconds } => {
                self.now = None;
                let time = if *seconds >= 2 { format!("   {seconds} s") } else { String::new() };
                self.lines.push(format!("  done  {}{time}", safe_line(key)));
            }
            Told::Rebooting => self.lines.push("── the host boots again ──".to_owned()),
            Told::Ended(ending) => {
                self.now = None;
                self.lines.extend(look::lines(&ending.text));
            }
        }
        let over = self.lines.len().saturating_sub(KEPT_LINES);
        self.lines.drain(..over);
    }
}
