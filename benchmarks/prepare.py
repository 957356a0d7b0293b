# SPDX-License-Identifier: Apache-2.0
"""`primus data prepare` next to TRL's tokenization and bare tokenizers, on the same file in one run: MB/s.

    python benchmarks/prepare.py [--file FILE.jsonl] [--tokenizer FILE] [--format openai] [--processes 2] [--no-trl]
    python benchmarks/prepare.py --memory docs/images/prepare_memory.png

What is timed, always in MB of the JSONL file:

- `primus data prepare` and `primus data verify`: whole commands, from the file on disk to a checked data set on disk,
  starts of processes included;
- TRL: `SFTTrainer._prepare_dataset` with `assistant_only_loss` on a loaded data set, in 1 process and in several;
- bare tokenizers: the rendered texts, in memory, to ids, with all cores and nothing else: no reading, no masks.

Then everything is prepared again with the reference, `tokenizers` alone, and every file of the two data sets compared
byte for byte. `--memory` prepares files of 10 MB to 2 GB instead, and draws the memory of all processes together.

Without --file the conversations are made of those of examples/data. Needs `pip install 'trl==1.16.0' datasets
accelerate` beside the project, unless --no-trl.
"""

import argparse
import filecmp
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

BENCHMARKS = Path(__file__).resolve().parent
SEQ_LENGTH = "131072"
TEMPLATES = {"openai": "qwen2_5_training", "llama3": "llama3_training"}
BARE = ("encode_batch_fast", "fastokens", "fastokens_flat")
_TEXTS_PER_CALL = 1000
_POLL_S = 0.05


def measure_bare(file: Path, tokenizer: str, form: str, *, engine: str) -> None:
    """Print the seconds that an engine takes for all texts of a file.

    Args:
        file: The JSONL file.
        tokenizer: A `tokenizer.json`.
        form: The conversation format.
        engine: One of `BARE`.
    """
    from primus.chat.conversations import SourceOptions, read_conversations  # noqa: PLC0415
    from primus.sft.formatters import create_formatter  # noqa: PLC0415

    formatter = create_formatter(form)
    readings = read_conversations([file], SourceOptions())
    texts = [formatter.render(c).text for reading in readings for c in reading.conversations]
    if engine == "encode_batch_fast":
        from tokenizers import Tokenizer  # noqa: PLC0415

        encode = Tokenizer.from_file(tokenizer).encode_batch_fast
    else:
        import fastokens  # noqa: PLC0415

        fast = fastokens.Tokenizer.from_json_str(Path(tokenizer).read_text(encoding="utf-8"))
        encode = fast.encode_batch if engine == "fastokens" else fast.encode_batch_flat
    encode(texts[:100], add_special_tokens=False)
    started_s = time.perf_counter()
    for first in range(0, len(texts), _TEXTS_PER_CALL):
        encode(texts[first : first + _TEXTS_PER_CALL], add_special_tokens=False)
    print(json.dumps({"duration_s": time.perf_counter() - started_s}))


def _run(words: list[str], **environment: str) -> tuple[float, str]:
    started_s = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        [sys.executable, *words], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    duration_s = time.perf_counter() - started_s
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return duration_s, done.stdout


def _prepare_words(file: Path, options: argparse.Namespace, out: Path) -> list[str]:
    words = ["-m", "primus", "data", "prepare", str(file), "--tokenizer", options.tokenizer, "--out", str(out)]
    return [*words, "--format", options.format, "--seq-length", SEQ_LENGTH, "--workers", str(options.processes)]


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Time everything and print a table.

    Args:
        options: The arguments.
        folder: For files that are made on the way.
    """
    file = options.file or folder / "conversations.jsonl"
    if options.file is None:
        _make_file(file, num_rows=options.rows)
    num_mb = file.stat().st_size / 1e6
    print(f"{num_mb:.1f} MB, {file.name}, {options.tokenizer}, {options.format}, {options.processes} processes")
    seconds: dict[str, float] = {}
    out = folder / "fast"
    seconds["primus data prepare"], _ = _run(_prepare_words(file, options, out))
    verify_s, _ = _run(["-m", "primus", "data", "verify", str(out)])
    seconds["primus data prepare, then verify"] = seconds["primus data prepare"] + verify_s
    for engine in BARE:
        words = [__file__, "--file", str(file), "--tokenizer", options.tokenizer, "--format", options.format]
        _, said = _run([*words, "--bare", engine], RAYON_NUM_THREADS=str(options.processes))
        seconds[f"bare {engine}"] = json.loads(said.splitlines()[-1])["duration_s"]
    for processes in sorted({1, options.processes}) if options.trl else ():
        words = [str(BENCHMARKS / "check_speed.py"), "--file", str(file), "--tokenizer", options.tokenizer]
        words += ["--trl-template", TEMPLATES[options.format], "--trl-processes", str(processes)]
        environment = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        _, said = _run(words, **environment)
        seconds[f"TRL, {processes} process{'es' * (processes > 1)}"] = json.loads(said.splitlines()[-1])["duration_s"]
    ours = seconds["primus data prepare"]
    for name, duration_s in seconds.items():
        ratio = duration_s / ours
        print(
            f"  {name:<34} {duration_s:8.1f} s {num_mb / duration_s:8.2f} MB/s   primus is {ratio:5.2f} times as fast"
        )
    if options.identity:
        _run(_prepare_words(file, options, folder / "reference"), PRIMUS_FAST_TOKENIZER="0")
        differing = _differing(out, folder / "reference")
        print(f"  files that differ from those of the reference: {', '.join(differing) or 'none'}")


def _make_file(path: Path, *, num_rows: int) -> None:
    make_file = runpy.run_path(str(BENCHMARKS / "check_speed.py"))["make_file"]
    make_file(path, num_rows=num_rows)


def _differing(first: Path, second: Path) -> list[str]:
    names = {str(path.relative_to(root)) for root in (first, second) for path in root.rglob("*") if path.is_file()}
    _, differing, missing = filecmp.cmpfiles(first, second, sorted(names), shallow=False)
    return differing + missing


def measure_memory(options: argparse.Namespace, folder: Path) -> None:
    """Prepare files of growing size, print the peak of memory for each, and draw it.

    Args:
        options: The arguments.
        folder: For the files.
    """
    piece = folder / "piece.jsonl"
    if options.file is None:
        _make_file(piece, num_rows=25_000)
    else:
        shutil.copyfile(options.file, piece)
    content = piece.read_bytes()[: 10 << 20].rpartition(b"\n")[0] + b"\n"
    points: list[tuple[float, float]] = []
    for num_mb in (10, 50, 200, 500, 1000, 2000):
        file = folder / "grown.jsonl"
        with file.open("wb") as grown:
            for _ in range(num_mb // 10):
                grown.write(content)
        peak = _peak_of(_prepare_words(file, options, folder / "out"))
        points.append((file.stat().st_size / 1e6, peak / 2**20))
        print(f"  {points[-1][0]:7.0f} MB of JSONL   {points[-1][1]:7.0f} MiB at most")
        shutil.rmtree(folder / "out")
    _draw(points, path=options.memory)
    print(f"picture: {options.memory}")


def _draw(points: list[tuple[float, float]], *, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), color="#4477aa", marker="o", linewidth=1.8)
    axes.set(title="primus data prepare", xlabel="JSONL (MB)", ylabel="memory of all processes, at most (MiB)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _peak_of(words: list[str]) -> int:
    """The most memory that a command and its processes have together: pages they share are counted once."""
    peak = 0
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as command:  # noqa: S603
        process = psutil.Process(command.pid)
        while command.poll() is None:
            peak = max(peak, sum(map(_proportional, [process, *_children(process)])))
            time.sleep(_POLL_S)
        if command.returncode:
            assert command.stderr is not None
            sys.exit(command.stderr.read().decode()[-2000:])
    return peak


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0  # it has ended


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument(
        "--tokenizer", default=str(BENCHMARKS.parent / "examples/data/demo-tokenizer/tokenizer.json"), metavar="FILE"
    )
    parser.add_argument("--format", default="openai", choices=tuple(TEMPLATES))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--trl", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--identity", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory", type=Path, metavar="PNG")
    parser.add_argument("--bare", choices=BARE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        measure_bare(options.file, options.tokenizer, options.format, engine=options.bare)
        return
    folder = Path(tempfile.mkdtemp())
    try:
        if options.memory:
            measure_memory(options, folder)
        else:
            compare(options, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
