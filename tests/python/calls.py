"""gRPC, by the `grpcio` package from PyPI, on both sides of an adapter. Messages are bytes.

    calls.py serve HOST:PORT               an app with the service `test.Calls`, without TLS
    calls.py use HOST:PORT CERTIFICATES    a client with the certificate, key and bundle in that directory
    calls.py ask HOST:PORT CERTIFICATES    one unary call, and what became of it

One JSON object a line.
"""

import json
import queue
import sys
import threading
from concurrent import futures

import grpc

LARGE = 3 * 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", 2 * LARGE), ("grpc.max_send_message_length", 2 * LARGE)]


def say(**what):
    print(json.dumps(what), flush=True)


class Calls(grpc.GenericRpcHandler):
    def service(self, details):
        path, name = details.method.rsplit("/", 1)
        if path != "/test.Calls":
            return None
        return {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Count": grpc.unary_stream_rpc_method_handler(lambda request, context: (b"%d" % n for n in range(int(request)))),
            "Sum": grpc.stream_unary_rpc_method_handler(lambda requests, context: b"%d" % sum(map(int, requests))),
            "Chat": grpc.stream_stream_rpc_method_handler(lambda requests, context: (b"to " + each for each in requests)),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
        }.get(name)

    def unary(self, request, context):
        who = dict(context.invocation_metadata()).get("x-forwarded-client-cert", "")
        context.set_trailing_metadata([("who", who.rsplit("URI=", 1)[-1]), ("bytes-bin", bytes(range(256)))])
        return request

    def fail(self, request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no %s" % request.decode())

    def wait(self, request, context):
        over = threading.Event()
        context.add_callback(over.set)
        say(waits=True, within=context.time_remaining() is not None)
        over.wait()
        say(over=request.decode())
        return b""


def serve(address):
    server = grpc.server(futures.ThreadPoolExecutor(16), options=OPTIONS)
    server.add_generic_rpc_handlers([Calls()])
    assert server.add_insecure_port(address)
    server.start()
    say(listens=address)
    server.wait_for_termination()


def channel(address, directory):
    def read(name):
        with open(f"{directory}/{name}.pem", "rb") as file:
            return file.read()

    credentials = grpc.ssl_channel_credentials(read("bundle"), read("key"), read("certificate"))
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_http_proxy", 0)]
    return grpc.secure_channel(address, credentials, OPTIONS + options)


def failure(error):
    metadata = dict(error.trailing_metadata() or [])
    return {"code": error.code().name, "details": error.details(), "decision": metadata.get("x-fender-decision")}


def ask(address, directory):
    with channel(address, directory) as to:
        try:
            say(answer=to.unary_unary("/test.Calls/Unary")(b"question", timeout=60).decode())
        except grpc.RpcError as error:
            say(**failure(error))


def use(address, directory):
    with channel(address, directory) as to:
        response, call = to.unary_unary("/test.Calls/Unary").with_call(b"question", timeout=60)
        trailers = dict(call.trailing_metadata())
        say(unary=response.decode(), who=trailers["who"], binary=trailers["bytes-bin"] == bytes(range(256)))
        say(count=[int(n) for n in to.unary_stream("/test.Calls/Count")(b"5", timeout=60)])
        say(sum=int(to.stream_unary("/test.Calls/Sum")((b"%d" % n for n in range(101)), timeout=60)))

        # Each message is sent only once the answer to the one before is there.
        turns = queue.Queue()
        answers = to.stream_stream("/test.Calls/Chat")(iter(turns.get, None), timeout=60)
        heard = []
        for turn in range(20):
            turns.put(b"%d" % turn)
            heard.append(next(answers).decode())
        turns.put(None)
        assert not list(answers)
        say(chat=heard == [f"to {turn}" for turn in range(20)])

        large = bytes(LARGE)
        say(large=to.unary_unary("/test.Calls/Unary")(large, timeout=60) == large)
        many = to.stream_stream("/test.Calls/Chat")((large for _ in range(8)), timeout=60)
        say(many=sum(len(each) for each in many) == 8 * (LARGE + 3))

        for method, message in [("Fail", b"book"), ("Nothing", b"")]:
            try:
                to.unary_unary(f"/test.Calls/{method}")(message, timeout=60)
            except grpc.RpcError as error:
                say(**failure(error))
        try:
            to.unary_unary("/test.Calls/Wait")(b"deadline", timeout=2)
        except grpc.RpcError as error:
            say(code=error.code().name)
        waiting = to.unary_unary("/test.Calls/Wait").future(b"cancelled", timeout=60)
        # The app says when it has it; then this process is told to go on.
        sys.stdin.readline()
        say(cancelled=waiting.cancel())
        try:
            to.unary_unary("/test.Secret/Unary")(b"", timeout=60)
        except grpc.RpcError as error:
            say(**failure(error))


if __name__ == "__main__":
    {"serve": serve, "use": use, "ask": ask}[sys.argv[1]](*sys.argv[2:])
