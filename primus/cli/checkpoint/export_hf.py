# SPDX-License-Identifier: Apache-2.0
"""`primus checkpoint export-hf`: a checkpoint as a Hugging Face folder."""

from collections.abc import Sequence
from pathlib import Path

from primus.backends.megatron.checkpoint.folder import find_checkpoint
from primus.backends.megatron.huggingface.export_folder import check_output
from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser

_DESCRIPTION = """Write a checkpoint as a folder that transformers, vLLM and others load as it is: weights in
safetensors, config.json, the tokenizer with the chat template that the model was trained with, and a generation
configuration that ends an answer where the model was trained to end it. Adapters (lora) are merged into the model;
--adapter writes them by themselves. A GPU is not needed."""
_EXAMPLES = """
primus checkpoint export-hf output/primus/user/tiny-multiturn-sft/checkpoints exported
primus checkpoint export-hf output/primus/user/tiny-multiturn-sft/checkpoints/iter_0002000 at-2000
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus checkpoint export-hf`.

    Args:
        arguments: The words after `primus checkpoint export-hf`.

    Returns:
        The exit code.
    """
    parser = CommandParser("checkpoint export-hf", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="an iter_* folder, or a folder of them, whose newest is taken"
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--tokenizer", metavar="T", help="its folder, file or name, if it has moved since training")
    parser.add_argument(
        "--adapter", action="store_true", help="write the adapters by themselves, for peft, not merged into a model"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export in DIR, and nothing else")
    parser.add_argument("--verbose", action="store_true", help="log more, warnings of libraries included")
    options = parser.parse(arguments)
    set_up_logging(verbose=options.verbose)
    check_output(options.output, force=options.force)
    find_checkpoint(options.checkpoint)
    from primus.backends.megatron.huggingface.export import export_hf

    export_hf(
        options.checkpoint,
        output=options.output,
        tokenizer=options.tokenizer,
        force=options.force,
        adapter_only=options.adapter,
    )
    print(f"{'adapters for peft' if options.adapter else 'Hugging Face folder'}: {options.output}")
    return 0
