"""What was used, added up from the ledger."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal, get_args

import msgspec
from sqlalchemy import func, select

from serving.accounts.database import Database
from serving.accounts.tables import UsageRow
from serving.accounts.undisturbed import undisturbed

#: Seconds for a large ledger to be added up.
PATIENCE = 60

By = Literal["key", "model", "version", "label", "engine", "day"]
GROUPS: tuple[By, ...] = get_args(By)


class Used(msgspec.Struct):
    """The sums of one group. Requests are those that got an answer or should have; `failed` the
    ones among them that ended with a status of 500 or more."""

    group: dict[str, Any]
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@undisturbed
async def used(
    database: Database,
    by: list[By],
    *,
    since: date | None = None,
    until: date | None = None,
    shadow: bool = False,
) -> list[Used]:
    """By the groups named, of the days from `since` to `until`, both included. The copies that a
    shadow got are apart: nobody pays for them. Raises `DatabaseError`."""
    columns = [getattr(UsageRow, name) for name in by]
    sums = [
        func.sum(column)
        for column in (
            UsageRow.prompt_tokens,
            UsageRow.completion_tokens,
            UsageRow.cached_tokens,
            UsageRow.reasoning_tokens,
        )
    ]
    failed = func.count().filter(UsageRow.status >= 500)
    query = select(*columns, func.count(), failed, *sums).where(UsageRow.shadow.is_(shadow))
    if since is not None:
        query = query.where(UsageRow.day >= since.isoformat())
    if until is not None:
        query = query.where(UsageRow.day <= until.isoformat())
    query = query.group_by(*columns).order_by(*columns)
    async with database.transaction(PATIENCE) as session:
        rows = (await session.execute(query)).all()
    return [
        Used(dict(zip(by, row[: len(by)], strict=True)), *(int(n or 0) for n in row[len(by) :]))
        for row in rows
    ]
