"""A base image from Debian's own packages, because this machine may reach no registry: what
debootstrap installs, with Python, pip and this machine's certificates."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

SUITE = "bookworm"
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_ENVIRONMENT = {
    "SSL_CERT_FILE": _CERTIFICATES,
    "PIP_CERT": _CERTIFICATES,
    # BentoML installs its uv beside Debian's own packages.
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
}


def base_image(folder: Path) -> str:
    """The image's name; made in about two minutes, unless an earlier run has."""
    made_by = hashlib.sha256(Path(__file__).read_bytes() + _certificates()).hexdigest()[:12]
    name = f"localhost/gateway-test-base:{made_by}"
    if subprocess.run(["buildah", "inspect", name], capture_output=True, check=False).returncode:
        _make(folder / "rootfs", name)
    return name


def _make(rootfs: Path, name: str) -> None:
    if rootfs.exists():
        shutil.rmtree(rootfs)
    options = ["--variant=minbase", f"--include={_PACKAGES}"]
    _run("debootstrap", *options, SUITE, str(rootfs), _mirror())
    (rootfs / _CERTIFICATES.lstrip("/")).write_bytes(_certificates())
    container = _run("buildah", "from", "scratch")
    try:
        mounted = _run("buildah", "mount", container)
        _run("cp", "--archive", f"{rootfs}/.", mounted)  # anything else loses owners or modes
        _run("buildah", "umount", container)
        for variable, value in _ENVIRONMENT.items():
            _run("buildah", "config", "--env", f"{variable}={value}", container)
        _run("buildah", "commit", "--quiet", container, name)
    finally:
        _run("buildah", "rm", container)
        shutil.rmtree(rootfs)


def _certificates() -> bytes:
    return Path(_CERTIFICATES).read_bytes()


def _mirror() -> str:
    """Where this machine's own Debian packages come from."""
    for source in sorted(Path("/etc/apt/sources.list.d").glob("debian.sources")):
        if found := re.search(r"^URIs:\s*(\S+)", source.read_text(), re.MULTILINE):
            return found[1]
    return "http://deb.debian.org/debian"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout.strip()
