"""onnxruntime's own weight-only quantizers, as peers: MODEL CALIB_FOLDER OUT METHOD BITS BLOCK; block 0: per channel.

Methods: default (its plain rounding), rtn, hqq, k_quant, gptq. Prints one line of JSON: the seconds taken.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.peer import Feeds


class Samples:
    """onnxruntime's CalibrationDataReader protocol over a list: its GPTQ copies the reader."""

    def __init__(self, feeds: Feeds) -> None:
        self.left = list(feeds)[::-1]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None

    def __iter__(self) -> Samples:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self.left:
            raise StopIteration
        return self.left.pop()


def config(method: str, bits: int, block: int, feeds: Feeds):  # type: ignore[no-untyped-def]
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization import matmul_nbits_quantizer as q

    match method:
        case "default":
            return q.DefaultWeightOnlyQuantConfig(
                block_size=block or 128,
                is_symmetric=True,
                bits=bits,
                channel_wised_quantize=not block,
                quant_format=QuantFormat.QOperator if block else QuantFormat.QDQ,
            )
        case "rtn":
            return q.RTNWeightOnlyQuantConfig()
        case "hqq":
            return q.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
        case "k_quant":
            return q.KQuantWeightOnlyQuantConfig()
        case _:
            return q.GPTQWeightOnlyQuantConfig(calibration_data_reader=Samples(feeds), block_size=block, mse=True)


def main(model: str, calib: str, out: str, method: str, bits: str, block: str) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.WARNING)
    loaded = onnx.load(model)
    began = time.perf_counter()
    quantizer = MatMulNBitsQuantizer(
        loaded,
        bits=int(bits),
        block_size=int(block) or 128,
        is_symmetric=True,
        accuracy_level=0,
        quant_format=QuantFormat.QOperator if int(block) else QuantFormat.QDQ,
        algo_config=config(method, int(bits), int(block), Feeds(Path(calib), 10_000)),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(out)
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
