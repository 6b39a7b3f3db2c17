#!/bin/sh
# Written by gpuvm: after an update of an initramfs, looks at the next boot as after that of a kernel. While a kernel is
# installed, its own hook looks, at the end. `gpuvm.off` on the kernel's command line switches both off.
case "${DPKG_MAINTSCRIPT_PACKAGE:-}" in linux-*) exit 0 ;; esac
[ ! -x /etc/kernel/postinst.d/zzz-gpuvm ] || /etc/kernel/postinst.d/zzz-gpuvm || true
exit 0
