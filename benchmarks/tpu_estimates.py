"""What the TPU compiler expects of the full-size networks on one chip that is not there.

    python benchmarks/tpu_estimates.py forward     # plain SD UNet, 8 latents of 64x64
    python benchmarks/tpu_estimates.py gradient    # the same, value and gradient, 4 latents
    python benchmarks/tpu_estimates.py kernels     # our kernels alone, by the compiler's schedules

`animate-jax plan animate` says it of a guided denoising step. XLA's cycles are its own estimates;
those of kernels are read off their final schedules: instructions times the turns of the loops that
they stand in, as if nothing ever waited, and as if every branch were taken: temporal attention's
second pass, which is for large scores only, is counted too. All is bfloat16. Needs libtpu; takes
minutes to half an hour.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from animate_jax.config import sd15
from animate_jax.kernels import (
    feed_forward,
    geglu,
    group_norm,
    picture_tokens,
    projections,
    spatial,
    temporal,
    temporal_block,
    temporal_block_forward,
)
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.parallel.chips import chip_of
from animate_jax.parallel.mesh import make_mesh, replicated
from animate_jax.tpu.program import read_program
from animate_jax.tpu.topology import topology_devices
from animate_jax.training.parameters import shapes_of, without_motion

DTYPE = jnp.bfloat16


def main() -> None:
    """Prints what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["forward", "gradient", "kernels"])
    parser.add_argument("--topology", default="v5e:1x1")
    options = parser.parse_args()
    if options.what == "kernels":
        print_kernels(options.topology)
    else:
        print_unet(options.what == "gradient", options.topology)


def compile_for(function, arguments, topology):
    """(compiled, chip); arguments are shapes."""
    devices = topology_devices(topology)[:1]
    whole = replicated(make_mesh({"data": 1}, devices))
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arguments
    )
    with jax.sharding.use_abstract_mesh(whole.mesh.abstract_mesh):  # tells how much memory it has
        return jax.jit(function).lower(*arguments).compile(), chip_of(devices[0])


def print_unet(gradient: bool, topology: str) -> None:
    """Without motion, reference or pose: what other implementations of Stable Diffusion have."""
    model = AnimateAnyone(without_motion(sd15()), DTYPE)
    shapes = shapes_of(model.config, ("denoising_unet",))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, DTYPE), shapes)
    rows = 4 if gradient else 8
    latents = jax.ShapeDtypeStruct((rows, 1, 64, 64, 4), DTYPE)
    timesteps = jax.ShapeDtypeStruct((rows,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((rows, 1, 768), DTYPE)

    def forward(params, latents, timesteps, tokens):
        return model.denoise(params, latents, timesteps, model.bind(params, tokens))

    def value_and_gradient(params, *inputs):
        return jax.value_and_grad(lambda p: jnp.square(forward(p, *inputs)).mean())(params)

    function = value_and_gradient if gradient else forward
    compiled, chip = compile_for(function, (params, latents, timesteps, tokens), topology)
    program = read_program(compiled, chip)
    print(f"{program.xla_cycles / 1e6:.1f} M cycles by XLA's estimate, {rows} latents of 64x64")
    for name, cycles in program.kernel_cycles.items():
        print(f"  {name}: {cycles / 1e6:.1f} M at the rates of animate_jax/tpu/program.py")
    print(f"{program.cycles / 1e6:.1f} M in all; {program.memory / 2**30:.2f} GiB of memory")


def kernel_programs():
    """(what, function, shapes) of the kernels at Stable Diffusion's sizes, 24 frames of 512x512."""

    def attend(query, key, value, *reference):
        return spatial.attention(query, key, value, reference or None, heads=8)

    def attend_in_time(*inputs):
        return temporal.temporal_attention(*inputs, heads=8)

    def backward(function):
        return lambda *x: jax.vjp(function, *x[:-1])[1](x[-1])

    def feed(x, *weights):
        return feed_forward._fused(x, geglu.Weights(*weights), 1e-5)

    def project(x, *weights):
        return projections.project(x, projections.Weights(*weights), 1e-5)

    def project_backward(x, *others):
        return jax.vjp(project, x, *others[:-3])[1](others[-3:])

    def block(x, *weights):
        return temporal_block._fused(x, temporal_block_forward.Weights(*weights), 8, 1e-5)

    def ends(x, scale, bias, *layer):
        norm, layer = picture_tokens.Norm(scale, bias), picture_tokens.Layer(*layer)
        tokens = picture_tokens.to_tokens(x, norm, layer, 32, 1e-6)
        return picture_tokens.to_pictures(tokens, x, layer)

    def sums(x, near):
        return group_norm.kernel_sums(group_norm._differences, (x,), (near,))

    for tokens, channels in ((4096, 320), (1024, 640), (256, 1280)):
        size, clip = f"{tokens} tokens x {channels}", (1, 24, tokens, channels)
        own, both = [clip] * 3, [clip] * 3 + [(1, tokens, channels)] * 2
        yield f"spatial attention, {size}", attend, own
        yield f"spatial attention, {size}, with reference", attend, both
        yield f"its gradient, {size}, with reference", backward(attend), [*both, clip]
        square = (channels, channels)
        yield f"projections, {size}", project, [clip, (channels,), (channels,), *[square] * 3]
        turned = (1, 24, channels, tokens)
        weights = [(channels,), (channels,), *[square] * 3]
        yield (
            f"gradient of the projections, {size}",
            project_backward,
            [clip, *weights, *[turned] * 3],
        )
        output = [clip, turned, square, (1, channels)]
        yield f"output of the attention, {size}", projections.add_output, output
        yield f"temporal attention, {size}", attend_in_time, own
        yield f"its gradient, {size}", backward(attend_in_time), [*own, clip]
        weights = [(channels,)] * 2 + [(24, channels)] + [square] * 4 + [(channels,)]
        yield f"temporal block, {size}", block, [clip, *weights]
        yield f"its gradient, {size}", backward(block), [clip, *weights, clip]
        wide = 8 * channels
        weights = [(channels,)] * 2 + [(channels, wide), (wide,), (wide // 2, channels)]
        yield f"feed-forward, {size}", feed, [clip, *weights, (channels,)]
        yield f"its gradient, {size}", backward(feed), [clip, *weights, (channels,), clip]
        side = int(tokens**0.5)
        picture = (1, 24, side, side, channels)
        weights = [(channels,)] * 2 + [square, (channels,)]
        yield f"a transformer's ends, {size}", ends, [picture, *weights]
        yield f"their gradient, {size}", backward(ends), [picture, *weights, picture]
        pictures = [(24, side, side, channels), (24, 1, 1, channels)]
        yield f"sums of a GroupNorm, {size}", sums, pictures


def print_kernels(topology: str) -> None:
    """Of 24 frames, per call."""
    with tempfile.TemporaryDirectory() as directory:
        # Read by libtpu when it is loaded, which is when the first program is compiled.
        arguments = f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = arguments
        for what, function, shapes in tqdm(list(kernel_programs()), unit="kernel"):
            inputs = [jax.ShapeDtypeStruct(shape, DTYPE) for shape in shapes]
            compile_for(function, inputs, topology)
            over_reference = "with reference" in what
            turns = max(1, shapes[0][2] // spatial.KEY_BLOCK) if over_reference else 1
            for file in sorted(Path(directory).iterdir()):
                if found := SCHEDULE.match(file.name):
                    cycles = schedule_cycles(file.read_text(), turns)
                    tqdm.write(f"{cycles / 1e6:8.3f} M  {what}: {found.group(1)}")
            for file in Path(directory).iterdir():
                file.unlink()


SCHEDULE = re.compile(r"\d+-((?:spatial|temporal|feed|picture)\w+)[.\d]*-\d+-final_bundles\.txt$")
LINE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+([A-Z]+)?\s*:\s*((?:> ?)*)")
EXIT = re.compile(r"scmp\.(?:ge|eq|ne|lt)\.s32\.totalorder %\S+, (\d+) /\* loop exit test")


def schedule_cycles(text: str, unknown: int) -> int:
    """Instructions of a schedule times the turns of the loops around them.

    unknown: turns of loops whose number is not in the program, those over a reference's keys.

    A loop reaches from the line that begins it to the last line of its depth, which `>` count.
    Empty lines belong to whatever is around them.
    """
    lines = []
    for line in text.splitlines():
        if found := LINE.match(line):
            empty = re.search(r":\s*\{\s*\}", line)
            depth = None if empty else found.group(2).count(">")
            turns = EXIT.search(line)
            lines.append((found.group(1) == "LB", depth, int(turns.group(1)) if turns else None))
    times = [1] * len(lines)
    for first, (begins, depth, _) in enumerate(lines):
        if not begins:
            continue
        last = first
        while last + 1 < len(lines):
            next_begins, next_depth, _ = lines[last + 1]
            inside = next_depth is None or next_depth >= depth
            if not inside or (next_begins and next_depth == depth):
                break
            last += 1
        turns = [n for _, d, n in lines[first : last + 1] if n is not None and d == depth]
        for i in range(first, last + 1):
            times[i] *= turns[-1] if turns else unknown
    return sum(times)


if __name__ == "__main__":
    main()
