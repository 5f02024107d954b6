"""ai-edge-quantizer, in its own environment: `python aeq_quantize.py float.tflite samples.npz out.tflite`.

samples.npz holds an array for each input of the file's signature, samples along an axis in front.
"""

import sys

import numpy as np
from ai_edge_quantizer import quantizer, recipe


def main(model: str, samples: str, out: str) -> None:
    with np.load(samples) as held:
        arrays = dict(held)
    count = len(next(iter(arrays.values())))
    maker = quantizer.Quantizer(model, recipe.static_wi8_ai8())
    statistics = maker.calibrate({"serving_default": [{n: a[i] for n, a in arrays.items()} for i in range(count)]})
    maker.quantize(statistics).export_model(out, overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
