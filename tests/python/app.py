"""Applications as they stand behind an adapter, on `HOST:PORT` or `unix:PATH`, with nothing but the standard library.

    app.py http WHERE     answers each request with what it saw of it, as JSON, after its body; HTTP/1.1, keeps connections
    app.py tcp WHERE      sends everything back, and its end after that of the other side
    app.py told WHERE     reads a PROXY header of version 2, answers with what it says, as a line of JSON, then as `tcp`
    app.py idle WHERE     reads a head and no body until a line comes on standard input, then the body; answers with its length
    app.py endless WHERE  answers with a body that goes on until a line comes on standard input; says when it is held back

The header is parsed here by the specification alone. One JSON object a line on standard output.
"""

import json
import socket
import struct
import sys
import threading


def say(**what):
    print(json.dumps(what), flush=True)


def listen(where):
    if where.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where[len("unix:") :])
    else:
        host, port = where.rsplit(":", 1)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
    listener.listen(64)
    say(listens=where)
    return listener


def serve(where, handle):
    listener = listen(where)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=handle, args=(connection,), daemon=True).start()


def head(stream):
    """The request line and the fields of one head; nothing at the end."""
    line = stream.readline()
    if not line:
        return None, None
    fields = {}
    while (field := stream.readline()) not in (b"\r\n", b""):
        name, value = field.decode().rstrip("\r\n").split(": ", 1)
        fields.setdefault(name.lower(), []).append(value)
    return line.decode().rstrip("\r\n"), fields


def body(stream, fields):
    """The length of a body, read to its end."""
    if "content-length" in fields:
        left = length = int(fields["content-length"][0])
        while left:
            left -= len(stream.read(min(left, 1 << 16)))
        return length
    length = 0
    if "transfer-encoding" in fields:
        while size := int(stream.readline(), 16):
            length += len(stream.read(size))
            stream.readline()
        while stream.readline() not in (b"\r\n", b""):
            pass
    return length


def http(connection):
    stream = connection.makefile("rb")
    while True:
        line, fields = head(stream)
        if line is None:
            return
        say(saw=line)
        length = body(stream, fields)
        text = json.dumps({"line": line, "fields": fields, "length": length}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))


def tcp(connection):
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def exactly(connection, length):
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        assert more, "the header is cut short"
        data += more
    return data


def fields_of(data):
    fields = {}
    while data:
        kind, length = struct.unpack_from("!BH", data)
        value, data = data[3 : 3 + length], data[3 + length :]
        assert len(value) == length and kind not in fields
        fields[kind] = value
    return fields


def header(connection):
    signature, version_command, family, length = struct.unpack("!12sBBH", exactly(connection, 16))
    assert signature == b"\r\n\r\n\0\r\nQUIT\n" and version_command == 0x21
    rest = exactly(connection, length)
    kind, size = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}[family]
    source, destination = rest[:size], rest[size : 2 * size]
    source_port, destination_port = struct.unpack_from("!HH", rest, 2 * size)
    fields = fields_of(rest[2 * size + 4 :])
    told = {
        "source": [socket.inet_ntop(kind, source), source_port],
        "destination": [socket.inet_ntop(kind, destination), destination_port],
        "checksum": 0x03 in fields,
    }
    for name, number in {"alpn": 0x01, "authority": 0x02, "spiffe": 0xE0}.items():
        if number in fields:
            told[name] = fields[number].decode()
    if 0x20 in fields:
        client, verify = struct.unpack_from("!BI", fields[0x20])
        below = fields_of(fields[0x20][5:])
        told["ssl"] = {"client": client, "verify": verify, "version": below[0x21].decode(), "cipher": below[0x23].decode()}
        told["ssl"]["common_name"] = 0x22 in below
    return told


def told(connection):
    connection.sendall(json.dumps(header(connection)).encode() + b"\n")
    tcp(connection)


def idle(connection):
    stream = connection.makefile("rb")
    _, fields = head(stream)
    say(reads_no_more=True)
    sys.stdin.readline()
    text = b"%d" % body(stream, fields)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))


def endless(connection):
    head(connection.makefile("rb"))
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    # Whole chunks only, so that the end can be told from a body cut short.
    chunk = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
    sent, held = 0, False
    while not over.is_set():
        connection.settimeout(1)
        left = memoryview(chunk)
        while left:
            try:
                left = left[connection.send(left) :]
            except TimeoutError:
                if not held:
                    say(held_back_after=sent)
                held = True
        sent += 1 << 16
    connection.settimeout(None)
    connection.sendall(b"0\r\n\r\n")
    say(sent=sent)


if __name__ == "__main__":
    serve(sys.argv[2], {"http": http, "tcp": tcp, "told": told, "idle": idle, "endless": endless}[sys.argv[1]])
