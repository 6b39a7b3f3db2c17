//! One test binary: the program run as a person runs it, on copies of recorded hosts.
#![allow(clippy::disallowed_methods)] // tests start the program itself
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod adopt;
mod blocks;
mod bridge;
mod cases;
mod composed;
mod crash;
mod disks;
mod drivers;
mod edits;
mod faults;
mod foreign;
mod fuzz;
mod given_back;
mod guests;
mod hardware;
mod host;
mod hostile;
mod hosts;
mod init;
mod iommu;
mod ip;
mod layers;
mod machine;
mod manifest;
mod mig;
mod moves;
mod namespaces;
mod network_guard;
mod packages;
mod policy;
mod program;
mod readme;
mod shared;
mod snapshots;
mod talk;
mod terminal;
mod tui;
mod undo;
mod verbs;
mod vgpu;
mod virsh;
mod virtual_functions;
mod vm_looks;
mod vms;
