//! What a guest is told at its first boot: cloud-init's NoCloud documents, those of Ubuntu's installer or the answer file of
//! Windows' Setup, and the CD-ROM image that they lie on. Pure: a kind wants a seed, a host makes it.

mod again;
mod autoinstall;
mod cloud_init;
pub mod iso;
mod keys;
mod told;
mod windows;

pub use again::{Again, again};
pub use autoinstall::{Autoinstall, DISK_SERIAL};
pub use cloud_init::{Guest, GuestFile, GuestNic, GuestUser, LABEL, MOST_KEYS};
pub use keys::{KeyError, KeySource, keys_in};
pub use told::Told;
pub use windows::{ANSWER_FILE, Account, Windows, computer_name, password_in};
