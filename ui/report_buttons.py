"""One image's report as PDF and JSON, made only when asked for."""

import datetime
from collections.abc import Callable
from typing import Any

import streamlit as st

from engine.inference.panel import Reading
from engine.results.published import PublishedVersion

Makers = tuple[Callable[[], bytes], Callable[[], bytes]]


def report_makers(
    reading: Reading,
    version: PublishedVersion,
    *,
    image_name: str,
    insisted: bool,
    own_reading: str | None,
    example: str = "",
) -> Makers:
    """What makes the PDF, and what makes the JSON. Neither holds the image's file, only what the models saw of it."""

    def build() -> dict[str, Any]:
        from engine.inference.report import build_report  # costs memory that only a report needs

        made_at = datetime.datetime.now(datetime.UTC).isoformat()
        return build_report(
            reading,
            version,
            image_name=image_name,
            insisted=insisted,
            own_reading=own_reading,
            example=example,
            made_at=made_at,
        )

    def pdf() -> bytes:
        from engine.inference.report_page import render_pdf

        return render_pdf(build(), reading)

    def json() -> bytes:
        from engine.inference.report import report_json

        return report_json(build())

    return pdf, json


def draw_report_buttons(makers: Makers, version: PublishedVersion, image_name: str) -> None:
    pdf, json = makers
    stem = f"consilium-{version.name}-{version.version}-{image_name.replace(' ', '-')}"
    with st.container(horizontal=True):
        for kind, make, mime in (("PDF", pdf, "application/pdf"), ("JSON", json, "application/json")):
            st.download_button(
                f"Report as {kind}", make, f"{stem}.{kind.lower()}", mime,
                key=f"report_{kind.lower()}", on_click="ignore", icon=":material/download:",
            )  # fmt: skip
