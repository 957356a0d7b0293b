# SPDX-License-Identifier: Apache-2.0
"""Any Hugging Face chat template as a format, with the exact place of what the assistant wrote."""

from primus.sft.formatters.template.conversion import MessageForm, template_messages, template_tools
from primus.sft.formatters.template.environment import ChatTemplate, render_template
from primus.sft.formatters.template.formatter import TemplateFormatter
from primus.sft.formatters.template.sources import ChatTemplates, read_templates

__all__ = [
    "ChatTemplate",
    "ChatTemplates",
    "MessageForm",
    "TemplateFormatter",
    "read_templates",
    "render_template",
    "template_messages",
    "template_tools",
]
