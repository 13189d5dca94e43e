"""Every page and one opinion with requirements.txt alone: no page may fail. `python .ci/dashboard.py`."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from streamlit.testing.v1 import AppTest  # noqa: E402

TIMEOUT_S = 120


def found(page: str, app: AppTest) -> list[str]:
    return [f"{page}: {error.value}" for error in [*app.exception, *app.error]]


def main() -> None:
    home = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=TIMEOUT_S).run()
    wrong = found("app.py", home)
    for page in sorted((PROJECT / "pages").glob("*.py")):
        wrong += found(page.name, home.switch_page(f"pages/{page.name}").run())
    picture = "models/brain-mri/v1/composite-1.png"
    subprocess.run([sys.executable, "-m", "engine", "predict", "brain-mri", picture, "--json"], cwd=PROJECT, check=True)
    if "torch" in sys.modules:
        wrong.append("a page imported torch")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
