"""Writes blocks.txt: random blocks of ggml's quantised types and what PyPI's `gguf` makes of them.

    pip install gguf==0.19.0 && python make.py > blocks.txt
A line is: type, the stored bytes in hex, the f32 bit patterns in hex.
"""
import numpy as np
from gguf import GGMLQuantizationType as T, quants

rng = np.random.default_rng(7)
HALVES = {T.Q8_0: [0], T.Q4_0: [0], T.Q5_0: [0], T.Q4_1: [0, 2], T.Q5_1: [0, 2], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
SIZE = {T.Q8_0: 34, T.Q4_0: 18, T.Q5_0: 22, T.Q4_1: 20, T.Q5_1: 24, T.Q4_K: 144, T.Q5_K: 176, T.Q6_K: 210}
for ty, fields in HALVES.items():
    for _ in range(3):
        block = rng.integers(0, 256, SIZE[ty], dtype=np.uint8)
        for at in fields:
            block[at:at + 2] = np.frombuffer(np.float16(rng.normal() * 0.01).tobytes(), dtype=np.uint8)
        values = quants.dequantize(block, ty).astype(np.float32)
        print(ty.name.lower(), block.tobytes().hex(), values.tobytes().hex())
