# SPDX-License-Identifier: Apache-2.0
"""Multi-turn conversations into exact training targets, and training on them with Megatron."""

__version__ = "0.1.0"
