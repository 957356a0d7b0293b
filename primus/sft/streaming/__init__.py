# SPDX-License-Identifier: Apache-2.0
"""Training sequences out of data that is not prepared first: read, tokenized, shuffled and packed on the way.

    files in the order of the epoch -> batches of rows -> sequences -> shuffle buffer -> packs -> global batches

reading    from files to sequences, each with the place of its rows; and back from places to sequences
shuffling  sequences that wait, of which a random one is taken for each that comes
packing    packs of sequences that follow each other, where `OnlinePacker` is not asked for
state      all there is to know for going on with the very next batch, as plain JSON data
dataset    StreamingDataset, the endless stream of global batches
indexed    IndexedStream, its packs by number, as a trainer asks a data set for them

Every process that is given the same arguments sees the same global batches, so ranks take their parts of them, and
their number changes nothing.
"""

from primus.sft.streaming.dataset import StreamedBatch, StreamingDataset
from primus.sft.streaming.indexed import IndexedStream
from primus.sft.streaming.state import StreamState

__all__ = ["IndexedStream", "StreamState", "StreamedBatch", "StreamingDataset"]
