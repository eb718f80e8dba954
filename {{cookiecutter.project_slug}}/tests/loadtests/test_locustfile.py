"""Locust's own command on the project's locustfile: without a page, and with it."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from live_service import PROJECT, Service, eventually, free_port
from load_testing import surroundings

pytestmark = pytest.mark.integration

LOCUST = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py"]


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    default = {"tokens": 8, "first_delay_ms": 20, "delay_ms": 5}
    return serve(behaviour={"default": default}).start().wait_ready()


def test_locust_counts_what_clients_of_a_model_feel(service: Service, tmp_path: Path) -> None:
    words = ["--headless", "-u", "8", "-r", "8", "-t", "4s", "--csv", str(tmp_path / "figures")]
    done = subprocess.run(
        [*LOCUST, "--host", service.url, *words],
        cwd=PROJECT,
        env=surroundings({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "figures_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert {"chat", "chat TTFT", "chat TPOT"} <= set(rows)
    assert int(rows["chat"]["Request Count"]) > 8
    assert float(rows["chat TTFT"]["Min Response Time"]) >= 20
    assert float(rows["chat"]["Average Content Size"]) == 8


def test_locust_opens_its_page(service: Service) -> None:
    port = free_port()
    process = subprocess.Popen(
        [*LOCUST, "--host", service.url, "--web-host", "127.0.0.1", "--web-port", str(port)],
        cwd=PROJECT,
        env=surroundings({}),
        stderr=subprocess.DEVNULL,
    )
    try:
        page = f"http://127.0.0.1:{port}"
        eventually(lambda: httpx.get(page, timeout=5).status_code == 200, "the page opens")
        begun = httpx.post(
            f"{page}/swarm",
            data={"user_count": 4, "spawn_rate": 4, "host": service.url},
            timeout=10,
        )
        assert begun.json()["success"]

        def answered() -> bool:
            stats = httpx.get(f"{page}/stats/requests", timeout=5).json()["stats"]
            return any(row["name"] == "chat" and row["num_requests"] > 4 for row in stats)

        eventually(answered, "answers are counted")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
