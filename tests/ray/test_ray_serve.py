"""deploy/ray for real: a Ray cluster of this machine alone, two replicas, a scripted engine.

The tests share the cluster and go on from where the one before left it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from baking import ROOT, Template
from ray.cluster import Cluster, cluster
from served import eventually
from streams import Crowd

START = 60  # seconds: two replicas, on two busy cores
CHAT = "/v1/chat/completions"


@dataclass
class Deployed:
    """A cluster, and the config that it was last sent."""

    cluster: Cluster
    project: Path
    folder: Path
    config: dict[str, Any]

    @property
    def gateway(self) -> dict[str, Any]:
        """The deployment in the config."""
        gateway: dict[str, Any] = self.config["applications"][0]["deployments"][0]
        return gateway

    @property
    def variables(self) -> dict[str, str]:
        variables: dict[str, str] = self.config["applications"][0]["runtime_env"]["env_vars"]
        return variables

    def deploy(self) -> None:
        self.cluster.deploy(self.config)

    def replaced(self, old: set[str]) -> Callable[[], bool]:
        """Tells when two others run in the place of those."""
        return lambda: self.cluster.settled() and old.isdisjoint(self.cluster.replicas())

    def settings(self, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        """deploy/ray/serving.yaml for this machine, and with that change."""
        settings = yaml.safe_load((self.project / "deploy/ray/serving.yaml").read_text("utf-8"))
        settings["engine"]["home"] = str(self.folder / "engine")
        settings["auth"] = {"mode": "open_to_everybody"}
        del settings["database"], settings["limits"]  # no PostgreSQL, no Redis
        change(settings)
        file = self.folder / name
        file.write_text(yaml.safe_dump(settings), "utf-8")
        return file

    def owner(self) -> str:
        """The name of the release that answers."""
        models = httpx.get(f"{self.cluster.url}/v1/models", timeout=10).json()
        return str(models["data"][0]["owned_by"])


@pytest.fixture(scope="module")
def programs() -> Path:
    """The environment of `make ray`."""
    programs = ROOT / "build/ray/bin"
    if not (programs / "serve").is_file():
        pytest.fail(f"{programs} has no serve: run make test-ray, which installs it", pytrace=False)
    return programs


@pytest.fixture(scope="module")
def deployed(
    template: Template,
    programs: Path,
    demo_environment: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployed]:
    """Two versions of the demo in the store, the second in production as it is the newest."""
    folder = tmp_path_factory.mktemp("ray")
    project = template.bake(folder / "projects", deployment="ray", model_source="demo")
    python = demo_environment / "bin/python"
    store = {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}

    def run(*words: str, path: Path) -> None:
        environment = {**os.environ, **store, "PYTHONPATH": str(path)}
        subprocess.run([python, *words], cwd=project, env=environment, check=True)

    engine = folder / "engine"
    install = f"import pathlib, scripted_engine as s; s.install(pathlib.Path({str(engine)!r}))"
    config = yaml.safe_load((project / "deploy/ray/serve.yaml").read_text("utf-8"))
    with cluster(programs, {**store, "SERVING_STATE": str(folder / "state")}) as running:
        run("-c", install, path=project / "tests")
        for _ in range(2):
            run("-m", "serving.cli", "models", "import", "chat", "demo", path=project)
        running.wait_ready()
        made = Deployed(running, project, folder, config)
        config["http_options"] |= {"host": "127.0.0.1", "port": running.port}
        file = made.settings("serving.yaml", lambda _: None)
        made.variables.update({"PYTHONPATH": str(project), "SERVING_CONFIG": str(file)})
        made.deploy()
        eventually(running.settled, "two replicas", START)
        yield made


def script(**fields: Any) -> str:
    """What the scripted engine does as told; its own module needs httptools, which is not here."""
    return "script:" + json.dumps(fields)


def crowd(deployed: Deployed, **fields: Any) -> Crowd:
    message = {"role": "user", "content": script(**fields)}
    return Crowd(deployed.cluster.url, {"model": "chat", "messages": [message]})


def assert_whole(crowd: Crowd) -> None:
    """Every stream got a 200 and all it asked for."""
    assert len(crowd.told) > 10
    broken = [told for told in crowd.told if told.status != 200 or not told.done or told.error]
    assert broken == []


async def stream(client: httpx.AsyncClient, name: str) -> bool:
    """One of five seconds; whether it came to its end."""
    message = {"role": "user", "content": script(tokens=50, delay_ms=100)}
    body = {"model": "chat", "stream": True, "messages": [message]}
    try:
        async with client.stream("POST", CHAT, json=body, headers={"x-request-id": name}) as reply:
            lines = [line async for line in reply.aiter_lines()]
    except httpx.HTTPError:
        return False
    return "data: [DONE]" in lines


def test_two_replicas_answer_each_in_a_folder_of_its_own(deployed: Deployed) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(base_url=deployed.cluster.url, timeout=30) as client:
            assert all(await asyncio.gather(*(stream(client, f"first-{n}") for n in range(8))))

    asyncio.run(ask())
    pids = [replica["pid"] for replica in deployed.cluster.replicas().values()]
    answered = [len(deployed.cluster.said(pid)) for pid in pids]
    assert sum(answered) == 8
    assert all(answered)
    homes = sorted((deployed.folder / "state").glob("*/*"))
    assert [home.name for home in homes] == ["0", "1"]
    assert all((home / "logs/chat-2.log").is_file() for home in homes)
    for home in homes:
        assert (home / "serving.db").is_file()


def test_a_client_gets_one_request_id(deployed: Deployed) -> None:
    reply = httpx.get(f"{deployed.cluster.url}/v1/models", headers={"x-request-id": "mine"})
    assert reply.headers.get_list("x-request-id") == ["mine"]


def test_streams_on_one_replica_outlive_the_other_which_comes_back(deployed: Deployed) -> None:
    before = deployed.cluster.replicas()
    (lost, dead), (kept, alive) = before.items()

    async def kill() -> dict[str, bool]:
        async with httpx.AsyncClient(base_url=deployed.cluster.url, timeout=30) as client:
            names = [f"second-{number}" for number in range(8)]
            tasks = [asyncio.create_task(stream(client, name)) for name in names]
            await asyncio.sleep(2)
            psutil.Process(dead["pid"]).kill()
            return dict(zip(names, await asyncio.gather(*tasks), strict=True))

    whole = {name for name, done in asyncio.run(kill()).items() if done}
    assert 0 < len(whole) < 8
    said = {line["request_id"] for line in deployed.cluster.said(alive["pid"])}
    assert {name for name in said if name.startswith("second-")} == whole
    eventually(deployed.replaced({lost}), "a replica in its place", START)
    assert kept in deployed.cluster.replicas()
    assert {home.name for home in (deployed.folder / "state").glob("*/*")} == {"0", "1"}


def test_replicas_follow_the_routing_without_a_restart_or_a_broken_stream(
    deployed: Deployed,
) -> None:
    before = set(deployed.cluster.replicas())
    deployed.gateway["user_config"] = {
        "routing": {"models": {"chat": {"labels": {"production": 1}}}}
    }
    asked = crowd(deployed, tokens=10, delay_ms=20)

    async def change() -> None:
        async with asked.asking(always=4, per_second=5):
            await asyncio.to_thread(deployed.deploy)
            await asyncio.sleep(4)

    asyncio.run(change())
    assert_whole(asked)
    assert [told.version for told in asked.told[:4]] == ["chat:2"] * 4
    assert [told.version for told in asked.told[-10:]] == ["chat:1"] * 10
    assert set(deployed.cluster.replicas()) == before
    refused = httpx.put(
        f"{deployed.cluster.url}/admin/models/chat/labels/production", json={"version": 1}
    )
    assert refused.status_code == 409
    assert "change it where it comes from" in refused.json()["error"]["message"]


def test_a_release_rolls_without_a_failed_request(deployed: Deployed) -> None:
    old = deployed.cluster.replicas()
    release = deployed.folder / "release-2"
    shutil.copytree(deployed.project, release, ignore=shutil.ignore_patterns(".git"))
    file = deployed.settings("serving-2.yaml", lambda s: s["service"].update(name="release-2"))
    deployed.variables.update({"PYTHONPATH": str(release), "SERVING_CONFIG": str(file)})
    asked = crowd(deployed, tokens=40, delay_ms=50)

    async def roll() -> None:
        async with asked.asking(always=4, per_second=4):
            await asyncio.to_thread(deployed.deploy)
            replaced = deployed.replaced(set(old))
            await asyncio.to_thread(eventually, replaced, "two replicas of the release", 2 * START)

    asyncio.run(roll())
    assert_whole(asked)
    assert deployed.owner() == "release-2"
    # Labels hold in new replicas too, and before their first answer.
    assert {told.version for told in asked.told} == {"chat:1"}
    engines = [p for p in psutil.process_iter(["cmdline"]) if is_engine(p, deployed.folder)]
    assert len(engines) == 2


def test_a_release_that_cannot_start_leaves_the_one_before_and_says_why(
    deployed: Deployed,
) -> None:
    before = set(deployed.cluster.replicas())
    good = copy.deepcopy(deployed.config)
    file = deployed.settings("serving-3.yaml", lambda s: s["engine"].update(nmae="vllm"))
    deployed.variables.update({"SERVING_CONFIG": str(file)})
    asked = crowd(deployed, tokens=5, delay_ms=20)

    async def fail() -> None:
        async with asked.asking(always=1, per_second=2):
            await asyncio.to_thread(deployed.deploy)
            await asyncio.to_thread(eventually, failed, "the failure", START)

    def failed() -> bool:
        return deployed.cluster.application().get("status") == "DEPLOY_FAILED"

    asyncio.run(fail())
    assert_whole(asked)
    assert "serving-3.yaml: engine.nmae" in str(deployed.cluster.application())
    assert before <= set(deployed.cluster.replicas())
    deployed.config = good  # the way back
    deployed.deploy()
    eventually(deployed.cluster.settled, "the release before", START)
    assert deployed.owner() == "release-2"


def is_engine(process: psutil.Process, folder: Path) -> bool:
    """Whether it is one of ours: a scripted engine whose model is in that folder."""
    line = " ".join(process.info["cmdline"] or [])
    return "scripted_engine.py" in line and str(folder) in line
