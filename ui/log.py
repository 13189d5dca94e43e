"""A run's log: what the training wrote down, filtered by level and words."""

import re
from typing import NamedTuple

import streamlit as st

from engine.results.run_folder import Run
from engine.results.words import count

LEVELS = {"Everything": (), "Warnings and errors": ("WARNING", "ERROR"), "Errors": ("ERROR",)}
LINE = re.compile(r"\S+ \S+ (INFO|WARNING|ERROR) ")
SHOWN = 300
HEIGHT_PX = 320


class LogLine(NamedTuple):
    level: str
    text: str


def read_log(text: str) -> list[LogLine]:
    """Oldest first. A line without time and level goes on with the one before it."""
    lines: list[LogLine] = []
    for row in text.splitlines():
        begins = LINE.match(row)
        level = begins.group(1) if begins else lines[-1].level if lines else "INFO"
        lines.append(LogLine(level, row))
    return lines


def matching_lines(lines: list[LogLine], levels: tuple[str, ...], words: str) -> list[LogLine]:
    """Those of the levels (of all where none is named) that have every word."""
    wanted = words.casefold().split()
    return [
        line
        for line in lines
        if (not levels or line.level in levels) and all(word in line.text.casefold() for word in wanted)
    ]


def why_stopped(run: Run) -> str:
    """What the log ends with where an error stopped the run; empty where a person did, or a kill that says nothing."""
    rows = _text(run).splitlines()
    kind, _, said = rows[-1].partition(" ERROR stopped: ")[2].partition(": ") if rows else ("", "", "")
    return said or kind


def draw_log(run: Run) -> None:
    """Newest first, in a box of fixed height, so that a new line moves nothing else."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        level = st.segmented_control("Level", list(LEVELS), default="Everything", key="log_level", required=True)
        words = st.text_input("Search the log", placeholder="hospital, round ...", key="log_words", width=280)
    lines = read_log(_text(run))
    found = matching_lines(lines, LEVELS[str(level)], words)
    with st.container(height=HEIGHT_PX, key="log"):
        if found:
            st.code("\n".join(line.text for line in found[: -SHOWN - 1 : -1]), language=None, wrap_lines=True)
        else:
            st.caption("No line says that." if lines else "Nothing is written down yet.")
    shown = f", the newest {SHOWN} shown" if len(found) > SHOWN else ""
    st.caption(f"{len(found):,} of {count(len(lines), 'line')}{shown}, newest first; times are the server's.")


def _text(run: Run) -> str:
    try:
        return (run.folder / "training.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
