//! Block volumes, by the tools of LVM and ZFS. A volume is made with the word that it is only begun; the word goes when what
//! it begins as is on it. So a run that was killed in between knows what it left, and nothing else is ever written over.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::{images, libvirt, program};
use crate::host::{Answer, HostError, Probe, Program};
use crate::plan::{BlockStore, BlockVolumeStep};
use crate::resource::block_volume::{BEGUN, Found, OF_IMAGE, OF_VM, look};
use crate::resource::libvirt_domain::user_of;
use crate::types::DomainName;

/// A volume with much to wipe, on a disk that is slow.
const LIMIT: Duration = Duration::from_secs(600);
/// An image is written as a whole.
const COPY_LIMIT: Duration = Duration::from_secs(24 * 3600);
const SETTLE_S: u32 = 60;

fn refused(why: String) -> HostError {
    HostError::Refused(why)
}

/// What is there by this name, and the bytes that it is to have.
fn found(step: &BlockVolumeStep, host: &dyn Probe) -> Result<(Option<Found>, u64), HostError> {
    match look(&step.store, host)? {
        Answer::Value(Some(mut place)) => Ok((place.volumes.remove(&step.name), place.whole(step.size))),
        Answer::Denied => Err(refused(format!("only root may look into {}", step.store))),
        _ => Err(refused(format!("there is no {} any more; plan again", step.store))),
    }
}

/// As [`BlockVolumeStep`] says. `host` looks anew: it is no snapshot.
pub(super) fn make(step: &BlockVolumeStep, host: &dyn Probe, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let (there, bytes) = found(step, host)?;
    let device = step.store.device(&step.name);
    let of_vm = |found: &Found| found.vm.as_deref() == Some(step.vm.as_str());
    if step.grow {
        return match there {
            None => Err(refused(format!("there is no `{}` to grow; plan again", device.display()))),
            Some(found) if found.begun => Err(refused(format!("`{}` is only begun; plan again", device.display()))),
            Some(found) if found.size > bytes => {
                Err(refused(format!("`{}` has more than that: a disk is never shrunk; plan again", device.display())))
            }
            Some(found) => {
                if found.size < bytes {
                    perform(&grow_args(step, bytes), LIMIT, progress)?;
                }
                libvirt::device_grew(&device, bytes)
            }
        };
    }
    match there {
        // The word on whose it is comes with the volume itself: whatever lacks it is somebody's.
        Some(found) if !of_vm(&found) => {
            return Err(refused(format!(
                "`{}` is there, and gpuvm did not make it; it is left as it is",
                device.display()
            )));
        }
        Some(found) if !found.begun => return Ok(()),
        Some(_) => {}
        None => perform(&make_args(step, bytes), LIMIT, progress)?,
    }
    if let Some(pointer) = &step.image {
        write(step, pointer, &device, bytes, progress)?;
        perform(&done_args(step), LIMIT, progress)?;
    }
    Ok(())
}

/// Deletes a volume, as [`Step::RemoveBlockVolume`](crate::plan::Step) says. Whose it is and that nobody has it is looked at
/// once more: what is on it cannot come back.
pub(super) fn remove(
    (store, name): (&BlockStore, &str),
    vm: &DomainName,
    host: &dyn Probe,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    let device = store.device(name);
    let kept = |why: String| refused(format!("`{}` is not deleted: {why}", device.display()));
    let found = match look(store, host)? {
        Answer::Value(Some(mut place)) => place.volumes.remove(name),
        Answer::Denied => return Err(kept(format!("only root may look into {store}"))),
        _ => return Err(kept(format!("there is no {store} any more; plan again"))),
    };
    let Some(found) = found else { return Ok(()) };
    if let Some(why) = found.hinders(vm, false) {
        return Err(kept(why));
    }
    let known = libvirt::looked_anew()?;
    if let Some(user) = known.named_by(&device, |_| false) {
        return Err(kept(format!("{user} needs it")));
    }
    match user_of(&device, vm, &known, host) {
        Ok(None) => {}
        Ok(Some(user)) => return Err(kept(user)),
        Err(why) => return Err(kept(format!("who needs it is not known: {why}"))),
    }
    free(&device, false)?;
    perform(&store.removal(name), LIMIT, progress)?;
    // The node goes when udev has heard of it.
    let settle = format!("--timeout={SETTLE_S}");
    program::perform(Program::Udevadm, &["settle", &settle], Duration::from_secs(u64::from(SETTLE_S) + 10), progress)
}

fn perform(
    (program, args): &(Program, Vec<String>),
    limit: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    program::perform(*program, &args, limit, progress)
}

fn make_args(step: &BlockVolumeStep, bytes: u64) -> (Program, Vec<String>) {
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let begun = step.image.is_some();
    let of_lvm = |group: &str, size: [String; 2], thin: Option<&str>| {
        // What a former volume left where this one lies is no file system of the new one's.
        let mut args = words(&["--yes", "--wipesignatures", "y"]);
        if thin.is_none() {
            // A thin volume has nothing of others' in it, and LVM refuses the word there.
            args.extend(words(&["--zero", "y"]));
        }
        args.push("--addtag".to_owned());
        args.push(format!("{OF_VM}{}", step.vm));
        if let Some(image) = &step.image_name {
            args.extend(["--addtag".to_owned(), format!("{OF_IMAGE}{image}")]);
        }
        if begun {
            args.extend(words(&["--addtag", BEGUN]));
        }
        args.extend(size);
        args.extend(thin.iter().flat_map(|pool| words(&["--thinpool", pool])));
        args.extend(words(&["--name", &step.name, group]));
        (Program::Lvcreate, args)
    };
    match &step.store {
        BlockStore::Lvm { group } => of_lvm(group, ["--size".to_owned(), format!("{bytes}b")], None),
        BlockStore::LvmThin { group, pool } => {
            of_lvm(group, ["--virtualsize".to_owned(), format!("{bytes}b")], Some(pool))
        }
        BlockStore::Zfs { .. } => {
            let mut args = words(&["create", "-V", &bytes.to_string(), "-o"]);
            args.push(format!("gpuvm:vm={}", step.vm));
            if let Some(image) = &step.image_name {
                args.extend(["-o".to_owned(), format!("gpuvm:image={image}")]);
            }
            args.extend(words(&["-o", if begun { "gpuvm:state=begun" } else { "gpuvm:state=made" }]));
            args.push(step.store.volume(&step.name));
            (Program::Zfs, args)
        }
    }
}

fn grow_args(step: &BlockVolumeStep, bytes: u64) -> (Program, Vec<String>) {
    let volume = step.store.volume(&step.name);
    match step.store {
        // The file system in it is the guest's: LVM is not to touch it.
        BlockStore::Lvm { .. } | BlockStore::LvmThin { .. } => {
            (Program::Lvextend, vec!["--yes".to_owned(), "--size".to_owned(), format!("{bytes}b"), volume])
        }
        BlockStore::Zfs { .. } => (Program::Zfs, vec!["set".to_owned(), format!("volsize={bytes}"), volume]),
    }
}

fn done_args(step: &BlockVolumeStep) -> (Program, Vec<String>) {
    let volume = step.store.volume(&step.name);
    match step.store {
        BlockStore::Lvm { .. } | BlockStore::LvmThin { .. } => {
            (Program::Lvchange, vec!["--deltag".to_owned(), BEGUN.to_owned(), volume])
        }
        BlockStore::Zfs { .. } => (Program::Zfs, vec!["set".to_owned(), "gpuvm:state=made".to_owned(), volume]),
    }
}

/// Writes an image to a volume that is only begun.
fn write(
    step: &BlockVolumeStep,
    pointer: &Path,
    device: &Path,
    bytes: u64,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    let image = images::kept(pointer)?;
    if image.virtual_size > bytes {
        let (name, size) = (&step.name, step.size);
        return Err(refused(format!(
            "the image is larger than {size}, which disk `{name}` is to have: it would be cut off"
        )));
    }
    let settle = format!("--timeout={SETTLE_S}");
    let node = device.display().to_string();
    let waits = ["settle", &settle, &format!("--exit-if-exists={node}")];
    program::perform(Program::Udevadm, &waits, Duration::from_secs(u64::from(SETTLE_S) + 10), progress)?;
    free(device, true)?;
    let file = pointer.with_file_name(&image.file).display().to_string();
    progress(&format!("writes {} MiB to {node}", image.virtual_size >> 20));
    // Past the page cache: what is said to be written is written.
    let args = ["convert", "-q", "-n", "-t", "none", "-f", &image.kind, "-O", "raw", &file, &node];
    program::perform(Program::QemuImg, &args, COPY_LIMIT, progress)
}

/// A block device that nobody else has: with O_EXCL, the kernel refuses one that is mounted, swapped to or a part of
/// something (open(2)). To be opened for writing tells udev that it has another content, and to look into it.
fn free(device: &Path, write: bool) -> Result<(), HostError> {
    let open = OpenOptions::new().read(true).write(write).custom_flags(nix::libc::O_EXCL).open(device);
    let file = open.map_err(HostError::file(device))?;
    let kind = file.metadata().map_err(HostError::file(device))?.file_type();
    match kind.is_block_device() {
        true => Ok(()),
        false => Err(refused(format!("`{}` is no block device; nothing was written to it", device.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::block_volume::{LVS, VGS};
    use crate::types::ByteSize;

    fn step(store: BlockStore, image: bool) -> BlockVolumeStep {
        BlockVolumeStep {
            store,
            name: "desk-0".to_owned(),
            size: ByteSize::from_gib(1),
            vm: "desk".parse().unwrap(),
            grow: false,
            image: image.then(|| "/srv/gpuvm-images/debian-13.json".into()),
            image_name: image.then(|| "debian-13".parse().unwrap()),
        }
    }
    fn line((program, args): (Program, Vec<String>)) -> String {
        format!("{} {}", program.name(), args.join(" "))
    }

    #[test]
    fn whose_it_is_and_that_it_is_begun_comes_with_the_volume() {
        let group = || "vg0".to_owned();
        let thin = step(BlockStore::LvmThin { group: group(), pool: "vms".to_owned() }, true);
        assert_eq!(
            line(make_args(&thin, 1 << 30)),
            "lvcreate --yes --wipesignatures y --addtag gpuvm.vm:desk --addtag gpuvm.image:debian-13 \
             --addtag gpuvm.begun --virtualsize 1073741824b --thinpool vms --name desk-0 vg0"
        );
        assert_eq!(line(done_args(&thin)), "lvchange --deltag gpuvm.begun vg0/desk-0");
        let thick = step(BlockStore::Lvm { group: group() }, false);
        let args = line(make_args(&thick, 1 << 30));
        assert!(args.ends_with("--zero y --addtag gpuvm.vm:desk --size 1073741824b --name desk-0 vg0"), "{args}");
        assert_eq!(line(grow_args(&thick, 2 << 30)), "lvextend --yes --size 2147483648b vg0/desk-0");
        let zvol = step(BlockStore::Zfs { dataset: "tank/vms".to_owned() }, true);
        assert_eq!(
            line(make_args(&zvol, 1 << 30)),
            "zfs create -V 1073741824 -o gpuvm:vm=desk -o gpuvm:image=debian-13 -o gpuvm:state=begun tank/vms/desk-0"
        );
        assert_eq!(line(done_args(&zvol)), "zfs set gpuvm:state=made tank/vms/desk-0");
        assert_eq!(line(grow_args(&zvol, 2 << 30)), "zfs set volsize=2147483648 tank/vms/desk-0");
        assert_eq!(line(thin.store.removal("desk-0")), "lvremove --yes vg0/desk-0");
        assert_eq!(line(zvol.store.removal("desk-0")), "zfs destroy tank/vms/desk-0");
    }

    /// LVM reads its command line before it looks for the group, which is nowhere.
    #[test]
    fn lvm_itself_takes_the_words() {
        let group = || "gpuvm-nowhere".to_owned();
        for store in
            [BlockStore::Lvm { group: group() }, BlockStore::LvmThin { group: group(), pool: "vms".to_owned() }]
        {
            let step = step(store, true);
            for (program, args) in
                [make_args(&step, 1 << 30), done_args(&step), grow_args(&step, 1 << 30), step.store.removal("desk-0")]
            {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                crate::validators::lvm(program.name(), &args);
            }
        }
        for (program, args) in [("lvs", &LVS[..]), ("vgs", &VGS[..])] {
            crate::validators::lvm(program, args);
        }
    }

    #[test]
    fn nothing_is_written_to_what_is_no_block_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(free(file.path(), true).unwrap_err().to_string().contains("no block device"));
    }
}
