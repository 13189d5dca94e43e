"""Data sets from Kaggle, by Kaggle's own library, which resumes and checks what it downloads and keeps a copy."""

import contextlib
import os
import sys
from pathlib import Path

from engine.data.catalogue import DataSet
from engine.errors import DataError

# kagglehub looks there too; looking first answers without a network, and before anything is confirmed
CREDENTIAL_FILES = ("kaggle.json", "access_token")


def require_credentials(data_set: DataSet) -> None:
    """Raises DataError where neither a file nor the environment says who asks."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    named = os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY")
    if named or os.environ.get("KAGGLE_API_TOKEN") or any((folder / name).is_file() for name in CREDENTIAL_FILES):
        return
    raise DataError(
        f"no Kaggle credentials: at https://www.kaggle.com/settings make an API token and put it at "
        f"{folder / 'kaggle.json'} (or set KAGGLE_USERNAME and KAGGLE_KEY), {_by_hand(data_set)}"
    )


def kaggle_cache() -> Path:
    """Where kagglehub keeps its copies."""
    return Path(os.environ.get("KAGGLEHUB_CACHE", Path.home() / ".cache" / "kagglehub"))


def fetch_from_kaggle(data_set: DataSet) -> Path:
    """The folder in kagglehub's cache that holds the data set, downloaded where it was not there yet.

    Raises DataError: kagglehub not installed, offline, credentials refused, a damaged download.
    """
    if data_set.kaggle is None:
        raise DataError(f"{data_set.name} is not taken from Kaggle; leave --via kaggle away")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its log goes to the stdout that it finds when it is imported
            import kagglehub

            return Path(kagglehub.dataset_download(data_set.kaggle))
    except ImportError as error:
        missing = f"{error.name or 'kagglehub'} is not installed: pip install -r requirements-engine.txt"
        raise DataError(f"{missing}, {_by_hand(data_set)}") from None
    except Exception as error:  # requests', json's, zipfile's and half a dozen of its own
        raise DataError(f"Kaggle {data_set.kaggle}: {_in_words(error)}, {_by_hand(data_set)}") from None


def _in_words(error: Exception) -> str:
    """`requests` comes with kagglehub and is known by its names only, so that this file imports without either."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"Kaggle refuses these credentials (HTTP {status}); make a new API token, accept the terms on that page"
    if status == 404:
        return "Kaggle has no such data set any more (HTTP 404)"
    if status is None and kinds & {"ConnectionError", "Timeout", "TimeoutError"}:
        return "cannot reach Kaggle; is this machine offline? The same command goes on later"
    first_line = next(iter(str(error).splitlines()), "")
    return f"the download failed ({type(error).__name__}: {first_line}); try again"


def _by_hand(data_set: DataSet) -> str:
    page = f"https://www.kaggle.com/datasets/{data_set.kaggle}"
    return f"or download by hand from {page} and: python -m engine data import FILE --as {data_set.name} --to DIR"
