# SPDX-License-Identifier: Apache-2.0
"""From conversations to training sequences.

The modules, in the order that data flows through them:

formatters/   Conversation -> text, spans, markers
tokenizer/    text -> token ids and character offsets
masking       spans -> which tokens the assistant wrote -> labels and loss mask (the only shift)
encoding      one conversation through all of the above
truncation    what happens to a conversation that is too long
dataset       files -> flat arrays of all conversations of a split, and the ledger
order         which sequences make up step k
stats/        what a data set is made of, counted
preview       what is trained, for people
"""
