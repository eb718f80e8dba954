"""`serving engine install`: one real virtual environment, and many quick ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import cli, cli_engine
from serving.environments import Environment, NotInstalled, environments
from serving.settings import load_settings

ENGINE = {"name": "transformers", "max_model_len": 1}
#: An interpreter whose environments hold but itself, and whose pip fails on the pin `broken`.
PYTHON = """\
#!/bin/sh
for last; do :; done
case "$*" in
  "-m venv "*) mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  "-m pip "*) ! grep -q broken "$last" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose engines have no requirements."""
    (tmp_path / "engines").mkdir()
    for engine in ("transformers", "vllm"):
        (tmp_path / "engines" / f"{engine}.txt").write_text("# nothing\n", "utf-8")
    monkeypatch.setattr(cli_engine, "PROJECT", tmp_path)
    monkeypatch.delenv("SERVING_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    configure(tmp_path)
    return tmp_path


def configure(project: Path, engine: dict[str, Any] = ENGINE, **chat: Any) -> None:
    document = {"service": {"name": "llm"}, "engine": engine, "models": {"chat": chat}}
    (project / "serving.yaml").write_text(yaml.safe_dump(document), "utf-8")


@pytest.fixture
def python(project: Path) -> str:
    program = project / "python"
    program.write_text(PYTHON, "utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def environment(project: Path) -> Environment:
    pins = project / "engines" / "transformers.txt"
    return Environment("transformers", project / ".engine", pins)


def install(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", "engine", "install", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, ended.value.code


def refused(environment: Environment, python: str) -> str:
    with pytest.raises(NotInstalled) as caught:
        environment.install(python)
    return str(caught.value)


def stamps(home: Path) -> list[str]:
    return [path.name for path in home.glob(".installed*")]


def test_an_environment_is_a_virtual_one_with_the_pins_in_it_and_made_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    asked = [str(project / ".engine" / "bin" / "python"), "-c", "import sys; print(sys.prefix)"]
    assert subprocess.check_output(asked, text=True).strip() == str(project / ".engine")
    assert "Installing the engine transformers into .engine\n" in capfd.readouterr().out
    install(monkeypatch)
    assert capfd.readouterr() == ("", "")


def test_each_environment_that_serving_yaml_names_is_made(
    project: Path, python: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure(project, engines={2: {"name": "vllm", "max_model_len": 1, "home": "envs/vllm"}})
    install(monkeypatch, "--python", python)
    assert capfd.readouterr().out.splitlines() == [
        "Installing the engine transformers into .engine",
        "Installing the engine vllm into envs/vllm",
    ]
    assert (project / "envs" / "vllm" / "bin" / "python").exists()


def test_environments_are_named_by_home_and_a_remote_engine_has_none(project: Path) -> None:
    remote = {"name": "openai_compatible", "url": "http://a/v1", "model": "m", "max_model_len": 1}
    configure(project, engines={1: remote, 2: ENGINE, 3: {**ENGINE, "home": "other"}})
    settings = load_settings(project / "serving.yaml")
    pins = project / "engines"
    assert environments(settings, pins) == [
        Environment("transformers", project / ".engine", pins / "transformers.txt"),
        Environment("transformers", project / "other", pins / "transformers.txt"),
    ]


def test_changed_pins_make_the_environment_again(environment: Environment, python: str) -> None:
    assert environment.install(python)
    left = environment.home / "left"
    left.touch()
    assert not environment.install(python)
    environment.pins.write_text("# still nothing\n", "utf-8")
    assert environment.install(python)
    assert not left.exists()
    assert stamps(environment.home) == [environment.stamp.name]


def test_another_engine_in_the_same_home_makes_it_again(
    project: Path, environment: Environment, python: str
) -> None:
    environment.install(python)
    vllm = Environment("vllm", environment.home, project / "engines" / "vllm.txt")
    assert vllm.install(python)
    assert stamps(environment.home) == [vllm.stamp.name]


def test_an_environment_left_half_made_is_made_again(environment: Environment, python: str) -> None:
    environment.pins.write_text("broken\n", "utf-8")
    told = refused(environment, python)
    assert "could not be installed: see above; then delete .engine and run make install" in told
    assert stamps(environment.home) == [".installed-in-part"]
    environment.pins.write_text("# nothing\n", "utf-8")
    assert environment.install(python)


def test_a_folder_that_was_not_made_for_an_engine_is_left_alone(
    environment: Environment, python: str
) -> None:
    environment.home.mkdir()
    precious = environment.home / "thesis.tex"
    precious.touch()
    (environment.home / ".installed-3115521263").touch()  # as the gateway's own environment has
    assert ".engine is there, but was not made for an engine" in refused(environment, python)
    assert precious.exists()


def test_an_empty_folder_may_become_an_environment(environment: Environment, python: str) -> None:
    environment.home.mkdir()
    assert environment.install(python)


def test_what_links_point_to_is_not_cleared(
    project: Path, environment: Environment, python: str
) -> None:
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "weights").touch()
    environment.home.mkdir()
    (environment.home / ".installed-in-part").touch()
    (environment.home / "link").symlink_to(project / "elsewhere")
    assert environment.install(python)
    assert (project / "elsewhere" / "weights").exists()


def test_an_engine_without_pins_is_told_the_engines_that_have_them(
    environment: Environment, python: str
) -> None:
    environment.pins.unlink()
    told = "names the engine 'transformers', which has no engines/transformers.txt: choose one of"
    assert f"{told} vllm." in refused(environment, python)


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_an_interpreter_that_is_none_or_too_old_is_told_how_to_name_another(
    environment: Environment, python: str
) -> None:
    told = "Python 3.11 or newer is needed: name one with make install PYTHON=/path/to/python3.12."
    assert refused(environment, python) == told
    assert not environment.home.exists()


def test_an_interpreter_without_venv_is_told_the_package_it_comes_in(
    project: Path, environment: Environment
) -> None:
    bare = project / "bare-python"
    bare.write_text('#!/bin/sh\n[ "$1" = -c ]\n', "utf-8")
    bare.chmod(0o755)
    told = (
        ".engine could not be made: see above; Debian and Ubuntu need their python3-venv package."
    )
    assert refused(environment, str(bare)) == told


def test_a_wrong_serving_yaml_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(project, engine={**ENGINE, "gpu": 1})
    monkeypatch.setattr(sys, "argv", ["serving", "engine", "install"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == (
        "serving: serving.yaml: engine.gpu is not a known key; did you mean gpus?"
    )


def test_serving_config_names_another_serving_yaml(
    project: Path, python: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "other").mkdir()
    configure(project / "other")
    monkeypatch.setenv("SERVING_CONFIG", "other/serving.yaml")
    install(monkeypatch, "--python", python)
    assert "into other/.engine" in capfd.readouterr().out
