# SPDX-License-Identifier: Apache-2.0
import json
from datetime import datetime
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from primus.errors import ConfigError, RenderError
from primus.sft.formatters.template import ChatTemplate, render_template
from primus.sft.formatters.template.environment import MAX_STEPS

MESSAGES = [{"role": "user", "content": " Hi <b> "}, {"role": "assistant", "content": "Hello\n"}]
NOW = datetime(2024, 7, 26, 13, 5)  # noqa: DTZ001 - a template's clock has no zone


def render(source: str, messages: Any = None, **variables: Any) -> str:
    return render_template(source, MESSAGES if messages is None else messages, special_tokens={}, now=NOW, **variables)


SOURCES = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n    U:{{ m.content }}\n  {% endif %}\n{% endfor %}",
    "{%- for m in messages -%} {{ m['content'] | trim }} {%- endfor -%}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ 'é<' | tojson(ensure_ascii=True) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro show(m) %}[{{ m.role }}]{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "{% set x %}{{ messages[0].content }}{% endset %}{{ x ~ '!' ~ 1 }}{{ tools }}{{ documents }}{{ missing }}",
    "{{ dict(a=1) }}{{ dict.fromkeys(['a'], 2) }}{{ messages | map(attribute='role') | join(', ') }}",
    "{{ messages[0] }}{{ [messages[0].content, 1] | string }}",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_template_renders_as_in_transformers(source: str) -> None:
    [expected], _ = render_jinja_template([MESSAGES], chat_template=source)
    assert render(source) == expected


def test_the_clock_is_that_of_the_template() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y %H:%M') }}", now=NOW)
    assert template.render({"messages": []}, origin="row") == "26 Jul 2024 13:05"


def test_two_renders_agree_on_the_time() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}")
    assert template.render({"messages": []}, origin="row") == template.render({"messages": []}, origin="row")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_tojson_escapes_no_html(value: Any) -> None:
    assert render("{{ value | tojson }}", value=value) == json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ (messages | attr('__class__')) }}{{ messages.__class__.__mro__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_reach_python(source: str) -> None:
    try:
        text = render(source)
    except RenderError as exc:
        assert exc.reason == "template"  # noqa: PT017 - undefined in the sandbox prints nothing instead
    else:
        assert text.replace("{", "").replace("}", "") == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 2 ** 1000000000 }}",
        "{{ 10 ** 10 ** 10 ** 10 ** 10 ** 10 }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_cannot_run_or_grow_for_ever(source: str) -> None:
    with pytest.raises(RenderError, match="the chat template refuses the conversation") as caught:
        render(source)
    assert caught.value.reason == "template"
    assert "\n" not in str(caught.value)


def test_loops_are_counted_in_each_render_by_itself() -> None:
    template = ChatTemplate("{% for i in range(1000) %}{% endfor %}")
    for _ in range(3):
        template.render({"messages": []}, origin="row")
    assert template.environment.steps == 1000 < MAX_STEPS


def test_what_a_template_says_itself_is_in_the_message() -> None:
    with pytest.raises(RenderError, match=r"^row 1: .*\(roles must alternate\); change the row") as caught:
        ChatTemplate("{{ raise_exception('roles must\n alternate') }}").render({"messages": []}, origin="row 1")
    assert caught.value.reason == "template"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{% for m in messages %}", 1),
        ("a\n\n{{ x | }}", 3),
        ("{% endfor %}", 1),
        ("{{ x | nofilter }}", 1),
    ],
)
def test_a_syntax_error_is_one_line_with_the_line_of_the_template(source: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"^t.jinja: line {line} is not valid Jinja \(.*\); repair the template$"):
        ChatTemplate(source, origin="t.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a'.ljust(1500000000) }}",
        "{{ 'a'.zfill(1500000000) }}",
        "{{ 'a' | center(1500000000) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ ('a' * 30000).replace('a', 'b' * 30000) }}",
        "{{ ('b' * 30000).join(['a'] * 30000) }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    ],
)
def test_no_macro_method_or_operator_takes_time_or_memory_without_end(source: str) -> None:
    with (
        mock.patch("primus.sft.formatters.template.environment.MAX_STEPS", 100_000),
        pytest.raises(RenderError, match="OverflowError"),
    ):
        render_template(source, [], special_tokens={})
