# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a run have in common, compared instead of assumed: settings, files, batches and weights.

Ranks read files of their own machines. Where these differ, training would go on with numbers that mean nothing.
"""
