# Builds run as the user; programs that attach to the kernel run as root.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo -E)
CARGO_AS_ROOT := cargo$(if $(SUDO), --config "target.'cfg(unix)'.runner = '$(SUDO)'")
TARGET := $(or $(CARGO_TARGET_DIR),target)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mqspan

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## set up, build, and watch a small shop of three processes talk through its queues
	@scripts/setup.sh
	cargo build --release --package mqspan --package orders
	@echo "A shop of three processes talks through its queues. Each call goes to $${OTEL_EXPORTER_OTLP_ENDPOINT:-this console}:"
	$(SUDO) $(TARGET)/release/mqspan run -- $(TARGET)/release/orders

.PHONY: build
build: ## the program, optimised: target/release/mqspan
	cargo build --release

.PHONY: test
test: ready lint ## everything: lint, the tests without root, those on the real kernel, those with a real backend
	cargo test --workspace
	cargo build --workspace
	$(CARGO_AS_ROOT) test --test host --test ages --test causes --test correlation --test family --test faults --test limits --test links --test live --test metrics --test queues --test terminal --test top
	collector=$$(scripts/collector.sh) && MQSPAN_TEST_COLLECTOR=$$collector $(CARGO_AS_ROOT) test --test collector --test outage --test spool
	rotel=$$(scripts/backends.sh rotel) && MQSPAN_TEST_ROTEL=$$rotel $(CARGO_AS_ROOT) test --test rotel

.PHONY: test-backends
test-backends: ## Jaeger, Prometheus and VictoriaLogs: what their query APIs answer, and alerts that fire; ten minutes the first time
	@scripts/setup.sh backends
	cargo build --workspace
	jaeger=$$(scripts/backends.sh jaeger) && prometheus=$$(scripts/backends.sh prometheus) && \
	victoria_logs=$$(scripts/backends.sh victoria-logs) && promtool=$$(scripts/backends.sh promtool) && \
	MQSPAN_TEST_JAEGER=$$jaeger MQSPAN_TEST_PROMETHEUS=$$prometheus MQSPAN_TEST_VICTORIA_LOGS=$$victoria_logs \
	MQSPAN_TEST_PROMTOOL=$$promtool $(CARGO_AS_ROOT) test --test alerts --test backends

.PHONY: test-spool
test-spool: ready ## the spool, with mqspan killed 50 times: ten minutes
	cargo build --workspace
	collector=$$(scripts/collector.sh) && MQSPAN_TEST_COLLECTOR=$$collector MQSPAN_TEST_KILLS=50 $(CARGO_AS_ROOT) test --test spool -- --nocapture

.PHONY: test-outage
test-outage: ready ## a backend up and down at random, with a spool and without: ten minutes
	cargo build --workspace
	collector=$$(scripts/collector.sh) && MQSPAN_TEST_COLLECTOR=$$collector MQSPAN_TEST_OUTAGE=$${MQSPAN_TEST_OUTAGE:-600} $(CARGO_AS_ROOT) test --test outage up_and_down -- --nocapture

.PHONY: test-stress
test-stress: ## stress-ng beside mqspan for a minute: counts, loss, CPU, memory
	@scripts/setup.sh stress
	cargo build --release --package workload
	$(CARGO_AS_ROOT) test --release --test stress -- --nocapture --test-threads=1

.PHONY: test-containers
test-containers: ## containers by Podman and runc: who calls in them, mqspan in one, as another user than root
	@scripts/setup.sh containers
	cargo build --workspace
	$(CARGO_AS_ROOT) test --test containers

.PHONY: test-report
test-report: ## the page of --report in Chromium: what it asks for, what its console says, hostile names; pictures of it in target/tmp/report
	@scripts/setup.sh report
	cargo build --workspace
	$(CARGO_AS_ROOT) test --test report

# What was tested on each kernel, a line for each kind of hooks and test: printed at the end.
KERNELS := $(abspath $(TARGET))/kernels.tsv

define test-kernels
	@scripts/setup.sh kernels
	cargo build --release --workspace
	rm -f $(KERNELS)
	arm64=$$(scripts/static.sh kernels arm64) && \
	MQSPAN_TEST_ARM64=$$arm64 MQSPAN_TEST_RESULTS=$(KERNELS) cargo test --release --test kernels -- --test-threads=1 $(1); \
	status=$$?; column -t -s "$$(printf '\t')" $(KERNELS); exit $$status
endef

.PHONY: test-kernels
test-kernels: ## four other kernels under qemu, one of them PREEMPT_RT, one of arm64, each kind of hooks on each: an hour
	$(call test-kernels,--exact linux_6_1 linux_6_12_rt linux_7_3 arm64_6_12)
	cargo bench --bench instructions -- compare

.PHONY: test-kernels-all
test-kernels-all: ## eighteen kernels and ways to boot them under qemu, four of arm64: some hours
	$(call test-kernels,)

.PHONY: test-compose
test-compose: ## docker-compose.yml by podman: what a user sees; builds Jaeger and Prometheus the first time, ten minutes
	@scripts/setup.sh compose
	cargo build --workspace
	MQSPAN_TEST_COLLECTOR=$$(scripts/collector.sh) MQSPAN_TEST_JAEGER=$$(scripts/backends.sh jaeger) \
	MQSPAN_TEST_PROMETHEUS=$$(scripts/backends.sh prometheus) \
	MQSPAN_TEST_PODMAN_COMPOSE=$(CACHE)/podman-compose/bin/podman-compose \
		$(CARGO_AS_ROOT) test --test compose -- --nocapture

.PHONY: package
package: ## static programs, .deb, .rpm, container images for x86_64 and arm64: target/package; a quarter of an hour the first time
	@scripts/setup.sh package
	scripts/package.sh

.PHONY: test-packages
test-packages: package ## those packages on Debian 11, 12 and 13 under systemd, and the program on Alpine
	@scripts/setup.sh test
	scripts/static.sh cargo amd64 build --release --locked --package workload --package orders
	debian_11=$$($(SUDO) scripts/root.sh bullseye amd64 $(INSTALLED)) && \
	debian_12=$$($(SUDO) scripts/root.sh bookworm amd64 $(INSTALLED)) && \
	debian_13=$$($(SUDO) scripts/root.sh trixie amd64 $(INSTALLED)) && \
	alpine=$$($(SUDO) scripts/alpine.sh) && \
	MQSPAN_TEST_DEBIAN_11=$$debian_11 MQSPAN_TEST_DEBIAN_12=$$debian_12 MQSPAN_TEST_DEBIAN_13=$$debian_13 \
	MQSPAN_TEST_ALPINE=$$alpine MQSPAN_TEST_PACKAGES=$(CURDIR)/target/package \
	MQSPAN_TEST_STATIC_WORKLOAD=$(CURDIR)/target/package/build/x86_64-unknown-linux-gnu/release/workload \
		$(CARGO_AS_ROOT) test --test packages

# What the machines have on which packages are installed: besides systemd, what looks up names there, which a static program
# must not load, and rpm.
INSTALLED := systemd-sysv libnss-myhostname libnss-mdns rpm

.PHONY: test-reproducible
test-reproducible: ## builds all packages in a second folder, from the last commit, and compares; half an hour
	@scripts/setup.sh package
	scripts/reproducible.sh

.PHONY: pictures
pictures: ## the pictures of the documents that are of a terminal, made anew; each screen at three sizes in target/tmp/screens
	@scripts/setup.sh
	cargo build --workspace
	$(CARGO_AS_ROOT) test --test pictures

.PHONY: fuzz
fuzz: ## what reads other processes' bytes, each with random ones for FUZZ_SECONDS (600); needs Rust's nightly compiler
	@scripts/setup.sh fuzz
	for target in $$(sed -n 's/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml | tail -n +2); do \
		mkdir -p fuzz/target/corpus/$$target; \
		PATH="$(CACHE)/bin:$$PATH" cargo +nightly fuzz run $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(or $(FUZZ_SECONDS),600) -print_final_stats=1 || exit 1; \
	done

.PHONY: ready
ready:
	@scripts/setup.sh test

.PHONY: lint
lint: ready ## format, clippy, documentation, licences and sources of the crates
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --test '*' -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	$(CACHE)/bin/cargo-deny check --hide-inclusion-graph bans licenses sources

.PHONY: bench
bench: ## what mqspan costs: writes docs/performance.md; half an hour on a machine that does nothing else
	@scripts/setup.sh kernels
	@scripts/setup.sh bench
	cargo build --release --workspace
	scripts/performance.sh

.PHONY: clean
clean: ## remove what was built; the cache of backends and tools stays
	cargo clean
