"""What a model calls wrongly, the surest first: there its data, its labels or what it learned are worth a look."""

import numpy as np
import pandas as pd

from engine.results.answers import Answers


def mistakes(answers: Answers, model: str) -> pd.DataFrame:
    """Columns hospital, path, label (the truth), called, confidence (of what it was called) and p_label (of the
    truth), a row per image that is called wrongly; equal confidences by path."""
    probabilities, labels = answers.probabilities(model), answers.labels
    called = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    table = answers.images[["hospital", "path", "label"]].assign(
        called=np.array(answers.classes, object)[called],
        confidence=probabilities[rows, called],
        p_label=probabilities[rows, labels],
    )
    wrong: pd.DataFrame = table[called != labels].sort_values(
        ["confidence", "path"], ascending=[False, True], ignore_index=True
    )
    return wrong
