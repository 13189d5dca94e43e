"""Up to five runs beside each other: how they were set, how they learned, and who reads the same test images better."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.bootstrap import REPLICATES, Estimate
from engine.results.files import sha256_of
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.run_pairs import Paired, metric_names, pair_scores, why_no_pair
from engine.results.subgroups import FEWEST_GROUPS
from engine.results.words import count, join_words, percent
from ui.curves import METRICS, run_curves
from ui.deep_links import one_from_url, several_from_url, to_url
from ui.downloads import draw_table_downloads, svg_config
from ui.loaders import load_evaluation, load_rounds
from ui.matrices import column_name
from ui.paired_figure import paired_figure
from ui.palette import model_order
from ui.run_index import RunEntry
from ui.tables import DASH, difference_table, scores_table

MAX_OTHERS = 4
PARTS = {"settings": "Settings that differ", "curves": "Curves", "scores": "Test scores"}


def draw_comparison(run: Run, entries: Sequence[RunEntry]) -> None:
    """The run and others that the reader chooses; which, and what of them, stands in the URL."""
    folders = {
        entry.name: entry.folder
        for entry in entries
        if entry.state not in ("damaged", "imported") and entry.name != run.name
    }
    if not folders:
        st.info("There is no other run to put beside this one.", icon=":material/info:")
        return
    several_from_url("compare", "compare", folders, MAX_OTHERS)
    chosen = st.multiselect(
        f"{run.name} beside", list(folders), key="compare", max_selections=MAX_OTHERS, on_change=to_url,
        args=("compare", "compare"), placeholder=f"Choose up to {MAX_OTHERS} runs", width=560,
    )  # fmt: skip
    if not chosen:
        st.caption("Choose one run or more to see where their settings differ, their curves, and their test scores.")
        return
    runs = {run.name: run} | {name: Run(Path(folders[name])) for name in chosen}
    one_from_url("by", "compare_by", list(PARTS), "settings")
    part = st.segmented_control(
        "By", list(PARTS), format_func=PARTS.__getitem__, key="compare_by", required=True, on_change=to_url,
        args=("by", "compare_by"), label_visibility="collapsed",
    )  # fmt: skip
    {"settings": _draw_settings, "curves": _draw_curves, "scores": _draw_scores}[str(part)](runs)


def _draw_settings(runs: dict[str, Run]) -> None:
    difference = difference_table({name: run.federation for name, run in runs.items()})
    names = join_words(list(runs))
    if difference.empty:
        st.markdown(f"{names} were trained with the same settings.")
        return
    st.markdown(f"{count(len(difference), 'setting differs', 'settings differ')} between {names}:")
    st.dataframe(difference, hide_index=True)
    draw_table_downloads(difference, "-".join(["settings", *runs]), n_left=len(difference.columns))


def _draw_curves(runs: dict[str, Run]) -> None:
    rounds = {name: load_rounds(run) for name, run in runs.items()}
    models = list(dict.fromkeys(model for table in rounds.values() for model in table["model"].unique()))
    if not models:
        st.caption("None of them has validated a round yet.")
        return
    first = next(iter(runs.values())).federation
    with st.container(horizontal=True):
        model = _choose_model(model_order(first, models), first)
        one_from_url("score", "curve_score", list(METRICS), first.headline if first.pretext is None else "loss")
        metric = st.segmented_control(
            "Validation", list(METRICS), format_func=METRICS.__getitem__, key="curve_score", required=True,
            on_change=to_url, args=("score", "curve_score"), wrap=True,
        )  # fmt: skip
    told = {name: table for name, table in rounds.items() if table[table["model"] == model][str(metric)].notna().any()}
    if told:
        name = "-".join(["curves", *told])
        figure = run_curves(told, model, first.model_name(model), str(metric))
        st.plotly_chart(figure, config=svg_config(name), key="run_curves")
    if silent := [name for name in rounds if name not in told]:
        st.caption(f"No {METRICS[str(metric)].lower()} of this model in {join_words(silent)}.")
    if len(set(map(_validated, told.values()))) > 1:
        st.caption(":material/warning: These runs were not validated on as many images, so compare with care.")
    losses = {run.federation.pretext is None for run in runs.values()}
    if metric == "loss" and len(losses) > 1:
        st.caption(":material/warning: A loss without labels and one with labels are on different scales.")
    st.caption("Validation images only, each run on its own. A star marks the round that was chosen.")


def _validated(table: pd.DataFrame) -> int:
    return int(table[table["hospital"] == ALL]["n_images"].max())


def _draw_scores(runs: dict[str, Run]) -> None:
    first, *others = runs.values()
    scored = {name: run for name, run in runs.items() if run.is_finished and run.federation.pretext is None}
    for run in (run for name, run in runs.items() if name not in scored):
        st.caption(f":material/info: {why_no_pair(run, run)}")
    if first.name not in scored:
        return
    federation = first.federation
    cells = {name: (run.federation, load_evaluation(run)["splits"].get("test", {})) for name, run in scored.items()}
    models = model_order(federation, list(cells[first.name][1]))
    if not models:
        st.caption(f"{first.name} has no test images.")
        return
    names = metric_names(federation)
    with st.container(horizontal=True):
        model = _choose_model(models, federation)
        one_from_url("score", "test_score", list(names), federation.headline)
        metric = st.selectbox(
            "Score", list(names), format_func=names.__getitem__, key="test_score", on_change=to_url,
            args=("score", "test_score"), width=280,
        )  # fmt: skip
    pairs, refused = {}, {}
    for other in (run for run in others if run.name in scored):
        try:
            pairs[other.name] = _pair(first, other, model, metric)
        except ConsiliumError as error:
            refused.setdefault(str(error), []).append(other.name)
    for why, names_of_it in refused.items():
        st.warning(
            f"{why} So the scores of {join_words([first.name, *names_of_it])} cannot be compared like for like.",
            icon=":material/warning:",
        )
    for name, pair in pairs.items():
        st.markdown(pair_sentence(pair, first.name, name, federation, model, names[metric]))
    if pairs:
        name = "-".join(["paired", metric.replace("/", "-"), first.name, *pairs])
        figure = paired_figure(pairs, first.name, federation, names[metric])
        st.plotly_chart(figure, config=svg_config(name), key="paired")
        table = pairs_table(pairs, first.name, federation)
        st.dataframe(table, hide_index=True)
        said = _what_it_is(first.name, federation, model, names[metric])
        st.caption(said)
        draw_table_downloads(table, name, n_left=2, said=[said])
    st.markdown(f"{names[metric]} of every model on all test images of its own run, with 95% intervals:")
    alone = scores_table(cells, metric)
    st.dataframe(alone, hide_index=True)
    draw_table_downloads(alone, "-".join(["scores", metric.replace("/", "-"), *scored]))


def _choose_model(models: list[str], federation: Federation) -> str:
    one_from_url("of", "compare_of", models, models[0])
    return str(
        st.selectbox(
            "Model", models, format_func=federation.model_name, key="compare_of", on_change=to_url,
            args=("of", "compare_of"), width=280,
        )
    )  # fmt: skip


def pair_sentence(pair: Paired, first: str, second: str, federation: Federation, model: str, metric: str) -> str:
    """Both scores on all test images and what lies between them; where not all are shared, whose are."""
    if pair.different:
        same = join_words([federation.display_name(score.hospital) for score in pair.scores])
        known = {hospital.id for hospital in federation.hospital}
        not_same = [federation.display_name(one) if one in known else one for one in pair.different]
        return (
            f"{second} and {first} were not tested on the same images of {join_words(not_same)}, so nothing is said of "
            f"all images together; the difference is paired for {same} alone."
        )
    whole = pair.scores[0]
    sure = ""
    if whole.n_groups < FEWEST_GROUPS:
        sure = f" They are of fewer than {FEWEST_GROUPS} groups, which do not tell the two apart."
    elif whole.difference.low <= 0 <= whole.difference.high:
        sure = " The interval holds 0: these images do not tell the two apart."
    lower = " (lower is better)" if metric.startswith("Calibration") else ""
    return (
        f"{federation.model_name(model)}, {metric}{lower} on the same {count(whole.n_images, 'test image')}: "
        f"{_share(whole.second)} in {second}, {_share(whole.first)} in {first}, **{points(whole.difference)}**.{sure}"
    )


def pairs_table(pairs: dict[str, Paired], first: str, federation: Federation) -> pd.DataFrame:
    rows = [
        [
            run,
            column_name(federation, score.hospital),
            f"{score.n_images:,}",
            f"{score.n_groups:,}",
            _share(score.second),
            _share(score.first),
            points(score.difference),
        ]
        for run, pair in pairs.items()
        for score in pair.scores
    ]
    return pd.DataFrame(
        rows, columns=["Run", "Test images of", "n", "Groups", "Its score", f"Score of {first}", "Difference (95%)"]
    )


def points(difference: Estimate) -> str:
    """ "+1.2 points (-0.4 to +2.8)"; a dash where there is none, no interval where that is one point."""
    if math.isnan(difference.value):
        return DASH
    low, high = difference.low, difference.high
    ends = "" if math.isnan(low) or low == high else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * difference.value:+.1f} points{ends}"


def _share(score: float) -> str:
    return DASH if math.isnan(score) else percent(score)


def _what_it_is(first: str, federation: Federation, model: str, metric: str) -> str:
    simulated = f" Simulated federation: {federation.simulated}" if federation.simulated else ""
    return (
        f"{federation.model_name(model)}, {metric}: each run less {first}, on the same images. In brackets: 95%, "
        f"paired percentile bootstrap over groups ({REPLICATES:,} replicates, the same groups for both). One training "
        f"each: another seed would change it too, and no interval is corrected for how many are read.{simulated}"
    )


def _pair(first: Run, second: Run, model: str, metric: str) -> Paired:
    if why := why_no_pair(first, second):
        raise ConsiliumError(why)
    stamps = [sha256_of(run.folder / "manifest.json") for run in (first, second)]
    return _pair_of(str(first.folder), str(second.folder), stamps[0], stamps[1], model, metric)


@st.cache_data(max_entries=60, show_spinner="Drawing test images again and again")
def _pair_of(first: str, second: str, first_sha256: str, second_sha256: str, model: str, metric: str) -> Paired:
    return pair_scores(Run(Path(first)), Run(Path(second)), model, metric)
