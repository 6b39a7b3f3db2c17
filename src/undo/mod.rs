//! The way back: what a run records before it changes anything, and the plan that leads to that state again.
//!
//! A *place* is what a step changes: a file, a package, a unit, a driver. A run records how each place was before its
//! first step touched it. Undo compares that with the host as it is now, refuses with the name what was changed since,
//! and compiles the rest to steps like any other plan.

mod compile;
mod edited;
mod look;
mod packages;

pub use compile::{Back, Recorded, plan};
pub use edited::Edited;
pub use look::{Looked, look};
