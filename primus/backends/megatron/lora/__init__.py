# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters beside Megatron's linear layers (LoRA, Hu et al. 2021, arXiv:2106.09685)."""
