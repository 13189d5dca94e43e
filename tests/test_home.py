"""Home: for whom, what is real and what is not, three doors."""

import pytest
from streamlit.testing.v1 import AppTest

from engine.results.words import DISCLAIMER
from tests.conftest import PROJECT


@pytest.fixture(scope="module")
def home() -> AppTest:
    return AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run()


def test_it_says_what_is_real_and_what_is_not(home: AppTest) -> None:
    assert not home.exception
    said = next(block.value for block in home.markdown if DISCLAIMER in block.value)
    assert [line.split("**")[1] for line in said.splitlines()[1:]] == ["Real", "Simulated", "Synthetic"]


@pytest.mark.parametrize(
    ("reader", "page"), [("Clinician", "4_Compare"), ("Researcher", "2_Training"), ("Hospital IT", "1_Hospitals")]
)
def test_every_reader_has_a_door_that_leads_somewhere(home: AppTest, reader: str, page: str) -> None:
    door = next(column for column in home.columns if any(reader in block.value for block in column.markdown))
    links = door.get("page_link")
    assert len(links) == 1
    assert links[0].proto.page == page.partition("_")[2]


def test_the_page_it_sends_hospital_it_to_is_there(home: AppTest) -> None:
    assert any("`docs/hospital-it.md`" in block.value for block in home.markdown)
    assert (PROJECT / "docs" / "hospital-it.md").is_file()
