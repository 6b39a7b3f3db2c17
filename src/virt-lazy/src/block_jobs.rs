//! What QEMU does with the files of a running VM's disk. The `virt` crate has no calls for it.

use std::ffi::CString;

use virt::domain::Domain;
use virt::sys;

/// What of a disk is to be done.
#[derive(Debug, Clone, Copy)]
pub enum BlockJob<'a> {
    /// The file that the VM writes to goes into the one below it, by its path, and is kept in step with it from then on.
    Commit(&'a str),
    /// A commit that has caught up ends, and the VM writes to the file below from then on.
    Pivot,
    /// A commit is given up; the VM goes on as before it.
    GiveUp,
}

/// Asks libvirt for it; `disk` is the disk's name in the definition. `false` where libvirt refused or failed:
/// `virt::error::Error::last_error()` says why. Call [`crate::load`] first.
pub fn block_job(domain: &Domain, disk: &str, job: BlockJob<'_>) -> bool {
    let Ok(disk) = CString::new(disk) else { return false };
    let null = std::ptr::null();
    match job {
        BlockJob::Commit(base) => {
            let Ok(base) = CString::new(base) else { return false };
            let active = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE;
            // SAFETY: the domain is alive for the call, the texts end with a zero and outlive it, and no top means the file
            // that is written to (virDomainBlockCommit).
            unsafe { sys::virDomainBlockCommit(domain.as_ptr(), disk.as_ptr(), base.as_ptr(), null, 0, active) == 0 }
        }
        BlockJob::Pivot | BlockJob::GiveUp => {
            let flags = if matches!(job, BlockJob::Pivot) { sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT } else { 0 };
            // SAFETY: the domain is alive for the call, and the text ends with a zero and outlives it.
            unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) == 0 }
        }
    }
}
