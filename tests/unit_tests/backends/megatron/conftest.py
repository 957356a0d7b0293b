# SPDX-License-Identifier: Apache-2.0
"""Imports the trainer for all tests of this room, without megatron-core's warnings about itself."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import primus.backends.megatron.trainer  # noqa: F401
