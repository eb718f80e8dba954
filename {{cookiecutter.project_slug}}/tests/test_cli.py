"""`serving models ...`: what a person sees, and the exit status a script sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from serving import cli
from serving.runtime.checks import hash_file
from serving.runtime.store import ModelStore

PROJECT = Path(__file__).parents[1]


@dataclass
class Done:
    status: int
    out: str
    err: str


Serving = Callable[..., Done]
Told = Callable[..., str]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Serving:
    """The command line within this process: a process of its own takes most of a second."""
    monkeypatch.setattr(cli, "console", Console(width=200))

    def serving(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["serving", *map(str, args)])
        capsys.readouterr()
        status: object = None
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        if isinstance(status, str):  # what Python does with it at the end of a program
            return Done(1, out, f"{err}{status}\n")
        assert status is None or isinstance(status, int)
        return Done(status or 0, out, err)

    return serving


@pytest.fixture
def fine(serving: Serving) -> Told:
    def fine(*args: object) -> str:
        done = serving(*args)
        assert done.status == 0, done.err
        return done.out

    return fine


@pytest.fixture
def refused(serving: Serving) -> Told:
    def refused(*args: object) -> str:
        """The one sentence of a failure."""
        done = serving(*args)
        assert done.status == 1
        assert done.err.startswith("serving: ")
        assert done.err.count("\n") == 1, done.err
        return done.err

    return refused


@pytest.fixture
def imported(store_home: Path, model_folder: Path) -> ModelStore:
    store = ModelStore(store_home)
    store.add("chat", model_folder, "here")
    return store


def test_an_import_shows_its_progress_in_a_terminal(
    serving: Serving, store_home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "errors", Console(stderr=True, force_terminal=True, width=200))
    done = serving("models", "import", "chat", model_folder)
    assert f"chat from {model_folder}" in done.err
    assert "Imported chat:1 (" in done.out


def test_an_import_says_which_version_it_made(
    fine: Told, store_home: Path, model_folder: Path
) -> None:
    assert "Imported chat:1 (" in fine("models", "import", "chat", model_folder)
    assert "Imported chat:2 (" in fine("models", "import", "chat", model_folder)
    assert ModelStore(store_home).latest("chat").source == str(model_folder)


def test_import_if_missing_leaves_what_is_there(
    fine: Told, imported: ModelStore, model_folder: Path
) -> None:
    assert "chat:1 is there already" in fine(
        "models", "import", "chat", model_folder, "--if-missing"
    )
    assert len(imported.versions()) == 1
    assert "Imported talk:1" in fine("models", "import", "talk", model_folder, "--if-missing")


def test_list_shows_all_versions_or_those_of_one_model(
    fine: Told, imported: ModelStore, model_folder: Path
) -> None:
    imported.add("talk", model_folder, "hf:org/tiny@abc")
    listed = fine("models", "list")
    assert "chat:1" in listed
    assert "hf:org/tiny@abc" in listed
    assert "chat:1" not in fine("models", "list", "talk")


def test_an_empty_store_says_how_to_fill_it(fine: Told, store_home: Path) -> None:
    assert "serving models import NAME SOURCE" in fine("models", "list")


def test_show_names_the_folder_and_every_file_with_its_hash(
    fine: Told, imported: ModelStore, model_folder: Path
) -> None:
    shown = fine("models", "show", "chat:1")
    assert str(imported.get("chat", 1).path) in shown
    for path in model_folder.iterdir():
        assert path.name in shown
        assert hash_file(path) in shown


def test_verify_reads_everything_again_and_names_what_changed(
    fine: Told, refused: Told, imported: ModelStore
) -> None:
    assert "chat:1 is as it was imported" in fine("models", "verify", "chat:1")
    config = imported.get("chat", 1).path / "config.json"
    before = config.stat()
    config.write_bytes(config.read_bytes().replace(b"llama", b"xxxxx"))
    os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "config.json was changed after its import" in refused("models", "verify", "chat:1")


def test_delete_takes_one_version_and_refuses_one_in_use(
    fine: Told, refused: Told, imported: ModelStore, model_folder: Path
) -> None:
    imported.add("chat", model_folder, "here")
    with imported.in_use(imported.get("chat", 2)):
        assert "chat:2 is in use by a running service" in refused("models", "delete", "chat:2")
    assert "Deleted chat:1." in fine("models", "delete", "chat:1")
    assert [version.tag for version in imported.versions()] == ["chat:2"]


@pytest.mark.parametrize("command", ["show", "verify", "delete"])
@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("chat:7", "chat:7 is not in the model store"),
        ("nobody:1", "nobody:1 is not in the model store"),
        ("chat", "write NAME:NUMBER"),
        ("chat:latest", "write NAME:NUMBER"),
        ("../chat:1", "write NAME:NUMBER"),
        ("chat:01", "write NAME:NUMBER"),
        ("chat:" + "9" * 5000, "write NAME:NUMBER"),
    ],
)
def test_a_version_that_is_not_there_is_one_sentence(
    refused: Told, imported: ModelStore, command: str, tag: str, told: str
) -> None:
    assert told in refused("models", command, tag)
    assert len(imported.versions()) == 1


@pytest.mark.parametrize(
    ("name", "missing", "told"),
    [
        ("chat", "model.safetensors", "has no .safetensors file"),
        ("chat", "tokenizer.json", "has no tokenizer"),
        ("chat", "config.json", "has no config.json"),
        ("My Chat", None, "cannot name a model"),
        ("chat:3", None, "cannot name a model"),
    ],
)
def test_a_refused_import_is_one_sentence_and_leaves_no_version(
    refused: Told, store_home: Path, model_folder: Path, name: str, missing: str | None, told: str
) -> None:
    if missing:
        (model_folder / missing).unlink()
    assert told in refused("models", "import", name, model_folder)
    assert ModelStore(store_home).versions() == []


def test_a_source_that_is_nowhere_is_one_sentence(refused: Told, store_home: Path) -> None:
    assert "neither a folder nor" in refused("models", "import", "chat", "./nowhere")


def test_a_store_that_cannot_be_written_is_one_sentence(
    refused: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    (tmp_path / "serving").write_text("a file in the way", "utf-8")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    assert "serving: " in refused("models", "import", "chat", model_folder)


@pytest.mark.parametrize("args", [("models", "improt"), ("models", "import"), ("--no-such",)])
def test_a_wrong_command_line_is_told_by_usage_and_status_two(
    store_home: Path, serving: Serving, args: tuple[str, ...]
) -> None:
    done = serving(*args)
    assert done.status == 2
    assert "Usage" in done.err
    assert "Traceback" not in done.err


def test_a_process_of_its_own_imports_and_fails_in_the_same_way(
    store_home: Path, model_folder: Path
) -> None:
    def run(source: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "serving.cli", "models", "import", "chat", source],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            check=False,
        )

    done = run(model_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Imported chat:1" in done.stdout
    (model_folder / "tokenizer.json").unlink()
    failed = run(model_folder)
    assert failed.returncode == 1
    assert "Imported" not in failed.stdout
    assert failed.stderr.startswith("serving: ")
    assert failed.stderr.count("\n") == 1


def copy_a_file(folder: Path) -> None:
    shutil.copyfile(folder / "from/weights", "/dev/full")


def copy_a_tree(folder: Path) -> None:
    (folder / "to").mkdir()
    (folder / "to/weights").symlink_to("/dev/full")
    shutil.copytree(folder / "from", folder / "to", dirs_exist_ok=True)


def write(_: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("work", [copy_a_file, copy_a_tree, write])
def test_a_full_disk_is_one_sentence(
    work: Callable[[Path], None], serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/weights").write_bytes(b"x" * 100)
    monkeypatch.setattr(cli, "app", lambda: work(tmp_path))
    done = serving("bento")
    assert done.status == 1
    assert re.fullmatch(r"serving: no space is left for \S+.*: free some .*TMPDIR\.\n", done.err)
    assert str(tmp_path / "from") not in done.err
