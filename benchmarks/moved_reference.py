"""How finely a model looks at its reference: in steps of its latents, or below?

    python benchmarks/moved_reference.py [--model MODEL]

The reference is the picture asked for, moved by so many pixels, and the model has one step from
noise. Beside its squared error, of latents in the box around the skeleton, stands what remains
where latents are decoded, moved back and encoded again, which is what they know, and where they are
moved back themselves, as means of neighbours. In the last row the reference is another frame.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from held_out import SEED, SIZE
from scipy.ndimage import shift

from animate_jax.diffusion.samplers import predicted_sample
from animate_jax.diffusion.schedule import alphas_cumprod
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.parallel.mesh import make_mesh
from animate_jax.pose.keypoints import load_keypoints
from animate_jax.training.objective import draw_batch, encode_image_tokens
from animate_jax.video.reading import read_frames
from animate_jax.weights.model_directory import BUNDLED, load_model
from data_prep.puppets.generate import PuppetSet, generate

PUPPETS, LATER = 24, 24
MOVES = (0, 0), (4, 0), (1, 0), (2, 0), (2, 2)  # pixels to the right and down


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUNDLED)
    config, params = load_model(parser.parse_args().model)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    model, side = AnimateAnyone(config), config.autoencoder.downscale
    encode = jax.jit(lambda x: model.encode_latents(params, jnp.asarray(x) / 127.5 - 1))
    decode = jax.jit(lambda x: model.decode_latents(params, x) * 255)
    step = jax.jit(lambda *known: one_step(model, params, *known))

    clips, points = puppets()
    truth, there = clips[:, 0], points[:, 0]
    wanted = np.asarray(encode(truth))
    inside = boxes(there / np.float32([side, side, 1]), wanted.shape[1:3])

    def error(latents):
        return np.square(latents - wanted).mean(-1)[inside].mean()

    print("squared error: of the model, of what latents know, of means of neighbours")
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 1})):
        for right, down in MOVES:
            picture = np.roll(truth, (down, right), (1, 2))
            moved = there + np.float32([right, down, 0])
            latents = np.asarray(encode(picture))
            known = encode(np.roll(decode(latents), (-down, -right), (1, 2)))
            back = (0, -down / side, -right / side, 0)
            means = shift(latents, back, order=1, mode="grid-wrap")
            errors = map(error, (step(picture, moved, there), known, means))
            print(f"moved by {right}, {down}:", *(f"{x:.4f}" for x in errors))
        print(f"another frame: {error(step(clips[:, 1], points[:, 1], there)):.4f}")


def one_step(model, params, picture, reference_points, points):
    """Latents (B, h, w, C) predicted from nothing but noise, reference and skeleton."""
    rows, height, width, _ = picture.shape
    tokens = encode_image_tokens(model, params, picture, 1, rows)
    latents = model.encode_latents(params, picture / 127.5 - 1)
    bound = model.bind(
        params, tokens, model.encode_reference(params, latents, tokens, reference_points)
    )
    pose = model.encode_pose(params, draw_batch(points[:, None], height, width), points[:, None])
    last = jnp.full(rows, model.config.schedule.num_train_timesteps - 1)
    noise = jax.random.normal(jax.random.key(0), (rows, 1, *latents.shape[1:]))
    out = model.denoise(params, noise, last, bound, pose)[:, 0]
    schedule = model.config.schedule
    of_noise, of_out = predicted_sample(schedule, alphas_cumprod(schedule)[-1])
    return of_noise * noise[:, 0] + of_out * out


def boxes(points, size):
    """bool (B, *size): around the points that are seen, and two places more."""
    found = np.zeros((len(points), *size), bool)
    for box, (x, y, score) in zip(found, np.moveaxis(points, -1, 1)):
        x, y = x[score > 0.3], y[score > 0.3]
        rows = slice(max(0, int(y.min()) - 2), int(np.ceil(y.max())) + 3)
        box[rows, max(0, int(x.min()) - 2) : int(np.ceil(x.max())) + 3] = True
    return found


def puppets():
    """Two frames of every clip, uint8 (PUPPETS, 2, SIZE, SIZE, 3), and their keypoints."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "puppets"
        generate(PuppetSet(PUPPETS, SIZE, SIZE, SEED + 2, frames=LATER + 1), out, progress=False)
        names = [f"{number:06d}" for number in range(PUPPETS)]
        clips = [list(read_frames(out / "clips" / f"{name}.mp4")) for name in names]
        points = [load_keypoints(out / "keypoints" / f"{name}.npz").points for name in names]
        return np.stack([c[::LATER] for c in clips]), np.stack([p[::LATER] for p in points])


if __name__ == "__main__":
    main()
