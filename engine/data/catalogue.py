"""The public data sets that `data get` and `data import` know: from where, how large, whose licence, laid out how.

Sizes are about; a checksum stands here only where its host publishes it, else the command says that there is none.
"""

import re
from dataclasses import dataclass

from engine.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NOT_THE_DEALING = (
    "federations/brain-mri.toml reads three hospital folders, and how these images were dealt to them is not public; "
    "describe your own hospitals in federations/NAME.toml, with folders such as Training (README: Your own hospitals)"
)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a public host. `md5` and `sha256` are lower-case hex; None where the host publishes none."""

    name: str
    url: str
    about_bytes: int
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Layout:
    """What an import must have brought: every path of `required` is a file, or a folder that holds one.

    `federation` names the federations/NAME.toml that reads it; `note` says what to do where none does.
    """

    required: tuple[str, ...]
    federation: str | None = None
    note: str = ""


@dataclass(frozen=True)
class DataSet:
    """`rules` say which paths are taken and where they go; whatever none matches is left out.

    The first layout whose paths are all there is the one that an import made. `packed` sets become one zip of class
    folders per top folder. `kaggle` is OWNER/NAME. `hint` is said where an import found none of the layouts.
    """

    name: str
    title: str
    licence: str
    citation: str
    page: str
    n_images: int
    rules: tuple[tuple[re.Pattern[str], str], ...]
    layouts: tuple[Layout, ...]
    kaggle: str | None = None
    kaggle_about_bytes: int = 0
    files: tuple[RemoteFile, ...] = ()
    packed: bool = False
    hint: str = ""

    def place(self, path: str) -> str | None:
        """Where a path goes below the data set's folder, both with '/'; None: it is left out."""
        for pattern, target in self.rules:
            if found := pattern.search(path):
                return found.expand(target)
        return None


def find_data_set(name: str) -> DataSet:
    """Raises DataError for a name that is not in the catalogue."""
    if name not in CATALOGUE:
        raise DataError(f"no known data set '{name}'; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _rule(pattern: str, target: str) -> tuple[re.Pattern[str], str]:
    return re.compile(rf"(?:^|/){pattern}$"), target


_SETS = (
    DataSet(
        name="brain-mri",
        title="Brain Tumor Classification (MRI)",
        licence="MIT",
        citation="S. Bhuvaji et al., Brain Tumor Classification (MRI), Kaggle 2020",
        page="https://www.kaggle.com/datasets/sartajbhuvaji/brain-tumor-classification-mri",
        n_images=3264,
        kaggle="sartajbhuvaji/brain-tumor-classification-mri",
        kaggle_about_bytes=90_000_000,
        rules=(
            _rule(r"(Training|Testing)/([^/]+)/([^/]+)", r"\1/\2/\3"),
            _rule(r"(dataset-[123](?:/[^/]+)+)", r"\1"),  # hospitals that somebody dealt already
        ),
        layouts=(
            Layout(("dataset-1", "dataset-2", "dataset-3"), federation="brain-mri"),
            Layout(("Training", "Testing"), note=NOT_THE_DEALING),
        ),
    ),
    DataSet(
        name="chest-xray",
        title="Chest X-Ray Images (Pneumonia)",
        licence="CC BY 4.0",
        citation="Kermany et al., Cell 172 (2018) 1122-1131; Mendeley Data, doi:10.17632/rscbjbr9sj.2",
        page="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        n_images=5856,
        kaggle="paultimothymooney/chest-xray-pneumonia",
        kaggle_about_bytes=2_400_000_000,
        files=(
            RemoteFile(
                "ChestXRay2017.zip",
                "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
                "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
                about_bytes=1_240_000_000,
            ),
        ),
        # Kaggle moved 16 training images of the original to a folder val, too few to choose anything by
        rules=(
            _rule(r"(?:train|val)/(NORMAL|PNEUMONIA)/([^/]+)", r"train/\1/\2"),
            _rule(r"test/(NORMAL|PNEUMONIA)/([^/]+)", r"test/\1/\2"),
        ),
        layouts=(
            Layout(("train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA"), federation="chest-xray"),
        ),
    ),
    DataSet(
        name="ham10000",
        title="HAM10000, dermatoscopic images of pigmented skin lesions",
        licence="CC BY-NC 4.0: not for commercial use",
        citation="Tschandl et al., Sci Data 5, 180161 (2018); Harvard Dataverse, doi:10.7910/DVN/DBW86T",
        page="https://doi.org/10.7910/DVN/DBW86T",
        n_images=10_015,
        kaggle="kmader/skin-cancer-mnist-ham10000",
        kaggle_about_bytes=5_600_000_000,
        files=(
            RemoteFile(
                "HAM10000_images_part_1.zip",
                "https://dataverse.harvard.edu/api/access/datafile/3172585",
                about_bytes=1_370_000_000,
                md5="4639bfa73ab251610530a97c898e6e46",
            ),
            RemoteFile(
                "HAM10000_images_part_2.zip",
                "https://dataverse.harvard.edu/api/access/datafile/3172584",
                about_bytes=1_400_000_000,
                md5="da43d6cc50f6613013be07e8986b384b",
            ),
            RemoteFile(  # without format=original Dataverse hands out a table of its own making
                "HAM10000_metadata.csv",
                "https://dataverse.harvard.edu/api/access/datafile/4338392?format=original",
                about_bytes=700_000,
                md5="8f85fb1aa29d80a2797247e434deb79d",
            ),
        ),
        # not ISIC's test images nor the masks, which lie beside them on the same page under like names
        rules=(
            _rule(r"(?i:HAM10000_images_part_?[12]|images)/(ISIC_\d+\.jpg)", r"images/\1"),
            _rule(r"HAM10000_metadata(?:\.csv)?", "HAM10000_metadata.csv"),
        ),
        layouts=(Layout(("images", "HAM10000_metadata.csv"), federation="skin"),),
        hint="give a folder with both image archives and HAM10000_metadata.csv (on Dataverse: 'Original File Format')",
    ),
    DataSet(
        name="cifar10",
        title="CIFAR-10, 32 px photographs of ten kinds (no medical images)",
        licence="none stated by its authors, who ask to be cited",
        citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        n_images=60_000,
        files=(
            RemoteFile(
                "cifar-10-binary.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                about_bytes=170_000_000,
                md5="c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
        rules=(
            _rule(rf"(train|test)/({'|'.join(CIFAR10_CLASSES)})/([^/]+)", r"\1/\2/\3"),
            _rule(r"(?:data_batch_[1-5])\.bin", "train"),
            _rule(r"test_batch\.bin", "test"),
        ),
        layouts=(Layout(("cifar10-train.zip",), federation="cifar10-ssl"),),
        packed=True,
        hint="take cifar-10-binary.tar.gz; the Python version holds pickles, which are never opened here",
    ),
)
CATALOGUE = {data_set.name: data_set for data_set in _SETS}
