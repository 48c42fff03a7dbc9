"""An application on Python's own HTTP server that writes down every request it took off the wire.

    recorder.py ADDRESS PORT LOG HABIT

It is lenient in the ways that applications are, so that whoever stands before it must not be. HABIT says where it
believes a body to end when it is told so twice, or oddly:

    length    Content-Length, read with `int`; any chunks only without it
    chunks    anything that looks like `Transfer-Encoding: chunked`, whatever else there is
    ignores   GET, HEAD, DELETE and OPTIONS have no body, whatever the head says

Each request becomes a line of JSON in LOG before it is answered.
"""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = open(sys.argv[3], "a", buffering=1, encoding="utf-8")
HABIT = sys.argv[4]
BODILESS = {"GET", "HEAD", "DELETE", "OPTIONS"}
LOCK = threading.Lock()


class Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.record
        raise AttributeError(name)

    def record(self):
        body, trailers, whole = self.body()
        # `self.path` has been tidied by the library; the request line is what arrived.
        method, target, *_ = self.requestline.split(" ")
        line = {
            "method": method,
            "target": target,
            "length": len(body),
            "whole": whole,
            "fields": self.headers.items() + trailers,
        }
        with LOCK:
            LOG.write(json.dumps(line) + "\n")
        if not whole:
            self.close_connection = True
            return
        answer = f"{method} {target}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(answer)

    def body(self):
        if HABIT == "ignores" and self.command in BODILESS:
            return b"", [], True
        length = self.headers.get("Content-Length")
        chunked = any(
            re.sub("[^a-z]", "-", name.lower()) == "transfer-encoding" and "chunked" in value.lower()
            for name, value in self.headers.items()
        )
        if chunked and (HABIT != "length" or length is None):
            return self.chunks()
        wanted = max(int(length), 0) if length else 0
        body = b""
        while len(body) < wanted and (part := self.rfile.read1(min(wanted - len(body), 65536))):
            body += part
        return body, [], len(body) == wanted

    def chunks(self):
        body = b""
        while True:
            line = self.rfile.readline()
            if not line.endswith(b"\n"):
                return body, [], False
            size = int(line.split(b";")[0].strip() or b"0", 16)
            if size == 0:
                break
            chunk = self.rfile.read(size)
            body += chunk
            if len(chunk) < size or len(self.rfile.read(2)) < 2:
                return body, [], False
        trailers = []
        while (line := self.rfile.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            trailers.append((name.strip(), value.strip()))
        return body, trailers, line.endswith(b"\n")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


Server((sys.argv[1], int(sys.argv[2])), Recorder).serve_forever()
