"""What a version's federated model is worth on images from outside its hospitals, where the run measured that."""

from engine.config import EXTERNAL
from engine.errors import ConsiliumError
from engine.results.published import PublishedVersion
from engine.results.rounds import ALL
from engine.results.run_folder import Run, artifacts_folder
from engine.results.words import count
from ui.lineage import came_from
from ui.loaders import load_evaluation
from ui.words import Errors, score_text


def outside_sentence(version: PublishedVersion) -> str:
    """Empty where the federation has no external set, or the run is not on this machine."""
    federation = version.manifest.federation
    if federation.external is None:
        return ""
    try:
        run = Run(artifacts_folder() / version.manifest.run)
        if not came_from(version, run):
            return ""
        cell = load_evaluation(run)["splits"][EXTERNAL]["global"][ALL]
    except (ConsiliumError, KeyError):
        return ""
    kept = f"On {federation.display_name(EXTERNAL)} ({count(cell['n_images'], 'image')} that no hospital held, before "
    if federation.positive_class is None or cell.get("sensitivity") is None or cell.get("specificity") is None:
        name = federation.headline.replace("_", " ")
        return f"{kept}quantisation) its {name} is {score_text(cell, federation.headline)}."
    cases = cell["per_class"][federation.positive_class]["support"]
    errors = Errors(federation.positive_class, cell["missed"], cases, cell["false_alarms"], cell["n_images"] - cases)
    return f"{kept}quantisation) {errors.sentence('it')}"
