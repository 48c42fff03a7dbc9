"""An application that does what it should not: it fetches whatever URL it is told to, as link previews and webhooks do.

    fetches.py PORT

GET /fetch?URL answers with what came of it: `STATUS BODY`.
"""

import http.server
import sys
import urllib.error
import urllib.parse
import urllib.request


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.unquote(self.path.partition("?")[2])
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                came = f"{response.status} {response.read().decode()}"
        except urllib.error.HTTPError as error:
            came = f"{error.code} {error.read().decode()}"
        except OSError as error:
            came = f"000 {error}"
        body = came.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
