# SPDX-License-Identifier: Apache-2.0
"""What a run did, as a page that stands alone: losses, what they are made of, speed, and what was trained.

curves      lines of the metrics file -> series of points
charts      series -> SVG that takes its colours from the page
page        everything -> HTML
"""

from primus.backends.megatron.reporting.run_page.page import render_run_page, write_run_page

__all__ = ["render_run_page", "write_run_page"]
