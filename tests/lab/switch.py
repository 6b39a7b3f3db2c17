#!/usr/bin/env python3
"""The network of a lab host: a switch with a mind of its own, and one neighbour behind it.

switch.py DIR PORT…    each PORT is a pair of datagram sockets DIR/PORT.host (QEMU's) and DIR/PORT.switch

Frames go between the ports and the interface `lan0` of the network namespace that it runs in. DIR/switch.rules may be
changed at any time; one rule a line:

  delay SECONDS N    nothing is forwarded for so long, once for each new N: a port that was down and is up again
  mac ADDRESS…       only frames from these are taken from the ports
  vlan ID            the ports carry this VLAN tagged, and nothing else; lan0 has it untagged
  drop dhcp          no DHCP in either direction
"""

import fcntl
import os
import select
import socket
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
DHCP = (67, 68)


def is_dhcp(frame):
    """Whether an untagged frame is IPv4, UDP, and from or to a port of DHCP."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 38 or frame[23] != 17:
        return False
    udp = 14 + (frame[14] & 15) * 4
    return any(port in DHCP for port in struct.unpack("!HH", frame[udp : udp + 4]))


class Switch:
    def __init__(self, folder, ports):
        self.rules_file = os.path.join(folder, "switch.rules")
        self.lan = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.lan, TUNSETIFF, struct.pack("16sH", b"lan0", IFF_TAP | IFF_NO_PI))
        self.ports = {}
        for port in ports:
            here = os.path.join(folder, port + ".switch")
            if os.path.exists(here):
                os.unlink(here)
            s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            s.bind(here)
            s.setblocking(False)
            self.ports[s] = os.path.join(folder, port + ".host")
        self.seen, self.read_at = {}, None
        self.macs, self.vlan, self.dhcp, self.delays, self.silent_until = None, None, True, set(), 0.0

    def read_rules(self):
        try:
            at = os.stat(self.rules_file).st_mtime_ns
        except FileNotFoundError:
            return
        if at == self.read_at:
            return
        self.read_at = at
        self.macs, self.vlan, self.dhcp = None, None, True
        with open(self.rules_file, encoding="ascii") as rules:
            for words in (line.split() for line in rules):
                if words[:1] == ["mac"]:
                    self.macs = {bytes.fromhex(w.replace(":", "")) for w in words[1:]}
                elif words[:1] == ["vlan"]:
                    self.vlan = struct.pack("!HH", 0x8100, int(words[1]))
                elif words == ["drop", "dhcp"]:
                    self.dhcp = False
                elif words[:1] == ["delay"] and words[2] not in self.delays:
                    self.delays.add(words[2])
                    self.silent_until = time.monotonic() + float(words[1])

    def from_port(self, port, frame):
        """What a port's frame is on the other side; nothing where the switch does not let it through."""
        if self.macs is not None and frame[6:12] not in self.macs:
            return None
        if self.vlan:
            if frame[12:14] != self.vlan[:2] or (frame[14] & 15, frame[15]) != (self.vlan[2], self.vlan[3]):
                return None
            frame = frame[:12] + frame[16:]
        if not self.dhcp and is_dhcp(frame):
            return None
        self.seen[frame[6:12]] = port
        return frame

    def to_ports(self, frame):
        if not self.dhcp and is_dhcp(frame):
            return
        known = self.seen.get(frame[:6])
        if self.vlan:
            frame = frame[:12] + self.vlan + frame[12:]
        for port, host in self.ports.items():
            if known in (None, port):
                try:
                    port.sendto(frame, host)
                except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                    pass  # the host is off, or its card is full

    def run(self):
        while True:
            ready, _, _ = select.select([self.lan, *self.ports], [], [], 0.1)
            self.read_rules()
            silent = time.monotonic() < self.silent_until
            for source in ready:
                if source is self.lan or source == self.lan:
                    frame = os.read(self.lan, 65536)
                    if not silent:
                        self.to_ports(frame)
                else:
                    frame = source.recv(65536)
                    frame = None if silent else self.from_port(source, frame)
                    if frame:
                        os.write(self.lan, frame)


Switch(sys.argv[1], sys.argv[2:]).run()
