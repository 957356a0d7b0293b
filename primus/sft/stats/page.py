# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page: no script, no network, light and dark, for a phone and for paper."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from primus.sft.stats import plots
from primus.sft.stats.figures import COPY_NAMES, StatsReport, percent

_MOST_FILES = 6


def render_page(report: StatsReport) -> str:
    """The report as a page that stands alone.

    Args:
        report: The report.

    Returns:
        HTML. All text is escaped, whatever is in it.
    """
    return str(
        _template().render(
            report=report,
            style=_asset("report.css"),
            plots={} if not report.num_conversations else _plots(report),
            copy_names=COPY_NAMES,
            parts=plots.token_parts(report),
            most_files=_MOST_FILES,
        )
    )


def _plots(report: StatsReport) -> dict[str, Any]:
    return {
        "lengths": plots.lengths_plot(report),
        "coverage": plots.coverage_plot(report),
        "lost": plots.lost_plot(report),
        "padding": plots.padding_plot(report),
        "roles": plots.roles_plot(report),
        "messages": plots.messages_plot(report),
        "turns": plots.turns_plot(report),
        "targets": plots.targets_plot(report.target_percent_histogram),
        "scripts": plots.scripts_plot(report),
    }


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(percent=percent, fill=plots.fill, figure="{:,}".format, mean="{:,.1f}".format)
    return environment.from_string(_asset("report.html.jinja"))
