"""What is done to a loaded artifact so that it predicts fast on one device.

A step stays only if it pays and the goldens still agree.

    CPU    allocator -> channels_last -> freeze -> optimize_for_inference -> planes; passes under way share the cores,
           and batches grow no further than pays
    CUDA   allocator -> channels_last -> freeze -> cuda_graphs -> nvjpeg; passes under way have streams of their own
           (`models.lanes`)

Never saved: an optimised TorchScript module does not load again.
"""

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from models import cores, nvjpeg
from models.artifact import Artifact, OperatorError, deprecated_but_chosen
from models.engine import DTYPES, Engine, Module, Plan, Sharing, check_pixels, golden_difference, last_line, sample
from models.errors import ArtifactError, ImageError
from models.formats import MAX_PIXELS
from models.lanes import Lanes, buckets

NVJPEG_DRIFT = 0.05  # of a probability; on 30 photos it was 0.0015 in the median and 0.042 at most (SqueezeNet)
TYPICAL_BATCH = 8  # what steps are timed with; one image alone takes its time mostly for waking up
TRIAL_SECONDS = 0.05  # of a race, times those that run in it; and at least TRIAL_ROUNDS
TRIAL_ROUNDS = 2
PAYS = 1.03  # a step may take at most this share of the time before it: timing is no surer
LARGER_PAYS = 1.03  # a larger batch must give this many times the images a second
LONGEST_PASS_S = 0.25
DIGITS = 6  # of measured seconds
LEAST_LIMIT = 4  # so few do not wait long for each other, and timing tells no smaller numbers apart
# Fewer threads are enough while they take at most so many times as long: others need cores too. Batches come while the
# cores are busy, and a pass lasts as long as that thread which gets its core last.
MORE_THREADS = {1: 1.1, TYPICAL_BATCH: 1.4}
# glibc's mallopt (malloc.h): blocks up to 32 MiB, its limit, come from the heap, and the heap is kept. Otherwise every
# pass gets its larger activations fresh from the kernel, page by page: 35 % of SimpleCNN's time at 32 images.
MALLOPT = {-3: 32 << 20, -1: 512 << 20, -2: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def prepare(
    artifact: Artifact,
    device: torch.device,
    dtype: str = "fp32",
    max_batch_size: int = 32,
    workers: int = 1,
    plan: Plan | None = None,
    nvjpeg: bool = False,
) -> Engine:
    """Bring a freshly loaded artifact to `device` and `dtype`, replay its goldens, optimise and warm it.

    `workers` are the processes that share the cores. With the `plan` of an engine that is the same in all this, steps
    are proved but not timed again, unless one does not hold for this artifact. With `nvjpeg` ordinary JPEGs are decoded
    on the GPU, where that pays.

    Raises:
        ArtifactError: the goldens are not answered as stored, on this device in this dtype.
    """
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory too belongs to a device
    allow_tf32 = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    for parameter in artifact.module.parameters():
        parameter.requires_grad_(False)
    module = artifact.module.to(device).to(DTYPES[dtype])
    sharing = Sharing(max(1, cores.available() // workers))
    engine = Engine(artifact, device, dtype, max_batch_size, max_batch_size, module, sharing)
    try:
        check_pixels(engine)
        difference = golden_difference(engine)
    except (RuntimeError, OperatorError, ImageError) as error:
        difference = last_line(error)
    if difference:
        raise ArtifactError(artifact.path, f"its goldens' answers on {device} in {dtype}", difference)
    steps = CUDA_STEPS if device.type == "cuda" else CPU_STEPS
    if nvjpeg and device.type == "cuda":
        steps = {**steps, "nvjpeg": use_nvjpeg}
    engine = (plan and follow(engine, plan, steps)) or optimise(engine, steps)
    warm(engine)
    return engine


def keep_memory(engine: Engine) -> Engine:
    """Let the C library keep freed memory for the next pass.

    Raises:
        RuntimeError: this C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all([mallopt(parameter, value) for parameter, value in MALLOPT.items()]):
        raise RuntimeError("the C library has no such settings")
    return engine


def use_channels_last(engine: Engine) -> Engine:
    """Weights in the order in which decoded pixels come."""
    # On a copy: `to` works in place, and a step that is dropped must leave the module as it was.
    return replace(engine, module=deepcopy(engine.module).to(memory_format=torch.channels_last))


def freeze(engine: Engine) -> Engine:
    """Weights become constants; batch normalisation is folded into convolutions."""
    with deprecated_but_chosen():
        return replace(engine, module=torch.jit.freeze(inlined(engine.module)))


def optimize_for_inference(engine: Engine) -> Engine:
    """The artifact's own module frozen, its convolutions oneDNN's, with weights in its own layout.

    A module that is frozen already would be changed in place.
    """
    with deprecated_but_chosen():
        module = torch.jit.optimize_for_inference(inlined(engine.artifact.module))
    return replace(engine, module=module)


def use_planes(engine: Engine) -> Engine:
    """Pixels channel by channel, as weights in oneDNN's own layout like them: up to 7 % of a pass."""
    return replace(engine, planes=True)


def inlined(module: Module) -> Module:
    """The module, its forward calling no other methods.

    Freezing would inline them too, and then free those whose names the traceback of a failing operator reads.
    """
    torch._C._jit_pass_inline(module.graph)  # in place
    return module


def use_graphs(engine: Engine) -> Engine:
    """Streams of their own for passes that overlap, and a captured CUDA graph a bucket."""
    manifest = engine.artifact.manifest
    preprocess = engine.artifact.module.preprocess
    sizes = engine.max_batch_size, manifest.input_size, len(manifest.classes)
    return replace(engine, lanes=Lanes(engine.module, preprocess, engine.device, *sizes))


def use_nvjpeg(engine: Engine) -> Engine:
    """Ordinary JPEGs are decoded on the GPU, where that changes the goldens' probabilities by `NVJPEG_DRIFT` at most.

    Raises:
        RuntimeError: it changes them more, or cannot be had.
    """
    if not engine.lanes:
        raise RuntimeError("needs cuda_graphs")
    candidate, goldens = replace(engine, nvjpeg=True), engine.artifact.goldens
    taken = on_gpu(candidate)
    if not taken:
        raise RuntimeError("no golden to measure its drift by")
    found = candidate.predict([goldens.encoded[n] for n in taken][: engine.max_batch_size])
    drift = float((found - goldens.probabilities[taken][: len(found)]).abs().max())
    if not drift <= NVJPEG_DRIFT:
        raise RuntimeError(f"probabilities drift by {drift:.3f}, more than {NVJPEG_DRIFT}")
    return candidate


def on_gpu(engine: Engine) -> list[int]:
    """The goldens that the GPU decodes, by their number."""
    goldens = engine.artifact.goldens
    return [n for n, body in enumerate(goldens.encoded) if engine.takes(body, ("JPEG",), MAX_PIXELS)]


def decoding_share(engine: Engine) -> float:
    """The time of the GPU's decoding as a share of that of all cores, for the largest golden that it decodes."""
    encoded = engine.artifact.goldens.encoded
    body, rows = max((encoded[n] for n in on_gpu(engine)), key=len), engine.rows(engine.cores)
    decode = partial(engine.decode, body, ("JPEG",), MAX_PIXELS)
    with ThreadPoolExecutor(engine.cores) as pool:
        cpu, gpu = race(lambda: list(pool.map(decode, rows)), lambda: decode_on_gpu(engine, [body] * TYPICAL_BATCH))
    return gpu / TYPICAL_BATCH / (cpu / len(rows))


def decode_on_gpu(engine: Engine, bodies: Sequence[bytes]) -> None:
    """Decode and preprocess, and wait for it."""
    for image in nvjpeg.decode(bodies, engine.device):
        engine.artifact.module.preprocess(image)
    torch.cuda.synchronize(engine.device)


TAKEN = "taken"
Step = Callable[[Engine], Engine]
CPU_STEPS: dict[str, Step] = {
    "allocator": keep_memory,
    "channels_last": use_channels_last,
    "freeze": freeze,
    "optimize_for_inference": optimize_for_inference,
    "planes": use_planes,
}
CUDA_STEPS: dict[str, Step] = {
    "allocator": keep_memory,
    "channels_last": use_channels_last,
    "freeze": freeze,
    "cuda_graphs": use_graphs,
}


def take(engine: Engine, name: str, step: Step) -> Engine:
    """The engine after one step; as it was where the step fails, changes the goldens' answers or does not pay."""
    try:
        candidate = step(engine)
        dropped = golden_difference(candidate)
        differs = candidate.module is not engine.module or candidate.lanes is not engine.lanes
        timed = differs or candidate.planes != engine.planes or candidate.nvjpeg != engine.nvjpeg
        if not dropped and timed and (share := time_share(engine, candidate)) > PAYS:
            dropped = f"takes {share:.2f} times as long"
    except RuntimeError as error:
        dropped = last_line(error)
    steps = {**engine.steps, name: f"dropped: {dropped}" if dropped else TAKEN}
    return replace(engine if dropped else candidate, steps=steps)


def optimise(engine: Engine, steps: dict[str, Step]) -> Engine:
    """The engine after the steps that pay, measured."""
    for name, step in steps.items():
        engine = take(engine, name, step)
    if engine.device.type == "cpu":
        share_cores(engine)
    engine = measure(engine)
    return limit_batches(engine) if engine.device.type == "cpu" else engine


def follow(engine: Engine, plan: Plan, steps: dict[str, Step]) -> Engine | None:
    """The engine after the steps that the plan took; None where one fails here, or changes the goldens' answers."""
    try:
        for name, step in steps.items():
            if plan.steps[name] == TAKEN:
                engine = step(engine)
        if golden_difference(engine):
            return None
    except RuntimeError:
        return None
    engine.sharing.useful.update({int(n): threads for n, threads in plan.threads.items()})
    curve = {int(n): seconds for n, seconds in plan.curve.items()}
    engine = replace(engine, curve=curve, decode_seconds=plan.decode_seconds)
    return replace(engine, batch_size=plan.batch_size, steps=plan.steps)


def time_share(before: Engine, after: Engine) -> float:
    """The time of `after` as a share of that of `before`, for a typical batch in each of all the passes under way.

    Where only `after` decodes on the GPU, that of decoding.
    """
    if after.nvjpeg and not before.nvjpeg:
        return decoding_share(after)
    n = min(TYPICAL_BATCH, before.max_batch_size)
    with ThreadPoolExecutor(before.passes) as pool:
        was, now = race(partial(at_once, pool, before, n), partial(at_once, pool, after, n))
    return now / was


def race(*runners: Callable[[], object]) -> list[float]:
    """The shortest of several runs of each runner, in seconds; they take turns, for other work comes and goes."""
    for runner in runners:
        runner()
    best = [math.inf] * len(runners)
    started, rounds = perf_counter(), 0
    while rounds < TRIAL_ROUNDS or perf_counter() - started < TRIAL_SECONDS * len(runners):
        rounds += 1
        for index, runner in enumerate(runners):
            best[index] = min(best[index], timed(runner))
    return best


def timed(runner: Callable[[], object]) -> float:
    """The seconds of one run."""
    begun = perf_counter()
    runner()
    return perf_counter() - begun


def share_cores(engine: Engine) -> None:
    """Find how many threads pay for one image and for a typical batch; all passes under way may have all cores."""
    sharing = engine.sharing
    choices = [1 << power for power in range(sharing.available.bit_length())]
    for n in sorted({1, min(TYPICAL_BATCH, engine.max_batch_size)}):
        rows = torch.stack(sample(engine, n))
        seconds = race(*(partial(on_threads, threads, engine, rows) for threads in choices))
        fewest = enough(dict(zip(choices, seconds, strict=True)), n)
        sharing.useful[n] = fewest if n == 1 else max(fewest, engine.cores // engine.passes)
    engine.steps["threads"] = ", ".join(f"{t} from batch size {n}" for n, t in sorted(sharing.useful.items()))


def enough(seconds: Mapping[int, float], n: int) -> int:
    """The fewest threads that are enough for a pass of `n` images, by the seconds that it takes on so many."""
    longest = MORE_THREADS[1 if n == 1 else TYPICAL_BATCH] * min(seconds.values())
    return min(threads for threads, taken in seconds.items() if taken <= longest)


def measure(engine: Engine) -> Engine:
    """Time passes by their size, with all passes under way, and decoding.

    Sizes above `LEAST_LIMIT` whose pass takes longer than `LONGEST_PASS_S` are not tried: whoever comes meanwhile waits
    for it.
    """
    with ThreadPoolExecutor(engine.passes) as pool:
        passes: dict[int, Callable[[], object]] = {}
        for n in buckets(engine.max_batch_size):
            run = partial(at_once, pool, engine, n)
            if n > LEAST_LIMIT and all(timed(run) > LONGEST_PASS_S for _ in range(1 + TRIAL_ROUNDS)):
                break
            passes[n] = run
        seconds = [round(found, DIGITS) for found in race(*passes.values())]
    curve = dict(zip(passes, seconds, strict=True))
    return replace(engine, curve=curve, decode_seconds=round(time_decoding(engine), DIGITS))


def time_decoding(engine: Engine) -> float:
    """Seconds an image, as a mean over the goldens, with all cores at it."""
    bodies = engine.artifact.goldens.encoded
    rows = engine.rows(len(bodies))
    with ThreadPoolExecutor(engine.cores) as pool:
        (seconds,) = race(lambda: list(pool.map(partial(decode_golden, engine), bodies, rows)))
    return seconds / len(bodies)


def decode_golden(engine: Engine, body: bytes, row: Tensor) -> None:
    engine.decode(body, ("JPEG", "PNG"), MAX_PIXELS, row)


def limit_batches(engine: Engine) -> Engine:
    """Find on the curve the batch size from which on images only wait for each other."""
    tried = [n for n in engine.curve if n >= LEAST_LIMIT] or [max(engine.curve)]
    rates = {n: n / engine.curve[n] for n in tried}
    size = next(n for n, rate in rates.items() if rate * LARGER_PAYS >= max(rates.values()))
    told = f"{size}; more at once make none faster" if size < engine.max_batch_size else str(size)
    return replace(engine, batch_size=size, steps={**engine.steps, "batch_size": told})


def at_once(pool: Executor, engine: Engine, n: int) -> list[Tensor]:
    """As many passes of `n` images as there may be, each on its share of the cores from the first to the last."""
    sharing = Sharing(engine.cores)
    sharing.useful = {1: max(1, engine.cores // engine.passes)}
    return list(pool.map(replace(engine, sharing=sharing).predict, [sample(engine, n)] * engine.passes))


def on_threads(threads: int, engine: Engine, rows: Tensor) -> Tensor:
    """One pass on so many threads."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return engine.forward(rows)


def warm(engine: Engine) -> None:
    """Run each bucket, so that the kernels for its size are chosen before the first request."""
    for n in buckets(engine.max_batch_size):
        engine.predict(sample(engine, n))
