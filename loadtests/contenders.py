"""What is measured side by side: the bare engine, the gateway with everything on, and its peers.

All run at once, and all but the gateway, which starts its own, stand before the same engine. Peers
get an environment of their own and none of the caller's variables.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from environments.install import make, pins
from kept import bentoml
from processes import Tree
from relay import HOST, NotServing, fake_home, free_port, prepared, running, serve, wait_for

#: Keys, limits, ledger, log and metrics: all that a request of a paying user goes through.
SETTINGS = """
service: {{name: bench, state: {state}}}
engine: {{name: vllm, home: {home}, max_model_len: 100000}}
auth: {{mode: keys}}
limits: {{per_key: {quota}}}
models:
  chat: {{warmup: {{rounds: 1}}, limits: {quota}}}
"""
QUOTA = (
    "{requests_per_minute: 1000000000, tokens_per_minute: 1000000000000, "
    "tokens_per_day: 1000000000000, concurrent: 100000}"
)
GATEWAY = "gateway"
ENGINE = "bare engine"


@dataclass
class Contender:
    """A running server. `slow` is one that a hundred streams are too much for."""

    name: str
    version: str
    port: int
    model: str
    key: str
    tree: Tree
    slow: bool = False


@contextmanager
def contenders(project: Path, peers: Path, folder: Path) -> Iterator[list[Contender]]:
    """All that can be started here; says which cannot. Raises `NotServing` when it is the engine or
    the gateway."""
    home = fake_home(project, folder / "engine")
    with ExitStack() as stack:
        engine = stack.enter_context(bare_engine(project, home, folder))
        found = [engine, stack.enter_context(gateway(project, home, folder))]
        for name, start in PEERS.items():
            try:
                make(name, peers / name)
                found.append(stack.enter_context(start(peers / name, engine.port, folder)))
            except (NotServing, OSError, subprocess.CalledProcessError) as error:
                print(f"{name} is left out, it could not be installed or started: {error}")
        yield found


@contextmanager
def bare_engine(project: Path, home: Path, folder: Path) -> Iterator[Contender]:
    port = free_port()
    command = [str(home / "bin/vllm"), "serve", str(project / "demo_model"), "--host", HOST]
    command += ["--port", str(port), "--served-model-name", "model", "--max-model-len", "100000"]
    with running(command, folder / "engine.log", VLLM_API_KEY="") as process:
        wait_for(port, "/health", process)
        yield Contender(ENGINE, "scripted_engine.py", port, "model", "none", Tree(process.pid))


@contextmanager
def gateway(project: Path, home: Path, folder: Path) -> Iterator[Contender]:
    port = free_port()
    settings = SETTINGS.format(home=home, state=folder / "state", quota=QUOTA)
    environment = prepared(project, folder, settings)
    key = subprocess.run(
        [project / ".venv/bin/serving", "keys", "create", "bench"],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout.strip()
    with running(serve(project, port), folder / "gateway.log", **environment) as process:
        wait_for(port, "/readyz", process)
        tree = Tree(process.pid, without="scripted_engine.py")
        yield Contender(GATEWAY, f"BentoML {bentoml(project)}", port, "chat", key, tree)


@contextmanager
def litellm(environment: Path, engine: int, folder: Path) -> Iterator[Contender]:
    port, key = free_port(), "sk-" + secrets.token_urlsafe(32)
    parameters = {
        "model": "hosted_vllm/model",
        "api_base": f"http://{HOST}:{engine}/v1",
        "api_key": "none",
    }
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps(  # which is YAML too
            {
                "model_list": [{"model_name": "chat", "litellm_params": parameters}],
                "general_settings": {"master_key": key},
            }
        )
    )
    command = [str(environment / "bin/litellm"), "--config", str(config), "--host", HOST]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    log = folder / "litellm.log"
    with running(alone(command, folder, LITELLM_LOCAL_MODEL_COST_MAP="True"), log) as process:
        wait_for(port, "/health/liveliness", process)
        yield Contender("litellm", version("litellm"), port, "chat", key, Tree(process.pid), True)


@contextmanager
def router(name: str, command: list[str], engine: int, folder: Path) -> Iterator[Contender]:
    """The two in Rust are of one family, and take the same flags."""
    port = free_port()
    command += ["--host", HOST, "--port", str(port), "--worker-urls", f"http://{HOST}:{engine}"]
    command += ["--max-concurrent-requests", "4096", "--prometheus-port", str(free_port())]
    command += ["--prometheus-host", HOST]
    with running(alone(command, folder), folder / f"{name}.log") as process:
        wait_for(port, "/health", process)
        yield Contender(name, version(name), port, "model", "none", Tree(process.pid))


@contextmanager
def vllm_router(environment: Path, engine: int, folder: Path) -> Iterator[Contender]:
    with router("vllm-router", [str(environment / "bin/vllm-router")], engine, folder) as started:
        yield started


@contextmanager
def sglang_router(environment: Path, engine: int, folder: Path) -> Iterator[Contender]:
    command = [str(environment / "bin/python"), "-m", "sglang_router.launch_router"]
    with router("sglang-router", command, engine, folder) as started:
        yield started


PEERS = {"litellm": litellm, "vllm-router": vllm_router, "sglang-router": sglang_router}


def alone(command: list[str], folder: Path, **variables: str) -> list[str]:
    """The command with no variable but these: the caller's secrets are none of its business."""
    given = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", **variables}
    return ["env", "-i", *(f"{name}={value}" for name, value in given.items()), *command]


def version(peer: str) -> str:
    lines = pins(peer).read_text("utf-8").lower().splitlines()
    return next(line for line in lines if line.startswith(f"{peer}==")).partition("==")[2]
