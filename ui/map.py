"""The map of hospitals: a bundled coastline and one circle per hospital, drawn without internet.

streamlit-folium carries no Leaflet of its own: its frontend loads whatever scripts the map names, by default from CDNs.
So the map names our own copy, as a data URL.
"""

import base64
import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import folium
from folium.elements import MacroElement
from folium.template import Template

from engine.config import Federation
from engine.results.words import count
from ui.palette import hospital_colour

# Natural Earth 1:110m land (public domain), by way of the npm package world-atlas 2.0.2; see assets/README.md.
ASSETS = Path(__file__).parent / "assets"
NUMBER_STYLE = "font: 600 13px system-ui, sans-serif; color: #10161d; text-align: center"
SMALLEST_PX, LARGEST_PX = 7, 18


@dataclass(frozen=True)
class MapColours:
    sea: str
    land: str
    coast: str


LIGHT = MapColours("#e9f0f6", "#fbfaf7", "#9fb0bf")
DARK = MapColours("#0f1a26", "#27323d", "#5d7183")


class Coastline(MacroElement):
    """Land as one still layer. folium's own GeoJson walks every point of it three times a page."""

    _template = Template(
        "{% macro script(this, kwargs) %}L.geoJSON({{ this.land }}, "
        "{interactive: false, style: {{ this.style }}}).addTo({{ this._parent.get_name() }});{% endmacro %}"
    )

    def __init__(self, colours: MapColours) -> None:
        super().__init__()
        self._name = "Coastline"
        self.land = _coastline()
        self.style = json.dumps({"fillColor": colours.land, "color": colours.coast, "weight": 1, "fillOpacity": 1})


def hospital_map(federation: Federation, n_images: Mapping[str, int], colours: MapColours = LIGHT) -> folium.Map | None:
    """Numbered circles by place, area in proportion to images; None where no hospital says where it is."""
    placed = [(hospital, hospital.location) for hospital in federation.hospital if hospital.location]
    if not placed:
        return None
    drawn = folium.Map(tiles=None, attribution_control=False, zoom_control=True, min_zoom=1, max_zoom=8, zoom_snap=0.25)
    drawn.default_js = [("leaflet", _data_url("leaflet/leaflet.js", "text/javascript"))]
    drawn.default_css = [("leaflet_css", _data_url("leaflet/leaflet.css", "text/css"))]
    folium.Rectangle([[-90, -360], [90, 360]], stroke=False, fill_color=colours.sea, fill_opacity=1).add_to(drawn)
    Coastline(colours).add_to(drawn)
    numbers = {hospital.id: number for number, hospital in enumerate(federation.hospital, start=1)}
    largest = max(n_images.values(), default=1) or 1
    for hospital, place in sorted(placed, key=lambda pair: -n_images.get(pair[0].id, 0)):
        n = n_images.get(hospital.id, 0)
        point = (place.latitude, place.longitude)
        name = _harmless(federation.display_name(hospital.id))
        folium.CircleMarker(
            point,
            radius=radius_px(n, largest),
            color="#ffffff",
            weight=1.5,
            fill=True,
            fill_color=hospital_colour(federation, hospital.id),
            fill_opacity=0.95,
            tooltip=folium.Tooltip(f"{name}<br>{_harmless(place.place)}<br>{count(n, 'image')}"),
        ).add_to(drawn)
    # The numbers stand in the list beside the map: never colour alone. Hospitals at one place share one label.
    at_place: dict[tuple[float, float], list[str]] = {}
    for hospital, place in placed:
        at_place.setdefault((place.latitude, place.longitude), []).append(str(numbers[hospital.id]))
    for point, here in at_place.items():
        figure = f'<div style="{NUMBER_STYLE}; white-space: nowrap">{", ".join(here)}</div>'
        wide = 24 * len(here)
        folium.Marker(
            point, icon=folium.DivIcon(html=figure, icon_size=(wide, 18), icon_anchor=(wide // 2, 9)), interactive=False
        ).add_to(drawn)
    latitudes, longitudes = [p.latitude for _, p in placed], [p.longitude for _, p in placed]
    corners = [(min(latitudes), min(longitudes)), (max(latitudes), max(longitudes))]
    drawn.fit_bounds(corners, padding=(45, 45), max_zoom=5)
    return drawn


def radius_px(n_images: int, largest: int) -> float:
    """Area in proportion to images, with a floor that a finger can hit."""
    return max(SMALLEST_PX, LARGEST_PX * math.sqrt(n_images / largest)) if largest else SMALLEST_PX


def _harmless(text: str) -> str:
    """Names come from a file; folium puts a tooltip into a JavaScript template literal and into HTML."""
    return html.escape(text).replace("\\", "&#92;").replace("`", "&#96;").replace("$", "&#36;")


@cache
def _data_url(asset: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode((ASSETS / asset).read_bytes()).decode()}"


@cache
def _coastline() -> str:
    """As JavaScript: the file's JSON is."""
    return (ASSETS / "coastline.json").read_text(encoding="utf-8").strip()
