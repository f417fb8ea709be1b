"""Writes sample.gguf with the package `gguf` (0.19.0): python sample.py. Keys are in alphabetical order, as our writer has them."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

writer = GGUFWriter("sample.gguf", "llama")
writer.add_string("general.name", "sämple")
writer.add_bool("k.bool", True)
writer.add_float32("k.f32", 0.5)
writer.add_float64("k.f64", -1e300)
writer.add_int16("k.i16", -2)
writer.add_int64("k.i64", -(1 << 40))
writer.add_int8("k.i8", -3)
writer.add_uint64("k.u64", 1 << 63)
writer.add_uint8("k.u8", 255)
writer.add_uint32("llama.block_count", 7)
writer.add_array("tokenizer.ggml.scores", [0.25, -1.5])
writer.add_array("tokenizer.ggml.token_type", [1, 2, -3])
writer.add_array("tokenizer.ggml.tokens", ["<s>", "", "é"])
ramp = np.arange(2 * 64, dtype=np.float32).reshape(2, 64) / 8 - 4
writer.add_tensor("stacked", np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4))
writer.add_tensor("q8", quantize(ramp, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
writer.add_tensor("f16", np.array([1, -2, 3], dtype=np.float16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
