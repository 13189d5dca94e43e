"""One process at a time, and which one it is."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import RunError
from engine.results.files import cannot_write


@contextmanager
def alone_with(lock_file: Path, doing: str) -> Iterator[None]:
    """Hold a lock that goes with its process, however that ends; its folder is made. Where another process holds it,
    raises RunError: `doing`, "by another process", and what to do."""
    from filelock import FileLock, Timeout  # here, because the dashboard reads results and locks nothing

    lock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(f"{doing} by another process; wait for it or stop it first") from None
    except OSError as error:
        raise cannot_write(lock_file, error) from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock_file.unlink()  # while it is held, so that it can be nobody else's by now
        lock.release()


def lock_holder(lock_file: Path) -> int | None:
    """The process on this machine that holds the lock, as Linux tells it; None where nobody does, or none can tell."""
    try:
        inode = lock_file.stat().st_ino
        rows = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for row in rows:  # 1: FLOCK  ADVISORY  WRITE 17859 fe:00:2230568 0 EOF; with -> after the number one that waits
        _, kind, *_, pid, place, _, _ = row.split()
        if kind == "FLOCK" and place.rpartition(":")[2] == str(inode) and int(pid) > 0:
            return int(pid)
    return None
