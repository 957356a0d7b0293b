# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the state of a run, and the folder it is kept in."""
