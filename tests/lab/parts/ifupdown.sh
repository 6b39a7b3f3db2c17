# shellcheck shell=bash
# The bare disk as a host whose uplink is ifupdown's: Debian's own default.
#needs bare
#< derive.sh
#< disk.sh
# shellcheck source=tests/lab/derive.sh
. "$HERE/derive.sh"
derive ifupdown <<'C'
apt-get update -qq
apt-get install -y -qq --no-install-recommends ifupdown dhcpcd-base >/dev/null
printf 'auto lo\niface lo inet loopback\n\nallow-hotplug enp0s2\niface enp0s2 inet dhcp\n' >/etc/network/interfaces
apt-get purge -y -qq netplan.io >/dev/null
rm -rf /etc/netplan
systemctl disable -q systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service
systemctl enable -q networking.service
apt-get clean
C
