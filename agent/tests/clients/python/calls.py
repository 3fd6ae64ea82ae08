"""Calls a service 500 times a second. For each number N on the standard input, it waits until N calls have ended since
the former report, and prints a report."""

import collections
import json
import sys
import threading
import time

import grpc
from google.protobuf.wrappers_pb2 import StringValue

CALLERS = 5
INTERVAL = 0.01
# Time by which the calls of a caller can be late, and are made up for.
MAX_DELAY = 1
TIMEOUT = 5


class Calls:
    def __init__(self):
        self.changed = threading.Condition()
        self.reset()

    def reset(self):
        self.servers = collections.Counter()
        self.failures = []
        self.slowest = 0.0

    def record(self, server, failure, took):
        with self.changed:
            if failure is None:
                self.servers[server] += 1
            else:
                self.failures.append(failure)
            self.slowest = max(self.slowest, took)
            self.changed.notify_all()

    def report(self, least):
        with self.changed:
            self.changed.wait_for(lambda: self.servers.total() + len(self.failures) >= least)
            report = {"servers": self.servers, "failures": self.failures, "slowest_ms": round(self.slowest * 1000)}
            print(json.dumps(report), flush=True)
            self.reset()


def call_forever(say_hello, calls):
    due = time.monotonic()
    while True:
        begun = time.monotonic()
        server, failure = None, None
        try:
            greeting = say_hello(StringValue(value="caller"), timeout=TIMEOUT)
            server = greeting.value.rsplit(" ", 1)[1]
        except grpc.RpcError as error:
            failure = f"{error.code().name}: {error.details()}"
        calls.record(server, failure, time.monotonic() - begun)
        due = max(due + INTERVAL, time.monotonic() - MAX_DELAY)
        time.sleep(max(0, due - time.monotonic()))


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    say_hello = channel.unary_unary(
        "/hello.Greeter/SayHello",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    calls = Calls()
    for _ in range(CALLERS):
        threading.Thread(target=call_forever, args=(say_hello, calls), daemon=True).start()
    for line in sys.stdin:
        calls.report(int(line))


main()
