# `make -j` builds no faster: cargo uses all cores itself.
.NOTPARALLEL:

.PHONY: help prerequisites install-prerequisites vendor vendor-refresh vendor-check build deb image run test test-uring upstream-test lint msrv bench soak fuzz fuzz-check

help:
	@echo 'make run            try the proxy on sample files; builds a binary that is not optimized'
	@echo 'make test           all tests; those against MinIO need Docker'
	@echo 'make test-uring     the tests of the disk cache once more, over io_uring'
	@echo 'make build          target/release/s3-proxy and target/release/examples/http_cache, optimized'
	@echo 'make deb            target/debian/s3-proxy_*.deb; needs cargo-deb'
	@echo 'make image          the image s3-proxy:latest; needs Docker'
	@echo 'make bench          the benchmarks; BENCH=--quick shortens them to a smoke run'
	@echo 'make soak           the proxy under load, faults and attacks, for SOAK_MINUTES (30); with VM=FOLDER,'
	@echo '                    as tests/vm/install makes it, also as many power cuts of each file system'
	@echo 'make fuzz           parsers of cache files, requests, S3 documents and YAML, and URLs in the access log,'
	@echo '                    for FUZZ_SECONDS (600) each'
	@echo 'make fuzz-check     compiles the fuzz targets'
	@echo 'make lint           fmt, clippy and documentation, warnings are errors'
	@echo 'make msrv           compiles with the oldest compiler that Cargo.toml promises'
	@echo 'make vendor         fetch Pingora and apply patches/'
	@echo 'make vendor-refresh write the commits of vendor/pingora to patches/'
	@echo 'make vendor-check   fail unless vendor/pingora is pins + series'
	@echo 'make upstream-test  upstream'"'"'s own unit tests on the patched Pingora'

prerequisites:
	@vendor/prerequisites.sh

# Only for what a newcomer runs first. It says what it installs.
install-prerequisites:
	@vendor/prerequisites.sh install

vendor: prerequisites
	@vendor/pingora.sh sync

vendor-refresh:
	@vendor/pingora.sh refresh

vendor-check: vendor
	@vendor/pingora.sh check

# The features of the released binary, and of the tests.
FEATURES ?= full

build: vendor
	cargo build --locked --release --features $(FEATURES) --bin s3-proxy --example http_cache

deb: build
	deploy/generate target/release/s3-proxy target/package
	cargo deb --locked --no-build

image:
	docker build --file deploy/image/Dockerfile --tag s3-proxy \
		--build-arg S3_PROXY_COMMIT="$$(git show --no-patch --format='%h %cs' --abbrev=12 HEAD)" .

# Optimized for the time until the first hit: few features, and code that is not optimized.
run: install-prerequisites vendor
	@echo 'Building s3-proxy and the 400 parts that it is made of, not optimized. The first time,' >&2
	@echo 'this takes some minutes, about 3 on two cores; cargo shows how far it is.' >&2
	cargo build --locked --profile try --features demo --bin s3-proxy
	target/try/s3-proxy demo

test: install-prerequisites vendor-check upstream-test
	cargo test --locked --workspace --features $(FEATURES)

# The modules of tests/it whose proxies keep bodies on disk and leave the backend open.
# The others name one, or do not depend on it.
DISK_TESTS := disk_faults:: fill:: heads:: hit:: range_miss:: restart:: room:: transfer:: upgrade::

test-uring: vendor
	cargo build --locked --features $(FEATURES) --bin s3-proxy --example http_cache
	CACHE_BACKEND=uring cargo test --locked --features $(FEATURES) --test it -- $(DISK_TESTS)

upstream-test: vendor
	@vendor/upstream-test.sh

# `demo` is the binary without TLS, as `make run` builds it.
# The examples are documented only because cargo then uses what clippy has compiled.
lint: vendor
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features $(FEATURES) -- -D warnings
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --features demo --lib --bin s3-proxy -- -D warnings
	cargo fmt --manifest-path benches/stock/Cargo.toml --check
	cargo clippy --locked --manifest-path benches/stock/Cargo.toml --target-dir target -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --lib --bins --examples --features $(FEATURES)

RUST_VERSION := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

# With rustup's toolchain of that version, or the compiler at hand where it is that version. Clippy
# compiles what `cargo check` does, and uses what `make lint` has compiled.
msrv: vendor
	@if rustc --version | grep -qF 'rustc $(RUST_VERSION).'; then run= check=clippy after='-- -D warnings'; \
	elif rustup run $(RUST_VERSION).0 rustc --version >/dev/null 2>&1; then run='rustup run $(RUST_VERSION).0' check=check after=; \
	else echo 'skipped: Rust $(RUST_VERSION) is missing: rustup toolchain install $(RUST_VERSION).0'; exit 0; fi; \
	set -ex; \
	$$run cargo $$check --locked --all-targets $$after; \
	$$run cargo $$check --locked --workspace --features $(FEATURES) --all-targets $$after

BENCH ?=

# The targets of benches/ alone: the others would take no such argument.
bench: vendor
	cargo build --locked --release --manifest-path benches/stock/Cargo.toml --target-dir target/stock
	cargo bench --locked --features $(FEATURES) --bench '*' -- $(BENCH)

SOAK_MINUTES ?= 30

soak: vendor
	SOAK_SECONDS=$$(($(SOAK_MINUTES) * 60)) cargo test --locked --release --features $(FEATURES) --test soak -- --nocapture
	$(if $(VM),POWER_CUTS=$(SOAK_MINUTES) VM_PROXY=$(CURDIR)/target/release/s3-proxy cargo test --locked --features $(FEATURES) --test vm)

# From here, where fuzz/.cargo/config.toml does not count: what `make lint` has compiled is of use.
fuzz-check: vendor
	cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir target

FUZZ_SECONDS ?= 600

# With a nightly compiler, `cargo fuzz run` does the same, and looks for misuse of
# memory too.
fuzz: vendor
	@cd fuzz && for target in entry_meta bans cache_control config date range signature s3_request s3_list s3_change jwt access_log; do \
		mkdir -p artifacts/$$target corpus/$$target && \
		FUZZ_SEEDS=seeds/$$target cargo run --release --bin $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 \
			-artifact_prefix=artifacts/$$target/ corpus/$$target seeds/$$target || exit; \
	done
