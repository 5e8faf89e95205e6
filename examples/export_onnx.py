"""Export a model to ONNX, run it with onnxruntime, and compare the result with JAX.

pip install '.[onnx]'
python examples/export_onnx.py face.onnx
"""

import argparse

import numpy as np
import onnxruntime

import lcgcn_jax as lc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    args = parser.parse_args()

    model = lc.load_model(args.model)
    path = lc.export_model(model, args.out)
    # Random pixels instead of face crops: they are enough to compare the outputs.
    size = model.image_size
    crops = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(path)
    landmarks, *_ = session.run(None, {"crops": crops})
    difference = np.abs(landmarks - model.predict_crops(crops).landmarks).max()
    print(f"{path}: landmarks {landmarks.shape}, maximum difference from JAX {difference:.4f} px")


if __name__ == "__main__":
    main()
