# SPDX-License-Identifier: Apache-2.0
"""The typed, frozen configuration of a training run.

Megatron's keys keep Megatron's names and meanings; keys of this project begin with `sft_`. The text under each field is
its documentation, in the docs and in error messages alike.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _read_exponent(value: object) -> object:
    """Take `1e4` as a whole number; pydantic reads whole numbers from digits and from whole floats only."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d+", value):
        return float(value)
    return value


def _read_plain_values(value: object) -> object:
    """Take text that YAML reads as a number or as true or false for that, at any depth."""
    if isinstance(value, dict):
        return {key: _read_plain_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_plain_values(item) for item in value]
    if not isinstance(value, str):
        return value
    if value in {"true", "false"}:
        return value == "true"
    if re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value) else value


def _folder_name(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name:
        raise ValueError("is not the name of one folder; leave out '/' and give at least one letter")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]
PlainValues = Annotated[dict[str, Any], BeforeValidator(_read_plain_values)]
PositiveInt = Annotated[int, BeforeValidator(_read_exponent), Field(gt=0)]
NonNegativeInt = Annotated[int, BeforeValidator(_read_exponent), Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Packing = Literal["none", "sequential", "best_fit"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraConfig(_Section):
    """Low-rank adaptation of the linear layers."""

    enabled: bool = False
    """Train adapters instead of all weights."""
    dim: PositiveInt = 32
    """Rank of the adapters."""
    alpha: PositiveFloat = 32.0
    """Scaling: an adapter's output is multiplied by `alpha / dim`."""
    dropout: Fraction = 0.0
    """Dropout inside the adapter."""
    dropout_position: Literal["pre", "post"] = "pre"
    """Before or after the adapter's two matrices."""
    target_modules: tuple[str, ...] = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    """The layers that get an adapter, by Megatron's names."""


class ModelKeys(_Section):
    """A GPT model of the Llama family, in Megatron's words."""

    num_layers: PositiveInt
    """Transformer layers."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    ffn_hidden_size: PositiveInt
    """Width inside the MLP (of one branch, with `swiglu`)."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_query_groups: PositiveInt | None = None
    """Key and value heads; null means as many as query heads."""
    kv_channels: PositiveInt | None = None
    """Width of one head; null means `hidden_size / num_attention_heads`."""
    max_position_embeddings: PositiveInt = 4096
    """Longest sequence the model is meant for; `seq_length` may not exceed it."""
    position_embedding_type: Literal["rope"] = "rope"
    """How positions enter the model."""
    rotary_base: PositiveFloat = 10000.0
    """Base of the rotary frequencies (`rope_theta`)."""
    use_rope_scaling: bool = False
    """Scale the rotary frequencies as Llama 3.1 and later do."""
    rope_scaling_factor: PositiveFloat = 8.0
    """Factor of `use_rope_scaling`."""
    normalization: Literal["RMSNorm"] = "RMSNorm"
    """The normalisation layer."""
    norm_epsilon: PositiveFloat = 1e-5
    """Epsilon of the normalisation layers."""
    swiglu: bool = True
    """Gated SiLU in the MLP."""
    add_bias_linear: bool = False
    """Biases in the linear layers; models of the Llama family have none."""
    add_qkv_bias: bool = False
    """Bias in the query, key and value projection, as Qwen2 has."""
    qk_layernorm: bool = False
    """Normalise queries and keys, as Qwen3 does."""
    untie_embeddings_and_output_weights: bool = True
    """false shares one matrix between the embedding and the output layer."""
    init_method_std: PositiveFloat = 0.02
    """Standard deviation of freshly initialised weights."""
    attention_dropout: Fraction = 0.0
    """Dropout on the attention weights."""
    hidden_dropout: Fraction = 0.0
    """Dropout on the residual branches."""
    make_vocab_size_divisible_by: PositiveInt = 128
    """The embedding is padded to a multiple of this times the tensor parallel size."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding before padding; null takes it from the tokenizer."""


SourceFormatName = Literal[
    "auto", "anthropic", "llamafactory", "openai", "sharegpt", "xtuner", "tooltalk", "swe_agent", "oasst", "turns",
    "hh", "alpaca", "prompt_completion", "questions",
]  # fmt: skip


class DataSource(_Section):
    """One of several sources that are mixed."""

    dataset_name: str | tuple[str, ...]
    """A file, a folder of splits, a pattern with `*`, or several of these."""
    split: str = "train"
    """The split of a folder that is trained on."""
    epochs: PositiveFloat | None = None
    """How often each training sequence of the source comes in an epoch of the mixture; null means once."""
    weight: PositiveFloat | None = None
    """Share of the mixture's training sequences, in proportion to those of the other sources; instead of `epochs`."""
    loss_weight: PositiveFloat = 1.0
    """Factor of the loss of everything in the source."""
    source_format: SourceFormatName = "auto"
    """Format of the source's rows."""
    messages_field: str | tuple[str, ...] = "messages"
    """Field, or fields, with a row's messages."""


class DataKeys(_Section):
    """What is trained on, and which of its tokens are targets."""

    tokenizer_model: str | None = None
    """A folder or name for `AutoTokenizer`, a `tokenizer.json`, or a SentencePiece `.model`."""
    sft_dataset_name: str | tuple[str, ...] | None = None
    """One or several data files, or a folder that holds one file per split (`train.jsonl`, `validation.jsonl`)."""
    sft_sources: tuple[DataSource, ...] = ()
    """Several sources that are mixed, instead of `sft_dataset_name`: each with `dataset_name`, and where wanted
    `epochs` or `weight`, `loss_weight`, `split`, `source_format` and `messages_field`."""
    sft_dataset_split: str = "train"
    """The split of a folder that is trained on."""
    sft_validation_dataset_name: str | tuple[str, ...] | None = None
    """Files to validate on; excludes `sft_validation_fraction`."""
    sft_validation_split: str | None = None
    """The split of a folder to validate on."""
    sft_validation_fraction: Fraction = 0.0
    """Share of the rows held out for validation; conversations with the same first question are on the same side."""
    sft_messages_field: str | tuple[str, ...] = "messages"
    """The field, or fields, of a row that hold its messages; rows without one of them are of another format."""
    sft_source_format: SourceFormatName = "auto"
    """The format of the rows, as in docs/DATA_FORMATS.md; `auto` recognises that of each row."""
    sft_conversation_format: Literal[
        "openai", "messages", "chatml", "alpaca", "template", "llama3", "qwen", "mistral", "gemma", "phi"
    ] = "openai"
    """The formatter; `messages` and `chatml` are other names of `openai`, and `template` is a chat template."""
    sft_chat_template: str | None = None
    """A file with the chat template of the format `template`; null takes the tokenizer's."""
    sft_chat_template_kwargs: PlainValues = {}
    """What the chat template is given besides the messages, for example `{enable_thinking: false}`."""
    sft_supervise_end_of_turn: bool = True
    """Train the token that ends an assistant turn; without it a model never learns to stop."""
    sft_supervise_turns: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are targets."""
    sft_turn_schedule: Literal["uniform", "last_only", "linear", "exponential"] = "uniform"
    """How the weight of a trained turn depends on its place: the last has 1, those before it as much, none or less."""
    sft_turn_schedule_start: Fraction | None = None
    """With `linear`, the weight one step before the first trained turn; null means 0."""
    sft_turn_schedule_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """With `exponential`, the factor from each trained turn to the one before it."""
    sft_loss_normalizer: Literal["token", "turn", "conversation"] = "token"
    """What has one vote in the loss: each target, each trained turn, or each conversation."""
    sft_truncation: Literal["error", "drop", "right", "keep_last_turns", "window"] = "error"
    """What happens to a conversation longer than `seq_length`; `window` makes several sequences of it."""
    sft_bad_rows: Literal["error", "quarantine"] = "error"
    """Stop at bad rows, or write them with their reasons to a file and train the rest."""
    sft_streaming: bool = False
    """Read, tokenize and pack while training instead of preparing first, for data that is read only once."""
    sft_shuffle_buffer: NonNegativeInt | None = None
    """With `sft_streaming`, sequences that wait to be shuffled; null means 10,000, 0 keeps the order of the files."""
    sft_cache_dir: Path | None = None
    """Folder of prepared data sets, each under the hash of all it depends on; null takes `<workspace>/prepared`."""
    sft_add_bos: bool | None = None
    """Begin with the tokenizer's BOS; null does what the tokenizer does by itself."""
    sft_add_eos: bool = False
    """End the sequence with the tokenizer's EOS, which is never a target."""
    sft_length_bucket: NonNegativeInt = 0
    """Sort by length inside blocks of this many sequences, so that less is padding; 0 shuffles freely."""
    sft_pad_to_multiple_of: PositiveInt = 8
    """A batch is padded to its longest sequence, rounded up to this."""
    sft_packing: Packing = "none"
    """Several conversations in a sequence: those that follow each other, or those that fill it best."""
    enable_packed_sequences: bool = False
    """true means `sft_packing: best_fit` where that is `none`."""
    num_workers: NonNegativeInt = 2
    """Threads that load batches ahead of the step; 0 loads them when they are needed. The batches are the same."""


class OptimizationKeys(_Section):
    """Steps, batch sizes, optimizer and schedule, in Megatron's words."""

    seq_length: PositiveInt
    """Positions of a training sequence."""
    micro_batch_size: PositiveInt = 1
    """Sequences of one forward pass on one data-parallel rank."""
    global_batch_size: PositiveInt
    """Sequences of one optimizer step, over all ranks."""
    train_iters: PositiveInt | None = None
    """Optimizer steps; null takes `sft_num_epochs`."""
    sft_num_epochs: PositiveFloat | None = None
    """Passes over the data; excludes `train_iters`."""
    eval_interval: NonNegativeInt = 100
    """Steps between evaluations; 0 evaluates only at the end."""
    eval_iters: NonNegativeInt = 0
    """Batches of `global_batch_size` per evaluation; 0 takes the whole validation split."""
    optimizer: Literal["adam"] = "adam"
    """AdamW."""
    lr: NonNegativeFloat
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the decay."""
    lr_warmup_iters: NonNegativeInt = 0
    """Steps of linear warm-up."""
    lr_decay_iters: PositiveInt | None = None
    """Steps after which `min_lr` is reached; null means `train_iters`."""
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "cosine"
    """Shape of the decay."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    """Shape of the last phase of WSD."""
    lr_wsd_decay_iters: PositiveInt | None = None
    """Steps of the last phase of WSD."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay; norms and biases are not decayed."""
    adam_beta1: Fraction = 0.9
    """AdamW's first beta."""
    adam_beta2: Fraction = 0.95
    """AdamW's second beta."""
    adam_eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    clip_grad: NonNegativeFloat = 1.0
    """Limit of the global gradient norm; 0 does not clip."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1234
    """Seed of the weights, the order of the data, and dropout."""
    bf16: bool = False
    """Train in bfloat16 with float32 main weights; false trains in float32."""


class SystemKeys(_Section):
    """Parallel layout, checkpoints and reporting, in Megatron's words."""

    tensor_model_parallel_size: PositiveInt = 1
    """Ranks that share each layer's matrices."""
    pipeline_model_parallel_size: PositiveInt = 1
    """Ranks that share the layers."""
    virtual_pipeline_model_parallel_size: PositiveInt | None = None
    """Model chunks per pipeline rank."""
    context_parallel_size: PositiveInt = 1
    """Ranks that share each sequence."""
    sequence_parallel: bool = False
    """Shard activations between tensor-parallel regions."""
    use_distributed_optimizer: bool = False
    """Shard the optimizer state over the data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass runs; needs `use_distributed_optimizer`."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Recompute activations in the backward pass to save memory."""
    recompute_method: Literal["uniform", "block"] | None = None
    """Which layers `full` recomputes: blocks of all (`uniform`, also null), or the first of a stage (`block`)."""
    recompute_num_layers: PositiveInt | None = None
    """Layers of a block with `uniform`, recomputed layers with `block`; null means 1."""
    distributed_timeout_minutes: PositiveInt = 60
    """Longest wait of a collective."""
    finetune: bool = False
    """Load weights only, and start at step 0."""
    load: Path | None = None
    """A checkpoint folder to start from."""
    hf_path: str | None = None
    """A Hugging Face folder to start from: weights, model keys, and the tokenizer where none is named."""
    save: Path | None = None
    """Where checkpoints go; null means `checkpoints/` of the experiment."""
    save_interval: NonNegativeInt = 0
    """Steps between checkpoints; one is always written at the end."""
    most_recent_k: PositiveInt | None = None
    """Checkpoints that are kept, the newest ones; older ones are deleted when a newer is complete. null keeps all."""
    async_save: bool = False
    """Train on while a checkpoint is written; needs free memory on the host for as much as its state changes."""
    check_weight_hash_across_dp_replicas_interval: NonNegativeInt = 0
    """Steps between comparisons of the replicas' weights, which a faulty device would part; 0 compares them only when
    they are loaded."""
    deterministic_mode: bool = False
    """Take only kernels that give the same bits every time, on a GPU at some cost; a CPU does so anyway."""
    ckpt_format: Literal["torch_dist"] = "torch_dist"
    """Format of checkpoints."""
    log_interval: PositiveInt = 1
    """Steps between lines of the metrics file."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    sft_peak_tflops: PositiveFloat | None = None
    """Peak rate of a device in 10^12 operations per second, which `mfu` is a share of; null takes the bfloat16 rate of
    a known GPU, and writes no `mfu` on others and on a CPU."""
    wandb_project: str | None = None
    """Weights & Biases project that curves are logged to; null logs none. Needs `primus[wandb]`."""
    wandb_exp_name: str | None = None
    """Name of the run there; null takes `exp_name`."""
    wandb_save_dir: Path | None = None
    """Where its files go, in a folder `wandb`; null takes the folder of the experiment."""


class TrainerConfig(DataKeys, ModelKeys, OptimizationKeys, SystemKeys):
    """Every key that a trainer module may set, flat, as Megatron's arguments are."""

    stage: Literal["sft"] = "sft"
    """The kind of training."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adaptation."""

    @property
    def packing(self) -> Packing:
        """How conversations share sequences, whichever key says it."""
        return "best_fit" if self.enable_packed_sequences and self.sft_packing == "none" else self.sft_packing


class TrainConfig(_Section):
    """A training run: where its output goes, and its one trainer module."""

    work_group: FolderName = "primus"
    """First folder of the output path."""
    user_name: FolderName = "user"
    """Second folder of the output path."""
    exp_name: FolderName
    """Third folder of the output path."""
    workspace: Path = Path("output")
    """Root of the output path."""
    framework: Literal["megatron"] = "megatron"
    """The training backend."""
    trainer: TrainerConfig
    """The trainer module, presets and overrides merged."""

    @property
    def exp_dir(self) -> Path:
        """The folder that everything of this run is written to."""
        return self.workspace / self.work_group / self.user_name / self.exp_name
