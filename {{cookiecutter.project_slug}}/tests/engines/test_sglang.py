"""How SGLang is started."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import yaml

from serving.engines.base import Launch
from serving.engines.sglang import Sglang
from serving.settings import SglangEngine


def engine(**fields: object) -> Sglang:
    settings = SglangEngine.model_validate(
        {"name": "sglang", "max_model_len": 4096, "home": "/opt/engine", **fields}
    )
    return Sglang(settings, Path("/models/chat/3"))


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch("127.0.0.1", 1234, "the-secret-key", tmp_path)


def test_the_command_serves_the_version_on_the_given_address(launch: Launch) -> None:
    assert engine(args=["--mem-fraction-static", "0.5"], gpus=2).command(launch) == [
        "/opt/engine/bin/python",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "/models/chat/3",
        "--host",
        "127.0.0.1",
        "--port",
        "1234",
        "--served-model-name",
        "model",
        "--context-length",
        "4096",
        "--config",
        str(launch.folder / "sglang.yaml"),
        "--tp-size",
        "2",
        "--mem-fraction-static",
        "0.5",
    ]


def test_the_key_lies_in_a_file_that_only_this_user_can_read(launch: Launch) -> None:
    before = os.umask(0)
    try:
        engine().prepare(launch)
    finally:
        os.umask(before)
    file = launch.folder / "sglang.yaml"
    assert yaml.safe_load(file.read_text("utf-8")) == {"api-key": "the-secret-key"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["123456", "-abc", "null", "1e5", "_-0", "yes"])
def test_a_key_that_looks_like_something_else_in_yaml_is_still_that_text(
    tmp_path: Path, key: str
) -> None:
    engine().prepare(Launch("127.0.0.1", 1, key, tmp_path))
    assert yaml.safe_load((tmp_path / "sglang.yaml").read_text("utf-8"))["api-key"] == key


def test_the_key_stands_neither_in_the_command_nor_in_the_environment(launch: Launch) -> None:
    sglang = engine()
    assert sglang.takes_key
    told = [*sglang.command(launch), *sglang.environment(launch).values()]
    assert not any("the-secret-key" in part for part in told)
