"""The report: one page that needs nothing else, says what the exhibits say, and refuses incomplete exhibits."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.files import CHAPTERS, FIGURES, ROOT
from artifact.publish import cite, claims, claims_table, gallery, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of the committed exhibits."""
    return report.report(out=tmp_path_factory.mktemp("report") / "report.html")


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not re.findall(r"<(?:script|link|iframe|object|embed)\b", text)
    assert all(source.startswith("data:image/webp;base64,") for source in re.findall(r'src="([^"]{1,40})', text))
    assert not re.findall(r"@import|url\(", text.split("</style>")[0])
    targets = re.findall(r'href="([^"]+)"', text)
    assert {target[1:] for target in targets if target.startswith("#")} <= set(re.findall(r'id="([^"]+)"', text))
    assert all(target.startswith(("#", "https://")) for target in targets)


def test_every_claim_and_exhibit_is_in_it_with_its_caption_and_parameters(page):
    text = page.read_text()
    for one in claims_table.lines():
        assert f'id="claim-{one.id}"' in text
        assert text.index('id="results"') < text.index(f'id="claim-{one.id}"') < text.index("<article")
    found = gallery.exhibits()
    for one in found:
        article = text[text.index(f'<article id="{one["stem"]}"') :].split("</article>")[0]
        for said in (
            one["title"],
            one["caption"],
            one["interpretation"],
            one["digest"],
            cite.citation(one).replace("`", ""),
            *map(str, one["parameters"]),
        ):
            assert str(escape(said, quote=False)) in article.replace("&#39;", "'").replace("&#34;", '"')
        assert "<img" in article or "<table" in article
    chapters = re.findall(r'<section id="of-(\w+)"', text)
    assert chapters == [name for name in CHAPTERS if name in chapters]
    assert set(chapters) == {Path(one["notebook"]).stem for one in found}


def test_this_machine_s_values_stand_beside_the_reference_s(page, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_webp", lambda _: "")  # pictures are in the other tests' page
    here = tmp_path / "here"
    claims.check("D9", [1] * 6, stem="endpoints", out=here)
    claims.not_tested("L1", "the machine was busy", stem="live", out=here)
    text = report.report(out=tmp_path / "report.html", here=here).read_text()
    (row,) = (one for one in text.split("<tr ")[1:] if one.startswith('id="claim-D9"'))
    shown = re.findall(r'data-name="(\w+)">(.*?)</td>', row)
    assert [name for name, _ in shown] == ["paper", "reference", "here"]
    assert shown[2][1] == "6 of 6 as the paper says, p = 0.016"
    assert '<td data-name="here">same</td>' in text
    (row,) = (one for one in text.split("<tr ")[1:] if one.startswith('id="claim-L1"'))
    assert "here: the machine was busy" in row
    assert '<td data-name="here">NOT TESTED</td>' in row
    assert 'data-name="here"' not in page.read_text()


def test_every_exhibit_says_what_it_shows():
    """Title, caption and interpretation are written with the figure, in one place."""
    for one in gallery.exhibits():
        assert one["title"].strip(), one["stem"]
        assert not one["title"].endswith("."), one["stem"]
        assert one["caption"].strip().endswith("."), one["stem"]
        assert one["interpretation"].strip().endswith("."), one["stem"]


def test_the_page_is_light(page):
    assert page.stat().st_size < 3.5e6


@pytest.fixture
def folder(tmp_path):
    """A copy of the exhibits of one notebook, and their claims."""
    for path in FIGURES.glob("dispatch*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_an_exhibit_that_a_claim_names_must_be_there(folder, capsys):
    for path in folder.glob("dispatch_d4.*"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"'dispatch_d4' \(D4\)"):
        report.report(folder, folder / "report.html")
    assert main(["report", str(folder), "--out", str(folder / "report.html")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (folder / "report.html").exists()


def test_an_exhibit_older_than_its_data_is_refused(folder):
    path = folder / "dispatch_d4.json"
    found = json.loads(path.read_text())
    found["data"]["data/phones.csv"] = "0" * 64
    path.write_text(json.dumps(found))
    with pytest.raises(ArtifactError, match=r"dispatch_d4 is older than data/phones\.csv; run `make figures`"):
        report.report(folder, folder / "report.html")


def test_text_of_others_is_text(folder):
    path = folder / "dispatch_d4.json"
    found = json.loads(path.read_text()) | {"caption": "a < b & <b>c</b>"}
    path.write_text(json.dumps(found))
    text = report.report(folder, folder / "report.html").read_text()
    assert "a &lt; b &amp; &lt;b&gt;c&lt;/b&gt;" in text
    assert "<b>c</b>" not in text


def test_the_readme_has_the_verdicts_of_the_committed_exhibits():
    """Eight of them in the README, all of them on top of the gallery."""
    readme, page = (ROOT / "README.md").read_text(), (FIGURES / "README.md").read_text()
    assert claims_table.markdown(claims_table.lines()) in page, "run make figures"
    assert claims_table.headline(claims_table.lines()) in readme, "run make figures"


def test_the_table_is_written_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- claims: x -->\nwas here\n<!-- end of claims -->\nafter\n")
    shown = claims_table.lines()
    claims_table.write_readme(shown, path)
    text = path.read_text()
    assert text.startswith("before\n<!-- claims: x -->\n")
    assert text.endswith("<!-- end of claims -->\nafter\n")
    assert "was here" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(claims_table.HEADLINE)
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    claims_table.write_readme(shown, path)
    assert path.read_text() == text
    path.write_text("no marks")
    with pytest.raises(ArtifactError, match="no block"):
        claims_table.write_readme(shown, path)


def watched(page):
    """What a page complains of or asks for beyond itself, as it comes."""
    told = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else told.append(one.url))
    return told


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_a_browser_shows_it_light_dark_and_narrow(page):
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    grounds = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 380)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
            shown = context.new_page()
            told = watched(shown)
            shown.goto(page.as_uri())
            shown.evaluate("[...document.images].forEach(one => one.loading = 'eager')")  # as if scrolled to its end
            shown.evaluate("Promise.all([...document.images].map(one => one.decode()))")  # fails where one is broken
            assert shown.evaluate("document.images.length") > 10
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            grounds[scheme] = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert told == []
            context.close()
        browser.close()
    assert grounds["light"] != grounds["dark"]
