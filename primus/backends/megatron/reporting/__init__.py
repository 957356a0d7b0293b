# SPDX-License-Identifier: Apache-2.0
"""What is written down and shown of a run."""
