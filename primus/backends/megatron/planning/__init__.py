# SPDX-License-Identifier: Apache-2.0
"""What a run will be: processes, memory, steps; no torch."""
