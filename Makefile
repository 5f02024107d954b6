# make quantize TARGET=arm64 [MODEL=m.onnx CALIB=data.npz OUT=folder]     make test coverage lint bench verify
# make package TARGET=arm64 PLATFORM=android|apple|web|bare
PYTHON ?= python3
TORCH  ?= torch
VENV   := .venv
BIN    := $(VENV)/bin
TARGET ?= x86_64
MODEL  ?= sample_models/digits.onnx
OUT    ?= out/$(notdir $(basename $(MODEL)))-$(TARGET)

ifeq ($(MODEL),sample_models/digits.onnx)
CALIB ?= sample_models/digits_calib.npz
EVAL  ?= sample_models/digits.npz
LABELS ?= label
endif

.PHONY: quantize verify package test coverage lint bench clean

$(BIN)/edgeq: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $(BIN)/edgeq

$(VENV)/.dev: pyproject.toml $(BIN)/edgeq
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,zoo,litert,openvino,gguf]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/packages.txt
	touch $@

quantize: $(BIN)/edgeq
	$(BIN)/edgeq quantize $(MODEL) --target $(TARGET) --output $(OUT) $(if $(CALIB),--calib $(CALIB)) \
	  $(if $(EVAL),--eval $(EVAL)) $(if $(LABELS),--labels $(LABELS)) $(ARGS)

verify: $(BIN)/edgeq
	$(BIN)/edgeq verify $(MODEL) $(OUT)/model.onnx --target $(TARGET) --data $(or $(EVAL),$(CALIB)) \
	  $(if $(LABELS),--labels $(LABELS)) $(ARGS)

PLATFORM ?= bare

package: quantize
	$(BIN)/edgeq package $(OUT) --platform $(PLATFORM) --output $(OUT)-$(PLATFORM) $(PACKAGE_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest --cov=edgeq --cov-report=term:skip-covered $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.accuracy $(ARGS)
	$(BIN)/python -m benchmarks.latency $(ARGS)

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .mypy_cache
