"""Pages that follow from the code: `PYTHONPATH=. python docs/generate.py`; with --check nothing is written.

commands.md comes from the Typer app, federation-file.md and schemas.md from the pydantic models, and the shape of files
that have no model from the runs and the version in this repository.
"""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import typer
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from engine.cli import app
from engine.config import Federation
from engine.data.audit import Audit
from engine.federation.policy import Policy
from engine.inference.calibration import Calibration
from engine.results.audit_log import Entry
from engine.results.estimate import Estimate
from engine.results.leakage import Leakage
from engine.results.probes import Probe
from engine.results.published import Current, VersionManifest
from engine.results.rounds import RoundLine
from engine.results.run_folder import Progress, RunConfig, RunManifest

PROJECT = Path(__file__).resolve().parent.parent
MADE = "*Made by `python docs/generate.py`; a test fails where it is stale.*"
MODELLED: dict[str, type[BaseModel]] = {
    "artifacts/run-NNN/manifest.json": RunManifest,
    "artifacts/run-NNN/config.json": RunConfig,
    "artifacts/run-NNN/audit.json": Audit,
    "artifacts/run-NNN/rounds.jsonl": RoundLine,
    "artifacts/run-NNN/audit-log.jsonl": Entry,
    "artifacts/run-NNN/checkpoint/progress.json": Progress,
    "artifacts/probes/run-NNN-labels-SHARE.json": Probe,
    "artifacts/leakage/run-NNN.json": Leakage,
    "models/NAME/current.json": Current,
    "models/NAME/vN/manifest.json": VersionManifest,
    "models/NAME/vN/calibration.json": Calibration,
    "estimate FEDERATION --json": Estimate,
    "policy.toml": Policy,
}
SHAPED = {  # files without a model, and the one of this repository whose shape is shown
    "artifacts/run-NNN/evaluation.json": "artifacts/run-001/evaluation.json",
    "artifacts/run-NNN/dataset_splits.json": "artifacts/run-001/dataset_splits.json",
    "artifacts/run-NNN/dataset_stats.json": "artifacts/run-005/dataset_stats.json",
    "artifacts/run-NNN/training_history.json": "artifacts/run-001/training_history.json",
    "artifacts/run-NNN/label_map.json": "artifacts/run-001/label_map.json",
    "artifacts/run-NNN/communication.json": "artifacts/run-001/communication.json",
    "artifacts/run-NNN/environment.json": "artifacts/run-005/environment.json",
    "models/NAME/vN/model_meta.json": "models/brain-mri/v1/model_meta.json",
}
ELSEWHERE = """Of some runs alone: `privacy.json` ([privacy](privacy.md)), `secure_aggregation.json`
([secure aggregation](secure-aggregation.md)), `hospitals.json` ([who joined over a network](network.md)). Weights are
safetensors with the network's own tensor names; `training.log` is text, a line of time and sentence each."""


class _Schema(GenerateJsonSchema):
    """Arrays have no JSON schema of their own; engine/inference/gate.py says how they are written."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {"type": "array: `shape`, and `float32`, little-endian, in base64"}


def commands_page() -> str:
    """Every command of the Typer app with its arguments and options."""
    rows = [
        "# Every command",
        MADE,
        "`python -m engine COMMAND --help` says the same. Exit status 0: done; 2: something that you can mend, said in "
        "one line; 130: stopped by Ctrl-C.",
    ]
    for name, command in _commands(typer.main.get_command(app), ""):
        arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        rows.append(f"## {name}")
        rows.append(" ".join((command.help or "").split()))
        rows.append("\n".join(["```text", " ".join(["python -m engine", name, *arguments, "[OPTIONS]"]), "```"]))
        options = [_option(p) for p in command.params]
        if options:
            rows.append("\n".join(["| option | what | default |", "| --- | --- | --- |", *options]))
    return "\n\n".join(rows) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        inner = getattr(command, "commands", None)
        if inner is None or command.params:  # `hospital` alone is a command too
            yield f"{prefix}{name}", command
        if inner is not None:
            yield from _commands(command, f"{prefix}{name} ")


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not parameter.is_flag:
            name += f" {parameter.metavar or parameter.type_descriptor.annotation.__name__.upper()}"
    said = [str(parameter.help or "").strip()]
    if parameter.envvar:
        said.append(f"environment: `{parameter.envvar}`")
    if parameter.multiple:
        said.append("may be given again")
    if parameter.required:
        default = "required"
    else:
        default = "" if parameter.default in (None, False) else f"`{parameter.default}`"
    return _row(f"`{name}`", "; ".join(filter(None, said)), default)


def federation_page() -> str:
    """Every key that a federation file may have."""
    rows = [
        "# Every key of a federation file",
        MADE,
        "One TOML below `federations/`. An unknown key is refused with its line. `data` is the file's own name where it"
        " is not given. `[aggregation]` takes the keys of the strategy that it names. [federations.md](federations.md) "
        "has the shapes and the rules, [add-hospitals.md](add-hospitals.md) an example that runs.",
        *_model_tables(Federation, titles=_sections()),
    ]
    return "\n\n".join(rows) + "\n"


def schemas_page() -> str:
    """Every file that Consilium writes: tables for those with a model, shapes for the others."""
    rows = [
        "# Every file, and what is in it",
        MADE,
        "What has a `schema_version` of another program is refused in one line. Keys that a reader does not know are "
        "refused too. `Federation` is [a federation file](federation-file.md).",
        ELSEWHERE,
    ]
    for file, model in MODELLED.items():
        rows += [f"## {file}", *_model_tables(model, level="###")]
    rows += ["# Files without a model", "Their shape, read from the runs and the version that are in this repository."]
    for file, example in SHAPED.items():
        rows += [f"## {file}", "\n".join(["```text", *_shape(_read(example), _names(example)), "```"])]
    rows += ["## artifacts/run-NNN/predictions.parquet", _columns(PROJECT / "artifacts/run-001/predictions.parquet")]
    for table in sorted((PROJECT / "artifacts/run-001/metrics").glob("*.csv")):
        with table.open(encoding="utf-8", newline="") as stream:
            rows += [f"## artifacts/run-NNN/metrics/{table.name}", f"`{','.join(next(csv.reader(stream)))}`"]
    return "\n\n".join(rows) + "\n"


def _sections() -> dict[str, str]:
    """Where each model of a federation file stands in it: "[training.augment]"."""
    schema = Federation.model_json_schema()
    found: dict[str, list[str]] = {}

    def walk(part: Mapping[str, Any], above: str) -> None:
        for key, of in part["properties"].items():
            place = f"{above}{key}"
            for name in (name for name in schema["$defs"] if f'/$defs/{name}"' in json.dumps(of)):
                strategy = schema["$defs"][name]["properties"].get("strategy")
                is_list = of.get("type") == "array"
                title = f"`[[{place}]]`" if is_list else f"`[{place}]`"
                if strategy is not None:
                    title += f" with `strategy = {json.dumps(strategy['default'])}`"
                found.setdefault(name, []).append(title)
                walk(schema["$defs"][name], f"{place}.")

    walk(schema, "")
    return {"Federation": "At the top"} | {name: " and ".join(titles) for name, titles in found.items()}


def _model_tables(model: type[BaseModel], level: str = "##", titles: Mapping[str, str] | None = None) -> Iterator[str]:
    """The model's own table, then one for each model in it, in the order of `titles` where they are given; a federation
    inside a file is a link."""
    schema = model.model_json_schema(schema_generator=_Schema)
    parts = {model.__name__: schema, **schema.get("$defs", {})}
    hidden = _below_federation(schema) if model is not Federation else set()
    for name in titles or parts:
        part = parts[name]
        if name in hidden or "properties" not in part:
            continue
        needed = part.get("required", ())
        rows = [
            _row(f"`{key}`", _kind(of, titles or {}), _default(key, of, needed), _text(of))
            for key, of in part["properties"].items()
        ]
        head = ["| key | what it takes | default | |", "| --- | --- | --- | --- |"]
        yield "\n\n".join(
            filter(None, [f"{level} {titles[name] if titles else name}", _text(part), "\n".join([*head, *rows])])
        )


def _below_federation(schema: Mapping[str, Any]) -> set[str]:
    names = set(Federation.model_json_schema()["$defs"]) | {"Federation"}
    return names & set(schema.get("$defs", {}))


def _kind(of: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """A JSON schema's type in a few words."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return "section, below" if name in titles else f"`{name}`"
    if "const" in of:
        return f"`{json.dumps(of['const'])}`"
    if "enum" in of:
        return ", ".join(f"`{json.dumps(value)}`" for value in of["enum"])
    for either in ("anyOf", "oneOf"):
        if either in of:
            kinds = [_kind(one, titles) for one in of[either]]
            return " or ".join(kind for kind in dict.fromkeys(kinds) if not (titles and kind == "null"))
    if of.get("type") == "array":
        inner = of.get("items") or {}
        return f"list of {_kind(inner, titles)}" if inner else "list"
    if of.get("type") == "object":
        inner = of.get("additionalProperties")
        return f"by name: {_kind(inner, titles)}" if isinstance(inner, dict) else "table"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {of[key]}" for key, word in limits.items() if key in of]
    if "pattern" in of:
        said.append(f"`{of['pattern']}`")
    return " ".join([of.get("type", "any"), *said])


def _default(key: str, of: Mapping[str, Any], required: Any) -> str:
    if key in required:
        return "required"
    if isinstance(of.get("default"), dict):
        return "its defaults" if of["default"] else ""
    return "" if of.get("default") in (None, "", []) else f"`{json.dumps(of['default'])}`"


def _text(of: Mapping[str, Any]) -> str:
    return " ".join(of.get("description", "").split())


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _read(name: str) -> Any:
    return json.loads((PROJECT / name).read_text(encoding="utf-8"))


def _names(example: str) -> dict[str, set[str]]:
    """What stands for a hospital, a class or a model in the files beside `example`."""
    folder = (PROJECT / example).parent
    config = "config.json" if (folder / "config.json").is_file() else "manifest.json"
    federation = json.loads((folder / config).read_text(encoding="utf-8"))["federation"]
    ids = {hospital["id"] for hospital in federation["hospital"]}
    shown = {hospital["name"] for hospital in federation["hospital"]}
    return {
        "<class>": set(federation["classes"]),
        "<hospital id>": ids | {"all", "external"},
        "<hospital name>": shown | {f"{name} (simulated)" for name in shown},
        "<model>": {"global", "central", *(f"local/{one}" for one in ids)},
        "<split>": {"validation", "test", "external"},
    }


def _shape(value: Any, names: Mapping[str, set[str]], indent: str = "") -> Iterator[str]:
    """A JSON value as its keys and kinds; keys that name a hospital, class, model or split stand once, in brackets."""
    if isinstance(value, list):
        yield f"{indent}a list of"
        yield from _shape(value[0], names, f"{indent}  ") if value else [f"{indent}  anything"]
        return
    if not isinstance(value, dict):
        yield f"{indent}{_word(value)}"
        return
    for known, members in names.items():
        if value and set(value) <= members:
            value = {known: next(iter(value.values()))}
    of_classes = {f"auc/{label}" for label in names["<class>"]}
    value = {"auc/<class>" if key in of_classes else key: inner for key, inner in value.items()}
    for key, inner in value.items():
        if (isinstance(inner, dict) and inner) or (isinstance(inner, list) and inner and isinstance(inner[0], dict)):
            yield f"{indent}{key}:"
            yield from _shape(inner, names, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_word(inner)}"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {_word(value[0])}" if value else "list"
    return {str: "text", bool: "true or false", int: "integer", float: "number", dict: "object"}.get(
        type(value), "null, or what there is"
    )


def _columns(path: Path) -> str:
    fields = pyarrow.parquet.read_schema(path)
    rows = [_row(f"`{field.name}`", f"`{field.type}`") for field in fields]
    return "\n".join(["| column | type |", "| --- | --- |", *rows])


PAGES = {"commands.md": commands_page, "federation-file.md": federation_page, "schemas.md": schemas_page}


def main() -> None:
    stale = []
    for name, page in PAGES.items():
        path, text = PROJECT / "docs" / name, page()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"docs: {', '.join(stale)} stale; run: PYTHONPATH=. python docs/generate.py")


if __name__ == "__main__":
    main()
