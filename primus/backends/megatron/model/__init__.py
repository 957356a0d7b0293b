# SPDX-License-Identifier: Apache-2.0
"""Megatron's GPTModel and the modules of its layers."""
