"""HTTP/1.1 for tests that ask thousands of times: a tenth of what httpx costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Told:
    """What came of one request; `left` when it was left before its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    left: bool = False

    @property
    def events(self) -> list[Any]:
        """The JSON of a stream's events, `[DONE]` as it is; comments are left out."""
        blocks = self.body.decode().split("\n\n")
        data = [block.partition("data: ")[2] for block in blocks if "data: " in block]
        return [text if text == "[DONE]" else json.loads(text) for text in data]


class LeanClient:
    """One connection at a time to the service on `port`, kept alive while the service does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str],
        leaves: Callable[[bytes], bool] | None = None,
    ) -> Told:
        """`leaves` says, of the part of a streamed body that has come, whether to go away. Raises
        `ConnectionError` and `asyncio.IncompleteReadError` when the service does."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"host": "x", "content-type": "application/json", "content-length": str(len(data))}
        head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **headers}.items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        told = await self._head(self._reader)
        if "content-length" in told.headers:
            told.body = await self._reader.readexactly(int(told.headers["content-length"]))
        else:
            await self._chunks(self._reader, told, leaves)
        if told.left or told.headers.get("connection") == "close":
            self.close()
        return told

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> Told:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        return Told(int(first.split(" ")[1]), headers, b"")

    @staticmethod
    async def _chunks(
        reader: asyncio.StreamReader, told: Told, leaves: Callable[[bytes], bool] | None
    ) -> None:
        parts = bytearray()
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts += (await reader.readexactly(size + 2))[:-2]
            if leaves is not None and leaves(bytes(parts)):
                told.left = True
                break
        else:
            await reader.readexactly(2)
        told.body = bytes(parts)
