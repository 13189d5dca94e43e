"""Whether a run can be published under a name, as far as files tell: asked before anything is loaded."""

from pathlib import Path

from engine.errors import ModelError
from engine.results.published import NAME, list_versions
from engine.results.run_folder import Run, weights_name


def require_publishable(run: Run, name: str, models: Path) -> None:
    """Raise ModelError or RunError with the one reason why not, and what to do."""
    if not NAME.fullmatch(name):
        raise ModelError(f"'{name}' is no model name; use lower-case letters, digits and '-'")
    _ = run.manifest  # an unfinished run has none
    run.require_labels()
    run.require_whole("publish")
    if run.config.transport == "flower":
        raise ModelError(
            f"{run.folder}: was trained over a network, and what publishing fits (calibration, the refusal gate) needs "
            "the hospitals' single predictions, which stay with them"
        )
    private = run.federation.aggregation.keeps_private
    if private and "federated" in run.federation.arms:
        raise ModelError(
            f"{run.folder}: aggregation.strategy = '{run.federation.aggregation.strategy}' leaves each hospital "
            f"{private}, so no one federated model exists to serve; publish a run of another strategy "
            "(the personal models are in weights/personal-*)"
        )
    for model in dict.fromkeys(line.model for line in run.rounds()):
        if weights_name(model) in run.manifest.files:
            run.weights(model)
    for other in list_versions(models, name)[-1:]:
        if other.federation.name != run.federation.name:
            raise ModelError(
                f"'{name}' is '{other.federation.name}'; publish '{run.federation.name}' under its own name"
            )
