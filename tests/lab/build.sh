#!/usr/bin/env bash
# Builds the lab part by part. A part is built when it is missing or when what it is made from changed: its script, the
# files that the script names on its `#< ` line, and the parts it needs (`#needs `).
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "$0")/lib.sh"
export DEBIAN_FRONTEND=noninteractive

mkdir -p "$LAB/stamps" "$LAB/hosts"
exec 9>"$LAB/build.lock"
flock -n 9 || die "another build is at work in $LAB"

needed=()
for pair in mmdebstrap:mmdebstrap sfdisk:fdisk mkfs.vfat:dosfstools mcopy:mtools ssh:openssh-client \
  qemu-img:qemu-utils cpio:cpio jq:jq xz:xz-utils; do
  command -v "${pair%%:*}" >/dev/null || needed+=("${pair#*:}")
done
if [ ${#needed[@]} -gt 0 ]; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
fi
[ -f "$LAB/id" ] || ssh-keygen -q -t ed25519 -N '' -C lab -f "$LAB/id"

# The mirror that this machine uses, for everything that the lab installs.
MIRROR=${MIRROR:-$(sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+).*/\2/p' \
  /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | sed -n 1p || true)}
[ -n "$MIRROR" ] || die "no Debian mirror is known: set MIRROR"
export LAB HERE MIRROR ROOT_START ROOT_SIZE

digest() { # part
  local file=$HERE/parts/$1.sh part input
  {
    cat "$file"
    echo "$MIRROR"
    sed -n 's/^#needs //p' "$file" | tr ' ' '\n' | while read -r part; do cat "$LAB/stamps/$part"; done
    sed -n 's/^#< //p' "$file" | while read -r input; do
      find "$HERE/$input" -type f ! -path '*/target/*' -print0 | sort -z | xargs -0 cat
    done
  } | sha256sum | cut -d' ' -f1
}

parts=(qemu fakegpu root driver guest bare baked ifupdown dracut)
# What one long scenario alone needs is built where it is asked for.
case ${1:-} in
  '') ;;
  cloud) parts+=(qemu-nested cloud) ;;
  *) die "\`build\` or \`build cloud\`" ;;
esac
for part in "${parts[@]}"; do
  now=$(digest "$part")
  if [ "$(cat "$LAB/stamps/$part" 2>/dev/null)" = "$now" ]; then
    say "$part: as it is"
    continue
  fi
  rm -f "$LAB/stamps/$part"
  t0=$SECONDS
  for d in "$LAB"/hosts/*/; do
    DIR=${d%/}
    case $part:$(cat "$DIR/base" 2>/dev/null || true) in
      qemu:* | qemu-nested:cloud | fakegpu:* | bare:* | baked:baked | ifupdown:ifupdown | dracut:dracut | cloud:cloud)
        ! running || die "$part has to be built anew, but the lab host \`$(basename "$d")\` runs from it" ;;
    esac
  done
  # In a mount namespace of its own: a build that is cut off leaves nothing mounted below LAB.
  unshare --mount --propagation private bash -euo pipefail "$HERE/parts/$part.sh" || die "$part: failed"
  echo "$now" >"$LAB/stamps/$part"
  say "$part: built in $((SECONDS - t0)) s"
done
