# SPDX-License-Identifier: Apache-2.0
"""What happens to a conversation that is longer than a training sequence.

T: tokens of a conversation. K: token spans of its assistant turns.
"""

from dataclasses import replace

import numpy as np

from primus.sft.encoding import EncodedConversation


def truncate_right(conversation: EncodedConversation, *, max_tokens: int) -> EncodedConversation:
    """Keep the first tokens of a conversation, and train only turns that are whole.

    A turn that lost part of its content or of its end of turn would teach the model to break off there, so it becomes
    context, like everything that is kept of the turn.

    Args:
        conversation: The conversation.
        max_tokens: Tokens to keep, at least 1.

    Returns:
        The conversation itself if it is short enough. Otherwise one of `max_tokens` tokens, whose
        `num_untrained_turns` counts the turns that had targets before and have none now.

    Examples:
        Tokens 1 to 2 and 4 to 6 are two turns; the second one does not fit.

        >>> whole = EncodedConversation(np.arange(7), np.array([[1, 3], [4, 6]]), turns_K=np.array([1, 3]),
        ...     is_end_K=np.array([False, False]), weights_K=np.float32([1, 1]), origin="a:1")
        >>> cut = truncate_right(whole, max_tokens=5)
        >>> cut.tokens_T.tolist(), cut.token_spans_K2.tolist(), cut.weights_K.tolist(), cut.num_untrained_turns
        ([0, 1, 2, 3, 4], [[1, 3], [4, 5]], [1.0, 0.0], 1)
    """
    if len(conversation.tokens_T) <= max_tokens:
        return conversation
    cut_K = conversation.token_spans_K2[:, 1] > max_tokens
    cut_turns = np.unique(conversation.turns_K[cut_K])
    untrained_K = np.isin(conversation.turns_K, cut_turns)
    trained_before = np.unique(conversation.turns_K[untrained_K & (conversation.weights_K > 0)])
    return replace(
        conversation,
        tokens_T=conversation.tokens_T[:max_tokens],
        token_spans_K2=conversation.token_spans_K2.clip(max=max_tokens),
        weights_K=np.where(untrained_K, np.float32(0), conversation.weights_K),
        is_truncated=True,
        num_untrained_turns=len(trained_before),
    )
