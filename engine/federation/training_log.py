"""`training.log`: what a training tells while it runs, whoever started it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("consilium")


class _LogFile(logging.Handler):
    """Appends line by line. What the disk no longer takes is not told twice: the next result's write says it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8") as stream:
            stream.write(self.format(record) + "\n")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Everything that `log` hears, and why a training ended early, goes to this file."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt:
        log.warning("stopped by hand")
        raise
    except BaseException as error:
        log.error("stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
