"""The notebooks by hand: an index that leads to all of them, and a browser that opens JupyterLab and runs one."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from artifact.files import ROOT
from artifact.publish import claims_table, parameters, run

INDEX = ROOT / "notebooks" / "index.ipynb"
STEMS = sorted({path.stem for path in INDEX.parent.glob("*.ipynb")} - {"index"})
UNUSED = ("gpu", "quic", "background-networking", "component-update", "sync")  # of Chromium


def row(stem):
    """The index's line of a notebook: its name, what it asks, and the exhibits of it that are committed."""
    title = nbformat.read(INDEX.with_name(f"{stem}.ipynb"), as_version=4).cells[0].source.splitlines()[0]
    asks = title.partition(": ")[2]
    found = [path for path in sorted((ROOT / "figures").glob("*.json")) if not path.name.endswith(".claims.json")]
    exhibits = [one.stem for one in found if json.loads(one.read_text())["notebook"] == f"notebooks/{stem}.ipynb"]
    links = ", ".join(f"[{one.removeprefix(f'{stem}_')}](../figures/{one}.svg)" for one in exhibits)
    return f"| [{stem}]({stem}.ipynb) | {asks[:1].upper()}{asks[1:]} | {links or 'none'} |"


def test_the_index_has_a_line_for_every_notebook_and_no_other():
    cells = nbformat.read(INDEX, as_version=4).cells
    lines = [
        line
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if ".ipynb)" in line
    ]
    assert sorted(lines) == [row(stem) for stem in STEMS], "right are the lines that the index should have"


@pytest.mark.slow
def test_the_index_shows_the_verdict_of_every_claim(tmp_path):
    done = nbformat.read(run.run("index", tmp_path), as_version=4)
    printed = "".join(one.text for cell in done.cells if cell.cell_type == "code" for one in cell.outputs)
    assert claims_table.count(claims_table.lines()) in printed


COMMON = {  # parameters that several notebooks have, with what stands in them by hand
    "quick": "True",
    "source": '"tables"',
    "measurements": '"data/measured"',
    "read": '"figures"',
}


@pytest.mark.parametrize("stem", [*STEMS, "index"])
def test_by_hand_a_notebook_leaves_the_committed_exhibits_alone(stem):
    found = {name: one.default for name, one in parameters.parameters(stem).items()}
    assert {name: value for name, value in found.items() if name in COMMON} == {
        name: value for name, value in COMMON.items() if name in found
    }
    if "out" in found and not stem.startswith("measure_"):
        assert found["out"] == ('"build/quick/figures"' if "quick" in found else '"build/by-hand"')


@pytest.fixture
def browser():
    """Headless Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is on the PATH")
    args = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in UNUSED)]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=args)
        try:
            yield chromium
        finally:
            chromium.close()


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the notebooks, with settings of its own: its folder and the address of a notebook."""
    folder, token = tmp_path / "notebooks", os.urandom(16).hex()
    folder.mkdir()
    for path in INDEX.parent.glob("*.ipynb"):
        text = path.read_text().replace('out = \\"build/quick/figures\\"', f'out = \\"{tmp_path}/figures\\"')
        (folder / path.name).write_text(text)
    quiet = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}')
    kinds = {"config": "JUPYTER_CONFIG_DIR", "data": "JUPYTER_DATA_DIR", "runtime": "JUPYTER_RUNTIME_DIR"}
    kinds |= {"settings": "JUPYTERLAB_SETTINGS_DIR", "workspaces": "JUPYTERLAB_WORKSPACES_DIR"}
    kinds |= {"ipython": "IPYTHONDIR"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "MPL"))}
    environment |= {name: str(tmp_path / kind) for kind, name in kinds.items()}
    environment |= {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT / "notebooks")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "root_dir": folder, "open_browser": False}
    options |= {"allow_root": True, "terminals_enabled": False}
    command = [sys.executable, "-m", "jupyterlab"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            url = f"http://127.0.0.1:{port}"
            answers(f"{url}/api?token={token}", server, tmp_path / "log")
            yield folder, f"{url}/lab/tree/{{}}?token={token}"
        finally:
            server.terminate()  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
            server.wait()
    assert running(tmp_path) == []


def answers(url, server, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")


def running(folder):
    """Command lines of the processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


PANEL = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)')"
PROMPTS = f"[...{PANEL}.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(one => one.textContent)"
BEGUN = f"{PROMPTS}.some(text => /[*\\d]/.test(text))"
ENDED = f"""() => {{
    const prompts = {PROMPTS};
    const failed = {PANEL}.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
    return failed || (prompts.length > 5 && prompts.every(text => /^\\[\\d+\\]:?$/.test(text)));
}}"""


def run_all_cells(page, lost):
    """As a reader would: a click that a page still busy has lost is made again."""
    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(lost):
            page.wait_for_function(BEGUN, timeout=20_000)
            return
    pytest.fail("no cell has begun")


@pytest.mark.slow
def test_the_index_leads_to_dispatch_which_runs_to_its_end_and_shows_its_figure(browser, lab, tmp_path):
    playwright, (folder, address) = pytest.importorskip("playwright.sync_api"), lab
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(address.format("index.ipynb"))
    page.get_by_role("link", name="dispatch", exact=True).click()
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").filter(has_text="Dispatch: what does a budget buy?")
    panel.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    run_all_cells(page, playwright.TimeoutError)
    try:
        page.wait_for_function(ENDED, timeout=300_000)
    except playwright.TimeoutError:
        pytest.fail(f"not ended within 300 s: {page.evaluate(PROMPTS)}")
    failed = panel.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert failed.all_inner_texts() == []
    widths = panel.locator(".jp-OutputArea-output img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(widths) == 3  # a scarce device, a scarce server, this machine
    assert min(widths) > 300
    page.keyboard.press("Control+s")
    path = folder / "dispatch.ipynb"
    end = time.monotonic() + 30
    while not (saved := outputs(path)) and time.monotonic() < end:
        time.sleep(0.2)
    assert sum("image/png" in output.get("data", {}) for output in saved) == 3
    assert not [output for output in saved if output.output_type == "error"]
    assert (tmp_path / "figures" / "dispatch_device_constrained.png").stat().st_size > 10_000
    verdicts = json.loads((tmp_path / "figures" / "dispatch.claims.json").read_text())
    assert {one["id"] for one in verdicts} == {"D1", "D2", "D4", "D8"}
    page.close()


def outputs(path):
    with contextlib.suppress(ValueError):  # just being written
        cells = nbformat.read(path, as_version=4).cells
        return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return []
