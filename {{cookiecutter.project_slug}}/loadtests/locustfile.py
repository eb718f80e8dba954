"""Locust's own web page, for those who like it: `locust -f loadtests/locustfile.py`.

Each answer is three entries: `chat` (end to end, its size in tokens), `chat TTFT` and `chat TPOT`;
what is refused (429, 503, 529) fails under a name of its own. Locust rounds its percentiles, and
its users wait for their answers: for figures to rely on, take `python -m loadtests`.

    SERVING_KEY=sk-…  locust -f loadtests/locustfile.py --host http://127.0.0.1:3000
"""

from __future__ import annotations

import os
import time
from itertools import count

from locust import User, between, events, task
from locust.argument_parser import LocustArgumentParser

from loadtests import interrupt
from loadtests.asker import Asker, Target
from loadtests.clock import Clock
from loadtests.results import Sample
from loadtests.workload import PRESETS, Scale, Workload

PATIENCE = 300.0


class Failed(Exception):
    """Why an answer did not come whole, as Locust's page of failures shows it."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("The work", "What the users ask.")
    group.add_argument("--model", default="chat", help="The model's name.")
    group.add_argument("--workload", default="short", choices=sorted(PRESETS))
    group.add_argument("--seed", type=int, default=0, help="The same seed offers the same work.")


@events.init.add_listener  # type: ignore[untyped-decorator]
def heed_interrupts(**_: object) -> None:
    interrupt.heed()


class Client(User):
    """Somebody who asks, reads the answer, and asks again a moment later."""

    host = "http://127.0.0.1:3000"
    wait_time = between(0.5, 2)
    _numbers = count()

    def on_start(self) -> None:
        given = self.environment.parsed_options
        assert given is not None and self.host is not None
        target = Target(self.host, given.model)
        self._asker = Asker(target, os.environ.get("SERVING_KEY", ""), Clock(time.time()), PATIENCE)
        self._workload = Workload(PRESETS[given.workload], given.seed, Scale())
        self._number, self._asked = next(self._numbers), count()

    def on_stop(self) -> None:
        self._asker.close()

    @task
    def converse(self) -> None:
        conversation = self._workload.conversation(self._number, next(self._asked))
        for question in conversation:
            sample, text = self._asker.ask(question, stage=0, due=0.0)
            self._tell(sample)
            if sample.outcome != "whole":
                return
            conversation.heard(text)

    def _tell(self, sample: Sample) -> None:
        name = f"{sample.operation}{' refused' if sample.outcome == 'refused' else ''}"
        self._entry(name, sample.latency, sample)
        if sample.ttft is not None:
            self._entry(f"{name} TTFT", sample.ttft)
        if (tpot := sample.tpot) is not None:
            self._entry(f"{name} TPOT", tpot)

    def _entry(self, name: str, seconds: float, sample: Sample | None = None) -> None:
        failed = sample is not None and sample.outcome != "whole"
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=seconds * 1000,
            response_length=(sample.tokens_out or 0) if sample else 0,
            exception=Failed(f"{sample.outcome}: {sample.error}") if sample and failed else None,
            context={},
        )
