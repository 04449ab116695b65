"""Chat templates: equal to transformers on shapes found in the wild, and every failure says what happened."""

import datetime
import re

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from miniserve.errors import ChatTemplateError
from miniserve.model.gguf import GGUFFile
from miniserve.model.tokenizer.chat_template import ChatTemplate

CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>1 & 2</b> 'quoted' \"twice\""}],
    [
        {"role": "user", "content": "Grüße 🌍"},
        {"role": "assistant", "content": "Hallo\n"},
        {"role": "user", "content": " {{ not_a_variable }} {% endfor %} "},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "a < b & é", "parameters": {}}}]

# Written for this test; each uses a feature that published templates rely on.
TEMPLATES = {
    "plain": "{% for m in messages %}[{{ m['role'] }}] {{ m.content }}{{ eos_token }}{% endfor %}",
    "trim and lstrip": "{% for m in messages %}\n    {% if m.role == 'user' %}\nU: {{ m.content }}\n    {% endif %}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\nA:\n{% endif %}",
    "tools as json": "{{ bos_token }}{% if tools %}{{ tools | tojson }}|{{ tools[0] | tojson(indent=2) }}"
    "|{{ tools[0] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}{% endif %}"
    "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "loop controls and namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m.content | trim }}"
    "{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}",
    "absent names": "{% if documents is defined %}d{% endif %}{% if documents %}D{% endif %}{{ nothing }}"
    "{% if think is defined %}{{ think }}{% endif %}{% for m in messages %}{{ m.tool_calls }}{{ m.content }}{% endfor %}",
    "generation tag": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n{{ m.content }}"
    "{% endgeneration %}\n{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "macros and slices": "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{% if messages[0].role == 'system' %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{{ turn(m) }}{% endfor %}",
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("messages", CHATS, ids=["one turn", "system", "three turns"])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("tools", "add_generation_prompt"), [(None, True), (TOOLS, False)])
def test_equals_transformers(name, messages, tools, add_generation_prompt):
    source = TEMPLATES[name]
    expected, _ = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    rendered = template(source).render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
    assert rendered == expected[0]
    assert rendered


@pytest.mark.parametrize("messages", CHATS, ids=["one turn", "system", "three turns"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_default_models_own_template_equals_transformers(smollm2_gguf, messages, add_generation_prompt):
    source = GGUFFile(smollm2_gguf).metadata["tokenizer.chat_template"]
    ours = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    expected, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=add_generation_prompt)
    assert ours.render(messages, add_generation_prompt=add_generation_prompt) == expected[0]


def test_further_variables_reach_the_template():
    assert template("{{ thinking }}{{ bos_token }}").render(CHATS[0], thinking="on", bos_token="!") == "on!"


def test_a_token_the_model_lacks_is_undefined_not_the_word_none():
    ours = ChatTemplate("{{ bos_token }}{{ eos_token is defined }}", bos_token=None, eos_token=None)
    assert ours.render(CHATS[0]) == "False"


def test_strftime_now_is_todays_date():
    before = datetime.date.today().isoformat()
    rendered = template("{{ strftime_now('%Y-%m-%d') }}").render(CHATS[0])
    assert rendered in {before, datetime.date.today().isoformat()}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% for m in messages %}", "line 2"),
        ("{% endfor %}", "line 1"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{" + "(" * 5000, "compile|parse"),
    ],
)
def test_a_source_that_does_not_parse(source, message):
    with pytest.raises(ChatTemplateError, match=message):
        template(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "rejected the messages: roles must alternate"),
        ("{{ messages.append(1) }}", "sandbox"),
        ("{{ ''.__class__.__mro__ }}", "sandbox"),
        ("{{ (cycler.__init__.__globals__).os }}", "sandbox"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ 'a' + messages[0] }}", "TypeError"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception | tojson }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_says_why(source, message):
    with pytest.raises(ChatTemplateError, match=re.escape(message)):
        template(source).render(CHATS[0])


def test_the_messages_are_left_as_they_were():
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ChatTemplateError, match="sandbox"):
        template("{{ messages[0].update({'content': 'y'}) }}").render(messages)
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty"),
        ("hello", "list of messages, not str"),
        (None, "not NoneType"),
        ({"role": "user"}, "not dict"),
        ([{"role": "user", "content": "x"}, "y"], r"messages\[1\] must be a mapping, not str"),
        ([{"content": "x"}], r"messages\[0\] needs a 'role'"),
        ([{"role": 3, "content": "x"}], r"messages\[0\] needs a 'role' that is a string, not int"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: 'content' must be"),
        ([{"role": "user", "content": {"text": "x"}}], r"messages\[0\]: 'content' must be"),
    ],
)
def test_malformed_messages_are_named(messages, message):
    with pytest.raises(ChatTemplateError, match=message):
        template("{{ messages }}").render(messages)


def test_content_may_be_absent_null_or_a_list():
    messages = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    source = "{% for m in messages %}{% if m.content %}{{ m.content[0].text }}{% endif %}{% endfor %}"
    assert template(source).render(messages) == "hi"
