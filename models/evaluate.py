"""Measure an example model, or a pruned version of it, on its test set.

    python models/evaluate.py MODEL.onnx [--data digits|circles|skeleton]

Without --data the model's file name says it: `unet_circles-98.onnx` is measured as the `unet_circles` here.
Needs numpy, onnxruntime and scikit-learn, not torch.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from models.data import RECIPES  # noqa: E402

__all__ = ["data_of", "evaluate", "trivial"]


def evaluate(model_path: str | Path, data_name: str) -> float:
    """The share of correct labels, in [0, 1], of the model's argmax over axis 1 on the test set `data_name`.

    Requires a model with one input and the logits as its first output; any batch size.
    """
    recipe = RECIPES[data_name]
    inputs, labels = recipe.make(**recipe.test)
    return float(np.mean(_predict(model_path, inputs) == labels))


def _predict(model_path: str | Path, inputs: NDArray[np.float32]) -> NDArray[np.int64]:
    session = ort.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    batch = source.shape[0] if isinstance(source.shape[0], int) else 50
    starts = range(0, len(inputs), batch)
    logits = [session.run(None, {source.name: inputs[start : start + batch]})[0] for start in starts]
    predicted: NDArray[np.int64] = np.concatenate(logits).argmax(axis=1)
    return predicted


def trivial(data_name: str) -> float:
    """The share of correct labels on the test set when always naming the training set's commonest label."""
    recipe = RECIPES[data_name]
    commonest = np.bincount(recipe.make(**recipe.train)[1].ravel()).argmax()
    return float(np.mean(recipe.make(**recipe.test)[1] == commonest))


def data_of(model_path: Path) -> str:
    """The name of the data of the example model whose name starts the file name, the longest such name.

    Raises:
        ValueError: if no example model's name starts the file name.
    """
    records = sorted(HERE.glob("*.json"), key=lambda path: len(path.stem))
    matching = [record for record in records if model_path.name.startswith(record.stem)]
    if not matching:
        names = ", ".join(record.stem for record in records)
        raise ValueError(f"{model_path.name} starts with no name of {names}; pass --data {'|'.join(RECIPES)}")
    return str(json.loads(matching[-1].read_text())["data"]["name"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a model on its test set.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", choices=RECIPES, help="default: from the model's file name")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"there is no file {arguments.model}")
    try:
        data_name = arguments.data or data_of(arguments.model)
    except ValueError as error:
        parser.error(str(error))
    print(f"{RECIPES[data_name].metric} {evaluate(arguments.model, data_name):.4f}")


if __name__ == "__main__":
    main()
