"""Which model folders are refused, and how a change after the import is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from serving.runtime import checks
from serving.runtime.checks import FileRecord, ModelRefused, VerifiedCache, wanted_files


def taken(folder: Path, *, allow_pickle: bool = False) -> set[str]:
    return {path.as_posix() for path in wanted_files(folder, allow_pickle=allow_pickle)}


def test_a_whole_folder_is_taken_without_what_no_engine_needs(model_folder: Path) -> None:
    whole = taken(model_folder)
    for stray in ("modeling.py", "model.onnx", "pytorch_model.bin", ".hidden.json"):
        (model_folder / stray).write_bytes(b"x")
    (model_folder / ".cache").mkdir()
    (model_folder / ".cache" / "x.json").write_text("{}", "utf-8")
    assert taken(model_folder) == whole
    assert "model.safetensors" in whole


def test_pickles_are_taken_only_when_they_are_trusted(model_folder: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" not in taken(model_folder)
    assert "pytorch_model.bin" in taken(model_folder, allow_pickle=True)


def test_a_folder_without_config_is_refused(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    with pytest.raises(ModelRefused, match=r"has no config\.json"):
        taken(model_folder)


def test_a_folder_without_weights_is_refused_with_the_way_to_make_them(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(ModelRefused, match=r"no \.safetensors file; export") as caught:
        taken(model_folder)
    assert str(model_folder) in str(caught.value)


def test_a_folder_of_pickles_is_refused_with_both_ways_out(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="convert them to safetensors") as caught:
        taken(model_folder)
    assert "--allow-pickle" in str(caught.value)
    assert "pytorch_model.bin" in taken(model_folder, allow_pickle=True)


def test_a_folder_without_tokenizer_is_refused(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelRefused, match="no tokenizer"):
        taken(model_folder)


@pytest.mark.parametrize("size", [0, 4, 40])
def test_weights_that_break_off_are_refused_by_name(model_folder: Path, size: int) -> None:
    os.truncate(model_folder / "model.safetensors", size)
    with pytest.raises(ModelRefused, match=r"model\.safetensors is no whole safetensors file"):
        taken(model_folder)


def test_weights_that_lack_their_last_byte_are_refused(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(ModelRefused, match="no whole safetensors file"):
        taken(model_folder)


def shard(folder: Path, *named: str) -> None:
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(named)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def test_a_shard_that_the_index_names_must_be_there(model_folder: Path) -> None:
    tensors = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").unlink()
    save_file(tensors, model_folder / "model-1.safetensors")
    shard(model_folder, "model-1.safetensors", "model-2.safetensors")
    with pytest.raises(ModelRefused, match=r"lacks model-2\.safetensors"):
        taken(model_folder)
    save_file(tensors, model_folder / "model-2.safetensors")
    assert "model-2.safetensors" in taken(model_folder)


@pytest.mark.parametrize("index", ["not json", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(model_folder: Path, index: str) -> None:
    (model_folder / "model.safetensors.index.json").write_text(index, "utf-8")
    with pytest.raises(ModelRefused, match=r"index\.json cannot be read"):
        taken(model_folder)


def test_weights_behind_symbolic_links_are_copied_as_files(
    model_folder: Path, tmp_path: Path
) -> None:
    blob = tmp_path / "blob"
    (model_folder / "model.safetensors").rename(blob)
    (model_folder / "model.safetensors").symlink_to(blob)
    assert "model.safetensors" in taken(model_folder)
    copy = tmp_path / "copy" / "model.safetensors"
    checks.copy_and_hash(model_folder / "model.safetensors", copy, lambda _: None)
    assert not copy.is_symlink()
    assert copy.read_bytes() == blob.read_bytes()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were really read."""
    names: list[str] = []
    original = checks.hash_file

    def counting(path: Path, *args: object) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(checks, "hash_file", counting)
    return names


@pytest.fixture
def records(model_folder: Path) -> list[FileRecord]:
    return [
        FileRecord(path.name, path.stat().st_size, checks.hash_file(path))
        for path in sorted(model_folder.iterdir())
    ]


def test_verified_files_are_not_read_again_not_even_after_a_restart(
    model_folder: Path, records: list[FileRecord], tmp_path: Path, hashed: list[str]
) -> None:
    VerifiedCache(tmp_path / "verified.json").verify(model_folder, records)
    assert len(hashed) == len(records)
    VerifiedCache(tmp_path / "verified.json").verify(model_folder, records)
    assert len(hashed) == len(records)


def test_a_check_in_full_reads_every_file_whatever_is_remembered(
    model_folder: Path, records: list[FileRecord], tmp_path: Path, hashed: list[str]
) -> None:
    cache = VerifiedCache(tmp_path / "verified.json")
    cache.verify(model_folder, records)
    cache.verify(model_folder, records, trust_cache=False)
    assert len(hashed) == 2 * len(records)


def test_only_the_file_that_was_touched_is_read_again(
    model_folder: Path, records: list[FileRecord], tmp_path: Path, hashed: list[str]
) -> None:
    cache = VerifiedCache(tmp_path / "verified.json")
    cache.verify(model_folder, records)
    hashed.clear()
    os.utime(model_folder / "model.safetensors", ns=(1, 1))
    cache.verify(model_folder, records)
    assert hashed == ["model.safetensors"]


def test_a_change_of_the_same_size_is_found_although_the_file_was_verified_before(
    model_folder: Path, records: list[FileRecord], tmp_path: Path
) -> None:
    cache = VerifiedCache(tmp_path / "verified.json")
    cache.verify(model_folder, records)
    weights = model_folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    os.utime(weights, ns=(1, 1))  # another time than before, whatever the clock's grain
    with pytest.raises(ModelRefused, match=r"model\.safetensors was changed"):
        cache.verify(model_folder, records)


def test_a_change_that_forges_the_time_is_found_by_a_check_in_full(
    model_folder: Path, records: list[FileRecord], tmp_path: Path
) -> None:
    cache = VerifiedCache(tmp_path / "verified.json")
    cache.verify(model_folder, records)
    config = model_folder / "config.json"
    before = config.stat()
    config.write_bytes(config.read_bytes().replace(b"llama", b"xxxxx"))
    os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelRefused, match=r"config\.json was changed"):
        cache.verify(model_folder, records, trust_cache=False)


def test_a_file_that_is_gone_or_shorter_is_named_without_reading_it(
    model_folder: Path, records: list[FileRecord], tmp_path: Path
) -> None:
    cache = VerifiedCache(tmp_path / "verified.json")
    os.truncate(model_folder / "tokenizer.json", 3)
    with pytest.raises(ModelRefused, match=r"tokenizer\.json was changed"):
        cache.verify(model_folder, records)
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelRefused, match=r"tokenizer\.json is missing"):
        cache.verify(model_folder, records)


@pytest.mark.parametrize("content", [b"", b"[]", b"{broken", b"\xff", b'{"x": 5}'])
def test_a_damaged_memory_costs_time_and_nothing_else(
    model_folder: Path,
    records: list[FileRecord],
    tmp_path: Path,
    hashed: list[str],
    content: bytes,
) -> None:
    memory = tmp_path / "verified.json"
    memory.write_bytes(content)
    VerifiedCache(memory).verify(model_folder, records)
    assert len(hashed) == len(records)
    VerifiedCache(memory).verify(model_folder, records)
    assert len(hashed) == len(records)


def test_a_memory_that_cannot_be_written_does_not_stop_the_check(
    model_folder: Path, records: list[FileRecord], tmp_path: Path, hashed: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    VerifiedCache(tmp_path / "file" / "verified.json").verify(model_folder, records)
    assert len(hashed) == len(records)
