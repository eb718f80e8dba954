"""A service whose store never saw the hub: its version came from a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
import s3_server
from live_service import Service

from serving.runtime.distribution import find, pull, push
from serving.runtime.remote import Remote
from serving.runtime.store import ModelStore

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


def test_a_service_answers_from_a_version_that_was_pulled(
    store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = ModelStore(tmp_path / "pulled")
    with s3_server.server(tmp_path) as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        remote = Remote(s3.url)
        store = ModelStore(store_template)
        push(store, remote, store.find("chat:1"))
        pull(pulled, remote, find(remote, "chat:1"))
    (tmp_path / "service").mkdir()
    with Service(tmp_path / "service", pulled.home).start().wait_ready() as service:
        reply = service.chat("Hello")
        assert reply.status_code == 200
        assert reply.headers["x-served-version"] == "chat:1"
        with service.stream("Hello") as stream:
            assert [event.data for event in stream][-1] == "[DONE]"
