# SPDX-License-Identifier: Apache-2.0
"""Training on a CPU next to a plain loop of PyTorch and transformers: useful tokens per second, and where a step goes.

    python benchmarks/training_cpu.py [--threads 1] [--rounds 12] [--steps 2]

A small Llama in float32 is trained from the same weights, with the same AdamW (PyTorch's fused one), gradient clipping
and threads, on conversations with lengths as in chats (log-normal with a median of 100 tokens and a sigma of 0.9, at
most 1,025; the assistant wrote 60 % of the tokens). A useful token is a position that is not padding.

    plain            LlamaForCausalLM in a plain loop: batches padded to their longest conversation (rounded up to 8, as
                     primus does), scaled-dot-product attention without a mask, which padding at the end does not need,
                     and logits of every position, as most loops have them
    plain, targets   the same, with logits only at the positions that have a target, as primus computes them
    primus           `train_on`, as `primus train` calls it, with one conversation in a sequence
    primus, packed   the same, with conversations packed into sequences of 1,024 positions

Each runs in a process of its own, and they take turns: a few steps of each in every round, so that what else happens on
the machine meets all of them. The figures are medians over the rounds, by the clock and by the processor's time; ratios
are medians of the rounds' ratios. The first three train the same batches: their losses must agree step by step, or the
benchmark fails.

`outside` is the share of a step of primus that is neither the model's forward pass, nor the backward pass, nor the
optimizer's step: batches, sums, gradients that are zeroed and divided, hashes, metrics, logs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.config.schema import TrainConfig
from primus.sft.dataset import TokenizedDataset
from primus.sft.encoding import EncodedConversation
from primus.sft.ledger import Ledger
from primus.sft.sequences import SequenceArrays

IntArray = npt.NDArray[np.int64]

SEED, CAPACITY, VOCABULARY, PAD = 1234, 1024, 4096, 0
MICRO_BATCH, GLOBAL_BATCH, PACKED_GLOBAL_BATCH, PAD_TO = 8, 16, 2, 8
MODEL = {
    "num_layers": 4,
    "hidden_size": 256,
    "ffn_hidden_size": 704,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "max_position_embeddings": CAPACITY,
    "norm_epsilon": 1e-5,
    "rotary_base": 10000,
}
OPTIMIZER = {"lr": 3e-4, "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "clip_grad": 1.0}
PEERS = {
    "plain": "plain",
    "plain-targets": "plain, targets",
    "primus": "primus",
    "packed": "primus, packed",
}
WEIGHTS = "model"
# Losses of the same batches, computed by other kernels in another order, after as many steps as a run makes.
TOLERANCE = 2e-4


def make_conversations(
    num: int, *, median: int = 100, longest: int = CAPACITY + 1, vocabulary: int = VOCABULARY
) -> TokenizedDataset:
    """Synthetic conversations, the same in every process.

    Args:
        num: How many.
        median: Of their lengths in tokens, which are log-normal with a sigma of 0.9.
        longest: Length of the longest ones.
        vocabulary: Their tokens are below it.

    Returns:
        Tokens, in which the next one is easier to guess than by chance, and what the assistant wrote.
    """
    rng = np.random.default_rng(SEED)
    lengths = rng.lognormal(np.log(median), 0.9, num).clip(16, longest).astype(int)
    made = []
    for number, length in enumerate(lengths.tolist()):
        num_turns = int(rng.integers(1, 5))
        edges = np.linspace(0, length, num_turns + 1).astype(int)
        spans_K2 = np.stack([edges[1:] - np.diff(edges) * 6 // 10, edges[1:]], axis=1)
        made.append(
            EncodedConversation(
                tokens_T=1 + np.cumsum(rng.integers(1, 9, length)) % (vocabulary - 1),
                token_spans_K2=spans_K2,
                turns_K=2 * np.arange(num_turns) + 1,
                is_end_K=np.zeros(num_turns, dtype=bool),
                weights_K=np.ones(num_turns, dtype=np.float32),
                origin=f"made.jsonl:{number + 1}",
            )
        )
    arrays = SequenceArrays.of_conversations(made, content_hashes=[bytes(16)] * num)
    return TokenizedDataset([arrays], ledger=Ledger())


def make_weights(folder: Path) -> None:
    """Write the model that all of them begin with, in Hugging Face's format.

    Args:
        folder: Where it is written.
    """
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=MODEL["hidden_size"],
        intermediate_size=MODEL["ffn_hidden_size"],
        num_hidden_layers=MODEL["num_layers"],
        num_attention_heads=MODEL["num_attention_heads"],
        num_key_value_heads=MODEL["num_query_groups"],
        max_position_embeddings=CAPACITY,
        rms_norm_eps=MODEL["norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(MODEL["rotary_base"])},
        tie_word_embeddings=False,
        use_cache=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class Turns:
    """A process's turns: it trains when it is told to, and tells what that took."""

    def __init__(self) -> None:
        self._left = 0
        self._wall_s = self._cpu_s = 0.0
        self._told: dict[str, Any] = {}

    def before_a_step(self) -> None:
        """Wait for a turn if the last one is over; called before every step."""
        if self._left == 0:
            if self._told:
                self._told["wall_s"] = time.perf_counter() - self._wall_s
                self._told["cpu_s"] = time.process_time() - self._cpu_s
            print(json.dumps(self._told), flush=True)
            self._left = int(sys.stdin.readline() or 0)
            if self._left == 0:
                raise SystemExit(0)
            self._told = {"losses": [], "tokens": 0, "targets": 0, "parts": {}}
            self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        self._left -= 1

    def count(self, *, loss: float, tokens: int, targets: int) -> None:
        """Note what a step trained."""
        self._told["losses"].append(loss)
        self._told["tokens"] += tokens
        self._told["targets"] += targets

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted as a part of the step."""

        def call(*args: object, **options: object) -> Any:
            began_s = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                parts = self._told["parts"]
                parts[part] = parts.get(part, 0.0) + time.perf_counter() - began_s

        return call


def run_primus(folder: Path, *, num_conversations: int, packed: bool) -> None:
    """Train with primus, in turns.

    Args:
        folder: Has the weights to begin with, and gets its output.
        num_conversations: Size of the data.
        packed: Whether conversations share sequences.
    """
    from megatron.core.pipeline_parallel import schedules  # noqa: PLC0415

    from primus.backends.megatron.core.datasets.training_sequences import TrainingSequences  # noqa: PLC0415
    from primus.backends.megatron.distributed import this_process  # noqa: PLC0415
    from primus.backends.megatron.replacement import replaced  # noqa: PLC0415
    from primus.backends.megatron.step import StepOutcome, TrainingStep  # noqa: PLC0415
    from primus.backends.megatron.trainer import TokenizerFacts, train_on  # noqa: PLC0415

    config = TrainConfig(
        exp_name="packed" if packed else "unpacked",
        workspace=folder,
        trainer={
            **MODEL,
            **OPTIMIZER,
            "min_lr": OPTIMIZER["lr"],
            "lr_decay_style": "constant",
            "seq_length": CAPACITY,
            "sft_packing": "best_fit" if packed else "none",
            "micro_batch_size": PACKED_GLOBAL_BATCH if packed else MICRO_BATCH,
            "global_batch_size": PACKED_GLOBAL_BATCH if packed else GLOBAL_BATCH,
            "train_iters": 100_000,
            "bf16": False,
            "seed": SEED,
            "hf_path": str(folder / WEIGHTS),
        },
    )
    data = TrainingSequences(
        make_conversations(num_conversations),
        packing=config.trainer.packing,
        max_seq_length=CAPACITY,
        pad_id=PAD,
        seed=SEED,
    )
    turns, original = Turns(), TrainingStep.run

    def run(step: TrainingStep, batch_G: IntArray, *args: Any, **options: Any) -> StepOutcome:
        if "forward" not in vars(step.model[0]):
            step.model[0].forward = turns.timed("forward", step.model[0].forward)
            step.optimizer.step = turns.timed("optimizer", step.optimizer.step)
        turns.before_a_step()
        outcome = original(step, batch_G, *args, **options)
        tokens = int(data.num_positions_of(batch_G).sum())
        turns.count(loss=outcome.lm_loss, tokens=tokens, targets=outcome.num_targets)
        return outcome

    with ExitStack() as stack:
        stack.enter_context(replaced(TrainingStep, "run", run))
        stack.enter_context(replaced(schedules, "backward_step", turns.timed("backward", schedules.backward_step)))
        tokenizer = TokenizerFacts(name="none", vocab_size=VOCABULARY, adds_bos=False)
        train_on(config, process=this_process(), train=data, validation=None, tokenizer=tokenizer)


def run_plain(folder: Path, *, num_conversations: int, targets_only: bool) -> None:
    """Train with PyTorch and transformers alone, in turns.

    Args:
        folder: Has the weights to begin with.
        num_conversations: Size of the data.
        targets_only: Whether logits are computed only where there is a target.
    """
    import torch  # noqa: PLC0415
    from torch.nn.functional import cross_entropy  # noqa: PLC0415
    from transformers import LlamaForCausalLM  # noqa: PLC0415

    model = LlamaForCausalLM.from_pretrained(folder / WEIGHTS, dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIMIZER["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIMIZER["lr"],
        betas=(OPTIMIZER["adam_beta1"], OPTIMIZER["adam_beta2"]),
        eps=OPTIMIZER["adam_eps"],
        fused=True,
    )
    turns = Turns()
    for micro_batches in _plain_batches(num_conversations):
        turns.before_a_step()
        num_targets = sum(int((labels_BS >= 0).sum()) for _, labels_BS, _ in micro_batches)
        total = 0.0
        for tokens_BS, labels_BS, _ in micro_batches:
            hidden_BSH = model.model(input_ids=tokens_BS).last_hidden_state
            if targets_only:
                is_target_BS = labels_BS >= 0
                logits_NV, labels_N = model.lm_head(hidden_BSH[is_target_BS]), labels_BS[is_target_BS]
            else:
                logits_NV, labels_N = model.lm_head(hidden_BSH).flatten(0, 1), labels_BS.flatten()
            loss = cross_entropy(logits_NV, labels_N, reduction="sum") / num_targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip_grad"])
        optimizer.step()
        optimizer.zero_grad()
        turns.count(loss=total, tokens=sum(num for _, _, num in micro_batches), targets=num_targets)


def _plain_batches(num_conversations: int) -> Iterator[list[tuple[Any, Any, int]]]:
    """The micro-batches of each step, in the order of primus: tokens, labels (-100 where none), useful tokens."""
    import torch  # noqa: PLC0415

    from primus.sft.order import SequenceOrder  # noqa: PLC0415

    data = make_conversations(num_conversations)
    rows = []
    for conversation in (data[index] for index in range(num_conversations)):
        labels_T = np.full(len(conversation.tokens_T), -100)
        for first, last in conversation.token_spans_K2.tolist():
            labels_T[first:last] = conversation.tokens_T[first:last]
        rows.append((torch.from_numpy(conversation.tokens_T[:-1]), torch.from_numpy(labels_T[1:])))
    order = SequenceOrder(np.zeros(num_conversations, np.int8), seed=SEED, global_batch_size=GLOBAL_BATCH)
    step = 0
    while True:
        micro_batches = []
        for batch_B in order.global_batch(step).reshape(-1, MICRO_BATCH).tolist():
            lengths = [len(rows[index][0]) for index in batch_B]
            length = min(-(-max(lengths) // PAD_TO) * PAD_TO, CAPACITY)
            tokens_BS = torch.full((len(batch_B), length), PAD)
            labels_BS = torch.full((len(batch_B), length), -100)
            for row, index in enumerate(batch_B):
                tokens_BS[row, : lengths[row]], labels_BS[row, : lengths[row]] = rows[index]
            micro_batches.append((tokens_BS, labels_BS, sum(lengths)))
        yield micro_batches
        step += 1


class Peer:
    """One of the processes that take turns."""

    def __init__(self, name: str, *, folder: Path, threads: int, num_conversations: int) -> None:
        words = ["--peer", name, "--folder", str(folder), "--conversations", str(num_conversations)]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore", __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("w"),
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
        )
        self._log = folder / f"{name}.log"
        self._answer()

    def train(self, num_steps: int) -> dict[str, Any]:
        """Make some steps; return what they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"benchmarks/training_cpu.py: a process ended:\n{self._log.read_text()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare(rounds: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Say what the rounds show.

    Args:
        rounds: What each peer told of each of its turns.

    Returns:
        Lines for people.
    """
    titles = f"{'':<18}{'useful tokens/s':>17}{'by processor':>15}{'steps/s':>10}"
    lines = [f"{titles}{'of plain':>11}{'processor':>11}{'of targets':>12}{'processor':>11}"]

    def speeds(name: str, clock: str) -> npt.NDArray[np.float64]:
        return np.array([turn["tokens"] / turn[clock] for turn in rounds[name]])

    for name, words in PEERS.items():
        steps_per_s = np.median([len(turn["losses"]) / turn["wall_s"] for turn in rounds[name]])
        row = f"{words:<18}{np.median(speeds(name, 'wall_s')):>17,.0f}{np.median(speeds(name, 'cpu_s')):>15,.0f}"
        row += f"{steps_per_s:>10.2f}"
        for peer, width in (("plain", 11), ("plain-targets", 12)):
            for clock, wide in (("wall_s", width), ("cpu_s", 11)):
                row += f"{np.median(speeds(name, clock) / speeds(peer, clock)):>{wide}.3f}"
        lines.append(row)
    lines += ["", f"{'share of a step':<18}{'forward':>10}{'backward':>10}{'optimizer':>11}{'outside':>10}"]
    for name in ("primus", "packed"):
        parts = ("forward", "backward", "optimizer")
        shares = np.array([[turn["parts"][part] / turn["wall_s"] for part in parts] for turn in rounds[name]])
        medians = [*np.median(shares, axis=0), np.median(1 - shares.sum(axis=1))]
        widths = (10, 10, 11, 10)
        cells = "".join(f"{f'{share:.1%}':>{width}}" for share, width in zip(medians, widths, strict=True))
        lines.append(f"{PEERS[name]:<18}{cells}")
    return lines


def loss_difference(rounds: dict[str, list[dict[str, Any]]]) -> float:
    """The largest relative difference between the losses of the peers that train the same batches."""
    names = ("plain", "plain-targets", "primus")
    losses = [np.concatenate([turn["losses"] for turn in rounds[name]]) for name in names]
    return float(max(np.abs(other / losses[0] - 1).max() for other in losses[1:]))


def main() -> None:
    """Let the peers take turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each process")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--conversations", type=int, default=4000)
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer in ("plain", "plain-targets"):
        run_plain(options.folder, num_conversations=options.conversations, targets_only=options.peer == "plain-targets")
        return
    if options.peer:
        run_primus(options.folder, num_conversations=options.conversations, packed=options.peer == "packed")
        return
    with tempfile.TemporaryDirectory() as temporary:
        make_weights(Path(temporary) / WEIGHTS)
        peers = {
            name: Peer(name, folder=Path(temporary), threads=options.threads, num_conversations=options.conversations)
            for name in PEERS
        }
        # The first steps fill caches.
        warm_up = {name: peer.train(2) for name, peer in peers.items()}
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
        for number in range(options.rounds):
            names = list(peers) if number % 2 == 0 else list(reversed(peers))
            for name in names:
                rounds[name].append(peers[name].train(options.steps))
        for peer in peers.values():
            peer.end()
    difference = loss_difference({name: [warm_up[name], *turns] for name, turns in rounds.items()})
    print(f"{options.threads} threads of {os.cpu_count()} cores, {options.rounds} rounds of {options.steps} steps\n")
    print("\n".join(compare(rounds)))
    num_steps = 2 + options.rounds * options.steps
    print(f"\nlosses of plain and primus over {num_steps} steps differ by {difference:.1e} at most (relative)")
    if options.json is not None:
        options.json.write_text(json.dumps({"loss_difference": difference, "rounds": rounds}))
    if difference > TOLERANCE:
        sys.exit(f"benchmarks/training_cpu.py: the losses differ by more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
