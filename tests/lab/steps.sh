#!/usr/bin/env bash
# One scenario: its file is read with these words to write it in.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "$0")/lib.sh"

# The GPUs of the topology `twin`, and what a nested guest boots.
# shellcheck disable=SC2034
FIRST=0000:01:00 SECOND=0000:02:00
# shellcheck disable=SC2034
GUEST_BOOT='{ kernel: /var/lib/gpuvm-lab/guest-vmlinuz, initrd: /var/lib/gpuvm-lab/guest-initrd.img, cmdline: "console=ttyS0" }'

LAST=$DIR/last

step() { say "-- $* ($SECONDS s)"; }
fail() {
  say "FAILED: $*"
  exit 1
}

# boot TOPOLOGY [OPTION…]: a lab host on a fresh disk, with the program under test.
boot() {
  step "boot $*"
  "$HERE/boot.sh" "$@" --fresh || fail "the lab host did not boot"
  put "$GPUVM" /usr/local/bin/gpuvm
}

# manifest <<'Y': writes the manifest on the lab host, where `guest` runs: /root/host.yaml. A copy is kept here.
manifest() {
  cat >"$DIR/host.yaml"
  put "$DIR/host.yaml" /root/host.yaml
}

# What the last command said; of what is long, the beginning.
show_last() {
  sed -n '1,60s/^/   | /p' "$LAST" >&2
  [ "$(wc -l <"$LAST")" -le 60 ] || say "   | … all of it: $LAST"
}

# expect_status N COMMAND…: runs it, keeps what it says for expect_text, and checks its exit status.
expect_status() {
  local wanted=$1 status=0
  shift
  step "$*"
  "$@" >"$LAST" 2>&1 </dev/null || status=$?
  show_last
  [ "$status" = "$wanted" ] || fail "exit status $status where $wanted was expected: $*"
}

# expect_text TEXT…: each is in what the last command said, whatever its case and where lines were wrapped.
expect_text() {
  local text
  for text; do
    tr -s '[:space:]' ' ' <"$LAST" | grep -qiF -- "$text" || fail "the output does not say: $text"
  done
}

# expect_no_text TEXT…: none is in what the last command said.
expect_no_text() {
  local text
  for text; do
    if tr -s '[:space:]' ' ' <"$LAST" | grep -qiF -- "$text"; then fail "the output says: $text"; fi
  done
}

# snapshot_files NAME: every file, link and directory of the lab host's root file system with owner and mode, and with
# a hash of the content, but for what changes by itself, and for gpuvm's own state. Below /usr, where hundreds of
# megabytes are the packages' own, the time of the last change of the inode stands for the hash: no program can set it.
snapshot_files() {
  step "snapshot $1"
  # shellcheck disable=SC2016 # for the lab host's shell
  guest 'by_itself="-path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache -o -path /var/lib/systemd
      -o -path /var/lib/gpuvm -o -path /var/lib/gpuvm-lab -o -path /var/lib/libvirt/qemu -o -path /var/lib/libvirt/images
      -o -path /var/lib/dhcpcd -o -path /root/host.yaml -o -path /lost+found"
    find / -xdev \( $by_itself \) -prune -o -type d -printf "%M %u:%g %p/\0" -o -printf "%M %u:%g %l %p\0" |
      tr "\n\0" "?\n" | sort
    find /usr -xdev -type f -printf "%i %s %C@ %p\n" | sort -k 4
    find / -xdev \( $by_itself -o -path /usr \) -prune -o -type f -print0 | sort -z | xargs -0 sha1sum' >"$DIR/files.$1"
  if [ "$(grep -c ' /usr/' "$DIR/files.$1")" -lt 1000 ] || ! grep -q ' /etc/passwd$' "$DIR/files.$1"; then
    fail "the snapshot $1 is not whole"
  fi
}

# same_files BEFORE AFTER: no file differs between two snapshots.
same_files() {
  if ! diff "$DIR/files.$1" "$DIR/files.$2" >"$LAST"; then
    head -n 40 "$LAST" >&2
    fail "files differ between the snapshots $1 and $2"
  fi
}


# driver FUNCTION: the driver that a function is bound to on the lab host; nothing where there is none.
driver() { guest "basename \"\$(readlink /sys/bus/pci/devices/$1/driver)\" 2>/dev/null" || true; }

expect_driver() { # FUNCTION DRIVER
  local now
  now=$(driver "$1")
  [ "$now" = "$2" ] || fail "$1 is on \`$now\`, not on \`$2\`"
  say "   $1 is on \`$2\`"
}

# wait_run SECONDS: waits until the last apply came to its end; a host that is away is not an end.
wait_run() {
  local t0=$SECONDS word=''
  step "wait for the run to end"
  while :; do
    word=$(guest gpuvm status --output json 2>/dev/null </dev/null |
      jq -r .state 2>/dev/null || true)
    [ "$word" != ended ] || break
    [ "$word" != cut-off ] || fail "the run was cut off"
    running || fail "the lab host is off"
    [ $((SECONDS - t0)) -lt "$1" ] || fail "the run did not end within $1 s (last word: \`$word\`)"
    sleep 5
  done
  say "   ended after $((SECONDS - t0)) s"
}

# apply_across_reboot SECONDS: applies with leave to reboot, and waits for the end of the run. A host that reboots for it
# has to answer on ssh within two minutes.
apply_across_reboot() { across_reboot "$1" apply -f host.yaml; }
undo_across_reboot() { across_reboot "$1" undo; }
across_reboot() { # SECONDS VERB…
  local limit=$1
  shift
  local status=0
  step "gpuvm $* --yes --reboot"
  guest timeout "$limit" gpuvm "$@" --yes --reboot >"$LAST" 2>&1 </dev/null || status=$?
  show_last
  # 255: the connection went with the host. 3: the run says that it goes on after the reboot.
  case $status in
    0) say "   done without a reboot" ;;
    3 | 255)
      wait_back "${BACK_S:-120}" || fail "the host did not come back"
      wait_run "$limit" ;;
    *) fail "$1 ended with $status" ;;
  esac
  expect_status 0 guest gpuvm status
}

# record NAME: what gpuvm looks at on the lab host for its manifest, brought here as a recorded host.
record() {
  step "record $1"
  rm -rf "$DIR/record.$1"
  mkdir -p "$DIR/record.$1"
  guest 'rm -rf /var/lib/gpuvm-lab/record
    gpuvm -q facts --record /var/lib/gpuvm-lab/record -f host.yaml >/dev/null &&
    tar -C /var/lib/gpuvm-lab/record -c .' | tar -C "$DIR/record.$1" -x
}

same() { # FILE FILE: two files, or two links, or two places with nothing
  if [ -L "$1" ] || [ -L "$2" ]; then
    [ "$(readlink "$1" || true)" = "$(readlink "$2" || true)" ]
  elif [ -e "$1" ] || [ -e "$2" ]; then
    cmp -s "$1" "$2"
  fi
}

installed() { # RECORD: its packages with their versions
  awk -F ': ' '/^Package/{p=$2} /^Status/{s=$2} /^Version/{v=$2} /^$/{if (s ~ / ok installed$/) print p, v; s=""}' \
    "$1/root/var/lib/dpkg/status" | sort
}

drivers() { # RECORD: its PCI functions with their drivers
  find "$1/root/sys/devices" -name driver -type l -printf '%h %l\n' | sed 's|^.*/\([^/]*\) .*/|\1 |' | sort
}

# rehearsed_as_real: the manifest, rehearsed on the record `before`, ends as the lab host did, which is the record `after`:
# packages, files with their modes, drivers, and what the next plan says of each thing.
rehearsed_as_real() {
  local before=$DIR/record.before real=$DIR/record.after played=$DIR/rehearsed path n=0 wrong=0
  step "the same, rehearsed"
  rm -rf "$played"
  cp -r "$before" "$played"
  "$GPUVM" -q apply -f "$DIR/host.yaml" --root "$played" --yes --reboot >"$LAST" 2>&1 || { show_last; fail "the rehearsal ended badly"; }
  diff <(installed "$played") <(installed "$real") >&2 || fail "other packages are installed"
  diff <(drivers "$played") <(drivers "$real") >&2 || fail "functions are on other drivers"
  # What programs of packages write, and what the kernel and systemd say of the running host, is not rehearsed. A file that
  # is in one of the real records only was looked at once and not written: what gpuvm wrote, its journal says. The defaults
  # of vmctl name the manifest where it lies, which is elsewhere.
  while read -r path; do
    case $path in /proc/* | /sys/* | /run/* | /dev/* | /var/lib/gpuvm/* | /var/lib/dpkg/* | /etc/passwd | /etc/group | \
      /etc/vmctl/defaults.yaml) continue ;; esac
    n=$((n + 1))
    if ! same "$played/root$path" "$real/root$path"; then
      say "   differs: $path"
      diff "$played/root$path" "$real/root$path" >&2 || true
      wrong=1
    elif ! [ "$(mode "$played" "$path")" = "$(mode "$real" "$path")" ]; then
      say "   mode or owner differ: $path: $(mode "$played" "$path"), really $(mode "$real" "$path")"
      wrong=1
    fi
  done < <({
    guest 'cat /var/lib/gpuvm/runs/*/journal.jsonl' | jq -r '.step | objects |
      (.writeFile.path?, .switchNetwork.write[]?.path, .switchNetwork.edit[]?.path) | strings'
    recorded "$before" "$played" | while read -r path; do same "$before/root$path" "$played/root$path" || echo "$path"; done
    recorded "$before" | while read -r path; do
      [ ! -e "$real/root$path" ] || same "$before/root$path" "$real/root$path" || echo "$path"
    done
  } | sort -u)
  [ "$n" -ge 3 ] || fail "only $n files changed: that cannot be all"
  [ "$wrong" = 0 ] || fail "the rehearsal wrote other files than the real run"
  "$GPUVM" plan -f "$DIR/host.yaml" --root "$played" --output json | jq -S '[.entries[] | {key, state: .diff.state}]' >"$DIR/plan.played"
  guest gpuvm plan -f host.yaml --output json | jq -S '[.entries[] | {key, state: .diff.state}]' >"$DIR/plan.real"
  diff "$DIR/plan.played" "$DIR/plan.real" >&2 || fail "the next plan differs"
  say "   $n changed files, $(jq length "$DIR/plan.real") things in the next plan, $(installed "$real" | wc -l) packages: the same"
}

recorded() { # RECORD…: the files and links in any of them
  local record
  for record; do (cd "$record/root" && find . -type f -o -type l); done | sed 's/^\.//' | sort -u
}

mode() { # RECORD PATH: mode and owner
  jq -c --arg path "$2" '.stats[$path] // {mode: "0644", uid: 0, gid: 0}' "$1/gpuvm-record.json"
}

# boot_with WORD: boots the lab host with a word more on the kernel's command line, until grub.cfg is written anew.
boot_with() {
  step "a boot with $1"
  guest "sed -i -E 's#(^|[[:space:]])(linux[[:space:]]+/.*)\$#\1\2 $1#' /boot/grub/grub.cfg && systemctl reboot" || true
  wait_back "${BACK_S:-120}" || fail "the host did not come back"
  guest cat /proc/cmdline | grep -qw "$1" || fail "the kernel was not booted with $1"
}

# vm_console NAME SECONDS: what the VM writes to its console within so many seconds, until it says that it is ready.
# libvirt's own record of the running VM names the console, so that no further package is needed.
vm_console() {
  guest "tty=\$(sed -n \"s/.*<console type='pty' tty='\([^']*\)'.*/\1/p\" /run/libvirt/qemu/$1.xml | head -n 1)
    [ -n \"\$tty\" ] || { echo 'the VM has no console: is it running?'; exit 1; }
    timeout $2 sed -n '/^PCI/,\$p;/^GUEST-READY/q' \"\$tty\" | tr -d '\r'"
}

# LAB_SHORT: with the numbers of the scenario's `#short` line, where it has one.
if [ -n "${LAB_SHORT:-}" ]; then
  read -ra short < <(sed -n 's/^#short //p' "$1" | head -n 1) || true
  [ ${#short[@]} -eq 0 ] || export "${short[@]}"
fi

# shellcheck disable=SC1090
. "$1"
