"""What `bentoml serve` loads: the service, its lifecycle, and the application mounted in it."""

from __future__ import annotations

import gc
from pathlib import Path

import bentoml

from serving.accounts.accounts import Accounts
from serving.gateway.admin import Admin
from serving.gateway.app import create_app
from serving.gateway.auth import Gate
from serving.gateway.cors import cors
from serving.gateway.limits import Limiter
from serving.gateway.metrics import Figures
from serving.gateway.observed import Observed
from serving.gateway.oip import Oip
from serving.gateway.patient import install
from serving.gateway.request_log import RequestLog
from serving.gateway.scrape import Scrape
from serving.gateway.tracing import Tracing
from serving.gateway.upkeep import Upkeep
from serving.packaging.recipe import image
from serving.runtime.from_bento import settle
from serving.runtime.operations import Operations
from serving.runtime.reconciler import Reconciler
from serving.runtime.reload import Reloader
from serving.runtime.rollouts import Rollouts
from serving.runtime.shutdown import Shutdown
from serving.runtime.startup import load
from serving.settings import config_file

HERE = Path(__file__).parent

settle(HERE)
config = config_file(HERE)
settings, store, routing = load(config)

reconciler = Reconciler(settings, store, routing, HERE / "warmup_hooks.py")
shutdown = Shutdown(settings)
accounts = Accounts(settings)
gate = Gate(accounts.ring, settings.auth.mode)
operations = Operations(reconciler)
rollouts = Rollouts(reconciler, operations)
reloader = Reloader(config, settings, reconciler)
observed, limiter = Observed(), Limiter(settings)
request_log, tracing = RequestLog(settings), Tracing(settings)
operators = [
    *Admin(reconciler, operations, rollouts, reloader, gate, accounts.database).routes,
    *Oip(reconciler, operations, gate).routes,
    *Scrape(
        gate, observed, Figures(reconciler, rollouts.steps), Upkeep(accounts.ledger, limiter)
    ).routes,
]
app = create_app(
    settings,
    reconciler.router,
    shutdown,
    operators,
    rollouts.note,
    gate,
    accounts.ledger,
    limiter,
    observed,
    request_log,
    tracing,
)
# The headers for web pages of other origins are added by one of BentoML's middlewares.
install(settings, observed.refused, None if settings.cors.origins else app.find)


@bentoml.service(
    name=settings.service.name,
    image=image(settings, HERE),
    workers=1,  # each worker would run engines of its own
    http={"host": "127.0.0.1", "cors": cors(settings)},
    # BentoML answers outside the contract when its limit is over, so ours must be over first.
    traffic={"timeout": settings.timeouts.longest_wait + 60},
    # One span for every chunk of a stream costs more than relaying it; ours are in gateway/tracing.
    tracing={"excluded_urls": ".*"},
    # BentoML's make a series of every path that anybody thinks of; ours are in gateway/scrape.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # ours is gateway/request_log
)
@bentoml.asgi_app(app, path="/")
class Service:
    """The gateway and the engines behind it."""

    @bentoml.on_startup
    async def start(self) -> None:
        shutdown.install()
        request_log.start()
        tracing.start()
        await accounts.start()
        await limiter.start()
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
        await limiter.stop()
        await accounts.stop()
        await reconciler.stop()
        await tracing.stop()

    async def __is_ready__(self) -> bool:
        return reconciler.ready and not shutdown.started
