//! What is known about configuring links, as pure functions over texts.

pub mod netplan;
pub(crate) mod yaml;
