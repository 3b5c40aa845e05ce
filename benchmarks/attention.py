"""How long attention with a reference takes on this machine, beside PyTorch's fused attention.

    python benchmarks/attention.py [--runs 10] [--threads 2]

The sizes of the bundled model's training, its widest and its middle level: 6 clips of 3 frames,
float32, each frame's queries over its own keys and the reference's. PyTorch is given both sources
of keys in one array already; its outputs and gradients have to be the same. Both take turns.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from animate_jax.kernels.attention import attention

# (clips, frames, tokens, channels), heads
SIZES = [((6, 3, 1024, 32), 1), ((6, 3, 256, 64), 4)]


def main() -> None:
    """Prints milliseconds, median and best, of every size, forward and with the gradient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for shape, heads in SIZES:
        for gradient in (False, True):
            ours, theirs = in_jax(shape, heads, gradient), in_torch(shape, heads, gradient)
            for got, expected in zip(ours(), theirs(), strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-5)
            times = [(timed(ours), timed(theirs)) for _ in range(options.runs)]
            said = [f"{np.median(t) * 1e3:.0f} ({min(t) * 1e3:.0f})" for t in zip(*times)]
            work = "forward and gradient" if gradient else "forward"
            print(f"{shape[2]} tokens, {work}: JAX {said[0]} ms, PyTorch {said[1]} ms")


def arrays(shape):
    """Query, key, value, the reference's key and value, the output's gradient."""
    clips, _, tokens, channels = shape
    rng = np.random.default_rng(0)
    shapes = [shape] * 3 + [(clips, tokens, channels)] * 2 + [shape]
    return [rng.standard_normal(s, dtype=np.float32) for s in shapes]


def in_jax(shape, heads, gradient):
    """A function that runs it once and returns numpy arrays."""

    def attend(query, key, value, *reference):
        return attention(query, key, value, heads, reference)

    def run(*x):
        if not gradient:
            return (attend(*x[:-1]),)
        out, backward = jax.vjp(attend, *x[:-1])
        return out, *backward(x[-1])

    inputs = [jnp.asarray(x) for x in arrays(shape)]
    compiled = jax.jit(run).lower(*inputs).compile()
    return lambda: jax.device_get(compiled(*inputs))


def in_torch(shape, heads, gradient):
    """The same in PyTorch; gradients of the joined keys are split where they are compared."""
    query, key, value, *reference, d_out = (torch.from_numpy(x) for x in arrays(shape))
    frames, tokens = shape[1:3]
    key, value = (
        torch.cat([own, other[:, None].expand(-1, frames, -1, -1)], 2)
        for own, other in zip((key, value), reference)
    )

    def by_head(x):
        return x.reshape(-1, x.shape[2], heads, x.shape[3] // heads).transpose(1, 2).contiguous()

    inputs = [by_head(x).requires_grad_(gradient) for x in (query, key, value)]
    d_out = by_head(d_out)

    def back(x):
        return x.detach().transpose(1, 2).reshape(*shape[:2], -1, shape[3]).numpy()

    def run():
        out = torch.nn.functional.scaled_dot_product_attention(*inputs)
        if not gradient:
            return (back(out),)
        d_query, d_key, d_value = (back(x) for x in torch.autograd.grad(out, inputs, d_out))
        of_reference = (x[:, :, tokens:].sum(1) for x in (d_key, d_value))
        return back(out), d_query, d_key[:, :, :tokens], d_value[:, :, :tokens], *of_reference

    return run


def timed(run) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
