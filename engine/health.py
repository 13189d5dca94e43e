"""`GET /healthz` for whoever keeps a long-running command alive: what it does, in JSON."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from engine.errors import ConfigError


@contextlib.contextmanager
def health_endpoint(
    host: str, port: int | None, is_well: Callable[[], bool], status: Mapping[str, str]
) -> Iterator[None]:
    """200 while `is_well`, else 503; nothing where there is no port."""
    if port is None:
        yield
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/healthz"
            well = is_well()
            body = json.dumps({"well": well, **status}).encode() if known else b""
            self.send_response(404 if not known else 200 if well else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Not a line for every probe."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"--health-port {port}: cannot listen on {host} ({error.strerror}); give another") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
