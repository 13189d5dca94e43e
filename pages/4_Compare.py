"""What each model of a published version would say about one image."""

from engine.errors import ConsiliumError
from ui.compare import draw_compare
from ui.frame import draw_frame, show_federation
from ui.selection import select_version, stop_with

draw_frame("What each would say about this image")
version = select_version()
try:
    manifest = version.manifest
except ConsiliumError as error:
    stop_with(error)
show_federation(manifest.federation)
draw_compare(version)
