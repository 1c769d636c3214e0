.PHONY: help prerequisites vendor vendor-refresh vendor-check build run test upstream-test lint doc bench

help:
	@echo 'make run            build, and try the proxy on sample files'
	@echo 'make test           all tests; those against MinIO need Docker'
	@echo 'make build          target/release/s3-proxy'
	@echo 'make bench          the benchmarks'
	@echo 'make lint           fmt, clippy and documentation, warnings are errors'
	@echo 'make vendor         fetch Pingora and apply patches/'
	@echo 'make vendor-refresh write the commits of vendor/pingora to patches/'
	@echo 'make vendor-check   fail unless vendor/pingora is pins + series'
	@echo 'make upstream-test  upstream'"'"'s own unit tests on the patched Pingora'

prerequisites:
	@vendor/prerequisites.sh

vendor: prerequisites
	@vendor/pingora.sh sync

vendor-refresh:
	@vendor/pingora.sh refresh

vendor-check: vendor
	@vendor/pingora.sh check

build: vendor
	cargo build --locked --release

run: build
	target/release/s3-proxy demo

test: vendor-check upstream-test
	cargo test --locked --workspace

upstream-test: vendor
	@vendor/upstream-test.sh

lint: vendor
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

bench: vendor
	cargo bench --locked
