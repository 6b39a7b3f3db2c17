# Makes the MIG instances of a GPU again.
#
#   mig NAME
#
# A unit of systemd's runs it at each boot, which no instance outlives, before what starts containers. It asks nothing but
# `nvidia-smi`. It turns MIG mode on and makes what is missing; it never takes an instance away, so that it can be run once
# more at any time. What it cannot do it says, and the boot goes on.
# Its list says which card, and each instance: its profile, and where it starts (`-`: the driver finds a place).

known=/etc/gpuvm/mig
run=/run/gpuvm/mig

# What nvidia-smi answers, as `said`. It can hang where the driver does.
smi() {
    said=$(timeout -k 5 60 nvidia-smi "$@" 2>&1)
}

# The first line of what it said.
first() {
    printf '%s\n' "${said:-it said nothing}" | head -n 1
}

# Whether MIG mode of the card is on, as `mode`.
ask_mode() {
    smi -i "$physical" --query-gpu=mig.mode.current --format=csv,noheader || fail "nvidia-smi does not tell of $name: $(first)"
    mode=$(first)
}

meant card "gpuvm gpu list"
# Rows of tables have no names of files.
set -f
target "$at/driver"
driver=$value
[ "$driver" = nvidia ] || fail "$name ($physical) is on ${driver:-no driver}, not on nvidia, which makes MIG instances"

ask_mode
if [ "$mode" = Disabled ]; then
    smi -i "$physical" -mig 1 || fail "MIG mode of $name is not turned on: $(first)"
    turned=$(first)
    ask_mode
    [ "$mode" = Enabled ] || fail "MIG mode of $name waits for a reset of the card: $turned"
fi
[ "$mode" = Enabled ] || fail "$name ($physical) has no MIG: its mode is $mode"

# Each instance that is there, a line: its profile, and where it starts. Words are read, since widths of tables differ.
smi mig -i "$physical" -lgi
there=''
while read -r line; do
    # shellcheck disable=SC2046 # the words of a row
    set -- $(printf '%s\n' "$line" | tr '|' ' ')
    if [ "${2-}" = MIG ] && [ $# -ge 6 ]; then
        there="$there$3 ${6%%:*}
"
    fi
done << END
$said
END
case "$there$said" in
    *"No GPU instances found"*) there='' ;;
    "$said") fail "nvidia-smi does not tell which MIG instances $name has: $(first)" ;;
esac

# Takes the line that begins with $1 out of `there`; fails where there is none.
taken() {
    rest='' found=''
    while read -r line; do
        case "$found$line " in
            "$1 "*) found=yes ;;
            *) [ -z "$line" ] || rest="$rest$line
" ;;
        esac
    done << END
$there
END
    there=$rest
    [ -n "$found" ]
}

missing=''
while read -r word profile start; do
    [ "$word" = instance ] || continue
    if [ "$start" = - ]; then
        taken "$profile" || missing="$missing,$profile"
    else
        taken "$profile $start" || missing="$missing,$profile:$start"
    fi
done < "$known/$name"
if [ -n "$missing" ]; then
    smi mig -i "$physical" -cgi "${missing#,}" -C || fail "not all MIG instances of $name are made (${missing#,}): $(first). \
gpuvm plan says what is there"
fi
rm -f "$run/why/$name"
