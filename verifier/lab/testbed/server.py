"""Where the laboratory's hosts listen: the loopback interface alone."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette

from verifier.errors import ConfigError

_LOOPBACK: Final = "127.0.0.1"
_GRACE_S: Final = 1  # how long requests under way may go on once the server is told to stop
_NOT_STARTED: Final = "the testbed host did not start: its app failed while starting"


class _Server(uvicorn.Server):
    """Tells its base URL once it listens, and when a signal tells it to stop."""

    def __init__(
        self,
        app: Starlette,
        listening: socket.socket,
        *,
        announce: Callable[[str], None],
        told_to_stop: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app, lifespan="on", ws="none", log_config=None, log_level="critical",
                access_log=False, timeout_keep_alive=60, timeout_graceful_shutdown=_GRACE_S,
            )
        )  # fmt: skip
        self._listening = listening
        self._announce, self._told_to_stop = announce, told_to_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce(f"http://{_LOOPBACK}:{self._listening.getsockname()[1]}/v1")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._told_to_stop()
        super().handle_exit(sig, frame)

    def run_here(self) -> None:
        """Serve until `should_exit` is set; returns at once, not `started`, if the app fails to."""
        with suppress(SystemExit):  # uvicorn's answer to an app that does not start
            self.run(sockets=[self._listening])


def _listen(port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off for sockets that name TCP; it costs 40 ms per reply
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((_LOOPBACK, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"port: {_LOOPBACK}:{port} cannot be listened on ({error}); "
            "choose another, or 0 for a free one"
        ) from error
    return listening


def serve(
    app: Starlette, *, port: int, announce: Callable[[str], None],
    told_to_stop: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Serve on the loopback interface until SIGTERM or SIGINT, then return.

    Port 0 picks a free one; `announce` gets the base URL once the host listens. When told to stop,
    which `told_to_stop` is called at, requests under way have a second left and the batch being
    generated is finished, however long it takes. Call it from the main thread, where signals
    arrive. Raises ConfigError when the port cannot be had.
    """
    with _listen(port) as listening:
        server = _Server(app, listening, announce=announce, told_to_stop=told_to_stop)

        def stop(_signal: int, _frame: object) -> None:
            server.should_exit = True

        # uvicorn raises the signal again when it is done, and that would end the process
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            server.run_here()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if not server.started:
            raise RuntimeError(_NOT_STARTED)


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve on a free port in a background thread; yields the base URL, stops on leaving."""
    with _listen(0) as listening:
        urls: list[str] = []
        started = threading.Event()

        def announce(url: str) -> None:
            urls.append(url)
            started.set()

        server = _Server(app, listening, announce=announce)

        def run() -> None:
            try:
                server.run_here()
            finally:
                started.set()

        thread = threading.Thread(target=run, name="testbed-server")
        thread.start()
        try:
            started.wait()
            if not server.started:
                raise RuntimeError(_NOT_STARTED)
            yield urls[0]
        finally:
            server.should_exit = True
            thread.join()
