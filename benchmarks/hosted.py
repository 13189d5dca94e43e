"""The hosted demo on the smallest floor: pages' p95, memory with three federations, with 20 readers and after many
switches between federations, disk, and once with a tenth of a core and 690 MB."""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import dashboard
import typer
from dashboard import DRAWN, PAGES, PATIENCE_SECONDS, PROJECT, memory_megabytes, open_path, serve, wait_for_server
from pairs import show
from playwright.sync_api import Browser, Page, sync_playwright

from engine.results.published import models_folder, published_names
from engine.results.run_folder import artifacts_folder, list_runs

CONTROL = Path("/sys/fs/cgroup")
GROUP = "consilium-hosted"
PERIOD_MICROSECONDS = 100_000


def every_page() -> list[str]:
    """Paths of all pages, of every run and published name that the dashboard has."""
    runs = [f"{page}?run={run.name}" for run in list_runs(artifacts_folder()) for page in PAGES if page != "Compare"]
    return ["", *runs, *(f"Compare?model={name}" for name in published_names(models_folder()))]


def disk_megabytes(packages: Path) -> tuple[float, float]:
    """MB of all installed files but pip's own, and of those that are no bytecode, which pip adds and uv does not."""
    files = [
        file
        for file in packages.rglob("*")
        if file.is_file() and not file.relative_to(packages).parts[0].startswith(("pip", "setuptools"))
    ]
    sizes = {file: file.stat().st_size / 1e6 for file in files}
    return sum(sizes.values()), sum(size for file, size in sizes.items() if file.suffix != ".pyc")


def switch(page: Page, title: str) -> None:
    """Choose another federation in Compare's sidebar, as a reader does."""
    page.get_by_role("combobox", name="Federation").click()
    page.get_by_role("option", name=title, exact=True).click()
    page.wait_for_timeout(50)  # the script has begun by now
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)


def titles(page: Page) -> list[str]:
    page.get_by_role("combobox", name="Federation").click()
    found = page.get_by_role("option").all_inner_texts()
    page.keyboard.press("Escape")
    return found


@contextmanager
def control_group(core: float, megabytes: int) -> Iterator[list[str]]:
    """A command that runs another within so much of a core and so much memory. Linux, root, cgroups of version 1."""
    cpu, memory = CONTROL / "cpu" / GROUP, CONTROL / "memory" / GROUP
    for folder in (cpu, memory):
        folder.mkdir(exist_ok=True)
    (cpu / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
    (cpu / "cpu.cfs_quota_us").write_text(str(int(core * PERIOD_MICROSECONDS)))
    (memory / "memory.limit_in_bytes").write_text(str(megabytes * 1_000_000))
    enter = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in (cpu, memory))
    try:
        yield ["sh", "-c", f'{enter} && exec "$@"', "sh"]
    finally:
        for folder in (cpu, memory):
            folder.rmdir()


def on_a_small_machine(browser: Browser, core: float, megabytes: int) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    with control_group(core, megabytes) as before:
        started = time.perf_counter()
        with serve(PROJECT / "app.py", *before) as server:
            wait_for_server()
            page = browser.new_page()
            open_path(page)
            rows[f"{core:g} core, {megabytes} MB: cold Home"] = _row([time.perf_counter() - started])
            seen = [open_path(page, path) for path in every_page()]
            rows[f"{core:g} core, {megabytes} MB: every page, first visits"] = _row(seen, memory_megabytes(server))
            seen = [open_path(page, path) for path in every_page()]
            rows[f"{core:g} core, {megabytes} MB: every page, again"] = _row(seen, memory_megabytes(server))
            page.close()
    return rows


def main(
    repeats: int = 20,
    sessions: int = 20,
    switches: int = 200,
    small: Annotated[bool, typer.Option(help="Also with a tenth of a core and 690 MB (Linux, root)")] = False,
    packages: Annotated[
        Path | None, typer.Option(help="site-packages of an environment with requirements.txt alone")
    ] = None,
    chromium: Annotated[str, typer.Option(help="The browser")] = "/usr/bin/chromium",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    os.environ.setdefault("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false")
    rows: dict[str, dict[str, object]] = {}
    if packages is not None:
        everything, without_bytecode = disk_megabytes(packages)
        rows["requirements.txt on disk"] = _row([], everything)
        rows["without bytecode"] = _row([], without_bytecode)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with serve(PROJECT / "app.py") as server:
            wait_for_server()
            page = browser.new_page()
            for path in every_page():
                open_path(page, path)
            rows["after every page of every run and model"] = _row([], memory_megabytes(server))
            for path in ("", *PAGES):
                seen = [open_path(page, path) for _ in range(repeats)]
                rows[f"warm {path or 'Home'}"] = _row(seen, memory_megabytes(server))
            if switches:
                open_path(page, "Compare")
                names = titles(page)
                for number in range(20):  # until every cache is as full as it gets
                    switch(page, names[number % len(names)])
                before = memory_megabytes(server)
                for number in range(switches):
                    switch(page, names[number % len(names)])
                rows[f"grown by {switches} switches of the federation"] = _row([], memory_megabytes(server) - before)
            page.close()
            readers = []
            for number in range(sessions):
                reader = browser.new_context().new_page()
                open_path(reader, ("", *PAGES)[number % (1 + len(PAGES))])
                if reader.get_by_text("every place is taken").count():
                    raise SystemExit(f"reader {number + 1} got no seat; set CONSILIUM_SESSIONS")
                readers.append(reader)
            rows[f"{sessions} readers"] = _row([], memory_megabytes(server))
            rows["peak"] = _row([], memory_megabytes(server, "VmHWM"))
            for reader in readers:
                reader.context.close()
        if small:
            dashboard.PATIENCE_SECONDS = 300
            rows |= on_a_small_machine(browser, 0.1, 690)
        browser.close()
    show("The hosted demo", rows, as_json=as_json)


def _row(seconds: list[float], megabytes: float | None = None) -> dict[str, object]:
    return {
        "median_seconds": statistics.median(seconds) if seconds else "",
        "p95_seconds": statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else "",
        "longest_seconds": max(seconds, default=""),
        "megabytes": megabytes if megabytes is not None else "",
    }


if __name__ == "__main__":
    typer.run(main)
