#!/bin/sh
# Written by gpuvm: gives the devices that its udev rules name to vfio-pci. dracut loads drivers that are forced in
# before udev runs, so the rules alone come too late. `gpuvm.off` on the kernel's command line switches this off.

gpuvm_override() {
    getarg gpuvm.off > /dev/null && return 0
    gpuvm_slots=
    for gpuvm_rules in /etc/udev/rules.d/61-gpuvm-vfio-*.rules; do
        [ -r "$gpuvm_rules" ] || continue
        while read -r gpuvm_rule; do
            case "$gpuvm_rule" in
                ACTION==*'KERNEL=="'*'ATTR{driver_override}="vfio-pci"'*) ;;
                *) continue ;;
            esac
            gpuvm_device=${gpuvm_rule#*KERNEL==\"}
            gpuvm_device=${gpuvm_device%%\"*}
            [ -e "/sys/bus/pci/devices/$gpuvm_device/driver_override" ] || continue
            echo vfio-pci > "/sys/bus/pci/devices/$gpuvm_device/driver_override"
            gpuvm_slots="$gpuvm_slots $gpuvm_device"
        done < "$gpuvm_rules"
    done
    [ -n "$gpuvm_slots" ] || return 0
    modprobe -q vfio-pci
    for gpuvm_device in $gpuvm_slots; do
        # Where vfio-pci is part of the kernel, it was there before the override and looks again only when asked.
        [ -e "/sys/bus/pci/devices/$gpuvm_device/driver" ] || echo "$gpuvm_device" > /sys/bus/pci/drivers_probe
    done
}

gpuvm_override
unset gpuvm_slots gpuvm_rules gpuvm_rule gpuvm_device
