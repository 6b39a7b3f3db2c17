#!/bin/sh
# Written by gpuvm: hands a GPU that the host and VMs share from one to the other, the whole slot or nothing.
#
#   shared-gpu take NAME:VM  what uses it on the host is stopped, and the slot goes to vfio-pci for that VM
#   shared-gpu give NAME     the slot goes back to its own drivers, and what was stopped is started again;
#                            `give NAME:VM` where that VM is known to have ended
#   shared-gpu boot          gives back what VMs had when the host went down
#
# libvirt's hook of gpuvm's has systemd start it, and waits for `take`. It asks neither libvirt nor gpuvm: plain files
# alone. Killed anywhere, it leaves the slot with one owner or none; the same word once more, or `give`, ends it.
# `gpuvm.off` on the kernel's command line switches off the units that it runs in.
#
#   /etc/gpuvm/shared/NAME        which functions, and what uses them on the host
#   /var/lib/gpuvm/shared/NAME    what was done and is owed back: there before the first change, and until the last
#   /run/gpuvm/shared/claim/NAME  the VM that has it, and since when; the hook takes it away when that VM has ended

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
devices=/sys/bus/pci/devices
drivers=/sys/bus/pci/drivers
probe=/sys/bus/pci/drivers_probe
known=/etc/gpuvm/shared
state=/var/lib/gpuvm/shared
run=/run/gpuvm/shared
qemu=/run/libvirt/qemu
proc=/proc
umask 077

# In seconds: a write to sysfs (probing a GPU's driver takes seconds), a question, a stop or start of a service, the
# hand-over before this one, from the hook to the VM's QEMU.
write_limit=30 ask_limit=20 stop_limit=100 lock_limit=180 start_limit=120

word=${1-}
name=${2-}
vm=''
case "$name" in *:*) vm=${name#*:} name=${name%%:*} ;; esac
why=''

fail() {
    printf '%s\n' "$1" >&2
    mkdir -p "$run/why" && printf '%s\n' "$1" > "$run/why/$name"
    exit 1
}

# Standard input becomes file $2 in folder $1: after a power cut it is there as it was or as it is, never in part.
whole() {
    mkdir -p "$1" && cat > "$1/.$2.new" && sync "$1/.$2.new" && mv -f "$1/.$2.new" "$1/$2" && sync "$1"
}

# The driver of function $1, as `driver`; empty where it has none.
driver_of() {
    driver=$(readlink "$devices/$1/driver")
    driver=${driver##*/}
}

# Whether function $1 is on vfio-pci or its like.
on_vfio() {
    driver_of "$1"
    case "$driver" in *vfio*) return 0 ;; *) return 1 ;; esac
}

# The card does not answer: the first four bytes of its configuration space are ones (PCI specification).
silent() {
    [ "$(od -An -tx1 -N4 "$devices/$1/config" 2> /dev/null | tr -d ' \n')" = ffffffff ]
}

# Writes $1 to attribute $2, for function $3. In the kernel that may sleep for ever, deaf to signals (a driver that does not let go): a
# process of its own does it, whose end is that of its lock, and is left behind after the limit.
put() {
    mkdir -p "$run/write"
    exec 9> "$run/write/$3"
    if ! flock -n 9; then
        exec 9>&-
        why="an earlier write for $3 has not come back from the kernel: only a boot of the host ends that"
        return 1
    fi
    (
        exec 8>&-
        printf '%s\n' "$1" > "$2"
    ) 2> /dev/null &
    exec 9>&-
    flock -w "$write_limit" "$run/write/$3" true && return 0
    why="writing \`$1\` to $2 has not come back from the kernel within $write_limit s: only a boot of the host ends that"
    return 1
}

# Loads module $1. The kernel may not come back from that either: as in `put`, it is left behind after the limit.
load() {
    mkdir -p "$run/write"
    exec 9> "$run/write/module-$1"
    if ! flock -n 9; then
        exec 9>&-
        return 1
    fi
    (
        exec 8>&-
        modprobe -q -- "$1"
    ) > /dev/null 2>&1 < /dev/null &
    exec 9>&-
    flock -w "$write_limit" "$run/write/module-$1" true
}

# Sets what the card is: its `functions`, their `ids`, and what `uses` it on the host.
card() {
    functions='' ids='' uses=''
    [ -r "$known/$name" ] || return 1
    while read -r what value more; do
        case "$what" in
            function) functions="$functions $value" ids="$ids $value=$more" ;;
            release) uses="$uses $value" ;;
        esac
    done < "$known/$name"
    [ -n "$functions" ]
}

# What is owed back, of this boot or of one before: `owed`, and the drivers that the functions had, `had`.
recall() {
    owed='' had=''
    [ -r "$state/$name" ] || return 0
    while read -r what value more; do
        case "$what" in
            owed) owed="$owed $value" ;;
            driver) had="$had $value=$more" ;;
        esac
    done < "$state/$name"
}

remember() {
    {
        printf 'vm %s\n' "$vm"
        for one in $had; do printf 'driver %s %s\n' "${one%%=*}" "${one#*=}"; done
        for one in $owed; do printf 'owed %s\n' "$one"; done
        [ -z "$why" ] || printf 'left %s\n' "$why"
    } | whole "$state" "$name"
}

# Whether $2 is one of the words of $1.
among() {
    case " $1 " in *" $2 "*) return 0 ;; *) return 1 ;; esac
}

# A unit's state, in systemd's word.
state_of() {
    timeout "$ask_limit" systemctl is-active -- "$1" 2> /dev/null < /dev/null 8>&-
}

# Whether a unit is off, and neither failed nor on its way.
off() {
    [ "$(state_of "$1")" = inactive ]
}

# Whether $1, a unit or `docker:NAME`, runs. 0 and 1; 2 where that cannot be told, 3 where it is on its way down.
runs() {
    case "$1" in
        docker:* | podman:*)
            engine=${1%%:*}
            command -v "$engine" > /dev/null || return 1
            told=$(timeout "$ask_limit" "$engine" ps --all --filter "name=^${1#*:}\$" --format '{{.Names}} {{.State}}' \
                2> /dev/null < /dev/null 8>&-) || {
                [ "$engine" = docker ] && off docker.service && off docker.socket && return 1
                return 2
            }
            case "
$told" in
                *"
${1#*:} running"* | *"
${1#*:} restarting"* | *"
${1#*:} paused"*) return 0 ;;
            esac
            return 1
            ;;
    esac
    case "$(state_of "$1")" in
        active | activating | reloading | refreshing) return 0 ;;
        inactive | failed | unknown | maintenance) return 1 ;;
        deactivating) return 3 ;;
    esac
    return 2
}

# Stops or starts ($1) a unit or a container ($2). What of it lives on does not hold the lock.
turn() {
    case "$2" in
        docker:* | podman:*) timeout -k 5 "$stop_limit" "${2%%:*}" "$1" "${2#*:}" > /dev/null < /dev/null 8>&- ;;
        *) timeout -k 5 "$stop_limit" systemctl "$1" -- "$2" > /dev/null < /dev/null 8>&- ;;
    esac
}

# The device nodes of function $1: the kernel names those of its classes below the device, and NVIDIA's driver numbers
# its own (`Device Minor`); where it does not tell the number, any of its nodes may be this card's. On vfio-pci, the
# group's.
nodes() {
    told=$(find "$devices/$1/" -name uevent -exec sed -n 's|^DEVNAME=|/dev/|p' {} +
        sed -n 's|^Device Minor:[^0-9]*\([0-9]*\).*|/dev/nvidia\1|p' "$proc/driver/nvidia/gpus/$1/information")
    driver_of "$1"
    case "$driver $told" in
        "nvidia "*/dev/nvidia*) ;;
        "nvidia "*) printf '%s\n' '/dev/nvidia[0-9]*' ;;
    esac
    printf '%s\n' "$told"
    group=$(readlink "$devices/$1/iommu_group") && printf '/dev/vfio/%s\n' "${group##*/}"
} 2> /dev/null

# Whether anyone has a node of these functions open; who, as `holders`.
held() {
    all=''
    for one in "$@"; do all="$all $(nodes "$one")"; done
    set --
    for one in $all; do set -- "$@" -o -lname "$one"; done
    [ $# -gt 0 ] || return 1
    shift
    holders='' seen=''
    # Processes end meanwhile, and the paths are numbers.
    # shellcheck disable=SC2044
    for at in $(find "$proc"/[0-9]*/fd -maxdepth 1 \( "$@" \) 2> /dev/null); do
        pid=${at#"$proc"/} pid=${pid%%/*}
        among "$seen" "$pid" && continue
        seen="$seen $pid" comm='?' group=''
        read -r comm < "$proc/$pid/comm"
        group=$(sed -n 's|^0::.*/||p' "$proc/$pid/cgroup")
        holders="$holders${holders:+, }$comm (pid $pid${group:+, $group})"
    done 2> /dev/null
    [ -n "$holders" ]
}

# Whether a VM has the card, as `claim`: its start is under way, its QEMU runs, or somebody has the group open. What is
# left of a start that was cut off counts no longer: after a while, or at once where `give` names the VM as ended.
claimed() {
    claim='' since='' pid='' now=''
    read -r claim since 2> /dev/null < "$run/claim/$name"
    [ -n "$claim" ] || return 1
    read -r pid 2> /dev/null < "$qemu/$claim.pid"
    [ -n "$pid" ] && [ -d "$proc/$pid" ] && return 0
    read -r now more < "$proc/uptime"
    [ "$word/$vm" = "give/$claim" ] || [ "$((${now%%.*} - ${since:-0}))" -ge "$start_limit" ] || return 0
    for one in $functions; do
        on_vfio "$one" && held "$one" && return 0
    done
    return 1
}

to_vfio() {
    on_vfio "$1" && return 0
    put vfio-pci "$devices/$1/driver_override" "$1" || return 1
    if [ -n "$driver" ]; then
        put "$1" "$devices/$1/driver/unbind" "$1" || return 1
        driver_of "$1"
        if [ -n "$driver" ]; then
            why="$1 did not leave its driver $driver; see dmesg"
            return 1
        fi
    fi
    put "$1" "$probe" "$1" || return 1
    on_vfio "$1" && return 0
    why="vfio-pci did not take $1, which is on ${driver:-no driver}; see dmesg"
    return 1
}

to_host() {
    [ -d "$devices/$1" ] || return 0
    was=''
    for one in $had; do [ "${one%%=*}" = "$1" ] && was=${one#*=}; done
    if on_vfio "$1"; then
        # Taken from whoever has it open, it would sleep in the kernel for ever.
        if held "$1"; then
            why="$1 stays on $driver: $holders has it open"
            return 1
        fi
        if silent "$1"; then
            why="$1 does not answer: it reads as ones, and stays on $driver. A boot of the host, with its power cut, \
brings most cards back"
            return 1
        fi
        put '' "$devices/$1/driver_override" "$1" && put "$1" "$devices/$1/driver/unbind" "$1" || return 1
    else
        put '' "$devices/$1/driver_override" "$1" || return 1
    fi
    if on_vfio "$1"; then
        why="$1 did not leave its driver $driver; see dmesg"
        return 1
    fi
    [ -z "$driver" ] || return 0
    case "$was" in '' | -) ;; *) [ -d "$drivers/$was" ] || load "$was" ;; esac
    put "$1" "$probe" "$1" || return 1
    if on_vfio "$1"; then
        why="$1 went to $driver instead of ${was:-its own driver}: something else binds it by its id. \
Take that out (grep -r vfio /etc/modprobe.d /proc/cmdline), and boot the host"
        return 1
    fi
    [ -z "$driver" ] || return 0
    case "$was" in '' | -) return 0 ;; esac
    why="$1 was on $was, which does not take it back; see dmesg"
    return 1
}

# Every function to the host, then what was stopped, the last first. What of it fails is left, with why. Where the card is
# not back, what was stopped is started too, as it may have other cards; and it is owed still, as it may end without this one.
back() {
    why='' reasons=''
    for one_of in $functions; do
        to_host "$one_of" || reasons="$reasons${reasons:+; }$why"
    done
    reversed='' still='' away=$reasons
    for one in $owed; do reversed="$one $reversed"; done
    for use in $reversed; do
        if turn start "$use"; then
            [ -z "$away" ] || still="$use $still"
            continue
        fi
        still="$use $still"
        reasons="$reasons${reasons:+; }$use did not start again"
    done
    owed=$still why=$reasons
    if [ -n "$why" ]; then
        remember
        return 1
    fi
    rm -f "$state/$name"
    sync "$state" 2> /dev/null
    return 0
}

# It goes no further: the host has all back, and the VM does not start.
turn_back() {
    reason=$1
    rm -f "$run/claim/$name"
    back || reason="$reason; and not all went back: $why"
    fail "$reason"
}

# From now on it is the VM's.
to_vm() {
    read -r now more < "$proc/uptime"
    printf '%s %s\n' "$vm" "${now%%.*}" | whole "$run/claim" "$name"
}

take() {
    case "$vm" in '' | *[!A-Za-z0-9._-]*) fail "the VM's name cannot be part of a unit's name" ;; esac
    if claimed && [ "$claim" != "$vm" ]; then
        fail "VM $claim has $name. To shut that down first: gpuvm vm start $vm --swap"
    fi
    for one in $functions; do
        vendor='' device=''
        read -r vendor 2> /dev/null < "$devices/$one/vendor"
        read -r device 2> /dev/null < "$devices/$one/device"
        among "$ids" "$one=${vendor#0x}:${device#0x}" ||
            fail "$one is not the device of $name any more: see gpuvm gpu list"
        [ ! -e "$run/write/$one" ] || flock -n "$run/write/$one" true ||
            fail "an earlier write for $one has not come back from the kernel: only a boot of the host ends that"
        silent "$one" && fail "$name ($one) does not answer: it reads as ones. \
A boot of the host, with its power cut, brings most cards back"
    done
    [ -d "$drivers/vfio-pci" ] || load vfio-pci
    [ -d "$drivers/vfio-pci" ] || fail "the kernel's vfio-pci is not there; see modprobe vfio-pci"
    recall
    going=''
    for use in $uses; do
        runs "$use"
        case $? in
            0)
                among "$owed" "$use" || owed="$owed $use"
                going="$going $use"
                ;;
            2)
                see="systemctl status $use"
                case "$use" in docker:*) see='systemctl status docker' ;; podman:*) see='podman ps --all' ;; esac
                fail "whether $use runs cannot be told, so that it cannot be stopped for $name: see $see"
                ;;
            3) going="$going $use" ;;
        esac
    done
    for one in $functions; do
        case " $had " in *" $one="*) continue ;; esac
        on_vfio "$one" || had="$had $one=${driver:--}"
    done
    remember || fail "$state/$name cannot be written"
    to_vm || fail "$run/claim/$name cannot be written"
    for use in $going; do
        turn stop "$use" || turn_back "$use does not stop"
    done
    # shellcheck disable=SC2086 # one word a function
    held $functions && turn_back "$name is used by what the manifest does not name under release: $holders"
    for one_of in $functions; do
        to_vfio "$one_of" || turn_back "$why"
    done
    # What it took to get here is not taken from the time of the VM's own start.
    to_vm || turn_back "$run/claim/$name cannot be written"
    printf '%s\n' "VM $vm has $name"
}

give() {
    if claimed; then
        printf '%s\n' "VM $claim has $name"
        exit 0
    fi
    vm=$claim
    rm -f "$run/claim/$name"
    recall
    for one in $functions; do
        on_vfio "$one" && held "$one" && fail "$name stays as it is: $holders has it"
    done
    back || fail "$why"
    printf '%s\n' "the host has $name"
}

case "$word/$name" in
    boot/) ;;
    take/[A-Za-z0-9]* | give/[A-Za-z0-9]*) ;;
    *)
        printf '%s\n' "usage: shared-gpu take NAME:VM, give NAME, boot" >&2
        exit 64
        ;;
esac
case "$name" in *[!A-Za-z0-9._-]*) exit 64 ;; esac
for program in cat find flock mv od readlink rm sed sync timeout tr; do
    command -v "$program" > /dev/null || fail "$program is not installed"
done
if [ "$word" = boot ]; then
    failed=0
    for file in "$state"/*; do
        [ -f "$file" ] || continue
        "$0" give "${file##*/}" || failed=1
    done
    exit "$failed"
fi
card || fail "$known/$name does not say what $name is. gpuvm apply writes it"
mkdir -p "$run/lock" "$run/why"
exec 8> "$run/lock/$name"
flock -w "$lock_limit" 8 || fail "the hand-over of $name before this one has not ended within $lock_limit s"
rm -f "$run/why/$name"
"$word"
