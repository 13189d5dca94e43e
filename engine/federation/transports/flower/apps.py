"""What `flwr run .` starts: the same coordinator and the same node, in Flower's own simulation or deployment.

pyproject.toml names these two; the bundle that Flower makes of the project holds no code (`fab-include` there), so
both sides run what is installed where they are.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from engine.config import Federation, data_root, load_federation, networked
from engine.errors import ConfigError, DataError
from engine.federation.networked_run import join, new_training, start_networked_run, train_networked_run
from engine.federation.node import HospitalNode
from engine.federation.policy import read_policy
from engine.federation.training_log import log
from engine.federation.transports.flower import FlowerLink
from engine.federation.transports.flower.node import WHO, reply_to
from engine.results.run_folder import artifacts_folder

server = ServerApp()  # one name a line: Flower reads this file without running it
client = ClientApp()
WHO_SECONDS = 60.0
# --run-config, the environment's word for the same, and what it sets in the federation file.
SETTINGS = (
    ("num-server-rounds", "ROUNDS", "training.rounds"),
    ("fraction-fit", "FRACTION_FIT", "training.hospital_fraction"),
    ("min-fit-clients", "MIN_FIT_CLIENTS", "training.min_hospitals"),
    ("local-epochs", "", "training.local_epochs"),
    ("batch-size", "", "training.batch_size"),
    ("image-size", "IMAGE_SIZE", "model.image_size_px"),
)
Given = Mapping[str, bool | float | int | str]


def settings_of(given: Given, environment: Mapping[str, str]) -> list[str]:
    """What --run-config and the environment change, as `--set` takes it; --run-config wins, and 0 or "" leaves the
    file's own. Raises ConfigError for what has no meaning here."""
    everyone = _setting("fraction-evaluate", "FRACTION_EVAL", given, environment)
    if everyone and float(everyone) != 1.0:
        raise ConfigError(f"fraction-evaluate = {everyone}: every hospital validates every round; leave it at 1.0")
    changes = []
    for key, word, setting in SETTINGS:
        if value := _setting(key, word, given, environment):
            changes.append(f"{setting}={value}")
    return changes


def _setting(key: str, word: str, given: Given, environment: Mapping[str, str]) -> str:
    value = given.get(key) or (environment.get(word, "") if word else "")
    return str(value) if value not in (0, 0.0, "0", "") else ""


def data_folder(federation: Federation, environment: Mapping[str, str]) -> Path:
    """DATA_DIR, else where the federation's images lie anyway. Raises DataError where there is no such folder: a
    training on other images than those that were meant would look like one on them."""
    root = Path(environment["DATA_DIR"]) if environment.get("DATA_DIR") else data_root(federation)
    if not root.is_dir():
        named = "DATA_DIR" if environment.get("DATA_DIR") else "CONSILIUM_DATA"
        raise DataError(f"{root}: no such data folder; set {named}")
    return root


@server.main()
def main(grid: Grid, context: Context) -> None:
    """One training from `federation` to a finished run folder below $CONSILIUM_ARTIFACTS or artifacts/."""
    given, environment = context.run_config, os.environ
    log.setLevel(logging.DEBUG if given.get("verbose") else logging.INFO)
    file = Path(str(given["federation"]))
    changes = settings_of(given, environment)
    federation = networked(load_federation(_at_home(file), changes))
    n_hospitals = len(federation.hospital)
    available = int(_setting("min-available-clients", "MIN_AVAILABLE_CLIENTS", given, environment) or n_hospitals)
    evaluating = int(_setting("min-evaluate-clients", "MIN_EVAL_CLIENTS", given, environment) or 1)
    for key, number in (("min-available-clients", available), ("min-evaluate-clients", evaluating)):
        if number > n_hospitals:
            raise ConfigError(f"{key} = {number}: the federation has {n_hospitals} hospitals")
    nodes: dict[str, int] = {}

    def connected() -> Mapping[str, int]:
        online = set(grid.get_node_ids())
        if unknown := online - set(nodes.values()):
            nodes.update(ask_who(grid, sorted(unknown)))
        return {hospital: node for hospital, node in nodes.items() if node in online}

    link = FlowerLink(
        grid, connected, timeout_s=3600.0, rounds=federation.training.rounds, needed=max(available, evaluating)
    )
    training = new_training()
    joined = join(federation, link, training)
    if len(joined) < available:
        raise ConfigError(f"{len(joined)} hospitals joined; min-available-clients is {available}")
    run = start_networked_run(federation, training, joined, file.as_posix(), _at_home(artifacts_folder()), changes)
    train_networked_run(run, link)


def ask_who(grid: Grid, nodes: Sequence[int]) -> dict[str, int]:
    """The hospital of each node. Here a node says so itself; `coordinator` knows it by its key."""
    asked = [
        Message(RecordDict({WHO: ConfigRecord({})}), dst_node_id=node, message_type=MessageType.QUERY, ttl=WHO_SECONDS)
        for node in nodes
    ]
    replies = grid.send_and_receive(asked, timeout=WHO_SECONDS)
    return {
        str(reply.content.config_records[WHO]["hospital"]): reply.metadata.src_node_id
        for reply in replies
        if not reply.has_error() and WHO in reply.content.config_records
    }


@client.query()
def answer(message: Message, context: Context) -> Message:
    """By the hospital that this SuperNode's --node-config names (hospital="ID"), or in a simulation its number."""
    given = context.run_config
    own = context.node_config.get("hospital", context.node_config.get("partition-id"))
    if own is None:
        raise ConfigError("which hospital is this? give the SuperNode --node-config 'hospital=\"ID\"'")
    return reply_to(message, _node(str(given["federation"]), str(own), str(context.node_config.get("data-dir", ""))))


@lru_cache(maxsize=1)
def _node(federation_file: str, own: str, data: str) -> HospitalNode:
    federation = load_federation(_at_home(Path(federation_file)))
    ids = [hospital.id for hospital in federation.hospital]
    hospital = ids[int(own)] if own.isdigit() and int(own) < len(ids) else own
    if hospital not in ids:
        raise ConfigError(f"'{own}' is no hospital of {federation_file}; it has {', '.join(ids)}")
    if data:
        folder = Path(data)
    else:
        named = next(one.folder for one in federation.hospital if one.id == hospital)
        folder = data_folder(federation, os.environ) / (named or ".")
    policy = os.environ.get("CONSILIUM_POLICY")
    state = Path(os.environ.get("CONSILIUM_STATE", "hospital-state")) / hospital
    return HospitalNode(hospital, folder, _at_home(state), read_policy(Path(policy) if policy else None))


def _at_home(path: Path) -> Path:
    """Flower's processes run in folders of their own: relative paths are meant from $CONSILIUM_HOME, else from here."""
    return Path(os.environ.get("CONSILIUM_HOME", "")) / path
