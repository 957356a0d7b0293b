# SPDX-License-Identifier: Apache-2.0
"""The proof that a row trains exactly what its assistant said, made from the finished tokens.

report.py   what is checked, and what became of a batch of rows
said.py     the conversation against the text: each answer has a target span that says it, with its weight
tokens.py   the text against the tokens: what is trained decodes to it and ends, control tokens are the format's
prompts.py  the tokens against what a server sends
prover.py   all of it, for a batch of rows
"""

from primus.sft.proof.prover import ProofJob, Prover
from primus.sft.proof.report import CHECKS, BatchProof, Check, Failure

__all__ = ["CHECKS", "BatchProof", "Check", "Failure", "ProofJob", "Prover"]
