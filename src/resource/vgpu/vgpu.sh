# Makes the vGPUs of a card of NVIDIA's.
#
#   vgpu NAME        makes them
#   vgpu NAME off    takes them away, and the card's virtual functions too where nothing else is on them
#
# A unit of systemd's runs it at each boot, before libvirt starts, and in an apply. It asks neither libvirt nor gpuvm:
# plain files, and sriov-manage, which NVIDIA's vGPU driver brings. What is as it should be stays untouched, so that it can
# be run once more at any time, and one that somebody has open is never taken.
# Its list says which card, which type, on which virtual functions.

known=/etc/gpuvm/vgpu
run=/run/gpuvm/vgpu
manage=/usr/lib/nvidia/sriov-manage

# The type on function $1, as `value`; 0 where there is none.
type_of() {
    value=0
    read -r value 2> /dev/null < "$devices/$1/nvidia/current_vgpu_type"
    case "$value" in '' | *[!0-9]*) value=0 ;; esac
}

# The number of the type on function $1, as `id`, and the names of all that can be made there, as `names`.
creatable() {
    id='' names=''
    while read -r number colon text; do
        case "$number$colon" in '' | *[!0-9:]* | *[!:]) continue ;; esac
        names="$names${names:+, }$text"
        [ "$text" = "$type" ] && id=$number
    done 2> /dev/null < "$devices/$1/nvidia/creatable_vgpu_types"
}

# Taking a vGPU from under a VM would at best end it.
unused() {
    user_of "$devices/$1"
    [ -z "$user" ] || fail "$1 is in use (pid $user), and its vGPU would go: shut that VM down first"
}

# Takes the vGPUs off these functions, or none where somebody has one of them open.
clear_types() {
    for one in "$@"; do
        type_of "$one"
        [ "$value" = 0 ] || unused "$one"
    done
    for one in "$@"; do
        type_of "$one"
        [ "$value" = 0 ] || put 0 "$devices/$one/nvidia/current_vgpu_type" || fail "the vGPU on $one did not go: $error"
    done
}

meant card "gpuvm gpu list"
type='' functions=''
while read -r word one two three; do
    case "$word" in
        type) type="$one${two:+ $two}${three:+ $three}" ;;
        function) functions="$functions $two" ;;
    esac
done < "$known/$name"
if [ -z "$type" ] || [ -z "$functions" ]; then
    fail "$known/$name does not say which vGPUs are meant"
fi

# What was made since the last boot.
before='' earlier=''
while read -r word one two three; do
    case "$word" in
        type) before="$one${two:+ $two}${three:+ $three}" ;;
        function) earlier="$earlier $two" ;;
    esac
done 2> /dev/null < "$run/$name"
if [ "${2-}" = off ]; then
    # shellcheck disable=SC2086 # addresses without blanks
    clear_types $functions $earlier
    rm -f "$run/$name" "$run/why/$name"
    for link in "$at"/virtfn*; do
        one=$(readlink "$link")
        type_of "${one##*/}"
        [ "$value" = 0 ] || exit 0
    done
    # Whoever talks to the card keeps its driver from letting go for a moment; then they stay on, which harms nobody.
    [ -x "$manage" ] && { "$manage" -d "$physical" || echo "the virtual functions of $name stay on"; }
    exit 0
fi

target "$at/driver"
driver=$value
[ "$driver" = nvidia ] || fail "$name ($physical) is on ${driver:-no driver}, and not on NVIDIA's driver, which makes vGPUs"
[ -x "$manage" ] || fail "$manage is not there: NVIDIA's vGPU driver for KVM hosts is not installed"
read -r is < "$at/sriov_numvfs" || fail "$name ($physical) cannot have virtual functions"
tries=5
while [ "$is" = 0 ]; do
    # The driver itself makes none by sriov_numvfs, and refuses while it still starts, which it does not tell otherwise.
    said=$("$manage" -e "$physical" 2>&1)
    read -r is < "$at/sriov_numvfs"
    tries=$((tries - 1))
    [ "$is" != 0 ] || [ "$tries" != 0 ] || fail "sriov-manage made no virtual functions of $name: ${said##*
}"
    [ "$is" != 0 ] || sleep 3
done
first=${functions# } first=${first%% *}
offered=$devices/$first/nvidia/current_vgpu_type
[ -e "$offered" ] || udevadm settle --timeout=60 --exit-if-exists="$offered"
if [ ! -e "$offered" ]; then
    [ ! -e "$devices/$first/mdev_supported_types" ] || fail "the driver of $name offers vGPUs as mediated devices, which \
gpuvm does not make: kernel 6.8 or later and vGPU 17 or later offer them otherwise"
    fail "$first, a virtual function of $name, has no vGPU types: see whether nvidia-vgpu-mgr runs, and dmesg"
fi

# Done before, and nothing has changed since: no list has what is made already.
same=yes
cmp -s "$known/$name" "$run/$name" || same=
while read -r word number address; do
    [ "$word" = function ] || continue
    value=$(readlink "$at/virtfn$number")
    [ "${value##*/}" = "$address" ] || fail "virtual function $number of $name is ${value##*/}, and was to be $address: \
gpuvm plan goes by where it is now"
    type_of "$address"
    [ "$value" != 0 ] || same=
done < "$known/$name"
if [ -z "$same" ]; then
    # What is wanted no longer goes first: it may be what leaves no room. Without a list of this boot's, of which type one is
    # is not known.
    go=''
    for one in $earlier $functions; do
        case " $functions " in *" $one "*) [ "$before" != "$type" ] || continue ;; esac
        go="$go $one"
    done
    # shellcheck disable=SC2086 # addresses without blanks
    clear_types $go
    made=0
    for one in $functions; do
        type_of "$one"
        if [ "$value" = 0 ]; then
            creatable "$one"
            [ -n "$id" ] || fail "no vGPU of type $type can be made on $one ($made of them are made). What can: \
${names:-nothing more}"
            put "$id" "$devices/$one/nvidia/current_vgpu_type" || fail "$one got no vGPU of type $type: ${error##*: } \
(dmesg and the log of nvidia-vgpu-mgr may say more)"
            type_of "$one"
            [ "$value" = "$id" ] || fail "$one has type $value, and was to have $id ($type)"
        fi
        made=$((made + 1))
    done
fi
finished
