//! Secure boot, and whether the key that this host signs its own modules with is one that the firmware's shim trusts.

use std::path::Path;

use serde::Serialize;

use super::Known;
use crate::host::{Answer, Probe};

/// Whether the firmware checks what it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SecureBoot {
    /// On.
    On,
    /// Off, or started without UEFI.
    Off(&'static str),
    /// It could not be read: why.
    Unknown(&'static str),
}

/// The variable's GUID is UEFI's own (the global variables of the UEFI specification).
pub const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// shim's list of the owner's keys, as it tells the kernel of them (shim, MokVars.txt).
const ENROLLED: &str = "/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23";

/// Where DKMS and Ubuntu's shim-signed keep the certificate that modules built here are signed with, in DER (dkms(8),
/// `mok_certificate`; update-secureboot-policy(1)).
const CERTIFICATES: [&str; 2] = ["/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub"];

/// Reads it.
pub fn secure_boot(probe: &dyn Probe, uefi: bool) -> SecureBoot {
    if !uefi {
        return SecureBoot::Off("not started by UEFI");
    }
    match probe.read(Path::new(SECURE_BOOT)) {
        // Four bytes of attributes, then the value (Documentation/filesystems/efivarfs.rst).
        Ok(Answer::Value(bytes)) => match bytes.get(4) {
            Some(1) => SecureBoot::On,
            Some(_) => SecureBoot::Off("off in the firmware"),
            None => SecureBoot::Unknown("the variable is empty"),
        },
        // A firmware that tells its variables and has not this one has no secure boot (so does the kernel's own stub).
        Ok(Answer::Absent) if tells_variables(probe) => SecureBoot::Off("the firmware has none"),
        Ok(Answer::Absent) => SecureBoot::Unknown("there is no such variable"),
        Ok(Answer::Denied) => SecureBoot::Unknown("it may not be read (not root)"),
        Err(_) => SecureBoot::Unknown("it could not be read"),
    }
}

fn tells_variables(probe: &dyn Probe) -> bool {
    let all = probe.list(Path::new("/sys/firmware/efi/efivars")).ok().and_then(Answer::value);
    all.is_some_and(|names| !names.is_empty())
}

/// Whether modules that are built here will be loaded under secure boot: the path of the certificate and whether shim has
/// it; unknown with the reason, where no certificate is there yet too.
pub fn own_key_enrolled(probe: &dyn Probe) -> Known<(String, bool)> {
    let bytes = |path: &str| match probe.read(Path::new(path)) {
        Ok(Answer::Value(bytes)) => Ok(bytes),
        Ok(Answer::Absent) => Ok(Vec::new()),
        Ok(Answer::Denied) => Err(format!("{path} may not be read (not root)")),
        Err(e) => Err(e.to_string()),
    };
    // The list has each certificate whole, behind headers (UEFI specification, signature database).
    let list = match bytes(ENROLLED) {
        Ok(list) => list,
        Err(why) => return Known::Unknown(why),
    };
    let mut found = None;
    for path in CERTIFICATES {
        match bytes(path) {
            Err(why) => return Known::Unknown(why),
            Ok(certificate) if certificate.len() > 64 => {
                let enrolled = list.windows(certificate.len()).any(|w| w == certificate);
                if enrolled || found.is_none() {
                    found = Some((path.to_owned(), enrolled));
                }
                if enrolled {
                    break;
                }
            }
            Ok(_) => {}
        }
    }
    found.map_or_else(
        || Known::Unknown(format!("there is no key for it yet ({})", CERTIFICATES.join(", "))),
        Known::Value,
    )
}
