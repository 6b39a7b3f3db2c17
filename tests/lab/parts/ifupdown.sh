# shellcheck shell=bash
# The bare disk as a host whose uplink is ifupdown's: Debian's own default.
#needs qemu bare
export LAB_HOST=bake
# shellcheck source=tests/lab/lib.sh
. "$HERE/lib.sh"
trap stop EXIT
"$HERE/boot.sh" plain --fresh
guest 'export DEBIAN_FRONTEND=noninteractive; set -e
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends ifupdown dhcpcd-base >/dev/null
  printf "auto lo\niface lo inet loopback\n\nallow-hotplug enp0s2\niface enp0s2 inet dhcp\n" >/etc/network/interfaces
  apt-get purge -y -qq netplan.io >/dev/null
  rm -rf /etc/netplan
  systemctl disable -q systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service
  systemctl enable -q networking.service
  apt-get clean
  systemctl poweroff' || true
wait_off 120
mv "$DIR/disk.qcow2" "$LAB/ifupdown.qcow2"
"$HERE/boot.sh" plain --disk ifupdown --fresh
guest 'systemctl is-active networking.service && ! systemctl is-active systemd-networkd.service'
stop
rm -rf "$DIR"
