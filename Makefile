# Every target works on a fresh Debian-like machine with Go, a C compiler and git.
GO      ?= go
BIN     := bin
TOOLS   := $(GO) tool -modfile=internal/tools.mod

SOAK    ?= 30m
KILLS   ?= 500
TASKS   ?= 20000

.PHONY: all build demo demo-github run test quick soak chaos mutants lint fmt cross bench update needs clean

all: build

build: ## both programs into bin/
	$(GO) build -o $(BIN)/ ./reconciler
	CGO_ENABLED=0 $(GO) build -o $(BIN)/ ./agentd # without cgo it starts in half the time

demo: build ## the main job, for real, start to end
	$(BIN)/reconciler demo

demo-github: needs ## the same with pull requests, at a GitHub that is made up; STAY=1 stays up
	$(GO) test -count=1 -v -timeout 0 -run '^TestStoryOnGitHub$$' ./internal/testkit -story $(if $(STAY),-story.stay)

run: build ## the same, and stays up
	$(BIN)/reconciler demo --serve

test: needs lint cross ## everything
	$(GO) test -timeout 20m ./...
	$(GO) test -count=1 ./internal/archtest
	$(GO) test -race -short -timeout 20m ./...

quick: ## within a minute
	$(GO) test -short ./...

soak: ## drawn schedules of faults in the simulation, for SOAK
	$(GO) test -count=1 -v -timeout 0 -run '^TestSoak$$' ./reconciler/internal/sim -sim.soak=$(SOAK)

chaos: needs ## KILLS of real processes over TASKS, and faults of their disk
	$(GO) test -count=1 -v -timeout 0 -run '^TestKilledAtRandomLosesNothing$$' ./internal/testkit -chaos.kills=$(KILLS) -chaos.tasks=$(TASKS)
	$(GO) test -count=1 -timeout 0 -run 'WhereverTheDiskFails|CutOrGarbled' ./reconciler/internal/store -store.injections=$(KILLS) -store.cuts=$(TASKS)

mutants: ## breaks the protocol one rule at a time; a test has to notice each
	$(GO) test -count=1 -v -timeout 0 -run '^TestEveryMutant' ./internal/mutants -mutants=all

lint:
	@test -z "$$($(TOOLS) gofumpt -extra -l .)" || { echo "gofumpt: run 'make fmt' for:"; $(TOOLS) gofumpt -extra -l .; exit 1; }
	$(GO) vet ./...
	$(TOOLS) staticcheck ./...

fmt:
	$(TOOLS) gofumpt -extra -w .

cross: ## agentd runs where the reconciler does not
	CGO_ENABLED=0 GOOS=linux   GOARCH=arm64 $(GO) build -o /dev/null ./agentd
	CGO_ENABLED=0 GOOS=darwin  GOARCH=arm64 $(GO) build -o /dev/null ./agentd
	CGO_ENABLED=0 GOOS=windows GOARCH=amd64 $(GO) build -o /dev/null ./agentd

bench: build ## the table of figures, with the machine named
	$(GO) test -count=1 -v -timeout 30m -run '^TestFigures$$' ./reconciler -figures
	$(GO) test -run '^$$' -bench . -benchtime 1x ./internal/config ./reconciler/internal/plan

update: ## rewrite golden files
	UPDATE=1 $(GO) test ./...

needs: ## what the tests use beside Go: a browser, git's HTTP backend, strace
	@.ci/needs

clean:
	rm -rf $(BIN)
