"""The views of Evaluation beyond Scores, by the name that its selector shows. Only the chosen one runs."""

from collections.abc import Callable

from engine.results.run_folder import Run
from ui.gains import draw_gains
from ui.privacy import draw_privacy

SCORES_VIEW = "Scores"
VIEWS: dict[str, Callable[[Run], None]] = {
    "Who gains": draw_gains,
    "Privacy": draw_privacy,
}
