"""A sweep: many trainings of one federation, each in a run of its own.

What a repeated command finds finished it leaves alone, and what it finds unfinished it goes on with. The local and the
pooled arm do not depend on strategy and compression, so runs that differ in these alone share one training of them.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import Federation
from engine.data.federation_data import FederationData
from engine.errors import ConsiliumError
from engine.federation.frozen import FeatureMemory
from engine.federation.progress import OnTraining
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.results.lock import alone_with
from engine.results.run_folder import Run
from engine.results.sweeps import data_key, reference_key, require_one_federation, run_key, sweep_runs
from engine.sections import Arm


@dataclass(frozen=True)
class Point:
    """One grid point with one seed: its settings, and what of them was given beside the file."""

    federation: Federation
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run to make, or (`run`) one that is there, finished or not."""

    federation: Federation
    changes: tuple[str, ...]
    run: Run | None = None

    @property
    def is_done(self) -> bool:
        return self.run is not None and self.run.is_finished


def plan_sweep(points: Sequence[Point], existing: Sequence[Run]) -> list[Job]:
    """What it takes to have every point trained once, and each reference arm once for all points that may share it.

    Points that share references stand together, and those on the same images follow one another.
    """
    groups: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        groups.setdefault(data_key(point.federation), {}).setdefault(reference_key(point.federation), []).append(point)
    return [
        job
        for sharing in groups.values()
        for key, group in sharing.items()
        for job in _plan_group(group, [run for run in existing if reference_key(run.federation) == key])
    ]


def _plan_group(group: Sequence[Point], existing: Sequence[Run]) -> list[Job]:
    wanted = group[0].federation.arms
    references: list[Arm] = [arm for arm in wanted if arm != "federated"]
    keys = {run_key(point.federation) for point in group}
    used = [
        run
        for run in existing
        if run_key(run.federation) in keys or any(arm in references for arm in run.federation.arms)
    ]
    jobs = [Job(run.federation, run.config.changes, run) for run in used]
    trained = {(run_key(run.federation), arm) for run in used for arm in run.federation.arms}
    missing = [arm for arm in references if not any(arm in run.federation.arms for run in used)]
    for point in group:
        if "federated" in wanted and (run_key(point.federation), "federated") not in trained:
            jobs.append(_job(point, [arm for arm in wanted if arm == "federated" or arm in missing]))
            trained.add((run_key(point.federation), "federated"))  # 0.1 and 0.10 are one point
            missing = []
    if missing:  # every point is there, and the arms to compare it with were asked for later
        jobs.append(_job(group[0], missing))
    return jobs


def _lost_references(failed: Job, jobs: Sequence[Job]) -> list[Job]:
    """A run of their own for the reference arms that went down with a federated one and that no other run has.

    Not the next run's arms: where it is a reference that fails, it would take run after run with it.
    """
    key = reference_key(failed.federation)
    others = [job for job in jobs if job is not failed and reference_key(job.federation) == key]
    lost = [arm for arm in failed.federation.arms if not any(arm in job.federation.arms for job in others)]
    if "federated" not in failed.federation.arms or set(lost) <= {"federated"}:
        return []
    point = Point(failed.federation, failed.changes)
    return [_job(point, [arm for arm in lost if arm != "federated"])]


def _job(point: Point, arms: Sequence[Arm]) -> Job:
    if tuple(arms) == point.federation.arms:
        return Job(point.federation, point.changes)
    named = ", ".join(f'"{arm}"' for arm in arms)
    changes = (*(change for change in point.changes if not change.startswith("arms=")), f"arms=[{named}]")
    return Job(point.federation.model_copy(update={"arms": tuple(arms)}), changes)


def run_sweep(
    name: str,
    points: Sequence[Point],
    *,
    federation_file: str,
    artifacts: Path,
    read: Callable[[Federation], FederationData],
    on_plan: Callable[[Sequence[Job]], None] = lambda jobs: None,
    on_run: Callable[[int], None] = lambda n_done: None,
    on_training: OnTraining = lambda progress: None,
) -> dict[str, str]:
    """Train what is not trained yet, one run after the other; return what went wrong, by the name of the run.

    A training that fails (its loss no longer finite, say) does not keep the others from being trained; reference arms
    that were to be trained with it get a run of their own. Raises for what is wrong before one begins: images that are
    not there, starting weights that cannot be had.
    """
    with alone_with(artifacts / f".sweep-{name}.lock", f"sweep {name}: is being trained"):
        existing = sweep_runs(artifacts, name)
        require_one_federation(name, existing, points[0].federation)
        jobs = plan_sweep(points, existing)
        on_plan(jobs)
        memory, features, failures = _DataMemory(read), FeatureMemory(), dict[str, str]()
        n_done = sum(job.is_done for job in jobs)
        on_run(n_done)
        waiting = deque(job for job in jobs if not job.is_done)
        while waiting:
            job = waiting.popleft()
            data = memory.data(job.federation)
            if job.run is None:
                run = start_run(data, federation_file, artifacts, sweep=name, changes=job.changes)
            else:
                run = reopen_run(artifacts, job.run.name)
            try:
                train_run(run, data, on_training, features)
            except ConsiliumError as error:
                failures[run.name] = str(error)
                again = _lost_references(job, jobs)
                waiting.extendleft(again)  # next, while its images are in memory
                jobs += again
                continue
            n_done += 1
            on_run(n_done)
    return failures


class _DataMemory:
    """The images of the last run, for the next one on the same."""

    def __init__(self, read: Callable[[Federation], FederationData]) -> None:
        self._read = read
        self._key = ""
        self._data: FederationData | None = None

    def data(self, federation: Federation) -> FederationData:
        key = data_key(federation)
        if self._data is None or key != self._key:
            self._data, self._key = None, key
            self._data = self._read(federation)
        return dataclasses.replace(self._data, federation=federation)
