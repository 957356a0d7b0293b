# SPDX-License-Identifier: Apache-2.0
"""What a conversation is, and how rows of data files become conversations.

    file -> read_rows -> row with its origin -> parse_conversation -> Conversation

Nothing here knows about tokens, formats of training text, or torch.
"""

from primus.chat.messages import Conversation, Message, Role, ToolCall
from primus.chat.parse import parse_conversation
from primus.chat.reading import Row, read_rows

__all__ = ["Conversation", "Message", "Role", "Row", "ToolCall", "parse_conversation", "read_rows"]
