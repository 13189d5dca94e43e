"""Let go of what Streamlit keeps for download buttons: their makers and what they made, a picture in a report too.

Streamlit frees both after full runs of a page only, and what was downloaded after two of them; Compare runs as a
fragment.
"""

from streamlit import runtime


def drop_stale_downloads() -> None:
    """Makers of buttons that were drawn anew since. After the new ones are drawn."""
    if runtime.exists():
        runtime.get_instance().media_file_mgr.remove_orphaned_files()


def drop_downloads() -> None:
    """All of this session, what was downloaded too. The page must then run from its start, for its other files."""
    if runtime.exists():
        files = runtime.get_instance().media_file_mgr
        files.clear_session_refs()
        files.remove_orphaned_files()  # marks
        files.remove_orphaned_files()  # deletes
