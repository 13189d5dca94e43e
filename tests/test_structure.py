"""The house rules that a machine can check."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SERVING = ("inference", "results", "data")
ALLOWED = {
    "results": {"results"},
    "data": {"data", "results"},
    "training": {"training", "data", "results"},
    "federation": {"federation", "training", "data", "results"},
    "publishing": {"publishing", "federation", "training", "data", "results", "inference"},
    "inference": {"inference", "data", "results"},
}
ROOT_MODULES = {
    "aggregation_config",
    "config",
    "errors",
    "pretext_config",
    "privacy_config",
    "sections",
    "secure_aggregation_config",
}


def imports_of(path: Path, *, at_the_top: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows_run_one_way(package: str) -> None:
    for path in (PROJECT / "engine" / package).rglob("*.py"):
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "engine" and len(parts) > 1 and parts[1] not in ROOT_MODULES | {"__version__"}:
                assert parts[1] in ALLOWED[package], f"{path.relative_to(PROJECT)} imports {name}"


def test_the_engine_never_imports_streamlit_and_serving_never_torch() -> None:
    for path in (PROJECT / "engine").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"streamlit", "ui", "pages"}, path
        # cli.py and doctor.py import torch inside the commands that need it
        roots = {name.split(".")[0] for name in imports_of(path, at_the_top=path.parent.name == "engine")}
        if path.parent.name in SERVING or path.parent.name == "engine":
            assert not roots & {"torch", "torchvision", "safetensors", "onnx"}, path


def test_pages_import_only_the_serving_side() -> None:
    for path in [PROJECT / "app.py", *(PROJECT / "pages").glob("*.py"), *(PROJECT / "ui").rglob("*.py")]:
        for name in imports_of(path):
            parts = name.split(".")
            assert parts[0] not in {"torch", "torchvision"}, path
            if parts[0] == "engine" and len(parts) > 1:
                assert parts[1] in {*SERVING, *ROOT_MODULES}, f"{path.name} imports {name}"


def test_pages_are_thin_and_begin_with_the_frame() -> None:
    pages = sorted((PROJECT / "pages").glob("*.py"))
    assert [page.name for page in pages] == [
        "1_Hospitals.py",
        "2_Training.py",
        "3_Evaluation.py",
        "4_Compare.py",
        "5_Runs.py",
    ]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 80, page.name
        calls = [
            statement.value.func
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        ]
        assert isinstance(calls[0], ast.Name)
        assert calls[0].id == "draw_frame", page.name


def test_no_file_outgrows_its_idea() -> None:
    files = [*(PROJECT / "engine").rglob("*.py"), *(PROJECT / "ui").rglob("*.py"), *(PROJECT / "pages").glob("*.py")]
    too_long = {str(path.relative_to(PROJECT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not too_long


def test_the_dashboards_requirements_hold_no_torch_and_are_pinned() -> None:
    for name in ("requirements.txt", "requirements-engine.txt", "requirements-dev.txt"):
        rows = [row for row in (PROJECT / name).read_text().splitlines() if row and not row.startswith(("#", "-r"))]
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[0-9][\w.]*", row) for row in rows), name
    assert "torch" not in (PROJECT / "requirements.txt").read_text().replace("No torch", "")


def test_the_readmes_layout_is_what_is_there() -> None:
    block = re.search(r"```text\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    stack: list[tuple[int, str]] = []
    for row in block.group(1).splitlines():
        indent, name = len(row) - len(row.lstrip()), row.split()[0]
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = PROJECT.joinpath(*(part for _, part in stack), name)
        if not name.startswith(("artifacts", "data", "models")) or stack:  # those appear with the first run
            assert path.exists(), f"README names {path.relative_to(PROJECT)}"
        if name.endswith("/"):
            stack.append((indent, name))


def test_the_readmes_layout_leaves_nothing_out() -> None:
    block = re.search(r"```text\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    named = {row.split()[0].rstrip("/") for row in block.group(1).splitlines()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split()
    tops = {path.partition("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    assert tops <= named
    assert {path.split("/")[1] for path in tracked if path.startswith("engine/") and path.count("/") > 1} <= named


def test_the_shim_is_needed_only_beside_a_torch_that_does_not_fit() -> None:
    """Whichever build is here, the networks import and torchvision's models work."""
    code = (
        "from engine.training.torchvision_import import torchvision_models as m; print(m().resnet18().fc.out_features)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1000", done.stderr


def test_serving_leaves_nothing_on_disk_and_asks_nobody(phantom_version: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own telemetry would write into the home folder and look its collector up."""
    program = (
        "from pathlib import Path; from engine.inference.panel import open_panel; "
        "from engine.results.published import current_version; "
        f"open_panel(current_version(Path({str(phantom_version)!r}), 'phantoms'))"
    )
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environment, check=True)
    assert [path for folder in (home, scratch) for path in folder.rglob("*") if path.is_file()] == []
