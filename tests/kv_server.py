#!/usr/bin/env python3
"""Runs examples/kv_server under load, kills it, and checks every acknowledged write.

    python3 tests/kv_server.py [--seconds 60] [--connections 64] [--rate 4000] [--dir target]

Half of the time the load runs until `kill -9`; the server restarts and every key is read back. The
other half ends with SIGTERM, which must end the server cleanly, and every key is read back again,
once one by one and once as a streamed range. examples/kv_load.rs says what it checks meanwhile.
All of it stays on the loopback interface. Exit status 2: the machine was too busy to tell.
"""

import argparse
import http.client
import json
import pathlib
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
VERIFY_SECONDS_MAX = 300


def build():
    """Builds server and load tool; returns where cargo has put them."""
    command = ["cargo", "build", "--release", "--features", "jemalloc",
               "--message-format", "json-render-diagnostics"]
    for name in ("kv_server", "kv_load"):
        command += ["--example", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable"):
            found[message["target"]["name"]] = message["executable"]
    return found


class Server:
    """A running server; its end is awaited whatever happens to the test."""

    def __init__(self, program, path):
        self.process = subprocess.Popen([program, path, "127.0.0.1:0"], stdout=subprocess.PIPE,
                                        text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.stop(signal.SIGKILL)
            raise SystemExit(f"the server did not start: {line!r}")
        self.address = line.split()[-1]

    def stop(self, how):
        """Sends the signal and returns exit status and the rest of the output."""
        self.process.send_signal(how)
        try:
            output, _ = self.process.communicate(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise SystemExit(f"the server did not stop within {STOP_SECONDS_MAX} s") from None
        return self.process.returncode, output

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)


def load_command(programs, server, state, args, seconds, *more):
    return [programs["kv_load"], "run", server.address, state, "--seconds", str(seconds),
            "--connections", str(args.connections), "--rate", str(args.rate),
            "--stall-ms", str(args.stall_ms), *more]


def run_until_killed(programs, path, state, args, seconds):
    with Server(programs["kv_server"], path) as server:
        # The load would run twice as long as it may: what ends it is the kill.
        command = load_command(programs, server, state, args, 2 * seconds, "--expect-kill")
        with subprocess.Popen(command) as load:
            try:
                status = load.wait(timeout=seconds)
                raise SystemExit(status or "the load ended before the kill")
            except subprocess.TimeoutExpired:
                pass
            server.stop(signal.SIGKILL)
            try:
                return load.wait(timeout=STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                load.kill()
                raise SystemExit("the load did not notice the kill") from None


def verify(programs, server, state):
    command = [programs["kv_load"], "verify", server.address, state]
    if subprocess.run(command, check=False, timeout=VERIFY_SECONDS_MAX).returncode != 0:
        raise SystemExit("what the server holds is not what it acknowledged")


def fetch_rows(server, query):
    connection = http.client.HTTPConnection(server.address, timeout=VERIFY_SECONDS_MAX)
    connection.request("GET", "/kv" + query)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200:
        raise SystemExit(f"status {response.status} for a range")
    return [json.loads(line)["key"] for line in body.splitlines()]


def verify_ranges(server, state):
    """The streamed rows must be exactly the keys that have a value, in order, both ways."""
    lines = [line.split("\t") for line in pathlib.Path(state).read_text().splitlines()]
    expected = sorted(key for key, content, _ in lines if content != "none")
    if fetch_rows(server, "") != expected:
        raise SystemExit("the whole range differs from the acknowledged keys")
    if fetch_rows(server, "?reverse=true&limit=100") != expected[::-1][:100]:
        raise SystemExit("the last 100 rows in reverse differ")
    prefixed = [key for key in expected if key.startswith("c001-")]
    if fetch_rows(server, "?prefix=c001-") != prefixed:
        raise SystemExit("the rows of a prefix differ")
    if fetch_rows(server, "?start=c001-&end=c002-&limit=7") != prefixed[:7]:
        raise SystemExit("the rows from start to end differ")
    print(f"ranges agree with {len(expected)} keys")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=int, default=4000, help="requests/s, 0: no limit")
    parser.add_argument("--stall-ms", type=int, default=100)
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "target",
                        help="where the data goes: a real disk")
    return parser.parse_args()


def main():
    args = parse_args()
    programs = build()
    args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kv-server-", dir=args.dir) as scratch:
        path, state = f"{scratch}/db", f"{scratch}/state"
        killed = run_until_killed(programs, path, state, args, args.seconds / 2)
        with Server(programs["kv_server"], path) as server:
            print("restarted after kill -9", flush=True)
            verify(programs, server, state)
            command = load_command(programs, server, state, args, args.seconds / 2)
            second = subprocess.run(command, check=False).returncode
            status, output = server.stop(signal.SIGTERM)
            if status != 0 or "closed" not in output:
                raise SystemExit(f"SIGTERM: status {status}, output {output!r}")
        with Server(programs["kv_server"], path) as server:
            print("restarted after SIGTERM", flush=True)
            verify(programs, server, state)
            verify_ranges(server, state)
    # 1 (the server failed) outweighs 2 (too busy to tell).
    statuses = {killed, second}
    sys.exit(1 if 1 in statuses else max(statuses))


if __name__ == "__main__":
    main()
