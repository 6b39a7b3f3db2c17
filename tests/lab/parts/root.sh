# shellcheck shell=bash
# The packages of the lab host: a minimal Debian 13 server with netplan, and nothing of virtualisation.
packages=linux-image-amd64,systemd-sysv,udev,dbus,openssh-server,iproute2,pciutils,kmod,initramfs-tools
packages+=,grub2-common,grub-efi-amd64-bin,grub-efi-amd64,netplan.io,systemd-resolved,ca-certificates,procps,less
packages+=,apparmor,cpio,zstd,python3-minimal,iputils-ping,sudo
rm -rf "${LAB:?}/root"
mmdebstrap --quiet --variant=minbase --components=main --include="$packages" trixie "$LAB/root" "$MIRROR"
