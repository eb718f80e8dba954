"""Your own warm-up: it runs on every replica before it gets its first request.

Delete this file, or leave it as it is, if the `warmup:` section of serving.yaml is enough.
Whatever `warm_up` raises keeps the replica from serving and is shown as the reason.
"""

from __future__ import annotations

from serving.runtime.warmup import WarmupClient


async def warm_up(client: WarmupClient) -> None:
    """`await client.chat("...", system="...", max_tokens=16)` asks the replica that is warming up;
    `await client.complete("...")` continues a raw text. Both return the text, so a replica can also
    be checked here: raise when the answer is not what it must be."""
