# meshpulse: `make help` lists what there is. Everything that is fetched or installed goes to .cache/, binaries to bin/.

GO       ?= go
FUZZTIME ?= 30s
COMMIT    = $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null)
LINT     := $(GO) tool -modfile=bench/tools/go.mod

VERSION   ?= $(COMMIT)
IMAGE     ?= meshpulse:$(VERSION)
PLATFORMS ?= linux/amd64 linux/arm64
# Without gRPC's traces, which are HTML templates and call methods by name, the linker leaves out what nobody calls: a third.
TAGS       = grpcnotrace
LDFLAGS    = -X main.commit=$(COMMIT) -X main.release=$(filter-out $(COMMIT),$(VERSION))

CLI_PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64

.PHONY: run-envoy push-name release-version release
.PHONY: image push build help run test clients lint bench bench-soak bench-mtls bench-dashboards bench-replicas fleet report quantiles beside surge fuzz envoy clean

build: ## build bin/meshpulse (the default)
	@bench/tools/progress $(GO) build -v -tags $(TAGS) -ldflags "$(LDFLAGS)" -o bin/ ./cmd/meshpulse

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run-envoy: # told before anything is built
	@test -z "$$ENVOY_BIN" || test -f "$$ENVOY_BIN" -a -x "$$ENVOY_BIN" || { echo "make run: ENVOY_BIN=$$ENVOY_BIN is not a program: give an Envoy 1.38 or later, or leave it out" >&2; exit 1; }

run: run-envoy build ## see it live: three real sidecars, load, HPAs, a table (DURATION=90s ends by itself)
	@test -e .cache/envoy/envoy || bench/tools/get-envoy || true # without it the demo says so and feeds recordings
	@bench/tools/progress $(GO) build -v -o bin/ ./bench/demo
	@exec bin/demo

test: envoy ## vet, unit, race, fuzz-seed and end-to-end tests with real Envoys
	@test "$$($(GO) env CGO_ENABLED)" = 1 || { echo "make test: the race detector needs cgo: install a C compiler (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) test -race -timeout 20m ./...
	cd bench/image && $(GO) mod tidy -diff && $(GO) vet . && $(GO) test .
	cd bench/tools/release && $(GO) mod tidy -diff && $(GO) vet . && $(GO) test .

test-console: build ## the pages of meshpulse console in a real Chromium, fetched into .cache from Debian (90 MB) or CHROMIUM_BIN; UPDATE=1 takes the pictures of metricsapi/README.md anew
	@bench/tools/browser/get-chromium
	cd bench/tools/browser && $(GO) mod tidy -diff && $(GO) vet . && $(GO) test -count 1 . $(if $(UPDATE),-update)

bench-console: build ## what a page of 1,000 HPAs costs the console, the server and the browser (2 minutes)
	@bench/tools/browser/get-chromium
	@cd bench/tools/browser && $(GO) test -run '^$$' -bench Thousand -benchtime 1x -count 3 .

lint: ## gofumpt and golangci-lint, built from bench/tools
	@out=$$(git ls-files '*.go' | xargs $(LINT) gofumpt -l) && { test -z "$$out" || { echo "gofumpt would change:"; echo "$$out"; exit 1; }; }
	$(LINT) golangci-lint run ./...
	cd bench/lab && $(GO) tool -modfile=../tools/go.mod golangci-lint run ./...
	cd bench/image && $(GO) tool -modfile=../tools/go.mod golangci-lint run ./...
	cd bench/tools/browser && $(GO) tool -modfile=../go.mod golangci-lint run ./...
	cd bench/clients && $(GO) tool -modfile=../tools/go.mod golangci-lint run .
	cd bench/tools/release && $(GO) tool -modfile=../go.mod golangci-lint run ./...

bench: build report ## one table of what ingest, queries, memory and answers cost (40 minutes; ONLY=ingest a part; PROFILES=dir keeps CPU profiles)
	@$(MAKE) --no-print-directory $(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION)
	@bin/report run --prometheus $(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION) $(if $(ONLY),--only $(ONLY)) $(if $(PROFILES),--profiles $(PROFILES))

bench-soak: build report ## PODS (5000) streams with churn for SOAK (10m), then all reconnect at once
	@bin/report soak --duration $(or $(SOAK),10m) $(if $(PODS),--pods $(PODS))

bench-dashboards: build report ## how long an autoscaler waits while a hundred dashboards ask for 15 minutes of 1,000 series (20 minutes; WARM=1m for less history, printed and not kept)
	@bin/report dashboards $(if $(WARM),--warm $(WARM))

bench-mtls: build report ## what it costs that sidecars prove themselves: a handshake, a flush, 5,000 at once (8 minutes; ONLY=handshake a part)
	@bin/report mtls $(if $(ONLY),--only $(ONLY))

clients: envoy ## Flagger's, Argo Rollouts' and KEDA's own code asks meshpulse (ONLY='Flagger|Rollouts' a part: KEDA's is compiled for 12 CPU-minutes, the others' for 2)
	cd bench/clients && $(GO) mod tidy -diff && $(GO) vet . && $(GO) test -count 1 -timeout 60m $(if $(ONLY),-run '$(ONLY)') .

bench-replicas: build ## two replicas beside one process that gets all: one is killed under load, ten times (25 minutes; KILLS=2 fewer, PODS, GENTLY=1 as a rolling update, BEFORE=file from another version's binary, OUT=file for the rows)
	@$(GO) run ./bench/replicas -binary bin/meshpulse $(if $(KILLS),-kills $(KILLS)) $(if $(PODS),-pods $(PODS)) $(if $(GENTLY),-gently) $(if $(BEFORE),-before $(BEFORE)) $(if $(OUT),-out $(OUT))

fleet: report ## PODS (100) simulated sidecars against TARGET=host:port, until Ctrl-C
	@exec bin/report fleet --target $(or $(TARGET),127.0.0.1:15090) --pods $(or $(PODS),100)

quantiles: build report envoy ## quantiles and averages against what real Envoys recorded (4 minutes)
	@bin/report quantiles

beside: build report envoy ## a real Prometheus scrapes the Envoys that push to meshpulse; pods join, leave, restart (6 minutes)
	@$(MAKE) --no-print-directory $(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION)
	@bin/report beside --prometheus $(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION)

surge: report ## the study of surges: false scale-ups, delay, overshoot, over simulated days (40 of each kind and flush; DAYS=1: fewer, printed and not kept)
	@bin/report surge $(if $(DAYS),--days $(DAYS))

image: image-binaries ## bin/meshpulse-image.tar, an OCI archive without Docker, and bills of materials beside it (IMAGE=REGISTRY/meshpulse:TAG, PLATFORMS="linux/amd64 linux/arm64")
	@bin/image/image -name $(IMAGE) -version $(VERSION) -revision $(COMMIT) -out bin/meshpulse-image.tar -sbom $(foreach p,$(PLATFORMS),$(p)=bin/image/meshpulse-$(subst /,-,$(p)))

push-name: # told before anything is built
	@case '$(IMAGE)' in *[.:]*/* | localhost/*) ;; *) echo "make push: IMAGE=$(IMAGE) names no registry: give IMAGE=REGISTRY/meshpulse:TAG (docker.io/NAME/… for Docker's)" >&2; exit 1;; esac

push: push-name image-binaries ## the same to the registry in IMAGE, with the credentials of docker login or podman login
	@bin/image/image -name $(IMAGE) -version $(VERSION) -revision $(COMMIT) -push $(foreach p,$(PLATFORMS),$(p)=bin/image/meshpulse-$(subst /,-,$(p)))

release-version: # told before anything is built
	@echo '$(VERSION)' | grep -Eq '^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$$' || { echo "make release: VERSION=$(VERSION) is no version: give one such as VERSION=1.2.3 or VERSION=1.2.3-rc.1" >&2; exit 1; }

release: BINARIES = $(sort $(PLATFORMS) $(CLI_PLATFORMS))
release: release-version image-binaries ## bin/release: all of VERSION=1.2.3 that somebody installs from, with checksums (IMAGE=REGISTRY/meshpulse:1.2.3, which make push then pushes)
	@cd bench/tools/release && ../progress $(GO) build -v -o ../../../bin/image/release .
	@rm -rf bin/release && mkdir bin/release
	@image=$$(bin/image/image -name $(IMAGE) -version $(VERSION) -revision $(COMMIT) -out bin/release/meshpulse-$(VERSION)-image.tar -sbom \
		$(foreach p,$(PLATFORMS),$(p)=bin/image/meshpulse-$(subst /,-,$(p)))) && \
		bin/image/release -version $(VERSION) -image "$$image" -out bin/release $(foreach p,$(CLI_PLATFORMS),$(p)=bin/image/meshpulse-$(subst /,-,$(p)))

.PHONY: image-binaries
BINARIES = $(PLATFORMS)
image-binaries:
	@cd bench/image && ../tools/progress $(GO) build -v -o ../../bin/image/image .
	@for p in $(BINARIES); do CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} bench/tools/progress $(GO) build -v -trimpath -buildvcs=false \
		-tags $(TAGS) -ldflags "-s -w $(LDFLAGS)" -o bin/image/meshpulse-$$(echo $$p | tr / -) ./cmd/meshpulse || exit; done

report:
	@$(GO) build -ldflags "-X main.commit=$(COMMIT)" -o bin/ ./bench/report

fuzz: ## every fuzz target for FUZZTIME (30s)
	@bench/tools/fuzz $(FUZZTIME)

envoy: .cache/envoy/envoy ## fetch the real Envoy into .cache

.cache/envoy/envoy:
	@bench/tools/get-envoy

clean: ## remove bin/ and .cache/
	rm -rf bin .cache

-include bench/lab/lab.mk
