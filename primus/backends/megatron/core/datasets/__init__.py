# SPDX-License-Identifier: Apache-2.0
"""Data sets in the form that Megatron trains on."""
