"""The API as the official client sees it: what it gives back, streaming and not, and what it refuses."""

import json
import shutil

import openai
import pytest

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import ChatTemplateError
from miniserve.model.tokenizer.tokenizer import Tokenizer

PROMPT = "hello world"


@pytest.fixture(scope="module")
def server(start):
    with start("--max-body-mib", "1", "--max-model-len", "512", "--kv-host-mib", "8") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


@pytest.fixture(scope="module")
def llm(tiny_chat_model):
    from miniserve.llm import LLM

    with LLM(tiny_chat_model, dtype="float32", device="cpu", backend="torch") as llm:
        yield llm


def complete(client, **options):
    return client.completions.create(
        **{"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 12} | options
    )


def chat(client, **options):
    messages = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "temperature": 0, "max_completion_tokens": 12} | options
    )


def test_text_is_the_engine_s_own_streamed_or_not(client, llm):
    for params in ({}, {"temperature": 1, "seed": 5}, {"temperature": 1, "seed": 6, "frequency_penalty": 2}):
        (expected,) = llm.generate(PROMPT, SamplingParams(max_tokens=12, **params))
        whole = complete(client, **params)
        assert whole.choices[0].text == expected.text
        assert whole.choices[0].finish_reason == expected.finish_reason
        assert whole.usage.completion_tokens == len(expected.token_ids)
        assert whole.usage.prompt_tokens == len(PROMPT)
        chunks = list(complete(client, stream=True, **params))
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_chat_streamed_or_not(client, llm):
    (expected,) = llm.chat([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=12))
    whole = chat(client)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].message.role == "assistant"
    assert whole.id.startswith("chatcmpl-")
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    counts = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(chat(client, stream=True, stream_options=counts))
    said = [chunk.usage.completion_tokens for chunk in chunks]
    assert said == sorted(said)
    assert said[0] < said[-1] == whole.usage.completion_tokens
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {whole.usage.prompt_tokens}
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert chat(client, messages=parts).choices[0].message.content == expected.text


def test_several_prompts_and_several_outputs(client, llm):
    prompts = ["hello", "hi there"]
    params = {"n": 2, "temperature": 1.0, "seed": 3}
    expected = [
        choice.text
        for output in llm.generate(prompts, SamplingParams(max_tokens=8, **params))
        for choice in output.outputs
    ]
    whole = complete(client, prompt=prompts, max_tokens=8, **params)
    assert [choice.text for choice in whole.choices] == expected
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage.prompt_tokens == len("".join(prompts))
    texts = ["", "", "", ""]
    for chunk in complete(client, prompt=prompts, max_tokens=8, stream=True, **params):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    assert [choice.text for choice in complete(client, prompt=ids, max_tokens=8, **params).choices] == expected


def test_logprobs_of_both_kinds(client, llm):
    (expected,) = llm.generate(PROMPT, SamplingParams(max_tokens=6, logprobs=3))
    entries = expected.outputs[0].logprobs
    text = complete(client, max_tokens=6, logprobs=3).choices[0].logprobs
    assert text.token_logprobs == pytest.approx([entry.logprob for entry in entries], abs=1e-5)
    assert [len(each) for each in text.top_logprobs] == [3] * 6
    (talk,) = llm.chat([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=6, logprobs=2))
    whole = chat(client, max_completion_tokens=6, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in chat(client, max_completion_tokens=6, logprobs=True, top_logprobs=2, stream=True)
        for entry in chunk.choices[0].logprobs.content
    ]
    for got in (whole, streamed):
        assert [entry.logprob for entry in got] == pytest.approx(
            [e.logprob for e in talk.outputs[0].logprobs], abs=1e-5
        )
        assert [bytes(entry.bytes) for entry in got] == [llm.tokenizer.token_bytes(token) for token in talk.token_ids]
        assert [len(entry.top_logprobs) for entry in got] == [2] * 6


def test_echo_with_the_prompt_s_logprobs(client, llm):
    (expected,) = llm.generate(PROMPT, SamplingParams(max_tokens=4, logprobs=1, prompt_logprobs=1))
    choice = complete(client, max_tokens=4, echo=True, logprobs=1).choices[0]
    assert choice.text == PROMPT + expected.text
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(
        [entry.logprob for entry in [*expected.prompt_logprobs[1:], *expected.outputs[0].logprobs]], abs=1e-5
    )
    assert choice.logprobs.text_offset[: len(PROMPT) + 1] == list(range(len(PROMPT) + 1))
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)


@pytest.mark.parametrize("most", [0, 1])
def test_a_prompt_is_scored_as_evaluation_harnesses_ask_for_it(client, llm, most):
    """Log-probabilities of a continuation, of several prompts at once, and whether it is the likeliest one."""
    prompts = [llm.tokenizer.encode(text) for text in ("hello world", "hi there")]
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    whole = complete(client, prompt=prompts, max_tokens=most, logprobs=1, echo=True, seed=1234)
    for choice, expected in zip(whole.choices, llm.generate(prompts, params), strict=True):
        found, entries = choice.logprobs, expected.prompt_logprobs
        length = len(expected.prompt_token_ids)
        assert len(found.tokens) == length + most
        assert found.token_logprobs[1:length] == pytest.approx([entry.logprob for entry in entries[1:]], abs=1e-5)
        likeliest = [
            max(top, key=top.get) == token
            for token, top in zip(found.tokens[1:length], found.top_logprobs[1:], strict=False)
        ]
        assert likeliest == [entry.rank == 1 for entry in entries[1:]]
        assert choice.finish_reason == "length" or most
    assert whole.usage.completion_tokens == most * 2
    if most == 0:
        assert [choice.text for choice in whole.choices] == ["hello world", "hi there"]
        (chunk,) = complete(client, prompt=prompts[0], max_tokens=0, logprobs=1, echo=True, stream=True)
        assert (chunk.choices[0].text, chunk.choices[0].finish_reason) == ("hello world", "length")


def test_stop_strings_and_biases(client, llm):
    drawn = {"temperature": 1, "seed": 4, "max_tokens": 60}
    text = complete(client, **drawn).choices[0].text
    stop = text[len(text) // 2 :][:2]
    for stream in (False, True):
        reply = complete(client, stop=[stop], stream=stream, **drawn)
        chunks = list(reply) if stream else [reply]
        assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"
    forced = llm.tokenizer.encode("z")[0]
    assert complete(client, logit_bias={str(forced): 100}, max_tokens=3).choices[0].text == "zzz"
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "min_tokens": 2, "include_stop_str_in_output": True}
    assert complete(client, temperature=1, extra_body=extra).choices[0].text == complete(client).choices[0].text


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"temperature": -1}, "temperature", "between 0 and 100"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 1000}, "n", "1 and 128"),
        ({"n": 100, "prompt": ["a"] * 4}, "n", "400 outputs: at most 320"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -1, "echo": True}, "max_tokens", "at least 1"),
        ({"max_tokens": 5000}, "max_tokens", "max_model_len is 512"),
        ({"prompt": "x" * 600}, "prompt", "600 tokens"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "at least one"),
        ({"prompt": [5, 1000]}, "prompt", "outside the vocabulary"),
        ({"presence_penalty": 3}, "presence_penalty", "-2 and 2"),
        ({"seed": -1}, "seed", "seed is -1"),
        ({"stop": [""]}, "stop", "at least one character"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "999"),
        ({"logprobs": 50}, "logprobs", "between 0 and 20"),
        ({"suffix": "x"}, "suffix", "suffix is not supported"),
        ({"best_of": 2}, "best_of", "best_of is not supported"),
        ({"extra_body": {"colour": "red"}}, "colour", "not a parameter"),
        ({"extra_body": {"top_k": "3"}}, "top_k", "integer"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is false"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options", "needs include_usage"),
    ],
)  # fmt: skip
def test_completions_refuse_by_name(client, options, param, says):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **options)
    assert caught.value.param == param
    assert says in caught.value.message
    assert caught.value.type == "invalid_request_error"


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


def test_json_of_a_schema_streamed_or_not(client):
    options = {"temperature": 1, "seed": 3, "max_completion_tokens": 200}
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
    }
    schema["additionalProperties"] = False
    reply = chat(client, response_format=schema_format(schema), **options).choices[0]
    streamed = chat(client, response_format=schema_format(schema), stream=True, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert (text, reply.finish_reason) == (reply.message.content, "stop")
    found = json.loads(text)
    assert found.keys() == {"n", "ok"}
    assert found["n"] in (1, 2)
    assert isinstance(found["ok"], bool)


def test_a_json_object_that_is_cut_is_the_beginning_of_one(client):
    reply = chat(
        client, response_format={"type": "json_object"}, max_completion_tokens=5, temperature=1, seed=1
    ).choices[0]
    assert reply.message.content.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages", "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages", "text"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "max_model_len is 512"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "reasoning_effort is not supported"),
        ({"response_format": {"type": "yaml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs a json_schema"),
        ({"response_format": schema_format({"typ": "integer"})}, "response_format", "keyword 'typ'"),
        ({"response_format": schema_format({"not": {"type": "integer"}})}, "response_format", "grammar cannot be used"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 3}, "max_tokens", "differ"),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "chat_template_kwargs", "messages"),
    ],
)  # fmt: skip
def test_chat_refuses_by_name(client, options, param, says):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **options)
    assert caught.value.param == param
    assert says in caught.value.message


def test_bodies_that_are_none(server):
    json_type = {"content-type": "application/json"}
    for body, headers in (('{"model": ', json_type), ("[]", json_type), ("", json_type), ("{}", {})):
        reply = server.http.post("/v1/completions", content=body, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")
    for body, says in (
        (b'{"model": ', "Expecting value, at character 10"),
        (b'{"model": "\xff"}', "can't decode byte 0xff in position 11"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        reply = server.http.post("/v1/completions", content=body, headers=json_type)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")
        assert says in reply.json()["error"]["message"]
    large = {"model": "tiny", "prompt": "x" * 2**20}
    assert server.http.post("/v1/completions", json=large).status_code == 413
    chunked = (part.encode() for part in [json.dumps(large)])
    reply = server.http.post("/v1/completions", content=chunked, headers=json_type)
    assert reply.status_code == 413
    assert "at most 1048576 bytes" in reply.json()["error"]["message"]
    assert server.http.get("/health", headers={"x-long": "x" * 2**17}).status_code == 431


def test_what_is_not_there_is_named(server):
    for method, path, status, says in (
        ("GET", "/v1/complete", 404, "there is no /v1/complete here; /docs has what there is"),
        ("POST", "/admin/promote", 404, "there is no /admin/promote here: it needs --models and --admin-keys-file"),
        ("GET", "/v1/completions", 405, "/v1/completions does not take GET, only POST"),
    ):
        reply = server.http.request(method, path)
        assert (reply.status_code, reply.json()["error"]["message"]) == (status, says)
    assert reply.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": ["a", 1]}, "prompt.1: Input should be a valid string"),
        ({"prompt": 5}, "prompt: Input should be a valid string or a valid list"),
        ({"prompt": [[1, "a"]]}, "prompt.0.1: Input should be a valid integer"),
        ({"stop": ["a", 5]}, "stop.1: Input should be a valid string"),
    ],
)
def test_places_in_a_body_are_the_senders_own(server, fields, says):
    reply = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"} | fields)
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, says)


def test_the_rest_of_the_endpoints(server, client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError):
        complete(client, model="other")
    assert server.http.get("/ready").json() == {"status": "ready"}
    assert server.http.get("/version").json()["version"]
    tokens = server.http.post("/tokenize", json={"prompt": PROMPT}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(PROMPT)
    chat_tokens = server.http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert chat_tokens["count"] == chat(client).usage.prompt_tokens
    assert server.http.post("/tokenize", json={}).json()["error"]["param"] == "prompt"
    assert server.http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": PROMPT}
    assert server.http.post("/detokenize", json={"tokens": [9999]}).json()["error"]["param"] == "tokens"
    assert "/v1/chat/completions" in server.http.get("/openapi.json").json()["paths"]
    given = server.http.get("/health", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"


def test_metrics_count_what_was_done(server, client):
    before = [
        server.metric(name)
        for name in ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count")
    ]
    complete(client, prompt="a" * 40, max_tokens=7, n=2)
    after = [
        server.metric(name)
        for name in ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count")
    ]
    assert [b - a for a, b in zip(before, after, strict=True)] == [80, 14, 2]
    assert server.metric("num_requests_running") == 0
    assert server.metric("kv_cache_usage_perc") == 0
    assert server.metric("kv_tier_capacity_bytes") > 7 * 2**20
    server.until(lambda: server.metric("kv_tier_saves_total") >= 2)
    assert server.metric("kv_tier_saved_bytes_total") == server.metric("kv_tier_used_bytes")
    assert server.metric("kv_tier_corrupt_total") == 0


def test_a_model_without_a_chat_template_is_named_without_its_place(tiny_chat_model, tmp_path):
    shutil.copytree(tiny_chat_model, tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template.jinja"))
    tokenizer = Tokenizer.from_directory(tmp_path / "bare")
    with pytest.raises(ChatTemplateError, match="comes with no chat template") as caught:
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert str(tmp_path) not in str(caught.value)
