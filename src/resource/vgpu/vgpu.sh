# Makes the vGPUs of a card of NVIDIA's.
#
#   vgpu NAME        makes them
#   vgpu NAME off    takes them away, and the card's virtual functions too where nothing else is on them
#
# A unit of systemd's runs it at each boot, before libvirt starts, and in an apply. It asks neither libvirt nor gpuvm:
# plain files, and sriov-manage, which NVIDIA's vGPU driver brings. What is as it should be stays untouched, so that it can
# be run once more at any time, and one that somebody has open is never taken.
# Its list says which card, which type, and on which functions; of mediated devices, the way of older kernels and cards, with
# the UUID of each.

known=/etc/gpuvm/vgpu
run=/run/gpuvm/vgpu
manage=/usr/lib/nvidia/sriov-manage
mediated=/sys/bus/mdev/devices

# Each of them is called by the virtual function that it is on; a mediated device by its function and its UUID, with `/`.

# The type of $1, as `value`: its number, or of a mediated device its name; 0 where there is none.
type_of() {
    value=0
    case "$1" in
        */*)
            [ -e "$mediated/${1#*/}" ] || return 0
            read -r value 2> /dev/null < "$mediated/${1#*/}/mdev_type/name"
            # On another function it is not the one that is meant.
            [ -e "$devices/$1" ] || value="${value:-one} elsewhere"
            [ "${value:-0}" != 0 ] || value=unknown
            ;;
        *)
            read -r value 2> /dev/null < "$devices/$1/nvidia/current_vgpu_type"
            case "$value" in '' | *[!0-9]*) value=0 ;; esac
            ;;
    esac
}

# What makes $1, as `id`, what its type reads as then, as `told`, and the names of all that can be made there, as `names`.
creatable() {
    id='' told='' names=''
    case "$1" in
        */*)
            for folder in "$devices/${1%/*}"/mdev_supported_types/*; do
                left='' text=''
                read -r left < "$folder/available_instances" && read -r text < "$folder/name"
                case "$left" in '' | 0) continue ;; esac
                names="$names${names:+, }$text"
                [ "$text" = "$type" ] && id=${folder##*/} && told=$text
            done 2> /dev/null
            ;;
        *)
            while read -r number colon text; do
                case "$number$colon" in '' | *[!0-9:]* | *[!:]) continue ;; esac
                names="$names${names:+, }$text"
                [ "$text" = "$type" ] && id=$number && told=$number
            done 2> /dev/null < "$devices/$1/nvidia/creatable_vgpu_types"
            ;;
    esac
}

make() {
    case "$1" in
        */*) put "${1#*/}" "$devices/${1%/*}/mdev_supported_types/$id/create" ;;
        *) put "$id" "$devices/$1/nvidia/current_vgpu_type" ;;
    esac
}

take() {
    case "$1" in
        */*) put 1 "$mediated/${1#*/}/remove" ;;
        *) put 0 "$devices/$1/nvidia/current_vgpu_type" ;;
    esac
}

# Taking a vGPU from under a VM would at best end it.
unused() {
    case "$1" in
        */*) user_of "$mediated/${1#*/}" ;;
        *) user_of "$devices/$1" ;;
    esac
    [ -z "$user" ] || fail "$1 is in use (pid $user), and its vGPU would go: shut that VM down first"
}

# Takes these, or none where somebody has one of them open.
clear_types() {
    for one in "$@"; do
        type_of "$one"
        [ "$value" = 0 ] || unused "$one"
    done
    for one in "$@"; do
        type_of "$one"
        [ "$value" = 0 ] || take "$one" || fail "the vGPU on $one did not go: $error"
    done
}

# Type and places of a list on stdin, as `listed` and `places`.
list() {
    listed='' places=''
    while read -r word one two three; do
        case "$word" in
            type) listed="$one${two:+ $two}${three:+ $three}" ;;
            function) places="$places $two" ;;
            mediated) places="$places $two/$three" ;;
        esac
    done
}

meant card "gpuvm gpu list"
list < "$known/$name"
type=$listed functions=$places
if [ -z "$type" ] || [ -z "$functions" ]; then
    fail "$known/$name does not say which vGPUs are meant"
fi

# What was made since the last boot.
list 2> /dev/null < "$run/$name"
before=$listed earlier=$places
if [ "${2-}" = off ]; then
    # shellcheck disable=SC2086 # addresses without blanks
    clear_types $functions $earlier
    rm -f "$run/$name" "$run/why/$name"
    [ -L "$at/virtfn0" ] || exit 0
    for link in "$at"/virtfn*; do
        target "$link"
        one=$value
        type_of "$one"
        [ "$value" = 0 ] || exit 0
        for other in "$devices/$one"/*-*-*-*-*; do
            [ ! -d "$other" ] || exit 0
        done
    done
    # Whoever talks to the card keeps its driver from letting go for a moment; then they stay on, which harms nobody.
    [ -x "$manage" ] && { "$manage" -d "$physical" || echo "the virtual functions of $name stay on"; }
    exit 0
fi

target "$at/driver"
driver=$value
[ "$driver" = nvidia ] || fail "$name ($physical) is on ${driver:-no driver}, and not on NVIDIA's driver, which makes vGPUs"
first=${functions# } first=${first%% *}
case "$first" in
    */*) offered=mdev_supported_types other=nvidia/current_vgpu_type ;;
    *) offered=nvidia/current_vgpu_type other=mdev_supported_types ;;
esac
first=${first%/*}
if [ "$first" != "$physical" ]; then
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
fi
[ -e "$devices/$first/$offered" ] || udevadm settle --timeout=60 --exit-if-exists="$devices/$first/$offered"
if [ ! -e "$devices/$first/$offered" ]; then
    [ ! -e "$devices/$first/$other" ] || fail "the driver of $name offers vGPUs by $other, and was to by $offered: \
gpuvm plan says what follows"
    fail "$first, a function of $name, has no vGPU types: see whether NVIDIA's vGPU driver for KVM hosts is installed and \
nvidia-vgpu-mgr runs, and dmesg"
fi

# Done before, and nothing has changed since: no list has what is made already.
same=yes
cmp -s "$known/$name" "$run/$name" || same=
while read -r word number address uuid; do
    case "$word" in
        function) wanted='' ;;
        mediated) wanted=$type ;;
        *) continue ;;
    esac
    if [ "$address" != "$physical" ]; then
        target "$at/virtfn$number"
        [ "$value" = "$address" ] || fail "virtual function $number of $name is $value, and was to be $address: \
gpuvm plan goes by where it is now"
    fi
    type_of "$address${uuid:+/$uuid}"
    [ "$value" != 0 ] && [ "$value" = "${wanted:-$value}" ] || same=
done < "$known/$name"
if [ -z "$same" ]; then
    # What is wanted no longer goes first: it may be what leaves no room. Without a list of this boot's, of which type one is
    # is not known, but of mediated devices.
    go=''
    for one in $earlier $functions; do
        type_of "$one"
        case " $functions " in
            *" $one "*)
                case "$one" in */*) ;; *) value=$before ;; esac
                [ "$value" != "$type" ] || continue
                ;;
        esac
        go="$go $one"
    done
    # shellcheck disable=SC2086 # addresses without blanks
    clear_types $go
    made=0
    for one in $functions; do
        type_of "$one"
        if [ "$value" = 0 ]; then
            creatable "$one"
            [ -n "$id" ] || fail "no vGPU of type $type can be made on ${one%/*} ($made of them are made). What can: \
${names:-nothing more}"
            make "$one" || fail "${one%/*} got no vGPU of type $type: ${error##*: } \
(dmesg and the log of nvidia-vgpu-mgr may say more)"
            type_of "$one"
            [ "$value" = "$told" ] || fail "$one has type $value, and was to have $told ($type)"
        fi
        made=$((made + 1))
    done
fi
finished
