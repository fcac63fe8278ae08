# Holdfast. `make test` is everything a change must pass; it installs what it needs.
GO ?= go
FUZZTIME ?= 20s

.PHONY: build test vet unit race e2e fuzz windows soak soak-fuzz soak-tape bench bench-tape bench-full demo deps clean

build: ; CGO_ENABLED=0 $(GO) build -o bin/ ./cmd/...

test: deps vet windows unit race e2e fuzz

deps: ; @scripts/deps.sh test

vet:
	@test -z "$$(gofmt -l .)" || { echo "gofmt these:"; gofmt -l .; exit 1; }
	$(GO) vet ./...

windows:
	GOOS=windows $(GO) vet ./...
	GOOS=windows $(GO) build -o /dev/null ./cmd/holdfast-agent

# The end-to-end tests run real programs for minutes and have a step of their own.
unit: ; $(GO) test -timeout 15m $$($(GO) list ./... | grep -v /cmd/e2e)

# The packages that share memory between goroutines, under the race detector.
RACE = ./ingest/... ./agent ./agent/transport ./agent/restore ./pools/memory ./pools/dedup ./pools/seal ./catalog ./kv ./nbd ./appliance/... ./tape/scsi ./tape/iscsi ./tape/sgio ./tape/drive ./tape/changer ./tape/library ./tape/stream
race: ; $(GO) test -race -short -timeout 15m $(RACE)

e2e: deps ; $(GO) test -timeout 30m -v -count 1 ./cmd/e2e

fuzz: ; scripts/fuzz.sh $(FUZZTIME)

# Long campaigns with bounded counts; see docs/operate/soak.md.
soak: deps ; HOLDFAST_SOAK=10 $(GO) test -timeout 12h -v -count 1 ./...

# Every fuzz target by count, one after the other; hours.
soak-fuzz: ; FUZZ_JOBS=1 scripts/fuzz.sh 1000000x

# The SCSI device files of a real kernel, in a guest; minutes, and root for making its disk.
soak-tape: ; @scripts/deps.sh guest; scripts/tape-guest.sh

bench: ; @scripts/deps.sh bench; $(GO) run ./bench/run

# The table of goals against newer peers, where they are in PATH (or in the folder PEERS_BIN): kopia, and the newest restic under the name restic-new.
# IMAGES is a folder with vmA.raw, vmA-day2.raw, vmA-day3.raw and vmB.raw; BUDGET bounds the time that further runs may take.
BUDGET ?= 24m
RUNS ?= 3
bench-full: ; @scripts/deps.sh bench; PATH="$(PEERS_BIN):$$PATH" $(GO) run ./bench/run -goals -others -n $(RUNS) -budget $(BUDGET) $(if $(IMAGES),-images $(IMAGES))

# Writing to tape: an emulated drive at 400 MB/s, one without a limit, and tgt next to a bare loop; a minute.
bench-tape: ; @scripts/deps.sh test; $(GO) test -run '^$$' -bench . -benchtime 1x -count 3 ./bench/tape

demo: ; $(GO) run ./cmd/holdfast demo

clean: ; rm -rf bin bench/out
