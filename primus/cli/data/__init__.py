# SPDX-License-Identifier: Apache-2.0
"""`primus data`: convert conversations, prove their masks, look at them, count them."""
