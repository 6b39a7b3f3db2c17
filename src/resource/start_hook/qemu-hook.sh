#!/bin/sh
# Written by gpuvm: looks, each time libvirt starts a VM that gpuvm looks after, whether the devices that the VM gets are
# still the ones that were meant, and whether nothing else is in their IOMMU groups; else the VM does not start. It
# remembers which cards came back from a VM. Other VMs start in any case, and so does one without passed devices.
# It asks neither libvirt nor gpuvm: plain files alone. `gpuvm.off` on the kernel's command line switches it off.
# A card that host and VMs share it has handed over by a unit of systemd's, which nothing of libvirt's confines.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
devices=/sys/bus/pci/devices
mdevs=/sys/bus/mdev/devices
known=/etc/gpuvm/devices
shared=/etc/gpuvm/shared
state=/var/lib/gpuvm
run=/run/gpuvm
logs=/var/log/libvirt/qemu

vm=${1-}
case "${2-} ${3-}" in
    "prepare begin" | "started begin" | "release end") ;;
    *) exit 0 ;;
esac
cmdline=
read -r cmdline < /proc/cmdline
case " $cmdline " in *" gpuvm.off "* | *" gpuvm.off="*) exit 0 ;; esac
# The name becomes the name of a file.
case "$vm" in '' | .* | */*) file= ;; *) file=$vm ;; esac
umask 077

# The VM does not start. libvirt shows stderr to whoever asked for the start; the file is for gpuvm, and the log is the
# VM's own.
refuse() {
    printf '%s\n' "gpuvm refuses to start VM $vm: $1" >&2
    hand_back
    [ -n "$file" ] || exit 1
    now=$(date -u '+%Y-%m-%d %H:%M:%S' 2> /dev/null)
    mkdir -p "$run/refused" 2> /dev/null && printf '%s\n%s\n' "$now" "$1" > "$run/refused/$file" 2> /dev/null
    [ -d "$logs" ] && printf '%s.000+0000: gpuvm refuses to start it: %s\n' "$now" "$1" >> "$logs/$file.log" 2> /dev/null
    exit 1
}

# A line in the VM's own log.
note() {
    [ -n "$file" ] && [ -d "$logs" ] || return 0
    printf '%s.000+0000: gpuvm: %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S' 2> /dev/null)" "$1" >> "$logs/$file.log" 2> /dev/null
}

# The host has back what this VM had of the cards that they share. libvirt does not wait for it.
hand_back() {
    for claim in "$run"/shared/claim/*; do
        by=
        read -r by value 2> /dev/null < "$claim"
        [ "${by:-/}" = "$vm" ] || continue
        rm -f "$claim"
        systemctl start --no-block "gpuvm-give@${claim##*/}.service" < /dev/null > /dev/null 2>&1
    done
}

# The hand-over of the last card was no part of the time that the start may take with the first. Only what is this VM's
# still.
begin_anew() {
    now=
    read -r now < /proc/uptime && [ -n "$now" ] || return 0
    for claim in "$run"/shared/claim/*; do
        by=
        read -r by value 2> /dev/null < "$claim"
        [ "${by:-/}" = "$vm" ] || continue
        new=${claim%/*}/.${claim##*/}.hook
        printf '%s %s\n' "$vm" "${now%%.*}" > "$new" && mv -f "$new" "$claim"
    done
} 2> /dev/null

# The VM gets card $1, which host and VMs share. What is stopped for it has its time; the unit has a limit of its own.
hand_over() {
    case "$vm" in *[!A-Za-z0-9._-]*) refuse "its name cannot be part of a unit's name, so that it gets no shared GPU" ;; esac
    # What an earlier try failed of is not the reason of this one.
    rm -f "$run/shared/why/$1"
    timeout 600 systemctl start "gpuvm-take@$1:$vm.service" < /dev/null > /dev/null 2>&1 && return 0
    why=
    read -r why 2> /dev/null < "$run/shared/why/$1"
    refuse "${why:-$1 was not handed over: systemctl status gpuvm-take@$1:$vm.service}"
}

# The value of attribute $2 in element $1.
attribute() {
    value=
    case "$1" in *" $2='"*) value=${1#*" $2='"} value=${value%%"'"*} ;; esac
}

# Part $2 of the address in element $1, as a number that the shell can count with.
part() {
    attribute "$1" "$2"
    case "$value" in '' | *[!0-9a-fx]*) return 1 ;; esac
}

# Whatever its definition says by now: what it has is written down.
[ "$2" != release ] || hand_back

# What libvirt gives to a hook is the whole definition, one element a line.
marked='' passed='' mediated='' ours='' inside='' source='' address='' odd=''
while IFS= read -r line || [ -n "$line" ]; do
    line=${line#"${line%%[! ]*}"}
    case "$line" in
        *urn:gpuvm:vm:1*) marked=yes ;;
        "<hostdev "*" type='pci'"* | "<hostdev "*" type='mdev'"* | "<interface type='hostdev'"*)
            inside=yes address='' source=''
            attribute "$line" managed
            managed=$value
            ;;
        "<source>" | "<source "*) source=$inside ;;
        "<address "*)
            if [ -n "$source" ]; then
                address="$line"
                attribute "$line" uuid
                case "$value" in
                    '') ;;
                    *[!0-9a-f-]*) odd="$line" && continue ;;
                    *) mediated="$mediated $value" && continue ;;
                esac
                part "$line" domain && domain=$value && part "$line" bus && bus=$value &&
                    part "$line" slot && slot=$value && part "$line" function &&
                    passed="$passed $(printf '%04x:%02x:%02x.%x' "$domain" "$bus" "$slot" "$value")/$managed" ||
                    odd="$line"
            fi
            ;;
        "</source>") source= ;;
        "</hostdev>" | "</interface>")
            [ -z "$inside" ] || [ -n "$address" ] || odd="$line"
            inside=
            ;;
    esac
done
[ -n "$marked" ] || exit 0
[ -n "$passed$mediated$odd" ] || exit 0

# Sets what is known of function $1; fails where nothing is.
known_as() {
    while read -r at id subsystem path place name serial; do
        [ "$at" = "$1" ] && return 0
    done < "$known"
    return 1
}

# The first eight bytes of configuration space: all ones where nothing answers (PCI specification). Empty where they
# cannot be read.
# Vendor and device alone read as ones in every virtual function (PCI Express Base 4.0, 9.3.4.1.1); command and status
# behind them only where nobody answers.
answer() {
    od -An -tx1 -N8 "$devices/$1/config" 2> /dev/null | tr -d ' \n'
}

# Vendor and device of function $1, or of its subsystem.
ids() {
    vendor='' device=''
    read -r vendor < "$devices/$1/${2-}vendor" && read -r device < "$devices/$1/${2-}device"
    value=${vendor#0x}:${device#0x}
} 2> /dev/null

# Sets value to the serial number of function $1, as the kernel words it, by its configuration space: a list of
# capabilities from 256 on, of which 3 is the serial number (PCI Express Base, 7.9.3). Reading it wakes a card that sleeps.
# Empty where there is none, or it cannot be read.
of_device() {
    config=$devices/$1/config next=256 left=96 value=
    while [ "$next" -ge 256 ] && [ "$left" -gt 0 ]; do
        # shellcheck disable=SC2046 # a word is a byte
        set -- $(od -An -v -tx1 -j "$next" -N 12 "$config" 2> /dev/null)
        [ $# = 12 ] || return 0
        if [ "$2$1" = 0003 ]; then
            value=${12}-${11}-${10}-$9-$8-$7-$6-$5
            return 0
        fi
        next=$(((0x$4 << 4 | 0x$3 >> 4) & ~3)) left=$((left - 1))
    done
}

# The serial number that the manifest names the card by. One of the device's own is read of it, and where it cannot be, it
# may be another card. One that its driver alone tells cannot be had on vfio-pci: there ids and place decide, as in a plan.
same_serial() {
    value=
    case "$serial" in
        ??-??-??-??-??-??-??-??)
            of_device "$one"
            [ -n "$value" ] || read -r value 2> /dev/null < "$at/serial_number"
            [ -n "$value" ] || refuse "$one may be another card of the same model: its serial number was $serial ($name), \
and cannot be read. Name it by its place: match: { slot: \"$place\" } in host.yaml, and gpuvm apply"
            ;;
        *)
            for told in "$at/serial_number" "$at/unique_id" "$at"/nvme/*/serial; do
                read -r value 2> /dev/null < "$told"
                # The kernel's own, which newer ones have under the name of a driver's.
                case "$value" in ??-??-??-??-??-??-??-??) value= ;; esac
                [ -z "$value" ] || break
            done
            if [ -z "$value" ]; then
                note "the serial number of $name ($one) is told by its own driver alone: it is known by its ids and its place"
                return 0
            fi
            ;;
    esac
    [ "$(lower "$value")" = "$(lower "$serial")" ] || refuse "$one is another card of the same model: \
its serial number was $serial ($name), and is $value"
}

lower() {
    printf '%s' "$1" | tr '[:upper:]' '[:lower:]'
}

# What gpuvm remembers of cards that came back, or did not.
remember() {
    while read -r at id subsystem place name; do
        record=$state/seen/$id-$subsystem-$(printf '%s' "$place" | tr / _)
        cycles=0
        while read -r word value; do
            [ "$word" = cycles ] && cycles=$value
        done 2> /dev/null < "$record"
        case "$cycles" in '' | *[!0-9]*) cycles=0 ;; esac
        kernel=
        read -r kernel < /proc/sys/kernel/osrelease
        mkdir -p "$state/seen"
        {
            printf 'id %s\nsubsystem %s\nplace %s\nkernel %s\nvm %s\n' "$id" "$subsystem" "$place" "$kernel" "$vm"
            case "$(answer "$at")" in
                ffffffffffffffff) printf 'cycles 0\nlost yes\n' ;;
                '') printf 'cycles %s\n' "$cycles" ;;
                *) printf 'cycles %s\n' "$((cycles + 1))" ;;
            esac
        } > "$record.new" && mv -f "$record.new" "$record"
    done < "$run/with/$file"
    rm -f "$run/with/$file"
}

case "$2" in
    started)
        # Once a slot is enough: its first function is the card.
        [ -n "$file" ] && [ -r "$known" ] && mkdir -p "$run/with" || exit 0
        slots=
        for one in $passed; do
            one=${one%/*}
            case " $slots " in *" ${one%.*} "*) continue ;; esac
            known_as "$one" || continue
            slots="$slots ${one%.*}"
            printf '%s %s %s %s %s\n' "$one" "$id" "$subsystem" "$place" "$name"
        done > "$run/with/$file"
        exit 0
        ;;
    release)
        [ -n "$file" ] && [ -r "$run/with/$file" ] && remember
        exit 0
        ;;
esac

# A vGPU that is a mediated device: below the card that was meant, and not one that somebody made elsewhere by its UUID.
proven() {
    at=$(cd -P "$mdevs/$1" 2> /dev/null && pwd -P) || refuse "$name ($1) is not there: it has no vGPU. gpuvm plan says what is \
missing; systemctl status gpuvm-vgpu@${name%/*}.service says why it was not made"
    # shellcheck disable=SC2254 # a pattern with the bus numbers left open
    case "$at" in
        $path) ;;
        *) refuse "the addresses have changed: $name was at $place, and $1 is ${at#/sys/devices/} now. \
See where its card is now: gpuvm gpu list; gpuvm plan says what follows" ;;
    esac
    on=${at%/*} on=${on##*/}
    ids "$on"
    [ "$value" = "$id" ] || refuse "$on is another card: it was $id ($name), and is $value. \
See where $name is now: gpuvm gpu list; gpuvm plan says what follows"
}

handed=
[ -z "$odd" ] || refuse "a passed device in its definition cannot be understood: $odd"
[ -r "$known" ] || refuse "$known is not there, which says which devices were meant. \
gpuvm apply writes it; on a host that gpuvm has left, take /etc/libvirt/hooks/qemu.d/gpuvm away too"
for one in $mediated; do
    known_as "$one" || continue
    ours=yes
    proven "$one"
done
for one in $passed; do
    managed=${one#*/} one=${one%/*}
    # What the manifest does not name is its owner's own business.
    known_as "$one" || continue
    ours=yes
    at=$(cd -P "$devices/$one" 2> /dev/null && pwd -P) || refuse "$name ($one) is not there. \
See where it is now: gpuvm gpu list; gpuvm plan says what follows"
    ids "$one"
    [ "$value" = "$id" ] || refuse "$one is another device: it was $id ($name), and is $value. \
See where $name is now: gpuvm gpu list; gpuvm plan says what follows"
    if [ "$subsystem" != - ]; then
        ids "$one" subsystem_
        [ "$value" = "$subsystem" ] || refuse "$one is another card: its subsystem was $subsystem ($name), and is $value. \
See where $name is now: gpuvm gpu list; gpuvm plan says what follows"
    fi
    # shellcheck disable=SC2254 # a pattern with the bus numbers left open
    case "$at" in
        $path) ;;
        *) refuse "the addresses have changed: $name was at $place, and $one is ${at#/sys/devices/} now. \
See where $name is now: gpuvm gpu list; gpuvm plan says what follows" ;;
    esac
    [ -z "$serial" ] || [ "$serial" = - ] || same_serial
    [ "$(answer "$one")" != ffffffffffffffff ] || refuse "$name ($one) does not answer: it reads as ones. \
A boot of the host, with its power cut, brings most cards back"
    [ -d "$at/iommu_group/devices" ] || refuse "$name ($one) has no IOMMU group: the IOMMU is off. \
gpuvm gpu explain $name says why"
    for member in "$at"/iommu_group/devices/*; do
        member=${member##*/}
        class=
        read -r class 2> /dev/null < "$devices/$member/class"
        # Bridges stay, and are no part of what is given away.
        case "$class" in 0x0604* | 0x0600*) continue ;; esac
        known_as "$member" && continue
        ids "$member"
        known_as "$one"
        refuse "$member ($value) shares the IOMMU group of $name ($one), and is not for VMs. \
A group moves as a whole: gpuvm gpu explain $name"
    done
    known_as "$one"
    case " $handed " in *" $name "*) continue ;; esac
    while read -r word value id; do
        [ "$word $value" = "function $one" ] && handed="$handed $name"
    done 2> /dev/null < "$shared/$name"
done
# Only what passed all that is taken from the host.
for name in $handed; do hand_over "$name"; done
[ -z "$handed" ] || begin_anew
for one in $passed; do
    managed=${one#*/} one=${one%/*}
    [ "$managed" != yes ] || continue
    known_as "$one" || continue
    driver=$(cd -P "$devices/$one/driver" 2> /dev/null && pwd -P)
    driver=${driver##*/}
    # A vGPU stays with NVIDIA's driver, and is one as long as it has a type.
    value=
    [ "$driver" != nvidia ] || read -r value 2> /dev/null < "$devices/$one/nvidia/current_vgpu_type"
    case "$driver/$value" in
        *vfio*/* | nvidia/[1-9]*) ;;
        nvidia/0) refuse "$name ($one) has no vGPU. gpuvm plan says what is missing; \
systemctl status gpuvm-vgpu@${name%/*}.service says why it was not made" ;;
        *) refuse "$name ($one) is on ${driver:-no driver}, not on vfio-pci. \
gpuvm plan says what is missing; gpuvm gpu explain $name says who holds it" ;;
    esac
done
[ -z "$file" ] || [ -z "$ours" ] || rm -f "$run/refused/$file"
exit 0
