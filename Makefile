.PHONY: vendor vendor-refresh vendor-check

vendor:
	@vendor/pingora.sh sync

vendor-refresh:
	@vendor/pingora.sh refresh

vendor-check: vendor
	@vendor/pingora.sh check
