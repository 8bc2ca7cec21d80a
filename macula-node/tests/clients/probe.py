"""Asks a gRPC server for its health as grpc-health-probe does, over a connection of its own.

usage: probe.py HOST:PORT SERVICE

It prints the status of grpc.health.v1, and its exit code is 0 when the service serves.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main(at, service):
    with grpc.insecure_channel(at) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        status = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10).status
    print("status:", health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    return status != health_pb2.HealthCheckResponse.SERVING


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
