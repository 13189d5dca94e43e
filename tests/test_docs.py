"""The pages in docs/: their examples run, their commands and links exist, and what is made from the code is current.

A fenced block's first line says what it is for: "toml FILE" and "python FILE" are written to FILE, ">> FILE" is
appended, "diff FILE" changes it, "python" runs, and of "bash" every `python -m engine` runs.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from engine.cli import app
from engine.results.run_folder import find_run
from tests.conftest import PROJECT

PAGES = sorted([*(PROJECT / "docs").glob("*.md"), *PROJECT.glob("*.md")])
RUN = """
import json, sys
from engine.cli import main

for kind, text in json.load(open("steps.json")):
    if kind == "python":
        exec(compile(text, "the page's own", "exec"), {"__name__": "page"})
        continue
    sys.argv = ["python -m engine", *text]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{text}: {ended.code}")
"""


class Block(NamedTuple):
    language: str
    target: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for found in re.finditer(
        r"^( *)```(\w+)[ ]?([^\n]*)\n(.*?)^\1```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        yield Block(found[2], found[3], found[4])


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `python -m engine` of a shell block; placeholders stay as they are."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(r"python -m engine (.*)", line)
        if found:
            yield shlex.split(found[1], comments=True)


def change(file: Path, diff: str) -> None:
    """Apply one hunk whose place its unchanged and removed lines say; that must be one place."""
    old, new = ("".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] not in without) for without in "+-")
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file.name} has not once: {old}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def follow(page: Path, clone: Path) -> None:
    """Do what the page says in `clone`, whose engine it may change."""
    steps: list[tuple[str, Any]] = []
    for block in blocks(page):
        file = clone / block.target.removeprefix(">> ")
        if block.language == "diff":
            change(file, block.text)
        elif block.target.startswith(">> "):
            name = block.target.removeprefix(">> ")
            steps.append(("python", f"with open({name!r}, 'a') as f: f.write({block.text!r})"))
        elif block.target:
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            steps.append(("python", block.text))
        elif block.language == "bash":
            steps += [("engine", arguments) for arguments in commands(block.text)]
    (clone / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    unset = ("CONSILIUM_DATA", "CONSILIUM_MODELS", "CONSILIUM_ARTIFACTS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of which the pages' examples may change everything, after add-hospitals.md was followed."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("engine", "ui", "federations"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (folder / "artifacts").mkdir()
    for run in ("run-001", "run-002", "run-003", "run-004", "run-005"):  # as they come with a clone
        (folder / "artifacts" / run).symlink_to(PROJECT / "artifacts" / run)
    follow(PROJECT / "docs" / "add-hospitals.md", folder)
    return folder


@pytest.mark.slow
def test_a_federation_and_a_hospital_are_added_as_the_page_says(clone: Path) -> None:
    first, second = (find_run(clone / "artifacts", name) for name in ("run-006", "run-007"))
    first.verify(with_weights=True)
    assert [hospital.id for hospital in first.federation.hospital] == ["north", "south"]
    assert [hospital.id for hospital in second.federation.hospital] == ["north", "south", "island"]
    assert json.loads((clone / "models/clinics/current.json").read_text())["version"] == "v1"
    assert {path.suffix for path in (clone / "reports").iterdir()} == {".json", ".pdf"}


@pytest.mark.slow
def test_a_strategy_and_an_objective_are_added_as_the_page_says(clone: Path) -> None:
    follow(PROJECT / "docs" / "extend.md", clone)
    config = [json.loads((clone / f"artifacts/run-00{n}/config.json").read_text())["federation"] for n in (8, 9)]
    assert config[0]["aggregation"] == {"strategy": "norm-clip", "norm": 0.5}
    assert config[1]["pretext"]["objective"] == "barlow-twins"
    find_run(clone / "artifacts", "run-009").verify()


def test_what_is_made_from_the_code_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=PROJECT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@cache
def root() -> Any:
    return typer.main.get_command(app)


def options_of(arguments: list[str]) -> tuple[list[str], set[str]]:
    """The words of `arguments` that name a command, and the options it has."""
    command, words = root(), []
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
        words.append(word)
    return words, {option for p in command.params for option in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    for block in blocks(page):
        for arguments in commands(block.text) if block.language in ("bash", "text") else ():
            if page.name == "commands.md":
                continue
            words, options = options_of(arguments)
            assert words, arguments
            unknown = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in options]
            assert not unknown, (arguments, unknown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, place = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if place:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_troubleshooting_quotes_what_the_program_says() -> None:
    """The first column's quotations stand in the engine's source, where a long text may be split over lines."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((PROJECT / "engine").rglob("*.py")))
    whole = re.sub(r'"\s*\n\s*f?"', "", source)
    rows = re.findall(r"^\| (`.+?) \|", (PROJECT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [quotation for row in rows for quotation in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 12
    assert [quotation for quotation in quoted if quotation not in whole] == []
