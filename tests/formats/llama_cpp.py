"""llama.cpp through its C functions, from the shared library in the wheel `xllamacpp`.

Parameter structs are passed as the library itself fills them in, in a buffer larger than they are: their fields change
from release to release, and nothing here depends on them.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tests.require import require


class Params(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_uint64 * 128)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@LOG
def _silent(level: int, text: bytes, data: int) -> None:
    pass


def library() -> ctypes.CDLL:
    require("xllamacpp", "pip install --no-deps xllamacpp")
    lib = ctypes.CDLL(importlib.import_module("xllamacpp").xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = Params
    lib.llama_model_load_from_file.argtypes, lib.llama_model_load_from_file.restype = [ctypes.c_char_p, Params], pointer
    lib.llama_init_from_model.argtypes, lib.llama_init_from_model.restype = [pointer, Params], pointer
    lib.llama_batch_init.argtypes, lib.llama_batch_init.restype = [number] * 3, Batch
    lib.llama_decode.argtypes = [pointer, Batch]
    lib.llama_get_logits_ith.argtypes = [pointer, number]
    lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_get_memory.argtypes, lib.llama_get_memory.restype = [pointer], pointer
    lib.llama_memory_clear.argtypes = [pointer, ctypes.c_bool]
    lib.llama_model_get_vocab.argtypes, lib.llama_model_get_vocab.restype = [pointer], pointer
    lib.llama_vocab_n_tokens.argtypes = [pointer]
    lib.llama_tokenize.argtypes = [pointer, ctypes.c_char_p, number, pointer, number, ctypes.c_bool, ctypes.c_bool]
    lib.llama_set_n_threads.argtypes = [pointer, number, number]
    lib.llama_free.argtypes = lib.llama_model_free.argtypes = [pointer]
    lib.llama_batch_free.argtypes = [Batch]
    lib.llama_log_set.argtypes = [LOG, pointer]
    lib.llama_log_set(_silent, None)
    lib.llama_backend_init()
    return lib


class Model:
    """A loaded model with a context of 512 tokens."""

    def __init__(self, path: str) -> None:
        self.lib = library()
        self.model = self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        self.context = self.lib.llama_init_from_model(self.model, self.lib.llama_context_default_params())
        assert self.context
        self.lib.llama_set_n_threads(self.context, 1, 1)  # threads that wait by spinning starve others
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocab)
        self.batch = self.lib.llama_batch_init(512, 0, 1)

    def tokenize(self, text: bytes) -> list[int]:
        out = np.zeros(len(text) + 8, np.int32)
        count = self.lib.llama_tokenize(self.vocab, text, len(text), out.ctypes.data, len(out), False, False)
        assert count >= 0
        return [int(t) for t in out[:count]]

    def logits(self, tokens: list[int], start: int = 0) -> np.ndarray:
        """float32 [len(tokens), vocab]; start > 0 continues what the context holds."""
        if start == 0:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, start + i, 1, 0, 1
        assert self.lib.llama_decode(self.context, b) == 0
        rows = [self.lib.llama_get_logits_ith(self.context, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (self.size,)) for row in rows]).copy()

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


@contextmanager
def loaded(path: str) -> Iterator[Model]:
    model = Model(path)
    try:
        yield model
    finally:
        model.close()
