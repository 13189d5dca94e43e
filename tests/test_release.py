"""What a release says of itself: one version everywhere, and files that follow the schemas of those who read them."""

import re
import subprocess
import sys
import tomllib

import pytest

from engine import __version__
from tests.conftest import PROJECT

FOLLOWS = {
    "CITATION.cff": "vendor.citation-file-format",
    ".github/workflows/ci.yml": "vendor.github-workflows",
    ".github/ISSUE_TEMPLATE/report.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "vendor.github-issue-config",
}


def test_one_version_everywhere() -> None:
    """Flower reads pyproject.toml's, and a dashboard that is not installed has engine's alone."""
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["version"] == __version__
    assert re.search(rf"^version: {re.escape(__version__)}$", (PROJECT / "CITATION.cff").read_text(), re.MULTILINE)
    titles = re.findall(r"^## (.+)$", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(title for title in titles if title != "Unreleased").split()[0] == __version__


@pytest.mark.parametrize("file", FOLLOWS)
def test_it_follows_its_schema(file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", FOLLOWS[file], str(PROJECT / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_ci_asks_of_the_dashboard_holds() -> None:
    """.ci/dashboard.py, which CI runs with requirements.txt alone on other Pythons."""
    done = subprocess.run(
        [sys.executable, ".ci/dashboard.py"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
