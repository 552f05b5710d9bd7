"""What a stream under faults promises, checked from logs that are not its own.

The logs are those of the proxy (requests as they were sent, events as the server sent them, with the server's own
counts) and of the model in this process (ids that it was given and that it sampled). Both give `Generated`: what one
endpoint generated from one prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

from artifact.data import model
from artifact.measure.proxy import Exchange
from disco_core.cost import End
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.events import BROKEN
from disco_core.errors import StreamError
from disco_core.record import Record, StreamedToken


@dataclass
class Generated:
    """What an endpoint generated after a prefix: the tokens that end a turn are not part of it.

    ids    by position; a server does not send the ids of tokens that it holds back
    texts  (tokens so far, text that came with the last of them)
    ended  whether the model ended its turn
    """

    end: End
    prefix: list[int]
    ids: dict[int, int]
    texts: list[tuple[int, str]]
    tokens: int
    ended: bool


@dataclass
class Job:
    """A call of the model in this process: the ids it was given, and those it sampled."""

    prefix: list[int]
    sampled: list[int] = field(default_factory=list)


@dataclass
class Evidence:
    """All that is known of a stream after it has ended.

    received   tokens that the reader got
    raised     what the iteration raised
    left       whether the reader left early
    prefixes   what each endpoint was asked to continue, by endpoint
    confirmed  tokens that the device processed
    estimated  whether a count of the server had to be estimated, since it did not answer
    prefills   whether the rule lets a generation stop after its prefill, which charges no token
    running    what was still running
    """

    record: Record
    prompt: list[int]
    max_tokens: int
    received: list[Token]
    raised: BaseException | None
    left: bool
    prefixes: dict[End, list[Prefix]]
    exchanges: list[Exchange]
    jobs: list[Job]
    confirmed: int
    estimated: bool
    prefills: bool
    running: list[str]


def generated(evidence: Evidence) -> list[Generated]:
    """What both endpoints generated, by the logs."""
    return [*map(_sent, evidence.exchanges), *map(_sampled, evidence.jobs)]


def broken(evidence: Evidence) -> list[str]:
    """The promises that were broken, each as its kind and what is wrong; [] if all were kept."""
    made = generated(evidence)
    found = [f"text: {what}" for what in _text(evidence, made)]
    found += [f"request: {what}" for what in _requests(evidence, made)]
    found += [f"charge: {what}" for what in _charges(evidence, made)]
    found += [f"complete: {what}" for what in _end(evidence, made)]
    return [*found, *(f"running: {what}" for what in evidence.running)]


def bounds(evidence: Evidence, made: Sequence[Generated], end: End) -> tuple[int, int]:
    """Fewest and most generated tokens of an endpoint.

    The device loses nothing on the way. Of the server's tokens, those in the answer have come, and no more can have
    than it counts, with those that end a turn; those between may have been on their way when it was cancelled.
    """
    if end is End.DEVICE:
        total = sum(one.tokens for one in made if one.end is end)
        return max(0, total - evidence.prefills), total
    come = sum(token.source is end for token in evidence.record.tokens)
    return come, sum(exchange.predicted for exchange in evidence.exchanges)


def prefilled(evidence: Evidence, end: End) -> int:
    """Tokens of all prefixes that an endpoint was asked to continue."""
    return sum(len(evidence.prompt) + len(prefix.generated) for prefix in evidence.prefixes[end])


def _sent(exchange: Exchange) -> Generated:
    """What is generated, of the server's events."""
    ids, texts, final = dict[int, int](), list[tuple[int, str]](), exchange.final
    ended = final is not None and final.get("stop_type") == "eos"
    tokens = exchange.predicted - ended
    for event in exchange.events:
        if "tokens_predicted" in event:
            at, sent = int(event["tokens_predicted"]), event.get("tokens") or []
            ids |= {at - len(sent) + k: id for k, id in enumerate(sent)}
            texts.append((min(at, tokens), event.get("content", "")))
    ids = {at: id for at, id in ids.items() if at < tokens}
    return Generated(End.SERVER, exchange.body["prompt"], ids, texts, tokens, ended)


def _sampled(job: Job) -> Generated:
    """What is generated, of the sampled ids of the model in this process."""
    from llama_cpp import llama_vocab_is_eog

    vocabulary = model.tokenizer()._model.vocab
    ended = bool(job.sampled) and bool(llama_vocab_is_eog(vocabulary, job.sampled[-1]))
    ids = job.sampled[: len(job.sampled) - ended]
    return Generated(End.DEVICE, job.prefix, dict(enumerate(ids)), [], len(ids), ended)


def _parts(record: Record) -> Iterator[tuple[End, int, int]]:
    """The answer cut at its hand-over points: endpoint, first token, end."""
    n = len(record.tokens)
    cuts = sorted({0, n, *(one.at for one in record.handovers)})
    for a, b in pairwise(cuts):
        yield record.tokens[a].source, a, b


def _matches(piece: Generated, record: Record, a: int, b: int) -> bool:
    """Whether tokens a to b of the answer are the first that the piece has, by id and by text."""
    if b - a > piece.tokens or any(
        piece.ids.get(i, record.tokens[a + i].id) != record.tokens[a + i].id for i in range(b - a)
    ):
        return False
    text = "".join(token.text for token in record.tokens[a:b])
    sent = "".join(text for at, text in piece.texts if at <= b - a)
    # a character that two endpoints share is in neither log as a whole; its ids were compared
    return piece.end is End.DEVICE or text == sent or bool(a and not record.tokens[a - 1].text)


def _text(evidence: Evidence, made: Sequence[Generated]) -> Iterator[str]:
    record = evidence.record
    tokens, received = record.tokens, evidence.received
    if [token.index for token in tokens] != list(range(len(tokens))):
        yield "tokens are not numbered one after the other"
    if [(one.index, one.text) for one in received] != [(one.index, one.text) for one in tokens[: len(received)]]:
        yield "the reader got other tokens than the record has"
    if evidence.raised is None and not evidence.left and len(received) != len(tokens):
        yield f"the reader got {len(received)} of {len(tokens)} tokens"
    for end, a, b in _parts(record):
        if any(token.source is not end for token in tokens[a:b]):
            yield f"tokens {a} to {b} are of both endpoints, without a hand-over"
        elif not any(p.end is end and _start(evidence, p) == a and _matches(p, record, a, b) for p in made):
            yield f"tokens {a} to {b} are not what the {end.name.lower()} generated"
    ids = [token.id for token in tokens if token.id is not None]
    if len(ids) == len(tokens) and not same_text(tokens):
        yield "the text is not that of its ids"


def same_text(tokens: Sequence[StreamedToken]) -> bool:
    """Whether the text of tokens is that of their ids.

    The last character may be unfinished: the device shows what is before it, the server nothing of its tokens.
    """
    held = list(takewhile(lambda token: not token.text, reversed(tokens)))[::-1]
    whole, last, first = (
        model.tokenizer().detokenize([token.id for token in some]).decode(errors="replace")
        for some in (tokens, held, held[:1])
    )
    text = "".join(token.text for token in tokens)
    rest = whole.removeprefix(text)
    return whole.startswith(text) and (rest in ("", BROKEN) or (rest == last and first.endswith(BROKEN)))


def _start(evidence: Evidence, piece: Generated) -> int:
    return len(piece.prefix) - len(evidence.prompt)


def _requests(evidence: Evidence, made: Sequence[Generated]) -> Iterator[str]:
    """Each endpoint continues exactly the prompt and the tokens so far, and as many as are missing."""
    ids = [token.id for token in evidence.record.tokens]
    for piece in made:
        a, name = _start(evidence, piece), piece.end.name.lower()
        if piece.prefix != evidence.prompt + ids[:a] and None not in ids[:a]:
            yield f"the {name} continued something else after {a} tokens"
        if a not in [len(prefix.generated) for prefix in evidence.prefixes[piece.end]]:
            yield f"the {name} continued after {a} tokens, which nobody asked for"
        if a + piece.tokens > evidence.max_tokens:
            yield f"the {name} generated {a + piece.tokens} tokens"
    for exchange in evidence.exchanges:
        asked = exchange.body["n_predict"] + len(exchange.body["prompt"]) - len(evidence.prompt)
        if asked != evidence.max_tokens:
            yield f"the server was asked for {asked} tokens"


def _charges(evidence: Evidence, made: Sequence[Generated]) -> Iterator[str]:
    record = evidence.record
    for end in End:
        name = end.name.lower()
        prefill = prefilled(evidence, end)
        if record.prefill[end] != prefill and not (end is End.SERVER and evidence.estimated):
            yield f"{record.prefill[end]} prefill tokens of the {name}, which were {prefill}"
        fewest, most = bounds(evidence, made, end)
        if not fewest <= record.decode[end] <= most:
            yield f"{record.decode[end]} decode tokens of the {name}, which were {fewest} to {most}"
    for exchange in evidence.exchanges:
        if exchange.final and exchange.final["tokens_evaluated"] != len(exchange.body["prompt"]):
            yield f"the server counts {exchange.final['tokens_evaluated']} of {len(exchange.body['prompt'])} tokens"
    jobs = [piece for piece in made if piece.end is End.DEVICE]
    most = sum(len(piece.prefix) + piece.tokens for piece in jobs)
    fewest = sum(len(piece.prefix) + piece.tokens - 1 for piece in jobs if piece.tokens)
    if not fewest <= evidence.confirmed <= most:
        yield f"the device processed {evidence.confirmed} tokens, which should be {fewest} to {most}"


def _end(evidence: Evidence, made: Sequence[Generated]) -> Iterator[str]:
    """A cut answer is not complete; an answer that nobody left or cut is; an error means that neither could go on."""
    record, raised, n = evidence.record, evidence.raised, len(evidence.record.tokens)
    last = record.handovers[-1].at if record.handovers else 0
    ended = any(p.ended and _start(evidence, p) == last and p.tokens == n - last for p in made)
    if record.complete and not (ended or n == evidence.max_tokens):
        yield f"called complete after {n} of {evidence.max_tokens} tokens, where no endpoint had ended"
    if raised is not None and not isinstance(raised, StreamError):
        yield f"it raised {raised!r}"
    if raised is None and not evidence.left and not record.complete:
        yield "it ended without an error, but is not complete"
    if isinstance(raised, StreamError):
        if record.complete or record.error is None:
            yield "it raised a StreamError, but the record has none"
        names = {failure.endpoint for failure in record.failures}
        if not {"server", "device"} <= names and not record.refusals:
            yield f"it gave up, but only {', '.join(names) or 'no endpoint'} had failed"
