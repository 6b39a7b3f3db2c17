//! The terminal: taken over as a whole, and given back on every way out.

use std::io::{self, Stdout, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Whether the terminal is ours now.
static TAKEN: AtomicBool = AtomicBool::new(false);

pub(super) type Screen = Terminal<CrosstermBackend<Stdout>>;

/// Takes the terminal. From here on a panic gives it back first: a release build ends without destructors.
pub(super) fn take() -> io::Result<Screen> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
            // Also of a thread that only looks: what it held is not to be gone on with.
            std::process::exit(101);
        }));
    });
    TAKEN.store(true, Ordering::SeqCst);
    let screen = enable_raw_mode()
        .and_then(|()| execute!(stdout(), EnterAlternateScreen, Hide))
        .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
    if screen.is_err() {
        give_back();
    }
    screen
}

/// Gives the terminal back as it was; a second time does nothing.
pub(super) fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // One that is gone needs nothing.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}
