#!/bin/sh
# Written by gpuvm: gives the devices that its udev rules name to vfio-pci. dracut loads drivers that are forced in
# before udev runs, so the rules alone come too late. `gpuvm.off` on the kernel's command line switches this off.

# Whether an attribute of the device is what the rule asks for, where it asks.
gpuvm_is() {
    case "$gpuvm_rule" in *"ATTR{$1}=="*) ;; *) return 0 ;; esac
    gpuvm_wanted=${gpuvm_rule#*ATTR\{"$1"\}==\"}
    read -r gpuvm_value < "$gpuvm_at/$1" && [ "$gpuvm_value" = "${gpuvm_wanted%%\"*}" ]
}

# Whether the device hangs where the rule says, where it says so.
gpuvm_is_there() {
    case "$gpuvm_rule" in *'DEVPATH=="'*) ;; *) return 0 ;; esac
    gpuvm_wanted=${gpuvm_rule#*DEVPATH==\"}
    gpuvm_wanted=${gpuvm_wanted%%\"*}
    gpuvm_value=$(cd -P "$gpuvm_at" && pwd) || return 1
    # shellcheck disable=SC2254 # a pattern of udev's, which a shell reads alike
    case "$gpuvm_value" in $gpuvm_wanted) return 0 ;; *) return 1 ;; esac
}

# Whether it has the address that the rule names, where it names one.
gpuvm_is_named() {
    case "$gpuvm_rule" in *'KERNEL=="'*) ;; *) return 0 ;; esac
    gpuvm_wanted=${gpuvm_rule#*KERNEL==\"}
    [ "${gpuvm_at##*/}" = "${gpuvm_wanted%%\"*}" ]
}

gpuvm_override() {
    getarg gpuvm.off > /dev/null && return 0
    gpuvm_slots=
    for gpuvm_rules in /etc/udev/rules.d/61-gpuvm-vfio-*.rules; do
        [ -r "$gpuvm_rules" ] || continue
        while read -r gpuvm_rule; do
            case "$gpuvm_rule" in
                ACTION==*'KERNEL=="'*'ATTR{driver_override}="vfio-pci"'*) ;;
                ACTION==*'DEVPATH=="'*'ATTR{driver_override}="vfio-pci"'*) ;;
                *) continue ;;
            esac
            for gpuvm_at in /sys/bus/pci/devices/*; do
                if ! [ -e "$gpuvm_at/driver_override" ] || ! gpuvm_is_named || ! gpuvm_is vendor || ! gpuvm_is device ||
                    ! gpuvm_is_there; then
                    continue
                fi
                echo vfio-pci > "$gpuvm_at/driver_override"
                gpuvm_slots="$gpuvm_slots ${gpuvm_at##*/}"
            done
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
unset gpuvm_slots gpuvm_rules gpuvm_rule gpuvm_device gpuvm_at gpuvm_wanted gpuvm_value
