"""What leaked, as `leakage` measured it: its states, sentences and tables."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st
from PIL import Image

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.files import sha256_of
from engine.results.leakage import Inversion, Leakage, Membership, Score, leakage_file, pictures_file, read_leakage
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.words import count, join_words, percent
from ui.leakage_figures import inversion_figure, membership_figure
from ui.matrices import column_name
from ui.pretext import elsewhere
from ui.words import DASH

STILL = {"displayModeBar": False}
PICTURE_PX, STRIP_PX = 52, 220


def draw_leaked(run: Run) -> None:
    st.subheader("What leaked", anchor=False)
    leakage = _find(run)
    if leakage is None:
        st.code(leakage_command(run), language="bash", wrap_lines=True)
        return
    federation = run.federation
    if leakage.membership:
        st.markdown("**Who was trained on**")
        st.markdown(membership_sentence(federation, leakage.membership))
        st.plotly_chart(membership_figure(leakage.membership, federation), config=STILL, key="membership")
        st.caption(
            "AUC of telling a training image from a test image of the same hospital by the model's loss alone (Yeom et "
            f"al. 2018): 0.5 is a coin, 1 tells all. Bars: {leakage.intervals}. The control saw neither: what it has "
            "above 0.5 is no memory, but one part being easier than the other."
        )
        st.dataframe(membership_table(federation, leakage.membership), hide_index=True)
    if leakage.inversion is not None:
        _draw_inversion(run, leakage.inversion)
    st.markdown("**What limits these figures**")
    st.markdown("\n".join(f"- :small[{note}]" for note in leakage.notes))
    st.caption(f"Measured {leakage.measured_at[:10]}; docs/leakage.md says how. This measures anew:")
    st.code(leakage_command(run), language="bash", wrap_lines=True)


def leakage_command(run: Run) -> str:
    return shlex.join(["python", "-m", "engine", "leakage", run.name, *elsewhere(run)])


def membership_sentence(federation: Federation, rows: Sequence[Membership]) -> str:
    """The federated model first, then what each hospital's own would tell."""
    saw = [row for row in rows if row.saw]
    said = []
    for model in ("global", "central"):
        mine = [row for row in saw if row.model == model]
        if mine:
            place = "all hospitals" if mine[0].hospital == ALL else federation.display_name(mine[0].hospital)
            name, auc = federation.model_name(model), mine[0].auc
            said.append(f"{name}, on images of {place}: AUC **{score_text(auc)}**{_coin(auc)}.")
    for kind, words in (("local/", "own model"), ("personal/", "personal part of the federated model")):
        found = [row.auc.value for row in saw if row.model.startswith(kind)]
        if found:
            ends = f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else f"{found[0]:.2f}"
            said.insert(1, f"Each hospital's {words}, on its images: {ends}.")
    return " ".join(said)


def inversion_sentence(federation: Federation, inversion: Inversion) -> str:
    """How many images came back; and that an attack which fails on the plain update says nothing of noise or masks."""
    plain = [attack for attack in inversion.attacks if attack.variant == "plain"]
    said = [
        f"{attack.n_better} of {len(attack.images)} "
        + (
            "from updates of one image each"
            if attack.batch_size == 1
            else f"from one update of {attack.batch_size} images"
        )
        for attack in plain
    ]
    name = federation.display_name(inversion.hospital)
    lead = f"Of training images of {name} the attack drew {join_words(said)} closer than a guess would."
    if not any(attack.n_better for attack in plain):
        return f"{lead} An attack that fails on the update as it is says nothing about noise or masks."
    rest = {
        variant: sum(attack.n_better for attack in inversion.attacks if attack.variant == variant)
        for variant in ("private", "masked")
    }
    n_images = sum(len(attack.images) for attack in plain)
    masked = (
        f"; from the sum of {inversion.n_hospitals} hospitals' updates, {rest['masked']}"
        if inversion.n_hospitals > 1
        else ""
    )
    return f"{lead} With noise {rest['private']} of all {n_images}{masked}."


def membership_table(federation: Federation, rows: Sequence[Membership]) -> pd.DataFrame:
    lines = [
        [
            federation.model_name(row.model) + ("" if row.saw else ", control: saw neither"),
            column_name(federation, row.hospital),
            score_text(row.auc),
            DASH if row.tpr is None else f"{percent(row.tpr.value)} ({100 * row.tpr.low:.1f}-{100 * row.tpr.high:.1f})",
            f"{row.loss_members:.3f}",
            f"{row.loss_others:.3f}",
            f"{row.n_members:,}",
            f"{row.n_others:,}",
        ]
        for row in rows
    ]
    columns = [
        "Model",
        "Images of",
        "AUC",
        "Found at 1% false alarms",
        "Loss, trained on",
        "Loss, others",
        "Trained on",
        "Others",
    ]
    return pd.DataFrame(lines, columns=columns)


def inversion_table(inversion: Inversion) -> pd.DataFrame:
    """Means over an attack's images."""
    lines = []
    for attack in inversion.attacks:
        means = [attack.mean(name) for name in ("ssim", "ssim_mean", "ssim_other", "psnr", "psnr_mean", "psnr_other")]
        cells = [DASH if value is None else f"{value:.2f}" for value in means[:3]]
        cells += [DASH if value is None else f"{value:.1f}" for value in means[3:]]
        better = f"{attack.n_better} of {len(attack.images)}"
        lines.append([inversion.name(attack.variant), attack.batch_size, better, *cells])
    heads = ["Rebuilt", "Mean image", "Best other"]
    columns = [
        "Update",
        "Images in it",
        "Closer than both guesses",
        *(f"{h}, SSIM" for h in heads),
        *(f"{h}, dB" for h in heads),
    ]
    return pd.DataFrame(lines, columns=columns)


def score_text(score: Score) -> str:
    return f"{score.value:.2f} ({score.low:.2f}-{score.high:.2f})"


def _coin(score: Score) -> str:
    return ", not told from a coin's 0.5" if score.low <= 0.5 <= score.high else ""


def _find(run: Run) -> Leakage | None:
    """This run's measurement; None, said in one line, where there is none that can be shown."""
    path = leakage_file(run.folder.parent, run.name)
    try:
        if not path.is_file():
            st.info(
                f"Not measured yet for {run.name}. This does, on the machine that has its images:",
                icon=":material/info:",
            )
            return None
        leakage = _read(str(path), path.stat().st_mtime_ns)
    except (ConsiliumError, OSError) as error:
        st.warning(str(error), icon=":material/warning:")
        return None
    if leakage.run_manifest_sha256 != sha256_of(run.folder / "manifest.json"):
        st.warning(
            f"{path}: is of another run that was called {run.name}; measure this run anew.", icon=":material/warning:"
        )
        return None
    return leakage


def _draw_inversion(run: Run, inversion: Inversion) -> None:
    st.markdown("**Images back out of one update**")
    st.markdown(inversion_sentence(run.federation, inversion))
    st.plotly_chart(inversion_figure(inversion), config=STILL, key="inversion")
    st.caption(
        f"Gradient inversion (Geiping et al. 2020), {count(inversion.n_steps, 'step')} at {inversion.side_px} px. "
        "Structural similarity: 1 is the same image; each dot is one image, the bar their mean. The guess is the "
        "better of the mean training image and of other training images of its class, as many as the attack drew."
    )
    st.dataframe(inversion_table(inversion), hide_index=True)
    _draw_pictures(run, inversion)


def _draw_pictures(run: Run, inversion: Inversion) -> None:
    """Of a synthetic federation alone, and only those that belong to these figures."""
    path = pictures_file(run.folder.parent, run.name)
    if not run.federation.synthetic or inversion.pictures_sha256 is None or not path.is_file():
        return
    if sha256_of(path) != inversion.pictures_sha256:
        st.warning(f"{path}: is not as it was written; measure this run anew.", icon=":material/warning:")
        return
    with Image.open(path) as sheet:
        rows = [
            sheet.crop((0, top, sheet.width, top + inversion.side_px))
            for top in range(0, sheet.height, inversion.side_px)
        ]
    names = [
        "What there was",
        *(f"{inversion.name(a.variant)}, {count(a.batch_size, 'image')}" for a in inversion.attacks),
    ]
    with st.container(horizontal=True):
        for name, row in zip(names, rows, strict=True):
            with st.container(width=STRIP_PX):
                large = row.resize((row.width * 2, row.height * 2), Image.Resampling.NEAREST)
                st.image(large, width=row.width // row.height * PICTURE_PX)
                st.caption(name)  # an image's own caption is no wider than the image
    st.caption("Synthetic images, so that they may be shown: no patient's image that came back is ever written.")


@st.cache_data(max_entries=20, show_spinner=False)
def _read(path: str, modified_ns: int) -> Leakage:
    return read_leakage(Path(path))
