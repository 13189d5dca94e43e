"""The views of Evaluation beyond Scores, by the name that its selector shows. Only the chosen one runs."""

from collections.abc import Callable

from engine.results.run_folder import Run
from ui.calibration import draw_calibration
from ui.gains import draw_gains
from ui.mistakes import draw_mistakes
from ui.privacy import draw_privacy
from ui.roc import draw_roc
from ui.subgroups import draw_subgroups
from ui.thresholds import draw_thresholds

SCORES_VIEW = "Scores"
VIEWS: dict[str, Callable[[Run], None]] = {
    "Who gains": draw_gains,
    "Calibration": draw_calibration,
    "Errors": draw_mistakes,
    "ROC and PR": draw_roc,
    "Threshold": draw_thresholds,
    "Subgroups": draw_subgroups,
    "Privacy": draw_privacy,
}
