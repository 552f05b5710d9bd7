"""The page of a pair: it needs nothing else, its snippets run, and a browser shows it."""

import html
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

import disco_core as dc
from artifact.__main__ import main
from artifact.files import ROOT
from artifact.pair import example, page, tables
from artifact.pair.study import study
from artifact.publish import figures
from tests.helpers.clock import run
from tests.helpers.replay import ReplayEndpoint

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br", "hr", "link", "input"}
KEY = "sk-not-to-be-shown"
EVIL = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of the example with a hostile model name and one table, made with a key in the environment."""
    folder = tmp_path_factory.mktemp("page")
    pair = example.pair(60)
    about = {**pair.about, "model": EVIL, "server": "http://127.0.0.1:8000/v1", "device file": "models/a.gguf"}
    found = replace(study(replace(pair, about=about, notes=("a < b",))), count=4)
    texts = {"title": "Every policy", "caption": "A caption.", "interpretation": "It says."}
    saved = {"kind": "computed", "source": "a test", "out": folder / "out", "data": (), "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        figures.save_table(tables.policies(found), "your_pair_policies", **saved, **texts)
        return page.write(found, folder / "out", folder / "pair.html")


def snippets(path):
    return [html.unescape(one) for one in re.findall(r"<pre><code>(.*?)</code></pre>", path.read_text(), re.S)]


class Tags(HTMLParser):
    """Fails at a tag that is closed out of order."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def needs_nothing_else(path):
    text, tags = path.read_text(), Tags()
    tags.feed(text)
    assert tags.open == []
    assert not re.findall(r"<(?:script|link|iframe|object|embed)\b", text)
    assert all(one.startswith(("#", "data:image/webp;base64,")) for one in tags.loaded)
    assert not re.findall(r"@import|url\(", text.split("</style>")[0])
    targets = {one[1:] for one in tags.loaded if one.startswith("#")}
    assert targets <= set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'<(?:article|section) id="([^"]+)"', text)) <= targets


def test_the_page_needs_nothing_else_and_holds_no_key(written):
    needs_nothing_else(written)
    assert KEY not in written.read_text()
    assert 'href="#your_pair_policies"' in written.read_text()


def test_text_of_others_is_text(written):
    text = written.read_text()
    assert "&lt;script&gt;alert(" in text
    assert "a &lt; b" in text


def test_the_plan_is_used_as_the_page_shows_it(written):
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", snippets(written)[0]], cwd=ROOT, env=path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"start the server after \S+ s, the device after \S+ s \(inf: never\)\n", done.stdout)


def test_the_stream_runs_with_the_endpoints_that_it_names(written, monkeypatch, capsys):
    named = {}

    class Replayed(ReplayEndpoint):
        def __init__(self, which, **given):
            named[which] = given
            super().__init__(0.25, [0.0625], 8)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("disco_core.endpoints.openai.OpenAIEndpoint", Replayed)
    monkeypatch.setattr("disco_core.endpoints.llama_cpp.LlamaCppEndpoint", Replayed)
    monkeypatch.chdir(ROOT)
    names = {}
    for snippet in snippets(written):
        exec(snippet, names)
    capsys.readouterr()
    run(names["answer"]([{"role": "user", "content": "hello"}]))
    assert named == {EVIL: {"base_url": "http://127.0.0.1:8000/v1"}, "models/a.gguf": {}}
    assert capsys.readouterr().out


def test_where_a_pair_names_no_server_or_file_the_snippet_names_examples(tmp_path):
    names = page._names(study(example.pair(20)))
    assert names == {
        "model": '"my-model"',
        "server": '"http://127.0.0.1:8000/v1"',
        "device": '"path/to/model.gguf"',
    }


def test_failed_requests_and_notes_are_limits():
    pair = example.pair(20)
    found = study(replace(pair, requests=replace(pair.requests, failed=1), notes=("short",)))
    limits = page.limits(found)
    assert limits[:2] == ["short", "This is an example: its requests were drawn, not recorded."]
    assert "Failed requests of the record, which are in no figure: 1." in limits


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory):
    """The page of a stored pair, as the command makes it."""
    pair = example.pair(150, seed=3)
    folder = replace(pair, about={**pair.about, "machine": "a test's"}).store(tmp_path_factory.mktemp("recorded"))
    out = tmp_path_factory.mktemp("notebook")
    given = [f"recorded={folder}", f"out={out / 'out'}", f"page={out / 'pair.html'}"]
    assert main(["run", "your_pair", "--set", *given]) == 0
    return out / "pair.html"


@pytest.mark.slow
def test_the_notebook_makes_the_page_of_a_stored_pair(of_a_folder):
    needs_nothing_else(of_a_folder)
    text = of_a_folder.read_text()
    assert "<td>a test&#39;s</td>" in text
    assert "150 with a first token, 0 failed" in text
    stems = {one.stem for one in (of_a_folder.parent / "out").glob("your_pair*.json")}
    assert stems == {f"your_pair_{one}" for one in ("ttft", "policies", "latency", "time", "costs")}
    for stem in stems:
        assert f'<a href="#{stem}">' in text
        assert f'<article id="{stem}">' in text
    plan = dc.DispatchPlan.from_json((of_a_folder.parent / "pair" / "plan.json").read_text())
    assert html.escape(f"b = {plan.budget:g}") in text
    assert not re.search(r">\s*(?:nan|-0|inf)\s*<", text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_a_browser_shows_it_light_dark_and_on_a_phone(of_a_folder):
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    grounds = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        for scheme, width in (("light", 1200), ("dark", 1200), ("dark", 390)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
            shown, asked = context.new_page(), []
            shown.on("request", lambda one, asked=asked: asked.append(one.url))
            shown.on("pageerror", lambda error, asked=asked: asked.append(str(error)))
            shown.goto(of_a_folder.as_uri())
            shown.evaluate("Promise.all([...document.images].map(one => one.decode()))")
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            fits = "[...document.querySelectorAll('.wide, nav')].every(one => one.scrollWidth <= one.clientWidth)"
            assert width == 390 or shown.evaluate(fits)
            grounds[scheme] = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert [one for one in asked if not one.startswith(("file:", "data:"))] == []
            context.close()
        browser.close()
    assert grounds["light"] != grounds["dark"]
