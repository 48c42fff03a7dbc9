"""Watches directories of credentials as a user who may read none of them, and tries to, at every event and between them.

    watcher.py ALLOWED DIRECTORY...

ALLOWED is the one name that everybody may read. Goes on until its input ends, then tells what came of it, a line each:
events, attempts, how often ALLOWED was read, and every other file that could be opened.
"""

import ctypes
import os
import struct
import sys
import threading

ATTRIB, MOVED_FROM, MOVED_TO, CREATE, DELETE, CLOSE_WRITE, MODIFY = 0x4, 0x40, 0x80, 0x100, 0x200, 0x8, 0x2
MASK = ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | CLOSE_WRITE | MODIFY
NONBLOCK = 0o4000

libc = ctypes.CDLL(None, use_errno=True)


class Watcher:
    def __init__(self, allowed, directories):
        self.allowed, self.roots = allowed, directories
        self.fd = libc.inotify_init1(0)
        self.watched = {}
        self.events = self.attempts = self.read = 0
        self.leaked = set()
        self.stopped = False
        for directory in directories:
            assert self.watch(directory), directory

    def watch(self, directory):
        watch = libc.inotify_add_watch(self.fd, directory.encode(), MASK)
        if watch < 0:
            return False
        self.watched[watch] = directory
        return True

    def attempt(self, path):
        self.attempts += 1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            # A directory may be looked into; what is in it is tried by itself. A link on its way to its name leads to the file that counts.
            content = os.read(fd, 1)
            opened = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        except IsADirectoryError:
            return
        finally:
            os.close(fd)
        if os.path.basename(opened) == self.allowed:
            self.read += bool(content)
        else:
            self.leaked.add(f"{path} which is {opened}")

    def sweep(self):
        """Everything that can be found, as deep as one gets."""
        for root in self.roots:
            for here, directories, files in os.walk(root):
                for name in directories + files:
                    self.attempt(os.path.join(here, name))

    def follow(self):
        while not self.stopped:
            data = os.read(self.fd, 65536)
            while data:
                watch, _, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                data = data[16 + length :]
                self.events += 1
                directory = self.watched.get(watch)
                if directory is None or not name:
                    continue
                path = os.path.join(directory, name)
                self.attempt(path)
                # What was found may be a directory that is being filled: by its event, and by every name that files have.
                if os.path.isdir(path) and self.watch(path):
                    for inner in os.listdir(path):
                        self.attempt(os.path.join(path, inner))
                for inner in ("secret", "app.json", ".env", "url.txt", "app.yaml", self.allowed):
                    self.attempt(os.path.join(path, inner))

    def race(self):
        while not self.stopped:
            self.sweep()


def main(allowed, *directories):
    watcher = Watcher(allowed, directories)
    threads = [threading.Thread(target=run, daemon=True) for run in (watcher.follow, watcher.race)]
    for thread in threads:
        thread.start()
    print("watching", flush=True)
    sys.stdin.read()
    watcher.stopped = True
    print("events", watcher.events)
    print("attempts", watcher.attempts)
    print("allowed", watcher.read)
    for path in sorted(watcher.leaked):
        print("LEAKED", path)
    sys.stdout.flush()
    os._exit(0)


main(*sys.argv[1:])
