#!/bin/sh
# Written by gpuvm: after an update of a kernel or an initramfs, looks whether the devices that are kept for VMs are
# still theirs at the next boot, records the answer, and warns. It never fails the update, and does nothing where
# /usr/local/bin/gpuvm is not there. `gpuvm.off` on the kernel's command line switches this off.

gpuvm=/usr/local/bin/gpuvm
[ -x "$gpuvm" ] || exit 0
read -r cmdline < /proc/cmdline || exit 0
case " $cmdline " in *" gpuvm.off "* | *" gpuvm.off="*) exit 0 ;; esac

said=$(timeout -k 5 60 "$gpuvm" --quiet check --next-boot --record 2>&1 < /dev/null)
[ -n "$said" ] || exit 0
printf '%s\n' "$said" >&2
command -v logger > /dev/null && printf '%s\n' "$said" | timeout 5 logger -t gpuvm -p daemon.warning
exit 0
