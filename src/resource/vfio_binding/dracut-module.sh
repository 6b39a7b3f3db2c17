#!/bin/bash
# Written by gpuvm: a dracut module that binds devices which are kept for VMs before any other driver is loaded.

check() {
    return 0
}

depends() {
    echo kernel-modules
}

installkernel() {
    # Whatever the host has loaded now: the card goes to vfio-pci at the next boot.
    hostonly='' instmods vfio vfio_iommu_type1 vfio_pci
}

# shellcheck disable=SC2154 # dracut sets moddir
install() {
    inst_multiple -o /etc/udev/rules.d/61-gpuvm-vfio-*.rules
    inst_multiple modprobe
    # dracut loads the drivers that are forced in after the hooks of this phase, which is another one with systemd.
    if dracut_module_included systemd; then
        inst_hook pre-udev 00 "$moddir/gpuvm-override.sh"
    else
        inst_hook cmdline 00 "$moddir/gpuvm-override.sh"
    fi
}
