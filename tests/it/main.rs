//! One test binary: the program run as a person runs it, on copies of recorded hosts.
#![allow(clippy::disallowed_methods)] // tests start the program itself

mod cases;
mod layers;
mod machine;
mod readme;
