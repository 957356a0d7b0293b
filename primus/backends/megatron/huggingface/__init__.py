# SPDX-License-Identifier: Apache-2.0
"""Weights and settings of models of Hugging Face."""
