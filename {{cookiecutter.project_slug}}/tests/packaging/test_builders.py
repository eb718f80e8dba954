"""docker, buildah and podman: which one is taken, and what their failures mean. The programs here
are scripts that say what the real ones say."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.packaging.builders import Builder, find, run
from serving.packaging.contents import NotPacked

NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(folder: Path, name: str, *, says: str = "", status: int = 0) -> None:
    program = folder / name
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/{name}.log\necho "{says}" >&2\nexit {status}\n'
    )
    program.chmod(0o755)


def test_the_first_that_works_is_taken_docker_before_buildah_before_podman(programs: Path) -> None:
    put(programs, "podman")
    assert find(None) == Builder("podman")
    put(programs, "buildah")
    assert find(None) == Builder("buildah")
    put(programs, "docker")
    assert find(None) == Builder("docker")


def test_a_docker_without_its_daemon_is_passed_over(programs: Path) -> None:
    put(programs, "docker", says=NO_DAEMON, status=1)
    put(programs, "podman")
    assert find(None) == Builder("podman")


def test_none_at_all_is_a_sentence_that_says_what_to_install(programs: Path) -> None:
    with pytest.raises(NotPacked, match="install buildah or podman"):
        find(None)
    put(programs, "docker", says=NO_DAEMON, status=1)
    with pytest.raises(NotPacked, match="start Docker, or install"):
        find(None)


def test_the_one_that_was_asked_for_is_taken_or_its_fault_told(programs: Path) -> None:
    put(programs, "docker", says=NO_DAEMON, status=1)
    put(programs, "podman")
    assert find("podman") == Builder("podman")
    with pytest.raises(NotPacked, match=r"docker does not work here \(Cannot connect"):
        find("docker")
    with pytest.raises(NotPacked, match="buildah is not installed; install it"):
        find("buildah")


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("write /layer: no space left on device", "there is no space left to build the image"),
        (
            "pinging container registry docker.io: Get https://x/v2/: dial tcp: no such host",
            "a registry or package index cannot be reached",
        ),
        (
            "failed to resolve source metadata for docker.io/library/python: failed to do request",
            "a registry or package index cannot be reached",
        ),
        ("pull access denied for mine", "log in to it, or name another one in SERVING_BASE_IMAGE"),
        ("exec format error", "see above what podman says"),
    ],
)
def test_a_failure_is_one_sentence_that_says_what_to_do(
    programs: Path, capfd: pytest.CaptureFixture[str], says: str, told: str
) -> None:
    put(programs, "podman", says=says, status=125)
    with pytest.raises(NotPacked, match=told) as caught:
        run(["podman", "build"])
    assert "\n" not in str(caught.value)
    assert says in capfd.readouterr().err  # the whole story stays readable


@pytest.mark.parametrize("name", ["buildah", "podman"])
def test_the_format_with_a_health_check_is_asked_for_and_no_registry(
    programs: Path, name: str
) -> None:
    put(programs, name)
    builder = find(None)
    builder.build("empty", "Containerfile", "chat:1", {"BENTO_IMAGE": f"{builder.local}chat:x"})
    _, asked = (programs / f"{name}.log").read_text().splitlines()
    assert asked == (
        "build --build-arg=BENTO_IMAGE=localhost/chat:x --format=docker --pull=never "
        "--tag=chat:1 --file=Containerfile empty"
    )


def test_docker_is_asked_for_what_it_knows(programs: Path) -> None:
    put(programs, "docker")
    builder = find(None)
    builder.build("empty", "Containerfile", "chat:1", {"BENTO_IMAGE": f"{builder.local}chat:x"})
    _, asked = (programs / "docker.log").read_text().splitlines()
    assert asked == "build --build-arg=BENTO_IMAGE=chat:x --tag=chat:1 --file=Containerfile empty"
