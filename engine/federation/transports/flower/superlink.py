"""Flower's SuperLink behind one door: `python -P superlink.py`, with its options. It needs nothing of this project.

Its Control API asks nobody who they are: whoever reaches it may register nodes and start runs. So from another machine
only what SuperNodes need is reachable, which their keys protect.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.superlink import main
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware

# Its database's. Twelve hospitals that answer at once wait for each other over five seconds, and were turned away;
# and every connection's 64 MB of cache and map of the file is memory that grows with the hospitals.
PRAGMAS = {"busy_timeout": "120000", "cache_size": "-4000", "mmap_size": "0"}
OPEN = ("/v1/fleet/",)
HERE = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class OneDoor:
    """ASGI middleware: 404 for all but `OPEN` to anyone who is not on this machine."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, own = ((scope.get(side) or ("", 0))[0] for side in ("client", "server"))
        here = client in HERE or client == own  # this machine under its own address
        open_path = scope["type"] == "http" and scope["path"].startswith(OPEN) and ".." not in scope["path"]
        if scope["type"] == "lifespan" or here or open_path:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})


if __name__ == "__main__":
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple((name, PRAGMAS.get(name, value)) for name, value in SQLITE_PRAGMAS)
    inner = main._get_middleware
    main._get_middleware = lambda: [Middleware(OneDoor), *inner()]
    flower_superlink()
