"""`miniserve generate` as a user runs it: a real process, its output, its exit code, its reaction to nonsense."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from support import tiny_models

COMMAND = [sys.executable, "-m", "miniserve"]


def run(*arguments, stdin="", timeout=120, **environment):
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny_models.save("llama", directory)
    return str(directory)


def test_json_is_one_complete_object(smollm2_gguf):
    result = run("generate", "The capital of France is", "--max-tokens", "8", "--json")
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    (output,) = reply["outputs"]
    assert output["text"].startswith(" Paris")
    assert len(output["token_ids"]) == 8
    assert output["finish_reason"] == "length"
    assert reply["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13, "cached_tokens": 0}
    assert set(output["timings"]) == {"queue_s", "ttft_s", "itl_s", "e2e_s", "tokens_per_s"}
    assert all(0 < value < 60 * 1000 for value in output["timings"].values())


def test_every_sampling_option_reaches_the_sampler(tiny):
    numbers = {
        "temperature": 1, "seed": 3, "top-k": 5, "top-p": 0.9, "min-p": 0.01, "repetition-penalty": 1.1,
        "presence-penalty": 0.1, "frequency-penalty": 0.1, "logprobs": 5, "stop": "zz",
    }  # fmt: skip
    options = ["-n", "3", "--ignore-eos", *(f"--{name}={value}" for name, value in numbers.items())]
    result = run("generate", "hello", "--model", tiny, "--max-tokens", "6", "--json", *options)
    assert result.returncode == 0, result.stderr
    outputs = json.loads(result.stdout)["outputs"]
    assert [output["index"] for output in outputs] == [0, 1, 2]
    assert len({tuple(output["token_ids"]) for output in outputs}) > 1
    assert all(len(output["logprobs"]) == len(output["token_ids"]) for output in outputs)
    assert all(len(entry[3]) == 5 for entry in outputs[0]["logprobs"])


def test_chat_flag_ends_by_itself(smollm2_gguf):
    result = run("generate", "What is the capital of France?", "--chat", "--json")
    reply = json.loads(result.stdout)
    assert "Paris" in reply["outputs"][0]["text"]
    assert reply["outputs"][0]["finish_reason"] == "stop"
    assert "<|im_end|>" not in reply["outputs"][0]["text"]


def test_stream_prints_the_same_text(tiny):
    plain = run("generate", "hello", "--model", tiny, "--max-tokens", "12")
    streamed = run("generate", "-", "--model", tiny, "--max-tokens", "12", "--stream", stdin="hello")
    assert plain.returncode == streamed.returncode == 0, plain.stderr + streamed.stderr
    assert plain.stdout == streamed.stdout
    assert plain.stdout.strip()


def test_seed_repeats_and_temperature_varies(tiny):
    def ids(*options):
        result = run("generate", "hello", "--model", tiny, "--max-tokens", "16", "--json", *options)
        return json.loads(result.stdout)["outputs"][0]["token_ids"]

    first = ids("--temperature", "1", "--seed", "7")
    assert first == ids("--temperature", "1", "--seed", "7")
    assert first != ids("--temperature", "1", "--seed", "8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--max-tokens", "100000"], "max_model_len is 512"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "1", "--seed", "-5"], "seed is -5"),
        (["--dtype", "int3"], "dtype 'int3' is not one of"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--device", "mps"], "device 'mps' is not supported"),
        (["--stream", "--json"], "--stream excludes --json"),
        (["--stream", "-n", "2"], "--stream excludes"),
        (["--top-p", "0"], "top_p is 0"),
        (["-n", "1000"], "n is 1000"),
    ],
)
def test_bad_options_are_named(tiny, arguments, says):
    result = run("generate", "hello", "--model", tiny, *arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_bad_prompts_are_named(tiny):
    empty = run("generate", "", "--model", tiny)
    assert (empty.returncode, "the prompt is empty" in empty.stderr) == (2, True)
    long = run("generate", "x" * 600, "--model", tiny)
    assert (long.returncode, "600 tokens" in long.stderr and "512" in long.stderr) == (2, True)


def test_unknown_model_is_an_error_not_a_traceback(tmp_path):
    result = run("generate", "hello", "--model", str(tmp_path / "nothing"))
    assert result.returncode == 1
    assert "nothing" in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupt_prints_what_there_is(smollm2_gguf):
    process = subprocess.Popen(
        [*COMMAND, "generate", "Once upon a time", "--max-tokens", "4000", "--stream"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    first = process.stdout.read(1)  # wait until it speaks
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert first + rest
    assert b"Traceback" not in errors


def test_reader_that_goes_away_is_no_error(tiny):
    process = subprocess.run(
        f"{' '.join(COMMAND)} generate hello --model {tiny} --max-tokens 400 --stream | head -c 1",
        shell=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert b"Traceback" not in process.stderr
    assert b"Exception ignored" not in process.stderr


def test_help_and_import_are_fast_and_free_of_torch():
    """Best of five, in CPU seconds: what is bounded is our imports, not a neighbour's load."""
    check = (
        "import sys, miniserve, miniserve.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=30)

    def best(command):
        seconds = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, capture_output=True, timeout=30)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(seconds)

    # Quiet, it is 0.4 and 0.1. Beside another process that computes, each takes up to twice its CPU time.
    assert best([*COMMAND, "--help"]) < 0.8
    assert best([sys.executable, "-c", "import miniserve"]) < 0.3


@pytest.mark.parametrize("options", [["--quantization", "int8"], ["--dtype", "float32", "--threads", "1"]])
def test_forms_of_the_weights(compiled, tiny, options):
    result = run(
        "generate", "hello", "--model", tiny, "--max-tokens", "4", "--device", "cpu", "--backend", "cpu", *options
    )
    assert result.returncode == 0, result.stderr
    assert "note" not in result.stderr


def test_without_a_compiler_it_says_what_is_lost(tiny, tmp_path):
    arguments = ["generate", "hello", "--model", tiny, "--max-tokens", "4", "--device", "cpu"]
    result = run(*arguments, CXX="no-such-compiler", MINISERVE_CACHE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "note: plain torch computes, several times slower than the C++ kernels" in result.stderr
    assert "CXX names 'no-such-compiler', which is not found" in result.stderr
    refused = run(*arguments, "--quantization", "int4", CXX="no-such-compiler", MINISERVE_CACHE=str(tmp_path))
    assert refused.returncode == 2
    assert "quantization 'int4' needs the CPU's C++ kernels" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--quantization", "int3"), ("--backend", "gpu"), ("--dtype", "int7"), ("--kv-cache-dtype", "fp4")],
)
def test_choices_that_do_not_exist_are_refused_by_name(tiny, option, value):
    result = run("generate", "hello", "--model", tiny, option, value)
    assert result.returncode == 2
    assert f"{option.removeprefix('--').replace('-', '_')} '{value}' is not one of auto" in result.stderr


def test_a_grammar_from_the_command_line(tiny, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["tea", "coffee"]}')
    result = run("generate", "A drink:", "-n", "2", "--model", tiny, "--json-schema", str(schema))
    assert result.returncode == 0, result.stderr
    assert {json.loads(line) for line in result.stdout.splitlines()} <= {"tea", "coffee"}
    for arguments, says in (
        (["--json-schema", str(schema), "--regex", "a"], "excludes"),
        (["--json-schema", str(tmp_path / "none.json")], "none.json"),
    ):
        refused = run("generate", "A drink:", "--model", tiny, *arguments)
        assert (refused.returncode, says in refused.stderr) == (2, True), refused.stderr
