"""An application that reads a file again when it is told to, with nothing but the standard library.

    notified.py PORT FILE BUSY

Listens on loopback. `POST /-/reload` reads FILE and answers 204, or 503 as long as BUSY exists; `GET /` answers with what was read and how
many times it was.
"""

import http.server
import pathlib
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    known = ""
    times = 0

    def do_POST(self):
        if self.path != "/-/reload" or pathlib.Path(sys.argv[3]).exists():
            self.send_response(503)
        else:
            Handler.known = pathlib.Path(sys.argv[2]).read_text()
            Handler.times += 1
            self.send_response(204)
        self.end_headers()

    def do_GET(self):
        body = f"{Handler.known} {Handler.times}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
