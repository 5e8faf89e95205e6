"""Export a model to ONNX, and run it with onnxruntime on a face crop.

pip install '.[onnx]'
python examples/export_onnx.py face.onnx
"""

import argparse

import numpy as np
import onnxruntime

import lcgcn_jax as lc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--model", default="w300-lcgcn-small")
    args = parser.parse_args()

    model = lc.load_model(args.model)
    path = lc.export_model(model, args.out)
    size = model.image_size
    crops = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(path)
    landmarks, *_ = session.run(None, {"crops": crops})
    difference = np.abs(landmarks - model.predict_crops(crops).landmarks).max()
    print(f"{path}: landmarks {landmarks.shape}, at most {difference:.4f} px from JAX")


if __name__ == "__main__":
    main()
