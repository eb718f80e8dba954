"""All that is kept of callers: their keys, their usage, and the database of both."""

from __future__ import annotations

from serving.accounts.database import Database
from serving.accounts.keys import Keys
from serving.accounts.ledger import Ledger
from serving.accounts.ring import KeyRing
from serving.settings import Settings


class Accounts:
    """Raises `DatabaseError` when serving.yaml names no database that could be."""

    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings)
        self.ring = KeyRing(Keys(self.database))
        self.ledger = Ledger(settings, self.database)

    async def start(self) -> None:
        await self.ring.start()
        self.ledger.start()

    async def stop(self) -> None:
        """Every row of the ledger is on a disk afterwards."""
        await self.ledger.stop()
        await self.ring.stop()
        await self.database.close()
