//! What is known about configuring links, as pure functions over texts.

pub mod netplan;
pub mod who_has;
pub(crate) mod yaml;
