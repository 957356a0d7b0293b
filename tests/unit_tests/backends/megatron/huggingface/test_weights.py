# SPDX-License-Identifier: Apache-2.0
"""Every row of Hugging Face's weights has one place in Megatron's, whatever the heads and however it is cut."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from primus.backends.megatron.huggingface.weights import ModelShape, Rows, overlapping, rows_of, to_hugging_face
from primus.backends.megatron.planning.parameter_count import HeadLayout

NAMES = (
    "embedding.word_embeddings.weight",
    "decoder.layers.2.self_attention.linear_qkv.weight",
    "decoder.layers.2.self_attention.linear_qkv.bias",
    "decoder.layers.2.mlp.linear_fc1.weight",
    "decoder.layers.2.mlp.linear_fc2.weight",
    "decoder.final_layernorm.weight",
)

shapes = st.builds(
    lambda groups, queries, width, ffn, vocabulary: ModelShape(
        heads=HeadLayout(num_attention_heads=groups * queries, num_query_groups=groups, kv_channels=width),
        hidden_size=6,
        ffn_hidden_size=ffn,
        vocab_size=vocabulary,
    ),
    groups=st.integers(1, 4),
    queries=st.integers(1, 4),
    width=st.integers(1, 5),
    ffn=st.integers(1, 9),
    vocabulary=st.integers(1, 9),
)


def numbers_of(rows: Rows) -> list[tuple[str, int]]:
    return [(rows.name, row) for row in range(rows.start, rows.stop)]


@given(shape=shapes, name=st.sampled_from(NAMES))
def test_each_row_has_one_place(shape: ModelShape, name: str) -> None:
    numbers = [number for rows in rows_of(name, shape=shape) for number in numbers_of(rows)]
    assert len(set(numbers)) == len(numbers)
    for part in {part for part, _ in numbers}:
        mine = [row for other, row in numbers if other == part]
        assert mine == list(range(len(mine)))  # in order, and without a gap


@given(shape=shapes, name=st.sampled_from(NAMES), data=st.data())
def test_a_part_has_the_rows_of_the_whole_in_their_places(shape: ModelShape, name: str, data: st.DataObject) -> None:
    rows = rows_of(name, shape=shape)
    whole = [number for part in rows for number in numbers_of(part)]
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(whole) + 2)] * 2)))
    assert [number for part in overlapping(rows, start, stop) for number in numbers_of(part)] == whole[start:stop]


@given(shape=shapes, name=st.sampled_from(NAMES), padding=st.integers(0, 3))
def test_what_is_taken_apart_is_what_was_put_together(shape: ModelShape, name: str, padding: int) -> None:
    rows = rows_of(name, shape=shape)
    parts: dict[str, int] = {}
    for part in rows:
        parts[part.name] = max(part.stop, parts.get(part.name, 0))
    weights = {part: torch.rand(num_rows, 3) for part, num_rows in parts.items()}
    fused = torch.cat([weights[part.name][part.start : part.stop] for part in rows])
    if "embedding" in name:
        fused = torch.nn.functional.pad(fused, (0, 0, 0, padding))
    apart = to_hugging_face(name, fused, shape=shape, tied=False)
    assert apart.keys() == weights.keys()
    assert all(torch.equal(apart[part], weights[part]) for part in weights)
