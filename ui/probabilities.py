"""All probabilities of all models as a table, beside each how often the model was right on test images."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from engine.config import Federation
from engine.results.words import percent
from ui.opinions import Opinions, ordered

Operating = Mapping[str, Mapping[str, Mapping[str, Any]]]  # {model: {class: {sensitivity, specificity, n_...}}}
EXPLAIN = (
    "Sens., sensitivity: the share of a class's test images that the model gives this class first. "
    "Spec., specificity: the share of the other test images that it does not. "
    "Measured on n test images of all hospitals."
)


def probability_table(federation: Federation, opinions: Opinions, operating: Operating | None = None) -> pd.DataFrame:
    """Models by classes, as percentages for st.table, which reads Markdown: a ">" at the start must not quote."""
    models = ordered(federation, opinions)

    def cell(model: str, label: str) -> str:
        probability = percent(opinions[model].probabilities[label])
        measured = operating_words((operating or {}).get(model, {}).get(label, {}))
        return (f"{probability} :small[{measured}]" if measured else probability).replace(">", "\\>")

    return pd.DataFrame(
        {label: [cell(model, label) for model in models] for label in federation.classes},
        index=pd.Index([federation.model_name(model) for model in models], name="Model"),
    )


def operating_words(measured: Mapping[str, Any]) -> str:
    """ "sens. 91.2% (n = 34), spec. 97.3% (n = 102)"; what was not measured is left out."""
    found = (("sens.", "sensitivity", "n_cases"), ("spec.", "specificity", "n_others"))
    return ", ".join(
        f"{short} {percent(measured[name])} (n = {measured[n]:,})".replace(" ", "\N{NO-BREAK SPACE}")
        for short, name, n in found
        if measured.get(name) is not None and measured.get(n)
    )
