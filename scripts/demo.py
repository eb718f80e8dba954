"""Serve the baked demo, ask it one question and print the answer as it streams.

Standard library only. Exit codes: 0 when the answer came, 1 when it did not, 130 when stopped
before it came.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

HOST = "127.0.0.1"
QUESTION = "What is the capital of France?"
NEXT_QUESTION = "What is the capital of Japan?"
START_LIMIT = 600.0  # seconds from the start of the service to ready
ANSWER_LIMIT = 120.0  # seconds without a byte of the answer
STOP_LIMIT = 60.0  # seconds from the signal to the end of the service
GRACE = 5  # seconds the server waits for clients that read nothing
LOG_LINES = 25


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


class Stopped(Exception):  # noqa: N818 - a wish, not an error
    """The user asked to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Server:
    """`bentoml serve` of a baked project, in a session of its own: Ctrl-C reaches it through us."""

    def __init__(self, project: Path, port: int, log: Path) -> None:
        self.project = project
        self.port = port
        self.log = log
        command = project.resolve() / ".venv/bin/bentoml"
        if not command.exists():
            raise DemoError(f"{command} is missing: run make demo, which installs it.")
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(str(command), "serve", "--host", HOST, "--port", str(port)),
                    *("--timeout-graceful-shutdown", str(GRACE)),
                ],
                cwd=project,
                env={"BENTOML_DO_NOT_TRACK": "True", **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_until_ready(self) -> float:
        """Show the seconds passing until the service is ready; return how many they were."""
        started = time.monotonic()
        shown = 0
        while not self.ready():
            passed = time.monotonic() - started
            self.check_alive()
            if passed > START_LIMIT:
                raise DemoError(f"The service was not ready after {START_LIMIT:.0f} s.")
            if sys.stdout.isatty():
                print(f"\rloading… {passed:.0f} s", end="", flush=True)
            elif passed >= shown:
                print(f"loading… {passed:.0f} s", flush=True)
                shown += 10
            time.sleep(0.25)
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        return time.monotonic() - started

    def check_alive(self) -> None:
        status = self.process.poll()
        if status is not None:
            raise DemoError(f"The service ended by itself with status {status}.")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Pass the signal on and wait for the end; a second signal, or no end in time, kills it."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(STOP_LIMIT)
        except (subprocess.TimeoutExpired, Stopped):
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def last_lines(self) -> str:
        """The ends of the service's log and of its engines' logs."""
        parts = []
        for log in (self.log, *sorted(self.project.glob("state/logs/*.log"))):
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            parts += [f"The last lines of {log}:", *(f"  | {line}" for line in lines)]
        return "\n".join(parts)


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoError(
                f"Port {port} cannot be used ({error.strerror}): "
                f"choose another with make demo PORT={port + 1}."
            ) from None


def chat_request(model: str, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return json.dumps({"model": model, "stream": True, "messages": messages})


def stream_answer(port: int, model: str, question: str) -> Iterator[str]:
    """The pieces of the answer as they arrive; DemoError unless the stream ends with [DONE]."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_LIMIT)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", chat_request(model, question), headers)
        response = connection.getresponse()
        if response.status != 200:
            body = response.read().decode(errors="replace")
            raise DemoError(f"The service answered {response.status}: {body}")
        while line := response.readline():
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise DemoError(f"The answer broke off: {event['error'].get('message')}")
            for choice in event.get("choices", ()):
                yield choice.get("delta", {}).get("content") or ""
        raise DemoError("The answer broke off: the stream ended without [DONE].")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DemoError(f"The answer broke off: {error}") from error
    finally:
        connection.close()


def show_answer(port: int, model: str) -> None:
    print(f"\n  question  {QUESTION}\n  answer    ", end="", flush=True)
    length = 0
    for piece in stream_answer(port, model, QUESTION):
        print(piece, end="", flush=True)
        length += len(piece.strip())
    print("\n")
    if not length:
        raise DemoError("The answer was empty.")


def show_next(port: int, model: str) -> None:
    print(
        "Ask the next:\n\n"
        f"  curl -N http://{HOST}:{port}/v1/chat/completions \\\n"
        "    -H 'content-type: application/json' \\\n"
        f"    -d '{chat_request(model, NEXT_QUESTION)}'\n\n"
        "Ctrl-C stops the service.",
        flush=True,
    )


def serve_until_stopped(server: Server) -> None:
    while True:
        server.check_alive()
        time.sleep(0.5)


def run(project: Path, port: int, model: str, once: bool, log: Path) -> int:
    check_port(port)
    answered = False
    print(f"Starting the service on http://{HOST}:{port} (its log: {log})", flush=True)
    server = Server(project, port, log)
    stop_signal: int = signal.SIGTERM
    try:
        print(f"ready after {server.wait_until_ready():.0f} s")
        show_answer(port, model)
        answered = True
        if not once:
            show_next(port, model)
            serve_until_stopped(server)
        return 0
    except Stopped as stopped:
        stop_signal = stopped.signum
        print("\nstopping…", flush=True)
        return 0 if answered else 130
    except DemoError as error:
        print(
            f"\n{server.last_lines()}\n\n{error}\n"
            f"If the engine could not start, delete {project / '.engine'} and run make demo again.",
            file=sys.stderr,
        )
        return 1
    finally:
        server.stop(stop_signal)


def raise_stopped(signum: int, _frame: FrameType | None) -> None:
    raise Stopped(signum)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the baked demo and stream one answer.")
    parser.add_argument("project", type=Path, help="folder of the baked project")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--model", default="chat", help="name the model is served under")
    parser.add_argument("--once", action="store_true", help="stop after the answer")
    options = parser.parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, raise_stopped)
    log = options.project.resolve().parent / "serve.log"
    try:
        return run(options.project, options.port, options.model, options.once, log)
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
