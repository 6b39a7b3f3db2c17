#!/bin/sh
# Written by gpuvm. The first part is the same in each script that makes something of a card at each boot: which card is
# meant, and whether it is there. What it makes, and how, is below.
#
#   $known/$name    what is wanted, with a line that says of which card: its address, its ids, its path in sysfs
#   $run/why/$name  why not
#
# `gpuvm.off` on the kernel's command line switches off the unit that it runs in.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
devices=/sys/bus/pci/devices
umask 077
name=${1-}

fail() {
    printf '%s\n' "$1" >&2
    mkdir -p "$run/why" && printf '%s\n' "$1" > "$run/why/$name"
    exit 1
}

# The last part of where link $1 leads, as `value`; empty where there is none.
target() {
    value=$(readlink "$1")
    value=${value##*/}
}

# The card ($1: what it is called) that the list means, as `physical` and `at`. It has to be there, and no other in its
# place; command $2 tells where it is.
meant() {
    physical='' id='' path=''
    while read -r word one two three; do
        case "$word" in card | physical) physical=$one id=$two path=$three ;; esac
    done 2> /dev/null < "$known/$name"
    if [ -z "$physical" ] || [ -z "$path" ]; then
        fail "$known/$name does not say which $1 is meant"
    fi
    at=$devices/$physical
    [ -e "$at/driver" ] || udevadm settle --timeout=60 --exit-if-exists="$at/driver"
    real=$(cd -P "$at" 2> /dev/null && pwd -P) || fail "$name ($physical) is not there. \
See where it is now: $2; gpuvm plan says what follows"
    vendor='' device=''
    read -r vendor < "$at/vendor" && read -r device < "$at/device"
    [ "${vendor#0x}:${device#0x}" = "$id" ] || fail "$physical is another $1: it was $id ($name), and is \
${vendor#0x}:${device#0x}. gpuvm plan says what follows"
    # shellcheck disable=SC2254 # a pattern with the bus numbers left open
    case "$real" in
        $path) ;;
        *) fail "the addresses have changed: $physical is another $1 than $name now. gpuvm plan says what follows" ;;
    esac
}

