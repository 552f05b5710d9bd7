"""A browser opens JupyterLab, goes from the index to a notebook and runs it to its end."""

import contextlib
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
from tests.helpers.exhibits import verdicts

INDEX = ROOT / "notebooks" / "index.ipynb"
UNUSED = ("gpu", "quic", "background-networking", "component-update", "sync")  # of Chromium


@pytest.fixture
def browser():
    """Headless Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(names)} is on the PATH")
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
def test_the_index_leads_to_dispatch_which_runs_to_its_end_and_shows_its_figures(browser, lab, quick, tmp_path):
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
    shown = pictures(outputs(quick.parent / "notebooks" / "dispatch.ipynb"))
    assert shown > 2
    widths = panel.locator(".jp-OutputArea-output img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(widths) == shown
    assert min(widths) > 300
    page.keyboard.press("Control+s")
    path = folder / "dispatch.ipynb"
    end = time.monotonic() + 30
    while not (saved := outputs(path)) and time.monotonic() < end:
        time.sleep(0.2)
    assert pictures(saved) == shown
    assert not [output for output in saved if output.output_type == "error"]
    made, expected = (sorted(path.name for path in out.glob("dispatch*")) for out in (tmp_path / "figures", quick))
    assert made == expected
    assert verdicts(tmp_path / "figures", "dispatch").keys() == verdicts(quick, "dispatch").keys()
    page.close()


def outputs(path):
    with contextlib.suppress(ValueError):  # just being written
        cells = nbformat.read(path, as_version=4).cells
        return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return []


def pictures(shown):
    return sum("image/png" in output.get("data", {}) for output in shown)
