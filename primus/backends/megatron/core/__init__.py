# SPDX-License-Identifier: Apache-2.0
"""Where users of Megatron look for data sets."""
