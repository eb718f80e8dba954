"""Makes the environment of one peer of the gateway, for the benchmark beside it.

    python loadtests/environments/install.py {litellm,vllm-router,sglang-router} FOLDER

The pins beside this file are whole lists. A second call with unchanged pins does nothing; a
half-made environment is made again.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
STAMP = ".made-from"
PEERS = ("litellm", "vllm-router", "sglang-router")


def pins(peer: str) -> Path:
    return HERE / f"{peer}.txt"


def make(peer: str, folder: Path) -> None:
    """Does nothing when it is made from these pins already. Raises OSError or CalledProcessError
    when it cannot be made."""
    wanted = hashlib.sha256(pins(peer).read_bytes()).hexdigest()
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise FileExistsError(f"{folder} is there and no virtual environment: name another folder")
    print(f"Installing {peer} into {folder}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "-qq", "--no-deps", "--requirement", str(pins(peer))], check=True)
    stamp.write_text(wanted, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the environment of one peer.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path, help="made, or made again when the pins changed")
    given = parser.parse_args()
    try:
        make(given.peer, given.folder)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"{given.peer} could not be installed: {error}; see above, then again.")


if __name__ == "__main__":
    main()
