"""SuperLink and SuperNode as child processes that end with their parent, and are started again where they fall."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# No code that comes with a run, no packages that it asks for, no calls to anyone but the coordinator.
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
# glibc keeps what many threads free, and a process grows by every message's megabytes.
ARENAS, LARGE_BYTES = 2, 262_144
FRUGAL = {"MALLOC_ARENA_MAX": str(ARENAS), "MALLOC_MMAP_THRESHOLD_": str(LARGE_BYTES)}
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
PR_SET_PDEATHSIG = 1


class Child:
    """One child process of this Python; `ensure` starts it again after it has ended."""

    def __init__(self, command: Sequence[str], home: Path, log_file: Path) -> None:
        self._command = [sys.executable, *command]
        self._environment = {**os.environ, **QUIET, **FRUGAL, "FLWR_HOME": str(home)}
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> None:
        if self.is_running:
            return
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                start_new_session=True,  # a Ctrl-C is ours to pass on
            )
        self.starts += 1

    def ask_to_stop(self) -> None:
        if self._process is not None and self.is_running:
            self._process.terminate()

    def stop(self) -> None:
        if self._process is None or not self.is_running:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running(child: Child) -> Iterator[Child]:
    child.ensure()
    try:
        yield child
    finally:
        child.stop()


def give_memory_back() -> None:
    """What `FRUGAL` is for a child, for this process."""
    with contextlib.suppress(AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, ARENAS)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
