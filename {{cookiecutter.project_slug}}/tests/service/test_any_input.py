"""Whatever is asked, the answer is one that the served OpenAPI document promises.

schemathesis makes requests from the document, good ones and bad ones, the same in every run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import new_key
from live_service import PROJECT, TIMEOUTS, Service

from serving.runtime.store import ModelStore

pytestmark = pytest.mark.integration

CASES = 5000
#: In the service's folder. A valid request may be refused for more than a schema can say: the check
#: of our own in `any_input_hooks` looks at those.
CONFIG = """\
hooks = "any_input_hooks"
warnings = false

[generation]
deterministic = true
no-shrink = true
max-examples = 660

[[operations]]
include-path = "/v1/models/{model}"
generation.mode = "positive"  # any text is one; to look for one that is not takes for ever

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "413"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "404", "405", "413", "415"]
"""


@pytest.fixture
def service(
    serve: Callable[..., Service], model_template: Path, monkeypatch: pytest.MonkeyPatch
) -> Service:
    settings = {
        "auth": {"mode": "keys"},
        "models": {"chat": {}, "embed": {}},
        "timeouts": {**TIMEOUTS, "first_token": 20},
    }
    service = serve(settings=settings, behaviour={"default": {"tokens": 2}})
    ModelStore(service.home).add("embed", model_template, "a test", task="embed")
    monkeypatch.setenv("SERVING_CONFIG", str(service.config))
    return service.start().wait_ready()


def test_no_request_gets_an_answer_that_is_not_in_the_document(service: Service) -> None:
    (service.folder / "schemathesis.toml").write_text(CONFIG, "utf-8")
    report = service.folder / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--checks", "all", "--phases", "examples,coverage,fuzzing", "--workers", "1"),
            *("--header", f"Authorization: Bearer {new_key(service)}"),
            *("--continue-on-failure", "--report-json-path", str(report)),
        ],
        cwd=service.folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "tests"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["test_cases"]["generated"] >= CASES
    assert "Traceback" not in service.log_text
    assert service.ready
