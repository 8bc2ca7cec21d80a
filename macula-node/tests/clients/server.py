"""A gRPC server of its own kind: grpcio, with the four kinds of methods, health and reflection.

usage: server.py

It prints its port, and ends when its standard input is closed. Messages are plain bytes; `toggle` on standard input changes its health.
"""

import sys
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

NAME = "clients.Echo"


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("told", metadata.get("asked", "nothing")),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "on purpose")
    if request == b"wait":
        context.add_callback(lambda: print("cancelled", flush=True))
        while context.is_active():
            futures.wait([], timeout=0.01)
    return request


def collect(requests, _context):
    return b" ".join(requests)


def split(request, _context):
    yield from request.split()


def converse(requests, _context):
    yield from requests


def schema():
    """The service as a schema, so that reflection names it."""
    file = descriptor_pb2.FileDescriptorProto(name="clients.proto", package="clients", syntax="proto3")
    file.message_type.add(name="Text")
    service = file.service.add(name="Echo")
    for name, ask, answer in METHODS:
        service.method.add(
            name=name, input_type=".clients.Text", output_type=".clients.Text", client_streaming=ask, server_streaming=answer
        )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


METHODS = [("Unary", False, False), ("Collect", True, False), ("Split", False, True), ("Converse", True, True)]


def main():
    schema()
    server = grpc.server(futures.ThreadPoolExecutor(16))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Split": grpc.unary_stream_rpc_method_handler(split),
        "Converse": grpc.stream_stream_rpc_method_handler(converse),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    checked = health.HealthServicer()
    checked.set(NAME, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checked, server)
    reflection.enable_server_reflection((NAME, reflection.SERVICE_NAME, health.SERVICE_NAME), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    for line in sys.stdin:
        well = line.strip() == "well"
        status = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
        checked.set(NAME, status)
    server.stop(None)


if __name__ == "__main__":
    main()
