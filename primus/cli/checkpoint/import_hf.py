# SPDX-License-Identifier: Apache-2.0
"""`primus checkpoint import-hf`: a Hugging Face folder as a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser
from primus.config.hugging_face import CONFIG_FILE, model_keys_of, read_hugging_face_config

_DESCRIPTION = """Write a Hugging Face model (Llama 3 to 3.3, Mistral, Qwen2, Qwen2.5, Qwen3; safetensors) as a
checkpoint that a run of any parallel layout loads with load and finetune, bit for bit, in little memory. A GPU is not
needed. The checkpoint's model.yaml has the model's keys, for a run's model. A run can also start from the folder
itself, with hf_path."""
_EXAMPLES = """
primus checkpoint import-hf models/Llama-3.1-8B checkpoints/llama3.1-8B
primus checkpoint import-hf models/base checkpoints/base --tokenizer models/chat
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus checkpoint import-hf`.

    Args:
        arguments: The words after `primus checkpoint import-hf`.

    Returns:
        The exit code.
    """
    parser = CommandParser("checkpoint import-hf", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("source", type=Path, metavar="DIR", help="the model's folder")
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder of checkpoints to write")
    parser.add_argument("--tokenizer", metavar="T", help="its folder, file or name, if it is not in DIR")
    parser.add_argument("--verbose", action="store_true", help="log more, warnings of libraries included")
    options = parser.parse(arguments)
    set_up_logging(verbose=options.verbose)
    config = read_hugging_face_config(options.source)
    model_keys_of(config, origin=str(options.source / CONFIG_FILE))
    from primus.backends.megatron.huggingface.import_hf import MODEL_FILE, import_hf

    checkpoint = import_hf(options.source, output=options.output, tokenizer=options.tokenizer)
    print(f"checkpoint: {checkpoint}")
    print(f"in a run: model: {options.output / MODEL_FILE}, load: {options.output}, finetune: true")
    return 0
