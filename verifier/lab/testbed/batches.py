"""Requests gathered into batches, and answered in one worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from verifier.lab.testbed.wire import Answer, Body, WireError


class Batcher:
    """Gathers requests into batches and answers them in one worker thread.

    Neither the engine nor the tokenizer bears two threads, so both are used only there.
    """

    def __init__(
        self, answer_batch: Callable[[Sequence[Body]], list[Answer | WireError]], *,
        max_batch: int, window_s: float,
    ) -> None:  # fmt: skip
        self._answer_batch = answer_batch
        self._max_batch = max_batch
        self._window_s = window_s
        self._waiting: asyncio.Queue[tuple[Body, asyncio.Future[Answer | WireError]]]
        self._waiting = asyncio.Queue()

    async def answer(self, body: Body) -> Answer:
        """Wait for this request's answer. Raises WireError when it gets none."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((body, future))
        found: Answer | WireError = await future
        if isinstance(found, WireError):
            raise found
        return found

    async def run(self) -> None:
        """Answer batch after batch until cancelled; the batch under way is then finished first."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="testbed") as worker:
            while True:
                batch = await self._gather()
                work = partial(self._answer_batch, [body for body, _ in batch])
                try:
                    found = await loop.run_in_executor(worker, work)
                except Exception as error:  # noqa: BLE001 - a host outlives whatever its engine raises
                    found = [_engine_failure(error) for _ in batch]
                for (_, future), answer in zip(batch, found, strict=True):
                    if not future.done():  # cancelled when the server was told to stop
                        future.set_result(answer)

    async def _gather(self) -> list[tuple[Body, asyncio.Future[Answer | WireError]]]:
        """At least one request, and those that come within the window after it."""
        batch = [await self._waiting.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._window_s):
                while len(batch) < self._max_batch:
                    batch.append(await self._waiting.get())
        return batch


def _engine_failure(error: Exception) -> WireError:
    text = " ".join(str(error).split())
    return WireError(f"the engine failed: {type(error).__name__}: {text}", status=500)
