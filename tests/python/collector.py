"""A collector of OpenTelemetry, made of what OpenTelemetry itself publishes of its protocol (`opentelemetry-proto` from PyPI).

    collector.py WHERE              takes spans at `HOST:PORT` or `unix:PATH`
    collector.py WHERE CHAIN KEY    the same behind TLS, with this certificate

With STATUS=NAME in the environment it answers every call with that status of gRPC and takes nothing.

One JSON object a line: that it listens, then each call's metadata that is not gRPC's own, then its spans.
"""

import json
import os
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


def say(**what):
    print(json.dumps(what), flush=True)


def values(attributes):
    told = {}
    for attribute in attributes:
        assert attribute.key not in told, f"{attribute.key} is there twice"
        told[attribute.key] = getattr(attribute.value, attribute.value.WhichOneof("value"))
    return told


def tell(resource, scope, span):
    assert len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_span_id) in (0, 8), span
    assert span.start_time_unix_nano <= span.end_time_unix_nano, span
    say(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=trace_pb2.Span.SpanKind.Name(span.kind),
        name=span.name,
        status=trace_pb2.Status.StatusCode.Name(span.status.code),
        flags=span.flags,
        attributes=values(span.attributes),
        resource=values(resource.attributes),
        scope=scope.name,
    )


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        say(metadata={key: value for key, value in context.invocation_metadata() if not key.startswith("grpc-")})
        if status := os.environ.get("STATUS"):
            context.abort(grpc.StatusCode[status], "not here")
        for of_resource in request.resource_spans:
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    tell(of_resource.resource, of_scope.scope, span)
        return trace_service_pb2.ExportTraceServiceResponse()


def main(where, chain=None, key=None):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    if chain:
        with open(chain, "rb") as chain, open(key, "rb") as key:
            credentials = grpc.ssl_server_credentials([(key.read(), chain.read())])
        bound = server.add_secure_port(where, credentials)
    else:
        bound = server.add_insecure_port(where)
    assert bound, f"{where} cannot be had"
    server.start()
    say(listens=where)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
