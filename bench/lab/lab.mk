# The closed loop on a real control plane. Included by the project's Makefile; run from the project's root.
KUBE_VERSION     := v1.37.0
LAB_BIN          := .cache/lab/bin
LAB_CONTROLPLANE := $(LAB_BIN)/controlplane-$(KUBE_VERSION)
SCENARIO         ?= $(sort $(notdir $(basename $(wildcard bench/lab/scenarios/*.yaml))))

.PHONY: lab lab-ci lab-up lab-test lab-build lab-controlplane

lab: lab-build ## the closed loop on a real control plane (SCENARIO=name, default all)
	@$(LAB_BIN)/lab run --root . $(SCENARIO:%=bench/lab/scenarios/%.yaml)

lab-ci: lab-build ## the short closed loop of .ci/run
	@$(LAB_BIN)/lab run --root . --results .cache/lab/results bench/lab/scenarios/ci/guide-rps-short.yaml

lab-up: lab-build ## only the control plane, until Ctrl-C
	@$(LAB_BIN)/lab up --root .

lab-test: ## vet and tests of the lab's own code
	cd bench/lab && $(GO) vet ./... && $(GO) test ./...

lab-build: lab-controlplane build envoy
	@cd bench/lab && ../tools/progress $(GO) build -v -o ../../$(LAB_BIN)/lab .

lab-controlplane: $(LAB_CONTROLPLANE)

# kube-apiserver, kube-controller-manager, kubectl and etcd in one binary: some 13 CPU-minutes with a cold Go build
# cache, seconds with a warm one.
$(LAB_CONTROLPLANE): $(wildcard bench/lab/controlplane/*.go) bench/lab/controlplane/go.mod
	@echo "building the control plane $(KUBE_VERSION): about 2500 packages, 7 to 13 minutes the first time"
	@mkdir -p $(LAB_BIN)
	@cd bench/lab/controlplane && CGO_ENABLED=0 ../../tools/progress $(GO) build -v -trimpath \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)" -o ../../../$@ .
