# shellcheck shell=bash
#: the power fails at CUTS (20) places of an apply and what was not flushed is lost; the host answers, and the next apply ends it
#long

CUTS=${CUTS:-20}
LIMIT_S=${LIMIT_S:-120} # of the host, to answer again

here_twin() {
  manifest <<Y
version: 1
kernelArgs: [quiet]
gpus:
  work: { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
files:
  /etc/sysctl.d/60-gpuvm-lab.conf:
    content: |
      net.ipv4.conf.all.log_martians = 1
bridge: { name: br0 }
vms:
  desktop: { cpus: 1, memory: 256MiB, accel: tcg, disks: [64MiB], network: br0, boot: $GUEST_BOOT }
Y
}

# What gpuvm and the packages' programs set: files below /etc with owner and mode, disks, the VM's definition.
settings() {
  # shellcheck disable=SC2016 # for the lab host's shell
  guest 'set -- /etc -xdev -type f ! -path "/etc/ssh/ssh_host*" ! -name machine-id ! -name "*.lock" ! -name .updated ! -path "/etc/libvirt/qemu/*" ! -path "/etc/libvirt/storage/*"
    find "$@" -exec stat -c "%a %U %G %n" {} + | sort -k 4
    find "$@" -exec sha1sum {} + | sort -k 2
    stat -c "%a %U %s %n" /var/lib/libvirt/images/*
    virsh dumpxml --inactive desktop | grep -v -e "<uuid>" -e "mac address"'
}

# Nothing in between and nothing twice: no temporary file of ours, and no slot whose functions are on two sides.
whole() {
  local left
  left=$(guest 'find / -xdev \( -name "*.gpuvm-*" -o -name ".gpuvm*" \) -not -path "/var/lib/gpuvm/*" 2>/dev/null' || true)
  [ -z "$left" ] || fail "left behind: $left"
  left=$(guest 'dpkg --audit' || true)
  [ -z "$left" ] || fail "dpkg: $left"
}

# in_sync COMMAND…: nothing is left to do, but for what waits for a boot (3); a power cut is a boot.
in_sync() {
  local status=0
  step "$*"
  "$@" >"$LAST" 2>&1 </dev/null || status=$?
  case $status in 0 | 3) say "   exit status $status" ;; *) show_last; fail "exit status $status: $*" ;; esac
}
applied() {
  in_sync guest gpuvm "$@"
  in_sync guest gpuvm plan -f host.yaml
}

boot twin --disk baked --log
here_twin
guest sync
from=$(stat -c %s "$DIR/writes.log")
applied apply -f host.yaml --yes
guest sync
to=$(stat -c %s "$DIR/writes.log")
settings >"$DIR/settings.whole"
cp "$DIR/writes.log" "$DIR/cuts.log"
"$HERE/../lab/replay.py" "$DIR/cuts.log" flushes "$from" "$to" >"$DIR/flushes"
flushes=$(wc -l <"$DIR/flushes")
say "   $flushes flushes in an apply; the power fails behind $CUTS of them"
[ "$flushes" -ge "$CUTS" ] || fail "there are only $flushes flushes"

# The image goes forward from cut to cut; each host is a copy-on-write disk over it.
stop
rm -f "$DIR/writes.log"
image=cut-$LAB_HOST
trap 'rm -f "${LAB:?}/$image.img" "$DIR/cuts.log"' EXIT
cp --sparse=always "$LAB/baked.img" "$LAB/$image.img"
at=0 n=0 lost=0 slowest=0
while [ "$n" -lt "$CUTS" ]; do
  n=$((n + 1))
  place=$(sed -n "$((n * flushes / CUTS))p" "$DIR/flushes")
  "$HERE/replay.py" "$DIR/cuts.log" play "$LAB/$image.img" "$at" "$place"
  at=$place
  step "cut $n of $CUTS, behind flush $((n * flushes / CUTS)) of $flushes"
  if BOOT_S=$LIMIT_S "$HERE/boot.sh" twin --disk "$image" --fresh && (
    put "$GPUVM" /usr/local/bin/gpuvm
    here_twin
    word=$(guest gpuvm status --output json </dev/null | jq -r .state)
    say "   the last run: $word"
    case $word in
      cut-off)
        # Both ways on.
        if [ $((n % 2)) = 0 ]; then
          in_sync guest gpuvm apply --resume
        else
          expect_status 0 guest gpuvm apply --abandon
        fi ;;
      none | ended) ;;
      *) fail "status says \`$word\`" ;;
    esac
    status=0
    guest gpuvm plan -f host.yaml >"$LAST" 2>&1 </dev/null || status=$?
    case $status in
      2) applied apply -f host.yaml --yes ;;
      0 | 3) ;;
      *) show_last; fail "plan ended with $status" ;;
    esac
    in_sync guest gpuvm plan -f host.yaml
    settings >"$DIR/settings.cut"
    diff "$DIR/settings.whole" "$DIR/settings.cut" >&2 || fail "the host is not as after an apply that nothing disturbed"
    whole
  ); then
    say "   nothing lost"
    seconds=$(cat "$DIR/back" 2>/dev/null || echo 0)
    [ "$seconds" -le "$slowest" ] || slowest=$seconds
  else
    lost=$((lost + 1))
    say "   LOST: cut $n"
    cp "$DIR/serial.log" "$DIR/serial.cut-$n.log" || true
  fi
  stop
done
say "   $n power cuts in $flushes flushes, $lost lost something; ssh answered within $slowest s"
[ "$lost" -eq 0 ] || fail "$lost of $n"
