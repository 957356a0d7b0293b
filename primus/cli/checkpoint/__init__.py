# SPDX-License-Identifier: Apache-2.0
"""`primus checkpoint`: models of Hugging Face in and out."""
