"""What `bentoml serve` loads: the service, its lifecycle, and the application mounted in it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import bentoml

from serving.accounts.accounts import Accounts
from serving.gateway.admin import Admin
from serving.gateway.app import create_app
from serving.gateway.auth import Gate
from serving.gateway.cors import cors
from serving.gateway.metrics import serving_metrics
from serving.gateway.observed import Observed
from serving.gateway.oip import Oip
from serving.gateway.patient import install
from serving.runtime.operations import Operations
from serving.runtime.reconciler import Reconciler
from serving.runtime.reload import Reloader
from serving.runtime.rollouts import Rollouts
from serving.runtime.shutdown import Shutdown
from serving.runtime.startup import load

HERE = Path(__file__).parent

config = Path(os.environ.get("SERVING_CONFIG", HERE / "serving.yaml"))
settings, store, routing = load(config)

reconciler = Reconciler(settings, store, routing, HERE / "warmup_hooks.py")
shutdown = Shutdown(settings)
accounts = Accounts(settings)
gate = Gate(accounts.ring, settings.auth.mode)
operations = Operations(reconciler)
rollouts = Rollouts(reconciler, operations)
reloader = Reloader(config, settings, reconciler)
operators = [
    *Admin(reconciler, operations, rollouts, reloader, gate, accounts.database).routes,
    *Oip(reconciler, operations, gate).routes,
]
observed = Observed()
install(settings, observed.refused)
app = create_app(
    settings, reconciler.router, shutdown, operators, rollouts.note, gate, accounts.ledger, observed
)


@bentoml.service(
    name=settings.service.name,
    workers=1,  # each worker would run engines of its own
    http={"host": "127.0.0.1", "cors": cors(settings)},
    # BentoML answers outside the contract when its limit is over, so ours must be over first.
    traffic={"timeout": settings.timeouts.longest_wait + 60},
    # One span for every chunk of a stream costs more than relaying it.
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app, path="/")
class Service:
    """The gateway and the engines behind it."""

    @bentoml.on_startup
    async def start(self) -> None:
        shutdown.install()
        await accounts.start()
        gate.tell()
        reconciler.start()
        rollouts.start()
        reloader.start()
        # What is loaded by now stays. Left to the collector, walking it halts every stream for a
        # twentieth of a second, now and then.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await reloader.stop()
        await rollouts.stop()
        await accounts.stop()
        await reconciler.stop()

    def __metrics__(self, text: str) -> str:
        """BentoML's metrics and ours."""
        own = serving_metrics(
            reconciler.replicas, reconciler.states, reconciler.transitions, observed
        )
        return text + own

    async def __is_ready__(self) -> bool:
        return reconciler.ready and not shutdown.started
