# SPDX-License-Identifier: Apache-2.0
"""Training backends; each is the only place that imports its framework."""
