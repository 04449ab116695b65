"""Small requests that ask for a lot of work: each is refused with its limit, and others are served meanwhile.

One server process, some 10 s of CPU.
"""

import json
import threading
import time

import pytest

from miniserve.core.sampling_params import MAX_LOGIT_BIAS, MAX_N, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from miniserve.server.protocol import MAX_PROMPTS

ANSWER_S, PAUSE_S = 20.0, 5.0  # on a machine that does much else; alone it is a tenth of that
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def nested(levels):
    schema = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def text(**fields):
    return COMPLETIONS, json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2} | fields)


def chat(**fields):
    return CHAT, json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2} | fields)


def schema(given):
    return text(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": given}})


def refs(levels):
    """2^levels ways, by references."""
    both = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(levels)}
    return {"$defs": both | {f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BOMBS = {
    "n": (text(n=10**9), str(MAX_N)),
    "many prompts": (text(prompt=["a"] * 300_000), str(MAX_PROMPTS)),
    "many prompts and n": (text(prompt=["a"] * 2000, n=128), "at most 320"),
    "prompts of every type": (text(prompt=["a", 1, None] * 300_000), "prompt"),
    "no prompts": (text(prompt=[None] * 1_000_000), "prompt"),
    "a long text": (text(prompt="a" * 12_000_000), "max_model_len is 16384"),
    "many ids": (text(prompt=[5] * 2_000_000), "max_model_len is 16384"),
    "a long chat": (chat(messages=[{"role": "user", "content": "a" * 6_000_000}] * 2), "max_model_len is 16384"),
    "many wrong messages": (chat(messages=[{"role": "x"}] * 300_000), "messages.0"),
    "stops": (text(stop=[f"a{at}" for at in range(100_000)]), str(MAX_STOP_STRINGS)),
    "stop ids": (text(stop_token_ids=[5] * 1_000_000), str(MAX_STOP_TOKEN_IDS)),
    "biases": (text(logit_bias={str(at): 1 for at in range(100_000)}), str(MAX_LOGIT_BIAS)),
    "wrong biases": (text(logit_bias={f"x{at}": "y" for at in range(300_000)}), str(MAX_LOGIT_BIAS)),
    "unknown fields": (text(**{f"k{at}": 1 for at in range(200_000)}), "k0 is not a parameter"),
    "tools": (chat(tools=[TOOL | {"function": {"name": f"f{at}"}} for at in range(10_000)]), "0 to 128"),
    "a deep body": ((COMPLETIONS, '{"prompt":' * 50_000), "body"),
    "a deep schema": (schema(nested(100)), "recursion limit"),
    "a deeper schema": (schema(nested(320)), "nested too deeply"),
    "a deep tool": (chat(tools=[{"type": "function", "function": {"name": "f", "parameters": nested(300)}}]), "recursion limit"),
    "a reference to itself": (schema({"$ref": "#"}), "endless"),
    "an endless value": (schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "endless"),
    "a large enum": (schema({"enum": [f"value {at}" for at in range(10_000)]}), "of at most 65536"),
    "a wide schema": (schema({"type": "object", "properties": {f"p{at}": {"format": "email"} for at in range(1500)}}), "grammar"),
    "ways upon ways": (
        schema({"allOf": [{"anyOf": [{"type": "object", "required": [f"a{i}{j}"]} for j in range(9)]} for i in range(9)]}),
        "schema too large",
    ),
    "a fine multiple": (schema({"multipleOf": 1e-300}), "multipleOf"),
    "many digits": ((COMPLETIONS, '{"model":"tiny","prompt":"a","seed":%s}' % ("9" * 3_000_000)), ""),
    "tokenize": (("/tokenize", json.dumps({"prompt": "a " * 6_000_000})), "max_model_len is 16384"),
    "detokenize": (("/detokenize", json.dumps({"tokens": [5] * 2_000_000})), "max_model_len is 16384"),
}  # fmt: skip
# What is large when it is written out, and small as llguidance has it.
HARMLESS = [
    schema(refs(30)),
    schema({"type": "string", "pattern": "^(a{1000}){1000}$"}),
    schema({"type": "string", "pattern": "^(a|b)*a(a|b){500}c$"}),
    schema({"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}}),
]


@pytest.fixture(scope="module")
def server(start):
    with start() as server:
        yield server
        assert server.metric("engine_restarts_total") == 0


@pytest.fixture(scope="module")
def pauses(server):
    """The longest that somebody else has had to wait for an answer since it was asked last."""
    longest, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            began = time.monotonic()
            assert server.openai().with_options(timeout=120).models.list().data
            longest[0] = max(longest[0], time.monotonic() - began)

    def ask():
        time.sleep(0.05)
        found, longest[0] = longest[0], 0.0
        return found

    thread = threading.Thread(target=watch)
    thread.start()
    yield ask
    done.set()
    thread.join()


def send(server, bomb):
    path, body = bomb
    return server.http.post(path, content=body, headers={"content-type": "application/json"}, timeout=ANSWER_S)


@pytest.mark.parametrize("name", BOMBS)
def test_it_is_refused_and_others_are_served(server, pauses, name):
    bomb, says = BOMBS[name]
    pauses()
    reply = send(server, bomb)
    assert reply.status_code == 400, reply.text[:500]
    assert says in reply.json()["error"]["message"]
    assert pauses() < PAUSE_S


@pytest.mark.parametrize("bomb", HARMLESS)
def test_it_is_served_and_so_are_others(server, pauses, bomb):
    pauses()
    assert send(server, bomb).status_code == 200
    assert pauses() < PAUSE_S
