# SPDX-License-Identifier: Apache-2.0
"""`primus data check` next to TRL's tokenization of the same file, in one run: rows per second.

    python benchmarks/check_speed.py [--file FILE.jsonl] [--tokenizer FILE] [--rows 20000] [--processes 2]

TRL is asked for what its trainer does before training with `assistant_only_loss`: `SFTTrainer._prepare_dataset`, called
on a loaded data set, with the package's own training template of Qwen2.5, in 1 process and in several. The time of
`primus data check` is that of the whole command: start, tokenizer, reading, parsing, rendering, tokenizing, all proofs
and the report. Without --file the conversations are made of the questions and answers of examples/data.

Needs `pip install 'trl==1.16.0' datasets accelerate` beside the project.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
TRL_WORDS = "--trl-processes"


def make_file(path: Path, *, num_rows: int) -> None:
    """Write conversations of one to six exchanges, drawn with a fixed seed from those of examples/data.

    Args:
        path: The file.
        num_rows: Conversations.
    """
    pairs = []
    for source in sorted((ROOT / "examples/data").glob("*.jsonl")):
        for line in source.read_text(encoding="utf-8").splitlines():
            messages = json.loads(line).get("messages", [])
            pairs += [
                (user, answer)
                for user, answer in pairwise(messages)
                if (user["role"], answer["role"]) == ("user", "assistant")
            ]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            messages = [message for _ in range(draw.randint(1, 6)) for message in draw.choice(pairs)]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def prepare_with_trl(file: str, tokenizer: str, *, processes: int, template_name: str) -> None:
    """Print the seconds that TRL takes, and its rows and trained tokens.

    Args:
        file: The JSONL file.
        tokenizer: Its `tokenizer.json`, or the tokenizer's folder.
        processes: `dataset_num_proc`.
        template_name: Name of the package's training template.
    """
    import datasets  # noqa: PLC0415
    import trl  # noqa: PLC0415
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415
    from trl import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    datasets.disable_caching()
    folder = Path(tokenizer)
    if (folder / "tokenizer_config.json").exists():
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    else:
        loaded = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json" if folder.is_dir() else folder))
    template = (Path(trl.__file__).parent / f"chat_templates/{template_name}.jinja").read_text(encoding="utf-8")
    rows = datasets.load_dataset("json", data_files=file, split="train")
    trainer = SimpleNamespace(_tokenizer=loaded, chat_template=template, completion_only_loss=False)
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(),
        dataset_num_proc=processes if processes > 1 else None,
        assistant_only_loss=True,
        max_length=None,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    started_s = time.perf_counter()
    prepared = SFTTrainer._prepare_dataset(  # noqa: SLF001  # what its constructor calls
        trainer, rows, loaded, arguments, packing=False, formatting_func=None, dataset_name="train"
    )
    duration_s = time.perf_counter() - started_s
    sample = prepared.select(range(min(200, len(prepared))))
    trained = sum(label != -100 for row in sample for label in row["labels"])
    print(json.dumps({"duration_s": duration_s, "num_rows": len(prepared), "trained_in_200": trained}))


def _timed(command: list[str], *, environment: dict[str, str], codes: tuple[int, ...] = (0,)) -> tuple[float, str]:
    started_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)  # noqa: S603
    duration_s = time.perf_counter() - started_s
    if done.returncode not in codes:
        sys.exit(done.stderr[-2000:])
    return duration_s, done.stdout


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--tokenizer", default=str(ROOT / "examples/data/demo-tokenizer/tokenizer.json"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(TRL_WORDS, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--trl-template", default="qwen2_5_training", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trl_processes:
        prepare_with_trl(
            str(options.file),
            options.tokenizer,
            processes=options.trl_processes,
            template_name=options.trl_template,
        )
        return
    folder = Path(tempfile.mkdtemp())
    try:
        file = options.file or folder / "conversations.jsonl"
        if options.file is None:
            make_file(file, num_rows=options.rows)
        num_rows, num_mb = sum(1 for _ in file.open("rb")), file.stat().st_size / 1e6
        print(
            f"{num_rows:,} rows, {num_mb:.1f} MB, tokenizer {options.tokenizer}, {len(os.sched_getaffinity(0))} cores"
        )
        environment = {
            **os.environ,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        durations = {}
        for processes in sorted({1, options.processes}):
            words = [sys.executable, __file__, "--file", str(file), "--tokenizer", options.tokenizer]
            _, output = _timed([*words, TRL_WORDS, str(processes)], environment=environment)
            facts = json.loads(output.splitlines()[-1])
            durations[f"TRL, {processes} process{'es' * (processes > 1)}"] = facts["duration_s"]
        words = [sys.executable, "-m", "primus", "data", "check", str(file), "--tokenizer", options.tokenizer]
        report = folder / "report.json"
        duration_s, _ = _timed(
            [*words, "--workers", str(options.processes), "--json", str(report)],
            environment=environment,
            codes=(0, 1),
        )
        durations[f"primus data check, {options.processes} processes"] = duration_s
        failed = {k: v for k, v in json.loads(report.read_text(encoding="utf-8"))["failed"].items() if v}
        for name, seconds in durations.items():
            ratio = seconds / duration_s
            print(
                f"  {name:<34} {seconds:7.1f} s {num_rows / seconds:9,.0f} rows/s"
                f" {num_mb / seconds:7.2f} MB/s {ratio:6.1f}"
            )
        print(f"  rows that fail a check: {failed or 'none'}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
