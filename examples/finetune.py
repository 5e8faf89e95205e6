"""Fine-tune a trained model on a custom dataset with plain optax, and save the result as a bundle.

python examples/finetune.py images/ landmarks.csv tuned/

`landmarks.csv` has a header and one row per face: image, x_0, y_0, x_1, y_1, ... in image pixels, with the
landmarks of the model. For augmentation, validation, checkpoints and several devices, use
`lcgcn prepare csv` and `lcgcn train` instead.
"""

import argparse
import csv
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lcgcn_jax as lc


def read_faces(
    folder: Path, table: Path, size: int, num_landmarks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read face crops `[n, size, size, 3]`, and their landmarks `[n, k, 2]` in crop pixels."""
    crops, landmarks = [], []
    header = ["image", *(f"{axis}_{i}" for i in range(num_landmarks) for axis in "xy")]
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        if next(rows, None) != header:
            raise SystemExit(f"{table}: the header has to be {','.join(header[:5])},...")
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            name, *values = row
            try:
                points = np.array(values, np.float64).reshape(num_landmarks, 2)
            except ValueError as error:
                raise SystemExit(f"{table}: line {number}: {error}") from None
            low, high = points.min(axis=0), points.max(axis=0)
            scale = size / (1.25 * (high - low).max())
            shift = (size - 1) / 2 - scale * (low + high) / 2
            image = cv2.imread(str(folder / name), cv2.IMREAD_COLOR_RGB)
            if image is None:
                raise SystemExit(f"{folder / name}: no such image, or it cannot be read")
            crops.append(cv2.warpAffine(image, np.c_[scale * np.eye(2), shift], (size, size)))
            landmarks.append(scale * points + shift)
    return np.stack(crops), np.stack(landmarks).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("landmarks", type=Path, help="CSV file of the landmarks")
    parser.add_argument("out", type=Path, help="bundle to write")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="training steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="faces per step (%(default)s)")
    args = parser.parse_args()

    model = lc.load_model(args.model)
    crops, landmarks = read_faces(
        args.images, args.landmarks, model.image_size, model.scheme.num_landmarks
    )
    module = model.module
    optimizer = nnx.Optimizer(module, optax.adamw(1e-5), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, crops, landmarks):
        def loss(module):
            output = module(lc.normalize_images(crops), train_graph=True)
            return jnp.abs(output.landmarks - landmarks).mean()

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    rng = np.random.default_rng(0)
    for number in range(args.steps):
        rows = rng.choice(len(crops), args.batch)
        error = step(module, optimizer, jnp.asarray(crops[rows]), jnp.asarray(landmarks[rows]))
        print(f"step {number}: mean error {float(error):.2f} crop pixels")
    tuned = lc.LandmarkModel.from_module(
        module, config=model.config, scheme=model.scheme, image_size=model.image_size
    )
    card = f"# {args.out.name}\n\nFine-tuned from `{args.model}`, whose license and limits apply.\n"
    tuned.save(args.out, card=card)
    print(f"{args.out}: saved; load it with lcgcn_jax.load_model")
    print("It has no predicted errors, and `Face.reliable` is None, until you run")
    print(f"lcgcn research calibrate --model {args.out} --data DATA")


if __name__ == "__main__":
    main()
