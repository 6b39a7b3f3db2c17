#!/bin/sh
# Written by gpuvm. Puts the network back as it was unless what answered before a change answers again.
# It needs nothing of gpuvm's: the files beside it say everything, and it goes on after a restart of the host.
#
#   wanted    what may have answered before, one a line      proofs   those that did; measured here
#   from, to  the link that has the network before, after    patience how many seconds to wait for them
#   restore   "number path": old/number is the file          absent   files that were not there
#   links     links that the change makes                    boot     the boot that it was made in
#   ready     measured, the change may begin                 switched the new files are all there
#   applied   they are live                                  give-up  why it has to go back at once
#   undoing   it goes back, and why                          verdict  kept, or reverted: why
#   units     the files of this unit, which go away at the end
#   addresses, routes  what the link had before; put there by hand where nothing else brings it back
set -u
dir=${1:?the folder of the guard}
cd "$dir" || exit 1

# A file as a whole: after a power cut it is there or not, never in part.
say() {
    printf '%s\n' "$2" >"$1.new"
    sync "$1.new" 2>/dev/null || sync
    mv -f "$1.new" "$1"
    sync . 2>/dev/null || sync
}

uptime_s() {
    read -r up rest </proc/uptime
    echo "${up%%.*}"
}

# Whether a neighbour answers: by ping, or at least by ARP and neighbour discovery, which the ping has asked for.
reach() {
    case $1 in
    fe80:*) ping -6 -n -c 1 -W 1 "$1%$2" </dev/null >/dev/null 2>&1 && return 0 ;;
    *:*) ping -6 -n -c 1 -W 1 "$1" </dev/null >/dev/null 2>&1 && return 0 ;;
    *) ping -4 -n -c 1 -W 1 "$1" </dev/null >/dev/null 2>&1 && return 0 ;;
    esac
    case $(ip neighbour show to "$1" dev "$2" 2>/dev/null) in
    *REACHABLE*) return 0 ;;
    esac
    return 1
}

# Whether a name server answers anything at all. netplan is written in Python, so that it is there.
answers() {
    python3 - "$1" 2>/dev/null <<'END'
import socket, sys
to = sys.argv[1]
s = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.connect((to, 53))
s.send(b"gp\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1")
sys.exit(s.recv(4096)[:2] != b"gp")
END
}

# Whether one proof holds, looked for on a link.
holds() {
    case $2 in
    link)
        case $(ip -o link show dev "$1" up 2>/dev/null) in
        *LOWER_UP*) return 0 ;;
        *) return 1 ;;
        esac
        ;;
    address)
        case $(ip -o address show dev "$1" to "$3" 2>/dev/null) in
        '' | *tentative* | *dadfailed*) return 1 ;;
        *) return 0 ;;
        esac
        ;;
    route) [ -n "$(ip "-$3" route show default dev "$1" 2>/dev/null)" ] ;;
    gateway | peer) reach "$3" "$1" ;;
    name-server) answers "$3" ;;
    *) return 1 ;;
    esac
}

measure() {
    echo link
    while read -r kind value; do
        [ "$kind" = link ] && continue
        if holds "$from" "$kind" "$value" || holds "$from" "$kind" "$value"; then
            echo "$kind $value"
        fi
    done <wanted
}

# What the link has, to be put there by hand at the worst. The kernel's own routes come with the addresses.
remember() {
    ip -o address show dev "$from" scope global | while read -r _ _ kind address _; do
        echo "$kind $address"
    done >addresses
    for family in 4 6; do
        ip "-$family" route show dev "$from" | while read -r route; do
            case $route in *'proto kernel'*) ;; *) echo "$family $route" ;; esac
        done
    done >routes
}

# The old files are live, and yet an address may not come back: a DHCP server that is gone, or that has given it away.
# The host stays where it was, until its configuration brings the address itself.
rescue() {
    wait=$(cat patience)
    [ "$wait" -le 20 ] || wait=20
    end=$(($(uptime_s) + wait))
    while :; do
        missing=
        while read -r kind value; do
            [ "$kind" != address ] || holds "$from" address "$value" || missing=$value
        done <proofs
        [ -n "$missing" ] || return
        [ "$(uptime_s)" -lt "$end" ] || break
        sleep 1
    done
    echo "gpuvm: $missing did not come back by itself: put on $from as it was"
    ip link set dev "$from" up
    while read -r kind address; do
        ip address add "$address" dev "$from" 2>/dev/null
    done <addresses
    while read -r family route; do
        # shellcheck disable=SC2086 # a route is several words
        ip "-$family" route replace $route dev "$from" 2>/dev/null
    done <routes
}

# The first proof that does not hold.
failing() {
    while read -r kind value; do
        holds "$to" "$kind" "$value" && continue
        echo "$kind $value"
        return
    done <proofs
}

# The unit goes away only after the verdict is written: without a verdict it has to run again.
finish() {
    printf '%s\n' "$units" | while read -r path; do
        rm -f "$path"
    done
    exit 0
}

undo() {
    say undoing "$1"
    echo "gpuvm: the network goes back: $1"
    while read -r number path; do
        cp -p "old/$number" "$path.gpuvm-back" && mv -f "$path.gpuvm-back" "$path"
    done <restore
    while read -r path; do
        rm -f "$path"
    done <absent
    sync
    netplan generate
    while read -r link; do
        ip link delete dev "$link" 2>/dev/null
    done <links
    netplan apply
    [ ! -e proofs ] || [ ! -e addresses ] || rescue
    say verdict "reverted: $1"
    finish
}

from=$(cat from)
to=$(cat to)
units=$(cat units)
[ -e verdict ] && finish
[ -e undoing ] && undo "$(cat undoing)"

settled=
if [ "$(cat /proc/sys/kernel/random/boot_id)" != "$(cat boot)" ]; then
    settled=yes
    [ -e switched ] || undo "the host was restarted before the change was complete"
else
    if [ ! -e proofs ]; then
        remember
        measure >proofs.new
        mv -f proofs.new proofs
    fi
    say ready "$(cat proofs)"
    end=$(($(uptime_s) + 120))
    until [ -e switched ]; do
        [ -e give-up ] && undo "$(cat give-up)"
        [ "$(uptime_s)" -ge "$end" ] && undo "gpuvm ended before the change was complete"
        sleep 1
    done
fi

end=$(($(uptime_s) + $(cat patience)))
good=0
while :; do
    [ -e give-up ] && undo "$(cat give-up)"
    [ -e applied ] && settled=yes
    why=$(failing)
    late=
    [ "$(uptime_s)" -ge "$end" ] && late=yes
    if [ -n "$why" ]; then
        good=0
        [ -n "$late" ] && undo "${why% } did not answer"
    elif [ -n "$settled$late" ]; then
        # What answers before the new files are live says nothing; and a link that comes and goes answers once.
        good=$((good + 1))
        if [ "$good" -ge 2 ]; then
            say verdict kept
            finish
        fi
    fi
    sleep 1
done
