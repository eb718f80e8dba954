"""How vLLM is started."""

from __future__ import annotations

from pathlib import Path

from serving.engines.base import Launch
from serving.engines.vllm import Vllm
from serving.settings import VllmEngine


def engine(**fields: object) -> Vllm:
    settings = VllmEngine.model_validate(
        {"name": "vllm", "max_model_len": 4096, "home": "/opt/engine", **fields}
    )
    return Vllm(settings, Path("/models/chat/3"))


def launch(folder: Path) -> Launch:
    return Launch("127.0.0.1", 1234, "the-secret-key", folder)


def test_the_command_serves_the_version_on_the_given_address(tmp_path: Path) -> None:
    assert engine().command(launch(tmp_path)) == [
        "/opt/engine/bin/vllm",
        "serve",
        "/models/chat/3",
        "--host",
        "127.0.0.1",
        "--port",
        "1234",
        "--served-model-name",
        "model",
        "--max-model-len",
        "4096",
    ]


def test_several_gpus_mean_tensor_parallelism_and_one_does_not(tmp_path: Path) -> None:
    command = engine(gpus=4).command(launch(tmp_path))
    assert command[-2:] == ["--tensor-parallel-size", "4"]
    assert "--tensor-parallel-size" not in engine(gpus=1).command(launch(tmp_path))


def test_the_users_arguments_come_last_so_that_they_win(tmp_path: Path) -> None:
    args = ["--max-model-len", "8"]
    assert engine(args=args, gpus=2).command(launch(tmp_path))[-2:] == args


def test_the_key_reaches_the_engine_by_environment_and_never_by_command_line(
    tmp_path: Path,
) -> None:
    vllm = engine()
    assert vllm.takes_key
    assert vllm.environment(launch(tmp_path))["VLLM_API_KEY"] == "the-secret-key"
    assert not any("the-secret-key" in part for part in vllm.command(launch(tmp_path)))
