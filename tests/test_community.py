"""The files around the code: the citation, the forms of reports, the extras that pages name."""

from pathlib import Path

import yaml
from packaging.version import Version

import edlm

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "title", "message", "authors", "version", "license"} <= set(found)
    assert Version(found["version"]) == Version(edlm.__version__)
    paper = found["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Xu", "Geffner"]
    assert {"type": "other", "value": "arXiv:2410.21357"} in paper["identifiers"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(author["family-names"] in readme for author in paper["authors"])
    assert paper["title"] in readme


def test_each_form_of_a_report_asks_for_something() -> None:
    forms = [*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
    assert {form.stem for form in forms} == {"bug", "question", "config"}
    for form in forms:
        found = yaml.safe_load(form.read_text("utf-8"))
        if form.stem != "config":
            assert {"name", "description", "body"} <= set(found)
            assert len({field["id"] for field in found["body"]}) == len(found["body"])
