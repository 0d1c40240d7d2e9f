"""Compares full-size models of every family, with seeded random weights, with the reference packages.

For each configuration, over clips from one sample to 30 s:

- codes: they may differ from the reference's only where its own choice hangs on less than MARGIN of
  the latent's norm; codes after such a one, in the same frames, code another residual and are not
  compared;
- audio decoded from the reference's codes, with several numbers of codebooks: within AUDIO of full
  scale, or of its peak where that is more;
- scales, where a family has them: within a share of SCALE;
- lengths: equal.

A model that is published in several kinds of checkpoint is read from each and must give the same bits.
The table between the markers in docs/agreement.md gets a row for each configuration that was run, and
the exit code says whether all of it holds.

Usage: python tests/reference/full.py [PREFIX ...], such as `encodec` or `dac_44khz`; all when there is none.
A family is a module `<family>_full.py` with a list SUBJECTS, see `Subject`.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "agreement.md"
BEGIN, END = "<!-- full.py: begin -->", "<!-- full.py: end -->"
MARGIN = 1e-5
AUDIO = 1e-4
SCALE = 1e-5


@dataclass
class Trace:
    """What the reference makes of a clip: per codebook its codes and their margins, and the scales."""

    codes: list[torch.Tensor]
    margins: list[torch.Tensor]
    scales: torch.Tensor | None = None


class Subject:
    """A configuration with its reference; a family's module subclasses this."""

    name: str  # as the model's card, or near it
    title: str  # for the table
    lengths: list[int]  # clips, in samples, the longest last; codes in frames where it only decodes
    encodes = True

    def make(self) -> None:
        """Builds the reference, with all its weights."""
        raise NotImplementedError

    def signal(self, n_samples: int) -> torch.Tensor:
        """[channels, n_samples]; [n_codebooks, n_frames] of codes where it only decodes."""
        raise NotImplementedError

    def checkpoints(self, folder: Path) -> list[Path]:
        """Writes the model, in every kind of checkpoint that it has."""
        raise NotImplementedError

    def trace(self, clip: torch.Tensor) -> Trace:
        raise NotImplementedError

    def decode(self, trace: Trace, n_codebooks: int) -> torch.Tensor | None:
        """[channels, n_samples]; None where the reference fails."""
        raise NotImplementedError

    def stride(self, codebook_idx: int) -> int:
        """Frames per code."""
        return 1

    def kept(self, n_samples: int, n_codebooks: int) -> list[int]:
        """The numbers of codebooks that are decoded."""
        return sorted({1, n_codebooks})

    def check(self, clip: torch.Tensor, trace: Trace) -> list[str]:
        """Failures of anything else that must hold, such as that two references agree."""
        return []


@torch.no_grad()
def main() -> None:
    prefixes = sys.argv[1:] or [""]
    modules = sorted(path.stem for path in Path(__file__).parent.glob("*_full.py"))
    subjects = [subject for module in modules for subject in importlib.import_module(module).SUBJECTS]
    chosen = [subject for subject in subjects if any(subject.name.startswith(prefix) for prefix in prefixes)]
    if not chosen:
        sys.exit("nothing has such a name; there are: " + ", ".join(subject.name for subject in subjects))
    build = ["cargo", "build", "--release", "--workspace", "--example", "recode", "--message-format=short"]
    subprocess.run(build, cwd=ROOT, check=True)
    failures = []
    for subject in chosen:
        start = time.monotonic()
        row, failed = compare(subject)
        failures += [f"{subject.name}, {failure}" for failure in failed]
        print(f"  {time.monotonic() - start:.0f} s, {'FAILED' if failed else 'all holds'}", flush=True)
        if not failed:
            write_row([each.title for each in subjects], subject.title, row)
    for failure in failures:
        print("FAILED", failure)
    sys.exit(bool(failures))


def compare(subject: Subject) -> tuple[str, list[str]]:
    """The row of the table, and what does not hold."""
    subject.make()
    signal = subject.signal(subject.lengths[-1])
    failures, seen = [], Seen()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tensors, traces = {}, {}
        for n in subject.lengths:
            trace = traces[n] = subject.trace(signal[:, :n])
            failures += [f"{n} samples: {failure}" for failure in subject.check(signal[:, :n], trace)]
            if subject.encodes:
                tensors[f"{n}.audio"] = signal[:, :n].clone()
            tensors[f"{n}.kept"] = torch.tensor(subject.kept(n, len(trace.codes)), dtype=torch.uint32)
            for codebook_idx, row in enumerate(trace.codes):
                tensors[f"{n}.codes.{codebook_idx}"] = row.to(torch.uint32)
            if trace.scales is not None:
                tensors[f"{n}.scales"] = trace.scales
        save_file(tensors, folder / "clips.safetensors")
        first, *others = subject.checkpoints(folder)
        print(f"\n{subject.name}: {subject.title}")
        ours = recode(first, folder)
        print("  samples  codes equal             smallest margin  of the unequal  audio apart (of peak), codebooks")
        for n in subject.lengths:
            failures += report(subject, n, traces[n], ours, seen)
        for path in others:
            again = recode(path, folder)
            same = ours.keys() == again.keys() and all(torch.equal(ours[key], again[key]) for key in ours)
            print(f"  {path.relative_to(folder)}: {'the same bits' if same else 'DIFFERENT'}")
            if not same:
                failures.append(f"other bits from {path.name}")
    unit = "samples" if subject.encodes else "frames"
    lengths = f"{len(subject.lengths)}, from {subject.lengths[0]} to {subject.lengths[-1]:,} {unit}"
    codes = "it only decodes | " if not subject.encodes else f"{seen.n_unequal:,} of {seen.n_compared:,} | {seen.loosest:.0e}" if seen.n_unequal else f"0 of {seen.n_compared:,} | "
    return f"| {subject.title} | {lengths} | {codes} | {seen.apart:.0e} at a peak of {seen.peak:.1f} |", failures


@dataclass
class Seen:
    """The figures of a configuration."""

    n_compared: int = 0
    n_unequal: int = 0
    loosest: float = 0.0
    apart: float = 0.0
    peak: float = 0.0


def recode(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    command = ["cargo", "metadata", "--format-version=1", "--no-deps"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    binary = Path(metadata["target_directory"]) / "release" / "examples" / "recode"
    subprocess.run([binary, model, folder / "clips.safetensors", folder / "out.safetensors"], check=True)
    return load_file(folder / "out.safetensors")


def report(subject: Subject, n: int, trace: Trace, ours: dict[str, torch.Tensor], seen: Seen) -> list[str]:
    failures = []
    n_codebooks = len(trace.codes)
    our_codes = [ours.get(f"{n}.codes.{k}", torch.empty(0)).long() for k in range(n_codebooks)]
    if not subject.encodes:
        our_codes = trace.codes
    if f"{n}.codes.{n_codebooks}" in ours or [len(row) for row in our_codes] != [len(row) for row in trace.codes]:
        return [f"{n} samples: {[len(row) for row in our_codes]} codes against {[len(row) for row in trace.codes]}"]
    same = torch.ones(len(trace.codes[0]) * subject.stride(0), dtype=torch.bool)
    compared, loosest, tightest, n_unequal = 0, 0.0, 1.0, 0
    for codebook_idx, (our, their, margins) in enumerate(zip(our_codes, trace.codes, trace.margins)):
        stride = subject.stride(codebook_idx)
        valid = same.reshape(-1, stride).all(1)
        equal = our == their
        compared += valid.sum().item()
        n_unequal += (valid & ~equal).sum().item()
        loosest = max([loosest, *margins[valid & ~equal].tolist()])
        tightest = min([tightest, *margins[valid & equal].tolist()])
        same = (valid & equal).repeat_interleave(stride)
    if loosest > MARGIN:
        failures.append(f"{n} samples: unequal code with margin {loosest:.1e}")
    if trace.scales is not None and (ours[f"{n}.scales"] / trace.scales - 1).abs().max() > SCALE:
        failures.append(f"{n} samples: scales {ours[f'{n}.scales']} against {trace.scales}")
    worst = None
    for n_kept in subject.kept(n, n_codebooks):
        decoded, reference = ours[f"{n}.decoded.{n_kept}"], subject.decode(trace, n_kept)
        if reference is None:
            continue
        if decoded.shape != reference.shape:
            failures.append(f"{n} samples: {tuple(decoded.shape)} against {tuple(reference.shape)} decoded")
            continue
        difference, peak = (decoded - reference).abs().max().item(), reference.abs().max().item()
        worst = max(worst or (), (difference, peak, n_kept))
        if not difference <= AUDIO * max(1.0, peak):
            failures.append(f"{n} samples, {n_kept} codebooks: audio {difference:.1e} apart")
    audio = f"{worst[0]:.0e} ({worst[1]:.1f}), {worst[2]}" if worst else "the reference fails to decode"
    print(f"  {n:7}  {f'{compared - n_unequal} of {compared}':22}  {tightest:15.1e}  {loosest:14.1e}  {audio}", flush=True)
    seen.n_compared += compared
    seen.n_unequal += n_unequal
    seen.loosest = max(seen.loosest, loosest)
    if worst and worst[0] >= seen.apart:
        seen.apart, seen.peak = worst[0], worst[1]
    return failures


def write_row(titles: list[str], title: str, row: str) -> None:
    """Puts the row where it belongs, in place of the one that was there."""
    before, rest = DOCUMENT.read_text().split(BEGIN + "\n")
    table, after = rest.split(END)
    head, rows = table.splitlines()[:2], {line.split(" | ")[0][2:]: line for line in table.splitlines()[2:]}
    rows[title] = row
    # Those whose reference is not at hand stay, at the end.
    order = [*titles, *(each for each in rows if each not in titles)]
    lines = head + [rows[each] for each in order if each in rows]
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
