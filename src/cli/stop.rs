//! What a run does about signals: SIGINT and SIGTERM stop it after the step that is at work; a terminal that goes away
//! (SIGHUP) changes nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Set by signals, and looked at between two steps. Handlers are used, and no mask: programs that a step runs would
/// inherit a mask, and could not be ended by anyone.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop {
    asked: Arc<AtomicBool>,
    going_down: Arc<AtomicBool>,
}

impl Stop {
    /// From here on signals of this process do not end it.
    pub(super) fn watch() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_default(signal, stop.going_down.clone())?;
            flag::register(signal, stop.asked.clone())?;
        }
        flag::register(SIGHUP, Arc::default())?;
        Ok(stop)
    }

    /// Whether someone asked to stop.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// While the host goes down, systemd ends this process, and may.
    pub(super) fn host_goes_down(&self, goes: bool) {
        self.going_down.store(goes, Ordering::SeqCst);
    }
}
