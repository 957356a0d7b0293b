# SPDX-License-Identifier: Apache-2.0
"""From text to token ids and character offsets, whatever tokenizer is underneath."""

from primus.sft.tokenizer.base import Encoding, SFTTokenizer
from primus.sft.tokenizer.load import load_tokenizer

__all__ = ["Encoding", "SFTTokenizer", "load_tokenizer"]
