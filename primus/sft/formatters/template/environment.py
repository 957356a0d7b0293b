# SPDX-License-Identifier: Apache-2.0
"""Chat templates as Hugging Face transformers renders them: the same Jinja, sandboxed, with limits on what they use.

The rules are those of transformers 5 (`utils/chat_template_utils.py`): an immutable sandbox with `trim_blocks` and
`lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and the tag
`{% generation %}`, which writes its body. A template comes with a model from somewhere: it may not reach Python, and it
may not run or grow for ever.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from primus.errors import ConfigError, RenderError
from primus.sft.formatters.template.limits import (
    MAX_CHARS,
    center_modestly,
    check_method,
    format_modestly,
    is_modest_format,
    limited,
    within_limit,
)

MAX_STEPS = 10_000_000
"""Passes of all loops together in one render."""
MAX_BITS = 1 << 16
"""Bits of a power that a template computes."""

TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,  # RecursionError, and StopIteration inside a generator
    TypeError,
    ValueError,
)
"""What an expression of a template can raise."""

# Names of filters that no template can write down.
_STEP = "loop step"


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one chat template; it counts the loop passes of the render under way.

    Args:
        now: What the template's clock shows.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, now: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
        self.steps = 0
        self.filters["tojson"] = to_json
        self.filters["format"] = format_modestly
        self.filters["center"] = center_modestly
        self.filters[_STEP] = _count_step
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = now.strftime
        self.globals["dict"] = _TemplateDict()
        self.globals["namespace"] = _TemplateNamespace
        self.concat = self.join_pieces  # type: ignore[method-assign]

    def join_pieces(self, pieces: Iterable[Any]) -> str:
        """Put the pieces of a text together: of the whole text, a macro, or a block that is set."""
        return "".join(within_limit(pieces))

    def join_operands(self, operands: Iterable[Any]) -> str:
        """Put the operands of `~` together."""
        return limited("".join(map(str, operands)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, unless the result is of a size that only an attack has."""
        is_power = operator == "**" and isinstance(left, int) and isinstance(right, int)
        if is_power and left.bit_length() * right > MAX_BITS:
            raise OverflowError(f"a power of more than {MAX_BITS} bits")
        if operator == "*":
            for factor, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(factor, "__len__") and len(factor) * times > MAX_CHARS:
                    raise OverflowError(f"a sequence of {len(factor) * times} items is above {MAX_CHARS}")
        are_numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "*" and are_numbers and left.bit_length() + right.bit_length() > MAX_BITS:
            raise OverflowError(f"a product of more than {MAX_BITS} bits")
        are_lists = isinstance(left, list | tuple) and isinstance(right, list | tuple)
        if operator == "+" and are_lists and len(left) + len(right) > MAX_STEPS:
            raise OverflowError(f"a list of more than {MAX_STEPS} items")
        if operator == "%" and isinstance(left, str) and not is_modest_format(left):
            raise OverflowError("a format with a width above 3 digits")
        result = super().call_binop(context, operator, left, right)
        return limited(result) if isinstance(result, str) else result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as there
        """Call something, unless it is a method that would make a text of a size that only an attack has."""
        check_method(__obj, args)
        return super().call(__context, __obj, *args, **kwargs)

    def generation(self, caller: Macro) -> str:
        """What `{% generation %}` writes: its body."""
        text: str = caller()
        return text


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, with which training templates mark what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the tag and its body as a call of the environment's `generation`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.Call(nodes.EnvironmentAttribute("generation"), [], [], None, None)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)


class ChatTemplate:
    """One chat template, compiled.

    Args:
        source: Its text.
        origin: Where it came from, for messages.
        now: What its clock shows; None takes the beginning of the present day.

    Raises:
        ConfigError: If it is no valid Jinja; the message has the line.
    """

    def __init__(self, source: str, *, origin: str = "chat template", now: datetime | None = None) -> None:
        self.source = source
        self.origin = origin
        # Local time without a zone, as transformers has it.
        # The day, and no time: all processes that render a data set must write the same.
        today = (
            datetime.now(tz=timezone.utc).astimezone().replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        )
        self.now = now or today
        self.environment, self._template = compile_template(
            source, environment=ChatEnvironment(self.now), origin=origin, prepare=count_loops
        )

    def render(self, variables: Mapping[str, Any], *, origin: str) -> str:
        """Render it.

        Args:
            variables: What the template sees, as `template_variables` gives it.
            origin: Where the conversation came from.

        Returns:
            The text.

        Raises:
            RenderError: If the template refuses the conversation, or fails on it. The message begins with the origin.
        """
        self.environment.steps = 0
        try:
            return self.environment.join_pieces(self._template.generate(variables))
        except TEMPLATE_FAILURES as exc:
            raise RenderError(
                f"{origin}: the chat template refuses the conversation ({failure_text(exc)}); change the row, or use"
                " another template",
                reason="template",
            ) from exc


def render_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    special_tokens: Mapping[str, str],
    now: datetime | None = None,
    **variables: Any,
) -> str:
    r"""Render messages with a chat template, as `apply_chat_template` of transformers does.

    Args:
        source: Text of the template.
        messages: Messages in the form that templates expect; `template_messages` makes it of a conversation.
        tools: Tool definitions, or None.
        add_generation_prompt: Whether the header of an assistant turn follows.
        special_tokens: Texts of the tokenizer's special tokens by name: `bos_token`, `eos_token` and so on.
        now: What the template's clock shows; None takes the present time.
        **variables: Anything else that the template takes, such as `enable_thinking`.

    Returns:
        The text.

    Raises:
        ConfigError: If the template is no valid Jinja.
        RenderError: If the template refuses the messages, or fails on them.

    Examples:
        >>> source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        >>> render_template(source, [{"role": "user", "content": "Hi"}], special_tokens={"bos_token": "<s>"})
        '<s>user: Hi\n'
    """
    template = ChatTemplate(source, now=now) if now else _cached_template(source)
    given = template_variables(
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        special_tokens=special_tokens,
        more=variables,
    )
    return template.render(given, origin=template.origin)


@lru_cache(maxsize=64)
def _cached_template(source: str) -> ChatTemplate:
    return ChatTemplate(source)


def template_variables(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that a template sees, by name."""
    return {
        "messages": list(messages),
        "tools": list(tools) if tools else None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **special_tokens,
        **more,
    }


def compile_template(
    source: str,
    *,
    environment: ChatEnvironment,
    origin: str,
    prepare: Callable[[nodes.Template], None],
    names: Mapping[str, Any] | None = None,
) -> tuple[ChatEnvironment, jinja2.Template]:
    """Compile a template.

    Args:
        source: Its text.
        environment: The environment that it is for.
        origin: Where it came from, for messages.
        prepare: Changes its syntax tree.
        names: Replacements of names that the generated code uses.

    Returns:
        The environment and the template.

    Raises:
        ConfigError: If it is no valid Jinja; the message has the line.
    """
    try:
        tree = environment.parse(source)
        prepare(tree)
        code = environment.compile(tree)
    except jinja2.TemplateSyntaxError as exc:
        raise ConfigError(
            f"{origin}: line {exc.lineno} is not valid Jinja ({failure_text(exc)}); repair the template"
        ) from exc
    except (RecursionError, SyntaxError, TypeError, ValueError) as exc:  # what Python's compiler does not take
        raise ConfigError(f"{origin}: can't be compiled ({failure_text(exc)}); repair the template") from exc
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    generated = template.root_render_func.__globals__
    generated.update(str_join=environment.join_operands, **(names or {}))
    return environment, template


def count_loops(tree: nodes.Template) -> None:
    """Let every pass of every loop and every macro be counted, so that a template cannot run for ever."""
    for body in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        step = nodes.ExprStmt(hidden_filter(_STEP, nodes.Const(None))).set_lineno(body.lineno)
        body.body.insert(0, step)  # type: ignore[attr-defined]  # all three have one


def hidden_filter(name: str, operand: nodes.Expr) -> nodes.Filter:
    """A call of a filter whose name no template can write down, and which no template can replace."""
    return nodes.Filter(operand, name, [], [], None, None)


def failure_text(exc: BaseException) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    if isinstance(exc, SecurityError | jinja2.UndefinedError) or not isinstance(exc, jinja2.TemplateError):
        text = f"{type(exc).__name__}: {text}"
    return text if len(text) <= 300 else f"{text[:300]}..."


def to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may pass it by place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """The filter `tojson` of chat templates, which escapes no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_context
def _count_step(context: Context, value: None) -> None:  # noqa: ARG001 - a filter has an operand
    environment = context.environment
    assert isinstance(environment, ChatEnvironment)
    environment.steps += 1
    if environment.steps > MAX_STEPS:
        raise OverflowError(f"its loops make more than {MAX_STEPS} passes")


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class _TemplateDict:
    """`dict` of chat templates: makes dictionaries, and has nothing else."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A dictionary with the given keys."""
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """`namespace` of chat templates: no attribute begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name an attribute `self`
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't have the attribute {name!r}")
