"""Hospitals that answer from their own folders: the same weights as in one process, and nothing that may not travel."""

import datetime
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.config import Federation, load_federation, networked
from engine.data.federation_data import read_federation_data
from engine.data.phantoms import write_phantoms
from engine.errors import ConfigError, RunError
from engine.federation.conversation import Declined, Exchanged, Joined, Question, Saying, Trained
from engine.federation.networked_run import join, new_training, start_networked_run, train_networked_run
from engine.federation.node import HospitalNode, forget
from engine.federation.policy import Policy, read_policy
from engine.federation.secure_aggregation import Advertise, PublicKeys, ShareKeys
from engine.federation.training_run import start_run, train_run
from engine.federation.updates import HospitalFailure
from engine.results.bootstrap import weighted_auc
from engine.results.metrics import softmax
from engine.results.run_folder import Run
from engine.results.summaries import score_summaries, summarise
from engine.training.build import build_network
from engine.training.networks import Tensors

PROJECT = Path(__file__).resolve().parent.parent
TINY = [
    "training.rounds=3",
    "model.image_size_px=32",
    "model.architecture=compact-cnn",
    'arms=["federated","local"]',
    "training.batch_size=8",
]


class NodesHere:
    """A link whose hospitals are nodes in this process. Keeps every word that was said, as it would cross a wire."""

    def __init__(self, nodes: Sequence[HospitalNode]) -> None:
        self.nodes = {node.hospital: node for node in nodes}
        self.heard: list[tuple[Question, Saying, Tensors]] = []

    def ask(self, asked: Sequence[tuple[Question, Tensors]]) -> Iterator[tuple[Saying, Tensors] | HospitalFailure]:
        for question, tensors in asked:
            if question.hospital not in self.nodes:
                yield HospitalFailure(question.hospital, "is not connected")
                continue
            sent = Question.model_validate_json(question.model_dump_json())
            said, back = self.nodes[question.hospital].answer(sent, {n: t.clone() for n, t in tensors.items()})
            self.heard.append((question, said, back))
            yield type(said).model_validate_json(said.model_dump_json()), back


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("networked") / "phantoms"
    write_phantoms(root, seed=7)
    return root


def federation_of(*changes: str) -> Federation:
    return networked(load_federation(PROJECT / "federations" / "phantoms.toml", [*TINY, *changes]))


def nodes_of(federation: Federation, folders: Path, state: Path, policy: Policy | None = None) -> list[HospitalNode]:
    return [HospitalNode(one.id, folders / one.id, state / one.id, policy) for one in federation.hospital]


def run_over(link: NodesHere, federation: Federation, artifacts: Path) -> Run:
    training = new_training()
    joined = join(federation, link, training)
    return train_networked_run(start_networked_run(federation, training, joined, "phantoms.toml", artifacts), link)


def in_process(federation: Federation, folders: Path, artifacts: Path) -> Run:
    data = read_federation_data(federation, folders)
    return train_run(start_run(data, "phantoms.toml", artifacts), data)


@pytest.fixture(scope="module")
def both(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, NodesHere, Path]:
    federation, here = federation_of(), tmp_path_factory.mktemp("both")
    link = NodesHere(nodes_of(federation, folders, here / "state"))
    return run_over(link, federation, here / "far"), in_process(federation, folders, here / "near"), link, here


def test_the_same_weights_as_in_one_process(both: tuple[Run, Run, NodesHere, Path]) -> None:
    """To the last bit: the same images, seeds, order of updates and arithmetic. (Phantoms share no copies.)"""
    far, near, _, _ = both
    for name in ("global-best", "global-last"):
        ours, theirs = (load_file(run.folder / "weights" / f"{name}.safetensors") for run in (far, near))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    timed = {"seconds": True, "fit": {"seconds", "epochs"}, "validation": {"bytes_down"}}
    lines = [[line.model_dump(exclude=timed) for line in run.rounds()] for run in (far, near)]
    assert lines[0] == lines[1]


def test_the_evaluation_says_what_the_predictions_say(both: tuple[Run, Run, NodesHere, Path]) -> None:
    far, near, _, _ = both
    ours, theirs = (run.read_json("evaluation.json") for run in (far, near))
    assert ours["shared_classes"] == theirs["shared_classes"]
    for part in ("validation", "test"):
        for model in ("global", "local/hospital-a"):
            for place, cell in ours["splits"][part][model].items():
                want = theirs["splits"][part][model]["hospital-a" if model != "global" and place == "all" else place]
                for key in ("accuracy", "macro_f1", "balanced_accuracy", "confusion_matrix", "per_class", "n_groups"):
                    assert cell[key] == want[key], (part, model, place, key)
                assert math.isclose(cell["ece"], want["ece"], abs_tol=1e-9)
                assert cell["intervals"].keys() <= want["intervals"].keys()
            cells = [one["splits"][part]["global"]["all"]["intervals"]["accuracy"] for one in (ours, theirs)]
            assert np.allclose(*cells, atol=0.08)  # other draws of the same groups


def test_binned_scores_give_the_area_that_single_ones_do() -> None:
    """Where scores are spread over the bins; a model that says nearly the same of every image loses ties in them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    logits = rng.normal(0, 2, (300, 3)) + 2 * np.eye(3)[labels]
    groups = [str(number // 2) for number in range(300)]
    halves = [summarise(logits[part], labels[part], groups[part], 3) for part in (slice(150), slice(150, None))]
    cell = score_summaries(halves, ("a", "b", "c"), shared_classes=["a", "b"], positive=None)
    for index, label in enumerate("abc"):
        area = weighted_auc(softmax(logits)[:, index], labels == index, np.ones((1, 300)))[0]
        assert abs(cell["auc"][label] - area) < 0.005


def test_what_crosses_is_counts_and_tensors(both: tuple[Run, Run, NodesHere, Path], folders: Path) -> None:
    """No path, no name of a file, no hash of an image, no array as long as a hospital has images."""
    far, _, link, here = both
    federation = far.federation
    splits = [json.loads(path.read_text()) for path in here.glob("state/*/*/dataset_splits.json")]
    images = [image for one in splits for image in one["images"]]
    assert len(images) == sum(1 for _ in folders.rglob("*.png"))
    secret = {part for image in images for part in (image["sha256"], image["group"], Path(image["path"]).stem)}
    words = set(federation.classes) | {one.id for one in federation.hospital} | {"train", "validation", "test"}
    kinds = set()
    for _, said, tensors in link.heard:
        kinds.add(said.said)
        text = said.model_dump_json()
        assert not [word for word in secret if word in text]
        assert str(folders) not in text
        assert str(here) not in text
        strings, longest = strings_and_longest_list(json.loads(text))
        assert strings <= words | SPOKEN | {f"local/{one.id}" for one in federation.hospital}
        assert longest <= 1000  # bootstrap replicates
        shapes = {name: tensor.shape for name, tensor in load_file(far.weights("global")).items()}
        assert all(shapes[name] == tensor.shape for name, tensor in tensors.items())
        assert not tensors or isinstance(said, Trained)  # no hospital has given its own model away
    assert kinds == {"joined", "trained", "validated", "trained-alone", "evaluated"}
    names = {path.name for path in far.folder.rglob("*")}
    assert not names & {"dataset_splits.json", "predictions.parquet", "local-hospital-a.safetensors"}
    for hospital in federation.hospital:
        (home,) = (here / "state" / hospital.id).iterdir()
        assert (home / "predictions.parquet").is_file()
    far.verify(with_weights=True)
    far.verify_audit_log()


SPOKEN = {"joined", "trained", "validated", "trained-alone", "evaluated", "local", "all", "federated"}


def strings_and_longest_list(value: object) -> tuple[set[str], int]:
    if isinstance(value, str):
        return {value}, 0
    if isinstance(value, dict):
        inner = [strings_and_longest_list(one) for one in value.values()]
        return set().union(*(s for s, _ in inner)), max((n for _, n in inner), default=0)
    if isinstance(value, list):
        inner = [strings_and_longest_list(one) for one in value]
        return set().union(*(s for s, _ in inner)), max([len(value), *(n for _, n in inner)])
    return set(), 0


def test_replicates_cannot_be_drawn_again(both: tuple[Run, Run, NodesHere, Path]) -> None:
    """Whoever knew the draws could solve for single patients."""
    _, _, link, _ = both
    question = next(question for question, _, _ in link.heard if question.kind == "evaluate")
    weights = load_file(both[0].weights("global"))
    first, second = (link.nodes[question.hospital].answer(question, dict(weights))[0] for _ in range(2))
    one, other = (said.scores["test"]["global"].replicates for said in (first, second))
    assert one != other


def test_a_hospital_that_shares_its_model_is_asked_for_it_alone(folders: Path, tmp_path: Path) -> None:
    federation = federation_of("training.rounds=1")
    nodes = nodes_of(federation, folders, tmp_path / "state")
    nodes[0] = HospitalNode("hospital-a", folders / "hospital-a", tmp_path / "s", Policy(share_local_model=True))
    run = run_over(NodesHere(nodes), federation, tmp_path / "runs")
    assert {path.name for path in (run.folder / "weights").glob("local-*")} == {"local-hospital-a.safetensors"}


def test_a_coordinator_that_is_stopped_and_a_node_that_forgets_end_with_the_same_weights(
    folders: Path, tmp_path: Path, both: tuple[Run, Run, NodesHere, Path]
) -> None:
    federation = federation_of()
    link = NodesHere(nodes_of(federation, folders, tmp_path / "state"))
    training = new_training()
    joined = join(federation, link, training)
    run = start_networked_run(federation, training, joined, "phantoms.toml", tmp_path / "runs")
    ask, asked = link.ask, 0

    def stop_in_the_second_round(questions: Sequence[tuple[Question, Tensors]]) -> object:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise KeyboardInterrupt
        return ask(questions)

    link.ask = stop_in_the_second_round  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        train_networked_run(run, link)
    again = NodesHere(nodes_of(federation, folders, tmp_path / "state"))  # nodes too were started anew
    done = train_networked_run(Run(run.folder), again)
    ours, theirs = (load_file(one.weights("global")) for one in (done, both[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line.round for line in done.rounds() if line.hospital == "all" and line.model == "global"] == [1, 2, 3]


@pytest.mark.parametrize("change", ["aggregation.strategy=fedbn", "aggregation.strategy=scaffold"])
def test_what_hospitals_keep_stays_with_them_and_follows_the_coordinator(
    change: str, folders: Path, tmp_path: Path
) -> None:
    federation = federation_of("training.rounds=2", change, 'arms=["federated"]', "model.architecture=resnet18")
    link = NodesHere(nodes_of(federation, folders, tmp_path / "state"))
    far, near = run_over(link, federation, tmp_path / "far"), in_process(federation, folders, tmp_path / "near")
    ours, theirs = (load_file(run.weights("global")) for run in (far, near))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    cells = [run.read_json("evaluation.json")["splits"]["test"]["global"] for run in (far, near)]
    ours, theirs = (cell["hospital-b"]["confusion_matrix"] for cell in cells)
    assert ours == theirs


def test_masked_updates_open_to_the_same_sum_as_in_one_process(folders: Path, tmp_path: Path) -> None:
    federation = federation_of("training.rounds=2", "secure_aggregation.threshold=0.67", 'arms=["federated"]')
    link = NodesHere(nodes_of(federation, folders, tmp_path / "state"))
    far, near = run_over(link, federation, tmp_path / "far"), in_process(federation, folders, tmp_path / "near")
    ours, theirs = (load_file(run.weights("global")) for run in (far, near))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [set(back) for _, said, back in link.heard if isinstance(said, Trained)] == [{"masked"}] * 6
    told = far.read_json("secure_aggregation.json")
    assert told["simulated"] is False
    assert [one["survivors"] for one in told["rounds"]] == [["hospital-a", "hospital-b", "hospital-c"]] * 2


def test_a_liar_a_stranger_and_an_absent_hospital_are_left_out_by_name(folders: Path, tmp_path: Path) -> None:
    federation = federation_of("training.min_hospitals=1", 'arms=["federated"]', "training.rounds=2")
    nodes = nodes_of(federation, folders, tmp_path / "state")

    class Liar(HospitalNode):
        def answer(self, question: Question, tensors: Tensors) -> tuple[Saying, Tensors]:
            said, back = super().answer(question, tensors)
            if question.kind == "train":
                return said, {name: tensor * float("nan") for name, tensor in back.items()}
            if question.kind == "validate":
                return said.model_copy(update={"confusion_matrix": ((1, 2), (3, 4))}), back
            if question.kind == "evaluate":
                return Declined(reason="no"), {}
            return said, back

    nodes[1] = Liar("hospital-b", folders / "hospital-b", tmp_path / "liar")
    link = NodesHere(nodes[:2])
    run = run_over(link, federation, tmp_path / "runs")
    failures = {line.hospital: line.failure for line in run.rounds() if line.failure}
    assert set(failures) == {"hospital-b"}, "hospital-c did not join and has no part"
    assert set(run.read_json("hospitals.json")["hospitals"]) == {"hospital-a", "hospital-b"}
    assert set(run.read_json("evaluation.json")["splits"]["test"]["global"]) == {"all", "hospital-a"}


def test_too_few_hospitals_is_one_line_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"0 of at least 1 hospitals joined \(Phantom North.*: is not connected"):
        join(federation_of("training.min_hospitals=1"), NodesHere([]), new_training())


def joining(federation: Federation) -> Question:
    said = federation.model_dump(mode="json")
    return Question(kind="join", training=new_training(), hospital="hospital-a", federation=said)


def test_a_policy_refuses_in_words_that_travel(folders: Path, tmp_path: Path) -> None:
    federation = federation_of()
    asked = joining(federation)
    night = datetime.datetime(2026, 1, 1, 23, 30)

    def said(policy: Policy, hospital: str = "hospital-a") -> Saying:
        node = HospitalNode(hospital, folders / "hospital-a", tmp_path, policy, clock=lambda: night)
        return node.answer(asked, {})[0]

    assert isinstance(said(Policy(federations=("Brain MRI phantoms",), hours="22:00-06:00", max_rounds=3)), Joined)
    for policy, words in (
        (Policy(federations=("Skin",)), "does not name"),
        (Policy(hours="06:00-22:00"), "between 06:00 and 22:00"),
        (Policy(max_rounds=2), "2 rounds, not 3"),
        (Policy(max_epsilon=8), "no [privacy] at all"),
        (Policy(secure_aggregation=True), "asks for [secure_aggregation]"),
    ):
        answer = said(policy)
        assert isinstance(answer, Declined)
        assert words in answer.reason
    stranger = said(Policy(), hospital="hospital-b")
    assert isinstance(stranger, Declined)
    assert "is hospital-b" in stranger.reason


def test_a_folder_that_is_not_there_is_told_without_its_name(tmp_path: Path) -> None:
    federation = federation_of()
    node = HospitalNode("hospital-a", tmp_path / "secret-patients", tmp_path / "state")
    asked = joining(federation)
    said, _ = node.answer(asked, {})
    assert isinstance(said, Declined)
    assert "DataError" in said.reason
    assert "secret" not in said.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hours = 'nine to five'", "hours"),
        ("max_epsilon = 0", "max_epsilon"),
        ("epsilon = 1", "the keys are federations"),
        ("hours = ", "TOML"),
    ],
)
def test_a_bad_policy_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_policy(file)


@pytest.mark.parametrize(
    ("federation", "words"),
    [("chest-xray", "[partition]"), ("brain-mri", "")],
)
def test_what_cannot_be_trained_over_a_network_is_refused(federation: str, words: str) -> None:
    read = load_federation(PROJECT / "federations" / f"{federation}.toml")
    if words:
        with pytest.raises(ConfigError) as refused:
            networked(read)
        assert words in str(refused.value)
    else:
        assert "central" not in networked(read).arms


@pytest.fixture
def private(folders: Path, tmp_path: Path) -> tuple[HospitalNode, Question, Tensors]:
    federation = federation_of("privacy.epsilon=8", "training.class_weights=none", 'arms=["federated"]')
    node = HospitalNode("hospital-a", folders / "hospital-a", tmp_path / "state")
    start = build_network(federation.model, len(federation.classes), federation.training.seed).state_dict()
    question = Question(kind="train", training="0" * 16, hospital="hospital-a",
                        federation=federation.model_dump(mode="json"), round=1)  # fmt: skip
    return node, question, {name: tensor.clone() for name, tensor in start.items()}


def test_noise_follows_from_what_was_asked_and_every_answer_is_paid_for(
    private: tuple[HospitalNode, Question, Tensors], tmp_path: Path
) -> None:
    node, question, weights = private
    (first, update), (again, same) = node.answer(question, weights), node.answer(question, weights)
    assert isinstance(first, Trained)
    assert all(torch.equal(update[name], same[name]) for name in update), "an answer that was lost is given again"
    assert isinstance(again, Trained)
    assert again.epsilon == first.epsilon, "and paid for once"
    other = {name: tensor + 1e-3 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    said, moved = node.answer(question, other)
    assert isinstance(said, Trained)
    assert said.epsilon is not None
    assert first.epsilon is not None
    assert said.epsilon > first.epsilon, "the same round asked otherwise is another answer"
    noise = [sum(float((one[n] - sent[n]).double().sum()) for n in sent if sent[n].is_floating_point())
             for one, sent in ((update, weights), (moved, other))]  # fmt: skip
    assert noise[0] != noise[1]
    answers = [node.answer(question.model_copy(update={"round": number}), weights)[0] for number in (2, 3, 1, 2, 3)]
    assert isinstance(answers[-1], Declined), "not beyond the budget, whatever the rounds are called"
    beyond, _ = node.answer(question.model_copy(update={"round": 4}), weights)
    assert isinstance(beyond, Declined)
    assert "round 4 is none of the 3" in beyond.reason


def test_what_a_coordinator_may_not_ask_is_declined_and_the_node_goes_on(folders: Path, tmp_path: Path) -> None:
    federation = federation_of('arms=["federated"]')
    node = HospitalNode("hospital-a", folders / "hospital-a", tmp_path / "state")
    asked = Question(kind="join", training="0" * 16, hospital="hospital-a",
                     federation=federation.model_dump(mode="json"))  # fmt: skip
    assert isinstance(node.answer(asked, {})[0], Joined)
    outside = asked.federation | {"model": asked.federation["model"] | {"weights": "/etc/passwd"}}
    other = asked.federation | {"name": "Another"}
    for changed in (
        {"federation": outside, "training": "1" * 16},
        {"federation": other},
        {"kind": "train", "round": 1},  # without tensors
        {"kind": "local"},  # an arm that was not agreed on
        {"kind": "exchange"},
    ):
        said, back = node.answer(asked.model_copy(update=changed), {})
        assert isinstance(said, Declined), changed
        assert not back
        assert "passwd" not in said.reason or "hospitals have not got these weights" in said.reason
    assert isinstance(node.answer(asked, {})[0], Joined)


def test_masks_are_not_opened_for_one_hospital_alone(folders: Path, tmp_path: Path) -> None:
    federation = federation_of("secure_aggregation.threshold=0.67", 'arms=["federated"]')
    node = HospitalNode("hospital-a", folders / "hospital-a", tmp_path / "state")
    asked = Question(kind="exchange", training="0" * 16, hospital="hospital-a",
                     federation=federation.model_dump(mode="json"), request=Advertise())  # fmt: skip
    said, _ = node.answer(asked, {})
    assert isinstance(said, Exchanged)
    assert isinstance(said.reply, PublicKeys)
    for request in (ShareKeys({"hospital-a": said.reply}, 1), ShareKeys(dict.fromkeys("xyz", said.reply), 2)):
        answer, _ = node.answer(asked.model_copy(update={"request": request}), {})
        assert isinstance(answer, Declined)
        assert "own update" in answer.reason


def test_leaving_takes_trainings_alone(both: tuple[Run, Run, NodesHere, Path], tmp_path: Path) -> None:
    far, _, _, _ = both
    (tmp_path / far.name).mkdir()
    (tmp_path / far.name / "dataset_splits.json").write_text("{}")
    (tmp_path / ("0" * 16)).mkdir()
    assert forget(tmp_path) == ["0" * 16]
    assert (tmp_path / far.name).is_dir()
