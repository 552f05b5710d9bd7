"""What servers and their surroundings ask for: keys, proxies, router mode, ways of continuing, stop texts."""

import asyncio
import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.events import Characters, Events
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.openai import BEGINNING, OpenAIEndpoint
from disco_core.endpoints.seam import Seam
from disco_core.endpoints.stop import Answer
from tests.helpers.loopback import FACTS, chunk, collect, events, free_port, piece, prefix, reply, serving
from tests.helpers.server_cases import CASES


async def closed(endpoint, asked):
    """Tokens and failure, with the endpoint's connections closed."""
    async with endpoint:
        return await collect(endpoint, asked)


# --- keys, proxies and what else answers at the address


def test_a_key_is_asked_for_by_openai_alone(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for url in (None, "https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
        with pytest.raises(dc.RefusedError, match="openai:m: no key"):
            OpenAIEndpoint("m", base_url=url)
    for url in ("http://localhost:8000/v1", "https://openai.example.com/v1", "https://notopenai.com/v1"):
        OpenAIEndpoint("m", base_url=url)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks://user:secret@127.0.0.1:1080"),
        ("all_proxy", "socks5://127.0.0.1:1080"),
        ("HTTP_PROXY", "ftp://127.0.0.1"),
        ("https_proxy", "http://[::1"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(variable, value, monkeypatch):
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    endpoint = OpenAIEndpoint("m", base_url=f"http://127.0.0.1:{free_port()}/v1", name="there")
    tokens, failure = asyncio.run(collect(endpoint, prefix()))
    assert (tokens, type(failure)) == ([], dc.RefusedError)
    assert str(failure).startswith("there: ")
    assert variable in str(failure)
    assert "proxy" in str(failure)
    assert "secret" not in str(failure)


ROUTER = {"data": [{"id": "m", "object": "model", "in_cache": True, "status": {"value": "loaded", "args": []}}]}


@pytest.mark.parametrize(
    ("models", "props", "kind", "words"),
    [
        (ROUTER, {"role": "router"}, dc.RefusedError, ("router", "--model", "OpenAIEndpoint")),
        (FACTS["/v1/models"], {"role": "router"}, dc.RefusedError, ("router",)),
        ({"data": [{"id": "m", "meta": None}]}, {}, dc.RefusedError, ("not loaded",)),
        ({"data": [{"id": "m", "object": "model"}]}, {}, dc.ProtocolError, ("no llama.cpp", "OpenAIEndpoint")),
        ({"data": []}, {}, dc.ProtocolError, ("llama.cpp",)),
        ({"models": 7}, {}, dc.ProtocolError, ("llama.cpp",)),
    ],
)  # fmt: skip
def test_a_server_that_is_no_llama_cpp_with_a_model_says_what_it_is(models, props, kind, words):
    facts = FACTS | {"/v1/models": models, "/props": props}
    with serving(events(), facts) as url, pytest.raises(dc.EndpointError) as caught:
        LlamaServerEndpoint(url, name="there")
    assert type(caught.value) is kind
    for word in ("there: ", *words):
        assert word in str(caught.value)


def test_a_redirect_keeps_the_request_and_gzip_is_read():
    import gzip

    def answer(handler):
        if handler.path == "/v1/chat/completions":
            handler.send_response(307)
            handler.send_header("Location", "/elsewhere")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        assert handler.asked["model"] == "m"
        sent = b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in (chunk("a"), chunk(reason="stop")))
        reply(handler, gzip.compress(sent), kind="text/event-stream", Content_Encoding="gzip")

    with serving(answer) as url:
        tokens, failure = asyncio.run(closed(OpenAIEndpoint("m", base_url=f"{url}/v1"), prefix()))
    assert ([token.text for token in tokens], failure) == (["a"], None)


def test_temperature_top_p_stop_and_seed_are_sent(monkeypatch):
    asked = []

    def answer(handler):
        asked.append(handler.asked)
        done = (piece("", [], 0, "eos"),) if handler.path == "/completion" else (chunk("a"), chunk(reason="stop"))
        events(*done)(handler)

    async def go(url):
        wanted = {"temperature": 0.5, "top_p": 0.9, "stop": "END"}
        for home in (LlamaServerEndpoint(url, **wanted), OpenAIEndpoint("m", base_url=f"{url}/v1", **wanted)):
            await closed(home, Prefix("hi", (), 8, 7))
        await closed(OpenAIEndpoint("m", base_url=f"{url}/v1", options={"stream_options": None}), prefix())

    with serving(answer, FACTS) as url:
        asyncio.run(go(url))
    native, chat, plain = asked
    assert (native["temperature"], native["top_p"], native["seed"]) == (0.5, 0.9, 7)
    assert (chat["temperature"], chat["top_p"], chat["seed"], chat["stop"]) == (0.5, 0.9, 7, ["END"])
    assert not plain.keys() & {"top_p", "seed", "stop", "stream_options"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop", ""), ("stop", 5), ("stop", ["a", ""]), ("top_p", 0), ("top_p", 1.5), ("temperature", "hot"),
     ("deadline_s", -1), ("options", {"n": 2})],
)  # fmt: skip
def test_a_bad_setting_names_endpoint_and_field(field, value):
    with pytest.raises(dc.InputError, match=f"there: {field} must be"):
        OpenAIEndpoint("m", base_url="http://127.0.0.1:1/v1", name="there", **{field: value})


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("localhost:8000", {"max_tokens": 8, "seed": 7, "stream_options": {"include_usage": True}}),
        ("api.openai.com", {"max_completion_tokens": 8, "seed": 7}),
        ("x.openai.azure.com", {"max_completion_tokens": 8, "seed": 7}),
        ("x.services.ai.azure.com", {"max_completion_tokens": 8, "seed": 7}),
        ("x.cognitiveservices.azure.com", {"max_completion_tokens": 8, "seed": 7}),
        ("api.mistral.ai", {"max_tokens": 8, "random_seed": 7, "seed": None, "stream_options": None}),
        ("generativelanguage.googleapis.com", {"max_tokens": 8, "seed": None}),
        ("notmistral.ai", {"max_tokens": 8, "seed": 7}),
    ],
)
@pytest.mark.parametrize("continuation", ["plain", "completions"])
def test_parameters_have_the_names_that_the_server_at_the_address_knows(host, sent, continuation):
    endpoint = OpenAIEndpoint("m", base_url=f"https://{host}/v1", api_key="k", continuation=continuation)
    request = asyncio.run(endpoint._request(Prefix("hi", (), 8, 7), continuation))
    if continuation == "completions":
        sent = {"max_tokens": 8, "seed": 7}
    assert {name: request.get(name) for name in sent} == sent
    assert "max_tokens" in request or "max_completion_tokens" in request


# --- ways of continuing


def scripted(ways):
    """A server that answers by how it is asked to go on; an unknown way it refuses."""

    def answer(handler):
        asked = handler.asked
        raw = handler.path.endswith("/v1/completions")
        turn = {} if raw else asked["messages"][-1]
        unmarked = "plain" if turn.get("role") == "assistant" else "continue_final_message"
        way = "continue_final_message" if asked.get("continue_final_message") else unmarked
        way = "completions" if raw else "prefix" if turn.get("prefix") else way
        texts = ways.get(way)
        if texts is None:
            reply(handler, {"error": {"message": f"unknown: {way}"}}, 400)
        else:
            sent = [chunk(text, completions=raw) for text in texts]
            events(*sent, chunk(reason="stop", completions=raw), b"[DONE]")(handler)

    return answer


GOES_ON, OVER = (" five", ", six"), ("One", ", two", ", three")


@pytest.mark.parametrize(
    ("ways", "given", "works", "outcome"),
    [
        ({"continue_final_message": GOES_ON}, {}, "continue_final_message", "works"),
        ({"prefix": GOES_ON}, {}, "prefix", "works"),
        ({"plain": GOES_ON}, {}, "plain", "works"),
        ({"plain": GOES_ON}, {"continuation": "plain"}, "plain", "works"),
        ({"continue_final_message": OVER, "prefix": OVER, "plain": GOES_ON}, {}, "plain", "works"),
        ({"plain": ("assistant\n\n", "Five")}, {}, "none", "starts over"),
        ({"continue_final_message": OVER, "prefix": (BEGINNING, *GOES_ON)}, {}, "prefix", "echo"),
        ({"completions": GOES_ON}, {}, "completions", "works"),
        ({"continue_final_message": OVER, "prefix": OVER, "completions": GOES_ON}, {}, "none", "starts over"),
        ({"continue_final_message": OVER, "prefix": OVER, "completions": GOES_ON}, {"template": "<u>{prompt}<a>"},
         "completions", "works"),
        ({"continue_final_message": ("Let us count:", " one, two, 3")}, {}, "none", "anew"),
        ({"continue_final_message": (BEGINNING.lower(), *GOES_ON)}, {}, "none", "starts over"),
        ({"prefix": GOES_ON}, {"continuation": "continue_final_message"}, "none", "unknown"),
        ({"prefix": GOES_ON}, {"continuation": "prefix"}, "prefix", "works"),
        ({}, {}, "none", "unknown"),
    ],
)  # fmt: skip
def test_a_probe_finds_the_way_of_continuing_that_works(ways, given, works, outcome):
    async def go(url):
        async with OpenAIEndpoint("m", base_url=f"{url}/v1", **{"continuation": "probe"} | given) as endpoint:
            before = endpoint.continues
            found = await endpoint.probe()
            return before, found, endpoint.continues, endpoint.continuation, endpoint.probed

    with serving(scripted(ways)) as url:
        before, found, continues, continuation, probed = asyncio.run(go(url))
    assert before == ("continuation" in given)
    assert (found, continuation, continues) == (works, works, works != "none")
    assert any(outcome in words for words in probed.values())


@pytest.mark.parametrize("given_way", ["probe", "plain"])
@pytest.mark.parametrize(
    ("echo", "before", "told", "shown"),
    [
        (False, "One, two.", "One, two. One", "One, two. One"),
        (False, "Is it true that you know?", " Is it true that you care?", " Is it true that you care?"),
        (True, "The", "The sea is salty", " sea is salty"),
        (True, "very very", "very very very very good", " very very good"),
    ],
)
def test_what_a_probe_found_decides_what_is_dropped(given_way, echo, before, told, shown):
    said = {"plain": (BEGINNING, *GOES_ON) if echo else GOES_ON}

    async def go(url):
        async with OpenAIEndpoint("m", base_url=f"{url}/v1", continuation=given_way) as endpoint:
            assert endpoint.echoes is None
            await endpoint.probe()
            said["plain"] = (told,)
            return endpoint.echoes, await collect(endpoint, prefix(generated=[Token(0, before)]))

    with serving(scripted(said)) as url:
        echoes, (tokens, failure) = asyncio.run(go(url))
    assert (echoes, failure) == (echo, None)
    assert "".join(token.text for token in tokens) == shown


def test_an_endpoint_that_is_not_probed_is_no_target():
    async def go(url):
        async with OpenAIEndpoint("m", base_url=f"{url}/v1", continuation="probe") as endpoint:
            return await collect(endpoint, prefix(generated=[Token(0, "x")])), await collect(endpoint, prefix())

    with serving(scripted({"continue_final_message": ("a",)})) as url:
        (_, refused), (tokens, failure) = asyncio.run(go(url))
    assert "cannot continue an open assistant turn" in str(refused)
    assert ([token.text for token in tokens], failure) == (["a"], None)


def test_a_llama_cpp_server_continues_by_ids():
    with serving(events(), FACTS) as url:
        assert asyncio.run(LlamaServerEndpoint(url).probe()) == "ids"


# --- the seam, halves of characters and events, in any pieces


def cut(data, text):
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def seamless(before, pieces, echoes=None):
    seam = Seam("there", before, echoes)
    return "".join([*(part for one in pieces for part in seam.join(one)), *seam.join("", last=True)])


@given(
    st.sampled_from(["The sea is", "The sea is ", " It is salty:\n\n", "Meerwasser"]), st.text(max_size=12), st.data()
)
def test_an_echo_is_dropped_in_any_pieces(before, rest, data):
    assert seamless(before, cut(data, f"{before}{rest}")) == rest


REPETITIONS = ["very very", "very very ", " bla  bla", "bla bla bla", "hahahaha", "--------", "no\nno\nno\n"]


@given(st.sampled_from(REPETITIONS), st.sampled_from(["", " "]), st.text(max_size=12), st.data())
def test_a_repetition_may_go_on(before, space, rest, data):
    text = f"{space}{before}{rest}"
    assert seamless(before, cut(data, text)) == text


@given(st.text(max_size=12), st.text(max_size=12), st.data())
def test_a_server_that_is_known_to_go_on_is_believed(before, rest, data):
    for text in (f"{before}{rest}", f" {before}{rest}"):
        assert seamless(before, cut(data, text), echoes=False) == text


@given(st.sampled_from([*REPETITIONS, "The", "I", "Is it true that you know?"]), st.text(max_size=12), st.data())
def test_an_echo_of_any_length_is_dropped_where_it_is_known(before, rest, data):
    assert seamless(before, cut(data, f"{before}{rest}"), echoes=True) == rest


def test_a_question_like_the_one_before_is_a_new_beginning_only_where_that_is_not_known():
    before, text = "Is it true that you know?", " Is it true that you care?"
    assert seamless(before, [text], echoes=False) == text
    with pytest.raises(dc.ProtocolError, match="anew"):
        seamless(before, [text])


@given(st.text(max_size=20), st.text(alphabet="xyz ", max_size=20), st.data())
def test_what_is_no_echo_is_let_through(before, rest, data):
    if not before.strip() or rest.lstrip()[:1] != before.lstrip()[:1]:
        assert seamless(before, cut(data, rest)) == rest


@given(st.text(alphabet="aé東\U0001f30a", max_size=12), st.data())
def test_characters_in_halves_are_joined(text, data):
    units = text.encode("utf-16-le")
    halves = [units[i : i + 2].decode("utf-16-le", "surrogatepass") for i in range(0, len(units), 2)]
    as_bytes = [text.encode()[i : i + 1].decode(errors="surrogateescape") for i in range(len(text.encode()))]
    for pieces in (cut(data, "".join(halves)), halves, as_bytes):
        joiner = Characters()
        assert "".join(map(joiner.join, pieces)) + joiner.join("", last=True) == text


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "D"], ids=lambda case: case.name)
@pytest.mark.parametrize("step", [1, 2, 7])
def test_frames_do_not_depend_on_where_bytes_are_cut(case, step):
    def read(pieces):
        events = Events()
        return [event for one in (*pieces, b"\n\n") for event in events.feed(one)]

    assert read(case.sent[i : i + step] for i in range(0, len(case.sent), step)) == read([case.sent])


# --- stop texts


async def answered(pieces, stop, before=""):
    """Texts, what was not delivered, and whether the generation was closed early."""
    closed, answer = [], None

    async def tokens():
        try:
            for index, text in enumerate(pieces):
                answer.made += 1
                yield Token(index, text, index)
        except GeneratorExit:
            closed.append(1)
            raise

    answer = Answer(tokens(), Prefix("hi", (Token(0, before),), 99), stop)
    return [token async for token in answer], answer.undelivered, bool(closed)


@pytest.mark.parametrize(
    ("pieces", "stop", "before", "texts", "undelivered"),
    [
        (["a", "END", "b"], ["END"], "", ["a"], 1),
        (["a", "E", "N", "D", "b"], ["END"], "", ["a"], 3),
        (["xE", "ND b"], ["END"], "", ["x"], 1),
        (["aEN", "aE", "ND"], ["END"], "", ["aEN", "a"], 1),
        (["D b"], ["END"], "x EN", [], 1),
        (["E", "ND"], ["END"], "END EN", [], 2),
        (["b"], ["END"], "x END", ["b"], 0),
        (["a", "E", "N"], ["END"], "", ["a", "E", "N"], 0),
        (["a\n", "\nb"], ["x", "\n\n"], "", ["a"], 1),
        (["a", "b", "c"], [], "", ["a", "b", "c"], 0),
        (["", "a", "", "b"], ["b"], "", ["", "a", ""], 1),
    ],
)
def test_a_stop_text_ends_the_answer_before_it(pieces, stop, before, texts, undelivered):
    tokens, left, closed = asyncio.run(answered(pieces, stop, before))
    assert [token.text for token in tokens] == texts
    assert [token.index for token in tokens] == list(range(len(texts)))
    assert left == undelivered
    assert closed == (texts != pieces)


async def ends_of(generation):
    """The texts of an answer, each with whether no further token was being generated when it came."""
    found = []
    with contextlib.suppress(dc.EndpointError):
        async for token in generation:
            found.append((token.text, generation.ended))
    return found, generation.ended


def test_an_answer_has_ended_once_its_stop_text_is_found():
    async def tokens():
        for index, text in enumerate(["a", "E", "b", "cEND", "d"]):
            yield Token(index, text)

    found, ended = asyncio.run(ends_of(Answer(tokens(), prefix(), ["END"])))
    assert (found, ended) == ([("a", False), ("E", False), ("b", False), ("c", True)], True)


@pytest.mark.parametrize(
    ("native", "sent", "ends"),
    [
        (False, [chunk("a"), chunk("b", tokens=["b", ""]), chunk("c", "stop")], [False, False, True]),
        (False, [chunk("a"), chunk("b c", "length", tokens=["b", " c"])], [False, True, True]),
        (False, [chunk("a"), chunk("b", "content_filter")], [False, True]),
        (False, [chunk("a", "stop"), chunk("b", "stop"), chunk("c", "stop")], [True, False, False]),
        (True, [piece("a", [97], 1), piece("", [98], 2), piece("bc", [], 3, "word")], [False, True, True]),
        (True, [piece("a", [97], 1), piece("b", [98], 2)], [False, False]),
    ],
)
def test_an_answer_has_ended_once_the_server_says_how(native, sent, ends):
    async def go(url):
        home = LlamaServerEndpoint(url) if native else OpenAIEndpoint("m", base_url=f"{url}/v1")
        async with home:
            return await ends_of(home.generate(prefix()))

    with serving(events(*sent), FACTS) as url:
        found, ended = asyncio.run(go(url))
    assert [at for _, at in found] == ends
    assert ended == (True in ends)


@given(
    st.text(alphabet="ab", max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=2),
    st.data(),
)
def test_stop_texts_are_found_in_any_pieces(text, stop, data):
    seam = data.draw(st.integers(0, len(text)))
    ends = [at for one in stop for at in range(len(text)) if text.startswith(one, at) and at + len(one) > seam]
    tokens, _, _ = asyncio.run(answered(cut(data, text[seam:]), stop, text[:seam]))
    found = "".join(token.text for token in tokens)
    if not ends:
        assert found == text[seam:]
    else:  # the text that is complete first, as pieces come
        assert text[seam:].startswith(found)
        assert not any(one in text[max(0, seam + 1 - len(one)) : seam + len(found)] for one in stop)


def test_a_stop_text_frees_the_servers_slot():
    from disco_core.endpoints.llama_server import MARK

    marks, polls = [], []

    def slots(_):
        polls.append(1)
        return [{"is_processing": len(polls) < 3, "params": {MARK: marks[-1]}}]

    def answer(handler):
        marks.append(handler.asked[MARK])
        events(piece("a", [97], 1), piece("E", [69], 2), piece("ND", [70], 3), piece("b", [98], 4))(handler)

    async def go(url):
        async with LlamaServerEndpoint(url, stop=["END"]) as endpoint:
            return await collect(endpoint, prefix())

    with serving(answer, FACTS | {"/slots": slots}) as url:
        tokens, failure = asyncio.run(go(url))
    assert ([token.text for token in tokens], failure) == (["a"], None)
    assert len(polls) == 3
