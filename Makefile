.DEFAULT_GOAL := help
include Makefile.bench
