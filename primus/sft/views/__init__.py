# SPDX-License-Identifier: Apache-2.0
"""What people look at: a conversation token by token, and the page that shows it.

TracedConversation -> ConversationView -> lines of the terminal (primus.cli.preview) or one HTML page
"""

from primus.sft.views.conversation_view import ConversationView, SectionView, TokenView, view_conversation
from primus.sft.views.page import RowProblem, render_page

__all__ = ["ConversationView", "RowProblem", "SectionView", "TokenView", "render_page", "view_conversation"]
