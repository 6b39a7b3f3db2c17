# Makes the virtual functions of a device (SR-IOV).
#
#   virtual-functions NAME
#
# A unit of systemd's runs it at each boot, before the network and libvirt start, and in an apply. It asks neither libvirt
# nor gpuvm: plain files alone, and ip(8) for Ethernet addresses. What is as it should be stays untouched, so that it can
# be run once more at any time. Another number of functions goes through none of them: only while nobody has one open.
# Its list says which device, how many, whose, where, with which Ethernet addresses.

probe=/sys/bus/pci/drivers_probe
vfio=/sys/bus/pci/drivers/vfio-pci
known=/etc/gpuvm/virtual-functions
run=/run/gpuvm/virtual-functions

# Taking a function away under a VM would sleep in the kernel until that VM has ended.
unused() {
    user_of "$devices/$1"
    [ -z "$user" ] || fail "$1 is in use (pid $user), and would go: shut that VM down first"
}

# Takes function $1 off its driver; one on vfio-pci only while nobody has it.
unbind() {
    target "$devices/$1/driver"
    case "$value" in '') return 0 ;; *vfio*) unused "$1" ;; esac
    put "$1" "$devices/$1/driver/unbind" || fail "$1 did not leave its driver $value: $error"
}

meant device "gpuvm facts"
count='' owner=''
while read -r word one _; do
    case "$word" in
        count) count=$one ;;
        for) owner=$one ;;
    esac
done < "$known/$name"
if [ -z "$count" ] || [ -z "$owner" ]; then
    fail "$known/$name does not say how many are wanted, and whose"
fi
target "$at/driver"
driver=$value
[ -n "$driver" ] || fail "$name ($physical) has no driver, which would make its virtual functions"

is=''
read -r is 2> /dev/null < "$at/sriov_numvfs" || fail "$name ($physical) cannot have virtual functions"
if [ "$is" != "$count" ]; then
    if [ "$is" != 0 ]; then
        for link in "$at"/virtfn*; do
            target "$link"
            unused "$value"
        done
        put 0 "$at/sriov_numvfs" || fail "the $is virtual functions of $name did not go: $error"
    fi
    # No driver of the host's takes one before it is known whose it is, and has its address.
    put 0 "$at/sriov_drivers_autoprobe" || fail "$name: $error"
    if ! put "$count" "$at/sriov_numvfs"; then
        case "$error" in
            *"Cannot allocate memory"*) fail "the firmware left no room for $count virtual functions of $name (dmesg: not \
enough MMIO resources, or no bus number): turn on SR-IOV and above 4G decoding in its settings, or give the kernel \
\`pci=realloc\`; fewer of them may fit" ;;
            *"No such file"*) fail "the driver $driver of $name makes no virtual functions" ;;
            *) fail "$name got no $count virtual functions: ${error##*: } (dmesg may say more)" ;;
        esac
    fi
fi

net=''
for one in "$at"/net/*; do
    [ -e "$one" ] && net=${one##*/} && break
done
if [ "$owner" = vms ] && [ ! -e "$vfio" ]; then
    modprobe -- vfio-pci || fail "vfio-pci cannot be loaded"
fi
while read -r word number address mac; do
    [ "$word" = function ] || continue
    target "$at/virtfn$number"
    [ "$value" = "$address" ] || fail "virtual function $number of $name is ${value:-not there}, and was to be $address: \
gpuvm plan goes by where it is now"
    target "$devices/$address/driver"
    case "$owner $value" in
        "vms "*vfio*)
            # Some drivers reset a function whose address is set, also to what it is.
            user_of "$devices/$address"
            [ -z "$user" ] || continue
            ;;
    esac
    if [ "$mac" != - ]; then
        [ -n "$net" ] || fail "$name ($physical) has no network interface, which would set Ethernet addresses"
        error=$(ip link set dev "$net" vf "$number" mac "$mac" 2>&1) || fail "virtual function $number of $name did not \
get the address $mac: $error"
    fi
    target "$devices/$address/driver"
    case "$owner $value" in
        "vms "*vfio*) continue ;;
        vms*)
            unbind "$address"
            put vfio-pci "$devices/$address/driver_override" || fail "$address: $error"
            put "$address" "$probe"
            target "$devices/$address/driver"
            case "$value" in
                *vfio*) ;;
                *) fail "$address (virtual function $number of $name) is on ${value:-no driver}, not on vfio-pci: $error" ;;
            esac
            ;;
        "host "*vfio* | "host ")
            unbind "$address"
            put '' "$devices/$address/driver_override" || fail "$address: $error"
            put 1 "$at/sriov_drivers_autoprobe" || fail "$name: $error"
            # Without a driver for it, it stays without one.
            put "$address" "$probe"
            ;;
    esac
done < "$known/$name"
finished
