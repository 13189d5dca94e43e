"""`[aggregation]` and `[communication]`: what they may say, and what cannot be true together."""

import json
from pathlib import Path

import pytest

from engine.aggregation_config import STRATEGIES, FedAvgConfig, FedProxConfig
from engine.config import Federation, load_federation
from engine.federation.strategies import KINDS, make_strategy
from tests.test_config import GOOD, refusal, write

PROJECT = Path(__file__).resolve().parent.parent
FIVE = GOOD + "".join(f'\n[[hospital]]\nid = "h{n}"\nname = "H{n}"\nfolder = "h{n}"\n' for n in range(3))


def with_section(*rows: str, text: str = FIVE) -> str:
    return text + "\n" + "\n".join(rows) + "\n"


def test_without_a_section_it_is_fedavg_uncompressed(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path))
    assert federation.aggregation == FedAvgConfig()
    assert federation.communication.compression == "none"


def test_set_chooses_a_strategy_and_its_parameter(tmp_path: Path) -> None:
    settings = ("aggregation.strategy=fedprox", "aggregation.mu=0.3")
    assert load_federation(write(tmp_path), settings).aggregation == FedProxConfig(mu=0.3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_there_and_survives_a_runs_config(name: str, tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path, with_section("[aggregation]", f'strategy = "{name}"')))
    again = Federation.model_validate(json.loads(json.dumps(federation.model_dump(mode="json"))))
    assert again == federation
    assert type(again.aggregation) is STRATEGIES[name]
    assert isinstance(make_strategy(again.aggregation, 5), KINDS[name])


def test_no_strategy_is_forgotten() -> None:
    table = (PROJECT / "docs" / "aggregation.md").read_text(encoding="utf-8")
    assert KINDS.keys() == STRATEGIES.keys()
    assert [name for name in STRATEGIES if f"\n| `{name}` |" not in table] == []


def test_configurations_from_before_the_section_still_load() -> None:
    old = json.loads((PROJECT / "artifacts" / "run-001" / "config.json").read_text(encoding="utf-8"))["federation"]
    assert "aggregation" not in old
    assert Federation.model_validate(old).aggregation == FedAvgConfig()


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        (("[aggregation]", "muu = 1"), 2, "unknown key 'aggregation.muu'; did you mean 'mu'?"),
        (("[aggregation]", "mu = 1"), 2, "unknown key 'aggregation.mu'"),
        (("[aggregation]", 'strategy = "krum"', "n_malicous = 1"), 3, "did you mean 'n_malicious'?"),
        (("[aggregation]", 'strategy = "fedpro"'), 2, "aggregation.strategy: must be one of fedavg, fedprox"),
        (("[aggregation]", 'strategy = "fedprox"', "mu = -1"), 3, "aggregation.mu: Input should be greater than 0"),
        (("[aggregation]", 'strategy = "trimmed-mean"', "trim = 0.5"), 3, "aggregation.trim"),
        (("[communication]", 'compression = "zip"'), 2, "communication.compression"),
        (("[communication]", 'compression = "topk"', "fraction = 0"), 3, "communication.fraction"),
    ],
)
def test_a_bad_key_or_value_comes_with_its_line(tmp_path: Path, rows: tuple[str, ...], line: int, says: str) -> None:
    message = refusal(tmp_path, with_section(*rows))
    assert message.startswith(f"{tmp_path / 'two-hospitals.toml'}:{len(FIVE.splitlines()) + 1 + line}: ")
    assert says in message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("aggregation.strategy=krum", "aggregation.n_malicious=2"), "'krum' so set needs at least 7 hospitals"),
        (
            ("aggregation.strategy=krum", "training.hospital_fraction=0.6"),
            "at least 5 hospitals in a round; there are 3",
        ),
        (("aggregation.strategy=krum", "aggregation.keep=6"), "at least 6 hospitals"),
        (("aggregation.strategy=trimmed-mean", "aggregation.trim=0.1"), "needs at least 10 hospitals"),
        (("aggregation.strategy=median", "training.hospital_fraction=0.4"), "at least 3 hospitals in a round"),
        (("aggregation.strategy=median", "communication.compression=topk"), "compares updates value by value"),
        (("aggregation.strategy=scaffold", "communication.compression=topk"), "corrects every gradient"),
        (("aggregation.strategy=fedbn", "model.architecture=compact-cnn"), "compact-cnn has none"),
        (
            ("aggregation.strategy=fedper", "model.freeze_backbone=true", "model.weights=imagenet"),
            "they leave nothing to learn together",
        ),
        (("communication.fraction=0.1",), "fraction belongs to compression = 'topk', not to 'none'"),
        (("training.views=2",), "views counts the cached views of a frozen backbone"),
    ],
)
def test_what_cannot_be_true_together_is_refused(tmp_path: Path, settings: tuple[str, ...], says: str) -> None:
    assert says in refusal(tmp_path, FIVE, *settings)


@pytest.mark.parametrize(
    "settings",
    [
        ("aggregation.strategy=krum",),
        ("aggregation.strategy=trimmed-mean",),
        ("aggregation.strategy=median", "communication.compression=int8"),
        ("aggregation.strategy=scaffold", "communication.compression=fp16"),
        ("aggregation.strategy=fedprox", "communication.compression=topk", "communication.fraction=0.1"),
        ("model.freeze_backbone=true", "model.weights=imagenet", "training.views=4"),
    ],
)
def test_what_can_be_true_together_is_not(tmp_path: Path, settings: tuple[str, ...]) -> None:
    load_federation(write(tmp_path, FIVE), settings)


def test_personal_models_are_called_what_they_are(tmp_path: Path) -> None:
    text = 'simulated = "yes"\n' + with_section("[aggregation]", 'strategy = "fedper"')
    federation = load_federation(write(tmp_path, text))
    assert federation.model_name("global") == "Federated, each hospital's own"
    assert federation.model_name("personal/north") == "Federated, personal to North (simulated)"
    assert load_federation(write(tmp_path)).model_name("global") == "Federated"
