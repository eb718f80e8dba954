"""state/routing.json: never half of it, never nonsense in force, nobody's change lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.runtime.routing_file import RevisionConflict, RoutingFile, RoutingFileError
from serving.runtime.wanted import Routing, Wanted


@pytest.fixture
def file(tmp_path: Path) -> RoutingFile:
    return RoutingFile(tmp_path / "state" / "routing.json")


def to(number: int) -> Any:
    def change(routing: Routing) -> Routing:
        wanted = Wanted(labels={"production": number})
        return routing.changed("chat", wanted, by="ann", what=f"to {number}")

    return change


def production(file: RoutingFile) -> int | None:
    return file.routing.of("chat").labels.get("production")


def written(number: int, revision: int = 0) -> str:
    labels = {"production": number}
    return json.dumps({"revision": revision, "models": {"chat": {"labels": labels}}})


def test_without_a_file_nothing_is_asked_for(file: RoutingFile) -> None:
    file.load()
    assert (file.routing, file.fault) == (Routing(), "")
    assert not file.path.exists()


def test_a_change_is_on_the_disk_and_another_reader_finds_it(file: RoutingFile) -> None:
    file.change(to(1))
    file.change(to(2))
    reader = RoutingFile(file.path)
    reader.load()
    assert reader.routing == file.routing
    assert (reader.routing.revision, production(reader)) == (2, 2)
    assert not file.refresh()


def test_a_change_from_another_revision_is_refused_and_nothing_is_written(
    file: RoutingFile,
) -> None:
    file.change(to(1))
    before = file.path.read_bytes()
    with pytest.raises(RevisionConflict, match="at revision 1"):
        file.change(to(2), revision=0)
    assert file.path.read_bytes() == before
    assert file.change(to(2), revision=1).revision == 2


def test_of_two_who_looked_at_the_same_revision_one_is_refused(file: RoutingFile) -> None:
    other = RoutingFile(file.path)
    file.change(to(1))
    other.refresh()
    file.change(to(2), revision=1)
    with pytest.raises(RevisionConflict):
        other.change(to(3), revision=1)
    assert production(other) == 2


def test_a_change_that_cannot_be_made_writes_nothing(file: RoutingFile) -> None:
    file.change(to(1))
    before = file.path.read_bytes()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        file.change(to(0))
    assert file.path.read_bytes() == before
    assert production(file) == 1


NONSENSE: dict[str, bytes] = {
    "nothing": b"",
    "half of it": b'{"models": {"chat":',
    "another shape": b"[1]",
    "a wrong type": b'{"models": {"chat": {"labels": {"production": "two"}}}}',
    "an unknown key": b'{"models": {"chat": {"weights": {}}}}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_leaves_the_last_good_state_in_force(file: RoutingFile, content: bytes) -> None:
    file.change(to(1))
    good = file.path.read_bytes()
    file.path.write_bytes(content)
    assert file.refresh()
    assert production(file) == 1
    assert str(file.path) in file.fault
    assert not file.refresh()  # told once
    with pytest.raises(RoutingFileError, match=r"routing\.json"):
        file.change(to(2))
    assert file.path.read_bytes() == content
    file.path.write_bytes(good.replace(b'"production": 1', b'"production": 2'))
    assert file.refresh()
    assert (production(file), file.fault) == (2, "")


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE)
def test_a_start_from_nonsense_is_no_start(file: RoutingFile, content: bytes) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    with pytest.raises(RoutingFileError, match=r"routing\.json"):
        file.load()


def test_a_file_that_is_taken_away_stays_in_force(file: RoutingFile) -> None:
    file.change(to(1))
    file.path.unlink()
    assert file.refresh()
    assert "is gone" in file.fault
    assert production(file) == 1


@pytest.mark.parametrize("revision", [0, 1, 2])
def test_who_edits_by_hand_need_not_count_and_everybody_sees_another_revision(
    file: RoutingFile, revision: int
) -> None:
    file.change(to(1))
    file.change(to(2))
    file.path.write_text(written(7, revision), "utf-8")
    assert file.refresh()
    assert (production(file), file.routing.revision) == (7, 3)
    with pytest.raises(RevisionConflict):
        file.change(to(8), revision=2)


def test_a_mount_that_swaps_its_links_is_followed(tmp_path: Path) -> None:
    """As a ConfigMap does: the file is a link into `..data`, a link that is replaced."""
    for name, number in (("old", 1), ("new", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "routing.json").write_text(written(number), "utf-8")
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "routing.json").symlink_to("..data/routing.json")
    file = RoutingFile(tmp_path / "routing.json")
    file.load()
    assert production(file) == 1
    (tmp_path / "..next").symlink_to("new")
    (tmp_path / "..next").replace(tmp_path / "..data")
    assert file.refresh()
    assert production(file) == 2


def test_where_nobody_may_write_a_change_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    file = RoutingFile(tmp_path / "state" / "routing.json")
    with pytest.raises(RoutingFileError, match="cannot be written"):
        file.change(to(1))


def test_a_read_only_file_is_changed_by_its_owner_alone(tmp_path: Path) -> None:
    file = RoutingFile(tmp_path / "routing.json")
    file.change(to(1))
    file.path.chmod(0o444)
    text = file.path.read_text()
    with pytest.raises(RoutingFileError, match=r"read-only.*change it where it comes from"):
        file.change(to(2))
    assert (file.path.read_text(), production(file)) == (text, 1)


#: Label number and revision go together, so that a mixture would show.
WRITER = """
import sys
from pathlib import Path
from serving.runtime.routing_file import RevisionConflict, RoutingFile
from serving.runtime.wanted import Wanted

def step(routing):
    wanted = Wanted(labels={"production": routing.revision + 1})
    return routing.changed("chat", wanted, by="a test", what="on")

file = RoutingFile(Path(sys.argv[1]))
file.load()
print("begun", flush=True)
left = int(sys.argv[2])
while left:
    file.refresh()
    try:
        file.change(step, revision=file.routing.revision)
        left -= 1
    except RevisionConflict:
        pass
"""


def writer(file: RoutingFile, changes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(file.path), str(changes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new_one(file: RoutingFile) -> None:
    seen = 0
    for _ in range(25):
        process = writer(file, 1_000_000)
        assert process.stdout is not None
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stdout.close()
        reader = RoutingFile(file.path)
        reader.load()
        assert reader.routing.revision >= seen
        assert production(reader) == (reader.routing.revision or None)
        seen = reader.routing.revision
    assert seen > 25
    assert set(os.listdir(file.path.parent)) <= {
        "routing.json",
        ".routing.json.new",
        ".routing.json.lock",
    }


def test_writers_at_the_same_time_lose_no_change(file: RoutingFile) -> None:
    writers = [writer(file, 50) for _ in range(3)]
    for process in writers:
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()
    file.load()
    assert (file.routing.revision, production(file)) == (150, 150)
