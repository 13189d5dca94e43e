"""A run as an MLflow run, through MLflow's own client: settings as params, curves and scores as metrics, papers as
artifacts. Weights stay here, and so does what names single images or people: splits, audit, predictions, logs.

MLflow 3.17 refuses to open the `mlruns` folders that older versions wrote, so none is written: a folder gets an SQLite
store, `mlflow.db`, which its server opens, and a tracking URI is written to as it is. Checked with mlflow-skinny 3.17.2
(requirements-mlflow.txt), which the tests use where it is installed.
"""

import datetime
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.config import Federation
from engine.errors import RunError
from engine.results.files import sha256_of
from engine.results.rounds import RoundLine
from engine.results.run_folder import EVALUATION, Run
from engine.results.words import DISCLAIMER

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "n_images", "sensitivity", "specificity")
PAPERS = re.compile(
    r"metrics/\w+\.csv|rounds\.jsonl|"
    r"(config|environment|dataset_stats|label_map|training_history|evaluation|communication|privacy)\.json"
)
MAX_PARAM = 6000  # characters, MLflow's own limit
PLAIN = re.compile(r"[\w-]+", re.ASCII)  # what surely may stand in a param's name
MANIFEST_TAG = "consilium.manifest_sha256"


class Metric(NamedTuple):
    key: str
    value: float
    step: int


def export_mlflow(run: Run, to: str) -> str:
    """Add the run to the experiment of its federation's name, below `to`; gives the id of the MLflow run.

    `to` is a folder, or a tracking URI such as http://127.0.0.1:5000. Raises RunError where the run is damaged, is
    there already, or MLflow takes it not; an MLflow run that was begun is then taken back.
    """
    run.verify()
    federation, manifest = run.federation, run.manifest
    figures = list(run_metrics(run))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient, entities
    from mlflow.exceptions import MlflowException

    sha256 = sha256_of(run.folder / "manifest.json")
    begun = None
    try:
        uri, artifacts = _place(to)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(federation.name)
        if experiment is None:
            experiment_id = client.create_experiment(federation.name, artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        known = f"tags.`{MANIFEST_TAG}` = '{sha256}' AND attributes.status = 'FINISHED'"
        if there := client.search_runs([experiment_id], known, max_results=1):
            raise RunError(f"{to}: holds {run.name} already, as {there[0].info.run_id}; delete it there first")
        tags = {MANIFEST_TAG: sha256, "consilium.run": run.name, "mlflow.note.content": _note(run)}
        start, end = (_milliseconds(time) for time in (manifest.started_at, manifest.finished_at))
        begun = client.create_run(experiment_id, start_time=start, tags=tags, run_name=run.name).info.run_id
        params = [entities.Param(*setting) for setting in settings(federation).items()]
        metrics = [entities.Metric(one.key, one.value, end, one.step) for one in figures]
        for at in range(0, len(params), 100):  # as many as MLflow takes at once
            client.log_batch(begun, params=params[at : at + 100])
        for at in range(0, len(metrics), 1000):
            client.log_batch(begun, metrics=metrics[at : at + 1000])
        for name in (name for name in manifest.files if PAPERS.fullmatch(name)):
            parent = Path(name).parent.as_posix()
            client.log_artifact(begun, str(run.folder / name), None if parent == "." else parent)
        client.set_terminated(begun, end_time=end)
    except BaseException as error:
        if begun is not None:
            _take_back(client, begun)
        if not isinstance(error, MlflowException | OSError):
            raise
        said = " ".join(str(error).split())
        raise RunError(f"{to}: MLflow does not take the run: {said[:200]}; give another folder or URI") from None
    return str(begun)


def run_metrics(run: Run) -> Iterator[Metric]:
    """Keys {fit|validation}/MODEL/{all|HOSPITAL}/METRIC with the round as step; SPLIT/... of the chosen round, with
    .low and .high the ends of a 95% interval, at step 0."""
    for line in run.rounds():
        yield from _round_metrics(line)
    if EVALUATION not in run.manifest.files:
        return
    for split, models in run.read_json(EVALUATION)["splits"].items():
        for model, cells in models.items():
            for hospital, cell in cells.items():
                yield from _cell_metrics(f"final/{split}/{model}/{hospital}", cell)


def settings(federation: Federation) -> dict[str, str]:
    """Every setting under its dotted name, hospitals by their id; lists, and what has names of its own, as JSON.

    One that is longer than MLflow takes says where it stands.
    """
    tree = federation.model_dump(mode="json")
    tree["hospital"] = {hospital["id"]: hospital for hospital in tree["hospital"]}
    return dict(_flatten(tree, ""))


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and all(PLAIN.fullmatch(name) for name in value):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield prefix + key, text if len(text) <= MAX_PARAM else "too long for MLflow; see config.json"


def _round_metrics(line: RoundLine) -> Iterator[Metric]:
    where = f"{line.model}/{line.hospital}"
    if line.fit is not None:
        for key in ("loss", "accuracy", "n_images", "seconds", "bytes_up", "bytes_down", "epsilon"):
            if (value := getattr(line.fit, key)) is not None:
                yield Metric(f"fit/{where}/{key}", value, line.round)
    if line.validation is not None:
        for key in ("loss", "accuracy", "macro_f1", "n_images"):
            if (value := getattr(line.validation, key)) is not None:
                yield Metric(f"validation/{where}/{key}", value, line.round)


def _cell_metrics(where: str, cell: Mapping[str, Any]) -> Iterator[Metric]:
    for key in SCORES:
        if cell.get(key) is None:
            continue
        yield Metric(f"{where}/{key}", cell[key], 0)
        for end, value in zip(("low", "high"), cell.get("intervals", {}).get(key) or (), strict=False):
            yield Metric(f"{where}/{key}.{end}", value, 0)


def _place(to: str) -> tuple[str, str | None]:
    """Tracking URI, and where artifacts go: a server knows that itself."""
    if "://" in to:
        return to, None
    folder = Path(to).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(folder / 'mlflow.db').as_posix()}", (folder / "artifacts").as_uri()


def _note(run: Run) -> str:
    federation = run.federation
    said = {"Simulated": federation.simulated, "Synthetic": federation.synthetic, "Licence": federation.licence}
    return "\n\n".join([DISCLAIMER, *(f"{word}: {sentence}" for word, sentence in said.items() if sentence)])


def _take_back(client: Any, begun: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_run(begun)
    except (MlflowException, OSError):  # a server that went away keeps it as unfinished
        return


def _milliseconds(time: str) -> int:
    return int(datetime.datetime.fromisoformat(time).timestamp() * 1000)
