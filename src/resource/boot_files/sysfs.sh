# What is made by writing to sysfs.
proc=/proc

# Writes $1 to attribute $2; what the kernel answers is in `error`. The shell's own printf does not tell it.
put() {
    error=$( { env printf '%s\n' "$1" > "$2"; } 2>&1)
}

# Who has an IOMMU group or a device below $1 open, as `user`; empty where nobody has.
user_of() {
    target "$1/iommu_group"
    for node in "/dev/vfio/${value:-none}" "$1"/vfio-dev/*; do
        case "$node" in "$1"/*) node=/dev/vfio/devices/${node##*/} ;; esac
        user=$(find "$proc"/[0-9]*/fd -lname "$node" 2> /dev/null | head -n 1)
        user=${user#"$proc"/} user=${user%%/*}
        [ -z "$user" ] || return 0
    done
}

# All of it is done: $run/$name is $known/$name, as it was done.
finished() {
    if ! { mkdir -p "$run" && cp "$known/$name" "$run/.$name.new" && mv -f "$run/.$name.new" "$run/$name"; }; then
        fail "$run/$name cannot be written"
    fi
    rm -f "$run/why/$name"
}

