"""`serving sbom`: CycloneDX documents of real environments, as the schema wants them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from live_service import PROJECT

pytestmark = [pytest.mark.integration]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine's environment with pip in it."""
    home = tmp_path_factory.mktemp("engine") / ".engine"
    venv.create(home, with_pip=True)
    return home


def sbom(folder: Path, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "service": {"name": "llm"},
        "engine": {"name": "vllm", "max_model_len": 256, "home": str(home)},
        "models": {"chat": {}},
    }
    config = folder / "serving.yaml"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", "sbom", "--folder", str(folder / "sbom")],
        cwd=PROJECT,
        env={**os.environ, "SERVING_CONFIG": str(config), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_each_environment_is_a_valid_document_that_names_what_is_installed_in_it(
    engine: Path, tmp_path: Path
) -> None:
    done = sbom(tmp_path, engine)
    assert done.returncode == 0, done.stderr
    documents = {path.name: path.read_text("utf-8") for path in (tmp_path / "sbom").iterdir()}
    assert set(documents) == {"gateway.cdx.json", "vllm.cdx.json"}
    # The gateway's two hundred packages are left to the program's own check: it takes a while.
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(documents["vllm.cdx.json"]) is None
    packages = {
        name: {component["name"] for component in json.loads(text)["components"]}
        for name, text in documents.items()
    }
    assert {"bentoml", "msgspec"} <= packages["gateway.cdx.json"]
    assert "pip" in packages["vllm.cdx.json"]
    assert "bentoml" not in packages["vllm.cdx.json"]


def test_an_engine_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    done = sbom(tmp_path, tmp_path / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"the engine vllm is not installed in {tmp_path / 'nowhere'}" in done.stderr
