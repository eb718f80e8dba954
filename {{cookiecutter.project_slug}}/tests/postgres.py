"""A PostgreSQL server for the tests: Debian's program, on loopback, with files of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from debian import lacking, running
from live_service import free_port

MISSING = "PostgreSQL is not installed: apt-get install postgresql, or run `make test` as root"


def program(name: str) -> str | None:
    """Of the newest version installed."""
    found = shutil.which(name)
    if found:
        return found
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else None


class Server:
    """Ours to stop and to start again; `url` holds its password."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        # It does not run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        password = folder.parent / f"{folder.name}.password"
        password.write_text("a-password-of-the-tests")
        password.chmod(0o644)
        self._run("initdb", "--username=ann", f"--pwfile={password}", "--auth=scram-sha-256")
        password.unlink()

    def url(self, database: str) -> str:
        host = f"127.0.0.1:{self.port}"
        return f"postgresql://ann:a-password-of-the-tests@{host}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self._folder}"
        log = str(self._folder / "server.log")
        self._run("pg_ctl", "start", "--wait", "--log", log, "--options", options)

    def stop(self) -> None:
        """At once, as when its machine loses its power."""
        self._run("pg_ctl", "stop", "--mode=immediate")

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Silent, as when the network to it is gone: its connections stay, and nothing answers."""
        number = int((self._folder / "postmaster.pid").read_text().splitlines()[0])
        process = psutil.Process(number)
        process.suspend()
        family = [process, *process.children(recursive=True)]
        try:
            for member in family:
                with suppress(psutil.NoSuchProcess):  # it was about to end
                    member.suspend()
            yield
        finally:
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.resume()

    def make(self, database: str) -> str:
        """Makes it. Returns its URL."""
        psql = program("psql")
        assert psql is not None
        subprocess.run(
            [psql, self.url("postgres"), "--command", f"CREATE DATABASE {database}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return self.url(database)

    def _run(self, name: str, *words: str) -> None:
        path = program(name)
        assert path is not None
        subprocess.run(
            [path, *words, "--pgdata", str(self._folder)],
            check=True,
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
        )


@contextmanager
def server() -> Iterator[Server]:
    """Skips the test where there is none, but never in continuous integration."""
    if program("initdb") is None:
        lacking(MISSING)
    with running(Server, "postgres") as server:
        yield server
