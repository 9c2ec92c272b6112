"""The data of the example models: shipped with scikit-learn or generated, the same for the same arguments.

Every function returns `(inputs, labels)`: float32 inputs with the sample on axis 0 and int64 labels. The
labels index axis 1 of a model's output, so one metric, the share of correct labels, serves classification
and segmentation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["PARENTS", "RECIPES", "Recipe", "Samples", "circles", "digits", "skeleton"]

Samples = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Recipe:
    """How a data set is made: `make(**train)` and `make(**test)`, and what its metric is called."""

    make: Callable[..., Samples]
    train: dict[str, Any]
    test: dict[str, Any]
    metric: str


def digits(part: str, seed: int = 0) -> Samples:
    """Handwritten digits of scikit-learn: [N, 1, 8, 8], grey values in [0, 1]; labels [N], 10 classes.

    `part` is "train" (1347 images) or "test" (450); `seed` draws the split, stratified by class.
    """
    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=450, random_state=seed, stratify=labels
    )
    return (train_x, train_y) if part == "train" else (test_x, test_y)


def circles(count: int, seed: int, size: int = 64, noise: float = 0.15) -> Samples:
    """Circles and squares to segment: [count, 1, size, size]; labels [count, size, size], 5 classes.

    Classes: 0 background, 1 disc, 2 square, 3 ring, 4 frame (the outline of a square). An image holds 8 to
    14 shapes with a half width of 4 to 12 pixels and a brightness of 0.6 to 1 on a background of 0; a later
    shape covers an earlier one; Gaussian noise of standard deviation `noise` is added. A task in the manner
    of the circle-square set of Schoonhoven et al., "LEAN: graph-based pruning for convolutional neural
    networks by extracting longest chains" (2020).
    """
    rng = np.random.default_rng(seed)
    clean = np.zeros((count, 1, size, size), np.float32)
    labels = np.zeros((count, size, size), np.int64)
    for image, label in zip(clean[:, 0], labels, strict=True):
        for _ in range(rng.integers(8, 15)):
            shape = int(rng.integers(1, 5))
            covered = _covered(shape, rng.uniform(0, size, 2), rng.uniform(4, 12), size)
            image[covered], label[covered] = rng.uniform(0.6, 1), shape
    return clean + rng.normal(0, noise, clean.shape).astype(np.float32), labels


def _covered(shape: int, centre: NDArray[np.float64], half_width: float, size: int) -> NDArray[np.bool_]:
    """The pixels [size, size] of one shape of class `shape`; outlines are 2 pixels wide."""
    row, column = np.abs(np.indices((size, size)) - centre[:, None, None])
    distance = np.hypot(row, column) if shape in (1, 3) else np.maximum(row, column)
    covered: NDArray[np.bool_] = distance <= half_width
    return covered & (distance > half_width - 2) if shape in (3, 4) else covered


# The 20 joints of a Kinect skeleton. At rest x points to the body's left, y up, z forward; lengths in metres.
JOINTS = (
    "pelvis", "spine", "neck", "head",
    "left shoulder", "left elbow", "left wrist", "left hand",
    "right shoulder", "right elbow", "right wrist", "right hand",
    "left hip", "left knee", "left ankle", "left foot",
    "right hip", "right knee", "right ankle", "right foot",
)  # fmt: skip
PARENTS = (-1, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18)
_ARM = ((0, -0.28, 0), (0, -0.25, 0), (0, -0.08, 0))
_LEG = ((0, -0.42, 0), (0, -0.40, 0), (0, -0.05, 0.15))
BONES = np.array([
    (0, 0, 0), (0, 0.2, 0), (0, 0.3, 0), (0, 0.2, 0),
    (0.18, 0, 0), *_ARM, (-0.18, 0, 0), *_ARM,
    (0.1, -0.05, 0), *_LEG, (-0.1, -0.05, 0), *_LEG,
])  # fmt: skip

# Action → joint → (swing, raise), the angle of the limb forward and to the body's left in radians, as
# (offset, amplitude, phase): offset + amplitude * sin(2 pi (frequency * t + phase)), phase in turns.
Wave = tuple[float, float, float]
_STILL: Wave = (0, 0, 0)
ACTIONS: dict[str, dict[str, tuple[Wave, Wave]]] = {
    "walk": {
        "left hip": ((0, 0.45, 0), _STILL),
        "right hip": ((0, 0.45, 0.5), _STILL),
        "left knee": ((-0.4, 0.35, 0.25), _STILL),
        "right knee": ((-0.4, 0.35, 0.75), _STILL),
        "left shoulder": ((0, 0.4, 0.5), _STILL),
        "right shoulder": ((0, 0.4, 0), _STILL),
    },
    "run": {
        "left hip": ((0.2, 0.7, 0), _STILL),
        "right hip": ((0.2, 0.7, 0.5), _STILL),
        "left knee": ((-0.8, 0.6, 0.25), _STILL),
        "right knee": ((-0.8, 0.6, 0.75), _STILL),
        "left shoulder": ((0, 0.6, 0.5), _STILL),
        "right shoulder": ((0, 0.6, 0), _STILL),
        "left elbow": ((1.2, 0, 0), _STILL),
        "right elbow": ((1.2, 0, 0), _STILL),
    },
    "wave": {
        "right shoulder": (_STILL, (-1.8, 0.2, 0)),
        "right elbow": (_STILL, (-0.7, 0.6, 0)),
    },
    "clap": {
        "left shoulder": ((1.2, 0, 0), (0.2, 0.4, 0)),
        "right shoulder": ((1.2, 0, 0), (-0.2, 0.4, 0.5)),
    },
    "jumping jack": {
        "left shoulder": (_STILL, (1.3, 1.0, 0)),
        "right shoulder": (_STILL, (-1.3, 1.0, 0.5)),
        "left hip": (_STILL, (0.25, 0.25, 0)),
        "right hip": (_STILL, (-0.25, 0.25, 0.5)),
    },
    "squat": {
        "left hip": ((0.7, 0.7, 0), _STILL),
        "right hip": ((0.7, 0.7, 0), _STILL),
        "left knee": ((-0.9, 0.9, 0.5), _STILL),
        "right knee": ((-0.9, 0.9, 0.5), _STILL),
        "left shoulder": ((0.7, 0.6, 0), _STILL),
        "right shoulder": ((0.7, 0.6, 0), _STILL),
    },
    "kick": {
        "right hip": ((0.4, 0.8, 0), _STILL),
        "right knee": ((-0.4, 0.4, 0), _STILL),
        "left shoulder": ((0.2, 0.3, 0), _STILL),
    },
    "bow": {
        "spine": ((-0.5, 0.5, 0), _STILL),
        "neck": ((-0.2, 0.2, 0), _STILL),
    },
}


def skeleton(count: int, seed: int, frames: int = 32, noise: float = 0.1) -> Samples:
    """Moving skeletons: [count, 3, frames, 20], joint positions x, y, z in metres; labels [count], 8 actions.

    16 frames a second. A sample draws its action, frequency (0.6 to 1.4 Hz), phase, vigour (0.3 to 1.3
    times the amplitude), posture (0.25 rad a joint), stature (0.85 to 1.15) and heading (up to 60 degrees
    either way). The lowest joint of each frame stands on y = 0, the pelvis on x = z = 0; then Gaussian
    noise of standard deviation `noise` metres is added.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(ACTIONS), count)
    waves = _action_waves()[labels] + _posture(rng, count)
    angles = _angles(waves, rng, frames)
    positions = _forward_kinematics(angles) * rng.uniform(0.85, 1.15, (count, 1, 1, 1))
    positions[..., 1] -= positions[..., 1].min(axis=-1, keepdims=True)
    heading = _rotations(rng.uniform(-np.pi / 3, np.pi / 3, (count, 1, 1)), axis=1)
    positions = np.einsum("ntvij,ntvj->nitv", np.broadcast_to(heading, (*positions.shape, 3)), positions)
    return (positions + rng.normal(0, noise, positions.shape)).astype(np.float32), labels.astype(np.int64)


def _action_waves() -> NDArray[np.float64]:
    """The table ACTIONS as an array [action, joint, swing/raise, offset/amplitude/phase]."""
    waves = np.zeros((len(ACTIONS), len(JOINTS), 2, 3))
    for action, joints in zip(waves, ACTIONS.values(), strict=True):
        for joint, wave in joints.items():
            action[JOINTS.index(joint)] = wave
    return waves


def _posture(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Random offsets [count, joint, swing/raise, 3] of 0.25 rad; amplitudes and phases are left alone."""
    offsets = rng.normal(0, 0.25, (count, len(JOINTS), 2, 1))
    return np.concatenate([offsets, np.zeros((count, len(JOINTS), 2, 2))], axis=-1)


def _angles(waves: NDArray[np.float64], rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Angles [sample, frame, joint, swing/raise] in radians of waves [sample, joint, swing/raise, 3]."""
    bounds = ((0.6, 1.4), (0, 1), (0.3, 1.3))
    frequency, start, vigour = (rng.uniform(low, high, len(waves)) for low, high in bounds)
    turns = frequency[:, None] * np.arange(frames) / 16 + start[:, None]
    offset, amplitude, phase = np.moveaxis(waves[:, None], -1, 0)
    sine = np.sin(2 * np.pi * (turns[..., None, None] + phase))
    angles: NDArray[np.float64] = offset + vigour[:, None, None, None] * amplitude * sine
    return angles


def _forward_kinematics(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joint positions [..., joint, xyz] in metres, the pelvis at 0, of angles [..., joint, swing/raise]."""
    # A joint turns what hangs from it: raised about z, then swung about x (negative, as a limb hangs down).
    local = _rotations(-angles[..., 0], axis=0) @ _rotations(angles[..., 1], axis=2)
    turned, positions = local.copy(), np.zeros((*angles.shape[:-1], 3))
    for joint, parent in enumerate(PARENTS[1:], start=1):
        turned[..., joint, :, :] = turned[..., parent, :, :] @ local[..., joint, :, :]
        positions[..., joint, :] = positions[..., parent, :] + turned[..., parent, :, :] @ BONES[joint]
    return positions


def _rotations(angles: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Rotation matrices [..., 3, 3] by `angles` [...] in radians about coordinate axis `axis`."""
    following, last = (axis + 1) % 3, (axis + 2) % 3
    matrices = np.zeros((*angles.shape, 3, 3))
    matrices[..., axis, axis] = 1
    matrices[..., following, following] = matrices[..., last, last] = np.cos(angles)
    matrices[..., last, following] = np.sin(angles)
    matrices[..., following, last] = -np.sin(angles)
    return matrices


RECIPES = {
    "digits": Recipe(digits, {"part": "train"}, {"part": "test"}, "accuracy"),
    "circles": Recipe(circles, {"count": 800, "seed": 0}, {"count": 200, "seed": 1}, "pixel accuracy"),
    "skeleton": Recipe(skeleton, {"count": 2000, "seed": 0}, {"count": 800, "seed": 1}, "accuracy"),
}
