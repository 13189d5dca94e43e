"""Probes of a run that learned without labels: all of them on Evaluation, over rounds on Training."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.files import sha256_of
from engine.results.probes import METHODS, Embedding, Probe, ProbeRow, encoder_name, probe_files, read_probe
from engine.results.run_folder import Run
from engine.results.words import count, join_words, percent
from ui.matrices import SCORES
from ui.pretext import probe_command, start_command
from ui.probe_figures import efficiency_figure, embedding_figure, encoder_order, rounds_figure
from ui.words import DASH

VIEWS = ("Few labels", "Embedding")
METRICS = {name: SCORES[name] for name in ("macro_f1", "balanced_accuracy", "accuracy")}
STILL = {"displayModeBar": False}


def draw_probes(run: Run) -> None:
    probes, problems = find_probes(run)
    for problem in problems:
        st.warning(problem, icon=":material/warning:")
    if not probes:
        st.info(
            f"{run.name} has an encoder and no opinions, so there is nothing to score until a probe asks what the "
            "encoder is worth with few labels:",
            icon=":material/info:",
        )
        st.code(probe_command(run), language="bash", wrap_lines=True)
    else:
        _draw(run.federation, probes)
    st.caption("For opinions, a supervised training of the same architecture starts from this encoder:")
    st.code(start_command(run), language="bash", wrap_lines=True)


def find_probes(run: Run) -> tuple[list[Probe], list[str]]:
    """This run's probes by rising share of labels, and a sentence for each file that is not one."""
    probes, problems = [], []
    manifest_sha256 = sha256_of(run.folder / "manifest.json")
    for path in probe_files(run.folder.parent, run.name):
        try:
            probe = _read(str(path), path.stat().st_mtime_ns)
        except (ConsiliumError, OSError) as error:
            problems.append(str(error))
            continue
        if probe.run_manifest_sha256 == manifest_sha256:
            probes.append(probe)
        else:
            problems.append(f"{path}: is of another run that was called {run.name}; probe this run anew.")
    return sorted(probes, key=lambda probe: probe.labels), problems


def probe_rows(federation: Federation, probes: Sequence[Probe]) -> pd.DataFrame:
    """One row for each share, encoder and method: columns labels (the share asked for), n_labels, n_train, encoder,
    method, name, and of each metric its value, METRIC_low and METRIC_high. A share probed twice stands once."""
    found: dict[tuple[float, str, str], tuple[Probe, ProbeRow]] = {
        (probe.labels, row.encoder, row.method): (probe, row) for probe in probes for row in probe.rows
    }
    rows = []
    for (labels, encoder, method), (probe, row) in found.items():
        name = encoder_name(federation, encoder, method)
        line = {"labels": labels, "n_labels": probe.n_labels, "n_train": probe.n_train, "encoder": encoder,
                "method": method, "name": name}  # fmt: skip
        rows.append(line | _values(row))
    return pd.DataFrame(rows)


def round_rows(probes: Sequence[Probe]) -> pd.DataFrame:
    """The federated encoder's linear probes over rounds: labels, n_labels, round, and each metric as `probe_rows` has
    it. Round 0 is the encoder as the run began; empty where no probe asked the rounds."""
    rows = []
    for probe in {probe.labels: probe for probe in probes if probe.rounds}.values():
        linear = {row.encoder: row for row in probe.rows if row.method == "linear"}
        began = linear.get("start") or linear["random"]
        over = [(0, began), *((row.round, row) for row in probe.rounds if row.method == "linear")]
        for number, row in over:
            rows.append({"labels": probe.labels, "n_labels": probe.n_labels, "round": number, **_values(row)})
    return pd.DataFrame(rows)


def draw_probed_rounds(run: Run) -> None:
    """What the encoder was worth round by round, or how to see it; and the way to the whole probe."""
    probes, _ = find_probes(run)
    rows = round_rows(probes)
    metric = run.federation.headline
    if not rows.empty:
        st.markdown("**What the federated encoder is worth**")
        figure = rounds_figure(rows, run.federation, metric, f"{METRICS[metric]}, linear probe")
        st.plotly_chart(figure, config=STILL, key="probed-rounds")
        st.caption(
            f"Linear probe of frozen features on {count(probes[-1].n_test, 'test image')}; {probes[-1].intervals}. "
            "Round 0 is the encoder as the run began. No round was chosen by it: that was the validation loss above."
        )
    elif not run.federation.training.keep_rounds:
        st.caption(
            "Of a run that keeps its rounds (`--set training.keep_rounds=true`) a probe also says, here, what the "
            "encoder was worth after each."
        )
    st.page_link(
        "pages/3_Evaluation.py",
        label="What this encoder is worth with few labels",
        icon=":material/arrow_forward:",
        query_params={"run": run.name},
    )


def probe_sentence(rows: pd.DataFrame, federation: Federation, metric: str) -> str:
    """At the smallest share of labels: the federated encoder beside those that it must beat."""
    first = rows[rows["labels"] == rows["labels"].min()]
    scores = {(row["encoder"], row["method"]): _text(row, metric) for _, row in first.iterrows()}
    frozen = [
        f"{encoder_name(federation, encoder, 'linear').lower()} **{scores[encoder, 'linear']}**"
        for encoder in ("global", "random", "central")
        if (encoder, "linear") in scores
    ]
    n_labels, n_train = int(first["n_labels"].iloc[0]), int(first["n_train"].iloc[0])
    sentence = (
        f"With the labels of {n_labels:,} of {n_train:,} training images ({percent(n_labels / n_train)}), a linear "
        f"probe of frozen features reaches this {METRICS[metric][0].lower()}{METRICS[metric][1:]}: {'; '.join(frozen)}."
    )
    whole = [("from the federated encoder", ("global", "finetuned")), ("from scratch", ("random", "finetuned"))]
    trained = [f"{words} {scores[key]}" for words, key in whole if key in scores]
    if trained:
        sentence += f" A whole network, trained on the same labels: {', '.join(trained)}."
    absent = {"local": "no hospital's own encoder", "central": "no pooled encoder"}
    missing = [words for arm, words in absent.items() if arm not in federation.arms]
    if missing:
        sentence += f" This run trained {join_words(missing)} to stand beside it."
    return sentence


def probe_table(rows: pd.DataFrame, federation: Federation, metric: str) -> pd.DataFrame:
    """A row for each encoder and method, a column for each share of labels."""
    shares = rows[["labels", "n_labels"]].drop_duplicates("labels").sort_values("labels")
    heads = [f"{100 * share:g}% ({int(n):,})" for share, n in shares.itertuples(index=False)]
    lines = []
    for method in METHODS:
        asked = rows[rows["method"] == method]
        for encoder in encoder_order(federation, list(asked["encoder"].unique())):
            mine = asked[asked["encoder"] == encoder].set_index("labels")
            cells = [_text(mine.loc[share], metric) if share in mine.index else DASH for share in shares["labels"]]
            lines.append([encoder_name(federation, encoder, method), METHODS[method], *cells])
    return pd.DataFrame(lines, columns=["Encoder", "Method", *heads])


def _draw(federation: Federation, probes: Sequence[Probe]) -> None:
    rows, newest = probe_rows(federation, probes), probes[-1]
    embedding = next((probe.embedding for probe in reversed(probes) if probe.embedding), None)
    answer = st.container()
    with st.container(horizontal=True):
        metric = st.segmented_control(
            "Score", list(METRICS), default=federation.headline, format_func=METRICS.__getitem__, key="score",
            required=True, wrap=True,
        )  # fmt: skip
        view = st.segmented_control("Show", VIEWS, default=VIEWS[0], key="probe_view", required=True)
    answer.markdown(probe_sentence(rows, federation, metric))
    if view == VIEWS[1]:
        _draw_embedding(federation, embedding, newest.n_test)
        return
    methods = [method for method in METHODS if method in set(rows[rows["encoder"] != "random"]["method"])]
    asked = st.pills(
        "Method", methods, selection_mode="multi", default=methods[:1], key="methods",
        format_func=lambda method: METHODS[method][0].upper() + METHODS[method][1:],
    )  # fmt: skip
    shown = rows[rows["method"].isin(asked) | ((rows["encoder"] == "random") & (rows["method"] == "finetuned"))]
    st.plotly_chart(efficiency_figure(shown, federation, metric, METRICS[metric]), config=STILL, key="efficiency")
    st.caption(
        f"{count(newest.n_test, 'test image')} of {count(newest.n_test_groups, 'held-out group')}; "
        f"{newest.intervals}. Every encoder was given the same labels. All {newest.n_validation:,} validation "
        "images kept theirs: they choose the probe's L2 and a trained network's round. Points of one share are set "
        "apart so that their intervals can be seen."
    )
    st.dataframe(probe_table(rows, federation, metric), hide_index=True)
    st.caption(f"{METRICS[metric]} by share of labels asked for (images labelled in brackets), with 95% intervals.")


def _draw_embedding(federation: Federation, embedding: Embedding | None, n_test: int) -> None:
    if embedding is None:
        st.info("These probes are from before embeddings were written; probe again to see one.", icon=":material/info:")
        return
    with st.container(horizontal=True):
        encoder = st.selectbox(
            "Encoder", encoder_order(federation, list(embedding.encoders)), key="encoder", width=320,
            format_func=lambda one: encoder_name(federation, one, "linear"),
        )  # fmt: skip
        colour = st.segmented_control("Colour", ("Class", "Hospital"), default="Class", key="colour", required=True)
    figure = embedding_figure(embedding, federation, encoder, by_class=colour == "Class")
    st.plotly_chart(figure, config=STILL, key="embedding")
    first, second = embedding.encoders[encoder].explained
    shown = len(embedding.labels)
    of = f"{shown:,} of {count(n_test, 'test image')}" if shown < n_test else count(shown, "test image")
    st.caption(
        f"{of} on the first two principal components of the training images' standardised features, which hold "
        f"{percent(first)} and {percent(second)} of their variance. No label took part. Two dimensions hide the rest: "
        "classes that overlap here may still be told apart. Components of different encoders are not the same."
    )


def _values(row: ProbeRow) -> dict[str, float]:
    values = {}
    for metric in METRICS:
        score = getattr(row.scores, metric)
        values |= {metric: score.value, f"{metric}_low": score.low, f"{metric}_high": score.high}
    return values


def _text(row: pd.Series, metric: str) -> str:
    return f"{percent(row[metric])} ({100 * row[f'{metric}_low']:.1f}-{100 * row[f'{metric}_high']:.1f})"


@st.cache_data(max_entries=20, show_spinner=False)
def _read(path: str, modified_ns: int) -> Probe:
    return read_probe(Path(path))
