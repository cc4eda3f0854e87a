"""How fast the program is, against the way of the documents, a careful script, and this machine's arithmetic.

python -m benchmarks.throughput                     the default models' architectures, with seeded random weights
python -m benchmarks.throughput --models micro      the bundled models: the pipeline's own overhead
python -m benchmarks.throughput --device cuda       or mps; what the program takes by itself is the default
python -m benchmarks.throughput --json              for machines

Everything is timed in one call, one after the other, each in a process of its own; a machine that others use gives
ratios that hold better than its seconds. Bounds are the FLOPs of Meta's and OpenAI's own modules, counted by torch, at
the highest rate of a square matrix product that this machine reached in the same call. On a GPU the stages of the
models come from a second run, in which each waits for the device.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from config_utilities import MICRO_CLIP, MICRO_SAM2, PROGRAM_DIR, read_config
from device_utilities import DTYPES, count_cores, has_amx, select_device, select_precision
from prompt_utilities import get_prompts
from scenes import make_scene

SIZES_WH = {"full": ((640, 480), (1280, 853), (1800, 1200), (4000, 3000)), "micro": ((640, 480),)}
DISTINCT = 16  # scenes per size; more photos are copies of them under other names
SEED = 60_000_000

_WARM_UP = 64  # photos
_MANY = 100  # photos, from which on a steady state is told apart

_SLOW = 1.0  # seconds for a matrix product, after which no larger one is tried

_MODEL_STAGES = ("encoder", "encoder again, in fp32", "decoder", "CLIP")
_OTHER_STAGES = ("decode", "SAM 2 pixels", "mask", "CLIP pixels", "PNG", "thumbnails")
_BOUNDED = {"encoder": "SAM 2's image encoder", "CLIP": "CLIP's image tower"}


def main() -> None:
    """Measures and prints tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("full", "micro"), default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--photos", type=int, help="for the program (default: by models and device)")
    parser.add_argument("--scripts", type=int, help="photos for the two scripts (default: 4, or 40 with micro models)")
    parser.add_argument("--sizes", default=None, metavar="WxH,...", help="of the photos (default: by models)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="weights and photos stay here for the next run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    micro, device = arguments.models == "micro", select_device(arguments.device, purpose="SAM 2")
    photos = arguments.photos or (400 if micro else 1024 if device.startswith("cuda") else 8)
    scripts = min(photos, arguments.scripts or (40 if micro else 4))
    sizes_wh = SIZES_WH[arguments.models]
    if arguments.sizes:
        sizes_wh = tuple(tuple(map(int, size.split("x"))) for size in arguments.sizes.split(","))

    with tempfile.TemporaryDirectory(prefix="sam2vit-benchmark-") as folder:
        root = Path(folder)
        kept = arguments.keep or root
        os.environ["SAM2VIT_CHECKPOINTS"] = str(kept / "checkpoints")
        sam_path, clip_path = apart(save_models, kept / "checkpoints", micro=micro)
        paths = save_photos(root / "photos", sizes_wh, photos, kept / "scenes")
        result: dict[str, Any] = describe_machine(device) | {"models": arguments.models, "photos": photos}
        result["peak"] = apart(matmul_peaks, device)
        result["flops"] = apart(count_flops, sam_path, clip_path)
        result["scripts"] = apart(run_scripts, sam_path, clip_path, device, paths[:scripts], root / "scripts")
        flags = ["-i", str(root / "photos"), "-o", str(root / "output"), "--quiet"]
        flags += ["--micro"] if micro else ["-s", str(sam_path), "-m", str(clip_path)]
        flags += [] if arguments.device == "auto" else ["--device", device, "--clip-device", device]
        flags += ["--precision", arguments.precision, "--compile", arguments.compile]
        flags += ["--batch-size", str(arguments.batch_size)]
        shutil.rmtree(kept / "checkpoints" / "text_features", ignore_errors=True)
        cold = apart(run_program, [*flags, "--limit", "1"], device)
        program = apart(run_program, [*flags, "--overwrite"], device)
        if device != "cpu":  # a device's stages can be told apart only where each waits for it
            measured = apart(
                run_program, [*flags, "--overwrite", "--limit", str(max(1, photos // 4))], device, in_turn=True
            )
            alone = {name: measured["stages"].get(name, 0.0) for name in (*_MODEL_STAGES, "SAM 2 pixels")}
            program["stages"] |= alone
        result["program"] = program | {
            "prompts_cold": cold["stages"]["prompts"],
            "memory": max(cold["memory"], program["memory"]),
        }
        result["precision"] = {
            "encoder": select_precision(arguments.precision, device, 256 if micro else 1024),
            "CLIP": select_precision(arguments.precision, select_device(arguments.device, purpose="CLIP")),
        }
        if micro:
            result["start"] = time_start(root / "photos", root / "start")
    result |= derive(result)
    if arguments.json:
        json.dump(result, sys.stdout, indent=1)
    else:
        show(result)


def apart(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Returns what a function returns in a fresh process, whose memory and warmth are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_ignore_warnings) as pool:
        return pool.submit(function, *arguments, **options).result()


def _ignore_warnings() -> None:
    warnings.simplefilter("ignore")  # of torch.jit's and pkg_resources' end, at every start


def describe_machine(device: str) -> dict[str, Any]:
    """Returns what a reader needs to know of this machine."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": count_cores(),
        "amx": has_amx(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save_models(folder: Path, *, micro: bool) -> tuple[Path, Path]:
    """Returns the checkpoints of both models: the bundled ones, or the default architectures with random weights."""
    import torch
    from clip.model import CLIP, convert_weights

    from sam_utilities import build_sam2, find_config

    if micro:
        bundled = PROGRAM_DIR / "checkpoints"
        return bundled / f"{MICRO_SAM2}.pt", bundled / f"{MICRO_CLIP}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sam_path, clip_path = folder / "sam2.1_hiera_large.pt", folder / "ViT-L-14-336px.pt"
    if clip_path.exists():  # written last
        return sam_path, clip_path
    torch.save({"model": build_sam2(find_config("sam2.1_hiera_l")).state_dict()}, sam_path)
    model = CLIP(768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12)
    model.logit_scale.data.fill_(4.6052)
    convert_weights(model)  # half precision, as OpenAI's file
    torch.save(model.state_dict(), clip_path)
    return sam_path, clip_path


def save_photos(folder: Path, sizes_wh: Sequence[tuple[int, int]], count: int, scenes: Path) -> list[Path]:
    """Returns JPEGs of scenes, their sizes in turn; the distinct ones are made in another folder and stay there."""
    for path in (folder, scenes):
        path.mkdir(parents=True, exist_ok=True)
    distinct = [
        (scenes / f"{index:03}-{width}x{height}.jpg", SEED + index, (width, height))
        for index, (width, height) in enumerate(list(sizes_wh) * DISTINCT)
    ][:count]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_save_scene, *zip(*distinct, strict=True)))
    paths = [folder / f"{index:06}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        shutil.copyfile(distinct[index % len(distinct)][0], path)
    return paths


def _save_scene(path: Path, seed: int, size_wh: tuple[int, int]) -> None:
    if not path.exists():
        Image.fromarray(make_scene(seed, size_wh, subject="any").image).save(path, quality=90)


def matmul_peaks(device: str) -> dict[str, float]:
    """Returns the highest FLOP/s of square matrix products, by precision."""
    import torch

    peaks = {}
    for precision in DTYPES:
        rates, seconds = [], 0.0
        for side in (8192, 16384) if device.startswith("cuda") else (512, 1024, 2048, 3072, 4096):
            if seconds > _SLOW:  # bf16 that is emulated would take an hour for the next, and reach no more
                break
            one, other = (torch.randn(side, side, device=device).to(getattr(torch, DTYPES[precision])) for _ in "ab")
            one @ other
            for _ in range(4):
                _wait(device)
                began = time.perf_counter()
                one @ other
                _wait(device)
                seconds = time.perf_counter() - began
                rates.append(2 * side**3 / seconds)
        peaks[precision] = max(rates)
    return peaks


def count_flops(sam_path: Path, clip_path: Path) -> dict[str, int]:
    """Returns the FLOPs of a photo in each image encoder, as their authors wrote them."""
    import torch
    from clip.model import build_model
    from torch.utils.flop_counter import FlopCounterMode

    from sam_utilities import build_sam2, config_name, find_config

    sam = build_sam2(find_config(config_name(str(sam_path))))
    clip_model = build_model(dict(torch.load(clip_path, map_location="cpu", weights_only=True))).float()
    counts = {}
    for stage, module, side in (
        ("encoder", sam.image_encoder, sam.image_size),
        ("CLIP", clip_model.visual, clip_model.visual.input_resolution),
    ):
        counter = FlopCounterMode(display=False)
        with counter:
            module.to("meta")(torch.zeros(1, 3, side, side, device="meta"))
        counts[stage] = counter.get_total_flops()
    return counts


def run_scripts(sam_path: Path, clip_path: Path, device: str, paths: Sequence[Path], output: Path) -> dict[str, Any]:
    """Returns the seconds a photo of both scripts, the careful one's by stage, and its peak memory."""
    from benchmarks.sequential import Script

    config = read_config(PROGRAM_DIR / "config.json")
    prompts = get_prompts(config["prefixes"], config["items"], config["postfixes"])
    output.mkdir()
    script = Script(sam_path, clip_path, device)
    features = script.random_text_features(len(prompts))
    script.careful(paths[:1], output, features)  # warm
    script.seconds.clear()
    careful = script.careful(paths, output, features) / len(paths)
    return {
        "careful": careful,
        "documents": careful + script.sample_prompts(prompts),
        "stages": {name: seconds / len(paths) for name, seconds in script.seconds.items()},
        "photos": len(paths),
        "memory": _peak_memory(),
    }


def run_program(flags: Sequence[str], device: str, *, in_turn: bool = False) -> dict[str, Any]:
    """Returns the seconds a photo of the program as it stands, by stage, and its peak memory.

    Args:
        flags: Of the program.
        device: As torch names it.
        in_turn: Let every stage wait for the device, so that each has its own time; the whole is slower then.
    """
    import torch

    import main as program
    from pipeline_utilities import measure_devices, stage_seconds

    if in_turn:
        program.main([*flags, "--limit", str(_WARM_UP)])  # kernels are chosen and compiled at first use
        stage_seconds.clear()
        measure_devices(torch.cuda.synchronize if device.startswith("cuda") else torch.mps.synchronize)
    code = program.main(flags)
    output = Path(flags[flags.index("-o") + 1])
    written = len((output / "metadata.jsonl").read_text().splitlines())
    if not written:
        raise SystemExit(f"the program wrote nothing and ended with {code}")
    once = ("prompts",)
    return {
        "photos": written,
        "steady": _steady_seconds(output),
        "stages": {name: seconds / (1 if name in once else written) for name, seconds in stage_seconds.items()},
        "memory": _peak_memory(),
        "gpu_memory": torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None,
    }


def _steady_seconds(output: Path) -> float | None:
    """Returns the seconds a photo from the first quarter on, when every thread and kernel is warm; None for a few."""
    times = sorted(path.stat().st_mtime for path in output.glob("*/*.png"))
    first = len(times) // 4
    return (times[-1] - times[first]) / (len(times) - 1 - first) if len(times) >= _MANY else None


def time_start(photos: Path, output: Path) -> dict[str, float]:
    """Returns the seconds of `--help`, the least of five, and those up to the first photo in place, of three."""
    command = [sys.executable, str(PROGRAM_DIR / "main.py")]
    helps, firsts = [], []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([*command, "--help"], check=True, capture_output=True)
        helps.append(time.perf_counter() - began)
    for _ in range(3):
        shutil.rmtree(output, ignore_errors=True)
        began = time.perf_counter()
        flags = ["--micro", "-i", str(photos), "-o", str(output), "--quiet"]
        with subprocess.Popen([*command, *flags], stderr=subprocess.DEVNULL) as process:
            while not next(output.glob("*/*.png"), None):
                if process.poll() is not None:
                    raise subprocess.CalledProcessError(process.returncode, process.args)
                time.sleep(0.01)
            firsts.append(time.perf_counter() - began)
            process.terminate()
    return {"help": min(helps), "first_photo": min(firsts)}


def derive(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the ratios."""
    stages = result["program"]["stages"]
    bounds = {name: flops / result["peak"][result["precision"][name]] for name, flops in result["flops"].items()}
    seconds = stages["all photos"]
    models = sum(stages.get(name, 0.0) for name in _MODEL_STAGES)
    bound = sum(bounds.values())
    return {
        "ratios": {
            "documents / program": result["scripts"]["documents"] / seconds,
            "careful script / program": result["scripts"]["careful"] / seconds,
            "program / its models": seconds / models,
            **{f"{name} / its bound": stages[stage] / bounds[stage] for stage, name in _BOUNDED.items()},
            "documents / both encoders at the peak": result["scripts"]["documents"] / bound,
            "careful script / both encoders at the peak": result["scripts"]["careful"] / bound,
        },
        "waiting": seconds - models,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    console = Console()
    amx = ", AMX" if result["amx"] else ""
    console.print(
        f"{result['processor']}, {result['cores']} cores{amx}; device {result['device']}; torch {result['torch']}; "
        f"{result['models']} models, SAM 2 in {result['precision']['encoder']}, CLIP in {result['precision']['CLIP']}",
        highlight=False,
    )
    peaks = ", ".join(f"{name} {peak / 1e12:.2f} TFLOP/s" for name, peak in result["peak"].items())
    console.print(f"matrix product's peak: {peaks}", highlight=False)
    program, scripts = result["program"], result["scripts"]
    seconds = program["stages"]["all photos"]

    table = Table("a photo", "seconds", "photos/s", "slower than the program", "peak GB")
    table.add_row("documents' way (prompts sampled, scaled)", *_row(scripts["documents"], seconds), "")
    table.add_row("careful script", *_row(scripts["careful"], seconds), f"{scripts['memory']:.2f}")
    table.add_row("this program", *_row(seconds, seconds), f"{program['memory']:.2f}")
    if program["steady"]:
        table.add_row("this program, from the first quarter on", *_row(program["steady"], seconds), "")
    console.print(table)

    table = Table("stage", "ms a photo", "where", "TFLOP/s", "of the peak")
    for name in _MODEL_STAGES:
        peak = result["peak"][result["precision"].get(name, "fp32")]
        rate = result["flops"][name] / program["stages"][name] if name in _BOUNDED else None
        figures = (f"{rate / 1e12:.2f}", f"{rate / peak:.0%}") if rate else ("", "")
        table.add_row(name, f"{1e3 * program['stages'].get(name, 0.0):.1f}", "model", *figures)
    for name in _OTHER_STAGES:
        table.add_row(name, f"{1e3 * program['stages'].get(name, 0.0):.1f}", "threads beside it", "", "")
    table.add_row("models waiting", f"{1e3 * result['waiting']:.1f}", "", "", "")
    console.print(table)

    for name, ratio in result["ratios"].items():
        console.print(f"{name}: {ratio:.2f}", highlight=False)
    if program["gpu_memory"]:
        console.print(f"GPU memory: {program['gpu_memory']:.1f} GB at most", highlight=False)
    console.print(
        f"prompts: {program['prompts_cold']:.2f} s cold, {program['stages']['prompts']:.3f} s from the cache",
        highlight=False,
    )
    if "start" in result:
        start = result["start"]
        console.print(f"--help {start['help']:.2f} s; first photo after {start['first_photo']:.1f} s", highlight=False)


def _row(seconds: float, program_seconds: float) -> tuple[str, str, str]:
    return f"{seconds:.3f}", f"{1 / seconds:.2f}", f"{seconds / program_seconds:.2f}"


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _peak_memory() -> float:
    """Returns this process's largest resident set in GB so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    main()
