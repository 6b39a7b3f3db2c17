//! gpuvm brings one GPU virtualisation host to the state that a manifest describes.
//!
//! The pipeline, which is also the order of the modules:
//!
//! ```text
//! host.yaml ──manifest::load──► Loaded ───┐
//!                                         ├─desire──► Desired { resources, edges, findings }   pure
//! host ──facts::collect──► HostFacts ─────┘
//! Desired + ledger ──one Snapshot of a Probe──► plan::Plan                        data, can be saved
//! Plan ──apply: stale check, then step by step: journal → execute ──► next round ──► ledger
//! ```
//!
//! Beside it, what only looks at GPUs: `gpu` reads who uses a card and what is around it, `check` judges from that
//! whether it can be passed through (`Explanation`: links with evidence and fixes), `report` draws both.
//!
//! *Facts* are read and never changed; *state* is what gpuvm manages, and each resource kind looks at its own.
//! A plan is data: a list of steps from a closed enum, which one interpreter executes. Verifying is planning again.
//!
//! Beside the pipeline stands *describe*: a host as it is, in a manifest's words (`gpuvm init`, `gpuvm adopt`). What is
//! adopted goes through a plan like everything else, one whose steps change a mark and the ledger alone.
//!
//! *Undo* and *verbs* (`gpuvm vm start`) are other sources of plans, for the same interpreter, journal and record.
//!
//! What verbs and kinds need to know of their subject is beside them: `image` (names, lists, what is cached), `guest` (what a
//! seed says to cloud-init), `vm` (addresses, what keeps one from starting, QEMU's log), `net` (netplan, questions on a link).
//!
//! Dependencies point one way: `cli → stages → resource → plan types → host::Probe`. A kind never reads the manifest,
//! nothing but `apply` changes a host, and nothing but `cli` opens the live one.

pub mod types;
#[cfg(test)]
mod validators;

pub mod fail_point;

pub mod manifest;

pub mod facts;

pub mod net;

pub mod image;

pub mod guest;

pub mod gpu;

pub mod check;

pub mod desire;

pub mod resource;

pub mod plan;

pub mod describe;
pub mod undo;
pub mod verb;

pub mod vm;

pub mod apply;

pub mod report;

pub mod host;

pub mod cli;
