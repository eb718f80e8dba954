"""The demo's image, built and run for real without a Docker engine: `make test-container`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from baking import ROOT
from base_image import base_image
from pip_configuration import containers_conf
from running import Container

DEMO = ROOT / "build/demo/llm-service"
FOLDER = ROOT / "build/container"
IMAGE = "localhost/llm-service:test"
UID = 1034
NUMBERS = " ".join(str(n) for n in range(1, 31)) + "."
PROGRAMS = ("buildah", "podman", "runc", "debootstrap")

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def programs() -> None:
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed: run make test-container as root", False)


@pytest.fixture(scope="module")
def built(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `make image` prints for the demo with its model."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path_factory.mktemp("home") / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "BUILDAH_ISOLATION": "chroot",  # which has the machine's network
        "CONTAINERS_CONF": str(containers_conf(tmp_path_factory.mktemp("conf"))),
        "SERVING_BASE_IMAGE": base_image(FOLDER),
    }
    words = {"model": [], "image": [f"IMAGE={IMAGE}", "BENTO_ARGS=--backend buildah"]}
    for target, options in words.items():
        command = ["make", "--no-print-directory", target, *options]
        done = subprocess.run(
            command, cwd=DEMO, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    yield done.stdout
    images = [IMAGE, re.search(r"llm-service:[0-9a-f]{12}", done.stdout)]
    for image in images:
        name = image if isinstance(image, str) else f"localhost/{image[0]}" if image else ""
        subprocess.run(["buildah", "rmi", name], capture_output=True, check=False)


@pytest.fixture(scope="module")
def container(built: str) -> Iterator[Container]:
    running = Container(IMAGE)
    try:
        yield running
    finally:
        running.remove()


@contextlib.contextmanager
def chat(container: Container, question: str) -> Iterator[Iterator[str]]:
    """The data of a stream's events, as they come."""
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": question}]}
    url = f"{container.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        yield (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


def text_of(data: list[str]) -> str:
    chunks = (json.loads(line) for line in data if line != "[DONE]")
    return "".join(choice["delta"].get("content") or "" for c in chunks for choice in c["choices"])


def test_a_streamed_chat_answers(
    built: str, container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not container.health  # the engine is not up yet
    took = container.wait_ready(120)
    with chat(container, "What is the capital of France?") as stream:
        data = list(stream)
    assert text_of(data) == "The capital of France is Paris."
    assert data[-1] == "[DONE]"
    size = re.search(r"\(([\d.]+ GB)\)\.\s*$", built)
    assert size, built
    with capsys.disabled():
        print(f"\nThe demo's image has {size[1]}; its container was ready after {took:.1f} s.")


def test_its_health_check_says_that_it_is_ready(container: Container) -> None:
    container.wait_ready(120)
    assert container.health


def test_every_process_is_an_ordinary_user_that_can_write_nothing_of_the_image(
    container: Container,
) -> None:
    container.wait_ready(120)
    first = psutil.Process(container.state["Pid"])
    family = [first, *first.children(recursive=True)]
    assert {process.uids().real for process in family} == {UID}
    assert any("/app/engine/bin" in " ".join(process.cmdline()) for process in family)
    for path in ("/x", "/home/bentoml/bento/x", "/app/engine/x", "/app/.venv/x"):
        assert "Read-only file system" in container.run("touch", path).stderr
    assert container.run("touch", "/tmp/x", "/var/lib/serving/x").returncode == 0


def test_the_gateways_environment_and_the_engines_are_apart(container: Container) -> None:
    for python, has, lacks in (
        ("/app/.venv/bin/python", "bentoml", "torch"),
        ("/app/engine/bin/python", "torch", "bentoml"),
    ):
        assert container.run(python, "-c", f"import {has}").returncode == 0
        assert "No module named" in container.run(python, "-c", f"import {lacks}").stderr


def test_the_image_has_the_wheels_that_pip_gives_here(container: Container) -> None:
    """Those of a CPU where pip is pointed at them, as for the demo's own engine."""
    ask = ("-c", "import torch; print(torch.__version__)")
    here = subprocess.run(
        [DEMO / ".engine/bin/python", *ask], capture_output=True, text=True, check=True
    )
    assert container.run("/app/engine/bin/python", *ask).stdout == here.stdout


def test_the_serving_command_works_inside(container: Container) -> None:
    assert "chat:1" in container.run("serving", "models", "list").stdout
    made = container.run("serving", "keys", "create", "ann")
    assert made.stdout.startswith("sk-"), made.stderr
    assert "ann" in container.run("serving", "keys", "list").stdout


def test_it_listens_on_every_address_by_default_and_says_what_it_writes_where(
    built: str,
) -> None:
    told = subprocess.run(
        ["buildah", "inspect", "--type=image", IMAGE], check=True, capture_output=True, text=True
    )
    config = json.loads(told.stdout)["Docker"]["config"]
    environment = dict(line.split("=", 1) for line in config["Env"])
    assert environment["BENTOML_HOST"] == "0.0.0.0"
    assert environment["BENTOML_HOME"] == "/var/lib/serving/bentoml"
    assert environment["SERVING_STATE"] == "/var/lib/serving/state"
    assert list(config["Volumes"]) == ["/var/lib/serving"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["Cmd"] == ["serve", "--timeout-graceful-shutdown", "5"]


def test_sigterm_lets_a_running_stream_finish_and_stops_in_time(container: Container) -> None:
    container.wait_ready(120)
    with chat(container, "Count to 30.") as stream:
        read = [next(stream) for _ in range(5)]
        container.terminate()
        asked = time.monotonic()
        read += stream
    assert text_of(read) == NUMBERS
    assert read[-1] == "[DONE]"
    assert container.wait(30) == 0
    assert time.monotonic() - asked < 30
