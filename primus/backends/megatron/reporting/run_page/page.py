# SPDX-License-Identifier: Apache-2.0
"""What a run did as one HTML page: no script, no network, light and dark, for a phone and for paper."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from primus.backends.megatron.reporting.metrics import read_metrics
from primus.backends.megatron.reporting.run_page.charts import Stroke, line_chart
from primus.backends.megatron.reporting.run_page.curves import (
    Curve,
    Line,
    curve_of,
    figures_at_the_end,
    group_curves,
    work_of,
)
from primus.config.schema import TrainConfig
from primus.sft.ledger import explain
from primus.sft.stats.drawing import short
from primus.sft.target_groups import ROLE_NAMES, TURN_NAMES, Dimension

# Places of rows that are named for each outcome; the rest is counted.
_MOST_ORIGINS = 5
_KINDS: Mapping[Dimension, Sequence[str]] = {
    "turn": [f"t{number}" for number in range(1, len(TURN_NAMES) + 1)],
    "role": ["assistant-line", "end-line"],
    "source": [f"s{number}" for number in range(1, 7)],
}
_TITLES: Mapping[str, str] = {"assistant": "what the assistant says", "assistant_end_of_turn": "the end of its turns"}


def write_run_page(config: TrainConfig, *, path: Path) -> None:
    """Write the page of a run, from the files that are in its folder.

    Args:
        config: The run.
        path: The page to write.
    """
    logs = config.exp_dir / "logs"
    ledger = logs / "ledger.json"
    page = render_run_page(
        read_metrics(logs / "metrics.jsonl"),
        ledgers=json.loads(ledger.read_text(encoding="utf-8")) if ledger.is_file() else {},
        facts=_facts(config),
        title=config.exp_name,
    )
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def render_run_page(
    lines: Sequence[Line], *, ledgers: Mapping[str, Mapping[str, Any]], facts: Mapping[str, str], title: str
) -> str:
    """What a run did as a page that stands alone.

    Args:
        lines: The lines of its metrics file.
        ledgers: What became of the rows of each split, as in the ledger file.
        facts: What else to say of it, by name.
        title: Its name.

    Returns:
        HTML. All text is escaped, whatever is in it.
    """
    steps = [line for line in lines if "lm_loss" in line]
    loss, validation = curve_of(lines, "lm_loss"), curve_of(lines, "validation_loss")
    return str(
        _template().render(
            title=title,
            style=Markup(_style()),  # noqa: S704  # ours
            facts=facts,
            loss=loss,
            validation=validation,
            best=min(validation.values_P.tolist(), default=None),
            work=work_of(lines),
            last=steps[-1] if steps else None,
            loss_chart=_loss_chart(loss, validation),
            groups=[_groups(lines, dimension) for dimension in ("turn", "role", "source")],
            course=_course(steps),
            rows=[_rows(split, ledger) for split, ledger in ledgers.items()],
        )
    )


def _loss_chart(loss: Curve, validation: Curve) -> Markup:
    strokes = [
        Stroke(loss, "train", is_faint=loss.num_averaged > 1),
        Stroke(loss.smoothed, "train"),
        Stroke(Curve("validation", validation.steps_P, validation.values_P), "validation", has_marks=True),
    ]
    return line_chart("Training and validation loss over the steps", strokes, form="{:.3g}".format, may_be_log=True)


def _groups(lines: Sequence[Line], dimension: Dimension) -> dict[str, Any]:
    """The curves, the legend and the figures of turns, roles or sources."""
    kinds = _KINDS[dimension]
    by_split = {}
    for split, prefix in (("training", ""), ("validation", "validation_")):
        curves = group_curves(lines, dimension, prefix=prefix)
        drawn = [
            Stroke(curve.smoothed, _kind(dimension, curve.name, number), has_marks=split == "validation")
            for number, curve in enumerate(curves)
            if number < len(kinds)
        ]
        label = f"The {split} loss of each {dimension} over the steps"
        if any(len(curve) > 1 for curve in curves):
            by_split[split] = {
                "chart": line_chart(label, drawn, form="{:.3g}".format, may_be_log=True),
                "legend": [(stroke.kind, _shown(stroke.curve.name)) for stroke in drawn],
                "num_averaged": max((curve.num_averaged for curve in curves), default=1),
            }
    figures = figures_at_the_end(lines, dimension)
    most = max((value for f in figures for value in (f.train, f.validation) if value is not None), default=1.0)
    return {
        "dimension": dimension,
        "charts": by_split,
        "figures": [
            {"name": _shown(f.name), "kind": _kind(dimension, f.name, number), "of": f}
            for number, f in enumerate(figures)
        ],
        "most": most or 1.0,
    }


def _kind(dimension: Dimension, name: str, number: int) -> str:
    """The class of a group in the page's styles: that of its name where names are known."""
    names = {"turn": TURN_NAMES, "role": ROLE_NAMES, "source": ()}[dimension]
    kinds = _KINDS[dimension]
    return kinds[(names.index(name) if name in names else number) % len(kinds)]


def _shown(name: str) -> str:
    return _TITLES.get(name, name)


def _course(steps: Sequence[Line]) -> list[tuple[str, str, Markup]]:
    """What else changes from step to step: a title, a note, and the image."""
    shown = []
    for field, title, note, form in (
        ("learning_rate", "Learning rate", "", "{:.2g}".format),
        ("grad_norm", "Norm of the gradient", "Before it is clipped. ", "{:.3g}".format),
        ("tokens_per_second", "Tokens per second", "Padding, evaluations and checkpoints not counted. ", short),
        ("fill", "Fill", "Share of the positions that are not padding. ", "{:.0%}".format),
        ("mfu", "Use of the devices", "Useful operations, as a share of the peak rate. ", "{:.0%}".format),
    ):
        curve = curve_of(steps, field)
        if len(curve) < 1:
            continue
        strokes = [Stroke(curve, "plain-line", is_faint=curve.num_averaged > 1), Stroke(curve.smoothed, "plain-line")]
        if field == "learning_rate":
            strokes = [Stroke(curve, "plain-line")]
        elif curve.num_averaged > 1:
            note += f"Mean of {curve.num_averaged} lines."
        shown.append((title, note, line_chart(f"{title} over the steps", strokes, form=form)))
    return shown


def _rows(split: str, ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the rows of a split, and what else its ledger notes."""
    origins: Mapping[str, Sequence[str]] = ledger["origins"]
    outcomes = sorted(ledger["outcomes"].items(), key=lambda item: (-item[1], item[0]))
    noted = (
        ("num_truncated", "conversations that were shortened"),
        ("num_untrained_turns", "assistant turns that lost their targets to truncation"),
        ("num_windows", "sequences more than conversations, of those that were cut into several"),
        ("num_splits", "tokens that were cut at the edge of an assistant turn"),
        ("num_branches", "conversations beyond the first of each tree"),
        ("num_joined", "rows beyond the first of each conversation whose turns are rows"),
        ("num_dropped_branches", "conversations of trees that are not used"),
    )
    return {
        "split": split,
        "num_rows": ledger["num_rows"],
        "num_conversations": ledger["num_conversations"],
        "outcomes": [
            {
                "name": name,
                "words": explain(name),
                "num": num,
                "share": num / ledger["num_rows"],
                "origins": list(origins.get(name, ()))[:_MOST_ORIGINS],
                "num_more": max(0, len(origins.get(name, ())) - _MOST_ORIGINS),
            }
            for name, num in outcomes
        ],
        "noted": [(ledger[field], words) for field, words in noted if ledger[field]],
        "ignored": ledger["ignored_fields"],
    }


def _facts(config: TrainConfig) -> dict[str, str]:
    t = config.trainer
    names = t.sft_dataset_name or [source.dataset_name for source in t.sft_sources]
    listed = (
        [names] if isinstance(names, str) else ["+".join([name] if isinstance(name, str) else name) for name in names]
    )
    parallel = {
        "tensor": t.tensor_model_parallel_size,
        "pipeline": t.pipeline_model_parallel_size,
        "context": t.context_parallel_size,
    }
    divided = ", ".join(f"{name} parallel {size}" for name, size in parallel.items() if size > 1)
    return {
        "Data": ", ".join(listed),
        "Tokenizer": t.tokenizer_model or "",
        "Format": f"{t.sft_conversation_format}, packing {t.packing}, seq_length {t.seq_length:,}",
        "Model": (
            f"{t.num_layers} layers, hidden_size {t.hidden_size:,}, {t.num_attention_heads} heads,"
            f" {'bfloat16' if t.bf16 else 'float32'}"
        ),
        "Batch": (
            f"{t.global_batch_size:,} sequences, {t.micro_batch_size:,} at once{', ' if divided else ''}{divided}"
        ),
        "Loss": f"normalised per {t.sft_loss_normalizer}, turns weighted {t.sft_turn_schedule}",
    }


@cache
def _style() -> str:
    own = files(__package__).joinpath("run_page.css").read_text(encoding="utf-8")
    return files("primus.sft.stats").joinpath("report.css").read_text(encoding="utf-8") + own


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(
        figure="{:,}".format, percent="{:.1%}".format, loss="{:.4f}".format, short=short, duration=_duration
    )
    return environment.from_string(files(__package__).joinpath("run_page.html.jinja").read_text(encoding="utf-8"))


def _duration(seconds: float) -> str:
    """A time for people.

    Examples:
        >>> _duration(42), _duration(754), _duration(10000)
        ('42 s', '12 min 34 s', '2 h 46 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
