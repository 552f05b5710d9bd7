"""The page of a pair: one self-contained file with the result, the exhibits of `your_pair`, the plan and limits."""

import json
from pathlib import Path

from artifact.files import BUILD, ROOT, relative_path, write_atomic
from artifact.pair import sentences
from artifact.pair.study import Study
from artifact.pair.tables import over_time
from artifact.publish.gallery import exhibits
from artifact.publish.report import STYLE, for_page

TEMPLATE = Path(__file__).with_name("pair.html.jinja")
PAGE = BUILD / "pair.html"
SNIPPET = """\
from pathlib import Path

import numpy as np

import disco_core as dc

plan = dc.DispatchPlan.from_json(Path("{plan}").read_text())
server_s, device_s = plan.draw(np.array([120]), np.random.default_rng())[:, 0]  # for a prompt of 120 tokens
print(f"start the server after {{server_s:.2f}} s, the device after {{device_s:.2f}} s (inf: never)")
"""
STREAM = """\
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint


async def answer(messages):
    server = OpenAIEndpoint({model}, base_url={server})
    with LlamaCppEndpoint({device}) as device:
        both = {{"server": server, "device": device}}
        async with dc.stream(messages, plan=plan, **both, max_tokens=256, rng=np.random.default_rng()) as run:
            async for token in run:
                print(token.text, end="", flush=True)
"""


def write(study: Study, folder: str | Path, out: str | Path = PAGE) -> Path:
    """Write the page `out` of a study, with its exhibits in `folder`; beside it, in its name, plan.json.

    Paths are relative to the project's root; returns that of the page. ArtifactError if a file cannot be written.
    """
    from jinja2 import Environment

    out = ROOT / out
    plan = write_atomic(out.with_suffix("") / "plan.json", study.recommendation.plan.to_json() + "\n")
    stems = ("your_pair_ttft", "your_pair_policies", "your_pair_latency", "your_pair_time", "your_pair_costs")
    every = {one["stem"]: one for one in exhibits(folder) if one["stem"].startswith("your_pair")}
    order = [stem for stem in (*stems, *every) if stem in every]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        style=STYLE.read_text(encoding="utf-8"),
        study=study,
        pair=study.pair,
        found=study.recommendation,
        flips=sentences.flips(study),
        without_server=sentences.without_server(study),
        price_change=sentences.price_change(study),
        on_length=sentences.on_length(study),
        line=sentences.line(study),
        exhibits=[for_page(every[stem], ROOT / folder) for stem in dict.fromkeys(order)],
        limits=limits(study),
        snippet=SNIPPET.format(plan=relative_path(plan)),
        stream=STREAM.format(**_names(study)),
        plan=relative_path(plan),
    )
    return write_atomic(out, page)


def limits(study: Study) -> list[str]:
    """What limits the result, a sentence each."""
    found = study.pair
    general = [
        "The device's time is taken as exact, as in the paper; a real one scatters around its line.",
        "Requests to come are taken to be like those of the record: at other hours or loads TTFT is another.",
    ]
    if found.requests.failed:
        general.insert(0, f"Failed requests of the record, which are in no figure: {found.requests.failed}.")
    medians = over_time(study)["P50 (s)"]
    if len(medians) > 1 and medians.max() > 2 * medians.min():
        times = medians.max() / medians.min()
        general.insert(0, f"The server's median TTFT changed {times:.2g}-fold within the record; record for longer.")
    return [*found.notes, *found.requests.notes, *general]


def _names(study: Study) -> dict[str, str]:
    """What the snippet names, as Python's text: those of the pair where a program could use them."""
    about = study.pair.about
    found = {
        "model": about.get("model") or "my-model",
        "server": about.get("server", ""),
        "device": about.get("device file", ""),
    }
    if not found["server"].startswith(("http://", "https://")):  # a record's file, or an example
        found["server"] = "http://127.0.0.1:8000/v1"
    if not found["device"].endswith(".gguf"):
        found["device"] = "path/to/model.gguf"
    return {name: json.dumps(text, ensure_ascii=False) for name, text in found.items()}
