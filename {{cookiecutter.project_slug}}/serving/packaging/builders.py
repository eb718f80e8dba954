"""The programs that build images, docker, buildah and podman, and what they mean when they fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from serving.packaging.contents import NotPacked

Name = Literal["docker", "buildah", "podman"]

_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
#: Of registries, in the words of Go's network library and of the three programs, and of pip.
_UNREACHABLE = re.compile(
    r"dial tcp|no such host|i/o timeout|TLS handshake timeout|connection refused"
    r"|pinging container registry|failed to resolve source metadata|failed to do request"
    r"|Temporary failure in name resolution|Failed to establish a new connection"
    r"|certificate signed by unknown authority|x509:",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"pull access denied|manifest unknown|unauthorized|requested access to the resource is denied",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Builder:
    """One of the programs. `local` is how it names an image that is only on this machine."""

    name: Name

    @property
    def local(self) -> str:
        return "" if self.name == "docker" else "localhost/"

    def build(self, folder: str, file: str, tag: str, arguments: Mapping[str, str]) -> None:
        """Raises `NotPacked`."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        if self.name != "docker":  # in the other format, OCI's, there is no health check
            options += ["--format=docker", "--pull=never"]
        run([self.name, "build", *options, f"--tag={tag}", f"--file={file}", folder])

    def size(self, tag: str) -> int:
        """Bytes of the image on this machine, all layers together. Raises `NotPacked`."""
        if self.name == "buildah":
            shown = _told(["buildah", "images", "--json", tag])
            return _bytes(re.search(r'"size": "([^"]+)"', shown))
        return int(_told([self.name, "image", "inspect", "--format={{.Size}}", tag]))


def find(wanted: Name | None) -> Builder:
    """The wanted program, or the first that works. Raises `NotPacked`."""
    for name in [wanted] if wanted else get_args(Name):
        if shutil.which(name) is None:
            continue
        # A docker without its daemon, as in many a container, builds nothing.
        info = subprocess.run([name, "info"], capture_output=True, text=True, check=False)
        if info.returncode == 0:
            return Builder(name)
        if wanted:
            said = (info.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise NotPacked(f"{name} does not work here ({said}); start it, or use another one.")
    if wanted:
        raise NotPacked(f"{wanted} is not installed; install it, or leave --backend out.")
    raise NotPacked(
        "no program that builds images works here; start Docker, or install buildah or podman "
        "(Debian and Ubuntu: apt install buildah)."
    )


def run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs it and shows what it says, on stderr. Raises `NotPacked` with what to do."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        within = False
        for line in process.stdout:
            lines.append(line)
            # BentoML's own frames, around what the builder said, tell nobody anything.
            within = line.startswith("Traceback (") or (within and line.startswith(" "))
            if not within:
                sys.stderr.write(line)
    if process.returncode != 0:
        raise NotPacked(_advice("".join(lines), command[0]))


def _advice(text: str, program: str) -> str:
    if _NO_SPACE.search(text):
        return (
            "there is no space left to build the image: free some where its layers are kept "
            "(docker system prune, podman system prune, buildah prune), then try again."
        )
    if _REFUSED.search(text):
        return (
            "the registry does not give the base image: log in to it, or name another one in "
            "SERVING_BASE_IMAGE."
        )
    if _UNREACHABLE.search(text):
        return (
            "a registry or package index cannot be reached: see above; connect to it, or name a "
            "base image that is here in SERVING_BASE_IMAGE and point pip at your own index."
        )
    return f"the image could not be built: see above what {program} says."


def _told(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotPacked(_advice(done.stderr, command[0]))
    return done.stdout.strip()


def _bytes(found: re.Match[str] | None) -> int:
    number, unit = (found[1] if found else "0 B").split()
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])
