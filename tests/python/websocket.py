"""WebSocket, by the `websockets` package from PyPI, on both sides of an adapter.

    websocket.py serve HOST:PORT               an app: sends back what it gets, and does as the paths below say
    websocket.py use HOST:PORT CERTIFICATES    a client with the certificate, key and bundle in that directory

Paths: `/echo`; `/refused`, which is answered 403; `/goodbye`, which the app closes with 4002. One JSON object a line.
"""

import asyncio
import json
import os
import ssl
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

LARGE = 3 * 1024 * 1024


def say(**what):
    print(json.dumps(what), flush=True)


async def app(host, port):
    async def talk(socket):
        if socket.request.path == "/goodbye":
            await socket.close(4002, "go away")
            return
        try:
            async for message in socket:
                await socket.send(message)
        except websockets.ConnectionClosed:
            pass
        say(closed=socket.close_code, reason=socket.close_reason)

    def decide(socket, request):
        if request.path == "/refused":
            return socket.respond(403, "not here\n")

    async with serve(talk, host, port, process_request=decide, max_size=2 * LARGE, ping_interval=None):
        say(listens=f"{host}:{port}")
        await asyncio.get_running_loop().create_future()


async def use(address, directory):
    context = ssl.create_default_context(cafile=f"{directory}/bundle.pem")
    context.load_cert_chain(f"{directory}/certificate.pem", f"{directory}/key.pem")
    host, port = address.rsplit(":", 1)

    def to(path, **more):
        return connect(
            f"wss://localhost:{port}{path}", host=host, ssl=context, max_size=2 * LARGE, ping_interval=None, proxy=None, **more
        )

    async with to("/echo") as socket:
        await socket.send("words")
        assert await socket.recv() == "words"
        large = os.urandom(LARGE)
        await socket.send(large)
        assert await socket.recv() == large
        # A message in fragments, which must not be held back until it is whole.
        async def fragments():
            for part in ("one ", "two ", "three"):
                yield part
        await socket.send(fragments())
        assert await socket.recv() == "one two three"
        await (await socket.ping())
        say(echoed=True)
        await socket.close(4001, "enough")

    async with to("/goodbye") as socket:
        try:
            await socket.recv()
        except websockets.ConnectionClosed as closed:
            say(code=closed.rcvd.code, reason=closed.rcvd.reason)

    try:
        async with to("/refused"):
            say(refused=None)
    except websockets.InvalidStatus as refused:
        say(refused=refused.response.status_code)

    async with to("/echo") as socket:
        say(waits=True)
        try:
            await socket.recv()
        except websockets.ConnectionClosed as closed:
            say(cut=closed.rcvd is None)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        host, port = sys.argv[2].rsplit(":", 1)
        asyncio.run(app(host, int(port)))
    else:
        asyncio.run(use(*sys.argv[2:]))
