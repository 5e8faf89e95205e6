"""Predict the landmarks of the faces in an image, and save an overlay.

python examples/predict_image.py photo.jpg overlay.png
"""

import argparse

from PIL import Image

import lcgcn_jax as lc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="image to read")
    parser.add_argument("overlay", help="image to write")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    args = parser.parse_args()

    model = lc.load_model(args.model, detector_model=args.detector_model)
    faces = model.predict(args.image)
    for face in faces:
        x0, y0, x1, y1 = face.box
        print(f"face at ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}), score {face.score:.2f}")
        if "nose_bridge_3" in face.names:
            nose = face.names.index("nose_bridge_3")
            x, y = face.landmarks[nose]
            print(f"  nose tip at ({x:.1f}, {y:.1f})")
        if face.predicted_error is not None:
            print(f"  mean predicted error {face.predicted_error.mean():.1f} px")
    Image.fromarray(lc.draw(args.image, faces)).save(args.overlay)
    print(f"{args.overlay}: number of faces: {len(faces)}")


if __name__ == "__main__":
    main()
