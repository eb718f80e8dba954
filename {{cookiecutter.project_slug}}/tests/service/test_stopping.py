"""Every way to end the service: running streams finish if they may, and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from live_service import Event, Service, alive, chat_body, eventually, text_of
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

Serve = Callable[..., Service]

WHOLE = " ".join(f"w{i}" for i in range(40))


class Reader(threading.Thread):
    """Reads one stream in the background; `begun` is set once text came."""

    def __init__(self, service: Service, tokens: int) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.events: list[Event] = []
        self._stream = service.stream(script(tokens=tokens, delay_ms=50), max_tokens=tokens)

    def run(self) -> None:
        with contextlib.suppress(httpx.TransportError), self._stream as stream:
            for event in stream:
                self.events.append(event)
                if event.text:
                    self.begun.set()

    @classmethod
    def of(cls, service: Service, tokens: int = 40) -> Reader:
        """One whose stream has begun; 40 tokens take about two seconds."""
        reader = cls(service, tokens)
        reader.start()
        assert reader.begun.wait(10)
        return reader


def gone(*pids: int) -> bool:
    return not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_stop_lets_running_streams_finish_and_takes_no_new_work(
    serve: Serve, number: signal.Signals
) -> None:
    with serve().start().wait_ready() as service:
        processes = service.processes
        reader = Reader.of(service)
        if number == signal.SIGINT:  # a terminal sends it to the whole group
            os.killpg(processes.serve, number)
        else:
            service.signal(number)
        eventually(lambda: service.status("/readyz") == 503, "/readyz is off", 2)
        refused = service.chat("Hello")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in refused.headers
        assert service.status("/livez") == 200
        assert reader.is_alive()
        reader.join(10)
        assert text_of(reader.events) == WHOLE
        assert reader.events[-1].data == "[DONE]"
        assert service.wait() == 0
        assert gone(*processes.below)


def test_an_idle_service_stops_at_once(serve: Serve) -> None:
    with serve().start().wait_ready() as service:
        processes = service.processes
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert time.monotonic() - began < 3
        assert gone(*processes.below)
        assert "Traceback" not in service.log_text


def test_a_service_stops_while_its_model_loads(serve: Serve) -> None:
    with serve(behaviour={"start_delay": 30}).start().wait_live() as service:
        eventually(service.has_engine, "the engine process is there")
        processes = service.processes
        service.signal(signal.SIGTERM)
        assert service.wait(10) == 0
        assert gone(*processes.below)


def test_a_stream_longer_than_the_drain_is_cut_with_an_error_event(serve: Serve) -> None:
    with serve(settings={"timeouts": {"drain": 1}}).start().wait_ready() as service:
        processes = service.processes
        reader = Reader.of(service, 200)
        service.signal(signal.SIGTERM)
        reader.join(5)
        last = reader.events[-1]
        assert (last.name, last.json["error"]["code"]) == ("error", "shutting_down")
        assert service.wait() == 0
        assert gone(*processes.below)


def test_a_client_that_reads_nothing_does_not_hold_up_the_stop(serve: Serve) -> None:
    with serve(settings={"timeouts": {"drain": 1}}).start().wait_ready() as service:
        processes = service.processes
        with service.stream(script(tokens=2000, pad=100_000)):
            eventually(lambda: service.stats()["paused"], "the engine has to wait")
            service.signal(signal.SIGTERM)
            assert service.wait(10) == 0
        assert gone(*processes.below)


def test_a_client_that_left_does_not_hold_up_the_stop(serve: Serve) -> None:
    """BentoML waits for the first byte of each reply, also of one nobody waits for any more."""
    with serve().start().wait_ready() as service:
        with service.stream(script(fault="silent")) as stream:
            next(iter(stream))
        with pytest.raises(httpx.ReadTimeout):
            service.http.post(
                "/v1/chat/completions", json=chat_body(script(delay_ms=500)), timeout=0.3
            )
        eventually(lambda: service.stats()["in_flight"] == 0, "generation was stopped", 3)
        service.signal(signal.SIGTERM)
        assert service.wait(5) == 0


def test_an_engine_that_ignores_sigterm_is_killed(serve: Serve) -> None:
    with serve(behaviour={"ignore_sigterm": True}).start().wait_ready() as service:
        processes = service.processes
        service.signal(signal.SIGTERM)
        assert service.wait(10) == 0
        assert gone(*processes.below)


def test_a_signal_to_the_whole_group_does_not_reach_the_engine_first(serve: Serve) -> None:
    """systemd and `docker stop` on some set-ups signal every process there is."""
    with serve().start().wait_ready() as service:
        processes = service.processes
        reader = Reader.of(service)
        for pid in (processes.serve, processes.worker, processes.guard):
            os.kill(pid, signal.SIGTERM)
        reader.join(10)
        assert text_of(reader.events) == WHOLE
        assert service.wait() == 0
        assert gone(*processes.below)


@pytest.mark.parametrize("victim", ["worker", "serve"])
def test_a_kill_of_the_service_leaves_nothing_behind(serve: Serve, victim: str) -> None:
    service = serve(behaviour={"spawn_child": True, "ignore_sigterm": True}).start().wait_ready()
    with service:
        processes, child = service.processes, service.stats()["child"]
        reader = Reader.of(service)
        os.kill(getattr(processes, victim), signal.SIGKILL)
        doomed = [processes.guard, processes.engine, child]
        if victim == "worker":
            eventually(lambda: gone(*doomed), "the engine is gone", 3)
        else:  # the worker notices, finishes its stream and stops by itself
            reader.join(10)
            assert text_of(reader.events) == WHOLE
            eventually(lambda: gone(processes.worker, *doomed), "all are gone", 15)


def test_the_key_is_in_no_command_line_and_in_no_log(serve: Serve) -> None:
    for engine in ("vllm", "sglang"):
        with serve(engine=engine, behaviour={"secret_echo": True}).start().wait_ready() as service:
            worker = psutil.Process(service.processes.worker)
            lines = [" ".join(p.cmdline()) for p in (worker, *worker.children(recursive=True))]
            log = service.engine_log.read_text()
            assert "my key is ***, guard it well" in log
            assert service.engine_log.stat().st_mode & 0o077 == 0
            if engine == "vllm":
                key = psutil.Process(service.processes.engine).environ()["VLLM_API_KEY"]
            else:
                line = psutil.Process(service.processes.engine).cmdline()
                config = Path(line[line.index("--config") + 1])
                assert config.stat().st_mode & 0o077 == 0
                key = config.read_text().split(": ")[1].strip()
            assert len(key) > 30
            for text in (*lines, log, service.log_text):
                assert key not in text
            service.stop()
            if engine == "sglang":
                assert not config.exists()
