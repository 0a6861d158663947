"""A gRPC client that calls as it is told: `client.py PORT`.

It connects to PORT on loopback and reads orders from there, one JSON object a line:
{"target": "xds:///NAME", "method": "/package.Service/Method", "metadata": {}, "calls": 1, "timeout_s": 5}
Each is answered with who answered how often, and which statuses came how often:
{"instances": {"NAME": 1}, "statuses": {"UNAVAILABLE": 1}, "message": "the last status' text"}
"""

import json
import socket
import sys
from collections import Counter

import grpc


def carry_out(order, channel):
    call = channel.unary_unary(order["method"])  # Bytes in, bytes out.
    metadata = list(order["metadata"].items())
    instances, statuses, message = Counter(), Counter(), ""
    for _ in range(order["calls"]):
        try:
            _, answered = call.with_call(b"", timeout=order["timeout_s"], metadata=metadata)
            instances[dict(answered.initial_metadata())["x-instance"]] += 1
        except grpc.RpcError as error:
            statuses[error.code().name] += 1
            message = error.details()
    return {"instances": instances, "statuses": statuses, "message": message}


def main():
    channels = {}
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        with connection.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                order = json.loads(line)
                target = order["target"]
                if target not in channels:
                    channels[target] = grpc.insecure_channel(target)
                lines.write(json.dumps(carry_out(order, channels[target])) + "\n")
                lines.flush()


main()
