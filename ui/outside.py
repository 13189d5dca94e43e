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
    folder, name = artifacts_folder() / version.manifest.run, federation.display_name(EXTERNAL)
    if not folder.is_dir() or not came_from(version, Run(folder)):
        return ""
    try:
        cell = load_evaluation(Run(folder))["splits"].get(EXTERNAL, {}).get("global", {}).get(ALL)
    except ConsiliumError as error:
        return f'What it is worth on "{name}" cannot be read: {error}'
    if cell is None:
        return ""
    kept = f'On "{name}" ({count(cell["n_images"], "image")} that no hospital held, before '
    if federation.positive_class is None or cell.get("sensitivity") is None or cell.get("specificity") is None:
        headline = federation.headline.replace("_", " ")
        return f"{kept}quantisation) its {headline} is {score_text(cell, federation.headline)}."
    cases = cell["per_class"][federation.positive_class]["support"]
    errors = Errors(federation.positive_class, cell["missed"], cases, cell["false_alarms"], cell["n_images"] - cases)
    return f"{kept}quantisation) {errors.sentence('it')}"
