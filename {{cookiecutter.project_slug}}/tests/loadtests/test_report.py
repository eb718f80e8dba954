"""What a report leaves on the disk can be read again, whole."""

from __future__ import annotations

import csv
import os
import stat
import time
from pathlib import Path

import pytest
from made_report import full_report, made_report

from loadtests import report
from loadtests.results import Report, Sample, Slo, read

NAMES = ["report.html", "report.json", "requests.csv", "stages.csv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a report in it, for those who only read."""
    return report.write(full_report(), tmp_path_factory.mktemp("run") / "a/b").parent


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_is_four_files_in_a_folder_that_is_made(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == NAMES


def test_the_json_reads_back_as_the_report(folder: Path) -> None:
    assert read(folder / "report.json") == full_report()


def test_an_empty_report_reads_back_too(tmp_path: Path) -> None:
    written = Report("smoke", "now", 0.0, "http://x", "chat", Slo(), {}, {})
    report.write(written, tmp_path)
    assert read(tmp_path / "report.json") == written


def test_the_json_has_a_line_for_each_sample(folder: Path) -> None:
    written = full_report()
    lines = (folder / "report.json").read_text().splitlines()
    assert sum('"operation":' in line for line in lines) == len(written.samples)
    assert lines[1] == '  "scenario": "capacity",'


def test_each_request_is_a_row_with_all_it_had(tmp_path: Path) -> None:
    written = full_report()
    written.samples[3].error = 'a "quoted", two-line\nerror'
    report.write(written, tmp_path)
    read_back = rows(tmp_path / "requests.csv")
    assert list(read_back[0]) == [*Sample.__struct_fields__, "tpot"]
    assert len(read_back) == len(written.samples)
    for row, sample in zip(read_back, written.samples, strict=True):
        assert [float(gap) for gap in row["gaps"].split()] == sample.gaps
        assert row["error"] == sample.error
        assert row["ttft"] == ("" if sample.ttft is None else repr(sample.ttft))
        assert row["tpot"] == ("" if sample.tpot is None else repr(sample.tpot))


def test_each_stage_is_a_row_with_all_its_figures(folder: Path) -> None:
    written = full_report()
    read_back = rows(folder / "stages.csv")
    assert [row["name"] for row in read_back] == [stage.stage.name for stage in written.stages]
    for row, stage in zip(read_back, written.stages, strict=True):
        assert float(row["rate"]) == stage.stage.rate
        assert float(row["goodput"]) == stage.summary.goodput
        assert stage.summary.ttft is not None
        assert stage.summary.itl is not None
        assert float(row["ttft_p99"]) == stage.summary.ttft.p99
        assert float(row["itl_mean"]) == stage.summary.itl.mean
        assert None not in row
        assert None not in row.values()


def test_a_report_is_written_over_an_older_one(tmp_path: Path) -> None:
    report.write(full_report(), tmp_path)
    newer = made_report(rates=[3])
    report.write(newer, tmp_path)
    assert read(tmp_path / "report.json") == newer
    assert sorted(os.listdir(tmp_path)) == NAMES


def test_the_files_have_the_rights_that_new_files_have(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    rights = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert rights == {stat.S_IMODE((tmp_path / "new").stat().st_mode)}


def test_no_room_is_one_sentence_and_leaves_the_older_report_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write(full_report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(report.NotWritten) as raised:
        report.write(made_report(rates=[3]), tmp_path)
    assert str(raised.value) == (
        f"The report could not be written to {tmp_path} (No space left on device): make room or"
        " name another folder, one that you may write to."
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_where_the_folder_should_be_is_told_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(report.NotWritten, match="taken"):
        report.write(full_report(), tmp_path / "taken")


def test_a_hundred_thousand_requests_are_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    large = made_report(rates=[17.0] * 5, seconds=1200.0, tokens=11, versions=["v1", "v2"])
    assert len(large.samples) > 100_000
    assert sum(len(sample.gaps) for sample in large.samples) > 1_000_000
    began = time.process_time()
    page = report.write(large, tmp_path)
    assert time.process_time() - began < 30
    assert page.stat().st_size < 3_000_000
