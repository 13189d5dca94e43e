"""NVFlare's cross-site validation, `cross_site_val/cross_val_results.json` in a server's job folder.

As `ValidationJsonGenerator` writes it (nvflare/app_common/widgets/validation_json_generator.py, read at 2.9.0):
{hospital whose images: {model: {metric: value}}}. Models of the server begin with "SRV_"; another is the hospital's of
that name. Numbers of numpy's own types may stand as text, because its writer falls back to `str`.
"""

from typing import Any

from engine.errors import RunError
from engine.results.foreign import Reading, figure, require_label, require_object

KIND = "neither a Flower result nor NVFlare's cross-site validation (hospital, model, metric)"


def read_cross_site(content: Any) -> Reading:
    """Raises RunError where it is of another shape."""
    if not isinstance(content, dict):
        raise RunError(f"is {KIND}")
    scores: dict[str, dict[str, dict[str, float]]] = {}
    left_out = []
    for hospital, models in content.items():
        require_label(hospital, "a hospital")
        if not isinstance(models, dict):
            raise RunError(f"is {KIND}: '{hospital}' holds no models")
        scores[hospital] = {}
        for model, metrics in models.items():
            where = f"{hospital}, {require_label(model, hospital)}"
            found = scores[hospital][model] = {}
            for metric, value in require_object(metrics, where).items():
                number = figure(value, f"{where}, {require_label(metric, where)}")
                if number is None:
                    left_out.append(f"{where}, {metric}")
                else:
                    found[metric] = number
    return Reading("NVFlare", "NVFlare's cross-site validation", {}, scores, tuple(left_out))
