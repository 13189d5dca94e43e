"""A pooled source -> its labelled images: class folders that lie together, or the rows of a CSV manifest."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import Federation
from engine.data.class_folders import hash_file, scan_class_folders
from engine.data.findings import Finding
from engine.data.hospitals import LocalImage, label_files, patient_of
from engine.data.labels import match_label, nearest_class
from engine.data.subgroups import subgroup_values
from engine.errors import DataError
from engine.results.words import count
from engine.sections import Columns, Source

Row = tuple[int, dict[str, str]]  # the line it stands on, and its cells by column


@dataclass(frozen=True)
class Pool:
    """`images[i].hospital` is the manifest's word for the practice; "" where a partition will say whose it is."""

    images: tuple[LocalImage, ...]
    findings: tuple[Finding, ...]


def read_source(federation: Federation, source: Source, root: Path) -> Pool:
    """Everything a source holds, in the order of the paths. Raises DataError with what is wrong and where."""
    pool = _read_folder(federation, source, root) if source.folder else _read_manifest(federation, source, root)
    held = {image.label for image in pool.images}
    for label in federation.classes:
        if label not in held:
            place = root / (source.folder or source.manifest or "")
            raise DataError(
                f"{place}: holds no image of '{label}'; add some, or an alias to [source], or drop the class"
            )
    return pool


def by_hospital(federation: Federation, pool: Pool, root: Path) -> dict[str, list[LocalImage]]:
    """A manifest's images under the hospitals' ids, by the words that each hospital names.

    Raises DataError where a hospital's word stands in no row.
    """
    held = Counter(image.hospital for image in pool.images)
    owner = {}
    for hospital in federation.hospital:
        for word in hospital.source:
            if not held[word]:
                source = federation.source
                column = source.columns.hospital if source and source.columns else None
                raise DataError(
                    f"{root / (source.manifest or '') if source else root}: column '{column}' has no '{word}' "
                    f"(hospital {hospital.id}); it has: {_some(held)}"
                )
            owner[word] = hospital.id
    dealt: dict[str, list[LocalImage]] = {hospital.id: [] for hospital in federation.hospital}
    for image in pool.images:
        if image.hospital in owner:
            dealt[owner[image.hospital]].append(replace(image, hospital=owner[image.hospital]))
    return dealt


def unowned_findings(federation: Federation, pool: Pool) -> list[Finding]:
    """One warning for each word of the hospital column that no hospital of the federation names."""
    named = {word for hospital in federation.hospital for word in hospital.source}
    others = Counter(image.hospital for image in pool.images if image.hospital not in named)
    return [
        _finding("unowned-images", f"{count(n, 'image')} of '{word}' belong to no hospital here and are left out")
        for word, n in sorted(others.items())
    ]


def _read_folder(federation: Federation, source: Source, root: Path) -> Pool:
    folder = source.folder or ""
    scan = scan_class_folders(root, folder, federation.classes, source.aliases)
    if scan.missing:
        raise DataError(f"{root / folder}: no such folder; mend source.folder in the TOML")
    findings = []
    for name in scan.unmatched:
        close = nearest_class(name, federation.classes)
        hint = f"if it means {close}, add an alias to [source]" if close else "add an alias to [source] or take it away"
        findings.append(
            _finding("unmatched-folder", f"the source's folder '{name}' is no class and is left out; {hint}")
        )
    findings += [_finding("empty-folder", f"the source's folder '{name}' holds no images") for name in scan.empty]
    if scan.ignored:
        findings.append(_ignored(scan.ignored, "outside a class folder, or no image by name"))
    return Pool(tuple(label_files(federation, "", root, scan.files)), tuple(findings))


def _read_manifest(federation: Federation, source: Source, root: Path) -> Pool:
    manifest, folder, columns = root / (source.manifest or ""), root / (source.images or ""), source.columns
    if columns is None:
        raise DataError(f"{manifest}: its columns are not known; name them in source.columns")
    rows = _read_rows(manifest, columns, source.subgroups)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; mend source.images in the TOML")
    # Only what the folder really lists can be meant: a name with '..' in it leads nowhere.
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    names = [(line, f"{cells[columns.image]}{source.suffix}") for line, cells in rows]
    _refuse(
        manifest,
        [(line, name) for line, name in names if name not in there],
        f"is not in {folder}; add the file or take the row away (source.suffix is '{source.suffix}')",
    )
    n_rows = Counter(name for _, name in names)
    _refuse(
        manifest,
        [(line, name) for line, name in names if n_rows[name] > 1],
        "stands in several rows; leave one of them",
    )
    labels = {cells[columns.label] for _, cells in rows}
    meaning = {label: match_label(label, federation.classes, source.aliases) for label in labels}
    _refuse(
        manifest,
        [(line, cells[columns.label]) for line, cells in rows if meaning[cells[columns.label]] is None],
        f"(column '{columns.label}') is no class; add an alias to [source] or take the rows away",
    )
    patients = [
        (cells[columns.patient] or None)
        if columns.patient
        else patient_of(there[name].relative_to(root).as_posix(), federation.split.patient_pattern)
        for (_, cells), (_, name) in zip(rows, names, strict=True)
    ]
    subgroups = subgroup_values(manifest, rows, source.subgroups, patients)
    images = [
        LocalImage(
            hospital=cells[columns.hospital] if columns.hospital else "",
            path=there[name].relative_to(root).as_posix(),
            label=meaning[cells[columns.label]] or "",
            sha256=hash_file(there[name]),
            patient=patient,
            subgroups=belongs,
        )
        for (_, cells), (_, name), patient, belongs in zip(rows, names, patients, subgroups, strict=True)
    ]
    ignored = sorted(there[name].relative_to(root).as_posix() for name in there.keys() - n_rows.keys())
    findings = [_ignored(ignored, "the manifest does not name them")] if ignored else []
    return Pool(tuple(sorted(images, key=lambda image: image.path)), tuple(findings))


def _read_rows(manifest: Path, columns: Columns, subgroups: Iterable[str] = ()) -> list[Row]:
    named = {f"columns.{key}": name for key, name in columns.model_dump().items() if name is not None}
    wanted: Mapping[str, str] = {**named, **{f"subgroups.{name}": name for name in subgroups}}
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or []
            for key, name in wanted.items():
                if name not in header:
                    raise DataError(f"{manifest}: has no column '{name}' (source.{key}); it has: {_some(header)}")
            return [
                (reader.line_num, {name: (cells[name] or "").strip() for name in wanted.values()}) for cells in reader
            ]
    except OSError as error:
        raise DataError(f"{manifest}: {error.strerror or error}; mend source.manifest in the TOML") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: is no CSV in UTF-8 ({error}); save it anew") from None


def _refuse(manifest: Path, wrong: Sequence[tuple[int, str]], what: str) -> None:
    """Raise DataError with the first wrong row and how many more there are."""
    if wrong:
        line, value = wrong[0]
        more = f" (and {count(len(wrong) - 1, 'more row')} like it)" if len(wrong) > 1 else ""
        raise DataError(f"{manifest}:{line}: '{value}' {what}{more}")


def _finding(kind: str, sentence: str) -> Finding:
    return Finding(severity="warning", kind=kind, hospital=None, sentence=sentence)


def _ignored(files: Sequence[str], why: str) -> Finding:
    sentence = f"the source: {count(len(files), 'file')} ignored: {why}"
    return Finding(severity="note", kind="ignored-files", hospital=None, sentence=sentence, paths=tuple(files))


def _some(words: Iterable[str]) -> str:
    """The first few, for a message that stays one line."""
    listed = list(words)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
