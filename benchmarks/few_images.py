"""NME of custom landmarks trained on few images: fine-tuning a shipped model against training from scratch.

    python benchmarks/few_images.py --out runs/few_images

Draws synthetic faces, and labels 13 of their 98 landmarks as a custom scheme. For each number of training
images, trains the same model twice for the same number of steps: with the backbone of `w300-lcgcn-small`,
which was trained on real faces with 68 landmarks, and from random weights. Prints a Markdown table of the
test NME, and writes it to OUT/table.md. Finished runs are not repeated, and an interrupted one continues:
with `--max-runs 1`, each call trains one model, in a few minutes on one core.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from lcgcn_jax.data.prepare import prepare
from lcgcn_jax.evaluation.evaluator import evaluate
from lcgcn_jax.models.bundles import DEFAULT_MODEL
from lcgcn_jax.synthetic.writers import write_wflw
from lcgcn_jax.training.api import train
from lcgcn_jax.training.config import load_config

POINTS = {
    "left_eye_outer": 60, "left_eye_inner": 64, "right_eye_inner": 68, "right_eye_outer": 72,
    "left_pupil": 96, "right_pupil": 97, "nose_tip": 54, "nose_base": 57, "mouth_left": 76,
    "mouth_right": 82, "upper_lip": 79, "lower_lip": 85, "chin": 16,
}  # fmt: skip
SCHEME = {
    "name": "face13",
    "names": list(POINTS),
    "mirror_pairs": [
        ["left_eye_outer", "right_eye_outer"],
        ["left_eye_inner", "right_eye_inner"],
        ["left_pupil", "right_pupil"],
        ["mouth_left", "mouth_right"],
    ],
    "normalizer": ["left_eye_outer", "right_eye_outer"],
}
NUM_VALIDATION, NUM_TEST = 30, 100


def write_tables(out: Path, counts: list[int]) -> None:
    """Draw faces, and write a CSV table for each number of training images with the same other faces."""
    official = out / "official"
    write_wflw(official, num_train=max(counts) + NUM_VALIDATION, num_test=NUM_TEST)
    rows = {}
    for split in ("train", "test"):
        lists = official / "WFLW_annotations/list_98pt_rect_attr_train_test"
        lines = (lists / f"list_98pt_rect_attr_{split}.txt").read_text().splitlines()
        fields = [line.split() for line in lines]
        points = [np.array(f[:196], float).reshape(98, 2)[list(POINTS.values())] for f in fields]
        rows[split] = [(f[-1], p.ravel().tolist()) for f, p in zip(fields, points, strict=True)]
    validation, training = rows["train"][:NUM_VALIDATION], rows["train"][NUM_VALIDATION:]
    for count in counts:
        splits = {"train": training[:count], "validation": validation, "test": rows["test"]}
        with (out / f"{count}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            names = [f"{axis}_{name}" for name in POINTS for axis in "xy"]
            table.writerow(["image", "split", *names])
            for split, faces in splits.items():
                table.writerows([image, split, *values] for image, values in faces)


def run(out: Path, count: int, init: str, args: argparse.Namespace) -> float:
    """Train on some images and return the NME on the test faces, in percent."""
    name = f"{count}_{init or 'scratch'}_{args.size}px_{args.steps}steps_seed{args.seed}"
    result = out / f"{name}.json"
    if not result.exists():
        if args.max_runs == 0:
            raise SystemExit(f"{result.stem} is not trained yet; run the command again")
        args.max_runs -= 1
        config = load_config("w300_lcgcn:small")
        config.scheme = str(out / "face13.json")
        config.data.dir = str(out / f"data{count}")
        config.data.image_size = args.size
        config.init_from, config.init_scope = init, "backbone"
        config.seed = args.seed
        config.train.batch_size = 8
        config.train.steps = args.steps
        config.train.eval_every = config.train.checkpoint_every = max(1, args.steps // 2)
        config.train.ema_decay = 0.95
        config.optimizer.warmup_steps = 10
        best = train(config, out / f"run_{result.stem}")
        report = evaluate(best, out / f"data{count}", split="test")
        result.write_text(json.dumps({"nme": report.to_dict()["stages"]["graph"]["nme"]}))
    return json.loads(result.read_text())["nme"]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data and runs")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[20, 50, 200], help="(%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=120, help="steps of 8 faces (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side of the crops (%(default)s)")
    parser.add_argument("--max-runs", type=int, default=-1, help="models to train (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scheme = args.out / "face13.json"
    scheme.write_text(json.dumps(SCHEME))
    if not (args.out / "official").exists():
        write_tables(args.out, args.counts)
    lines = ["| training images | from scratch | fine-tuned |", "|---|---|---|"]
    for count in args.counts:
        data = args.out / f"data{count}"
        if not data.exists():
            tables, images = [str(args.out / f"{count}.csv")], args.out / "official/WFLW_images"
            prepare("csv", images, data, annotations=tables, scheme=str(scheme), count_from=0)
        scores = [run(args.out, count, init, args) for init in ("", DEFAULT_MODEL)]
        lines.append(f"| {count} | {scores[0]:.2f} | {scores[1]:.2f} |")
        print(lines[-1], flush=True)
    (args.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
