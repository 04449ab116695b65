"""Functions and calls reach a template that writes them as we read them; for any other they are written out."""

import json

import pytest

from miniserve.model.tokenizer.chat_template import ChatTemplate
from miniserve.model.tokenizer.tool_calls import ToolCallReader
from miniserve.model.tokenizer.tool_prompt import for_template, writes_calls

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
LISTED = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
# The shape of a call as Qwen's templates write it, and of others'.
OURS = (
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
XML = "{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n</function>\n</tool_call>{% endfor %}"
BARE = '{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}'


def template(calls="", listed=LISTED):
    source = listed + "{% for m in messages %}[{{ m.role }}] {{ m.content }}" + calls + "\n{% endfor %}"
    return ChatTemplate(source, bos_token=None, eos_token=None)


TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}]
CALLS = [
    {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": {"a": f"é{number}"}}}
    for number in range(2)
]
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c0", "content": "one"},
    {"role": "tool", "tool_call_id": "c1", "content": "two"},
]


@pytest.mark.parametrize(
    ("made", "writes"),
    [
        (template(OURS), True),
        (template(OURS, listed=""), False),
        (template(XML), False),
        (template(BARE), False),
        (template(), False),
        (ChatTemplate("{{ raise_exception('no') }}", bos_token=None, eos_token=None), False),
    ],
)
def test_which_templates_write_calls_as_we_read_them(made, writes):
    assert writes_calls(made) is writes


@pytest.mark.parametrize("made", [template(OURS), template(XML), template()])
def test_the_model_reads_its_calls_as_it_writes_them(made):
    messages, tools = for_template(made, TALK, TOOLS)
    text = made.render(messages, tools=tools)
    reader = ToolCallReader()
    heard = reader.push(text[text.index("[assistant] ") + len("[assistant] ") :])
    assert [(call.name, json.loads(call.arguments)) for call in heard.calls] == [("f", {"a": "é0"}), ("f", {"a": "é1"})]
    assert not reader.inside
    assert json.dumps(TOOLS[0]["function"], ensure_ascii=False)[1:-1] in text


def test_written_out():
    messages, tools = for_template(template(), [{"role": "system", "content": "Be kind."}, *TALK], TOOLS)
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be kind.\n\nYou can call functions.")
    assert messages[2].keys() == {"role", "content"}
    assert messages[3]["content"] == ("<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>")
    assert TALK[2]["content"] == "one"
    spoken = for_template(template(), [{"role": "assistant", "content": "so", "tool_calls": CALLS[:1]}], None)[0][0]
    assert spoken["content"].startswith("so\n<tool_call>\n")


def test_what_has_no_functions_stays_as_it_is():
    assert for_template(template(), TALK[:1], None) == (TALK[:1], None)
    assert for_template(template(), TALK[:1], []) == (TALK[:1], None)
    assert for_template(template(OURS), TALK, TOOLS) == (TALK, TOOLS)
