"""A gRPC client of its own kind: grpcio, through the ingress at the address given.

usage: client.py HOST:PORT CALLS

It tries the four kinds of methods, metadata, an error, a deadline and a cancellation. Then it makes CALLS calls and prints `.` after each;
every one has to succeed. It ends with `done`.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

NAME = "/clients.Echo/"


def main(at, calls):
    channel = grpc.insecure_channel(at)
    unary = channel.unary_unary(NAME + "Unary")
    answer, call = unary.with_call(b"hello", metadata=(("asked", "politely"),), timeout=10)
    assert answer == b"hello", answer
    assert ("told", "politely") in [tuple(pair) for pair in call.trailing_metadata()], call.trailing_metadata()
    assert channel.stream_unary(NAME + "Collect")(iter([b"a", b"b", b"c"]), timeout=10) == b"a b c"
    assert list(channel.unary_stream(NAME + "Split")(b"a b c", timeout=10)) == [b"a", b"b", b"c"]
    assert list(channel.stream_stream(NAME + "Converse")(iter([b"a", b"b"]), timeout=10)) == [b"a", b"b"]

    fails(lambda: unary(b"fail", timeout=10), grpc.StatusCode.FAILED_PRECONDITION, "on purpose")
    fails(lambda: unary(b"wait", timeout=0.3), grpc.StatusCode.DEADLINE_EXCEEDED)
    waiting = unary.future(b"wait", timeout=10)
    waiting.cancel()
    assert waiting.cancelled()
    fails(lambda: channel.unary_unary("/clients.Missing/Call")(b"", timeout=10), grpc.StatusCode.UNIMPLEMENTED)

    checked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    print("tried", flush=True)
    for _ in range(calls):
        assert unary(b"again", timeout=10) == b"again"
        print(".", flush=True)
    print("done", flush=True)


def fails(call, code, words=""):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code and words in error.details(), error
    else:
        raise AssertionError(f"the call did not fail with {code}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
