"""A client of the credentials socket that uses nothing of Fender's: what anybody can write, and what an attacker would.

    handover.py SOCKET WHAT [NAME]

SOCKET begins with `@` if it is abstract. WHAT is `read`, `tamper`, `hoard` or `squat`.
"""

import fcntl
import mmap
import os
import socket
import sys

F_GET_SEALS = 1034
F_ADD_SEALS = 1033
SEALS = 1 | 2 | 4 | 8  # seal, shrink, grow, write


def address(text):
    return "\0" + text[1:] if text.startswith("@") else text


def ask(where, name):
    """The connection, the words of the answer and the descriptors that came with it."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(address(where))
    s.sendall(f"get {name}\n".encode())
    data, fds, _, _ = socket.recv_fds(s, 4096, 8)
    return s, data.decode().split(), fds


def read(where, name):
    _, words, fds = ask(where, name)
    assert words[0] == "ok" and len(fds) == 1, (words, fds)
    value = os.pread(fds[0], int(words[2]) + 1, 0)
    assert len(value) == int(words[2]), words
    sys.stdout.buffer.write(value)


def refused(what, attempt):
    try:
        attempt()
    except (OSError, ValueError) as error:
        print(f"{what}: {type(error).__name__}")
    else:
        print(f"{what}: SUCCEEDED")


def tamper(where, name):
    """Everything that whoever holds the descriptor can try, each with what came of it."""
    _, _, (fd,) = ask(where, name)
    assert fcntl.fcntl(fd, F_GET_SEALS) & SEALS == SEALS
    before = os.pread(fd, 4096, 0)
    refused("write", lambda: os.pwrite(fd, b"x", 0))
    refused("shrink", lambda: os.ftruncate(fd, 1))
    refused("grow", lambda: os.ftruncate(fd, 1 << 20))
    refused("allocate", lambda: os.posix_fallocate(fd, 0, 1 << 20))
    refused("map", lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE))
    refused("unseal", lambda: fcntl.fcntl(fd, F_ADD_SEALS, 16))
    refused("mode", lambda: os.fchmod(fd, 0o777))
    refused("reopen", lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    refused("execute", lambda: os.execve(fd, ["x"], {}))
    # Where this one reads is nothing to the next one.
    os.lseek(fd, 0, os.SEEK_END)
    _, _, (other,) = ask(where, name)
    assert os.read(other, 4096) == before == os.pread(fd, 4096, 0)


def hoard(where, name):
    """Asks without end and takes no answer; says when it is refused, and holds what it has until it is told to end."""
    held = []
    while True:
        s = socket.socket(socket.AF_UNIX)
        s.connect(address(where))
        try:
            s.sendall(f"get {name}\n".encode())
        except OSError:
            pass
        if s.recv(4096, socket.MSG_PEEK).startswith(b"busy"):
            break
        held.append(s)
    print(f"holds {len(held)}", flush=True)
    sys.stdin.read()


def squat(where, _):
    s = socket.socket(socket.AF_UNIX)
    s.bind(address(where))
    s.listen()
    print("listens", flush=True)
    while True:
        peer, _ = s.accept()
        print(f"heard {peer.recv(4096)!r}", flush=True)


if __name__ == "__main__":
    where, what, name = (sys.argv[1:] + [""])[:3]
    {"read": read, "tamper": tamper, "hoard": hoard, "squat": squat}[what](where, name)
