//! The network interfaces of a guest, as its agent tells them. The `virt` crate reads them too, but ends the process at
//! one without a hardware address (a tunnel), which libvirt leaves out.

use std::ffi::{CStr, c_char};

use virt::domain::Domain;
use virt::sys;

/// One interface inside a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name there.
    pub name: String,
    /// Its hardware address, where it has one.
    pub hardware: Option<String>,
    /// Its addresses, without their prefixes.
    pub addresses: Vec<String>,
}

/// Asks the agent inside a guest. `None` where libvirt failed: `virt::error::Error::last_error()` says why. Call
/// [`crate::load`] first. Blocks until the agent answers, as long as libvirt waits for it.
pub fn agent_interfaces(domain: &Domain) -> Option<Vec<Interface>> {
    let mut list: *mut sys::virDomainInterfacePtr = std::ptr::null_mut();
    let source = sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT;
    // SAFETY: the domain is alive for the call, and `list` takes a list that is ours to free.
    let count = unsafe { sys::virDomainInterfaceAddresses(domain.as_ptr(), &mut list, source, 0) };
    let count = usize::try_from(count).ok()?;
    let mut all = Vec::with_capacity(count);
    for at in 0..count {
        // SAFETY: libvirt says that there are `count` pointers to interfaces, each with `naddrs` addresses, and they are
        // read before they are freed below. Each pointer is freed once.
        unsafe {
            let one = *list.add(at);
            let addresses = (0..(*one).naddrs as usize).filter_map(|n| text((*(*one).addrs.add(n)).addr)).collect();
            all.push(Interface {
                name: text((*one).name).unwrap_or_default(),
                hardware: text((*one).hwaddr),
                addresses,
            });
            sys::virDomainInterfaceFree(one);
        }
    }
    // SAFETY: the list itself was made by libvirt with the C library's allocator.
    unsafe { libc::free(list.cast()) };
    Some(all)
}

/// # Safety
///
/// `text` is null or a C string.
unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: as the caller says.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
