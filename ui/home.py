"""Home's cards: what is published, with figures that come from the published folders alone."""

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError, ModelError
from engine.results.published import PublishedVersion, current_version, published_names
from engine.results.words import count, join_words, percent
from ui.frame import show_federation
from ui.matrices import SCORES
from ui.outside import outside_sentence
from ui.run_index import folder_stamp
from ui.selection import publish_commands
from ui.words import Errors, score_text

REFERENCE_KEYS = {"macro_f1": "avg_f1", "balanced_accuracy": "avg_recall", "accuracy": "test_accuracy"}


@dataclass(frozen=True)
class Card:
    """One served version. `scored` is the federated model, or the first one of a version without it."""

    name: str
    version: str
    run: str
    federation: Federation
    n_models: int
    n_images: int
    n_train: int
    n_test: int
    scored: str
    headline: str
    leading: float
    score: str
    errors: Errors | None


def read_card(models: Path, name: str) -> Card:
    """Raises ModelError where the served version is damaged, in any of its files."""
    version = current_version(models, name)
    return _read_card(str(version.folder), folder_stamp(version.folder))


@st.cache_data(max_entries=20, show_spinner=False)
def _read_card(folder: str, stamp: str) -> Card:
    """Hash and read a version once, and again when `stamp` says that one of its files changed."""
    version = PublishedVersion(Path(folder))
    version.verify()
    manifest, meta = version.manifest, version.read_json("model_meta.json")
    try:
        scores, headline = meta["metrics"], manifest.federation.headline
        leading = float(scores[REFERENCE_KEYS[headline]])
        return Card(
            name=version.name,
            version=version.version,
            run=manifest.run,
            federation=manifest.federation,
            n_models=len(manifest.models),
            n_images=int(meta["total_samples"]),
            n_train=int(meta["train_samples"]),
            n_test=int(meta["test_samples"]),
            scored="federated" if "global" in manifest.models else "first",
            headline=SCORES[headline],
            leading=leading,
            score=score_text({headline: leading, "intervals": scores["intervals"]}, headline),
            errors=_errors(manifest.federation, scores["confusion_matrix"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{version.folder / 'model_meta.json'}: lacks {error}; publish the run anew") from None


def _errors(federation: Federation, matrix: list[list[int]]) -> Errors | None:
    """None for more than two classes, and where one of two has no test image."""
    if federation.positive_class is None:
        return None
    case = federation.classes.index(federation.positive_class)
    other = 1 - case
    cases, others = sum(matrix[case]), sum(matrix[other])
    if not cases or not others:
        return None
    return Errors(federation.positive_class, matrix[case][other], cases, matrix[other][case], others)


def draw_cards(models: Path) -> None:
    """One card per published name; where there is none, the commands that make one."""
    names = published_names(models)
    if not names:
        st.info("Nothing is published yet. This makes the first one:", icon=":material/info:")
        st.code(publish_commands(), language="bash")
        return
    columns = st.columns(min(len(names), 2))
    for place, name in enumerate(names):
        with columns[place % len(columns)].container(border=True, height="stretch"):
            try:
                _draw_card(read_card(models, name), outside_sentence(current_version(models, name)))
            except ConsiliumError as error:
                st.error(f"'{name}' cannot be shown. {error}", icon=":material/error:")


def _draw_card(card: Card, outside: str) -> None:
    federation = card.federation
    st.markdown(f"**{federation.name}** :green-badge[published] :small[{card.name} {card.version}, from {card.run}]")
    show_federation(federation)
    with st.container(horizontal=True):
        for label, value, interval in _leading(card):
            st.metric(
                label, value, width="content",
                help=f"Of the {card.scored} model on {count(card.n_test, 'test image')} of all hospitals, before "
                f"quantisation. In brackets below: the 95% interval, {interval}.",
            )  # fmt: skip
        st.metric(
            "Hospitals", f"{len(federation.hospital):,}", width="content",
            help=join_words([federation.display_name(hospital.id) for hospital in federation.hospital]),
        )  # fmt: skip
        st.metric(
            "Images", f"{card.n_images:,}", width="content",
            help=f"{card.n_train:,} to train, {card.n_test:,} to test, the rest to choose the best round.",
        )  # fmt: skip
    score = f"{card.score}, n = {count(card.n_test, 'test image')}"
    if card.errors is not None:
        st.caption(card.errors.sentence(f"The {card.scored} model"))
    if outside:
        st.caption(outside)
    st.caption(f"{card.headline} of the {card.scored} model: {score}. Made for {federation.intended_input}.")
    st.page_link(
        "pages/4_Compare.py", label=f"Ask its {count(card.n_models, 'model')}", icon=":material/arrow_forward:",
        query_params={"model": card.name},
    )  # fmt: skip


def _leading(card: Card) -> list[tuple[str, str, str]]:
    """Label, value and kind of interval: of two classes what is missed and raised falsely, else the headline."""
    if card.errors is None:
        return [(card.headline, percent(card.leading), "a bootstrap over groups of images")]
    wilson = "Wilson's, which takes every image for itself"
    return [
        ("Sensitivity", percent(1 - card.errors.missed / card.errors.cases), wilson),
        ("Specificity", percent(1 - card.errors.false_alarms / card.errors.others), wilson),
    ]
