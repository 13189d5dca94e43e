"""The dashboard holds the models of one version at a time, and nobody who has gone holds any."""

import ctypes
import gc
import weakref
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine.inference.panel import Panel
from engine.results.published import PublishedVersion
from ui import loaders
from ui.frame import settle
from ui.memory import give_back

PROJECT = Path(__file__).resolve().parent.parent


def test_the_shown_versions_models_alone_are_held(phantom_version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version takes their place before it is read, also where a reader still has their page open."""
    opened: list[weakref.ref[Panel]] = []
    others_held: list[int] = []

    def open_panel(version: PublishedVersion) -> Panel:
        gc.collect()
        others_held.append(sum(one() is not None for one in opened))
        panel = panel_of(version)
        opened.append(weakref.ref(panel))
        return panel

    panel_of = loaders.open_panel
    monkeypatch.setattr(loaders, "open_panel", open_panel)
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    loaders.load_panel.clear()
    page = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page("pages/4_Compare.py").run()
    assert not page.error
    assert [one() is not None for one in opened] == [True]
    page.run()
    assert len(opened) == 1, "a page that runs again reads nothing again"
    loaders.load_panel(str(phantom_version / "phantoms" / "v1"), "as if another manifest")
    assert others_held == [0, 0]
    loaders.load_panel.clear()


def test_freed_memory_goes_back_to_the_machine() -> None:
    """Many small pieces, one in a hundred kept, as models leave them behind: glibc keeps their place by itself."""
    pieces = [bytearray(60_000) for _ in range(3_000)]
    held = resident_megabytes()
    del pieces[:-1]
    give_back()
    assert resident_megabytes() < held - 120


def test_libraries_are_not_walked_through_after_every_run() -> None:
    settle.cache_clear()
    settle("a page")
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    settle("a page")
    assert gc.get_freeze_count() <= frozen, "once a page"
    gc.unfreeze()


def resident_megabytes() -> float:
    status = Path("/proc/self/status")
    if not status.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("glibc on Linux alone")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000
