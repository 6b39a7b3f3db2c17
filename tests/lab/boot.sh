#!/usr/bin/env bash
# Boots the lab host in a topology on a copy-on-write disk, and waits for ssh.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "$0")/lib.sh"

topology='' base=bare fresh='' log='' switch='' card_at=2
while [ $# -gt 0 ]; do
  case $1 in
    --disk) base=${2:?--disk needs a name}; shift ;;
    --ifupdown) base=ifupdown ;;
    --fresh) fresh=1 ;;
    --log) log=1 ;;
    --switch) switch=1 ;;
    --card-at) card_at=${2:?--card-at needs a number}; shift ;;
    -*) die "unknown option $1" ;;
    *) topology=$1 ;;
  esac
  shift
done
[ -n "$topology" ] || die "which topology? See README.md"
[ -f "$LAB/$base.img" ] || die "there is no disk \`$base\`: tests/lab/run build [cloud]"
! running || die "the lab host \`$LAB_HOST\` runs already: tests/lab/run stop"

mkdir -p "$DIR/s"
in_lab=/lab/hosts/$LAB_HOST
# A disk of another base is of no use: the name is kept beside it.
if [ -n "$fresh" ] || [ ! -f "$DIR/disk.qcow2" ] || [ "$(cat "$DIR/base" 2>/dev/null)" != "$base" ]; then
  rm -f "$DIR/disk.qcow2" "$DIR/vars.fd"
  qemu-img create -q -f qcow2 -F raw -u -b "/lab/$base.img" "$DIR/disk.qcow2" 12G
  echo "$base" >"$DIR/base"
fi
[ -f "$DIR/vars.fd" ] || cp "$LAB/qroot/usr/share/OVMF/OVMF_VARS_4M.fd" "$DIR/vars.fd"
rm -f "$DIR"/s/* "$DIR/boot_id" "$DIR/port"
[ ! -f "$DIR/serial.log" ] || mv "$DIR/serial.log" "$DIR/serial.log.before"

functions=() devices=()
root_port() { # id number
  devices+=(-device "pcie-root-port,id=$1,chassis=$2,slot=$2,bus=pcie.0,addr=0x1$2")
}
function_at() { # bus address name vendor device class subvendor subdevice
  functions+=("$DIR/s/$3:$4:$5:$6:$7:$8:1")
  devices+=(-device "{\"driver\":\"vfio-user-pci\",\"socket\":{\"path\":\"$in_lab/s/$3\",\"type\":\"unix\"},\"bus\":\"$1\",\"addr\":\"$2\",\"multifunction\":true}")
}
rtx4090() { # bus slot name
  function_at "$1" "$2.0" "$3v" 10de 2684 030000 10de 16f4
  function_at "$1" "$2.1" "$3a" 10de 22ba 040300 10de 16f4
}
# A card of another model; the numbers are those of pci.ids.
card() { # bus slot name VENDOR:DEVICE:CLASS:SUBVENDOR:SUBDEVICE…, a function each
  local bus=$1 slot=$2 name=$3 n=0 words
  shift 3
  for words; do
    # shellcheck disable=SC2086
    function_at "$bus" "$slot.$n" "$name$n" ${words//:/ }
    n=$((n + 1))
  done
}
rtx3090() { card "$1" "$2" "$3" 10de:2204:030000:10de:1454 10de:1aef:040300:10de:1454; }
# What stands behind a PCIe-to-PCI bridge is one IOMMU group: the bus has no requester ids of its own.
legacy_bus() {
  root_port rp1 1
  devices+=(-device "pcie-pci-bridge,id=pci1,bus=rp1")
}

qroot=qroot uplink_at="addr=$card_at" disk_at="addr=4" iommu=(-device "intel-iommu,intremap=on,caching-mode=on") smbios=()
case $topology in
  plain) ;;
  display)
    # A display controller that QEMU emulates itself, so that the QEMU which runs nested guests with KVM has it.
    qroot="qroot-nested"
    [ -d "$LAB/$qroot" ] || die "its QEMU is not built: tests/lab/run build cloud"
    root_port rp1 1
    devices+=(-device "bochs-display,bus=rp1,addr=00.0") ;;
  twin | no-iommu)
    for n in 1 2; do
      root_port "rp$n" "$n"
      rtx4090 "rp$n" 00 "gpu$n"
    done
    if [ "$topology" = no-iommu ]; then iommu=(); fi ;;
  twin-added)
    # The new card's port comes first, so that the others' buses get other numbers.
    root_port rp0 0
    rtx3090 rp0 00 gpu0
    for n in 1 2; do
      root_port "rp$n" "$n"
      rtx4090 "rp$n" 00 "gpu$n"
    done ;;
  twin-other)
    root_port rp1 1
    rtx4090 rp1 00 gpu1
    root_port rp2 2
    rtx3090 rp2 00 gpu2 ;;
  twin-swapped)
    root_port rp1 1
    rtx3090 rp1 00 gpu1
    root_port rp2 2
    rtx4090 rp2 00 gpu2 ;;
  amd)
    root_port rp1 1
    card rp1 00 gpu1 1002:744c:030000:1002:0e3b 1002:ab30:040300:1002:ab30 1002:7446:0c0330:1002:7446 1002:7444:0c8000:1002:7444 ;;
  data-centre)
    root_port rp1 1
    card rp1 00 gpu1 10de:2330:030200:10de:16c1 ;;
  arc)
    # The card is a switch of its own, with the audio function on another bus than the display's.
    root_port rp1 1
    devices+=(-device "x3130-upstream,id=up1,bus=rp1")
    for n in 1 2; do devices+=(-device "xio3130-downstream,id=down$n,bus=up1,chassis=2$n,slot=2$n,addr=0$n"); done
    card down1 00 gpu1 8086:56a0:030000:8086:1020
    card down2 00 sound1 8086:4f90:040300:8086:1020 ;;
  sr-iov)
    root_port rp1 1
    rtx4090 rp1 00 gpu1
    root_port rp2 2
    devices+=(-netdev "user,id=vf0,restrict=on" -device "igb,bus=rp2,netdev=vf0,mac=52:54:00:4c:41:50,romfile=") ;;
  bad-group-nic)
    legacy_bus
    rtx4090 pci1 01 gpu1
    uplink_at="bus=pci1,addr=2"
    # The link keeps the name that the disk's netplan has, wherever its card is: systemd takes this .link file from
    # the firmware, so that the disk needs no change.
    link=$(printf '[Match]\nMACAddress=52:54:00:4c:41:42\n[Link]\nName=enp0s2\n' | base64 -w0)
    smbios=(-smbios "type=11,value=io.systemd.credential.binary:network.link.50-lab=$link") ;;
  bad-group-disk)
    legacy_bus
    rtx4090 pci1 01 gpu1
    disk_at="bus=pci1,addr=2" ;;
  *) die "unknown topology $topology" ;;
esac

# Hardware virtualisation only where the processor really has it: some machines offer a /dev/kvm that cannot run a
# firmware. The interrupt remapping of the emulated IOMMU needs QEMU's own half of the interrupt controller.
accel=${LAB_ACCEL:-}
if [ -z "$accel" ]; then
  if [ -w /dev/kvm ] && grep -qE '^flags.* (svm|vmx)( |$)' /proc/cpuinfo; then accel=kvm; else accel=tcg; fi
fi
case $accel in
  kvm) cpu=(-machine kernel-irqchip=split -cpu host -accel kvm) ;;
  tcg) cpu=(-cpu max -accel "tcg,thread=multi,tb-size=1024") ;;
  *) die "LAB_ACCEL is kvm or tcg, not $accel" ;;
esac

# Behind a switch the host has an address of its own there; else a port of the loopback leads to its ssh.
network=() port=${SSH_PORT:-2230}
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
if [ -n "$switch" ]; then
  switch_up
  for n in 0 1; do
    network+=(-netdev "dgram,id=n$n,local.type=unix,local.path=$in_lab/s/n$n.host,remote.type=unix,remote.path=$in_lab/s/n$n.switch")
  done
  network+=(-device "virtio-net-pci,netdev=n1,mac=52:54:00:4c:41:43,romfile=,addr=9")
else
  echo "$port" >"$DIR/port"
  network=(-netdev "user,id=n0,hostfwd=tcp:127.0.0.1:$port-:22")
fi

if [ ${#functions[@]} -gt 0 ]; then
  setsid "$LAB/fakegpu" "${functions[@]}" >"$DIR/fakegpu.log" 2>&1 </dev/null &
  echo $! >"$DIR/fakegpu.pid"
  # The file is there before anyone listens at it: 00010000 is the kernel's flag for that (include/linux/net.h).
  for f in "${functions[@]}"; do
    until awk -v path="${f%%:*}" '$4 == "00010000" && $8 == path { found = 1 } END { exit !found }' /proc/net/unix; do
      kill -0 "$(cat "$DIR/fakegpu.pid")" 2>/dev/null || die "the simulated functions ended: $DIR/fakegpu.log"
      sleep 0.1
    done
  done
fi

# Mounts live in a namespace of their own: nothing of the machine's is left bound inside the chroot.
in_qroot() {
  # shellcheck disable=SC2016
  exec setsid unshare --mount --propagation private bash -c '
    lab=$0 root=$0/$1
    shift
    for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
    mount --bind "$lab" "$root/lab"
    exec chroot "$root" "$@"' "$LAB" "$qroot" "$@"
}
# With --log every write and flush is kept in order beside the disk (see replay.py). The log counts what the host flushes;
# whether the machine below writes it out is of no use.
disk="driver=qcow2,file.driver=file,file.filename=$in_lab/disk.qcow2,cache=unsafe"
if [ -n "$log" ]; then
  : >"$DIR/writes.log"
  disk="driver=blklogwrites,log.driver=file,log.filename=$in_lab/writes.log,cache=writeback"
  disk+=",file.driver=qcow2,file.cache.no-flush=on,file.file.driver=file,file.file.filename=$in_lab/disk.qcow2"
fi
mem=${MEM:-4096}
in_qroot qemu-system-x86_64 -name "labhost-$LAB_HOST" -nodefaults -display none \
  -machine q35,memory-backend=ram0 -object "memory-backend-memfd,id=ram0,size=${mem}M,share=on" \
  "${cpu[@]}" -smp 2 -m "$mem" "${iommu[@]}" "${smbios[@]}" \
  -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
  -drive "if=pflash,format=raw,file=$in_lab/vars.fd" "${devices[@]}" \
  -drive "id=d0,if=none,discard=unmap,$disk" \
  -device "virtio-blk-pci,drive=d0,$disk_at" \
  "${network[@]}" -device "virtio-net-pci,netdev=n0,mac=52:54:00:4c:41:42,romfile=,$uplink_at" \
  -device virtio-rng-pci,addr=5 -device VGA,addr=6 \
  -serial "file:$in_lab/serial.log" -monitor "unix:$in_lab/mon.sock,server=on,wait=off" \
  >"$DIR/qemu.log" 2>&1 </dev/null &
echo $! >"$DIR/qemu.pid"
sleep 1 # until then the process is still the shell that becomes QEMU
wait_back "${BOOT_S:-300}" || {
  tail -n 5 "$DIR/qemu.log" "$DIR/serial.log" >&2
  stop
  exit 1
}
