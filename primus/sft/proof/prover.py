# SPDX-License-Identifier: Apache-2.0
"""All checks, for the rows of a batch."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from primus.chat.conversations import ConversationBatch
from primus.chat.messages import Conversation
from primus.errors import ConversationError, RenderError
from primus.sft.encoding import TracedConversation
from primus.sft.proof.prompts import PromptCheck
from primus.sft.proof.report import CHECKS, FIRST_CHECKS, BatchProof, Check, Failure
from primus.sft.proof.said import left_out, wrong_targets
from primus.sft.proof.tokens import TokenChecks
from primus.sft.recipe import Encoder, Recipe
from primus.sft.verdict import judge_tokenizer
from primus.sft.workers import Job


class Prover:
    """Checks conversations against the tokens that they are trained as.

    Args:
        encoder: What encodes them.
        max_seq_length: Positions of a training sequence; None if any length will do.

    Attributes:
        verdict: What the tokenizer is like.
    """

    def __init__(self, encoder: Encoder, *, max_seq_length: int | None) -> None:
        puts_bos = encoder.tokenizer.adds_bos if encoder.add_bos is None else encoder.add_bos
        self.verdict = judge_tokenizer(encoder.tokenizer, encoder.formatter, puts_bos=puts_bos)
        self._encoder = encoder
        self._max_seq_length = max_seq_length
        self._tokens = TokenChecks(encoder.tokenizer)
        self._checks: dict[Check, Callable[[TracedConversation], Iterator[str]]] = {
            "targets": self._has_targets,
            "content": self._says_what_was_said,
            "control": self._tokens.find_control,
            "prompt": PromptCheck(encoder).compare,
        }
        if encoder.options.supervise_end_of_turn:
            self._checks["stop"] = self._tokens.stop
        # With another truncation a long conversation is what was asked for, and counted when the data is prepared.
        if max_seq_length is not None and encoder.options.truncation == "error":
            self._checks["length"] = self._fits
        self._asked = [check for check in CHECKS if check in FIRST_CHECKS or check in self._checks]

    def prove_batch(self, batch: ConversationBatch) -> BatchProof:
        """Check every conversation of a batch.

        Args:
            batch: The rows.

        Returns:
            What passed and what failed.
        """
        passed: Counter[Check] = Counter()
        failed: Counter[Check] = Counter()
        failures: list[Failure] = []
        conversations: list[Conversation] = []
        num_lossy = self._tokens.num_lossy
        for reading in batch.readings():
            conversations += reading.conversations
            (passed if reading.error is None else failed)["parsed"] += len(reading.rows)
            if reading.error is not None:
                failures.append(Failure(reading.origin, "parsed", str(reading.error)))
        all_traced = self._encoder.trace_all(conversations)
        traces = [traced for traced in all_traced if isinstance(traced, TracedConversation)]
        is_decoded = self._tokens.decode_together(traces)
        for conversation, traced in zip(conversations, all_traced, strict=True):
            problems = self.check(conversation, traced, is_decoded=is_decoded)
            broken = {failure.check for failure in problems}
            first = next((check for check in FIRST_CHECKS if check in broken), None)
            asked = self._asked if first is None else FIRST_CHECKS[: FIRST_CHECKS.index(first)]
            passed.update(check for check in asked if check not in broken and check != "parsed")
            failed.update(broken)
            failures += problems
        encoded = [trace.encoded for trace in traces]
        has_all = self._encoder.formatter.is_turn_by_turn
        return BatchProof(
            num_rows=passed["parsed"] + failed["parsed"],
            num_bad_rows=failed["parsed"],
            num_conversations=len(conversations),
            passed=passed,
            failed=failed,
            failures=tuple(failures),
            lengths_N=np.array([len(e.tokens_T) for e in encoded], dtype=np.int64),
            num_targets=sum(e.num_targets for e in encoded),
            num_turns=sum(len(set(e.turns_K[e.weights_K > 0].tolist())) for e in encoded),
            num_splits=sum(e.num_splits for e in encoded),
            num_lossy=self._tokens.num_lossy - num_lossy,
            left_out=Counter() if has_all else sum(map(left_out, traces), Counter()),
            verdict=self.verdict,
            engine=self._encoder.tokenizer.engine_name,
        )

    def prove(self, conversation: Conversation) -> list[Failure]:
        """Check one conversation.

        Args:
            conversation: The conversation.

        Returns:
            The checks that it fails.
        """
        [traced] = self._encoder.trace_all([conversation])
        return self.check(conversation, traced)

    def check(
        self, conversation: Conversation, traced: TracedConversation | ConversationError, *, is_decoded: bool = False
    ) -> list[Failure]:
        """Check the tokens of a conversation.

        Args:
            conversation: The conversation.
            traced: Its tokens, or why there are none.
            is_decoded: Whether the trained tokens are known to decode to the text that they stand for.

        Returns:
            The checks that fail.
        """
        origin = conversation.origin
        if isinstance(traced, RenderError):
            return [Failure(origin, "rendered", str(traced))]
        if isinstance(traced, ConversationError):
            return [Failure(origin, "tokenized", str(traced))]
        problems = [(check, problem) for check, find in self._checks.items() for problem in find(traced)]
        if not is_decoded:
            problems += [("content", problem) for problem in self._tokens.decode(traced)]
        return [Failure(origin, check, f"{origin}: {problem}") for check, problem in problems]

    def _has_targets(self, trace: TracedConversation) -> Iterator[str]:
        if trace.encoded.num_targets == 0:
            yield "no token is trained; give an assistant turn a weight above 0, or drop the row"

    def _says_what_was_said(self, trace: TracedConversation) -> Iterator[str]:
        encoder = self._encoder
        yield from wrong_targets(trace, options=encoder.options, is_turn_by_turn=encoder.formatter.is_turn_by_turn)

    def _fits(self, trace: TracedConversation) -> Iterator[str]:
        num_tokens, limit = len(trace.encoded.tokens_T), self._max_seq_length
        if limit is not None and num_tokens > limit + 1:
            yield (
                f"the conversation has {num_tokens} tokens, but seq_length {limit} holds {limit + 1}; raise seq_length,"
                " or set sft_truncation"
            )


@dataclass(frozen=True)
class ProofJob(Job[ConversationBatch, BatchProof]):
    """Proves batches in a process of its own.

    Attributes:
        recipe: How conversations become training sequences.
    """

    recipe: Recipe

    def start(self) -> Callable[[ConversationBatch], BatchProof]:
        """Load tokenizer and formatter."""
        return Prover(self.recipe.build(), max_seq_length=self.recipe.max_seq_length).prove_batch
