"""`serving status`, `labels`, `traffic`, `shadow`, `promote`, `rollback`, `history`: a running
service, by its admin API."""

from __future__ import annotations

import getpass
import re
import time
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serving.bearer import authorization

#: Seconds between two looks of `serving status --watch`.
WATCH_EVERY = 1.0
#: Loading a version takes as long as it takes; the service has limits of its own.
PATIENCE = httpx.Timeout(10, read=None)
_COLOURS = {"ready": "green", "failed": "red", "draining": "yellow", "loading": "cyan"}

Url = Annotated[str, typer.Option(envvar="SERVING_URL", help="Where the service listens.")]
Model = Annotated[str, typer.Argument(help="The model's name, as clients send it.")]
Label = Annotated[str, typer.Argument(help="production, canary, shadow, or one of your own.")]
Revision = Annotated[
    int | None, typer.Option(help="Only if the routing is still at this revision.")
]
LOCAL = "http://127.0.0.1:3000"

labels = typer.Typer(no_args_is_help=True, help="What each label of a model means.")
console = Console()


class NotDone(Exception):
    """The service refused, or is not there. The message says why and what to do."""


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.add_typer(labels, name="labels")
    for command in (status, traffic, shadow, promote, rollback, history):
        app.command()(command)


@labels.command("set")
def set_label(
    model: Model,
    label: Label,
    version: Annotated[int, typer.Argument(min=1)],
    load: Annotated[bool, typer.Option(help="Load the version first, and wait for it.")] = True,
    revision: Revision = None,
    url: Url = LOCAL,
) -> None:
    """Point LABEL at a version: `serving labels set chat production 4`."""
    body = {"version": version, "load": load, "revision": revision}
    with console.status(f"{model}:{version} gets ready"):
        done = ask("PUT", url, f"/models/{model}/labels/{label}", body)
    console.print(f"{model}@{label} is {model}:{version} (revision {done['revision']}).")


@labels.command("drop")
def drop_label(model: Model, label: Label, revision: Revision = None, url: Url = LOCAL) -> None:
    """Take LABEL away."""
    query = "" if revision is None else f"?revision={revision}"
    done = ask("DELETE", url, f"/models/{model}/labels/{label}{query}")
    console.print(f"{model} has no label {label} any more (revision {done['revision']}).")


def traffic(
    model: Model,
    weights: Annotated[list[str], typer.Argument(help="LABEL=WEIGHT, as in canary=10.")],
    revision: Revision = None,
    url: Url = LOCAL,
) -> None:
    """Split a model's requests over labels: `serving traffic chat production=90 canary=10`."""
    shares = {}
    for part in weights:
        label, _, weight = part.partition("=")
        if not label or not weight.isdecimal():
            raise NotDone(f"{part!r} is no share; write LABEL=WEIGHT, as in canary=10.")
        shares[label] = int(weight)
    body = {"weights": shares, "revision": revision}
    done = ask("PUT", url, f"/models/{model}/traffic", body)
    console.print(f"{model}: {' '.join(weights)} (revision {done['revision']}).")


def shadow(
    model: Model,
    percent: Annotated[float, typer.Argument(min=0, max=100)],
    revision: Revision = None,
    url: Url = LOCAL,
) -> None:
    """Copy PERCENT of a model's requests to its label `shadow`, which answers nobody."""
    body = {"percent": percent, "revision": revision}
    done = ask("PUT", url, f"/models/{model}/shadow", body)
    console.print(f"{model}: {percent:g} % go to the shadow too (revision {done['revision']}).")


def promote(
    model: Model,
    label: Annotated[str, typer.Argument()] = "canary",
    revision: Revision = None,
    url: Url = LOCAL,
) -> None:
    """Put the version of LABEL into production, with all the traffic."""
    body = {"label": label, "revision": revision}
    done = ask("POST", url, f"/models/{model}/promote", body)
    console.print(f"{label} of {model} is in production (revision {done['revision']}).")


def rollback(model: Model, revision: Revision = None, url: Url = LOCAL) -> None:
    """Undo the last change of a model's labels or traffic; again, the one before it."""
    with console.status("The versions before it get ready"):
        done = ask("POST", url, f"/models/{model}/rollback", {"revision": revision})
    console.print(f"Undone: {done['undone']['what']} (revision {done['revision']}).")


def history(url: Url = LOCAL) -> None:
    """Who changed which label or traffic, and when."""
    table = Table("revision", "at", "model", "what", "by", box=None, pad_edge=False)
    for change in ask("GET", url, "/history")["history"]:
        at = change["at"].replace("T", " ")[:19]
        table.add_row(str(change["revision"]), at, change["model"], change["what"], change["by"])
    console.print(table if table.row_count else "Nothing was changed yet.")


def status(
    watch: Annotated[bool, typer.Option(help="Show it until Ctrl-C.")] = False, url: Url = LOCAL
) -> None:
    """Show what is served: versions with their states, labels and traffic."""
    if not watch:
        console.print(_table(ask("GET", url, "/status")))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                shown = _table(ask("GET", url, "/status"))
            except NotDone as error:
                shown = Text(str(error), style="red")
            live.update(shown, refresh=True)
            time.sleep(WATCH_EVERY)


def _table(status: dict[str, Any]) -> RenderableType:
    table = Table("version", "state", "labels", "traffic", "replicas", "running", box=None)
    settings = status["settings"]
    faults = filter(None, (status["fault"], settings["fault"]))
    notes = [Text(fault, style="red") for fault in faults]
    if settings["waiting"]:
        waiting = ", ".join(settings["waiting"])
        notes.append(Text(f"serving.yaml: restart for {waiting}", style="yellow"))
    for name, model in status["models"].items():
        total = sum(model["traffic"].values()) or 1
        weights = model["traffic"] or {"production": 1}
        for version in model["versions"]:
            tag = f"{name}:{version['version']}"
            share = sum(weights.get(label, 0) for label in version["labels"]) / total
            ready = sum(replica["state"] == "ready" for replica in version["replicas"])
            table.add_row(
                tag,
                Text(version["state"], style=_COLOURS.get(version["state"], "")),
                " ".join(version["labels"]),
                f"{share:.0%}" if share else "",
                f"{ready}/{len(version['replicas'])} {version['engine']}",
                str(sum(replica["in_flight"] for replica in version["replicas"])),
            )
            if version["reason"] and version["state"] != "ready":
                notes.append(Text(f"{tag}: {version['reason']}", style="yellow"))
        if model["rollout"]:
            notes.append(Text(_progress(name, model["rollout"])))
        for label, means in model["labels"].items():
            if means["wanted"] != means["version"]:
                notes.append(
                    Text(f"{name}@{label} is to be {name}:{means['wanted']}, which is not ready")
                )
    return Group(table, *notes, Text(f"revision {status['revision']}", style="dim"))


def _progress(name: str, rollout: dict[str, Any]) -> str:
    elapsed = rollout["elapsed"]
    since = "" if elapsed is None else f", {elapsed:.0f} of {rollout['every']:.0f} s"
    step = f"step {rollout['step']} of {len(rollout['steps'])}, {rollout['percent']} %{since}"
    return f"rollout to {name}:{rollout['version']}: {step}: {rollout['told']}"


def seconds(option: str, text: str) -> float:
    """Of a time like 90s, 10m, 2h, 30d. Raises `NotDone`."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if parts is None:
        raise NotDone(f"{option}: {text!r} is no time; write 90s, 10m, 2h or 30d.")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]]


def ask(method: str, url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The reply's JSON. Raises `NotDone` and `BadKey`."""
    given = {name: value for name, value in (body or {}).items() if value is not None}
    try:
        reply = httpx.request(
            method,
            f"{url.rstrip('/')}/admin{path}",
            json=given if body is not None else None,
            headers={"x-operator": getpass.getuser(), **authorization()},
            timeout=PATIENCE,
        )
        content = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise NotDone(
            f"No service of ours answers at {url} ({error}); start it, or name it with --url."
        ) from None
    if reply.status_code == 401:
        raise NotDone("The service wants a key with the scope admin; put it into SERVING_KEY.")
    if reply.is_error:
        raise NotDone(content["error"]["message"])
    return content
